"""The mutants that the harness makes, and that what is explained of them is still there to be explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.equivalent_mutants import EQUIVALENT
from tests.harness.mutations import mutants

SOURCES = Path(__file__).parents[2] / "src" / "regraft"
SMALL = '''
"""A docstring."""
LIMIT = 3

class A:
    def f(self, n: int = 1) -> int:
        """Another."""
        assert n > 0
        if n < LIMIT and n:
            raise ValueError("not" + "mutated")
        return min(n, 2)
'''


def test_each_part_that_decides_is_changed_once_in_every_way() -> None:
    assert [mutant.name for mutant in mutants(SMALL)] == [
        ": 3 -> 4",
        "A.f: 1 -> 2",
        "A.f: if n < LIMIT and n: -> if True:",
        "A.f: if n < LIMIT and n: -> if False:",
        "A.f: n < LIMIT and n -> n < LIMIT or n",
        "A.f: n < LIMIT and n -> n",
        "A.f: n < LIMIT and n -> n < LIMIT",
        "A.f: n < LIMIT -> n <= LIMIT",
        "A.f: raise ValueError('not' + 'mutated') -> pass",
        "A.f: return min(n, 2) -> return None",
        "A.f: min(n, 2) -> max(n, 2)",
        "A.f: 2 -> 3",
    ]


def test_every_mutant_is_another_program_that_compiles() -> None:
    made = mutants(SMALL)
    assert len({mutant.source for mutant in made}) == len(made)
    for mutant in made:
        compile(mutant.source, "mutant", "exec")


def test_a_default_is_run_when_the_module_is_imported_and_a_body_when_it_is_called() -> None:
    assert [mutant.name for mutant in mutants(SMALL) if not mutant.inside] == [": 3 -> 4", "A.f: 1 -> 2"]


def test_only_the_functions_that_are_named_are_changed() -> None:
    assert {mutant.function for mutant in mutants(SMALL, ("A.f",))} == {"A.f"}
    assert mutants(SMALL, ("A.g",)) == []


@pytest.mark.parametrize("module", EQUIVALENT)
def test_what_is_explained_is_there(module: str) -> None:
    names = EQUIVALENT[module]
    functions = tuple({name.partition(":")[0] for name in names})
    found = {mutant.name for mutant in mutants((SOURCES / module).read_text("utf-8"), functions)}
    assert sorted(names.keys() - found) == []

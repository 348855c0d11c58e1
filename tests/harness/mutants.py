"""Mutation testing of the engine: each small change to a module must make one of its tests fail.

python -m tests.harness.mutants [--module analysis/stats.py] [--survivors] [--record]

It works on a copy of the sources in a temporary folder. Torch and the tests are imported once; each mutant is a forked
child, which changes the code of one function in its own memory (or imports everything anew, where the change is not
inside a function), runs the narrow tests of that module, and has a limit of computing time. What survives must be
explained in `tests/harness/equivalent_mutants.py`, or is a violation.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from tests.harness.equivalent_mutants import EQUIVALENT
from tests.harness.figures import RECORDS, finish
from tests.harness.mutations import Mutant, mutants

REPOSITORY = Path(__file__).parents[2]
CHOSEN = "not slow and not gpu and not network"
ALLOWED_SECONDS = 20.0  # of computing, beyond three times what the tests need without a change
LIMIT_BYTES = 24 * 2**30  # of a child's address space: a change may ask for any amount


@dataclass(frozen=True)
class Module:
    """What is changed, and by what it is to be noticed."""

    path: str
    tests: tuple[str, ...]  # quick ones first
    functions: tuple[str, ...] = ()  # all, if none is named
    only: str = ""  # of the tests, as pytest's -k
    traced: bool = False  # its answers are remembered on disk: a new home folder for each mutant


CUTS = (
    "tests/unit/test_cuts.py", "tests/unit/test_networks_cuts.py", "tests/unit/test_cuts_real_tensors.py",
    "tests/unit/test_forgetting.py", "tests/laws/test_networks.py",
)  # fmt: skip
CASES = "(not laws and not published) or resnet18-cifar"  # of the laws for every network
READ = (
    "key_of", "Store.get", "Store.has", "Store.read", "Store.verify", "Store.keys", "Store.find", "Store.link",
    "Store.linked", "Store.path", "_read_record",
)  # fmt: skip
STORE = ("tests/unit/test_store_keys.py", "tests/unit/test_store.py")
QUICK = "not flipped and not grow and not full_disk"
MODULES = (
    Module("networks/cuts.py", CUTS, only=CASES, traced=True),
    Module("networks/trunk.py", ("tests/unit/test_trunk.py",), traced=True),
    Module("data/subsets.py", ("tests/laws/test_budgets.py", "tests/laws/test_subsets.py")),
    Module("study/keys.py", ("tests/unit/test_keys.py", "tests/unit/test_key_fields.py")),
    Module("study/store.py", STORE, READ, only=QUICK),
    Module("study/disk.py", STORE, ("canonical", "sha256_of", "verify", "verified"), only=QUICK),
    Module("analysis/stats.py", ("tests/unit/test_stats_texts.py", "tests/unit/test_stats.py")),
)  # fmt: skip


# --- in a child -------------------------------------------------------------------------------------------------


def put_in(mutant: Mutant, module: ModuleType, file: Path) -> None:
    """Make the change in this process."""
    function = _function(module, mutant.function) if mutant.inside else None
    if function is not None:
        changed: dict[str, CodeType] = {}
        _codes(compile(mutant.source, str(file), "exec", dont_inherit=True), changed)
        with contextlib.suppress(ValueError):  # another number of free variables
            function.__code__ = changed[function.__code__.co_qualname]
            return
    file.write_text(mutant.source, "utf-8")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("regraft", "tests")]:
        del sys.modules[name]


def _function(module: ModuleType, name: str) -> FunctionType | None:
    """The function of that name, out of its decorators; of one inside a function, the outer one."""
    found: Any = module
    for part in name.split("."):
        found = vars(found).get(part)
        for inside in ("fget", "func", "__wrapped__", "__func__"):  # property, cached_property, lru_cache, classmethod
            if isinstance(found, property | cached_property) or not isinstance(found, FunctionType):
                found = getattr(found, inside, found)
        if isinstance(found, FunctionType):
            return found
        if not isinstance(found, type):
            return None
    return None


def _codes(code: CodeType, found: dict[str, CodeType]) -> None:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found[constant.co_qualname] = constant
            _codes(constant, found)


def test_arguments(module: Module) -> list[str]:
    chosen = [
        "--assert=plain",
        f"--rootdir={Path.cwd()}",
        "-o",
        "addopts=",
        "-m",
        CHOSEN,
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    return [
        *chosen,
        "-p",
        "no:xdist",
        "-p",
        "no:unraisableexception",
        *(["-k", module.only] if module.only else []),
        *module.tests,
    ]


def in_child(work: Callable[[], int], seconds: float, said: Path) -> tuple[str, float]:
    """What became of the tests in a child, and the seconds they computed. said: the file for what it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = os.fork()
    if not child:
        code = 70
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
            resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            handle = os.open(said, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            for stream in (0, 1, 2):
                os.dup2(handle, stream)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + 20 * seconds  # asleep, or on a machine that is very busy
    while (state := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, 9)
        time.sleep(0.005)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = os.waitstatus_to_exitcode(state[1])
    outcome = "survived" if code == 0 else "timeout" if code < 0 else "killed" if code in (1, 2) else f"exit {code}"
    return outcome, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# --- the whole --------------------------------------------------------------------------------------------------


def try_module(module: Module, copy: Path, before: dict[str, Any] | None) -> dict[str, Any]:
    """Every mutant of one module; with figures of `before`, only those that survived then."""
    import pytest

    file = copy / "src" / "regraft" / module.path
    original = file.read_text("utf-8")
    made = mutants(original, module.functions)
    name = "regraft." + module.path.removesuffix(".py").replace("/", ".")
    imported = importlib.import_module(name)
    assert imported.__file__ == str(file), f"{imported.__file__} is tested, not the copy"
    for test in module.tests:
        importlib.import_module(test.removesuffix(".py").replace("/", "."))
    homes = (copy / "homes" / str(number) for number in range(10**6))

    def tests(mutant: Mutant | None) -> Callable[[], int]:
        home = next(homes) if module.traced else copy / "home"

        def work() -> int:
            os.environ["REGRAFT_HOME"] = str(home)
            if mutant is not None:
                put_in(mutant, imported, file)
            return int(pytest.main(test_arguments(module)))

        return work

    gc.collect()
    gc.freeze()  # else the collector of each child touches, and so copies, all that was imported
    said = copy / "said.txt"
    outcome, needed = in_child(tests(None), 600, said)
    assert outcome == "survived", f"{module.path}: its tests fail without any change ({outcome}): {said.read_text()}"
    outcomes, survived, tried = Counter[str](), [], made
    if before is not None:
        assert before["mutants"] == len(made), f"{module.path} has changed since it was recorded"
        outcomes.update(killed=before["killed"], timeout=before["killed by the time limit"])
        left = {one["mutant"] for one in before["survivors explained"]}
        left |= {one.partition(": ")[2] for one in before["violations"]}
        tried = [mutant for mutant in made if mutant.name in left]
    for number, mutant in enumerate(tried):
        outcome, _ = in_child(tests(mutant), 3 * needed + ALLOWED_SECONDS, said)
        file.write_text(original, "utf-8")
        outcomes[outcome] += 1
        if outcome not in ("killed", "timeout"):
            survived.append((mutant, outcome))
            tell(f"{module.path}:{mutant.line} {outcome}: {mutant.name}")
        if number % 50 == 49:
            tell(f"{module.path}: {number + 1} of {len(tried)}")
    return _figures(module, made, outcomes, survived, needed)


def _figures(
    module: Module, made: list[Mutant], outcomes: Counter[str], survived: list[tuple[Mutant, str]], needed: float
) -> dict[str, Any]:
    known = EQUIVALENT.get(module.path, {})
    explained = [
        {"mutant": mutant.name, "why": known[mutant.name]} for mutant, _ in survived if mutant.name in known
    ]  # fmt: skip
    return {
        "functions": list(module.functions) or "all",
        "tests": list(module.tests),
        "seconds of computing of the tests": round(needed, 1),
        "mutants": len(made),
        "by kind": dict(sorted(Counter(mutant.kind for mutant in made).items())),
        "killed": outcomes["killed"],
        "killed by the time limit": outcomes["timeout"],
        "survived": len(survived),
        "survivors explained": explained,
        "violations": [f"{outcome}: {mutant.name}" for mutant, outcome in survived if mutant.name not in known],
    }


def preload() -> None:
    """What takes long to import, and is the same for all mutants."""
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import timm  # noqa: F401
    import torch._dynamo  # noqa: F401
    import torchvision  # noqa: F401


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(wanted: Sequence[Module], before: dict[str, Any]) -> dict[str, Any]:
    """Figures of each module. This process ends up with the copy's modules: use it for nothing else."""
    preload()
    with tempfile.TemporaryDirectory(prefix="regraft-mutants-") as name:
        copy = Path(name).resolve()
        leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for folder in ("src", "tests"):
            shutil.copytree(REPOSITORY / folder, copy / folder, ignore=leave)
        shutil.copy(REPOSITORY / "pyproject.toml", copy)
        os.chdir(copy)
        sys.dont_write_bytecode = True
        for module in [name for name in sys.modules if name.partition(".")[0] in ("regraft", "tests")]:
            if module != "__main__":
                del sys.modules[module]
        sys.path[:0] = [str(copy / "src"), str(copy)]
        return {module.path: try_module(module, copy, before.get(module.path)) for module in wanted}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--module",
        action="append",
        help="of the sources, for example analysis/stats.py; default: all. A record keeps what it has of the others",
    )
    options.add_argument("--record", action="store_true")
    options.add_argument("--survivors", action="store_true", help="only those that the record has as survivors")
    given = options.parse_args()
    wanted = [module for module in MODULES if given.module is None or module.path in given.module]
    file = RECORDS / "mutants.json"
    recorded = json.loads(file.read_text("utf-8")) if file.is_file() and (given.module or given.survivors) else {}
    found = {**recorded, **run(wanted, recorded if given.survivors else {})}
    return finish("mutants", found, record=given.record)


if __name__ == "__main__":
    raise SystemExit(main())

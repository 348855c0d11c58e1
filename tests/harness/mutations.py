"""Small changes to a module that a test of it ought to notice: one wrong operator, constant, condition, call or return.

Left alone, since no law depends on them: docstrings, annotations, decorators, the wording of what is raised, and
`assert`, by which the code checks its own logic.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COMPUTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
JOINED = {ast.And: ast.Or, ast.Or: ast.And}
CALLED = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "abs": "float"}
SKIPPED = (ast.Assert, ast.Raise, ast.Import, ast.ImportFrom)  # their inside; a raise is deleted as a whole


@dataclass(frozen=True)
class Mutant:
    """One change. Where it is, is told by names, not by line numbers: those move."""

    function: str  # "Summary.text", or "" of the module's own level
    kind: str
    before: str
    after: str
    which: int  # of equal ones in the function, from 1
    line: int
    inside: bool  # it is in a function's body: run when that is called, not when the module is imported
    source: str  # of the whole module, changed

    @property
    def name(self) -> str:
        again = f" ({self.which})" if self.which > 1 else ""
        return f"{self.function}: {self.before} -> {self.after}{again}"


def mutants(source: str, functions: tuple[str, ...] = ()) -> list[Mutant]:
    """Every mutant of a module; of `functions` only, if any are named ("key_of", "Store.read")."""
    tree = ast.parse(source)
    made: list[Mutant] = []
    met = Counter[tuple[str, str, str]]()
    for function, holder, index, node, inside in list(_places(tree)):
        if functions and not any(function == name or function.startswith(f"{name}.") for name in functions):
            continue
        for kind, changed in _changes(node):
            before, after = _shown(node), _shown(changed)
            if before == after:
                continue
            met[function, before, after] += 1
            which, line = met[function, before, after], getattr(node, "lineno", 0)
            _put(holder, index, changed)
            made.append(Mutant(function, kind, before, after, which, line, inside, _text(tree)))
            _put(holder, index, node)
    return made


Holder = tuple[ast.AST, str]  # a node and one of its fields


def _put(holder: Holder, index: int | None, node: ast.AST) -> None:
    parent, name = holder
    if index is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[index] = node


Place = tuple[str, Holder, int | None, ast.AST, bool]


def _places(node: ast.AST, function: str = "", inside: bool = False) -> Iterator[Place]:
    """(function, parent and field, index there, node, inside a body) of every node that may be changed."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "type_ignores", "bases", "ctx"):
            continue
        many = isinstance(value, list)
        called = inside or (isinstance(node, ast.FunctionDef) and name == "body")
        for index, child in enumerate(value if many else [value]):
            if not isinstance(child, ast.AST) or _is_docstring(node, name, index, child) or _is_typing(child):
                continue
            if isinstance(child, SKIPPED) and not isinstance(child, ast.Raise):
                continue
            own = function
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                own = f"{function}.{child.name}".lstrip(".")
            yield own, (node, name), index if many else None, child, called
            if not isinstance(child, SKIPPED):
                yield from _places(child, own, called)


def _is_docstring(parent: ast.AST, name: str, index: int, child: ast.AST) -> bool:
    return name == "body" and index == 0 and isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _text(node: ast.AST) -> str:
    return ast.unparse(node)


def _shown(node: ast.AST) -> str:
    """The first line: of a statement with a body, its condition."""
    return _text(node).partition("\n")[0]


# --- what becomes of a node -------------------------------------------------------------------------------------


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            twin = copy.copy(node)
            twin.ops = [*node.ops[:index], COMPARED[type(operator)](), *node.ops[index + 1 :]]
            yield "comparison", twin
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        yield "arithmetic", ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield "condition", ast.BoolOp(JOINED[type(node.op)](), node.values)
        for index in range(len(node.values)):
            rest = [*node.values[:index], *node.values[index + 1 :]]
            yield "condition", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield "condition", node.operand
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield from _branches(node)
    elif isinstance(node, ast.comprehension):
        for index in range(len(node.ifs)):
            rest = [*node.ifs[:index], *node.ifs[index + 1 :]]
            yield "condition", ast.comprehension(node.target, node.iter, rest, node.is_async)
    elif isinstance(node, ast.Return) and not (node.value is None or _is(node.value, None)):
        yield "return", ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Raise | ast.AugAssign | ast.Delete | ast.Continue | ast.Break):
        yield "deleted", ast.Pass()
    elif isinstance(node, ast.Expr):
        if isinstance(node.value, ast.Call):
            yield "deleted", ast.Pass()
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.Slice):
        for bound in ("lower", "upper"):
            if getattr(node, bound) is not None:
                twin_slice = copy.copy(node)
                setattr(twin_slice, bound, None)
                yield "slice", twin_slice


def _constants(node: ast.Constant) -> Iterator[tuple[str, ast.AST]]:
    value = node.value
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int | float):
        yield "constant", ast.Constant(value + 1)
    elif isinstance(value, str):
        yield "constant", ast.Constant(f"{value}X")


def _branches(node: ast.If | ast.IfExp | ast.While) -> Iterator[tuple[str, ast.AST]]:
    for always in (True, False):
        if always and isinstance(node, ast.While):
            continue  # it would not end
        twin = copy.copy(node)
        twin.test = ast.Constant(always)
        yield "condition", twin


def _calls(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.func, ast.Name) and node.func.id in CALLED:
        kept = [keyword for keyword in node.keywords if node.func.id != "sorted"]
        yield "call", ast.Call(ast.Name(CALLED[node.func.id], ast.Load()), node.args, kept)
    for index in range(len(node.keywords)):
        rest = [*node.keywords[:index], *node.keywords[index + 1 :]]
        yield "argument", ast.Call(node.func, node.args, rest)


def _is(node: ast.AST, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value

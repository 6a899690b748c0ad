"""Small changes of Python source that a test should notice: which there are, and a seeded sample of them.

A mutant replaces one operator, constant, condition, call or statement. Left alone are annotations, decorators, texts
(docstrings, messages, f-strings, what is raised or warned of), `__repr__`, asserts and the `strict` of `zip`.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
_PAIRS = ("min", "max"), ("minimum", "maximum"), ("argmin", "argmax"), ("any", "all"), ("floor", "ceil")
_NAMES = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
_MESSAGES = {"warn", "print", "debug", "info", "warning", "error"}


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: path of the file, relative to the repository.
        line: line number, from 1; not part of the mutant's identity.
        text: the source line, stripped.
        change: what is changed in it.
        occurrence: how many equal changes of equal lines of the file come before.
        start: first byte that is replaced.
        end: first byte after it.
        new: what stands there instead.
    """

    file: str
    line: int
    text: str
    change: str
    occurrence: int
    start: int
    end: int
    new: str

    @property
    def room(self) -> str:
        """Name of the folder below the package."""
        return self.file.split("/")[1]

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What identifies the mutant also after edits elsewhere in the file."""
        return self.file, self.text, self.change, self.occurrence

    def apply(self, source: bytes) -> bytes:
        """The mutated source."""
        return source[: self.start] + self.new.encode() + source[self.end :]


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a file, in the order of the source."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    lines, seen = source.decode().splitlines(), Counter[tuple[str, str]]()
    mutants = []
    for start, end, new, change in sorted(finder.found):
        line = source.count(b"\n", 0, start) + 1
        text = lines[line - 1].strip()
        mutants.append(Mutant(file, line, text, change, seen[text, change], start, end, new))
        seen[text, change] += 1
    return mutants


def ranked(mutants: Iterable[Mutant], seed: int) -> list[Mutant]:
    """In the order of a hash of seed and change: a prefix is a sample that edits elsewhere and renamed files keep."""

    def place(mutant: Mutant) -> tuple[str, str]:
        content = "\n".join([str(seed), mutant.text, mutant.change, str(mutant.occurrence)])
        return hashlib.sha256(content.encode()).hexdigest(), mutant.file

    return sorted(mutants, key=place)


class _Finder(ast.NodeVisitor):
    """Collects (first byte, byte after the last, replacement, description)."""

    def __init__(self, source: bytes) -> None:
        self.found: list[tuple[int, int, str, str]] = []
        self._source = source
        self._line_starts = [0]
        for line in source.splitlines(keepends=True):
            self._line_starts.append(self._line_starts[-1] + len(line))

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = self._line_starts[node.lineno - 1] + node.col_offset
        return start, self._line_starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.expr | ast.stmt) -> str:
        start, end = self._span(node)
        return self._source[start:end].decode()

    def _replace(self, node: ast.expr | ast.stmt, new: str, change: str) -> None:
        self.found.append((*self._span(node), new, change))

    def _swap_operator(self, operator: ast.AST, left: ast.expr, right: ast.expr, suffix: str = "") -> None:
        if type(operator) not in _OPERATORS:
            return
        old, new = _OPERATORS[type(operator)]
        gap = self._span(left)[1], self._span(right)[0]
        start = self._source.index((old + suffix).encode(), *gap)
        self.found.append((start, start + len(old), new, f"{old} to {new}"))

    def _negate(self, condition: ast.expr) -> None:
        self._replace(condition, f"(not ({self._text(condition)}))", "condition negated")
        self.visit(condition)

    # Statements

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name != "__repr__":
            for part in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
                self.visit(part)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None and not _is_type_alias(node.target):
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if _is_type_alias(node.targets[0]):
            return
        if not isinstance(node.targets[0], ast.Name | ast.Tuple):
            self._replace(node, "pass", "assignment removed")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._replace(node, "pass", "assignment removed")
        self._swap_operator(node.op, node.target, node.value, suffix="=")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._replace(node, "pass", "call removed")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._replace(node, "pass", "raise removed")

    def visit_Break(self, node: ast.Break) -> None:
        self._replace(node, "pass", "break removed")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._replace(node, "pass", "continue removed")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not _is_none(node.value):
            self._replace(node, "return None", "None returned")
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            return
        self._negate(node.test)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_Assert(self, node: ast.Assert) -> None:
        return

    # Expressions

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.visit(node.body)
        self.visit(node.orelse)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.visit(node.iter)
        for condition in node.ifs:
            self._negate(condition)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
            self._swap_operator(operator, left, right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._swap_operator(node.op, left, right)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if not _is_text(node.left) and not _is_text(node.right):
            self._swap_operator(node.op, node.left, node.right)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub | ast.Invert):
            name = {ast.Not: "not", ast.USub: "-", ast.Invert: "~"}[type(node.op)]
            self._replace(node, f"({self._text(node.operand)})", f"{name} removed")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in _MESSAGES:
            return
        self.visit(node.func)
        for argument in node.args[:1] if name == "isinstance" else node.args:
            self.visit(argument)
        for keyword in node.keywords:
            if keyword.arg != "strict":
                self.visit(keyword.value)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in _NAMES and isinstance(node.ctx, ast.Load):
            self._replace(node, _NAMES[node.id], f"{node.id} to {_NAMES[node.id]}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in _NAMES:
            end = self._span(node)[1]
            change = f"{node.attr} to {_NAMES[node.attr]}"
            self.found.append((end - len(node.attr), end, _NAMES[node.attr], change))
        self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        return

    def visit_Constant(self, node: ast.Constant) -> None:
        for new in _other_values(node.value):
            self._replace(node, repr(new), f"{self._text(node)} to {new!r}")


def _other_values(value: object) -> tuple[bool | int | float, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1, value - 1) if abs(value) < 10 else (10 * value,)
    if isinstance(value, float):
        return (10 * value if value else 1.0,)
    return ()


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_type_alias(target: ast.expr) -> bool:
    """Whether a name is written as a type's, `Floats`, and not as a constant's or a variable's."""
    return isinstance(target, ast.Name) and target.id[:1].isupper() and not target.id.isupper()

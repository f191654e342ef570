"""Finds small mistakes that could be planted in a module, such as a shifted comparison, a dropped condition or a
changed default.

A mutation replaces one piece of the source, and the rest does not change. Docstrings, type annotations, decorators,
strings, assertions, imports and statements that write to the log are not mutated.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
SHIFTED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
}
RENAMED = {"min": "max", "max": "min", "any": "all", "all": "any"}
LOGS = ("log", "logger", "logging")
SKIPPED_FIELDS = ("annotation", "returns", "decorator_list", "type_comment", "pattern", "bases")
SKIPPED_NODES = (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A mistake that can be planted: a piece of a module's source, and the source that replaces it."""

    scope: str
    """The qualified name of the function or class around it, or empty at the top of the module."""
    is_default: bool
    """Whether the piece is evaluated once: a constant, or the default of a field or of a parameter."""
    line: int
    kind: str
    """The kind of mistake, such as `negated`."""
    was: str
    """The piece of source, on one line."""
    becomes: str
    start: int
    """The offset of the piece in the source, in bytes."""
    end: int

    def apply(self, text: str) -> str:
        """Return the source with the mistake in it. `text` must be the source in which the mistake was found."""
        source = text.encode()
        return (source[: self.start] + self.becomes.encode() + source[self.end :]).decode()

    def __str__(self) -> str:
        """Return, on one line, the qualified name of the function or class around the mistake (`module` at the top
        level), the kind of mistake, and the source before and after. The file and the line number are not included."""
        return f"{self.scope or 'module'}: {self.kind}: {self.was}  ->  {self.becomes}"


def find_mutations(text: str) -> list[Mutation]:
    """Return every mutation of a module whose result still compiles, in the order of `walk`. Raises SyntaxError if
    `text`, the module's source, does not compile itself."""
    mutations = [
        replace_node(text, scope, target, kind, becomes, is_default=is_default)
        for scope, is_default, node in walk(ast.parse(text))
        for target, kind, becomes in _mistakes(node)
    ]
    return [mutation for mutation in mutations if _compiles(mutation.apply(text))]


def replace_node(
    text: str, scope: str, target: ast.expr | ast.stmt, kind: str, becomes: str, *, is_default: bool
) -> Mutation:
    """Return the mutation that replaces the source of the node `target` in `text` with `becomes`. `scope`, `kind` and
    `is_default` are stored in it unchanged; its line, its offsets in bytes and the source that it replaces, on one
    line, come from the position of `target` in `text`."""
    assert target.end_lineno is not None, "a parsed node has an end"
    assert target.end_col_offset is not None, "a parsed node has an end"
    was = " ".join((ast.get_source_segment(text, target) or "").split())
    lines = text.encode().splitlines(keepends=True)
    start = sum(map(len, lines[: target.lineno - 1])) + target.col_offset
    end = sum(map(len, lines[: target.end_lineno - 1])) + target.end_col_offset
    return Mutation(scope, is_default, target.lineno, kind, was, becomes, start, end)


def _compiles(text: str) -> bool:
    """Whether this source compiles without a SyntaxError."""
    try:
        compile(text, "mutated", "exec")
    except SyntaxError:
        return False
    return True


def walk(node: ast.AST, scope: str = "", *, is_default: bool = True) -> Iterator[tuple[str, bool, ast.AST]]:
    """Yield (scope, is_default, node) for the node and all nodes below it that may be mutated, outer ones first.
    Annotations, decorators, base classes, the patterns of a `case`, f-strings, assertions, imports, docstrings and
    calls of a logger are left out. `scope` is the qualified name of the enclosing function or class. `is_default` is
    True outside the body of any function, where code is evaluated once, at import."""
    yield scope, is_default, node
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for name, value in ast.iter_fields(node):
        if name in SKIPPED_FIELDS:
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, SKIPPED_NODES) or _is_log(child):
                continue
            inner = scope
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{scope}.{child.name}".lstrip(".")
            yield from walk(child, inner, is_default=is_default and not (is_function and name == "body"))


def _is_log(node: ast.AST) -> bool:
    """Whether this node is a statement that is only an expression, and either a constant, such as a docstring, or a
    chain of calls and attributes with a name of LOGS in it: an attribute such as `self.log`, or the first name, in any
    case of letters."""
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Constant):
        return True
    called = node.value.func if isinstance(node.value, ast.Call) else node.value
    while isinstance(called, ast.Attribute | ast.Call):
        if isinstance(called, ast.Attribute) and called.attr in LOGS:
            return True
        called = called.value if isinstance(called, ast.Attribute) else called.func
    return isinstance(called, ast.Name) and called.id.lower() in LOGS


def _mistakes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    """Yield (node to replace, kind of mistake, new source) for each mistake that is possible in this node itself. A
    comparison is negated or, if it orders, shifted (`<` becomes `<=`, and `>=` becomes `>`); chained ones are left
    alone. `and` and `or`, `min` and `max`, and `any` and `all` are swapped. An operand or a `not` is dropped, an
    arithmetic operator is replaced as ARITHMETIC says, a number is increased by one, and a bool is negated. For all
    other nodes the mistakes are those of `_control_flow`."""
    match node:
        case ast.Compare(left, [op], [right]):
            for kind, table in (("negated", NEGATED), ("shifted", SHIFTED)):
                if type(op) in table:
                    yield node, kind, in_brackets(ast.Compare(left, [table[type(op)]()], [right]))
        case ast.BoolOp(op, values) as condition:
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield node, "and/or swapped", in_brackets(ast.BoolOp(other, values))
            for index in range(len(values)):
                yield node, "operand dropped", in_brackets(without(condition, index))
        case ast.UnaryOp(ast.Not(), operand):
            yield node, "not dropped", in_brackets(operand)
        case ast.BinOp(left, op, right) if type(op) in ARITHMETIC:
            yield node, "operator changed", in_brackets(ast.BinOp(left, ARITHMETIC[type(op)](), right))
        case ast.Constant(bool() as value):
            yield node, "value changed", str(not value)
        case ast.Constant(int() | float() as value):
            yield node, "value changed", repr(value + 1)
        case ast.Call(ast.Name(name) as called) if name in RENAMED:
            yield called, "function changed", RENAMED[name]
        case _:
            yield from _control_flow(node)


def _control_flow(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    """Yield (node to replace, kind of mistake, new source) for each mistake of control flow in this node. Conditions
    become True or False, that of a `while` only False. Dropped are expressions, `raise`, `del`, augmented assignments,
    and assignments of more than a name to an attribute or item. A returned value becomes None. Constants stay.
    `continue` and `break` are swapped."""
    match node:
        case ast.If(test) | ast.IfExp(test):
            yield test, "condition decided", "True"
            yield test, "condition decided", "False"
        case ast.While(test) if not isinstance(test, ast.Constant):
            yield test, "condition decided", "False"
        case ast.comprehension(ifs=ifs):
            for test in ifs:
                yield test, "condition decided", "True"
                yield test, "condition decided", "False"
        case ast.Return(ast.expr() as value) if not isinstance(value, ast.Constant):
            yield value, "returns None", "None"
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Delete():
            yield node, "statement dropped", "pass"
        case ast.Assign([ast.Attribute() | ast.Subscript()], value) if not isinstance(value, ast.Name):
            yield node, "statement dropped", "pass"
        case ast.Continue():
            yield node, "continue became break", "break"
        case ast.Break():
            yield node, "break became continue", "continue"


def without(condition: ast.BoolOp, index: int) -> ast.expr:
    """Return the condition without its operand number `index`. If only one operand is left, return that operand
    itself."""
    rest = condition.values[:index] + condition.values[index + 1 :]
    return rest[0] if len(rest) == 1 else ast.BoolOp(condition.op, rest)


def in_brackets(node: ast.expr) -> str:
    """Return the source of the expression in parentheses, so that it can replace any other expression."""
    text = ast.unparse(ast.fix_missing_locations(node))
    return f"({text})"

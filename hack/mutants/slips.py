"""Slips: what is easily forgotten or changed by mistake in the modules that talk to the API server and to NVML.

Either a condition lacks an operand that is not its first. Or a constant, or the default of a field or of a parameter,
has another value: a number is doubled, 0 becomes 1, and True becomes False. Slips are found in the code. For each of
them tests/mutants/slips.yaml names the test that notices it.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hack.mutants.mutator import Mutation, in_brackets, replace_node, walk, without
from hack.mutants.transplant import plant_source

PRODUCT = Path("operator/gpusharing")
PACKAGES = ("kube", "agent")
OUT_OF_REACH = "nvml"
"""How modules begin that tests play in processes of their own, beside a stand-in of NVIDIA's library."""
PROBE = "__decides__"
LONGEST = 60
"""Characters of an operand in the name of a slip."""


@dataclass(frozen=True, slots=True)
class Slip:
    """One of them."""

    module: str
    """Below `gpusharing`."""
    mutation: Mutation

    @property
    def stem(self) -> str:
        """The module's own name, which the files of its tests have in theirs."""
        return self.module.rpartition(".")[2]

    @property
    def path(self) -> Path:
        """The module's file."""
        return PRODUCT / f"{self.module.replace('.', '/')}.py"

    @property
    def look(self) -> tuple[str, ...]:
        """Folders where a killer is looked for."""
        return f"tests/{self.module.partition('.')[0]}", "tests/controller"

    def plant(self) -> None:
        """Put it into the modules of this process, permanently."""
        plant_source(f"gpusharing.{self.module}", self.mutation.apply(self.path.read_text()))


def read_slips() -> Mapping[str, Slip]:
    """Return every slip by its name."""
    files = [(package, path) for package in PACKAGES for path in sorted((PRODUCT / package).glob("*.py"))]
    files = [(package, path) for package, path in files if not path.stem.startswith(OUT_OF_REACH)]
    return {
        name: slip
        for package, path in files
        for name, slip in find_slips(f"{package}.{path.stem}", path.read_text())
    }


def find_slips(module: str, text: str) -> Iterator[tuple[str, Slip]]:
    """Yield the slips of a module by their names. The second of the same text in one function is called (2)."""
    tree = ast.parse(text)
    for name, scope, is_default, node, index in _operands(module, tree):
        becomes = in_brackets(without(node, index))
        yield name, Slip(module, replace_node(text, scope, node, "operand", becomes, is_default=is_default))
    for scope, is_default, part in walk(tree):
        for name, value in _values(part) if is_default else ():
            if _is_number(value):
                mutation = replace_node(text, scope, value, "default", _another(value), is_default=True)
                in_scope = f"{scope}({name})" if isinstance(part, ast.arguments) else f"{scope}.{name}"
                yield f"{module} {in_scope.lstrip('.')}", Slip(module, mutation)


def _operands(module: str, tree: ast.Module) -> Iterator[tuple[str, str, bool, ast.BoolOp, int]]:
    """Yield the operands that may be missing: their name, where they are, their condition and place in it."""
    seen: Counter[str] = Counter()
    for scope, is_default, node in walk(tree):
        if not isinstance(node, ast.BoolOp):
            continue
        word = "and" if isinstance(node.op, ast.And) else "or"
        for index, operand in enumerate(node.values[1:], 1):
            said = " ".join(ast.unparse(operand).split())
            place = f"{module} {scope}:" if scope else module
            name = f"{place} {word} {said[:LONGEST]}{'…' * (len(said) > LONGEST)}"
            seen[name] += 1
            yield f"{name} ({seen[name]})" if seen[name] > 1 else name, scope, is_default, node, index


def add_probes(module: str, text: str) -> str:
    """Return the source with a call around each operand that may be missing.

    The function PROBE gets the operand's name, the truth value with which it decides (None: any) and its value.
    """
    tree = ast.parse(text)
    for name, _, _, node, index in list(_operands(module, tree)):
        decides_if = False if isinstance(node.op, ast.And) else None
        told = [ast.Constant(name), ast.Constant(decides_if), node.values[index]]
        node.values[index] = ast.Call(ast.Name(PROBE), told, [])
    return ast.unparse(ast.fix_missing_locations(tree))


def _values(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield the names that a node gives a value at import, with these values."""
    match node:
        case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
            yield name, value
        case ast.arguments():
            positional = [*node.posonlyargs, *node.args]
            yield from (
                (a.arg, value)
                for a, value in zip(reversed(positional), reversed(node.defaults), strict=False)
            )
            for argument, default in zip(node.kwonlyargs, node.kw_defaults, strict=True):
                if default is not None:
                    yield argument.arg, default


def _is_number(value: ast.expr) -> bool:
    match value:
        case ast.Constant(number):
            return isinstance(number, int | float)
        case ast.BinOp(left, _, right):
            return any(map(_is_number, (left, right))) and all(
                _is_number(side) or isinstance(side, ast.Name) for side in (left, right)
            )
    return False


def _another(value: ast.expr) -> str:
    match value:
        case ast.Constant(bool() as answer):
            return str(not answer)
        case ast.Constant(0 | 0.0 as zero):
            return repr(zero + 1)  # of the same type, or it would not be planted
    return f"(2 * {in_brackets(value)})"

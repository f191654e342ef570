"""Slips: what is easily forgotten or changed by mistake in the modules that talk to the API server and to NVML.

One kind of slip drops an operand of a condition, except the first one. The other gives a constant, or the default of a
field or of a parameter, a wrong value: a number is doubled, 0 becomes 1, and True and False are swapped. Slips are
found in the code. For each of them tests/mutants/slips.yaml names the test that notices it.
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
"""The prefix of the names of modules without slips. Tests run these modules in other processes, with a stand-in for
NVIDIA's library."""
PROBE = "__decides__"
LONGEST = 60
"""The largest number of characters of an operand in the name of a slip."""


@dataclass(frozen=True, slots=True)
class Slip:
    """One slip in one module, as a mutant that can be planted (`hack.mutants.plays.Mutant`)."""

    module: str
    """The name of the module below `gpusharing`, as in `kube.http`."""
    mutation: Mutation

    @property
    def stem(self) -> str:
        """The last part of the module's name, which the names of its test files contain."""
        return self.module.rpartition(".")[2]

    @property
    def path(self) -> Path:
        """The path of the module's source."""
        return PRODUCT / f"{self.module.replace('.', '/')}.py"

    @property
    def look(self) -> tuple[str, ...]:
        """The folders whose tests are tried if no test is named for this slip."""
        return f"tests/{self.module.partition('.')[0]}", "tests/controller"

    def plant(self) -> None:
        """Plant the mistake in the module that this process has imported. This cannot be undone."""
        plant_source(f"gpusharing.{self.module}", self.mutation.apply(self.path.read_text()))


def read_slips() -> Mapping[str, Slip]:
    """Return, by name, the slips of the modules directly in PACKAGES, except the modules whose names begin with
    OUT_OF_REACH."""
    files = [(package, path) for package in PACKAGES for path in sorted((PRODUCT / package).glob("*.py"))]
    files = [(package, path) for package, path in files if not path.stem.startswith(OUT_OF_REACH)]
    return {
        name: slip
        for package, path in files
        for name, slip in find_slips(f"{package}.{path.stem}", path.read_text())
    }


def find_slips(module: str, text: str) -> Iterator[tuple[str, Slip]]:
    """Yield (name, slip) for each slip of a module, whose source is `text`. A slip drops an operand of `and` or `or`
    (`_operands`), or changes a number that is assigned or is a default at import. If several operands would give the
    same name, the second name and later ones end with (2), (3) and so on."""
    tree = ast.parse(text)
    for name, scope, is_default, node, index in _operands(module, tree):
        becomes = in_brackets(without(node, index))
        yield name, Slip(module, replace_node(text, scope, node, "operand", becomes, is_default=is_default))
    for scope, is_default, part in walk(tree):
        for name, value in _assigned(part) if is_default else ():
            if _is_number(value):
                mutation = replace_node(text, scope, value, "default", _wrong_number(value), is_default=True)
                in_scope = f"{scope}({name})" if isinstance(part, ast.arguments) else f"{scope}.{name}"
                yield f"{module} {in_scope.lstrip('.')}", Slip(module, mutation)


def _operands(module: str, tree: ast.Module) -> Iterator[tuple[str, str, bool, ast.BoolOp, int]]:
    """Yield a tuple for each operand of an `and` or `or` except the first one: the name of the slip that drops it, the
    scope, whether that code is evaluated only once (see `mutator.walk`), the condition, and the index of the operand in
    the condition."""
    uses: Counter[str] = Counter()
    for scope, is_default, node in walk(tree):
        if not isinstance(node, ast.BoolOp):
            continue
        word = "and" if isinstance(node.op, ast.And) else "or"
        for index, operand in enumerate(node.values[1:], 1):
            source = " ".join(ast.unparse(operand).split())
            place = f"{module} {scope}:" if scope else module
            name = f"{place} {word} {source[:LONGEST]}{'…' * (len(source) > LONGEST)}"
            uses[name] += 1
            yield f"{name} ({uses[name]})" if uses[name] > 1 else name, scope, is_default, node, index


def add_probes(module: str, text: str) -> str:
    """Return the source with a call of the function PROBE around each operand that a slip may drop.

    PROBE gets the name of the slip, the truth value with which the operand decides the condition, and the value of the
    operand. The truth value is False in an `and`. It is None in an `or`, where an operand decides whenever it is
    evaluated.
    """
    tree = ast.parse(text)
    for name, _, _, node, index in list(_operands(module, tree)):
        decides_if = False if isinstance(node.op, ast.And) else None
        arguments = [ast.Constant(name), ast.Constant(decides_if), node.values[index]]
        node.values[index] = ast.Call(ast.Name(PROBE), arguments, [])
    return ast.unparse(ast.fix_missing_locations(tree))


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield (name, value) for each name to which this node itself gives a value: an assignment to one plain name, or
    the parameters of a function that have a default. Yields nothing for any other node."""
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
    """Whether this is a number or a bool, or an operation of two parts of which at least one is a number (by this same
    rule) and the other a number or a plain name. False for strings, None and all else."""
    match value:
        case ast.Constant(number):
            return isinstance(number, int | float)
        case ast.BinOp(left, _, right):
            return any(map(_is_number, (left, right))) and all(
                _is_number(side) or isinstance(side, ast.Name) for side in (left, right)
            )
    return False


def _wrong_number(value: ast.expr) -> str:
    """Return the source of a wrong value of the same type: twice the number, 1 for 0, or the other bool."""
    match value:
        case ast.Constant(bool() as answer):
            return str(not answer)
        case ast.Constant(0 | 0.0 as zero):
            return repr(zero + 1)  # `plant_source` replaces a constant only by one of the same type
    return f"(2 * {in_brackets(value)})"

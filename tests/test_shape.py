"""What the source of the product may not grow into, where no linter tells (docs/adr/0029)."""

import ast
import re
import tomllib
from functools import cache
from typing import Any

import pytest
from hack.generate import ROOT

from gpusharing.api import names
from gpusharing.planning.snapshot.nvidia import Program

PRODUCT = ROOT / "operator" / "gpusharing"
PLANNING = PRODUCT / "planning"
MOST_NARROWINGS = 8
"""Places where the planner says by an assert what its types do not."""
CACHED = {
    "drain/placement.py", "drain/stranded.py",
    "gpus/cards.py", "gpus/geometry.py",
    "pools/afterwards.py", "pools/windows.py", "pools/candidates.py", "snapshot/records.py",
    "snapshot/views.py", "wanted/verify.py",
    "wanted/migfile.py", "wanted/pluginconfig.py", "wanted/target.py", "transition/verdict.py",
}  # fmt: skip
"""Modules that keep the answer of a pure function of a few values, such as a layout, a version or a text. None holds a snapshot, and none outlasts a change of its arguments: what is decided is remembered by `memo.py` alone. Answers in `drain/stranded.py` and `pools/afterwards.py` are part of one plan, and end with it."""


@cache
def sources() -> dict[str, ast.Module]:
    return {str(path.relative_to(PLANNING)): ast.parse(path.read_text()) for path in sorted(PLANNING.rglob("*.py"))}


PURE = {
    "base64", "collections", "contextlib", "cronsim", "dataclasses", "datetime", "difflib", "enum", "fractions", "functools",
    "hashlib", "heapq", "itertools", "json", "pydantic", "pydantic_core", "re", "shlex", "types", "typing", "yaml",
}  # fmt: skip
"""What `planning` and `api` may import from outside: packages that reckon with values, and read no file, clock or environment. Time zones, for example, come with the policy."""
READERS = {
    "open",
    "read_text",
    "read_bytes",
    "input",
    "print",
    "__import__",
    "exec",
    "now",
    "today",
    "utcnow",
}
"""Names that read a file, a module or the clock when they are called, wherever they come from."""


def impurities(module: ast.Module) -> set[str]:
    """What of a module is not pure: packages that it imports without being in PURE, and calls of READERS."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or ".")
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found |= {f"{name}()"} if name in READERS else set()
    ours = re.compile(r"gpusharing\.(api|planning)(\.|$)")
    return {name for name in found if name.split(".")[0] not in PURE and not ours.match(name)}


def test_what_decides_reads_no_file_and_no_clock() -> None:
    found = {
        str(path.relative_to(PRODUCT)): impure
        for package in ("planning", "api")
        for path in sorted((PRODUCT / package).rglob("*.py"))
        if (impure := impurities(ast.parse(path.read_text())))
    }
    assert found == {}, "hand it in as a value: see PURE"


@pytest.mark.parametrize(
    "text",
    [
        "from importlib import resources",
        "import os.path",
        "from zoneinfo import ZoneInfo",
        "from pathlib import Path",
        "from gpusharing.kube import zones",
        "x = open('/etc/localtime')",
        "x = place.joinpath('zones').read_text()",
        "x = datetime.now(UTC)",
    ],
)
def test_what_reads_a_file_or_a_clock_is_known_by_its_imports_and_calls(text: str) -> None:
    assert len(impurities(ast.parse(text))) == 1
    assert impurities(ast.parse("from gpusharing.api import names\nimport re\nx = re.compile('a').match('b')")) == set()


ACTUATED = {
    "LABEL_MIG_CONFIG", "LABEL_MIG_STATE", "LABEL_PLUGIN_CONFIG", "LABEL_GFD_TIMESTAMP", "MIG_MANAGER", "MPS_DAEMON",
    "mps_daemon",
}  # fmt: skip
"""Names of what an actuator writes, reads or restarts."""
ACTUATED_TEXTS = {
    names.LABEL_MIG_CONFIG, names.LABEL_PLUGIN_CONFIG, names.LABEL_GFD_TIMESTAMP, *map(str, Program),
}  # fmt: skip
ACTUATORS = "gpusharing.planning.wanted.actuators"
ONES = {"Actuator", "ActuatorCase", "Trace", "Unfinished", "Written", "find_actuator"}
"""What of the actuators' module others may name: what is the same for each of them."""


def actuated(module: ast.Module) -> set[str]:
    """What of an actuator a module names: NVIDIA's labels and pods, and what only one actuator has."""
    docs = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names} & ACTUATED
            if node.module == ACTUATORS:
                found |= {alias.name for alias in node.names} - ONES
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found |= {text for text in ACTUATED_TEXTS if text in node.value}
        else:
            found |= {getattr(node, "attr", ""), getattr(node, "id", "")} & ACTUATED
    return found


def test_a_transition_asks_its_actuator_and_knows_no_label_by_itself() -> None:
    found = {
        name: words
        for name, module in sources().items()
        if name.startswith(("transition/", "pools/")) and (words := actuated(module))
    }
    assert found == {}, "a field of Actuator answers it (docs/adr/0075-actuators.md)"


@pytest.mark.parametrize(
    "text",
    [
        "x = node.labels.get(names.LABEL_MIG_CONFIG)",
        "from gpusharing.api.names import LABEL_PLUGIN_CONFIG",
        "x = f'{text}: nvidia.com/mig.config.state is {state}'",
        "x = case.operands[Program.MPS_DAEMON]",
        "x = 'check the pods with label app=nvidia-mig-manager'",
        "from gpusharing.planning.wanted.actuators import LABELS",
    ],
)
def test_what_belongs_to_an_actuator_is_known_by_its_names_and_texts(text: str) -> None:
    assert len(actuated(ast.parse(text))) == 1
    assert actuated(ast.parse('"""About nvidia.com/mig.config."""\nx = case.actuator.find_events(case)')) == set()


def is_narrowing(node: ast.AST) -> bool:
    """Whether an assert says that something is there, or is of a type."""
    if not isinstance(node, ast.Assert):
        return False
    text = ast.unparse(node.test)
    return "is not None" in text or text.startswith("isinstance(")


def test_the_planners_types_carry_their_proof() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, module in sources().items()
        for node in ast.walk(module)
        if isinstance(node, ast.Assert) and is_narrowing(node)
    ]
    assert len(found) <= MOST_NARROWINGS, found


def test_a_narrowing_is_known_by_what_it_says() -> None:
    texts = {"assert x is not None": True, "assert isinstance(x, int)": True, "assert x, y": False, "x = 1": False}
    assert {text: is_narrowing(ast.parse(text).body[0]) for text in texts} == texts


@pytest.mark.parametrize("package", ["gpusharing.planning", "kubectl_gpusharing", "kubectl_gpusharing.usage"])
def test_each_room_of_a_package_stands_on_the_map_in_its_order(package: str) -> None:
    folder = package.replace(".", "/")
    root = ROOT / "operator" / folder
    rooms = {path.stem for path in root.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))} - {"__init__"}
    floors = contract(package)["layers"]
    assert {room for floor in floors for room in floor.split(" | ")} == rooms
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    table = page.split(f"| `{folder.removeprefix('gpusharing/')}/` |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE)
    shown = [name.removesuffix(".py") for row in rows for name in re.findall(r"`([^`]+)`", row)]
    place = {room: i for i, floor in enumerate(floors) for room in floor.split(" | ")}
    assert set(shown) == rooms - {"main", "__main__"}
    assert len(shown) == len(set(shown))
    assert [place[room] for room in shown] == sorted(place[room] for room in shown)


def contract(container: str) -> dict[str, Any]:
    """The contract of import-linter that orders what stands in this package."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (found,) = [one for one in linter["contracts"] if one.get("containers") == [container]]
    return dict(found)


def test_what_is_decided_is_remembered_in_one_module() -> None:
    found = {
        name
        for name, module in sources().items()
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom)
        and node.module == "functools"
        and any(re.search("cache", alias.name) for alias in node.names)
    }
    assert found == CACHED, "a cache outside of memo.py: see CACHED for what it may hold"


PAGED = {
    "kube/lists.py": "asks again for a page that failed",
    "kube/reflector.py": "has `whole_list` of kube/lists.py ask again for a page that failed",
    "controller/policywatch.py": "asks for a single object, to see whether the server answers",
}
"""Modules that may call `list_page` of a client, and why."""


def test_every_list_goes_through_the_module_that_asks_again_for_pages_that_failed() -> None:
    found = {
        str(path.relative_to(PRODUCT))
        for path in PRODUCT.rglob("*.py")
        if "list_page" in (text := path.read_text())
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr == "list_page"
    }
    assert found == PAGED.keys(), "use pages_of or list_of of kube/lists.py"

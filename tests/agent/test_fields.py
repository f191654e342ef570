"""The table of fields and rights against the adapter's source, the wire type, and the SIMULATED library's rights."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hack.agentfields import SESSION, SOURCES, USAGE, FieldSource, NeededRight
from hack.crdschema import structural_schema
from hack.nvmlsim.simulator import Simulator
from tests.agent.nvml_machine import in_process, needs_compiler, read

from gpusharing.agent import nvml, nvml_devices, nvml_mig, nvml_use
from gpusharing.api.gpunode import Observed


def leaves(schema: dict[str, Any], at: str = "") -> Iterator[str]:
    if "properties" in schema:
        for name, child in schema["properties"].items():
            yield from leaves(child, f"{at}.{name}".lstrip("."))
    elif "items" in schema and "properties" in schema["items"]:
        yield from leaves(schema["items"], f"{at}[]")
    else:
        yield at


def source_of(leaf: str) -> FieldSource:
    found = [
        (len(name), source)
        for source in SOURCES
        for name in source.fields
        if re.match(re.escape(name) + r"($|\.|\[)", leaf)
    ]
    assert found, f"hack/agentfields.py names no source of {leaf}"
    return max(found, key=lambda pair: pair[0])[1]


LEAVES = sorted(leaves(structural_schema(Observed, written_by_us=True)))


def test_every_field_has_a_source_and_every_source_a_field() -> None:
    assert {id(source_of(leaf)) for leaf in LEAVES} == {id(source) for source in SOURCES}
    named = [name for source in SOURCES for name in source.fields]
    assert len(named) == len(set(named))


OTHER_NAMES = {"nvmlEventTypeXidCriticalError", "nvmlReturn", "nvmlMemory_v2"}


def test_the_calls_are_those_of_the_adapter() -> None:
    modules = (nvml, nvml_devices, nvml_mig, nvml_use)
    trees = [ast.parse(inspect.getsource(module)) for module in modules]
    made = {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and re.match(r"nvml[A-Z]", node.attr) and node.attr not in OTHER_NAMES
    }
    assert made == {*SESSION, *(call for source in (*SOURCES, *USAGE) for call in source.calls)}


def test_no_call_changes_a_gpu() -> None:
    writing = re.compile(r"Set[A-Z]|Create|Destroy|Clear|Reset|Modify")
    calls = {call for source in (*SOURCES, *USAGE) for call in source.calls}
    assert {call for call in calls if writing.search(call)} == {
        "nvmlEventSetCreate", "nvmlEventSetWait_v2", "nvmlEventSetFree",
    }  # fmt: skip


def values(at: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(path, value) of everything that a report tells, lists of words in one piece."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from values(f"{at}.{key}".lstrip("."), child)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for child in value:
            yield from values(f"{at}[]", child)
    else:
        yield at, value


def told(simulator: Simulator, privilege: str) -> dict[str, list[Any]]:
    """Everything that a report tells with these rights, by path, in any order."""
    found: dict[str, list[Any]] = {}
    for path, value in values("", in_process(simulator, "report", privilege=privilege)):
        found.setdefault(path, []).append(value)
    return {path: sorted(map(str, known)) for path, known in found.items()}


@needs_compiler
@pytest.mark.parametrize("privilege", ["none", "monitor", "config"])
def test_without_a_right_exactly_its_fields_lack(tmp_path: Path, privilege: str) -> None:
    machine = Simulator.create(tmp_path / "state", ["h100-80gb", "h100-80gb"], seed="test")
    machine.inject("nvmlGpuInstanceCreateComputeInstance", "INSUFFICIENT_RESOURCES", skip=2, count=1)
    with pytest.raises(AssertionError, match="Insufficient"):  # an instance without a device, which only rights show
        in_process(machine, "partition", "0", "3g.40gb", "1g.10gb", "1g.10gb")
    in_process(machine, "put", "0", "2g.20gb", "1")  # one with too small a compute instance
    instance = next(one for one in read(machine)["gpus"][0]["instances"] if one["profile"] == "3g.40gb")
    machine.add_process(0, 4_000_001, "worker", gpu_instance=instance["id"], compute_instance=0)
    full = told(machine, "root")
    less = told(machine, privilege)
    lacking = {path for path in full.keys() | less.keys() if full.get(path) != less.get(path)}
    needing = {leaf for leaf in LEAVES if NeededRight.MIG_CONFIG in source_of(leaf).needs}
    assert lacking == (set() if privilege == "config" else needing)

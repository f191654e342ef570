"""What must outlast a pod is in objects of the cluster or in Prometheus, never in a file of the pod; and without a Prometheus only what is asked of one is missing, and says so (docs/adr/0043-the-meter.md)."""

import ast
from typing import Any

import pytest
from hack.cluster import toolchain
from hack.generate import ROOT
from tests.chart.charts import Helm

PRODUCT = ROOT / "operator"
SHIPPED = PRODUCT / "gpusharing"
WRITES = frozenset({"write_text", "write_bytes", "mkstemp", "NamedTemporaryFile", "TemporaryDirectory"})
"""Calls that make a file or fill it, whatever they are called on."""
READ_ONLY = frozenset({"r", "rb", "rt"})
QUERY = '{"query": query'


def writes(source: str) -> list[int]:
    """Lines of a module in which a file is opened to be written, or made."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        of_something = isinstance(call.func, ast.Attribute)
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        named = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
        told = [*call.args[0 if of_something else 1 : 2], *named]
        modes = [str(one.value) for one in told if isinstance(one, ast.Constant)]
        if name in WRITES or (name in ("open", "fdopen") and any(map(is_a_writing_mode, modes))):
            found.append(call.lineno)
    return found


def is_a_writing_mode(text: str) -> bool:
    """Whether a text is a mode of open() other than for reading; a path is none."""
    kind = text.partition(":")[0]
    return 0 < len(kind) <= 4 and set(kind) <= set("rwxabt+") and kind not in READ_ONLY


def test_no_module_that_runs_in_a_pod_writes_a_file() -> None:
    modules = {str(path.relative_to(SHIPPED)): path.read_text() for path in SHIPPED.rglob("*.py")}
    assert len(modules) > 100
    assert [name for name, source in modules.items() if writes(source)] == []


WRITING = ("open(p, 'w')", "open(p, mode='ab')", "Path(p).write_text('')", "path.open('w')", "tempfile.mkstemp()")
READING = ("open(p)", "open('a')", "path.open('rb')", "urlopen(url)")


@pytest.mark.parametrize("source", [*WRITING, *READING])
def test_what_writes_is_found_and_what_only_reads_is_not(source: str) -> None:
    assert writes(source) == [1] * (source in WRITING)


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(toolchain.program("helm"), tmp_path_factory.mktemp("helm"))


def pods(helm: Helm) -> dict[str, dict[str, Any]]:
    """The pod specs of the chart, with everything switched on that brings none from elsewhere."""
    found = {}
    for one in helm.template():
        spec = one.get("spec") or {}
        inner = spec.get("template", {}).get("spec") or (spec if one["kind"] == "Pod" else None)
        if inner:
            found[f"{one['kind']} {one['metadata']['name']}"] = inner
    return found


@pytest.mark.tools
def test_no_pod_of_the_chart_has_a_place_to_write(helm: Helm) -> None:
    found = pods(helm)
    assert {name.partition(" ")[0] for name in found} >= {"Deployment", "DaemonSet"}
    for name, spec in found.items():
        kinds = {key for volume in spec.get("volumes", ()) for key in volume if key != "name"}
        assert kinds <= {"hostPath", "projected"}, name
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert {mount.get("readOnly", False) for mount in container.get("volumeMounts", ())} <= {True}, name


def test_nothing_that_decides_asks_prometheus() -> None:
    """Operator and agent tell it, and are not told; what asks is one module of the plugin."""
    asking = [path.relative_to(PRODUCT).as_posix() for path in PRODUCT.rglob("*.py") if QUERY in path.read_text()]
    assert asking == ["kubectl_gpusharing/usage/prometheus.py"]


@pytest.mark.tools
def test_the_chart_needs_no_prometheus(helm: Helm) -> None:
    kinds = {one["apiVersion"].partition("/")[0] for one in helm.template()}
    assert "monitoring.coreos.com" not in kinds

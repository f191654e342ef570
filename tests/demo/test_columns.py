"""The demo's tables against kubectl's, and the screen that they are printed on."""

import io
from datetime import UTC, datetime

import pytest
from hack.cluster.controlplane import ControlPlane
from hack.cluster.nodes import create_nodes
from hack.cluster.process import wait_until
from hack.demo import fleet
from hack.demo.columns import FLEET, POOLS, KubectlView, age, align, find, places, render
from hack.demo.screen import WIDTH, DemoFailed, Screen, fold, last_column

from gpusharing.kube.client import JSON

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
POLICY: JSON = {
    "metadata": {"name": "pool-x", "creationTimestamp": "2026-03-01T11:55:50Z"},
    "spec": {"mode": "MIG", "labels": {"gpusharing.dev/pool": "x"}},
    "status": {
        "summary": {
            "mode": "MIG",
            "layout": "2x3g.40gb",
            "nodes": "2/3",
            "gpus": 24,
            "used": "27/32",
            "status": "Draining",
        },
        "conditions": [{"type": "Stalled", "status": "False"}, {"type": "Ready", "status": "True"}],
    },
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".spec.mode", "MIG"),
        (r".spec.labels.gpusharing\.dev/pool", "x"),
        ('.status.conditions[?(@.type=="Ready")].status', "True"),
        ('.status.conditions[?(@.type=="Accepted")].status', None),
        (".status.plan.hash", None),
    ],
)
def test_a_json_path_finds_what_kubectl_finds(path: str, found: str | None) -> None:
    assert find(POLICY, path) == found


def test_a_json_path_of_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot read '\[0\]'"):
        find(POLICY, ".status.conditions[0]")


def test_the_columns_of_the_crd_are_printed_as_in_the_design() -> None:
    assert render(POOLS, [POLICY], NOW).splitlines() == [
        "NAME     MODE   LAYOUT      NODES   GPUS   USED    READY   STATUS     AGE",
        "pool-x   MIG    2x3g.40gb   2/3     24     27/32   True    Draining   4m10s",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0s"),
        (119, "119s"),
        (120, "2m"),
        (250, "4m10s"),
        (660, "11m"),
        (10800, "3h"),
        (12000, "3h20m"),
        (30 * 3600, "30h"),
        (41 * 86400, "41d"),
    ],
)
def test_a_duration_reads_as_with_kubectl(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert align([["A", "B"], ["xx", "y"], ["longer", ""]]) == "A        B\nxx       y\nlonger"


def test_a_long_line_goes_on_below_its_last_column() -> None:
    header, line = "TYPE     NOTE", "Normal   " + "word " * 30
    folded = fold(line, last_column(header))
    assert len(folded) == 2
    assert all(len(part) <= WIDTH - 2 for part in folded)
    assert folded[1].startswith("         word")


def test_a_check_that_does_not_hold_prints_no_tick() -> None:
    out = io.StringIO()
    screen = Screen(out)
    screen.check("two is two", True)
    with pytest.raises(DemoFailed, match="two is three"):
        screen.check("two is three", False)
    assert screen.checks == 1
    assert "two is two" in out.getvalue()
    assert "three" not in out.getvalue()


def test_quiet_leaves_headings_and_checks() -> None:
    out = io.StringIO()
    screen = Screen(out, quiet=True)
    screen.say("a sentence")
    screen.command("a command")
    screen.output("a table")
    screen.heading("a heading")
    screen.check("a check", True)
    assert [word for word in ("sentence", "command", "table", "heading", "check") if word in out.getvalue()] == [
        "heading",
        "check",
    ]


@pytest.mark.cluster
@pytest.mark.parametrize("view", [POOLS, FLEET, places("demo-1"), places()], ids=lambda view: view.command)
def test_a_table_is_what_kubectl_prints(control_plane: ControlPlane, view: KubectlView) -> None:
    api, group = control_plane.api, "/apis/gpusharing.dev/v1alpha1"
    policy = fleet.example("b") | {"metadata": {"name": "demo"}}
    paths = {
        "gpusharingpolicies": f"{group}/gpusharingpolicies",
        "nodes": "/api/v1/nodes",
        "gpunodes": f"{group}/gpunodes",
    }
    node = fleet.nodes()[0]
    node["metadata"] |= {"name": "demo-1"}
    create_nodes(api, [node])
    api.apply(f"{group}/gpusharingpolicies/demo", policy)
    api.merge_patch(f"{group}/gpusharingpolicies/demo/status", {"status": STATUS})
    api.apply(f"{group}/gpunodes/demo-1", GPUNODE)
    api.merge_patch(f"{group}/gpunodes/demo-1/status", {"status": {"transition": TRANSITION}})
    try:
        wait_until(lambda: bool(api.list(paths[view.kind])), 60, "the objects to be listed")
        told = control_plane.kubectl(*view.arguments)
        ours = render(view, api.list(paths[view.kind]), datetime.now(UTC))
        assert [without_age(view, line) for line in ours.splitlines()] == [
            without_age(view, line) for line in told.splitlines()
        ]
    finally:
        for path in (f"{group}/gpusharingpolicies/demo", f"{group}/gpunodes/demo-1", "/api/v1/nodes/demo-1"):
            api.delete(path)


def without_age(view: KubectlView, line: str) -> str:
    return (line.rstrip().rpartition(" ")[0] if view.dates else line).rstrip()


STATUS: JSON = {
    "observedGeneration": 1,
    "summary": {
        "mode": "MIG",
        "layout": "2x3g.40gb",
        "nodes": "1/1",
        "gpus": 8,
        "used": "3/16",
        "pendingPods": 0,
        "product": "",
        "status": "Synced",
        "message": "",
    },
    "failures": [],
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Synced",
            "message": "1 node is proven",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-03-01T12:00:00Z",
        }
    ],
}
GPUNODE: JSON = {
    "apiVersion": "gpusharing.dev/v1alpha1",
    "kind": "GPUNode",
    "metadata": {"name": "demo-1"},
    "spec": {"request": {"id": "1", "quiet": False}},
}
TRANSITION: JSON = {"phase": "Draining", "reason": "PDB", "observed": "2x3g.40gb", "culprit": ""}


def test_a_line_that_is_blank_beyond_its_indent_is_not_folded() -> None:
    assert fold("NAME" + " " * 200, 4) == ["NAME"]

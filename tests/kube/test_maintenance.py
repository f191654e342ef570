"""NodeMaintenance objects of other operators: for which node they are, and what a person is told of them."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from tests.build import make_node

from gpusharing.kube.client import JSON
from gpusharing.kube.maintenance import (
    Maintenance,
    find_maintained,
    medik8s_maintenance,
    nvidia_maintenance,
    with_maintenance,
)
from gpusharing.planning.snapshot.views import NodeView


def medik8s(name: str = "nm-07", **parts: JSON) -> JSON:
    return {"metadata": {"name": name}, "spec": {"nodeName": "gpu-07", "reason": "new fan"}, **parts}


def nvidia(*conditions: JSON, **metadata: object) -> JSON:
    return {
        "metadata": {"name": "nm", "namespace": "ops", **metadata},
        "spec": {"nodeName": "gpu-07", "requestorID": "nvidia.gpu.operator"},
        "status": {"conditions": list(conditions)},
    }


def joined(node: NodeView, *kinds: Mapping[str, Maintenance]) -> NodeView:
    """The view of a node with the one of these objects that counts for it."""
    return with_maintenance(node, find_maintained(*kinds).get(node.name))


def ready(reason: str) -> JSON:
    return {"type": "Ready", "status": "True" if reason == "Ready" else "False", "reason": reason}


@pytest.mark.parametrize(
    ("raw", "state"),
    [
        (medik8s(), ""),
        (medik8s(status={"phase": "Running", "drainProgress": 50}), ""),
        (medik8s(status={"phase": "Succeeded"}), ""),
        (medik8s(status={"phase": "Failed"}), " (failed)"),
        (medik8s(metadata={"name": "nm-07", "deletionTimestamp": "now"}), " (being deleted)"),
    ],
    ids=["just created", "draining", "in maintenance", "given up", "being deleted"],
)
def test_one_of_medik8s_counts_in_every_state(raw: JSON, state: str) -> None:
    assert medik8s_maintenance(raw) == Maintenance(f"medik8s NodeMaintenance nm-07{state}", node="gpu-07")


@pytest.mark.parametrize(
    ("raw", "state"),
    [
        (nvidia(), ""),
        (nvidia(ready("Pending")), ""),
        (nvidia(ready("Ready")), ""),
        (nvidia(ready("Ready"), {"type": "RequestorFailed", "status": "False"}), ""),
        (nvidia(ready("RequestorFailed"), {"type": "RequestorFailed", "status": "True"}), " (failed)"),
        (nvidia(ready("Ready"), deletionTimestamp="now"), " (being deleted)"),
    ],
    ids=["just created", "waiting for its turn", "in maintenance", "not failed", "failed", "being deleted"],
)
def test_one_of_nvidia_counts_in_every_state_and_its_asker_is_named(raw: JSON, state: str) -> None:
    who = f"NVIDIA NodeMaintenance ops/nm for nvidia.gpu.operator{state}"
    found = nvidia_maintenance(raw)
    assert (found.node, found.who) == ("gpu-07", who)


@pytest.mark.parametrize(
    ("raw", "waits"),
    [
        (nvidia(), True),
        (nvidia(ready("Pending")), True),
        (nvidia(ready("Scheduled")), False),
        (nvidia(ready("Ready")), False),
        (nvidia(ready("Pending"), deletionTimestamp="now"), False),
        (nvidia({"type": "RequestorFailed", "status": "True"}), False),
    ],
    ids=["just created", "waiting for its turn", "chosen", "in maintenance", "being deleted", "failed"],
)
def test_one_of_nvidia_waits_until_it_is_chosen(raw: JSON, waits: bool) -> None:
    assert nvidia_maintenance(raw).waits is waits
    assert not medik8s_maintenance(medik8s()).waits, "its operator begins at once"


def test_who_waits_gives_way_to_who_works() -> None:
    waiting = {"a": Maintenance("A", waits=True, queued=True, node="gpu-07")}
    at_rest, driver = make_node("gpu-07"), replace(make_node("gpu-07", foreign="D"), foreign_waits=True)
    busy = make_node("gpu-07", foreign="kured reboot")
    assert [joined(one, waiting).foreign_waits for one in (at_rest, driver)] == [True, True]
    assert joined(busy, waiting) == busy
    assert not joined(at_rest, waiting).foreign_works
    assert joined(driver, waiting) == driver, "it may have begun"
    both = joined(at_rest, waiting, {"b": Maintenance("B", node="gpu-07")})
    assert (both.foreign, both.foreign_waits, both.foreign_works) == ("B", False, True)
    two = joined(at_rest, waiting, {"b": Maintenance("B", waits=True, queued=True, node="gpu-07")})
    assert two.foreign == "A", "of two who wait it is the first, as ever"


@pytest.mark.parametrize(
    "raw", [{}, {"metadata": None, "spec": 7}, {"metadata": {"name": "x"}, "spec": {"nodeName": ["gpu-07"]}}]
)
def test_one_that_cannot_be_read_is_for_no_node(raw: JSON) -> None:
    nodes = {"gpu-07": make_node("gpu-07")}
    found = {"x": medik8s_maintenance(raw), "y": nvidia_maintenance(raw)}
    assert {name: joined(node, found) for name, node in nodes.items()} == nodes


def test_of_several_for_a_node_the_first_kind_and_name_speaks_whatever_their_order() -> None:
    second = {"b": Maintenance("B", node="gpu-07"), "a": Maintenance("A", node="gpu-07")}
    node = make_node("gpu-07", foreign="medik8s node maintenance")
    assert joined(node, {}, second).foreign == "A"
    assert joined(node, {"z": Maintenance("Z", node="gpu-07")}, second).foreign == "Z"


def test_one_for_a_node_that_is_not_there_touches_nothing() -> None:
    node = make_node("gpu-08", foreign="kured reboot")
    assert joined(node, {"a": Maintenance("A", node="gpu-07")}) is node

"""A node goes through all modes on a real API server: its adoption, the PATCHes of each change, fields and their owner.
tests/embedded/test_changes.py plays every ordered change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from hack.cluster.api import Object
from tests.integration.nodelog import NodeWrite, read_node_writes
from tests.integration.product import FULL, H100, MIG_SLICED, MIXED, MPS, OPERATOR, SINGLE, SLICED, Pool, Product
from tests.nodewrites import step_of, wrong_in_change, wrong_in_write

from gpusharing.kube.client import JSON
from hack import launch

pytestmark = pytest.mark.usefixtures("operator")


class Stand(NamedTuple):
    """A mode, and what a node with two H100 is in it."""

    spec: Object
    served: dict[str, int]
    layout: str
    routing: str
    column: str


MODES = {
    "Full": Stand(FULL, {"nvidia.com/gpu": 2}, "1x full", "full", "Full"),
    "TimeSlicing": Stand(SLICED, {"nvidia.com/gpu": 8}, "4x shared", "time-slicing", "TimeSlicing"),
    "MPS": Stand(MPS, {"nvidia.com/gpu": 6}, "3x shared", "mps", "MPS"),
    "single": Stand(SINGLE, {"nvidia.com/gpu": 14}, "7x1g.10gb", "mig", "MIG"),
    "mixed": Stand(MIXED, {"nvidia.com/mig-3g.40gb": 4}, "2x3g.40gb", "mig", "MIG"),
    "mixed+TS": Stand(MIG_SLICED, {"nvidia.com/mig-3g.40gb": 8}, "2x3g.40gb 2x shared", "mig-time-slicing", "MIG+TS"),
}
WITH_MIG = {"single", "mixed", "mixed+TS"}
NEIGHBOR_LABELS = {
    "nvidia.com/gpu-driver-upgrade.skip": "true",
    "nvsentinel.dgxc.nvidia.com/managed": "false",
    "k8saas.nvidia.com/ManagedByNVSentinel": "false",
    "remediation.medik8s.io/exclude-from-remediation": "true",
}
NEIGHBORS = {"karpenter.sh/do-not-disrupt", "cluster-autoscaler.kubernetes.io/scale-down-disabled"}
ACTED_ON = {"nvidia.com/mig.config", "nvidia.com/mig.config.state", "nvidia.com/device-plugin.config"}
WALK = ("Full", "TimeSlicing", "MPS", "single", "mixed", "mixed+TS", "Full")
"""Every mode is reached once; on the way from MPS to MIG in two steps."""


def disruption(before: str, after: str) -> str:
    """docs/design/transition.md#classes: the MIG mode of a GPU changes, or only names and counts do."""
    return "Reset" if (before in WITH_MIG) != (after in WITH_MIG) else "GPUPods"


def steps_of(before: str, after: str) -> int:
    return 2 if "MPS" in (before, after) and {before, after} & WITH_MIG else 1


def check_step(pool: Pool, before: str, after: str, since: int) -> None:
    node, step = pool.nodes[0], f"{before} -> {after}"
    writes = pool.product.writes("nodes", node, since)
    expected = ["patch"] * (2 + steps_of(before, after))
    assert [write.verb for write in writes] == expected, f"{step}: fence, PNRs, release; not {writes}"
    now = MODES[after]
    note = f"{node}: {MODES[before].layout} -> {now.layout} (class {disruption(before, after)})"
    assert ("Reconfiguring", note) in pool.events(), step
    assert pool.offered() == now.served, step
    assert pool.labels()["gpusharing.dev/mode"] == now.routing, step
    assert pool.summary()["mode"] == now.column, step
    assert not pool.fence(), step
    assert "unschedulable" not in pool.node()["spec"], step


def check_bodies(steps: Sequence[str], routing: str, writes: Sequence[NodeWrite]) -> None:
    """PATCHes of a node: the rules that hold for each, and what each of these steps consists of."""
    wrong = [what for w in writes for what in (*wrong_in_write(w.before, w.body), *wrong_in_change(w.before, w.after))]
    assert wrong == []
    assert [step_of(write.before, write.body) for write in writes] == list(steps)
    for step, write in zip(steps, writes, strict=True):
        if step != "marks":
            check_part(step, write, routing)


def check_part(step: str, write: NodeWrite, routing: str) -> None:
    metadata, spec = write.body["metadata"], write.body.get("spec", {})
    labels, fence = metadata["labels"], metadata["annotations"]["gpusharing.dev/fence"]
    assert metadata["resourceVersion"], "conditional"
    assert "finalizers" not in write.after["metadata"]
    if step == "fence":
        assert spec == {"unschedulable": True}
        assert labels == {"gpusharing.dev/mode": None, **NEIGHBOR_LABELS}
        assert '"stage":"fenced"' in fence
        assert metadata["annotations"].keys() - {"gpusharing.dev/fence"} == NEIGHBORS
    elif step == "PNR":
        assert spec == {}
        assert '"stage":"actuating"' in fence
        changed = {key for key in labels if label(write.before, key) != label(write.after, key)}
        assert changed == labels.keys() <= ACTED_ON
    else:
        assert (spec, fence) == ({"unschedulable": None}, None)
        assert labels["gpusharing.dev/mode"] == routing
        assert {key: labels[key] for key in NEIGHBOR_LABELS} == dict.fromkeys(NEIGHBOR_LABELS)
        assert {key: metadata["annotations"][key] for key in NEIGHBORS} == dict.fromkeys(NEIGHBORS)


def label(node: JSON, key: str) -> object:
    return node["metadata"]["labels"].get(key)


@dataclass
class Walker:
    pool: Pool
    begun: int
    """Mark in the audit log from before there was the node."""

    def stand(self, number: int) -> None:
        self.pool.serve(MODES[WALK[number]].spec)

    def written(self) -> Sequence[NodeWrite]:
        """Return what the operator wrote to the node so far, oldest first."""
        self.pool.product.wait_logged()
        written = read_node_writes(self.pool.product.plane.audit_log, self.begun)
        return written[self.pool.nodes[0]]


@pytest.fixture(scope="module")
def walker(product: Product, operator: launch.LaunchedProcess) -> Iterator[Walker]:
    begun = product.mark()
    with product.pool(H100) as pool:
        walker = Walker(pool, begun)
        walker.stand(0)
        yield walker


def test_an_adopted_node_is_written_once_and_of_it_the_server_counts_only_our_own_fields_as_ours(
    walker: Walker,
) -> None:
    check_bodies(["marks"], "", walker.written()[:1])
    managers = {
        entry["manager"]: entry for entry in walker.pool.node()["metadata"]["managedFields"] if "manager" in entry
    }
    ours = managers["gpusharing-operator"]["fieldsV1"]
    assert ours.keys() == {"f:metadata"}, ours
    fields = {key for part in ours["f:metadata"].values() for key in part if key != "."}
    assert fields == {"f:gpusharing.dev/mode", "f:gpusharing.dev/policy", "f:gpusharing.dev/verified"}


@pytest.mark.parametrize("number", range(1, len(WALK)), ids=lambda number: f"to {WALK[number]}, step {number}")
def test_the_api_server_makes_of_each_patch_of_a_change_of_mode_what_was_meant(walker: Walker, number: int) -> None:
    walker.stand(number - 1)
    was, mode = WALK[number - 1 : number + 1]
    before, since = len(walker.written()), walker.pool.product.mark()
    walker.stand(number)
    check_step(walker.pool, was, mode, since)
    steps = ["fence", *["PNR"] * steps_of(was, mode), "release"]
    check_bodies(steps, MODES[mode].routing, walker.written()[before:])


def test_kubectl_wait_after_an_edit_blocks_until_the_new_generation_is_done(product: Product) -> None:
    with product.pool(H100) as pool:
        pool.serve(FULL)
        pool.apply(SLICED)
        product.plane.kubectl("wait", "--for=condition=Ready", f"gsp/{pool.name}", "--timeout=120s")
        raw = product.api.get(pool.path)
        assert raw["status"]["observedGeneration"] == raw["metadata"]["generation"] == 2
        assert pool.offered() == MODES["TimeSlicing"].served


def test_nobody_writes_under_the_operators_identity_but_its_own_client(product: Product) -> None:
    writes = [request for request in product.requests(user=OPERATOR) if request.is_write]
    assert writes
    assert {request.user_agent for request in writes} == {"gpusharing-operator"}, "kopf writes nothing"
    assert [request for request in writes if request.status == 403] == []

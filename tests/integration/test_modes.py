"""Every ordered change among the modes on a real API server: classes, Node writes, two steps, proof, adoption."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hack.cluster.api import Object
from tests.integration.nodelog import NodeWrite, read_node_writes
from tests.integration.product import (
    FULL,
    H100,
    L40S,
    MIG_SLICED,
    MIXED,
    MPS,
    OPERATOR,
    SINGLE,
    SLICED,
    Pool,
    Product,
)
from tests.nodewrites import step_of, wrong_in_change, wrong_in_write

from gpusharing.kube.client import JSON
from hack import launch

pytestmark = pytest.mark.usefixtures("operator")

MODES: dict[str, Object] = {
    "Full": FULL,
    "TimeSlicing": SLICED,
    "MPS": MPS,
    "single": SINGLE,
    "mixed": MIXED,
    "mixed+TS": MIG_SLICED,
}
SERVED = {
    "Full": {"nvidia.com/gpu": 2},
    "TimeSlicing": {"nvidia.com/gpu": 8},
    "MPS": {"nvidia.com/gpu": 6},
    "single": {"nvidia.com/gpu": 14},
    "mixed": {"nvidia.com/mig-3g.40gb": 4},
    "mixed+TS": {"nvidia.com/mig-3g.40gb": 8},
}
LAYOUT = {
    "Full": "1x full",
    "TimeSlicing": "4x shared",
    "MPS": "3x shared",
    "single": "7x1g.10gb",
    "mixed": "2x3g.40gb",
    "mixed+TS": "2x3g.40gb 2x shared",
}
ROUTING = {
    "Full": "full",
    "TimeSlicing": "time-slicing",
    "MPS": "mps",
    "single": "mig",
    "mixed": "mig",
    "mixed+TS": "mig-time-slicing",
}
COLUMN = {"single": "MIG", "mixed": "MIG", "mixed+TS": "MIG+TS"}
WITH_MIG = {"single", "mixed", "mixed+TS"}
NEIGHBOUR_LABELS = {
    "nvidia.com/gpu-driver-upgrade.skip": "true",
    "nvsentinel.dgxc.nvidia.com/managed": "false",
    "k8saas.nvidia.com/ManagedByNVSentinel": "false",
    "remediation.medik8s.io/exclude-from-remediation": "true",
}
NEIGHBOURS = {"karpenter.sh/do-not-disrupt", "cluster-autoscaler.kubernetes.io/scale-down-disabled"}
ACTED_ON = {"nvidia.com/mig.config", "nvidia.com/mig.config.state", "nvidia.com/device-plugin.config"}
WALKS = (
    ("Full", "TimeSlicing", "MPS", "mixed+TS", "MPS", "TimeSlicing", "Full"),
    ("Full", "MPS", "mixed", "MPS", "single", "MPS", "Full"),
    ("Full", "single", "TimeSlicing", "single", "mixed+TS", "single", "Full"),
    ("Full", "mixed", "TimeSlicing", "mixed+TS", "TimeSlicing", "mixed", "Full"),
    ("Full", "mixed+TS", "mixed", "single", "mixed", "mixed+TS", "Full"),
)
"""Five nodes walk side by side; together their steps are every ordered pair once."""


def disruption(before: str, after: str) -> str:
    """docs/design/way.md#classes: the MIG mode of a GPU changes, or only names and counts do."""
    return "Reset" if (before in WITH_MIG) != (after in WITH_MIG) else "GPUPods"


def steps_of(before: str, after: str) -> int:
    """Between MPS and MIG the way leads through whole GPUs."""
    return 2 if "MPS" in (before, after) and {before, after} & WITH_MIG else 1


def test_the_walks_are_every_ordered_change_once() -> None:
    assert len({len(walk) for walk in WALKS}) == 1, "they walk in step"
    steps = Counter(step for walk in WALKS for step in pairwise(walk))
    assert steps == {(a, b): 1 for a in MODES for b in MODES if a != b}


def check_step(pool: Pool, before: str, after: str, since: int) -> None:
    node, step = pool.nodes[0], f"{before} -> {after}"
    writes = pool.product.writes("nodes", node, since)
    expected = ["patch"] * (2 + steps_of(before, after))
    assert [write.verb for write in writes] == expected, f"{step}: fence, PNRs, release; not {writes}"
    note = f"{node}: {LAYOUT[before]} -> {LAYOUT[after]} (class {disruption(before, after)})"
    assert ("Reconfiguring", note) in pool.events(), step
    assert pool.offered() == SERVED[after], step
    assert pool.labels()["gpusharing.dev/mode"] == ROUTING[after], step
    assert pool.summary()["mode"] == COLUMN.get(after, after), step
    assert not pool.fence(), step
    assert "unschedulable" not in pool.node()["spec"], step


def check_bodies(steps: Sequence[str], routing: str, writes: Sequence[NodeWrite]) -> None:
    """PATCHes of a node: the rules that hold for each, and what each of these steps consists of."""
    wrong = [
        what
        for w in writes
        for what in (*wrong_in_write(w.before, w.body), *wrong_in_change(w.before, w.after))
    ]
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
        assert labels == {"gpusharing.dev/mode": None, **NEIGHBOUR_LABELS}
        assert '"stage":"fenced"' in fence
        assert metadata["annotations"].keys() - {"gpusharing.dev/fence"} == NEIGHBOURS
    elif step == "PNR":
        assert spec == {}
        assert '"stage":"actuating"' in fence
        changed = {key for key in labels if label(write.before, key) != label(write.after, key)}
        assert changed == labels.keys() <= ACTED_ON
    else:
        assert (spec, fence) == ({"unschedulable": None}, None)
        assert labels["gpusharing.dev/mode"] == routing
        assert {key: labels[key] for key in NEIGHBOUR_LABELS} == dict.fromkeys(NEIGHBOUR_LABELS)
        assert {key: metadata["annotations"][key] for key in NEIGHBOURS} == dict.fromkeys(NEIGHBOURS)


def label(node: JSON, key: str) -> object:
    return node["metadata"]["labels"].get(key)


@dataclass
class Walkers:
    """A pool of one node for each walk, which lives from step to step."""

    product: Product
    pools: Sequence[Pool]
    begun: int
    """Mark in the audit log from before there were nodes."""

    def stand(self, number: int) -> dict[str, int]:
        """All stand at this step; how often each node was written so far."""
        for pool, walk in zip(self.pools, WALKS, strict=True):
            pool.apply(MODES[walk[number]])
        for pool in self.pools:
            pool.wait_synced()
        written = self.written()
        return {pool.nodes[0]: len(written[pool.nodes[0]]) for pool in self.pools}

    def written(self) -> Mapping[str, Sequence[NodeWrite]]:
        """By node."""
        self.product.wait_logged()
        return read_node_writes(self.product.plane.audit_log, self.begun)


@pytest.fixture(scope="module")
def walkers(product: Product, operator: launch.LaunchedProcess) -> Iterator[Walkers]:
    """They stand at the beginning, adopted."""
    begun = product.mark()
    with contextlib.ExitStack() as stack:
        walkers = Walkers(product, [stack.enter_context(product.pool(H100)) for _ in WALKS], begun)
        walkers.stand(0)
        yield walkers


def test_a_walk_begins_with_a_node_adopted_by_one_write(walkers: Walkers) -> None:
    written = walkers.written()
    for pool in walkers.pools:
        check_bodies(["marks"], "", written[pool.nodes[0]][:1])


@pytest.mark.parametrize("number", range(1, max(map(len, WALKS))))
def test_every_change_of_mode_runs_to_synced_with_one_node_write_per_step_and_two_more(
    walkers: Walkers, number: int
) -> None:
    before = walkers.stand(number - 1)
    since = walkers.product.mark()
    walking = [
        (pool, walk[number - 1], walk[number]) for pool, walk in zip(walkers.pools, WALKS, strict=True)
    ]
    for pool, _, mode in walking:
        pool.apply(MODES[mode])
    for pool, was, mode in walking:
        pool.wait_synced()
        check_step(pool, was, mode, since)
    written = walkers.written()
    for pool, was, mode in walking:
        node = pool.nodes[0]
        steps = ["fence", *["PNR"] * steps_of(was, mode), "release"]
        check_bodies(steps, ROUTING[mode], written[node][before[node] :])


def test_a_node_that_is_as_wanted_is_adopted_by_our_own_labels_alone(product: Product) -> None:
    with product.pool(H100) as pool:
        before = dict(pool.labels())
        pool.apply(FULL)
        pool.wait_synced()
        assert len(product.writes("nodes", pool.nodes[0])) == 1
        added = pool.labels().items() - before.items()
        assert {key for key, _ in added if key.startswith("gpusharing.dev/")} == {
            "gpusharing.dev/mode",
            "gpusharing.dev/policy",
        }
        assert not {key for key, _ in added} & {"nvidia.com/device-plugin.config", "nvidia.com/mig.config"}
        managers = {
            entry["manager"]: entry
            for entry in pool.node()["metadata"]["managedFields"]
            if "manager" in entry
        }
        ours = managers["gpusharing-operator"]["fieldsV1"]
        assert ours.keys() == {"f:metadata"}, ours
        fields = {key for part in ours["f:metadata"].values() for key in part if key != "."}
        assert fields == {
            "f:gpusharing.dev/mode",
            "f:gpusharing.dev/policy",
            "f:gpusharing.dev/verified",
        }


def test_a_pool_with_two_card_models_is_handled_node_by_node(product: Product) -> None:
    with product.pool(H100, L40S) as pool:
        hopper, ada = pool.nodes
        pool.apply(MIXED)
        assert "MIG" in pool.wait_phase("Skipped", "NotMigCapable", ada)
        pool.wait_phase("Synced", "", hopper)
        assert pool.offered(hopper) == SERVED["mixed"]
        assert product.writes("nodes", ada) == []
        message = pool.wait_condition("Accepted", "True", "Valid")
        assert message.startswith("1 of 2 nodes cannot serve it"), message
        pool.apply({**MIXED, "products": [H100.replace(" ", "-")]})
        pool.wait_synced()
        assert pool.summary()["nodes"] == "1/1"


def test_kubectl_wait_after_an_edit_blocks_until_the_new_generation_is_done(product: Product) -> None:
    with product.pool(H100) as pool:
        pool.apply(FULL)
        pool.wait_synced()
        pool.apply(SLICED)
        product.plane.kubectl("wait", "--for=condition=Ready", f"gsp/{pool.name}", "--timeout=120s")
        raw = product.api.get(pool.path)
        assert raw["status"]["observedGeneration"] == raw["metadata"]["generation"] == 2
        assert pool.offered() == SERVED["TimeSlicing"]


def test_nobody_writes_under_the_operators_identity_but_its_own_client(product: Product) -> None:
    writes = [request for request in product.requests(user=OPERATOR) if request.is_write]
    assert writes
    assert {request.user_agent for request in writes} == {"gpusharing-operator"}, "kopf writes nothing"
    assert [request for request in writes if request.status == 403] == []

"""Gangs on a real API server, without any CRD of theirs: keys are read from pods (docs/design/drain.md#t13)."""

from urllib.parse import parse_qs, urlsplit

import pytest
from tests.integration.nodelog import fences, returned
from tests.integration.product import FULL, H100, HELD, MIXED, SLICED, Pool, Product
from tests.integration.workloads import PODS, Workload, pod_spec

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.operator(**HELD)]

LABEL = "jobset.sigs.k8s.io/jobset-name"
KINDS: dict[str, tuple[str, dict[str, str], dict[str, str], str]] = {
    "JobSet": ("JobSet", {LABEL: "{}"}, {}, "{}"),
    "LeaderWorkerSet": (
        "LeaderWorkerSet",
        {"leaderworkerset.sigs.k8s.io/name": "{}", "leaderworkerset.sigs.k8s.io/group-index": "0"},
        {},
        "{}/0",
    ),
    "coscheduling": ("PodGroup", {"scheduling.x-k8s.io/pod-group": "{}"}, {}, "{}"),
    "Volcano": ("PodGroup", {}, {"scheduling.k8s.io/group-name": "{}"}, "{}"),
    "Kueue": ("Workload", {}, {"kueue.x-k8s.io/workload": "{}"}, "{}"),
}
"""By who defines it: kind, labels and annotations of its pods, and the name of the gang."""


def membership(pool: Pool, who: str = "JobSet") -> dict[str, dict[str, str]]:
    """The metadata of a pod that belongs to the pool's gang."""
    _, labels, annotations, _ = KINDS[who]
    return {
        "labels": {key: value.format(pool.name) for key, value in labels.items()},
        "annotations": {key: value.format(pool.name) for key, value in annotations.items()},
    }


def ranks(pool: Pool, node: str, who: str = "JobSet") -> Workload:
    """One pod of the pool's gang on a node, kept there by a ReplicaSet."""
    return Workload(pool, node, 1, more={"metadata": membership(pool, who)})


def test_a_member_on_another_node_that_must_stay_keeps_the_node_untouched_and_is_named_with_its_gang(
    product: Product,
) -> None:
    with product.pool(H100, H100) as pool:
        first, second = pool.nodes
        pool.apply(FULL)
        pool.wait_synced()
        (member,) = ranks(pool, first).wait_running(1)
        bare = f"{pool.name}-bare"
        metadata = {"name": bare, "labels": {LABEL: pool.name}}
        pool.create(PODS, {"metadata": metadata, "spec": pod_spec(second)})
        pool.wait(lambda: product.api.get(f"{PODS}/{bare}")["status"]["phase"] == "Running", "the bare pod")
        since = product.mark()
        pool.apply({**SLICED, "rollout": {"maxUnavailable": 2}})
        pool.wait(
            lambda: pool.transition(first).get("reason") == "Unmanaged", "a member elsewhere to hold the node"
        )
        told = pool.transition(first)
        assert told["culprit"] == f"default/{bare}"
        where = f"Gang: JobSet default/{pool.name}, 2 pods (1 on {first}, 1 on {second})."
        assert where in told["blockers"][0]
        assert product.writes("nodes", first, since) == []
        asked = [parse_qs(urlsplit(r.path).query) for r in product.requests(since) if r.resource == "pods"]
        members = {
            "labelSelector": [f"{LABEL}={pool.name}"],
            "fieldSelector": ["status.phase!=Succeeded,status.phase!=Failed"],
            "limit": ["500"],
        }
        assert members in asked
        product.api.delete(f"{PODS}/{bare}", {"gracePeriodSeconds": 0})
        pool.wait_synced()
        evicted = [request.name for request in product.writes("pods/eviction", since=since)]
        assert evicted == [member]


@pytest.mark.parametrize("who", [who for who in KINDS if who != "JobSet"])
def test_gangs_of_every_kind_are_found_without_its_crd_and_named(product: Product, who: str) -> None:
    kind, _, _, name = KINDS[who]
    with product.pool(H100, H100) as pool:
        first, second = pool.nodes
        pool.apply(FULL)
        pool.wait_synced()
        ranks(pool, first, who).wait_running(1)
        bare = f"{pool.name}-bare"
        pool.create(PODS, {"metadata": {"name": bare, **membership(pool, who)}, "spec": pod_spec(second)})
        pool.wait(lambda: product.api.get(f"{PODS}/{bare}")["status"]["phase"] == "Running", "the bare pod")
        since = product.mark()
        pool.apply({**SLICED, "rollout": {"maxUnavailable": 2}})
        pool.wait(lambda: pool.transition(first).get("reason") == "Unmanaged", "the gang to hold the node")
        where = f"Gang: {kind} default/{name.format(pool.name)}, 2 pods (1 on {first}, 1 on {second})."
        assert where in pool.transition(first)["blockers"][0]
        assert product.writes("nodes", first, since) == []


def test_nodes_of_one_gang_start_together_and_are_given_back_together(product: Product) -> None:
    """The one that is proven first waits for the other, which takes longer; a node outside the gang does not."""
    with product.pool(H100, H100, H100) as pool:
        pool.apply(FULL)
        pool.wait_synced()
        *gang, outside = pool.nodes
        quick, slow = gang
        works = [ranks(pool, node) for node in gang]
        members = [name for work in works for name in work.wait_running(1)]
        since = product.mark()
        pool.hold(slow)
        pool.apply({**MIXED, "drain": {"strandedPods": "Allow"}, "rollout": {"maxUnavailable": 3}})
        pool.wait_held(slow)
        pool.wait(lambda: pool.transition(quick).get("reason") == "WaitsForWave", "the wave to be waited for")
        pool.wait_phase("Synced", name=outside)
        assert (returned(pool, since), pool.node(quick)["spec"]["unschedulable"]) == ([outside], True)
        pool.let_go(slow)
        pool.wait_synced()
        passed = fences(pool, since)
        assert any(now.keys() >= set(gang) for now in passed), "both at once"
        assert sorted(returned(pool, since)[1:]) == gang
        waves = {now[node]["wave"] for now in passed for node in gang if node in now}
        assert len(waves) == 1, "one wave"
        assert waves != {""}
        evicted = [request.name for request in product.writes("pods/eviction", since=since)]
        assert sorted(evicted) == sorted(members), "once each"

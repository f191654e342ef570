"""The 16 scenarios of the fault matrix, three nodes each (docs/design/faults.md#matrix).
As in crashscenarios.py an `act` waits only for what stays until the operator goes on or people act."""

import json
from collections.abc import Callable

from hack.cluster.api import Object
from hack.cluster.nodes import create_nodes, node_manifest
from tests.integration import crashscenarios as crash
from tests.integration.crash import Scenario
from tests.integration.product import GPUNODES, H100, LEASE, MIXED, MPS, NODES, POLICIES, SINGLE, SLICED, Pool
from tests.integration.stages import RIGHT, overwrite, signalled
from tests.integration.workloads import Workload

from gpusharing.api import names

THREE = (H100,) * 3
TWO_AT_ONCE: Object = {"rollout": {"maxUnavailable": 2}}
ALL_AT_ONCE: Object = {"rollout": {"maxUnavailable": 3}}
RIVAL = "rival"
PUBLISH_PERIOD = 1.0
"""Seconds. A status that was refused is written again after this, then after twice that; a run waits for it."""


def create(pool: Pool) -> None:
    pool.apply({**MIXED, **TWO_AT_ONCE})


def ready(pool: Pool) -> bool:
    return crash.ready(pool) and not any(pool.fence(name) for name in pool.nodes if lives(pool, name))


def lives(pool: Pool, name: str) -> bool:
    return pool.product.exists(f"{NODES}/{name}")


def gang_on_two(pool: Pool) -> None:
    """A JobSet with a rank on each of the first two nodes."""
    label = {"metadata": {"labels": {"jobset.sigs.k8s.io/jobset-name": pool.name}}}
    for rank in [Workload(pool, name, 1, more=label) for name in pool.nodes[:2]]:
        rank.wait_running(1)


def all_on_their_way(pool: Pool) -> None:
    """All three, or which of them the policy still changes would be chance."""
    pool.apply({**MIXED, **ALL_AT_ONCE})
    for name in pool.nodes:
        pool.wait(lambda name=name: begun(pool, name), "every node to have begun")


def retarget(pool: Pool) -> None:
    all_on_their_way(pool)
    pool.apply({**SINGLE, **ALL_AT_ONCE})


def lose_policy(pool: Pool) -> None:
    all_on_their_way(pool)
    pool.api.delete(pool.path)


def begun(pool: Pool, name: str) -> bool:
    labels = pool.labels(name)
    return pool.fence(name).get("stage") == "actuating" or names.LABEL_MODE in labels


def given_back(pool: Pool) -> bool:
    """The policy is gone and the nodes are free of us."""
    if pool.product.exists(pool.path):
        return False
    return not any(pool.fence(name) or "gpusharing.dev/policy" in pool.labels(name) for name in pool.nodes)


def lose_node(pool: Pool) -> None:
    crash.lose_node(pool, at_once=2)


def rest_ready(pool: Pool) -> bool:
    return ready(pool) and not pool.product.exists(f"{GPUNODES}/{pool.nodes[0]}")


def make_node_again(pool: Pool) -> None:
    """Under the same name, as a cloud does: another machine, whole again."""
    lose_node(pool)
    create_nodes(pool.api, [node_manifest(pool.nodes[0], product=H100, gpus=2, pool=pool.name)])


def join(pool: Pool) -> None:
    """The third node comes while the first ones change."""
    create(pool)
    crash.in_the_middle(pool, pool.nodes[0])
    pool.add_node(f"{pool.name}-2")


def joined(pool: Pool) -> bool:
    return len(pool.nodes) == 3 and ready(pool) and pool.summary().get("nodes") == "3/3"


def overlap(pool: Pool) -> None:
    """A second policy of higher priority wants the same nodes while the first one changes them."""
    all_on_their_way(pool)
    pool.apply({**SLICED, **ALL_AT_ONCE, "priority": 10}, name=f"{pool.name}-{RIVAL}")


def rival_ready(pool: Pool) -> bool:
    name = f"{pool.name}-{RIVAL}"
    if not pool.product.exists(f"{POLICIES}/{name}"):
        return False
    owned = [pool.labels(node).get(names.LABEL_POLICY) for node in pool.nodes]
    return pool.condition("Ready", name).get("status") == "True" and owned == [name] * 3


def lift_another(pool: Pool) -> None:
    """One was cordoned by a person before, and waits; of another one a person lifts our cordon in the middle."""
    create(pool)
    crash.in_the_middle(pool, pool.nodes[1])
    pool.cordon(pool.nodes[1], lifted=True)
    for name in pool.nodes[1:]:
        pool.wait_phase("Synced", name=name)
    pool.cordon(pool.nodes[0], lifted=True)


def retry(pool: Pool) -> None:
    """One failure does not halt the pool: a retry that comes to proof would not set the others going again."""
    pool.apply({**MIXED, "rollout": {"maxUnavailable": 2, "maxFailures": 2}})
    pool.wait_phase("Failed", "ActuatorFailed")
    pool.annotate(pool.nodes[0], {names.ANNOTATION_RETRY: "again"})


def there_and_back(pool: Pool) -> None:
    for spec in (MIXED, SLICED, SINGLE):
        pool.serve({**spec, **ALL_AT_ONCE})


def old_marks(pool: Pool) -> None:
    """What an operator of an older version has left, and a newer one that was rolled back: fewer keys, and one more."""
    verified = {"v": 1, "policy": pool.name, "migConfig": "all-disabled", "pluginConfig": "", "later": {"a": 1}}
    version = {"uid": "", "revision": ""}
    deferred = {"v": 1, "count": 2, "until": "2026-01-01T00:00:00Z", "reason": "old", "version": version}
    pool.annotate(pool.nodes[0], {names.ANNOTATION_VERIFIED: json.dumps(verified)})
    pool.annotate(pool.nodes[1], {names.ANNOTATION_DEFERRED: json.dumps(deferred)})
    pool.annotate(pool.nodes[2], {names.ANNOTATION_VERIFIED: json.dumps(verified)})
    metadata = {
        "name": LEASE.rpartition("/")[2],
        "annotations": {names.ANNOTATION_CLAIMS: json.dumps({"v": 1, "claims": {}, "later": 1})},
    }
    spec = {"holderIdentity": None, "leaseDurationSeconds": 1, "leaseTransitions": 7}
    pool.api.create(LEASE.rpartition("/")[0], {"metadata": metadata, "spec": spec})


def overwrite_repair(pool: Pool) -> None:
    """The GPU Operator overwrites the first repair before anybody wants MPS, and the second one lasts."""
    for again in (True, False):
        pool.wait(lambda: signalled(pool.product) == RIGHT, "the repair", dict)
        if again:
            overwrite(pool.product)
    pool.apply({**MPS, **ALL_AT_ONCE})


def _scenario(
    name: str,
    act: Callable[[Pool], None],
    done: Callable[[Pool], bool] = ready,
    cards: tuple[str, ...] = THREE,
    **more: object,
) -> Scenario:
    return Scenario(name, act, done, cards, publish_period=PUBLISH_PERIOD, **more)  # type: ignore[arg-type]  # the fields of Scenario


MATRIX = (
    _scenario("idle", create),
    _scenario("pods", lambda pool: crash.unblock(pool, at_once=2), prepare=crash.busy_node, gpus=4),
    _scenario("retarget", retarget, midway=True),
    _scenario("policy-deleted", lose_policy, given_back, midway=True),
    _scenario("node-deleted", lose_node, rest_ready),
    _scenario("node-recreated", make_node_again, joins=1),
    _scenario("node-joins", join, joined, (H100, H100), joins=1),
    _scenario("two-policies", overlap, rival_ready, midway=True),
    _scenario("cordon", lift_another, prepare=lambda pool: pool.cordon(pool.nodes[0])),
    _scenario("mig-manager-failed", retry, prepare=crash.broken("failed")),
    _scenario("there-and-back", there_and_back),
    _scenario("old-marks", create, prepare=old_marks),
)
"""By name the seeds of the specification, in its order."""
LATER = (
    # The two nodes of the gang go as one wave, before or after the third.
    _scenario("gang", lambda pool: pool.apply({**SLICED, **TWO_AT_ONCE}), prepare=gang_on_two),
    _scenario("plain-chart", create, stage="plain"),
    _scenario("dra", create, prepare=crash.holders, stage="dra"),
    _scenario("repair", overwrite_repair, crash.repaired, prepare=crash.break_mps_set, stage="repairing"),
)
"""Those that came later: a sample draws them apart."""

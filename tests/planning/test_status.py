"""A policy's status: every condition on every path, the columns, the plan, and that nothing of it flaps or overflows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.build import NOW, at, make_gpu, make_gpunode, make_node, make_policy, make_snapshot, make_stack
from tests.planning.machines import Machine
from tests.planning.world import World

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.policy import GPUSharingPolicyStatus
from gpusharing.planning.acceptance import Objection
from gpusharing.planning.pool import Pool
from gpusharing.planning.reasons import Reason
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.status import MAX_LISTED, MAX_TEXT, policy_status
from gpusharing.planning.verdict import Verdict
from gpusharing.planning.views import NodeView, PolicyView

POOL = make_policy(generation=7)
LAYOUT = "2x3g.40gb"
WHOLE = {"nvidia.com/gpu": 1}
HALVES = {"nvidia.com/mig-3g.40gb": 2}
BAD_SPEC = Objection(Reason.INVALID_SPEC, "spec.mode: unknown")


def verdict(
    phase: Phase,
    reason: Reason = Reason.PROGRESSING,
    node: str = "gpu-07",
    message: str = "something is so",
    **fields: Any,
) -> Verdict:
    """A node of the pool."""
    known: dict[str, Any] = {"wanted": LAYOUT} | fields
    if phase.in_flight:
        known.setdefault("disruption", DisruptionClass.RESET)
    return Verdict(node, "pool-b", phase, reason, message, **known)


SYNCED = verdict(Phase.SYNCED, Reason.SYNCED, message="2x3g.40gb proven")
DRAINING = verdict(Phase.DRAINING, Reason.PODS_LEAVING, "gpu-08")
PENDING = verdict(Phase.PENDING, Reason.BUDGET_FULL, "gpu-08")
FAILED = verdict(Phase.FAILED, Reason.ACTUATOR_FAILED, "gpu-09")
STUCK = verdict(Phase.BLOCKED, Reason.UNMANAGED, "gpu-10")
REFUSED = verdict(Phase.SKIPPED, Reason.NOT_MIG_CAPABLE, "gpu-11", "Tesla T4 has no MIG", wanted="")
PASSED_OVER = verdict(
    Phase.SKIPPED, Reason.PRODUCT_SKIPPED, "gpu-12", "Tesla T4 is not in spec.products", wanted=""
)


@dataclass
class Scene:
    """What a status is computed from."""

    verdicts: Sequence[Verdict] = ()
    policy: PolicyView = POOL
    objection: Objection | None = None
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    reports: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    pending: Mapping[str, int] = field(default_factory=dict)

    def status(self, previous: Mapping[str, Any] | None = None, now: datetime = NOW) -> dict[str, Any]:
        """The status, which the CRD's types accept."""
        own = [one.node for one in self.verdicts if one.policy == self.policy.name]
        plan = RolloutPlan(
            verdicts={one.node: one for one in self.verdicts},
            pools={self.policy.name: Pool(self.policy, names=own)},
            objections={self.policy.name: self.objection} if self.objection else {},
            shared=(),
            targets=self.targets,
            wants_pods=frozenset(),
            differing=frozenset(),
            wake_at=None,
        )
        names = [one.node for one in self.verdicts]
        snapshot = make_snapshot(
            [self.nodes.get(name) or make_node(name) for name in names],
            [self.policy],
            gpunodes=[make_gpunode(name, **self.reports.get(name, {})) for name in names],
            stack=make_stack(POOL),
            pending=self.pending,
        )
        status = policy_status(self.policy, plan, snapshot, previous or {}, now)
        GPUSharingPolicyStatus.model_validate(status)
        return status


def answers(status: Mapping[str, Any]) -> dict[str, str]:
    """`True Synced` by condition."""
    return {row["type"]: f"{row['status']} {row['reason']}" for row in status["conditions"]}


def message(status: Mapping[str, Any], kind: str) -> str:
    """The message of a condition."""
    (text,) = (row["message"] for row in status["conditions"] if row["type"] == kind)
    assert isinstance(text, str)
    return text


# --- conditions --------------------------------------------------------------------------------------------

AWAY = {"gpu-07": make_node("gpu-07", ready=False)}
DELETED = replace(POOL, deleting=True)
VALID, CALM = "True Valid", "False Progressing"
UNDER_WAY = "True RolloutInProgress"

PATHS: dict[str, tuple[Scene, tuple[str, str, str, str]]] = {
    "all proven": (Scene([SYNCED]), (VALID, "True Synced", "False Synced", CALM)),
    "one waits for its turn": (
        Scene([SYNCED, PENDING]),
        (VALID, "False RolloutInProgress", "True BudgetFull", CALM),
    ),
    "its pods are looked at": (
        Scene([verdict(Phase.PREFLIGHT)]),
        (VALID, "False RolloutInProgress", "True Progressing", CALM),
    ),
    "one drains": (Scene([SYNCED, DRAINING]), (VALID, "False RolloutInProgress", UNDER_WAY, CALM)),
    "one is verified": (
        Scene([verdict(Phase.VERIFYING, Reason.LABEL_MISMATCH)]),
        (VALID, "False RolloutInProgress", UNDER_WAY, CALM),
    ),
    "one failed": (
        Scene([SYNCED, FAILED]),
        (VALID, "False RolloutInProgress", "False NodesFailed", "True NodesFailed"),
    ),
    "one failed while another drains": (
        Scene([DRAINING, FAILED]),
        (VALID, "False RolloutInProgress", UNDER_WAY, "True NodesFailed"),
    ),
    "a budget blocks, which passes by itself": (
        Scene([SYNCED, verdict(Phase.BLOCKED, Reason.PDB, "gpu-08")]),
        (VALID, "False RolloutInProgress", "True PDB", CALM),
    ),
    "every node that is left waits for a person": (
        Scene([SYNCED, STUCK]),
        (VALID, "False RolloutInProgress", "False Blocked", "True Blocked"),
    ),
    "a node waits for a person and another for its turn": (
        Scene([STUCK, PENDING]),
        (VALID, "False RolloutInProgress", "True BudgetFull", CALM),
    ),
    "a node waits for a person and another drains": (
        Scene([STUCK, DRAINING]),
        (VALID, "False RolloutInProgress", UNDER_WAY, CALM),
    ),
    "drift came back": (
        Scene([verdict(Phase.BLOCKED, Reason.DRIFT_RETURNED), PENDING]),
        (VALID, "False RolloutInProgress", "True BudgetFull", "True DriftReturned"),
    ),
    "no card can take it": (
        Scene([REFUSED]),
        ("False NotMigCapable", "False NotMigCapable", "False Blocked", "True Blocked"),
    ),
    "some cards cannot take it": (
        Scene([SYNCED, REFUSED]),
        (VALID, "False NotMigCapable", "False Blocked", "True Blocked"),
    ),
    "only other cards than spec.products": (
        Scene([PASSED_OVER]),
        ("False ProductSkipped", "False NoNodes", "False NoNodes", CALM),
    ),
    "some other cards than spec.products": (
        Scene([SYNCED, PASSED_OVER]),
        (VALID, "True Synced", "False Synced", CALM),
    ),
    "no node": (Scene(), (VALID, "False NoNodes", "False NoNodes", CALM)),
    "not accepted": (
        Scene([verdict(Phase.BLOCKED, Reason.INVALID_SPEC)], objection=BAD_SPEC),
        ("False InvalidSpec", "False NotAccepted", "False InvalidSpec", "True InvalidSpec"),
    ),
    "not accepted, and a node of before drains": (
        Scene([DRAINING], objection=BAD_SPEC),
        ("False InvalidSpec", "False NotAccepted", UNDER_WAY, "True InvalidSpec"),
    ),
    "deleted while a node is in flight": (
        Scene([DRAINING], DELETED),
        (VALID, "False Deleting", UNDER_WAY, CALM),
    ),
    "deleted and nothing to do": (Scene((), DELETED), (VALID, "False Deleting", "False Deleting", CALM)),
    "proven on a node that is not Ready": (
        Scene([SYNCED], nodes=AWAY),
        (VALID, "False NodeNotReady", "False NodeNotReady", CALM),
    ),
}


@pytest.mark.parametrize("path", PATHS)
def test_every_condition_is_told_on_every_path(path: str) -> None:
    scene, expected = PATHS[path]
    status = scene.status()
    assert tuple(answers(status).items()) == tuple(
        zip(("Accepted", "Ready", "Reconciling", "Stalled"), expected, strict=True)
    )
    assert (
        {row["observedGeneration"] for row in status["conditions"]} == {7} == {status["observedGeneration"]}
    )
    assert all(row["message"] for row in status["conditions"])


@pytest.mark.parametrize("path", PATHS)
def test_an_equal_world_gives_an_equal_status_later(path: str) -> None:
    scene, _ = PATHS[path]
    status = scene.status()
    assert scene.status(status, at(3600)) == status


def test_the_time_of_a_condition_changes_only_when_its_status_flips() -> None:
    first = Scene([SYNCED, PENDING]).status()
    second = Scene([SYNCED, DRAINING], replace(POOL, generation=8)).status(first, at(60))
    assert [row["lastTransitionTime"] for row in second["conditions"]] == ["2026-11-20T10:00:00Z"] * 4
    third = Scene([SYNCED]).status(second, at(120))
    times = {row["type"]: row["lastTransitionTime"] for row in third["conditions"]}
    assert times == {
        "Accepted": "2026-11-20T10:00:00Z",
        "Ready": "2026-11-20T10:02:00Z",
        "Reconciling": "2026-11-20T10:02:00Z",
        "Stalled": "2026-11-20T10:00:00Z",
    }


def test_the_most_urgent_refusal_gives_reason_and_message() -> None:
    later = verdict(Phase.SKIPPED, Reason.LAYOUT_DOES_NOT_FIT, "gpu-01", "7x1g.20gb does not fit")
    status = Scene([later, REFUSED]).status()
    assert answers(status)["Accepted"] == "False NotMigCapable"
    assert message(status, "Accepted") == "gpu-11: Tesla T4 has no MIG"


def test_refusals_of_some_nodes_are_a_note() -> None:
    assert message(Scene([SYNCED, REFUSED]).status(), "Accepted") == (
        "1 of 2 nodes cannot take it: gpu-11: Tesla T4 has no MIG"
    )


def test_a_policy_that_lost_all_its_nodes_names_them() -> None:
    owned = [replace(SYNCED, node=f"gpu-0{number}", policy="pool-a") for number in (2, 1)]
    status = Scene(owned).status()
    assert answers(status)["Ready"] == "False NoNodes"
    assert "owns every node that spec.nodeSelector selects: gpu-01 and 1 more" in message(status, "Ready")
    stranger = replace(SYNCED, policy="pool-a")
    elsewhere = {"gpu-07": replace(make_node(), labels={"gpusharing.dev/pool": "c"})}
    assert "selects no node with GPUs" in message(Scene([stranger], nodes=elsewhere).status(), "Ready")


def test_a_node_is_named_once_in_a_sentence() -> None:
    status = Scene([SYNCED, replace(STUCK, message="gpu-10 has a pod that blocks")]).status()
    assert message(status, "Ready") == "1 of 2 nodes proven; gpu-10 has a pod that blocks"
    assert message(status, "Stalled") == "1 node blocked; gpu-10 has a pod that blocks"


reasons = st.sampled_from(list(Reason))
phases = st.sampled_from(list(Phase))
pools = st.lists(st.tuples(phases, reasons, st.booleans(), st.booleans()), max_size=6)


@given(rows=pools, shuffled=st.randoms(use_true_random=False))
def test_ready_means_that_every_node_is_proven_whatever_the_order(rows: Any, shuffled: Any) -> None:
    verdicts = [verdict(phase, reason, f"gpu-{index}") for index, (phase, reason, _, _) in enumerate(rows)]
    nodes = {
        f"gpu-{index}": make_node(f"gpu-{index}", ready=ready, unschedulable=cordoned)
        for index, (_, _, ready, cordoned) in enumerate(rows)
    }
    status = Scene(verdicts, nodes=nodes).status()
    counted = [row for row in rows if row[1] is not Reason.PRODUCT_SKIPPED]
    proven = [row for row in counted if row[0] is Phase.SYNCED and row[2]]
    ready = answers(status)["Ready"].startswith("True")
    assert ready == bool(counted and len(proven) == len(counted))
    usable = [row for row in proven if not row[3]]
    assert status["summary"]["nodes"] == f"{len(usable)}/{len(counted)}"
    assert not (ready and answers(status)["Stalled"].startswith("True"))
    shuffled.shuffle(verdicts)
    assert Scene(verdicts, nodes=nodes).status() == status


# --- columns -----------------------------------------------------------------------------------------------


def test_the_columns_tell_layout_nodes_gpus_used_pending_strategy_and_product() -> None:
    cordoned = make_node("gpu-08", resources=HALVES, unschedulable=True)
    scene = Scene(
        [SYNCED, replace(SYNCED, node="gpu-08")],
        nodes={"gpu-07": make_node(resources=HALVES), "gpu-08": cordoned},
        reports={
            "gpu-07": {"gpus": [make_gpu(0), make_gpu(1)], "allocated": HALVES},
            "gpu-08": {"allocated": {"nvidia.com/gpu": 1, "nvidia.com/mig-3g.40gb": 1}},
        },
        pending={"nvidia.com/mig-3g.40gb": 3, "nvidia.com/gpu": 5},
    )
    assert scene.status()["summary"] == {
        "mode": "MIG",
        "layout": "2x3g.40gb",
        "nodes": "1/2",
        "gpus": 3,
        "used": "3/4",
        "pendingPods": 3,
        "strategy": "mixed",
        "product": "NVIDIA-H100-80GB-HBM3",
        "status": "Synced",
        "message": "2x3g.40gb proven",
    }


def test_the_strategy_belongs_to_mig_and_a_spec_that_cannot_be_read_has_no_mode() -> None:
    assert Scene([SYNCED], make_policy(mode="TimeSlicing")).status()["summary"]["strategy"] == ""
    broken = replace(POOL, spec=None)
    summary = Scene((), broken, objection=BAD_SPEC).status()["summary"]
    assert (summary["mode"], summary["status"]) == ("", "InvalidSpec")


def test_nodes_of_other_cards_leave_every_count() -> None:
    summary = Scene([SYNCED, PASSED_OVER]).status()["summary"]
    assert (summary["nodes"], summary["gpus"], summary["used"]) == ("1/1", 1, "0/1")


def test_a_node_that_never_reported_has_no_gpus() -> None:
    summary = Scene([SYNCED], reports={"gpu-07": {"observed": False}}).status()["summary"]
    assert (summary["gpus"], summary["used"], summary["product"]) == (0, "0/1", "")


def test_two_layouts_are_shown_by_how_many_nodes_have_them() -> None:
    rows = [replace(SYNCED, node=f"gpu-{number}", wanted=text) for number, text in enumerate("baacaab")]
    assert Scene(rows).status()["summary"]["layout"] == "a, b"


@pytest.mark.parametrize(
    ("path", "word", "text"),
    [
        ("all proven", "Synced", "2x3g.40gb proven"),
        ("one waits for its turn", "BudgetFull", "gpu-08: something is so"),
        ("one drains", "Draining", "gpu-08: something is so"),
        ("one failed while another drains", "Failed", "gpu-09: something is so"),
        ("a budget blocks, which passes by itself", "Blocked", "gpu-08: something is so"),
        ("drift came back", "DriftReturned", "gpu-07: something is so"),
        ("no card can take it", "NotMigCapable", "gpu-11: Tesla T4 has no MIG"),
        ("no node", "NoNodes", "spec.nodeSelector selects no node with GPUs; label the nodes of the pool"),
        ("only other cards than spec.products", "NoNodes", "gpu-12: Tesla T4 is not in spec.products"),
        ("not accepted", "InvalidSpec", "spec.mode: unknown"),
        ("deleted and nothing to do", "Deleting", "nodes in flight are brought to a safe end first"),
        ("proven on a node that is not Ready", "NodeNotReady", "gpu-07 is proven but not Ready"),
    ],
)
def test_one_word_and_one_sentence_stand_for_the_pool(path: str, word: str, text: str) -> None:
    summary = PATHS[path][0].status()["summary"]
    assert (summary["status"], summary["message"]) == (word, text)


# --- plan and failures ---------------------------------------------------------------------------------------


def test_the_plan_tells_the_worst_class_the_nodes_pods_and_capacities() -> None:
    reset = replace(PENDING, disruption=DisruptionClass.RESET)
    scene = Scene(
        [SYNCED, reset, replace(FAILED, disruption=DisruptionClass.GPU_PODS, pods=2), REFUSED],
        nodes={"gpu-07": make_node("gpu-07", resources=HALVES)},
        targets={"gpu-07": HALVES, "gpu-08": HALVES, "gpu-09": HALVES},
        reports={"gpu-08": {"pods": 3}},
    )
    plan = scene.status()["plan"]
    assert plan.pop("hash").isalnum()
    assert plan == {
        "disruption": "Reset",
        "nodes": ["gpu-08", "gpu-09"],
        "nodeCount": 2,
        "pods": 5,
        "capacityBefore": {"nvidia.com/gpu": 3, "nvidia.com/mig-3g.40gb": 2},
        "capacityAfter": {"nvidia.com/gpu": 1, "nvidia.com/mig-3g.40gb": 6},
    }, "the card that refuses keeps serving what it serves"


def test_there_is_no_plan_when_nothing_changes() -> None:
    assert Scene([SYNCED, REFUSED]).status()["plan"] is None


def test_the_hash_of_a_plan_changes_with_the_plan_only() -> None:
    one = replace(PENDING, disruption=DisruptionClass.RESET)
    two = replace(one, node="gpu-01")
    hashes = [
        Scene([one, two]).status()["plan"]["hash"],
        Scene([one, two], replace(POOL, generation=8)).status()["plan"]["hash"],
        Scene([one]).status()["plan"]["hash"],
        Scene([one, replace(two, disruption=DisruptionClass.REBOOT)]).status()["plan"]["hash"],
        Scene([one, two], targets={"gpu-01": HALVES}).status()["plan"]["hash"],
    ]
    assert len(set(hashes)) == len(hashes)
    assert (
        hashes[0] == Scene([replace(two, message="other", pods=4), one]).status(None, at(60))["plan"]["hash"]
    )


def test_failures_are_told_by_name_and_capped() -> None:
    failed = [replace(FAILED, node=f"gpu-{number:03d}") for number in range(50)]
    failures = Scene(failed).status()["failures"]
    assert failures[0] == {"node": "gpu-000", "reason": "ActuatorFailed", "message": "something is so"}
    assert [row["node"] for row in failures] == [f"gpu-{number:03d}" for number in range(MAX_LISTED)]
    assert Scene([SYNCED, DRAINING]).status()["failures"] == []


def test_five_thousand_nodes_with_endless_messages_fit_into_the_crd() -> None:
    endless = replace(FAILED, message="x" * 9000, wanted="y" * 3000, disruption=DisruptionClass.RESET)
    status = Scene([replace(endless, node=f"gpu-{number:04d}") for number in range(5000)]).status()
    texts = [row["message"] for row in status["conditions"]] + [status["summary"]["message"]]
    assert max(len(text) for text in texts) == MAX_TEXT
    assert status["plan"]["nodeCount"] == 5000
    assert len(status["plan"]["nodes"]) == len(status["failures"]) == MAX_LISTED
    assert len(str(status)) < 40_000, "far below what etcd takes"
    objected = Scene([], objection=Objection(Reason.INVALID_SPEC, "z" * 9000)).status()
    assert {len(text) for text in (message(objected, "Accepted"), message(objected, "Ready"))} == {MAX_TEXT}


# --- with the planner ----------------------------------------------------------------------------------------


def test_a_whole_change_is_told_without_flapping() -> None:
    """From the edit to the end: valid at each step, equal a moment later, Ready False until all is proven."""
    world = World()
    for name in ("gpu-07", "gpu-08"):
        world.add_node(name, Machine(name))
    world.set_policy(make_policy(mode="Full"))
    world.settle()
    world.set_policy(make_policy())
    status: dict[str, Any] = {}
    words: list[str] = []
    for _ in range(400):
        snapshot, policy = world.snapshot(), world.policies[0]
        plan = plan_rollout(snapshot, world.now)
        status = policy_status(policy, plan, snapshot, status, world.now)
        GPUSharingPolicyStatus.model_validate(status)
        later = plan_rollout(snapshot, world.now + timedelta(milliseconds=1))
        if {n: (v.phase, v.reason) for n, v in later.verdicts.items()} == {
            n: (v.phase, v.reason) for n, v in plan.verdicts.items()
        }:
            assert policy_status(policy, later, snapshot, status, at(9000)) == status
        words += [status["summary"]["status"]] if status["summary"]["status"] not in words[-1:] else []
        if answers(status)["Ready"] == "True Synced":
            break
        assert status["plan"] is None or status["plan"]["capacityAfter"] == {"nvidia.com/mig-3g.40gb": 4}
        for node in world.nodes:
            world.act(node)
        world.step()
        world.now += timedelta(seconds=1)
    assert status["summary"]["nodes"] == "2/2"
    assert status["plan"] is None
    assert [word for word in words if word in ("Draining", "Reconfiguring", "Verifying", "Synced")][
        -1
    ] == "Synced"
    assert {"Reconfiguring", "Verifying"} <= set(words)

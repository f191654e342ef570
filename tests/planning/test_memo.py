"""The memo saves work and changes no answer: what changed is asked anew, what did not is not."""

from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import pytest
from tests.build import NOW, SETTINGS, at, make_gpunode, make_node, make_policy, make_snapshot, make_stack
from tests.planning.cases import SeenSince, proof_of

from gpusharing.api.names import LABEL_MIG_STATE, LABEL_POLICY
from gpusharing.api.validation import Problem
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.memory import DRIFTS, PassMemory
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.ownership import find_contenders

PAUSED = make_policy(rollout={"paused": True})
OTHER_POOL = {"gpusharing.dev/pool": "c"}
OTHER = make_policy("pool-c", "TimeSlicing", nodeSelector={"matchLabels": OTHER_POOL}, rollout={"paused": True})


def waiting(**fields: Any) -> ClusterSnapshot:
    return make_snapshot(**{"nodes": [make_node()], "policies": [PAUSED], **fields})


SEEN = make_gpunode()
DRIVEN = replace(SEEN, observed=replace(SEEN.observed, driver_version="570.86.15") if SEEN.observed else None)
RETURNED = proof_of(PAUSED, PAUSED.version.revision)
DRIFTED = waiting(nodes=[make_node(verified=RETURNED)], memory=PassMemory(seen_since={"gpu-07": {DRIFTS: at(-600)}}))
WORKING = waiting(
    nodes=[make_node(labels={LABEL_MIG_STATE: "pending"})],
    memory=PassMemory(seen_since={"gpu-07": SeenSince(at(-9999))}),
)
CIRCUMSTANCES: dict[str, tuple[ClusterSnapshot, Reason, dict[str, Any], Reason]] = {
    "its agent goes": (waiting(), Reason.PAUSED, {"agents": frozenset()}, Reason.AGENT_NOT_READY),
    "its mig-manager goes": (waiting(), Reason.PAUSED, {"operands": {}}, Reason.ACTUATOR_MISSING),
    "mig-manager begins anew": (
        WORKING, Reason.PAUSED, {"memory": PassMemory()}, Reason.ACTUATOR_BUSY,
    ),
    "its drift begins anew": (DRIFTED, Reason.DRIFT_RETURNED, {"memory": PassMemory()}, Reason.DRIFTED),
    "the settings refuse its driver": (
        waiting(gpunodes=[DRIVEN]),
        Reason.PAUSED,
        {"settings": replace(SETTINGS, unsafe_drivers=("570",))},
        Reason.UNSAFE_DRIVER,
    ),
    "its policy goes on": (
        waiting(), Reason.PAUSED, {"policies": (make_policy(rollout={"maxUnavailable": 0}),)}, Reason.FROZEN,
    ),
    "the stack is another one": (
        waiting(), Reason.PAUSED, {"stack": replace(make_stack(PAUSED), gpu_cluster=True)}, Reason.UNSUPPORTED_STACK,
    ),
    "its GPUs are as wanted": (
        waiting(), Reason.PAUSED, {"gpunodes": {"gpu-07": make_gpunode(gpus=())}}, Reason.AGENT_ERROR,
    ),
    "it is cordoned": (
        waiting(), Reason.PAUSED, {"nodes": {"gpu-07": make_node(unschedulable=True)}}, Reason.ALREADY_CORDONED,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "said", "changed", "says"), CIRCUMSTANCES.values(), ids=CIRCUMSTANCES)
def test_a_node_that_waits_is_judged_anew_when(
    before: ClusterSnapshot, said: Reason, changed: dict[str, Any], says: Reason
) -> None:
    memo = Memo()
    assert plan_rollout(before, NOW, memo).verdicts["gpu-07"].reason is said
    after = replace(before, **changed)
    assert plan_rollout(after, NOW, memo).verdicts["gpu-07"].reason is says
    assert plan_rollout(after, NOW, memo) == plan_rollout(after, NOW)


def test_a_node_that_is_labelled_into_another_pool_has_its_new_owner_at_once() -> None:
    memo, snapshot = Memo(), waiting(policies=[PAUSED, OTHER])
    assert plan_rollout(snapshot, NOW, memo).verdicts["gpu-07"].policy == "pool-b"
    moved = replace(snapshot, nodes={"gpu-07": make_node(labels=OTHER_POOL)})
    plan = plan_rollout(moved, NOW, memo)
    assert plan.verdicts["gpu-07"].policy == "pool-c"
    assert plan == plan_rollout(moved, NOW)


def test_another_selector_gives_a_node_that_did_not_change_another_owner() -> None:
    memo, snapshot = Memo(), waiting(nodes=[make_node(labels={"tier": "gold"})])
    plan_rollout(snapshot, NOW, memo)
    urgent = make_policy("urgent", priority=1, nodeSelector={"matchLabels": {"tier": "gold"}})
    plan = plan_rollout(replace(snapshot, policies=(PAUSED, urgent)), NOW, memo)
    assert plan.verdicts["gpu-07"].policy == "urgent"


def test_what_did_not_change_is_not_judged_again() -> None:
    nodes = [make_node("gpu-07"), make_node("gpu-08", labels=OTHER_POOL), make_node("cpu-1", resources={})]
    gpunodes = [make_gpunode("gpu-07"), make_gpunode("gpu-08")]
    memo, snapshot = Memo(), waiting(nodes=nodes, policies=[PAUSED, OTHER], gpunodes=gpunodes)
    first = plan_rollout(snapshot, NOW, memo)
    for later in (NOW, at(1)):
        plan = plan_rollout(snapshot, later, memo)
        assert [name for name, target in first.targets.items() if plan.targets[name] is not target] == []
        assert [name for name, verdict in first.verdicts.items() if plan.verdicts[name] is not verdict] == []


def test_a_change_of_a_policy_that_selects_as_before_gives_no_node_another_owner() -> None:
    changed = replace(PAUSED, finalizer=True, generation=7)
    assert find_contenders([PAUSED]) == find_contenders([changed])
    assert find_contenders([PAUSED]) != find_contenders([replace(PAUSED, deleting=True)])


def test_a_new_stack_gives_every_node_a_new_target() -> None:
    memo, snapshot = Memo(), waiting()
    plan = plan_rollout(snapshot, NOW, memo)
    stack = replace(snapshot.stack, pointer_error="refused")
    again = plan_rollout(replace(snapshot, stack=stack), NOW, memo)
    assert again.targets == plan.targets
    assert again.targets["gpu-07"] is not plan.targets["gpu-07"]


def test_a_policy_that_nobody_can_read_says_so_on_its_node_and_keeps_no_other_waiting() -> None:
    unread = replace(PAUSED, spec=None, problems=(Problem("spec.mode", "is missing"),))
    mine = make_node(labels={LABEL_POLICY: "pool-b"})
    snapshot = waiting(
        nodes=[mine, make_node("gpu-08", labels=OTHER_POOL)], policies=[unread, OTHER], stack=make_stack(OTHER)
    )
    memo = Memo()
    for _ in range(2):
        verdicts = plan_rollout(snapshot, NOW, memo).verdicts
        assert {name: verdict.reason for name, verdict in verdicts.items()} == {
            "gpu-07": Reason.INVALID_SPEC,
            "gpu-08": Reason.PAUSED,
        }


# --- the memo by itself --------------------------------------------------------------------------------------


class Question:
    """Says the length of its inputs, fails at those that are too long, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def length(self, text: str, limit: int) -> int:
        self.asked.append(text)
        if len(text) > limit:
            raise ValueError(text)
        return len(text)


def test_a_question_is_asked_again_when_an_argument_is_another_one() -> None:
    memo, question = Memo(), Question()
    length = question.length
    rows = {"a": ("one", 9), "b": ("three", 9)}
    for _ in range(2):
        assert memo.each(length, rows.items()) == {"a": 3, "b": 5}
    assert question.asked == ["one", "three"]
    rows["b"] = ("three", 8)
    memo.each(length, rows.items())
    assert question.asked == ["one", "three", "three"]


def test_who_is_not_asked_about_is_forgotten() -> None:
    memo, question = Memo(), Question()
    length = question.length
    for rows in ({"a": ("one", 9)}, {}, {"a": ("one", 9)}):
        assert len(memo.each(length, rows.items())) == len(rows)
    assert question.asked == ["one", "one"]


def test_an_error_about_one_leaves_the_others_answered_and_is_met_again() -> None:
    memo, question = Memo(), Question()
    length = question.length
    rows = {"a": ("one", 4), "b": ("three", 4)}
    for _ in range(2):
        failed: dict[str, Exception] = {}
        assert memo.each(length, rows.items(), failed=failed) == {"a": 3}
        assert str(failed["b"]) == "three"
    with pytest.raises(ValueError, match="three"):
        memo.each(length, rows.items())
    assert question.asked == ["one", "three", "three", "three"]


def test_only_a_name_of_which_something_else_is_known_is_asked_about_again() -> None:
    memo, asked = Memo(), list[str]()
    sizes, marked = {"a": 1, "b": 2, "c": 3}, {"a"}

    def size(name: str) -> int:
        asked.append(name)
        return -sizes[name] if name in marked else sizes[name]

    def sized(*shared: object) -> dict[str, int]:
        asked.clear()
        return memo.table(size, sizes, columns=[sizes, marked], shared=shared, key="size")

    assert (sized("m"), asked) == ({"a": -1, "b": 2, "c": 3}, ["a", "b", "c"])
    assert (sized("m"), asked) == ({"a": -1, "b": 2, "c": 3}, [])
    sizes["b"] = 20
    marked ^= {"a", "c"}
    assert (sized("m"), asked) == ({"a": 1, "b": 20, "c": -3}, ["a", "b", "c"]), "although the objects are the same"
    del sizes["b"]
    assert (sized("m"), asked) == ({"a": 1, "c": -3}, [])
    sizes["b"] = 20
    assert (sized("m"), asked) == ({"a": 1, "c": -3, "b": 20}, ["b"]), "who was gone is forgotten"
    assert (sized("cm"), asked) == ({"a": 1, "c": -3, "b": 20}, ["a", "c", "b"])


def test_an_answer_that_depends_on_the_time_stands_only_while_it_says_so() -> None:
    asked: list[datetime] = []

    def hour(limit: int, *, now: datetime) -> int:
        asked.append(now)
        return min(limit, now.hour)

    memo = Memo()
    for moment in (NOW, at(1)):
        assert memo.ask(partial(hour, now=moment), 3, lasts=lambda answer: answer == 3) == 3
    assert asked == [NOW]
    for moment in (NOW, at(1)):
        memo.ask(partial(hour, now=moment), 24, lasts=lambda answer: answer == 24)
    assert asked == [NOW, NOW, at(1)]


def test_a_clock_that_was_set_back_asks_anew() -> None:
    memo, question = Memo(), Question()
    length = question.length
    for moment in (NOW, at(1), at(1), NOW):
        memo.begin(moment)
        assert memo.ask(length, "one", 9) == 3
    assert question.asked == ["one", "one"]


def test_a_value_that_is_equal_to_the_last_one_of_its_name_is_that_object() -> None:
    memo, first = Memo(), [1, 2]
    assert memo.same("numbers", first) is first
    assert memo.same("numbers", [1, 2]) is first
    assert memo.same("numbers", [3]) == [3]
    assert memo.same("others", [1, 2]) is not first

"""One object fails for ever: its node alone waits, named, and nothing unsafe happens (the guard of every scene).
Each kind of call about a node meets every answer of the server, each at a node of its own beside five healthy ones. Calls about shared objects meet one answer of each class in `shared_calls`. Virtual time."""

import json

import pytest
from tests.embedded.sick import (
    CODES,
    CURES,
    DRAIN_TIMEOUT,
    OF_ONE_NODE,
    SHARED,
    WORDS,
    Course,
    Sickness,
    alone,
    course,
    shared_calls,
    sick_node,
)

from gpusharing.api.times import parse_duration

SLOWER = 1.25
"""Times as long as the five healthy nodes take alone."""
RECOVERY = 900.0
"""Seconds within which the sick nodes are done, too, when their calls succeed again; a back-off is part of that."""
ANSWERS = tuple(CODES)
ALL = 5 + len(ANSWERS)
UNSEEN = {"its status", "the creation of the GPUNode"}
"""Where the GPUNode cannot say what is wrong, the policy or the log does."""
NAMED = {"ListFailed", "EvictionError", "Forbidden", "Throttled", "CallFailed", "DRAClaim"}


def words(answer: str) -> set[str]:
    return {"no answer" if answer == "no answer" else WORDS, "cannot be read", "each of 3 attempts"}


@pytest.mark.parametrize("door", OF_ONE_NODE.keys())
def test_the_healthy_nodes_are_as_fast_as_without_it_status_tells_the_truth_and_a_cured_node_goes_on(door: str) -> None:
    run = course(Sickness(OF_ONE_NODE[door], ANSWERS, ends=True))
    assert run.seconds <= SLOWER * alone()
    assert run.recovery <= RECOVERY
    done = door == "its status"
    assert run.status["summary"]["nodes"] == (f"{ALL}/{ALL}" if done else f"5/{ALL}")
    for answer, node in run.nodes.items():
        assert 0 < node.hits <= 40, "it is asked more and more seldom"
        assert node.done is done
        if done:
            assert any(f"node/{sick_node(answer)}" in line for line in run.log)
        elif door not in UNSEEN:
            assert node.transition["reason"] in NAMED
            assert any(text in node.transition["message"] for text in words(answer)), node.transition
    if not done:
        message = run.status["summary"]["message"]
        (named,) = [answer for answer in ANSWERS if message.startswith(f"{sick_node(answer)}: ")]
        assert any(text in message for text in words(named)), message


@pytest.mark.parametrize("door", ["the LIST of its pods", "writes to the Node", "the creation of the GPUNode"])
def test_nodes_that_cannot_start_leave_the_only_slot_to_the_others(door: str) -> None:
    run = course(Sickness(OF_ONE_NODE[door], ("503", "409", "no answer"), limit=1))
    assert run.seconds <= SLOWER * alone(1)


@pytest.mark.parametrize("answer", ["403", "no answer"])
def test_with_two_slots_a_drain_whose_evictions_fail_takes_one_of_them_once(answer: str) -> None:
    run = course(Sickness(OF_ONE_NODE["the eviction of its pod"], (answer,), limit=2))
    timeout = parse_duration(DRAIN_TIMEOUT).total_seconds()
    assert run.seconds <= alone(2) + timeout / 2 + 15.0


@pytest.mark.parametrize("answer", ["500", "429"])
def test_a_drain_whose_evictions_fail_holds_the_only_slot_until_drain_timeout_and_no_longer(answer: str) -> None:
    """Not 1.25 times, but later by drain.timeout at most: docs/adr/0027-a-failing-eviction-keeps-its-slot.md."""
    run = course(Sickness(OF_ONE_NODE["the eviction of its pod"], (answer,), limit=1, linger=1800.0))
    timeout = parse_duration(DRAIN_TIMEOUT).total_seconds()
    assert run.seconds <= alone(1) + timeout + 15.0
    assert 1 <= run.events["ChangeGivenUp"] <= 3
    assert not run.nodes[answer].done


@pytest.mark.parametrize("since", ["fenced", "actuating"])
def test_a_node_that_falls_ill_on_its_way_stays_fenced_and_is_named(since: str) -> None:
    run = course(Sickness(OF_ONE_NODE["writes to the Node"], ANSWERS, since=since, linger=120.0))
    assert run.seconds <= SLOWER * alone()
    assert run.status["summary"]["nodes"] == f"5/{ALL}"
    for node in run.nodes.values():
        assert node.hits > 0
        assert not node.done
        assert node.transition["reason"] == "CallFailed"
        assert node.transition["cordonedBy"] == "Operator"


@pytest.mark.parametrize("cure", CURES.keys())
def test_a_node_that_cannot_be_cured_is_failed_once_its_time_is_up_and_names_the_call(cure: str) -> None:
    wedge, call, since = CURES[cure]
    run = course(Sickness(call, ANSWERS, since=since, wedge=wedge, linger=900.0))
    assert run.seconds <= SLOWER * alone()
    assert run.events["NodeFailed"] == len(ANSWERS), "and not in turns with something else"
    assert run.status["summary"]["nodes"] == f"5/{ALL}"
    for answer, node in run.nodes.items():
        assert not node.done
        assert (node.transition["phase"], node.transition["cordonedBy"]) == ("Failed", "Operator")
        assert 0 < node.hits <= 100, "once a minute at most, a conflict three times"
        if cure.startswith("the log"):
            assert node.transition["reason"] == "ActuatorFailed"
            assert "see the log of its pod" in node.transition["message"]
            assert node.hits <= 8, "it is asked for more and more seldom"
            continue
        action = "RestartOperand" if cure.startswith("the deletion") else "UpdateFence"
        assert node.transition["reason"] == "CallFailed"
        assert f"{action} failed: " in node.transition["message"]
        assert any(text in node.transition["message"] for text in words(answer)), node.transition


GOES_ON = {"our ConfigMap", "the status of the policy", "Events", "the list of Warnings"}
"""What only tells or explains keeps nobody, nor does a write of entries that these nodes do not need."""
OBJECTS = {
    "our ConfigMap": "gpusharing-mig-parted",
    "the creation of our ConfigMap": "gpusharing-mig-parted",
    "the policy": "pool-b",
    "the status of the policy": "policy/pool-b",
    "the list of policies": "policies cannot be listed",
    "the list of budgets": "PodDisruptionBudgets cannot be listed",
    "Events": "Events cannot be posted; trying again",
    "the list of Warnings": "Warning events about the agent's pods cannot be read; trying again",
    "the Lease": "lease",
}


def told(run: Course) -> str:
    return json.dumps(run.status) + "".join(run.log)


@pytest.mark.parametrize(("door", "answer"), shared_calls())
def test_a_shared_object_that_fails_does_nothing_unsafe_and_is_named(door: str, answer: str) -> None:
    run = course(Sickness(SHARED[door], (answer,)))
    assert run.hits > 0
    assert OBJECTS[door] in told(run)
    if door in GOES_ON:
        assert run.seconds <= SLOWER * alone()
    else:
        assert run.seconds == float("inf")
        assert run.writes == 0, "no node is touched before what it needs is there"
    repeated = max(run.log.count(line) for line in set(run.log))
    assert repeated <= 2, "nothing is said every two seconds"

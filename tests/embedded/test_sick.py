"""One object fails for ever: its node alone waits, named, and nothing unsafe happens (the guard of every scene).

Each kind of call that the operator makes × each answer. Five healthy nodes beside it; virtual time.
"""

import json

import pytest
from tests.embedded.sick import (
    CODES,
    CURES,
    DRAIN_TIMEOUT,
    OF_ONE_NODE,
    SHARED,
    SICK,
    WORDS,
    Course,
    alone,
    course,
)

from gpusharing.api.validation import parse_duration

SLOWER = 1.25
"""Times as long as the five healthy nodes take alone."""
UNSEEN = {"its status", "the creation of the GPUNode"}
"""Where the GPUNode cannot tell, the policy or the log does."""
NAMED = {"ListFailed", "EvictionError", "Forbidden", "Throttled", "CallFailed", "DRAClaim"}


def told(run: Course) -> str:
    """What status says about the sick node and the policy."""
    return json.dumps([run.transition, run.status])


@pytest.mark.parametrize("code", CODES.values(), ids=CODES.keys())
@pytest.mark.parametrize("door", OF_ONE_NODE.keys())
def test_the_healthy_nodes_are_as_fast_as_without_it_and_status_tells_the_truth(door: str, code: int) -> None:
    run = course(OF_ONE_NODE[door], code)
    assert run.hits > 0
    assert run.seconds <= SLOWER * alone()
    assert run.hits <= 40, "it is asked more and more seldom"
    if door == "its status":
        assert run.done
        assert run.status["summary"]["nodes"] == "6/6"
        assert any(f"node/{SICK}" in line for line in run.said)
        return
    assert not run.done
    assert run.status["summary"]["nodes"] == "5/6"
    assert SICK in run.status["summary"]["message"]
    if door not in UNSEEN:
        assert run.transition["reason"] in NAMED
    words = {"no answer" if code == 0 else WORDS, "cannot be read", "changed 3 times"}
    assert any(text in told(run) for text in words), told(run)


@pytest.mark.parametrize("code", [503, 409, 0], ids=["503", "409", "no answer"])
@pytest.mark.parametrize(
    "door", ["the LIST of its pods", "writes to the Node", "the creation of the GPUNode"]
)
def test_a_node_that_cannot_start_leaves_the_only_slot_to_the_others(door: str, code: int) -> None:
    run = course(OF_ONE_NODE[door], code, limit=1)
    assert run.seconds <= SLOWER * alone(1)


@pytest.mark.parametrize("code", [500, 403, 0], ids=["500", "403", "no answer"])
def test_with_two_slots_a_drain_whose_evictions_fail_slows_nobody_down(code: int) -> None:
    run = course(OF_ONE_NODE["the eviction of its pod"], code, limit=2)
    assert run.seconds <= SLOWER * alone(2)


@pytest.mark.parametrize("code", [500, 403, 429, 0], ids=["500", "403", "429", "no answer"])
def test_a_drain_whose_evictions_fail_holds_the_only_slot_until_drain_timeout_and_no_longer(
    code: int,
) -> None:
    """Not 1.25 times, but later by drain.timeout at most: docs/adr/0027-a-failing-eviction-keeps-its-slot.md."""
    run = course(OF_ONE_NODE["the eviction of its pod"], code, limit=1, linger=1800.0)
    timeout = parse_duration(DRAIN_TIMEOUT).total_seconds()
    assert run.seconds <= alone(1) + timeout + 15.0
    given_up = run.events["ChangeGivenUp"]
    assert 1 <= given_up <= 3
    assert not run.done


@pytest.mark.parametrize("code", CODES.values(), ids=CODES.keys())
@pytest.mark.parametrize("since", ["fenced", "actuating"])
def test_a_node_that_falls_ill_on_its_way_stays_fenced_and_is_named(since: str, code: int) -> None:
    run = course(OF_ONE_NODE["writes to the Node"], code, since=since, linger=120.0)
    assert run.hits > 0
    assert run.seconds <= SLOWER * alone()
    assert not run.done
    assert run.transition["reason"] == "CallFailed"
    assert run.transition["cordon"] == "ours"
    assert run.status["summary"]["nodes"] == "5/6"


@pytest.mark.parametrize("code", CODES.values(), ids=CODES.keys())
@pytest.mark.parametrize("cure", CURES.keys())
def test_a_node_that_cannot_be_cured_is_failed_once_its_time_is_up_and_names_the_call(
    cure: str, code: int
) -> None:
    wedge, door, since = CURES[cure]
    run = course(door, code, since=since, wedge=wedge, linger=1200.0)
    assert run.hits > 0
    assert run.seconds <= SLOWER * alone()
    assert not run.done
    assert (run.transition["phase"], run.transition["cordon"]) == ("Failed", "ours")
    assert run.events["NodeFailed"] == 1, "and not in turns with something else"
    assert run.status["summary"]["nodes"] == "5/6"
    if cure.startswith("the log"):
        assert run.transition["reason"] == "ActuatorFailed"
        assert "its pod's log says why" in run.transition["message"]
        assert run.hits <= 8, "it is asked for more and more seldom"
        return
    call = "RestartOperand" if cure.startswith("the deletion") else "UpdateFence"
    assert run.transition["reason"] == "CallFailed"
    assert f"{call} failed: " in run.transition["message"]
    words = {"no answer" if code == 0 else WORDS, "changed 3 times"}
    assert any(text in run.transition["message"] for text in words), run.transition["message"]
    assert run.hits <= 100, "once a minute at most, a conflict three times"


GOES_ON = {"our ConfigMap", "the status of the policy", "Events", "the list of Warnings"}
"""What only tells or explains keeps nobody, nor does a write of entries that these nodes do not need."""
OBJECTS = {
    "our ConfigMap": "gpusharing-mig-parted",
    "the creation of our ConfigMap": "gpusharing-mig-parted",
    "the policy": "pool-b",
    "the status of the policy": "policy/pool-b",
    "the list of policies": "policies cannot be listed",
    "the list of budgets": "PodDisruptionBudgets cannot be listed",
    "Events": "events not posted",
    "the list of Warnings": "the Warnings about the agent's pods cannot be read",
    "the Lease": "lease",
}


@pytest.mark.parametrize("code", CODES.values(), ids=CODES.keys())
@pytest.mark.parametrize("door", SHARED.keys())
def test_a_shared_object_that_fails_does_nothing_unsafe_and_is_named(door: str, code: int) -> None:
    run = course(SHARED[door], code)
    assert run.hits > 0
    assert OBJECTS[door] in told(run) + "".join(run.said)
    if door in GOES_ON:
        assert run.seconds <= SLOWER * alone()
    else:
        assert not run.done
        assert run.writes == 0, "no node is touched before what it needs is there"
    repeated = max(run.said.count(line) for line in set(run.said))
    assert repeated <= 2, "nothing is said every two seconds"

"""One object fails for ever: its node alone waits, named, and nothing unsafe happens (the guard of every scene).

Each kind of call that the operator makes × each answer. Five healthy nodes beside it; virtual time.
"""

import json

import pytest
from tests.embedded.sick import (
    CODES,
    OF_ONE_NODE,
    SHARED,
    SICK,
    WORDS,
    Course,
    alone,
    course,
)

SLOWER = 1.25
"""Times as long as the five healthy nodes take alone."""
UNSEEN = {"its status", "the creation of the GPUNode"}
"""Where the GPUNode cannot tell, the policy or the log does."""
NAMED = {"ListFailed", "EvictionError", "Forbidden", "Throttled", "CallFailed", "DRAClaim"}


def told(run: Course) -> str:
    """What status says about the sick node and the policy."""
    return json.dumps([run.mirror, run.status])


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
        assert run.mirror["reason"] in NAMED
    words = {"no answer" if code == 0 else WORDS, "cannot be read", "changed 3 times"}
    assert any(text in told(run) for text in words), told(run)


@pytest.mark.parametrize("code", [503, 409, 0], ids=["503", "409", "no answer"])
@pytest.mark.parametrize(
    "door", ["the LIST of its pods", "writes to the Node", "the creation of the GPUNode"]
)
def test_a_node_that_cannot_start_leaves_the_only_slot_to_the_others(door: str, code: int) -> None:
    run = course(OF_ONE_NODE[door], code, limit=1)
    assert run.seconds <= SLOWER * alone(1)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES.keys())
@pytest.mark.parametrize("since", ["fenced", "actuating"])
def test_a_node_that_falls_ill_on_its_way_stays_fenced_and_is_named(since: str, code: int) -> None:
    run = course(OF_ONE_NODE["writes to the Node"], code, since=since, linger=120.0)
    assert run.hits > 0
    assert run.seconds <= SLOWER * alone()
    assert not run.done
    assert run.mirror["reason"] == "CallFailed"
    assert run.mirror["cordon"] == "ours"
    assert run.status["summary"]["nodes"] == "5/6"


GOES_ON = {"the status of the policy", "Events"}
"""What only tells people keeps nobody."""
OBJECTS = {
    "our ConfigMap": "gpusharing-mig-parted",
    "the creation of our ConfigMap": "gpusharing-mig-parted",
    "the policy": "pool-b",
    "the status of the policy": "policy/pool-b",
    "the list of policies": "policies cannot be listed",
    "the list of budgets": "PodDisruptionBudgets cannot be listed",
    "Events": "events not posted",
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

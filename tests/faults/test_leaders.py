"""Who writes without the Lease (docs/design/faults.md#s5), and the one write that no client can hold back."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.faults.invariants import find_wrong
from tests.faults.test_invariants import Story, policy, ready

TOO_LATE = "by a, who is host-a there, while host-b held the Lease"


def status(story: Story) -> None:
    told = {"observedGeneration": 3}
    story.operator("gpusharingpolicies/status", "pool-b", policy(**told), {"status": told})


def taken(story: Story) -> None:
    story.take("gpu-1")


def finalizer(story: Story) -> None:
    metadata = {"metadata": {"finalizers": ["gpusharing.dev/in-flight"]}}
    story.operator("gpusharingpolicies", "pool-b", policy(), metadata)


def told(*writes: Callable[[Story], None], interrupted: bool) -> list[str]:
    story = Story()
    story.leads("b")
    for write in writes:
        write(story)
    log = replace(story.log(), interrupted=frozenset({"a"} if interrupted else ()))
    return [line for line in find_wrong(log) if line.startswith("S5: ")]


@pytest.mark.parametrize("write", [status, taken])
def test_what_was_in_hand_when_its_sender_was_frozen_may_leave_when_it_wakes(write: Callable[[Story], None]) -> None:
    assert told(write, interrupted=True) == []
    assert [line.endswith(TOO_LATE) for line in told(write, interrupted=False)] == [True]


def test_it_is_one_write_and_no_more() -> None:
    assert told(taken, status, interrupted=True) == [f"S5: PATCH gpusharingpolicies/status pool-b {TOO_LATE}"]


def test_a_write_that_could_do_harm_is_never_excused() -> None:
    assert told(finalizer, interrupted=True) == [f"S5: PATCH gpusharingpolicies pool-b {TOO_LATE}"]


def test_who_never_asked_for_the_lease_is_never_excused() -> None:
    story = Story()
    story.operator("gpusharingpolicies/status", "pool-b", policy(**ready()), {"status": ready()}, who="c")
    log = replace(story.log(), interrupted=frozenset({"c"}))
    assert any("nobody there" in line for line in find_wrong(log) if line.startswith("S5: "))

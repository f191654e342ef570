"""Ready=True (docs/design/faults.md#s9): what the operator can be asked to know when it says so."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.faults.invariants import find_wrong_end
from tests.faults.test_invariants import Story, node, policy, ready

JSON = dict[str, Any]
MARK = {"gpusharing.dev/policy": "pool-b"}
SLICED = {"nvidia.com/gpu": "4"}


def say_ready(story: Story) -> None:
    story.operator("gpusharingpolicies/status", "pool-b", policy(**ready()), {"status": ready()})


def change(story: Story, *names: str) -> None:
    for name in names:
        story.take(name)
        story.pass_pnr(name)
        story.release(name)


def gpunode(name: str, uid: str) -> JSON:
    """Of the Node with that UID; the operator has published a transition."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}
    return {
        "metadata": {"name": name, "uid": f"g-{uid}", "ownerReferences": [owner]},
        "status": {"transition": {"phase": "Pending"}},
    }


def publish(story: Story, name: str, uid: str) -> None:
    after = gpunode(name, uid)
    story.operator("gpunodes/status", name, after, {"status": after["status"]})


def nothing(_: Story) -> None:
    """It has just come."""


@pytest.mark.parametrize(
    ("meanwhile", "asked"),
    [
        pytest.param(nothing, False, id="of which nothing was written is not asked for"),
        pytest.param(
            lambda story: story.somebody("nodes", "gpu-3", node("gpu-3", labels=MARK)),
            True,
            id="that bears the policy's mark is asked for",
        ),
        pytest.param(
            lambda story: publish(story, "gpu-3", "uid-gpu-3"), True, id="of which something was published is asked for"
        ),
        pytest.param(
            lambda story: publish(story, "gpu-3", "uid-of-the-one-before"),
            False,
            id="of whose predecessor something was published is not asked for",
        ),
    ],
)
def test_a_node_that_came_during_the_run_and(meanwhile: Callable[[Story], None], asked: bool) -> None:
    story = Story()
    change(story, "gpu-1", "gpu-2")
    story.somebody("nodes", "gpu-3", node("gpu-3"))
    meanwhile(story)
    say_ready(story)
    said = [text for text in story.wrong() if text.startswith("S9: ")]
    assert (len(said), "gpu-3" in "".join(said)) == (int(asked), asked)


def test_a_node_that_was_there_before_the_run_is_asked_for_though_nothing_was_written_of_it() -> None:
    story = Story()
    change(story, "gpu-1")
    say_ready(story)
    assert any("Ready while gpu-2 offers" in text for text in story.wrong())


def test_a_node_that_was_made_again_in_the_run_has_just_come() -> None:
    story = Story()
    change(story, "gpu-1", "gpu-2")
    story.somebody("nodes", "gpu-2", None)
    again = node("gpu-2")
    again["metadata"]["uid"] = "uid-of-the-next-one"
    story.somebody("nodes", "gpu-2", again)
    say_ready(story)
    assert story.wrong() == []


def test_what_changed_while_the_write_was_on_its_way_could_not_be_known() -> None:
    story = Story()
    change(story, "gpu-1", "gpu-2")
    sent = story.version
    story.somebody("nodes", "gpu-2", node("gpu-2", labels=MARK))
    say_ready(story)
    story.calls[-1] = replace(story.calls[-1], since=sent)
    assert story.wrong() == []


def test_what_came_right_while_the_write_was_on_its_way_was_told_by_a_watch() -> None:
    story = Story()
    change(story, "gpu-1")
    sent = story.version
    story.somebody("nodes", "gpu-2", node("gpu-2", labels=MARK, offers=SLICED))
    say_ready(story)
    story.calls[-1] = replace(story.calls[-1], since=sent)
    assert story.wrong() == []


def test_what_was_wrong_in_one_way_and_then_in_another_was_wrong_all_the_time() -> None:
    story = Story()
    change(story, "gpu-1")
    sent = story.version
    story.somebody("nodes", "gpu-2", node("gpu-2", labels=MARK, offers={"nvidia.com/gpu": "1"}))
    say_ready(story)
    story.calls[-1] = replace(story.calls[-1], since=sent)
    assert ["Ready while gpu-2 offers" in text for text in story.wrong()] == [True]


def test_when_a_run_has_come_to_rest_every_node_is_asked_for() -> None:
    story = Story()
    change(story, "gpu-1", "gpu-2")
    say_ready(story)
    assert find_wrong_end(story.log()) == []
    story.somebody("nodes", "gpu-3", node("gpu-3"))
    assert story.wrong() == []
    assert ["gpu-3" in text for text in find_wrong_end(story.log())] == [True]


def test_who_is_not_ready_at_the_end_promises_nothing() -> None:
    story = Story()
    story.take("gpu-1")
    assert find_wrong_end(story.log()) == []

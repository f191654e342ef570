"""A run is measured at two undisturbed ones: what they disagree on is chance, and nothing else is.
And what the operator can be asked to know when it says Ready=True (docs/design/faults.md#s9)."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.faults.invariants import Cost, find_wrong_end
from tests.faults.oracle import ASKING, FaultOutcome, Reference, differences, without_way
from tests.faults.test_invariants import Story, node

from gpusharing.api import names


def outcome(state: Any, writes: int = 10, *, evictions: int = 0, asked: int = 2, **more: Any) -> FaultOutcome:
    acting = Counter({"PATCH nodes": writes, ASKING: asked, "POST pods/eviction": evictions})
    return FaultOutcome(state, Cost(acting, evictions), **more)


END = {"node": {"cordoned": False, "waited": 1}}
REFERENCE = Reference((outcome(END, 9), outcome({"node": {"cordoned": False, "waited": 2}}, 10)), 9)


def complaints(run: FaultOutcome, faults: int = 1, restarts: int = 0) -> list[str]:
    return list(REFERENCE.complaints(run, faults=faults, restarts=restarts))


def test_what_differs_between_undisturbed_runs_is_no_difference() -> None:
    assert complaints(outcome({"node": {"cordoned": False, "waited": 7}}, 12)) == []


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (outcome({"node": {"cordoned": True, "waited": 1}}), "another end: .node.cordoned: false -> true"),
        (outcome({"node": {"cordoned": False, "waited": 1}, "more": 1}), "another end: .more: null -> 1"),
        (outcome(END, 13), "3 extra writes for 1 faults: {'PATCH nodes': 3}"),
        (outcome(END, evictions=1), "+1 evictions"),
        (outcome(END, twice=("uid-1",)), "evicted twice: uid-1"),
        (outcome(END, restarts=1), "1 restarts instead of 0"),
        (outcome(END, wrong=("S2: busy",)), "S2: busy"),
        (outcome(END, asked=11), "the agent was asked 11 times, undisturbed 2"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_a_run_must_not_do_is_told(run: FaultOutcome, said: str) -> None:
    assert complaints(run)[0] == said


def test_each_fault_may_cost_two_writes() -> None:
    assert complaints(outcome(END, 14), faults=2) == []
    assert complaints(outcome(END, 15), faults=2) != []
    assert REFERENCE.extra(outcome(END, 8)) == -2


def changed(*writes: int, labels: int = 0) -> FaultOutcome:
    """A run with so many writes in each of its changes, and so many that are part of none."""
    acting = Counter({"PATCH nodes": sum(writes) + labels})
    return FaultOutcome(END, Cost(acting, transitions=Counter({(f"gpu-{n}", "op"): w for n, w in enumerate(writes)})))


TOGETHER = changed(4, 4, 4)
"""Three nodes, each with another point of no return in its middle."""


@pytest.mark.parametrize(
    ("run", "nodes", "complains"),
    [
        pytest.param(changed(4, 3, 3, 3, 3), 3, False, id="two had ended"),
        pytest.param(changed(4, 3, 3, 3, 3), 0, True, id="nobody wanted anything else"),
        pytest.param(changed(4, 5, 4, 3, 3), 3, True, id="one wrote more in its change"),
        pytest.param(changed(*[3] * 8), 3, True, id="there were more changes than nodes"),
        pytest.param(changed(4, 4, 4, labels=5), 3, False, id="three gave back their labels"),
        pytest.param(changed(4, 4, 4, labels=6), 3, True, id="and more than these"),
    ],
)
def test_nodes_that_had_ended_before_people_wanted_something_else_begin_anew(
    run: FaultOutcome, nodes: int, complains: bool
) -> None:
    reference = Reference((TOGETHER, TOGETHER), 12)
    assert bool(list(reference.complaints(run, faults=1, restarts=0, nodes=nodes))) is complains


def ended(planned: str, offered: dict[str, str], layout: str = "7x1g.10gb") -> Any:
    verified = json.dumps({"layout": layout, "planned": planned})
    node = {"annotations": {names.ANNOTATION_VERIFIED: verified}, "allocatable": offered}
    return without_way({"nodes": {"gpu-1": node, "gone": None}, "claims": {}})


def test_two_ways_to_one_end_are_no_difference_and_another_end_is() -> None:
    straight = ended("Reset", {"nvidia.com/gpu": "7"})
    around = ended("GPUPods", {"nvidia.com/gpu": "7", "nvidia.com/mig-3g.40gb": "0"})
    assert list(differences(straight, around)) == []
    for other in (
        ended("Reset", {"nvidia.com/gpu": "6"}),
        ended("Reset", {}),
        ended("Reset", {"nvidia.com/gpu": "7"}, "1x7g"),
    ):
        assert len(list(differences(straight, other))) == 1


@pytest.mark.parametrize(
    ("finalizing", "joins", "complains"), [(6, 1, False), (6, 0, True), (7, 1, True), (8, 1, True)]
)
def test_a_policy_that_had_come_to_rest_before_a_node_joined_takes_its_finalizer_anew(
    finalizing: int, joins: int, complains: bool
) -> None:
    def run(writes: int) -> FaultOutcome:
        return FaultOutcome(END, Cost(Counter({"PATCH gpusharingpolicies": writes})))

    reference = Reference((run(2), run(2)), 12)
    told = list(reference.complaints(run(finalizing), faults=1, restarts=0, joins=joins))
    assert bool(told) is complains


JSON = dict[str, Any]
MARK = {"gpusharing.dev/policy": "pool-b"}
SLICED = {"nvidia.com/gpu": "4"}


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
    story.change("gpu-1", "gpu-2")
    story.somebody("nodes", "gpu-3", node("gpu-3"))
    meanwhile(story)
    story.say_ready()
    said = [text for text in story.wrong() if text.startswith("S9: ")]
    assert (len(said), "gpu-3" in "".join(said)) == (int(asked), asked)


def test_a_node_that_was_there_before_the_run_is_asked_for_though_nothing_was_written_of_it() -> None:
    story = Story()
    story.change("gpu-1")
    story.say_ready()
    assert any("Ready while gpu-2 offers" in text for text in story.wrong())


def test_a_node_that_was_made_again_in_the_run_has_just_come() -> None:
    story = Story()
    story.change("gpu-1", "gpu-2")
    story.somebody("nodes", "gpu-2", None)
    again = node("gpu-2")
    again["metadata"]["uid"] = "uid-of-the-next-one"
    story.somebody("nodes", "gpu-2", again)
    story.say_ready()
    assert story.wrong() == []


@pytest.mark.parametrize(
    ("changed", "offers", "wrong"),
    [
        pytest.param(("gpu-1", "gpu-2"), {"nvidia.com/gpu": "2"}, False, id="what changed then could not be known"),
        pytest.param(("gpu-1",), SLICED, False, id="what came right then was told by a watch"),
        pytest.param(
            ("gpu-1",), {"nvidia.com/gpu": "1"}, True, id="what was wrong in another way was wrong all the time"
        ),
    ],
)
def test_while_the_write_was_on_its_way(changed: tuple[str, ...], offers: dict[str, str], wrong: bool) -> None:
    story = Story()
    story.change(*changed)
    sent = story.version
    story.somebody("nodes", "gpu-2", node("gpu-2", labels=MARK, offers=offers))
    story.say_ready()
    story.calls[-1] = replace(story.calls[-1], since=sent)
    assert ["Ready while gpu-2 offers" in text for text in story.wrong()] == [True] * wrong


def test_when_a_run_has_come_to_rest_every_node_is_asked_for() -> None:
    story = Story()
    story.change("gpu-1", "gpu-2")
    story.say_ready()
    assert find_wrong_end(story.log()) == []
    story.somebody("nodes", "gpu-3", node("gpu-3"))
    assert story.wrong() == []
    assert ["gpu-3" in text for text in find_wrong_end(story.log())] == [True]


def test_who_is_not_ready_at_the_end_promises_nothing() -> None:
    story = Story()
    story.take("gpu-1")
    assert find_wrong_end(story.log()) == []

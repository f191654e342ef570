"""What a disturbed run is compared with: two runs that nothing disturbed.
Where these two end differently is chance, and is masked; everything else must be the same. Their writes are the floor."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.faults.invariants import Cost

from gpusharing.api import names

ALLOWED = 2
"""Writes that one fault may cost beyond the floor (docs/design/faults.md#s8)."""
ASKING = "PATCH gpunodes"
FINALIZING = "PATCH gpusharingpolicies"
MOST_ASKED = 8
"""On a busy machine a reading is soon too old to prove anything, and the agent is asked anew."""
AGAIN = 2
"""Writes of a node that had ended a change before people wanted another one: its release, and the next fence. Of a policy that had come to rest before a node joined: without its finalizer, and with it again."""
CHANCE = "(differs between two runs that nothing disturbed)"


@dataclass(frozen=True)
class FaultOutcome:
    state: Any
    """Everything that lasts, with names and times masked."""
    cost: Cost
    wrong: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    """UIDs of pods that were evicted more than once."""
    restarts: int = 0
    hits: int = 0
    reached: bool = True
    """It came to the write at which its fault begins; True without one."""


@dataclass
class Reference:
    """What two undisturbed runs agree on."""

    runs: tuple[FaultOutcome, FaultOutcome]
    writes: int
    """Writes of the second one that count as points to disturb."""
    state: Any = field(init=False)

    def __post_init__(self) -> None:
        one, two = self.runs
        self.state = common(one.state, two.state)

    @property
    def floor(self) -> Counter[str]:
        return max((acting(run.cost) for run in self.runs), key=Counter.total)

    def extra(self, run: FaultOutcome) -> int:
        return acting(run.cost).total() - self.floor.total()

    def extra_evictions(self, run: FaultOutcome) -> int:
        return run.cost.evictions - max(one.cost.evictions for one in self.runs)

    def again(self, run: FaultOutcome, nodes: int) -> int:
        """Writes of nodes that were quicker than people: they ended the first change, and began anew, or gave back the labels of a policy that had gone. `nodes`: how many may have been."""
        changes = len(run.cost.transitions) - max(len(one.cost.transitions) for one in self.runs)
        labels = label_writes(run.cost) - max(label_writes(one.cost) for one in self.runs)
        return AGAIN * min(nodes, max(0, changes)) + min(nodes, max(0, labels))

    def rested(self, run: FaultOutcome, joins: int) -> int:
        """Writes of policies that had nothing left to do before a node joined: the finalizer goes, and comes again. `joins`: how many nodes did."""
        more = run.cost.acting[FINALIZING] - max(one.cost.acting[FINALIZING] for one in self.runs)
        return AGAIN * min(joins, max(0, more) // AGAIN)

    def complaints(
        self, run: FaultOutcome, *, faults: int, restarts: int, nodes: int = 0, joins: int = 0
    ) -> Iterator[str]:
        """What the run did that it must not. `faults`: how many befell it; `restarts`: how many had to be; `nodes`: how many were on their way when people wanted something else; `joins`: how many joined while others changed."""
        yield from run.wrong
        if run.restarts != restarts:
            yield f"{run.restarts} restarts instead of {restarts}"
        if different := ", ".join(differences(self.state, run.state)):
            yield f"another end: {different}"
        yield from (f"evicted twice: {uid}" for uid in run.twice)
        if more := self.extra_evictions(run):
            yield f"{more:+d} evictions"
        chance = self.again(run, nodes) + self.rested(run, joins)
        if (extra := self.extra(run)) > ALLOWED * max(1, faults) + chance:
            more_of = dict(acting(run.cost) - self.floor)
            yield f"{extra} extra writes for {faults} faults: {more_of}"
        asked = max(one.cost.acting[ASKING] for one in self.runs)
        if run.cost.acting[ASKING] > asked + MOST_ASKED * max(1, faults):
            yield f"the agent was asked {run.cost.acting[ASKING]} times, undisturbed {asked}"


def acting(cost: Cost) -> Counter[str]:
    return Counter({kind: count for kind, count in cost.acting.items() if kind != ASKING})


def label_writes(cost: Cost) -> int:
    return cost.acting["PATCH nodes"] - cost.transitions.total()


def without_way(state: Any) -> Any:
    """An end state without what tells how the nodes came there, which a fault may change.

    Who sees the next layout late lets the change to the one before end. Then that is what the next change was planned from, and a kubelet goes on to tell 0 of a resource that was offered once.
    """
    nodes = {name: node and _without_way(node) for name, node in state["nodes"].items()}
    return {**state, "nodes": nodes}


def _without_way(node: Mapping[str, Any]) -> Mapping[str, Any]:
    annotations = dict(node["annotations"])
    if text := annotations.get(names.ANNOTATION_VERIFIED):
        verified = {key: value for key, value in json.loads(text).items() if key != "planned"}
        annotations[names.ANNOTATION_VERIFIED] = json.dumps(verified)
    offered = {key: value for key, value in node["allocatable"].items() if value != "0"}
    return {**node, "annotations": annotations, "allocatable": offered}


def common(one: Any, two: Any) -> Any:
    """What two JSON trees agree on; CHANCE where they do not."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return {key: common(one.get(key), two.get(key)) for key in {**one, **two}}
    return one if one == two else CHANCE


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    if wanted == CHANCE:
        return
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key in sorted({**wanted, **found}):
            yield from differences(wanted.get(key), found.get(key), f"{path}.{key}")
    elif wanted != found:
        yield f"{path}: {json.dumps(wanted)} -> {json.dumps(found)}"

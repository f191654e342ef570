"""What a person may change about a rollout: each a small patch of one object, found here and sent elsewhere. Pure.

The operator reads all of them on its next pass; what they mean is its business (`api/names.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.cli.ages import counted
from gpusharing.cli.fleet import Seen, known_phase
from gpusharing.cli.troubles import Trouble
from gpusharing.kube.client import JSON, NODES, POLICIES, Resource
from gpusharing.kube.fence import parse_fence
from gpusharing.kube.raw import part, section, text, texts, whole
from gpusharing.planning.words.reasons import Reason

WAIT_FOR_RETRY = frozenset(
    {Reason.DEFERRED, Reason.NEEDS_ATTENTION, Reason.ROLLED_BACK, Reason.DRIFTED, Reason.DRIFT_RETURNED}
)
"""What a new value of the annotation ends at once (planning/way/attempts.py, planning/way/gates.py)."""
NOT_RETRIED = {str(one): one.remedy for one in (Reason.ORPHAN_FENCE, Reason.FENCE_UNREADABLE)}
"""Held until a person has looked at the fence itself, whatever else is asked (planning/way/after.py, judge.py)."""


@dataclass(frozen=True, slots=True)
class SteeringWish:
    """What was typed besides verb and name."""

    now: datetime
    hash: str = ""
    """approve: the plan that was read."""
    when_paused: str = ""
    """pause: what becomes of nodes in flight; empty: what the policy says."""
    undo: bool = False
    """skip: take it back."""
    halted: tuple[str, ...] = ()
    """resume: the nodes of the policy that failures keep from starting."""
    stands: Seen | None = None
    """retry: how the operator sees the node; None: that may not be read."""


@dataclass(frozen=True, slots=True)
class Change:
    """One patch."""

    resource: Resource
    name: str
    body: JSON
    """A JSON merge patch."""
    means: str
    """What follows from it, in a sentence."""
    moves: bool = False
    """Pods may be evicted because of it: it is asked for once more."""

    def as_data(self, *, done: bool) -> dict[str, Any]:
        """For programs."""
        return {"kind": self.resource.plural, "name": self.name, "patch": self.body, "done": done}


def approve(policy: JSON, wish: SteeringWish) -> Change:
    """Let the plan of now be carried out. Raises Trouble where there is none, or another than was read."""
    name, plan = text(policy, "metadata", "name"), section(policy, "status", "plan")
    _fresh(policy)
    if part(policy, "spec", "rollout", "approval") != "Manual":
        raise Trouble(f"{name} needs no approval: spec.rollout.approval is not Manual")
    found = text(plan, "hash")
    if not found:
        raise Trouble(f"{name} has no plan: nothing is to be changed")
    if wish.hash and wish.hash != found:
        raise Trouble(
            f"the plan of {name} is {found} now, not {wish.hash}: read it again (kubectl gpusharing plan {name})"
        )
    if texts(section(policy, "metadata", "annotations")).get(names.ANNOTATION_APPROVE) == found:
        raise Trouble(f"plan {found} of {name} is approved already")
    nodes, pods = counted(whole(plan, "nodeCount"), "node"), counted(whole(plan, "pods"), "pod")
    means = f"plan {found} may be carried out: class {text(plan, 'disruption')}, {nodes}, {pods} to leave"
    return Change(POLICIES, name, _annotation(names.ANNOTATION_APPROVE, found), means, moves=not wish.hash)


def pause(policy: JSON, wish: SteeringWish) -> Change:
    """Start no further node. Raises Trouble where that is so already."""
    name, rollout = text(policy, "metadata", "name"), section(policy, "spec", "rollout")
    when = wish.when_paused or text(rollout, "whenPaused") or "Finish"
    if rollout.get("paused") is True and when == (text(rollout, "whenPaused") or "Finish"):
        raise Trouble(f"{name} is paused already (whenPaused: {when})")
    body: JSON = {"paused": True}
    if wish.when_paused:
        body["whenPaused"] = wish.when_paused
    flight = {
        "Finish": "nodes in flight go on to their end",
        "Hold": "nodes in flight that are before the point of no return wait, cordoned, and no pod is evicted",
        "Abort": "nodes in flight that are before the point of no return are given back",
    }
    return Change(
        POLICIES, name, {"spec": {"rollout": body}}, f"no further node starts; {flight.get(when, when)}"
    )


def resume(policy: JSON, wish: SteeringWish) -> Change:
    """End a pause, or else let a rollout go on that failures have halted. Raises Trouble where neither is so."""
    name, generation = text(policy, "metadata", "name"), whole(policy, "metadata", "generation")
    if part(policy, "spec", "rollout", "paused") is True:
        means = "nodes start again, and earlier failures no longer count"
        return Change(POLICIES, name, {"spec": {"rollout": {"paused": False}}}, means, moves=True)
    _fresh(policy)
    if not wish.halted:
        raise Trouble(f"{name} is neither paused nor halted by failures")
    nodes = counted(len(wish.halted), "node")
    means = f"{nodes} may start although others failed; those stay as they are until a retry"
    return Change(POLICIES, name, _annotation(names.ANNOTATION_RESUME, str(generation)), means, moves=True)


def retry(node: JSON, wish: SteeringWish) -> Change:
    """Try a failed or deferred node again. Raises Trouble where the operator would not do that."""
    name, value = text(node, "metadata", "name"), wish.now.strftime("%Y%m%dT%H%M%SZ")
    means = (
        "the node is tried again, by the rules of its policy: it is proven idle first, which may evict pods"
    )
    seen = wish.stands
    if seen is not None and (remedy := NOT_RETRIED.get(seen.reason)) is not None:
        raise Trouble(
            f"there is nothing to try again on {name}: it is {seen.phase} ({seen.reason}). {remedy}"
        )
    if seen is not None and (phase := known_phase(seen.phase)) is not None and not _goes_back(node):
        stands = f"{phase} ({seen.reason})"
        if phase not in (Phase.FAILED, Phase.BLOCKED) and seen.reason not in WAIT_FOR_RETRY:
            raise Trouble(f"there is nothing to try again on {name}: it is {stands}{_instead(seen)}")
        if phase is Phase.BLOCKED and seen.reason not in WAIT_FOR_RETRY:
            means += f"; it is {stands}, and begins when that is over"
    return Change(NODES, name, _annotation(names.ANNOTATION_RETRY, value), means, moves=True)


def _goes_back(node: JSON) -> bool:
    """After a failure the node is on its way to what was proven on it last: a retry turns it round."""
    recorded = texts(section(node, "metadata", "annotations")).get(names.ANNOTATION_FENCE, "")
    fence, _ = parse_fence(recorded) if recorded else (None, "")
    return fence is not None and fence.rolls_back


def _instead(seen: Seen) -> str:
    """What a person does about a node for which a retry does nothing; empty: nothing is to be done."""
    if seen.reason == Reason.SKIP_LABEL:
        return f". To let changes begin there: kubectl gpusharing skip {seen.name} --undo"
    phase = known_phase(seen.phase)
    if phase is not None and phase.in_flight:
        return f", and its change goes on. To see what it waits for: kubectl gpusharing why {seen.name}"
    return ""


def abort(node: JSON, wish: SteeringWish) -> Change:
    """Give up the change that is in flight. Raises Trouble where none is, or it cannot be given up any more."""
    name = text(node, "metadata", "name")
    recorded = texts(section(node, "metadata", "annotations")).get(names.ANNOTATION_FENCE)
    if recorded is None:
        raise Trouble(f"no change is in flight on {name}")
    fence, damage = parse_fence(recorded)
    if fence is None:
        raise Trouble(f"the fence of {name} cannot be read: {damage}")
    if fence.stage == "yielded":
        raise Trouble(
            f"somebody else works on {name}, and no change goes on: it is given back when they are done"
        )
    if fence.stage != "fenced":
        raise Trouble(
            f"{name} is past the point of no return: only a proven layout gives it back; edit the policy for another"
        )
    return Change(
        NODES, name, _annotation(names.ANNOTATION_ABORT, fence.op), "the node is given back as it was"
    )


def skip(node: JSON, wish: SteeringWish) -> Change:
    """Begin no change on a node, or begin them again. Raises Trouble where that is so already."""
    name = text(node, "metadata", "name")
    skipped = texts(section(node, "metadata", "labels")).get(names.LABEL_SKIP) == "true"
    if skipped is not wish.undo:
        raise Trouble(f"{name} is {'skipped already' if skipped else 'not skipped'}")
    body = {"metadata": {"labels": {names.LABEL_SKIP: None if wish.undo else "true"}}}
    if wish.undo:
        return Change(NODES, name, body, "changes may start on this node again", moves=True)
    return Change(
        NODES,
        name,
        body,
        "no change starts on this node; one in flight goes on, and the node still counts in its pool",
    )


def decided_on(raw: JSON) -> tuple[str, int, str]:
    """What a person's word is about: this very object, the generation of a policy, the change of a node and how far it
    is."""
    recorded = texts(section(raw, "metadata", "annotations")).get(names.ANNOTATION_FENCE, "")
    fence, damage = parse_fence(recorded) if recorded else (None, "")
    stands = f"{fence.op} {fence.stage}" if fence is not None else damage
    return text(raw, "metadata", "uid"), whole(raw, "metadata", "generation"), stands


def as_seen(body: JSON, raw: JSON) -> JSON:
    """The patch, for the object as it was read: one that was written since is refused (Conflict)."""
    metadata = {**section(body, "metadata"), "resourceVersion": text(raw, "metadata", "resourceVersion")}
    return {**body, "metadata": metadata}


def _annotation(key: str, value: str) -> JSON:
    return {"metadata": {"annotations": {key: value}}}


def _fresh(policy: JSON) -> None:
    """Raises Trouble where the operator has not looked at the present generation yet."""
    seen, now = whole(policy, "status", "observedGeneration"), whole(policy, "metadata", "generation")
    if seen < now:
        name = text(policy, "metadata", "name")
        raise Trouble(f"the operator has not looked at generation {now} of {name} yet; try again in a moment")


STEERING: Mapping[str, tuple[Resource, Callable[[JSON, SteeringWish], Change]]] = {
    "approve": (POLICIES, approve),
    "pause": (POLICIES, pause),
    "resume": (POLICIES, resume),
    "retry": (NODES, retry),
    "abort": (NODES, abort),
    "skip": (NODES, skip),
}
"""By verb: what it is about, and how its patch is found."""

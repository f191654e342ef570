"""The verbs that steer a rollout, as one table: which object each patches, how, what follows, and what it refuses.

The operator reads these patches on its next pass; what they mean is its business (`api/names.py`). `steer.py` carries
a row out.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.cli.pools.fleet import Seen, known_phase, read_node
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.troubles import Trouble, sentence
from gpusharing.kube.client import GPUNODES, JSON, NODES, POLICIES, Resource
from gpusharing.kube.errors import Forbidden, KubeError, NotFound
from gpusharing.kube.fence import read_fence
from gpusharing.kube.raw import part, section, text, texts, whole
from gpusharing.planning.pools.resuming import read_value
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason

_RETRIED = frozenset(reason for reason in Reason if Mark.RETRIED in reason.marks)
_NOT_RETRIED = {str(reason): reason.remedy for reason in Reason if Mark.NOT_RETRIED in reason.marks}
IN_FLIGHT = {
    "Finish": "nodes in flight go on to their end",
    "Hold": "nodes in flight that are before the point of no return wait, cordoned, and no pod is evicted",
    "Abort": "nodes in flight that are before the point of no return are given back",
}
"""What a pause does to nodes in flight, by `whenPaused`."""


@dataclass(frozen=True, slots=True)
class SteeringRequest:
    """What was typed besides verb and name, and what the verb has read for it."""

    now: datetime
    """When it was typed."""
    hash: str = ""
    """approve: the plan that was read."""
    when_paused: str = ""
    """pause: what happens to nodes in flight; empty: what the policy says."""
    undo: bool = False
    """skip: take it back."""
    gpunodes: tuple[Seen, ...] = ()
    """resume: the nodes of the policy that failures keep from starting. retry: the node, as the operator sees it;
    empty if the user may not read that."""


@dataclass(frozen=True, slots=True)
class Change:
    """One patch of the object that the verb is about."""

    body: JSON
    """A JSON merge patch."""
    means: str
    """What follows from it, in a sentence."""
    moves: bool = False
    """Pods may be evicted because of it: it needs confirmation."""


@dataclass(frozen=True, slots=True)
class SteeringVerb:
    """One row of the table."""

    resource: Resource
    """The kind of the object that is patched."""
    find: Callable[[JSON, SteeringRequest], Change]
    """Returns the patch of an object. Raises Trouble when it would have no effect."""
    lasts: bool = False
    """Whether a person may write it before the operator is installed, which then honors it."""
    read: Callable[[Session, str], Awaitable[tuple[Seen, ...]]] | None = None
    """Reads the GPUNodes that `find` needs for the object of this name; None if it needs none. Raises Trouble."""


def _approve(policy: JSON, request: SteeringRequest) -> Change:
    """Let the current plan be carried out. Refused when there is none, or when it is not the one that was read."""
    name, plan = text(policy, "metadata", "name"), section(policy, "status", "plan")
    _refuse_unseen(policy)
    if part(policy, "spec", "rollout", "approval") != "Manual":
        raise Trouble(f"{name} needs no approval: spec.rollout.approval is not Manual")
    current = text(plan, "hash")
    if not current:
        raise Trouble(f"{name} has no plan: there is nothing to change")
    if request.hash and request.hash != current:
        raise Trouble(
            f"the plan of {name} is {current} now, not {request.hash}: read it again (kubectl gpusharing plan {name})"
        )
    if texts(section(policy, "metadata", "annotations")).get(names.ANNOTATION_APPROVE) == current:
        raise Trouble(f"plan {current} of {name} is approved already")
    nodes, pods = counted(whole(plan, "nodeCount"), "node"), counted(whole(plan, "pods"), "pod")
    means = f"plan {current} may be carried out: class {text(plan, 'disruption')}, {nodes}, {pods} to leave"
    return Change(_annotation(names.ANNOTATION_APPROVE, current), means, moves=not request.hash)


def _pause(policy: JSON, request: SteeringRequest) -> Change:
    """Start no further node. Refused when the policy is paused already."""
    name, rollout = text(policy, "metadata", "name"), section(policy, "spec", "rollout")
    before = text(rollout, "whenPaused") or "Finish"
    when = request.when_paused or before
    if rollout.get("paused") is True and when == before:
        raise Trouble(f"{name} is paused already (whenPaused: {when})")
    body: JSON = {"paused": True}
    if request.when_paused:
        body["whenPaused"] = request.when_paused
    return Change({"spec": {"rollout": body}}, f"no further node starts; {IN_FLIGHT.get(when, when)}")


def _resume(policy: JSON, request: SteeringRequest) -> Change:
    """End a pause, or else let a rollout go on that failures have halted. Refused when the policy is neither paused nor
    halted."""
    name, generation = text(policy, "metadata", "name"), whole(policy, "metadata", "generation")
    if part(policy, "spec", "rollout", "paused") is True:
        means = "nodes start again, and earlier failures no longer count"
        return Change({"spec": {"rollout": {"paused": False}}}, means, moves=True)
    _refuse_unseen(policy)
    if not request.gpunodes:
        raise Trouble(f"{name} is neither paused nor halted by failures")
    means = (
        f"{counted(len(request.gpunodes), 'node')} may start although others failed, and further failures halt it"
        " again; those that failed stay as they are until a retry"
    )
    # What the operator asks for may be of an earlier generation that it has judged the nodes by.
    asked = read_value(request.gpunodes[0].message)
    value = asked if asked.partition(".")[0] == str(generation) else str(generation)
    return Change(_annotation(names.ANNOTATION_RESUME, value), means, moves=True)


def _retry(node: JSON, request: SteeringRequest) -> Change:
    """Try a failed or deferred node again. Refused where the operator would not do that."""
    means = (
        "the node is tried again, by the rules of its policy: it is proven idle first, which may evict pods"
    )
    if request.gpunodes:
        means += _find_wait(node, request.gpunodes[0])
    value = request.now.strftime("%Y%m%dT%H%M%SZ")
    return Change(_annotation(names.ANNOTATION_RETRY, value), means, moves=True)


def _find_wait(node: JSON, seen: Seen) -> str:
    """Return what the retry of a node waits for, as the end of a sentence; empty if it begins at once. Raises Trouble
    where the operator would not try the node again."""
    stands = f"{seen.phase} ({seen.reason})"
    refusal = f"there is nothing to try again on {seen.name}: it is {stands}"
    if (remedy := _NOT_RETRIED.get(seen.reason)) is not None:
        raise Trouble(f"{refusal}. {remedy}")
    fence, _ = read_fence(annotations_of(node))
    phase = known_phase(seen.phase)
    # After a failure, a retry reverses the way back to what was proven on the node last.
    if phase is None or seen.reason in _RETRIED or (fence is not None and fence.rolls_back):
        return ""
    if phase is Phase.BLOCKED:
        return f"; it is {stands}, and begins when that is over"
    if phase is Phase.FAILED:
        return ""
    if seen.reason == Reason.SKIP_LABEL:
        refusal += f". To let changes begin there: kubectl gpusharing skip {seen.name} --undo"
    elif phase.in_flight:
        refusal += f", and its change goes on. To see what it waits for: kubectl gpusharing why {seen.name}"
    raise Trouble(refusal)


def _abort(node: JSON, request: SteeringRequest) -> Change:
    """Give up the change that is in flight. Refused where none is, or it cannot be given up any more."""
    name = text(node, "metadata", "name")
    fence, damage = read_fence(annotations_of(node))
    if damage:
        raise Trouble(f"the fence of {name} cannot be read: {damage}")
    if fence is None:
        raise Trouble(f"no change is in flight on {name}")
    if fence.stage == "yielded":
        raise Trouble(
            f"somebody else is working on {name}, and its change has stopped: the node is given back when"
            " they are done"
        )
    if fence.stage != "fenced":
        raise Trouble(
            f"{name} is past the point of no return: only a proven layout gives it back; to choose another layout,"
            " edit the policy"
        )
    return Change(_annotation(names.ANNOTATION_ABORT, fence.op), "the node is given back as it was")


def _skip(node: JSON, request: SteeringRequest) -> Change:
    """Keep changes from starting on a node, or let them start again. Refused when that is the case already."""
    name = text(node, "metadata", "name")
    skipped = texts(section(node, "metadata", "labels")).get(names.LABEL_SKIP) == "true"
    if skipped is not request.undo:
        raise Trouble(f"{name} is {'skipped already' if skipped else 'not skipped'}")
    body = {"metadata": {"labels": {names.LABEL_SKIP: None if request.undo else "true"}}}
    if request.undo:
        return Change(body, "changes may start on this node again", moves=True)
    means = "no change starts on this node; one in flight goes on, and the node still counts in its pool"
    return Change(body, means)


async def _read_halted(session: Session, policy: str) -> tuple[Seen, ...]:
    """Return the nodes of a policy that wait for a resume: the policy does not list them itself."""
    nodes = map(read_node, await session.all(GPUNODES))
    return tuple(seen for seen in nodes if (seen.policy, seen.reason) == (policy, Reason.HALTED))


async def _read_gpunode(session: Session, node: str) -> tuple[Seen, ...]:
    """Return how the operator sees a node; empty if the user may not read that. Raises Trouble where the operator has
    nothing to do: every node with GPUs or a policy has a GPUNode."""
    try:
        return (read_node(await session.client.get(GPUNODES, node)),)
    except Forbidden:
        return ()
    except NotFound as error:
        raise Trouble(
            f"there is nothing to try again on {node}: it has no GPUNode, so the operator changes no GPUs there"
        ) from error
    except KubeError as error:
        raise Trouble(sentence(error, session.where)) from error


STEERING: Mapping[str, SteeringVerb] = {
    "approve": SteeringVerb(POLICIES, _approve),
    "pause": SteeringVerb(POLICIES, _pause, lasts=True),
    "resume": SteeringVerb(POLICIES, _resume, read=_read_halted),
    "retry": SteeringVerb(NODES, _retry, read=_read_gpunode),
    "abort": SteeringVerb(NODES, _abort),
    "skip": SteeringVerb(NODES, _skip, lasts=True),
}


def annotations_of(node: JSON) -> Mapping[str, str]:
    """Return the annotations of an object; those that are no text are left out."""
    return texts(section(node, "metadata", "annotations"))


def _annotation(key: str, value: str) -> JSON:
    return {"metadata": {"annotations": {key: value}}}


def _refuse_unseen(policy: JSON) -> None:
    """Raise Trouble where the operator has not looked at the present generation yet."""
    seen, now = whole(policy, "status", "observedGeneration"), whole(policy, "metadata", "generation")
    if seen < now:
        name = text(policy, "metadata", "name")
        raise Trouble(f"the operator has not looked at generation {now} of {name} yet; try again in a moment")

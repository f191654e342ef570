"""The verbs that steer a rollout, as one table: which object a verb patches, how, what follows, and when it refuses.

The operator reads the patches on its next pass; `api/names.py` says what they mean. `steer.py` carries out the verbs.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#point-of-no-return.
"""

from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.kube.client import GPUNODES, JSON, NODES, POLICIES, Resource
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.fence import read_fence
from gpusharing.kube.raw import part, section, text, texts, whole
from gpusharing.planning.pools.holds import read_value
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason
from kubectl_gpusharing.pools.fleet import NodeStatus, State, read_node
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import Trouble, explained

_RETRIED = frozenset(reason for reason in Reason if Mark.RETRIED in reason.marks)
_NOT_RETRIED = {str(reason): reason.remedy for reason in Reason if Mark.NOT_RETRIED in reason.marks}
IN_FLIGHT = {
    "Finish": "changes in flight are completed",
    "Hold": "nodes whose change has not passed the point of no return stay cordoned and wait, and no pod is evicted",
    "Abort": "nodes whose change has not passed the point of no return are returned to service as they were",
}
"""What a pause does to nodes in flight, for each value of `whenPaused`."""


@dataclass(frozen=True, slots=True)
class SteeringRequest:
    """What the user typed in addition to the verb and the name, and the objects that the verb has read."""

    now: datetime
    """When the user typed the command."""
    typed: Namespace = field(default_factory=Namespace)
    """The flags of the verb. For approve, `hash` is that of the plan that the user has read; empty to approve the
    current plan. For pause, `when_paused` is the new value of `whenPaused`, which says what happens to nodes in flight;
    empty to keep the present value. For skip, `undo` says whether to remove the label instead."""
    gpunodes: tuple[NodeStatus, ...] = ()
    """For resume: the nodes of the policy that may not start because others failed. For retry: the status of the node;
    empty if the user may not read it."""


@dataclass(frozen=True, slots=True)
class Change:
    """A patch of the object that the verb acts on, and its consequences."""

    body: JSON
    """A JSON merge patch."""
    means: str
    """The consequences of the patch, as a sentence without a period."""
    moves: bool = False
    """Whether pods may be evicted because of the patch, so that the user has to confirm it."""


@dataclass(frozen=True, slots=True)
class SteeringVerb:
    """One row of the table of steering verbs."""

    resource: Resource
    """The kind of the object that is patched."""
    find: Callable[[JSON, SteeringRequest], Change]
    """Returns the patch for an object. Raises Trouble if it would have no effect."""
    lasts: bool = False
    """Whether an operator that is installed later honors the patch."""
    read: Callable[[Session, str], Awaitable[tuple[NodeStatus, ...]]] | None = None
    """Reads the GPUNodes that `find` needs for the object of this name; None if it needs none. Raises Trouble."""


def _approve(policy: JSON, request: SteeringRequest) -> Change:
    """Return the patch that approves the current plan by writing its hash into an annotation. It needs a confirmation
    unless the request names the plan's hash. Raises Trouble if the operator has not processed the policy's generation
    yet, if the policy needs no approval (`spec.rollout.approval` is not Manual) or has no plan with a hash, if the
    annotation has the hash already, or if the request names another hash."""
    name, plan = text(policy, "metadata", "name"), section(policy, "status", "plan")
    _refuse_unseen(policy)
    if part(policy, "spec", "rollout", "approval") != "Manual":
        raise Trouble(f"{name} needs no approval: spec.rollout.approval is not Manual")
    current = text(plan, "hash")
    if not current:
        raise Trouble(f"{name} has no plan, because no node needs to change: there is nothing to approve")
    expected = request.typed.hash
    if expected and expected != current:
        raise Trouble(
            f"the plan for {name} is now {current}, not {expected}. Review it again: kubectl gpusharing plan {name}"
        )
    if texts(section(policy, "metadata", "annotations")).get(names.ANNOTATION_APPROVE) == current:
        raise Trouble(f"plan {current} for {name} has already been approved")
    nodes, pods = counted(whole(plan, "nodeCount"), "node"), counted(whole(plan, "pods"), "pod")
    means = (
        f"the operator may carry out plan {current}, disruption class {text(plan, 'disruption')}: {nodes} will change"
        f" and {pods} will be evicted"
    )
    return Change(_annotation(names.ANNOTATION_APPROVE, current), means, moves=not expected)


def _pause(policy: JSON, request: SteeringRequest) -> Change:
    """Return the patch that pauses the policy; it needs no confirmation. The patch includes `whenPaused` only if the
    request names a value. A policy that sets none counts as having `Finish`. Raises Trouble if the policy is paused
    already and its `whenPaused` would stay the same."""
    name, rollout = text(policy, "metadata", "name"), section(policy, "spec", "rollout")
    before = text(rollout, "whenPaused") or "Finish"
    when = request.typed.when_paused or before
    if rollout.get("paused") is True and when == before:
        raise Trouble(f"{name} is already paused (whenPaused: {when})")
    body: JSON = {"paused": True}
    if request.typed.when_paused:
        body["whenPaused"] = request.typed.when_paused
    means = f"no further node will start to change; {IN_FLIGHT.get(when, when)}"
    return Change({"spec": {"rollout": body}}, means)


def _resume(policy: JSON, request: SteeringRequest) -> Change:
    """Return the patch that ends the pause of a policy or, if it is not paused, continues a rollout that was halted by
    failures. Both need a confirmation. A rollout counts as halted if `request.gpunodes` is not empty. Its patch writes
    an annotation: the value that the message of the first of these nodes asks for if it is for the policy's revision,
    else that revision alone. Raises Trouble if the policy is not paused and either its rollout is not halted or the
    operator has not processed its generation yet. With --all no GPUNodes are read, so only pauses can be ended."""
    name, revision = text(policy, "metadata", "name"), text(policy, "status", "revision")
    if part(policy, "spec", "rollout", "paused") is True:
        means = "nodes will start to change again, unless failures have halted the rollout"
        return Change({"spec": {"rollout": {"paused": False}}}, means, moves=True)
    _refuse_unseen(policy)
    if not request.gpunodes:
        raise Trouble(f"{name} is neither paused nor halted by failures: there is nothing to resume")
    means = (
        f"{counted(len(request.gpunodes), 'node')} may start although others failed; further failures halt the rollout"
        " again, and failed nodes stay as they are until you retry them"
    )
    # The value that the operator has published may be for an earlier revision, and would then have no effect.
    requested = read_value(request.gpunodes[0].message)
    value = requested if requested.partition(".")[0] == revision else revision
    return Change(_annotation(names.ANNOTATION_RESUME, value), means, moves=True)


def _retry(node: JSON, request: SteeringRequest) -> Change:
    """Return the patch that makes the operator try a failed or deferred node again: an annotation with the time of the
    request, to the second. It needs a confirmation. Raises Trouble if the operator would ignore it (`_find_wait`). If
    the status of the node may not be read, this is not checked."""
    means = (
        "the operator will retry this node under its policy's rules and drain it first, which may evict pods"
    )
    if request.gpunodes:
        means += _find_wait(node, request.gpunodes[0])
    value = request.now.strftime("%Y%m%dT%H%M%SZ")
    return Change(_annotation(names.ANNOTATION_RETRY, value), means, moves=True)


def _find_wait(node: JSON, status: NodeStatus) -> str:
    """Return what the retry of a node must wait for, as the end of a sentence, if the node is in phase Blocked. Empty
    if the retry begins at once: the node is Failed, its reason is one that a retry ends (`Mark.RETRIED`), or its fence
    says that it returns to its last proven layout. Empty too if this version does not know the node's phase. Raises
    Trouble if the operator would ignore the retry: in every other case, and before all else if the reason has
    `Mark.NOT_RETRIED`; the message then has the reason's remedy."""
    state = f"{status.phase} ({status.reason})"
    refusal = f"there is nothing to retry on {status.name}: it is {state}"
    if (remedy := _NOT_RETRIED.get(status.reason)) is not None:
        raise Trouble(f"{refusal}. {remedy}")
    fence, _ = read_fence(annotations_of(node))
    # While a failed node returns to its last proven layout, a retry makes it try the wanted layout again.
    begins = status.reason in _RETRIED or (fence is not None and fence.rolls_back)
    if begins or status.state is State.FAILED or status.phase not in (*Phase,):
        return ""
    if status.phase == Phase.BLOCKED:
        return f"; it is {state} now, and the retry will start once it is no longer {status.phase}"
    if status.reason == Reason.SKIP_LABEL:
        refusal += f". To let changes begin there: kubectl gpusharing skip {status.name} --undo"
    elif status.state is State.MOVES:
        refusal += ", and its change continues"
        refusal += f". To see what it is waiting for: kubectl gpusharing why {status.name}"
    raise Trouble(refusal)


def _abort(node: JSON, request: SteeringRequest) -> Change:
    """Return the patch that gives up the change in flight on a node, by writing the fence's operation into an
    annotation. It needs no confirmation. Raises Trouble if no change is in flight, if the change has already stopped
    because somebody else is working on the node (stage `yielded`), if the node is past the point of no return (any
    stage but `fenced`), or if the fence cannot be read."""
    name = text(node, "metadata", "name")
    fence, damage = read_fence(annotations_of(node))
    if fence is not None and fence.stage == "fenced":
        means = "the operator will abort the change and return the node to service as it was"
        return Change(_annotation(names.ANNOTATION_ABORT, fence.op), means)
    if damage:
        why = f"the fence on {name} cannot be read: {damage}"
        why += f". To see what to do: kubectl gpusharing why {name}"
    elif fence is None:
        why = f"no change is in flight on {name}: there is nothing to abort"
    elif fence.stage == "yielded":
        why = f"someone else is working on {name}, so its change has already stopped"
        why += ": the node will be returned to service when they are done"
    else:
        why = f"{name} is past the point of no return, so it returns to service only with a proven layout"
        why += "; to choose another layout, edit the policy"
    raise Trouble(why)


def _skip(node: JSON, request: SteeringRequest) -> Change:
    """Return the patch that labels a node so that no change starts there, or with `undo` removes the label. Only the
    removal needs a confirmation. Raises Trouble if the node already is as requested; a label that skips nothing
    does not count (`names.is_skip`)."""
    name = text(node, "metadata", "name")
    skipped = names.is_skip(texts(section(node, "metadata", "labels")).get(names.LABEL_SKIP))
    if skipped is not request.typed.undo:
        raise Trouble(f"{name} is {'already skipped' if skipped else 'not skipped'}")
    body = {"metadata": {"labels": {names.LABEL_SKIP: None if request.typed.undo else "true"}}}
    if request.typed.undo:
        return Change(body, "changes may start on this node again", moves=True)
    means = "no new change will start on this node; a change in flight continues, and the pool still counts the node"
    return Change(body, means)


async def _read_halted(session: Session, policy: str) -> tuple[NodeStatus, ...]:
    """Return the nodes of a policy that may not start their change because other nodes failed (Reason.HALTED), from a
    list of all GPUNodes, because the policy itself does not name them. Empty if there are none. Raises Trouble if
    GPUNodes cannot be listed."""
    nodes = map(read_node, await session.all(GPUNODES))
    return tuple(node for node in nodes if (node.policy, node.reason) == (policy, Reason.HALTED))


async def _read_gpunode(session: Session, node: str) -> tuple[NodeStatus, ...]:
    """Return the status of a node as a tuple of one, or an empty tuple if the user may not read it. Raises Trouble if
    the node has no GPUNode: every node with GPUs or a policy has one, so there is nothing to retry. Raises Trouble
    for any other KubeError too."""
    with explained(session.where), suppress(Forbidden):
        try:
            return (read_node(await session.client.get(GPUNODES, node)),)
        except NotFound as error:
            raise Trouble(
                f"there is nothing to retry on {node}: it has no GPUNode, so the operator does not manage its GPUs"
            ) from error
    return ()


STEERING: Mapping[str, SteeringVerb] = {
    "approve": SteeringVerb(POLICIES, _approve),
    "pause": SteeringVerb(POLICIES, _pause, lasts=True),
    "resume": SteeringVerb(POLICIES, _resume, read=_read_halted),
    "retry": SteeringVerb(NODES, _retry, read=_read_gpunode),
    "abort": SteeringVerb(NODES, _abort),
    "skip": SteeringVerb(NODES, _skip, lasts=True),
}


def annotations_of(node: JSON) -> Mapping[str, str]:
    """Return the annotations of an object, without those whose values are not strings; empty if it has none."""
    return texts(section(node, "metadata", "annotations"))


def _annotation(key: str, value: str) -> JSON:
    """Return the merge patch that sets one annotation."""
    return {"metadata": {"annotations": {key: value}}}


def _refuse_unseen(policy: JSON) -> None:
    """Raise Trouble if the operator has not processed the policy's current generation yet: `status.observedGeneration`
    is lower, or missing."""
    observed, now = whole(policy, "status", "observedGeneration"), whole(policy, "metadata", "generation")
    if observed < now:
        name = text(policy, "metadata", "name")
        raise Trouble(f"the operator has not processed generation {now} of {name} yet; try again in a moment")

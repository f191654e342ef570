"""The verbs that steer a rollout: which object a verb patches, how, what follows, and when it refuses.

The operator reads the patches on its next pass; `api/names.py` says what they mean. `steer.py` carries out the verbs.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.kube.client import GPUNODES, JSON
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
class Change:
    """A patch of the object that the verb acts on, and its consequences."""

    body: JSON
    """A JSON merge patch."""
    means: str
    moves: bool = False
    """Whether pods may be evicted because of the patch, so that the user has to confirm it."""


async def read_gpunodes(session: Session, verb: str, name: str) -> tuple[NodeStatus, ...]:
    """Return what the verb needs: for resume the nodes of the policy that may not start because others failed, for retry the node itself, unless the user may not read it."""
    if verb == "resume":
        nodes = map(read_node, await session.all(GPUNODES))
        return tuple(node for node in nodes if (node.policy, node.reason) == (name, Reason.HALTED))
    if verb == "retry":
        with explained(session.where), suppress(Forbidden):
            try:
                return (read_node(await session.client.get(GPUNODES, name)),)
            except NotFound as error:
                raise Trouble(
                    f"there is nothing to retry on {name}: it has no GPUNode, so the operator does not manage its GPUs"
                ) from error
    return ()


def find_change(
    typed: Namespace, verb: str, raw: JSON, gpunodes: Sequence[NodeStatus], now: datetime
) -> Change:
    """Return the patch for an object. Raises Trouble if it would have no effect."""
    match verb:
        case "approve":
            return _approve(raw, typed.hash)
        case "pause":
            return _pause(raw, typed.when_paused)
        case "resume":
            return _resume(raw, gpunodes)
        case "retry":
            means = "the operator will retry this node under its policy's rules and drain it first, which may evict pods"
            means += _find_wait(raw, gpunodes[0]) if gpunodes else ""
            return Change(
                _annotation(names.ANNOTATION_RETRY, now.strftime("%Y%m%dT%H%M%SZ")), means, moves=True
            )
        case "abort":
            return _abort(raw)
    name = text(raw, "metadata", "name")
    skipped = names.is_skip(texts(section(raw, "metadata", "labels")).get(names.LABEL_SKIP))
    if skipped is not typed.undo:
        raise Trouble(f"{name} is {'already skipped' if skipped else 'not skipped'}")
    means = "no new change will start on this node; a change in flight continues, and the pool still counts the node"
    means = "changes may start on this node again" if typed.undo else means
    body = {"metadata": {"labels": {names.LABEL_SKIP: None if typed.undo else "true"}}}
    return Change(body, means, moves=typed.undo)


def _approve(policy: JSON, expected: str) -> Change:
    name, plan = text(policy, "metadata", "name"), section(policy, "status", "plan")
    _refuse_unseen(policy)
    if part(policy, "spec", "rollout", "approval") != "Manual":
        raise Trouble(f"{name} needs no approval: spec.rollout.approval is not Manual")
    current = text(plan, "hash")
    if not current:
        raise Trouble(f"{name} has no plan, because no node needs to change: there is nothing to approve")
    if expected and expected != current:
        raise Trouble(
            f"the plan for {name} is now {current}, not {expected}. Review it again: kubectl gpusharing plan {name}"
        )
    if annotations_of(policy).get(names.ANNOTATION_APPROVE) == current:
        raise Trouble(f"plan {current} for {name} has already been approved")
    nodes, pods = counted(whole(plan, "nodeCount"), "node"), counted(whole(plan, "pods"), "pod")
    means = (
        f"the operator may carry out plan {current}, disruption class {text(plan, 'disruption')}: {nodes} will change"
        f" and {pods} will be evicted"
    )
    return Change(_annotation(names.ANNOTATION_APPROVE, current), means, moves=not expected)


def _pause(policy: JSON, wanted: str) -> Change:
    name, rollout = text(policy, "metadata", "name"), section(policy, "spec", "rollout")
    before = text(rollout, "whenPaused") or "Finish"
    when = wanted or before
    if rollout.get("paused") is True and when == before:
        raise Trouble(f"{name} is already paused (whenPaused: {when})")
    body = {"paused": True, **({"whenPaused": wanted} if wanted else {})}
    means = f"no further node will start to change; {IN_FLIGHT.get(when, when)}"
    return Change({"spec": {"rollout": body}}, means)


def _resume(policy: JSON, halted: Sequence[NodeStatus]) -> Change:
    name, revision = text(policy, "metadata", "name"), text(policy, "status", "revision")
    if part(policy, "spec", "rollout", "paused") is True:
        means = "nodes will start to change again, unless failures have halted the rollout"
        return Change({"spec": {"rollout": {"paused": False}}}, means, moves=True)
    _refuse_unseen(policy)
    if not halted:
        raise Trouble(f"{name} is neither paused nor halted by failures: there is nothing to resume")
    means = (
        f"{counted(len(halted), 'node')} may start although others failed; further failures halt the rollout"
        " again, and failed nodes stay as they are until you retry them"
    )
    # The value that the operator has published may be for an earlier revision, and would then have no effect.
    requested = read_value(halted[0].message)
    value = requested if requested.partition(".")[0] == revision else revision
    return Change(_annotation(names.ANNOTATION_RESUME, value), means, moves=True)


def _find_wait(node: JSON, status: NodeStatus) -> str:
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
        refusal += (
            f", and its change continues. To see what it is waiting for: kubectl gpusharing why {status.name}"
        )
    raise Trouble(refusal)


def _abort(node: JSON) -> Change:
    name = text(node, "metadata", "name")
    fence, damage = read_fence(annotations_of(node))
    if fence is not None and fence.stage == "fenced":
        means = "the operator will abort the change and return the node to service as it was"
        return Change(_annotation(names.ANNOTATION_ABORT, fence.op), means)
    if damage:
        raise Trouble(
            f"the fence on {name} cannot be read: {damage}. To see what to do: kubectl gpusharing why {name}"
        )
    if fence is None:
        raise Trouble(f"no change is in flight on {name}: there is nothing to abort")
    if fence.stage == "yielded":
        raise Trouble(
            f"someone else is working on {name}, so its change has already stopped: the node will be returned to service"
            " when they are done"
        )
    raise Trouble(
        f"{name} is past the point of no return, so it returns to service only with a proven layout; to choose another"
        " layout, edit the policy"
    )


def annotations_of(node: JSON) -> Mapping[str, str]:
    """Return the annotations of an object, without those whose values are not strings."""
    return texts(section(node, "metadata", "annotations"))


def _annotation(key: str, value: str) -> JSON:
    return {"metadata": {"annotations": {key: value}}}


def _refuse_unseen(policy: JSON) -> None:
    observed, now = whole(policy, "status", "observedGeneration"), whole(policy, "metadata", "generation")
    if observed < now:
        name = text(policy, "metadata", "name")
        raise Trouble(f"the operator has not processed generation {now} of {name} yet; try again in a moment")

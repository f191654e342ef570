"""The verbs that only patch an object: approve, pause, resume, retry, abort, skip.

The operator reads the patch on its next pass; `api/names.py` says what each patch means. If the patch may evict pods,
the user must confirm it or give --yes. If no operator is installed or runs, nothing would act on the patch, and the
command says so.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TextIO

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.kube.client import GPUNODES, JSON, LEASES, NODES, POLICIES, Resource
from gpusharing.kube.errors import Conflict, Forbidden, NotFound
from gpusharing.kube.fence import read_fence
from gpusharing.kube.lease import leader_of
from gpusharing.kube.raw import part, section, text, texts, whole
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Mark, Reason
from kubectl_gpusharing.live.cluster import OPERATOR, read_deployment
from kubectl_gpusharing.pools.fleet import NodeStatus, State, read_node, tell_extent
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import PatchData
from kubectl_gpusharing.shell.drawing import Ink, Span, line, prose
from kubectl_gpusharing.shell.session import Session, object_name
from kubectl_gpusharing.shell.terminal import Terminal, ask_line
from kubectl_gpusharing.shell.troubles import DONE, FAILED, INSTALL, Trouble, explained

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


async def read_gpunodes(session: Session, typed: Arguments) -> tuple[NodeStatus, ...]:
    """Return the GPUNodes that the verb needs: for resume those that failures halt, for retry that of the node.

    A user who may not read the node's GPUNode can retry it all the same.
    """
    if typed.verb == "resume":
        return tuple(node for node in map(read_node, await session.all(GPUNODES)) if node.reason == Reason.HALTED)
    if typed.verb == "retry":
        (name,) = typed.names
        with explained(session.where), suppress(Forbidden):
            try:
                return (read_node(await session.client.get(GPUNODES, name)),)
            except NotFound as error:
                raise Trouble(
                    f"there is nothing to retry on {name}: it has no GPUNode, so the operator does not manage its GPUs"
                ) from error
    return ()


def find_change(typed: Arguments, raw: JSON, gpunodes: Sequence[NodeStatus], now: datetime) -> Change:
    """Return the patch for an object. Raises Trouble if it would have no effect."""
    match typed.verb:
        case "approve":
            return _approve(raw, typed.hash)
        case "pause":
            return _pause(raw, typed.when_paused)
        case "resume":
            if typed.all and part(raw, "spec", "rollout", "paused") is not True:
                raise Trouble(f"{text(raw, 'metadata', 'name')} is not paused, and --all leaves halts as they are")
            return _resume(raw, gpunodes)
        case "retry":
            means = (
                "the operator will retry this node under its policy's rules and drain it first, which may evict pods"
            )
            fence, _ = read_fence(annotations_of(raw))
            if typed.drain and (fence is None or fence.stage != "actuating"):
                raise Trouble(
                    f"{text(raw, 'metadata', 'name')} has no failed change, so --drain has no effect there: leave it out,"
                    " or set drain.scope: Node in its policy"
                )
            if typed.drain:
                pods = "every pod of it" if typed.drain == "all-pods" else "every pod that holds one of its GPUs"
                means = f"the operator will retry this node and drain {pods} first, by its policy's rules"
            means += _find_wait(raw, gpunodes[0]) if gpunodes else ""
            value = ".".join(filter(None, (typed.drain, now.strftime("%Y%m%dT%H%M%SZ"))))
            return Change(_annotation(names.ANNOTATION_RETRY, value), means, moves=True)
        case "abort":
            return _abort(raw)
        case "skip":
            return _skip(raw, undo=typed.undo)
    raise TypeError(f"{typed.verb} patches nothing")


def _skip(node: JSON, *, undo: bool) -> Change:
    name = text(node, "metadata", "name")
    skipped = names.is_skip(texts(section(node, "metadata", "labels")).get(names.LABEL_SKIP))
    if skipped is not undo:
        raise Trouble(f"{name} is {'already skipped' if skipped else 'not skipped'}")
    means = "no new change will start on this node; a change in flight continues, and the pool still counts the node"
    means = "changes may start on this node again" if undo else means
    body = {"metadata": {"labels": {names.LABEL_SKIP: None if undo else "true"}}}
    return Change(body, means, moves=undo)


def _approve(policy: JSON, expected: str) -> Change:
    name, plan = text(policy, "metadata", "name"), section(policy, "status", "plan")
    _refuse_unseen(policy)
    if part(policy, "spec", "rollout", "approval") != "Manual":
        raise Trouble(f"{name} needs no approval: spec.rollout.approval is not Manual")
    current = text(plan, "hash")
    if not current:
        summary = section(policy, "status", "summary")
        if text(summary, "status") != Phase.SYNCED:  # such as before the agent of a node has reported
            raise Trouble(f"{name} has no plan to approve: {text(summary, 'message')}")
        raise Trouble(f"{name} has no plan, because no node needs to change: there is nothing to approve")
    if expected and expected != current:
        raise Trouble(
            f"the plan for {name} is now {current}, not {expected}. Review it again: kubectl gpusharing plan {name}"
        )
    if annotations_of(policy).get(names.ANNOTATION_APPROVE) == current:
        raise Trouble(f"plan {current} for {name} has already been approved")
    means = (
        f"the operator may carry out plan {current}, disruption class {text(plan, 'disruption')}: {tell_extent(plan)}"
    )
    return Change(_annotation(names.ANNOTATION_APPROVE, current), means, moves=not expected)


def _pause(policy: JSON, wanted: str) -> Change:
    name, rollout = text(policy, "metadata", "name"), section(policy, "spec", "rollout")
    before = text(rollout, "whenPaused") or "Finish"
    when = wanted or before
    if rollout.get("paused") is True and when == before:
        raise Trouble(f"{name} is already paused (whenPaused: {when})")
    means = f"no further node will start to change; {IN_FLIGHT.get(when, when)}"
    paused, mark = rollout.get("paused") is True, annotations_of(policy).get(names.ANNOTATION_PAUSED, "")
    body: JSON = {"spec": {"rollout": {"paused": True, **({"whenPaused": wanted} if wanted else {})}}}
    if wanted and wanted != before:
        ours = paused and mark.endswith(f">{before}")  # a pause of ours, which goes on in another way
        body |= _annotation(names.ANNOTATION_PAUSED, f"{mark.partition('>')[0] if ours else before}>{wanted}")
    elif mark and not paused:  # somebody else ended that pause
        body |= _annotation(names.ANNOTATION_PAUSED, None)
    return Change(body, means)


def _resume(policy: JSON, halted: Sequence[NodeStatus]) -> Change:
    name, halt = text(policy, "metadata", "name"), text(policy, "status", "halt")
    if part(policy, "spec", "rollout", "paused") is True:
        means = "nodes may start to change again, unless something else holds them, such as a halt or an approval"
        body: JSON = {"spec": {"rollout": {"paused": False}}}
        mark = annotations_of(policy).get(names.ANNOTATION_PAUSED)
        if mark is None:
            return Change(body, means, moves=True)
        before, _, wanted = mark.partition(">")
        if part(policy, "spec", "rollout", "whenPaused") == wanted:  # else somebody has chosen another since
            body, means = (
                {"spec": {"rollout": {"paused": False, "whenPaused": before}}},
                f"{means}; whenPaused is {before} again",
            )
        return Change(body | _annotation(names.ANNOTATION_PAUSED, None), means, moves=True)
    _refuse_unseen(policy)
    if not halt:
        raise Trouble(f"{name} is neither paused nor halted by failures: there is nothing to resume")
    count = sum(node.policy == name for node in halted)
    may_start = f"{counted(count, 'node')}, which may start once nothing else holds {'it' if count == 1 else 'them'}"
    means = (
        f"the failures so far no longer halt {may_start if count else 'the rollout'}; further failures halt the rollout"
        " again, and failed nodes stay as they are until you retry them"
    )
    return Change(_annotation(names.ANNOTATION_RESUME, halt), means, moves=True)


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
    if status.reason == Reason.DIVIDED_ELSEWHERE:
        return "; MIG instances that somebody else made are replaced for that, also while pods run on them"
    if status.phase == Phase.BLOCKED:
        return f"; it is {state} now, and the retry will start once it is no longer {status.phase}"
    if status.reason == Reason.SKIP_LABEL:
        refusal += f". To let changes begin there: kubectl gpusharing skip {status.name} --undo"
    elif status.state is State.MOVES:
        refusal += f", and its change continues. To see what it is waiting for: kubectl gpusharing why {status.name}"
    raise Trouble(refusal)


def _abort(node: JSON) -> Change:
    name = text(node, "metadata", "name")
    fence, damage = read_fence(annotations_of(node))
    if fence is not None and fence.stage == "fenced":
        means = "the operator will abort the change and return the node to service as it was"
        return Change(_annotation(names.ANNOTATION_ABORT, fence.op), means)
    if damage:
        raise Trouble(f"the fence on {name} cannot be read: {damage}. To see what to do: kubectl gpusharing why {name}")
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


def _annotation(key: str, value: str | None) -> JSON:
    return {"metadata": {"annotations": {key: value}}}


def _refuse_unseen(policy: JSON) -> None:
    observed, now = whole(policy, "status", "observedGeneration"), whole(policy, "metadata", "generation")
    if observed < now:
        name = text(policy, "metadata", "name")
        raise Trouble(f"the operator has not processed generation {now} of {name} yet; try again in a moment")


DID = "Done."
ASKED = "Done: requested on the GPUNode, because you may not patch Nodes; the operator writes it to the Node."
Changes = list[tuple[JSON, Change]]
TRIES = 5
"""How often the patch is tried if somebody else writes the object after our read, as a kubelet's heartbeat does."""


async def run(session: Session, typed: Arguments, terminal: Terminal) -> int:
    every, resource = typed.all, POLICIES if typed.verb in ("approve", "pause", "resume") else NODES
    if every == bool(typed.names):
        raise Trouble(f"give one name or --all, for example: kubectl gpusharing {typed.verb} --all")
    objects = await session.all(POLICIES) if every else [await session.get(resource, typed.names[0])]
    absent = await _find_absence(session, typed, lasts=every or typed.verb in ("pause", "skip"))
    gpunodes = () if every else await read_gpunodes(session, typed)
    find = partial(find_change, typed, gpunodes=gpunodes, now=session.now())
    changes: Changes = []
    for raw in objects:
        with suppress(*[Trouble] * every):
            changes.append((raw, find(raw)))
    if not changes:
        raise Trouble("there is no policy for which this would change anything")
    if not terminal.structured:
        for raw, change in changes:
            reference = Span(_reference(resource, text(raw, "metadata", "name")), Ink.TITLE)
            terminal.show([line(reference, f"  {json.dumps(change.body, separators=(',', ':'))}")])
        for means in dict.fromkeys(change.means for _, change in changes):
            terminal.show(prose(f"{means[:1].upper()}{means[1:]}.", terminal.options))
    moves = any(change.moves for _, change in changes)
    if typed.dry_run or (moves and not typed.yes and not is_wanted(sys.stdin)):
        _end(resource, changes, terminal, "Nothing was changed.", done=False)
        return DONE if typed.dry_run else FAILED
    written, sent, failures = resource, Changes(), list[str]()
    for shown, change in changes:
        try:
            written = await _send(session, resource, shown, change, find)
            sent.append((shown, change))
        except Trouble as trouble:
            failures.append(str(trouble))
    if terminal.structured or not failures:
        _end(written, sent, terminal, absent or (DID if written == resource else ASKED), done=True)
    if failures:
        changed = f". {len(sent)} of {len(changes)} policies were changed"
        raise Trouble("; ".join(failures) + changed * every)
    return DONE


def _end(kind: Resource, changes: Changes, terminal: Terminal, message: str, *, done: bool) -> None:
    if not terminal.structured:
        ink = Ink.GOOD if message == DID else Ink.WAITING if done else Ink.FAINT
        terminal.show(prose(message, terminal.options, ink=ink))
        return
    for raw, change in changes:
        name = text(raw, "metadata", "name")
        patch = _request(change.body) if kind == GPUNODES else change.body
        data: PatchData = {"resource": kind.plural, "name": name, "patch": patch, "done": done}
        terminal.data(PatchData, data, [object_name(kind, name)])


async def _find_absence(session: Session, typed: Arguments, *, lasts: bool) -> str:
    with explained(session.where):
        operator = await read_deployment(session.client)
    paused = operator.settings.paused
    if part(operator.deployment, "spec", "replicas") == 0:
        with explained(session.where):
            try:
                lease = await session.client.get(LEASES, OPERATOR, namespace=operator.settings.namespace)
                led = bool(leader_of(lease))  # perhaps outside of the cluster, as in `make run`
            except (NotFound, Forbidden) as error:
                led = isinstance(error, Forbidden)
        if not led:
            return "The patch was written, but the operator is scaled to 0 replicas, so it has no effect yet."
    if not operator.missing:
        starts = typed.verb in ("approve", "resume", "retry")
        lead = "Done, but no node starts, because"
        if typed.verb == "retry":
            lead = "Done: a failed node is tried again all the same, and any other waits, because"
        if operator.stop and starts:
            go_on = f"kubectl -n {operator.settings.namespace} delete configmap {names.STOP}"
            return f"{lead} {operator.stop}. To end the stop: {go_on}"
        return f"{lead} the chart's value paused is {paused}." if paused != "false" and starts else ""
    why, hint = f"no operator is installed in {session.where}", f"To install the operator, run: {INSTALL}"
    if not lasts:
        raise Trouble(f"{why}, so nothing would {typed.verb} {typed.names[0]}. {hint}")
    return f"The patch was written, but {why}, so it has no effect yet. {hint}"


async def _send(
    session: Session, resource: Resource, shown: JSON, change: Change, find: Callable[[JSON], Change]
) -> Resource:
    """Send the patch, and return the kind that was patched: GPUNODES for a user who may not patch Nodes."""
    name = text(shown, "metadata", "name")
    what = _reference(resource, name)
    for _ in range(TRIES):
        now = await session.get(resource, name)
        if find(now).body != change.body or _decided_on(now) != _decided_on(shown):
            raise Trouble(f"{what} changed since it was shown to you, so nothing was written; run the command again")
        # The patch names the version that was read, so the server refuses it (Conflict) if the object has changed.
        version = {"resourceVersion": text(now, "metadata", "resourceVersion")}
        body = {**change.body, "metadata": {**section(change.body, "metadata"), **version}}
        with explained(session.where), suppress(Conflict):
            try:
                await session.client.patch(resource, name, body)
            except Forbidden:
                with suppress(NotFound):
                    if resource == NODES:
                        await session.client.patch(GPUNODES, name, _request(change.body))
                        return GPUNODES
                raise
            return resource
    raise Trouble(f"{what} was modified by somebody else {TRIES} times in a row, so nothing was written; try again")


def _request(body: JSON) -> JSON:
    """Return the patch of a GPUNode that requests what `body` would do to its Node; `false` stands for a removal."""
    labels, annotations = (section(body, "metadata", key) for key in ("labels", "annotations"))
    return {"metadata": {"annotations": {k: v or "false" for k, v in {**labels, **annotations}.items()}}}


def _decided_on(raw: JSON) -> tuple[str, int, str]:
    """Return what the user's decision depends on; a Node has no generation."""
    fence, damage = read_fence(annotations_of(raw))
    stands = f"{fence.op} {fence.stage}" if fence is not None else damage
    return text(raw, "metadata", "uid"), whole(raw, "metadata", "generation"), stands


def _reference(resource: Resource, name: str) -> str:
    return f"{'node' if resource == NODES else 'gsp'}/{name}"


def is_wanted(answers: TextIO) -> bool:
    """Ask at the terminal whether to continue although pods may be evicted. Raises Trouble without a terminal."""
    if not answers.isatty():
        raise Trouble("this may evict pods and must be confirmed, but there is no terminal: pass --yes or --dry-run")
    with suppress(EOFError):
        return ask_line("This may evict pods. Continue? [y/N]", answers).lower() in ("y", "yes")
    return False

"""Carry out a steering verb: show a small patch and send it.

If the patch may evict pods, the user must confirm it or give --yes. If no operator is installed or runs, nothing would
act on the patch, and the command says so.

Terms: docs/design/glossary.md#fence.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from gpusharing.kube.client import GPUNODES, JSON, LEASES, NODES, POLICIES, Resource
from gpusharing.kube.errors import Conflict, Forbidden, NotFound
from gpusharing.kube.fence import read_fence
from gpusharing.kube.lease import leader_of
from gpusharing.kube.raw import part, section, text, whole
from kubectl_gpusharing.changing.steering import (
    STEERING,
    Change,
    SteeringRequest,
    SteeringVerb,
    annotations_of,
)
from kubectl_gpusharing.live.installed import OPERATOR, InstalledOperator, read_deployment
from kubectl_gpusharing.shell.documents import PatchData
from kubectl_gpusharing.shell.drawing import Ink, Span, line, prose
from kubectl_gpusharing.shell.session import Session, object_name
from kubectl_gpusharing.shell.terminal import Terminal, ask_line
from kubectl_gpusharing.shell.troubles import DONE, FAILED, INSTALL, Trouble, explained

DID = "Done."
ASKED = "Done: requested on the GPUNode, because you may not patch Nodes; the operator writes it to the Node."
Changes = list[tuple[JSON, Change]]
"""Objects, each with the patch that it gets."""
TRIES = 5
"""How often the patch is tried if somebody else writes the object between our read and our patch."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Show the patch, request a confirmation if it may evict pods and --yes is not given, and send it (see VerbModule).
    With --dry-run, nothing is confirmed or sent. With -o json, yaml or jsonpath, only a document for each patch is
    printed, at the end; a patch that failed has none. Returns DONE, also with --dry-run, or FAILED if the user does not
    confirm. The last line says that nothing was changed, that all was done, or what else the user must know
    (`_find_absence`, ASKED).

    Raises Trouble unless exactly one of a name and --all is given, if the object cannot be read, or if the patch would
    have no effect, cannot be sent, or needs a confirmation for which there is no terminal. With --all, every policy on
    which the patch has an effect is patched, even if another one cannot be; what failed is then raised in one Trouble
    at the end, with the number of policies that were changed.
    """
    verb, every = STEERING[typed.verb], getattr(typed, "all", False)
    if every == bool(typed.name):
        raise Trouble(f"give one name or --all, for example: kubectl gpusharing {typed.verb} --all")
    objects = await session.all(POLICIES) if every else [await session.get(verb.resource, typed.name)]
    absent = await _find_absence(session, typed, lasts=verb.lasts or every)
    request = SteeringRequest(
        session.now(),
        typed,
        gpunodes=() if every or verb.read is None else await verb.read(session, typed.name),
    )
    changes = _changes(verb, objects, request, every=every)
    _show(verb.resource, changes, terminal)
    moves = any(change.moves for _, change in changes)
    if typed.dry_run or (moves and not typed.yes and not is_wanted(sys.stdin)):
        _end(verb.resource, changes, terminal, "Nothing was changed.", done=False)
        return DONE if typed.dry_run else FAILED
    written, sent, failures = verb.resource, Changes(), list[str]()
    for shown, change in changes:
        try:
            written = await _send(session, verb.resource, shown, change, lambda raw: verb.find(raw, request))
            sent.append((shown, change))
        except Trouble as trouble:
            failures.append(str(trouble))
    if terminal.structured or not failures:
        _end(written, sent, terminal, absent or (DID if written == verb.resource else ASKED), done=True)
    if failures:
        changed = f". {len(sent)} of {len(changes)} policies were changed"
        raise Trouble("; ".join(failures) + changed * every)
    return DONE


def _changes(verb: SteeringVerb, objects: list[JSON], request: SteeringRequest, *, every: bool) -> Changes:
    """Return each object with its patch, in the order of `objects`. With `every`, objects for which the patch would
    have no effect are left out, and Trouble is raised if none is left; otherwise the Trouble of the verb's `find` is
    raised for such an object."""
    changes: Changes = []
    for raw in objects:
        with suppress(*[Trouble] * every):
            changes.append((raw, verb.find(raw, request)))
    if not changes:
        raise Trouble("there is no policy for which this would change anything")
    return changes


def _end(kind: Resource, changes: Changes, terminal: Terminal, message: str, *, done: bool) -> None:
    """Print `message`. As data, print instead a document for each patch: the kind, the name, the patch, and `done`,
    which says whether the patch was sent. If `kind` is GPUNODES, the patch is the request that was written there."""
    for raw, change in changes if terminal.structured else ():
        name = text(raw, "metadata", "name")
        patch = _request(change.body) if kind == GPUNODES else change.body
        data: PatchData = {"resource": kind.plural, "name": name, "patch": patch, "done": done}
        terminal.data(PatchData, data, [object_name(kind, name)])
    ink = Ink.GOOD if message == DID else Ink.WAITING if done else Ink.FAINT
    if not terminal.structured:
        terminal.show(prose(message, terminal.paper, ink=ink))


def _show(resource: Resource, changes: Changes, terminal: Terminal) -> None:
    """Print a line with the name and the patch of each object, as compact JSON, and then the consequences, each only
    once; print nothing if the output is data."""
    if terminal.structured:
        return
    for raw, change in changes:
        patch = json.dumps(change.body, separators=(",", ":"))
        reference = _reference(resource, text(raw, "metadata", "name"))
        terminal.show([line(Span(reference, Ink.TITLE), f"  {patch}")])
    for means in dict.fromkeys(change.means for _, change in changes):
        terminal.show(prose(f"{means[:1].upper()}{means[1:]}.", terminal.paper))


async def _find_absence(session: Session, typed: Namespace, *, lasts: bool) -> str:
    """Return a closing sentence that says that no operator is installed or leads, or, for approve, resume and retry,
    that the chart's value `paused` (anything but `false`) keeps nodes from starting. Empty otherwise. If Deployments
    may not be read, the operator counts as installed and running, with the chart's defaults. `lasts` says whether an
    operator that is installed later would act on the patch.

    Raises Trouble if no operator is installed and `lasts` is false, because the patch would have no effect, and for
    errors of the API server.
    """
    with explained(session.where):
        operator = await read_deployment(session.client)
    if part(operator.deployment, "spec", "replicas") == 0 and not await _is_led(session, operator):
        return "The patch was written, but the operator is scaled to 0 replicas, so it has no effect yet."
    if not operator.missing:
        paused = operator.settings.plan.paused
        waits = paused != "false" and typed.verb in ("approve", "resume", "retry")
        return f"Done, but no node starts while the chart's value paused is {paused}." if waits else ""
    why, hint = f"no operator is installed in {session.where}", f"To install the operator, run: {INSTALL}"
    if not lasts:
        raise Trouble(f"{why}, so nothing would {typed.verb} {typed.name}. {hint}")
    return f"The patch was written, but {why}, so it has no effect yet. {hint}"


async def _is_led(session: Session, operator: InstalledOperator) -> bool:
    """Whether some process leads, perhaps outside of the cluster as in `make run`. True if the Lease may not be read.
    Raises Trouble for other errors of the API server, except that a Lease which does not exist has no leader."""
    with explained(session.where):
        try:
            lease = await session.client.get(LEASES, OPERATOR, namespace=operator.settings.plan.namespace)
        except NotFound:
            return False
        except Forbidden:
            return True
    return bool(leader_of(lease))


async def _send(
    session: Session, resource: Resource, shown: JSON, change: Change, find: Callable[[JSON], Change]
) -> Resource:
    """Patch the object that was shown to the user as `shown`, and return the kind that was patched: GPUNODES, with the
    patch of `_request`, if the user may not patch Nodes and the Node has a GPUNode. Raises Trouble, also that of
    `find`, if the object has changed in a way that matters to the user's decision. `find` computes the patch for the
    present object, to compare it with `change`.

    If somebody else writes the object between our read and our patch, such as a kubelet with its heartbeat, the server
    refuses the patch. The object is then read and compared again. Trouble is raised after TRIES attempts, and at once
    for any other error of the server.
    """
    name = text(shown, "metadata", "name")
    what = _reference(resource, name)
    for _ in range(TRIES):
        now = await session.get(resource, name)
        if find(now).body != change.body or _decided_on(now) != _decided_on(shown):
            raise Trouble(
                f"{what} changed since it was shown to you, so nothing was written; run the command again"
            )
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
    raise Trouble(
        f"{what} was modified by somebody else {TRIES} times in a row, so nothing was written; try again"
    )


def _request(body: JSON) -> JSON:
    """Return the patch of a GPUNode that requests what `body` would do to its Node. It has the labels and annotations
    of `body`, all as annotations, and `false` as the value of one that is to be removed or is empty. Other parts of
    `body` are left out."""
    labels, annotations = (section(body, "metadata", key) for key in ("labels", "annotations"))
    return {"metadata": {"annotations": {k: v or "false" for k, v in {**labels, **annotations}.items()}}}


def _decided_on(raw: JSON) -> tuple[str, int, str]:
    """Return the parts of an object that the user's decision depends on: its UID, its generation (0 for a Node), and
    the operation and stage of a node's fence. If the fence cannot be read, the last part says why; without a fence it
    is empty."""
    fence, damage = read_fence(annotations_of(raw))
    stands = f"{fence.op} {fence.stage}" if fence is not None else damage
    return text(raw, "metadata", "uid"), whole(raw, "metadata", "generation"), stands


def _reference(resource: Resource, name: str) -> str:
    """Return the name of the object as kubectl accepts it: node/NAME for a Node, gsp/NAME for anything else, which is a
    policy."""
    return f"{'node' if resource == NODES else 'gsp'}/{name}"


def is_wanted(answers: TextIO) -> bool:
    """Ask at the terminal `answers`, with the question on standard error (`ask_line`), whether to continue although
    pods may be evicted, and return whether the answer was y or yes, case-insensitively; any other answer, and the end
    of the input, counts as no. Raises Trouble if `answers` is not a terminal."""
    if not answers.isatty():
        raise Trouble(
            "this may evict pods and must be confirmed, but there is no terminal: pass --yes or --dry-run"
        )
    with suppress(EOFError):
        return ask_line("This may evict pods. Continue? [y/N]", answers).lower() in ("y", "yes")
    return False

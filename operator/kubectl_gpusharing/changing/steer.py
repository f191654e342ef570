"""Carry out a steering verb: show a small patch and send it.

If the patch may evict pods, the user must confirm it or give --yes. If no operator is installed or runs, nothing would
act on the patch, and the command says so.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TextIO

from gpusharing.kube.client import GPUNODES, JSON, LEASES, NODES, POLICIES, Resource
from gpusharing.kube.errors import Conflict, Forbidden, NotFound
from gpusharing.kube.fence import read_fence
from gpusharing.kube.lease import leader_of
from gpusharing.kube.raw import part, section, text, whole
from kubectl_gpusharing.changing.steering import Change, annotations_of, find_change, read_gpunodes
from kubectl_gpusharing.live.installed import OPERATOR, read_deployment
from kubectl_gpusharing.shell.documents import PatchData
from kubectl_gpusharing.shell.drawing import Ink, Span, line, prose
from kubectl_gpusharing.shell.session import Session, object_name
from kubectl_gpusharing.shell.terminal import Terminal, ask_line
from kubectl_gpusharing.shell.troubles import DONE, FAILED, INSTALL, Trouble, explained

DID = "Done."
ASKED = "Done: requested on the GPUNode, because you may not patch Nodes; the operator writes it to the Node."
Changes = list[tuple[JSON, Change]]
TRIES = 5
"""How often the patch is tried if somebody else writes the object between our read and our patch."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Show the patch, request a confirmation if it may evict pods and --yes is not given, and send it."""
    verb, every = typed.verb, getattr(typed, "all", False)
    resource = POLICIES if verb in ("approve", "pause", "resume") else NODES
    if every == bool(typed.name):
        raise Trouble(f"give one name or --all, for example: kubectl gpusharing {verb} --all")
    objects = await session.all(POLICIES) if every else [await session.get(resource, typed.name)]
    absent = await _find_absence(session, typed, lasts=verb in ("pause", "skip") or every)
    gpunodes = () if every else await read_gpunodes(session, verb, typed.name)
    find = partial(find_change, typed, verb, gpunodes=gpunodes, now=session.now())
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
            terminal.show(prose(f"{means[:1].upper()}{means[1:]}.", terminal.paper))
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
        terminal.show(prose(message, terminal.paper, ink=ink))
        return
    for raw, change in changes:
        name = text(raw, "metadata", "name")
        patch = _request(change.body) if kind == GPUNODES else change.body
        data: PatchData = {"resource": kind.plural, "name": name, "patch": patch, "done": done}
        terminal.data(PatchData, data, [object_name(kind, name)])


async def _find_absence(session: Session, typed: Namespace, *, lasts: bool) -> str:
    with explained(session.where):
        operator = await read_deployment(session.client)
    paused = operator.settings.plan.paused
    if part(operator.deployment, "spec", "replicas") == 0:
        with explained(session.where):
            try:
                lease = await session.client.get(LEASES, OPERATOR, namespace=operator.settings.plan.namespace)
                led = bool(leader_of(lease))  # perhaps outside of the cluster, as in `make run`
            except (NotFound, Forbidden) as error:
                led = isinstance(error, Forbidden)
        if not led:
            return "The patch was written, but the operator is scaled to 0 replicas, so it has no effect yet."
    if not operator.missing:
        waits = paused != "false" and typed.verb in ("approve", "resume", "retry")
        return f"Done, but no node starts while the chart's value paused is {paused}." if waits else ""
    why, hint = f"no operator is installed in {session.where}", f"To install the operator, run: {INSTALL}"
    if not lasts:
        raise Trouble(f"{why}, so nothing would {typed.verb} {typed.name}. {hint}")
    return f"The patch was written, but {why}, so it has no effect yet. {hint}"


async def _send(
    session: Session, resource: Resource, shown: JSON, change: Change, find: Callable[[JSON], Change]
) -> Resource:
    """Return the kind that was patched: GPUNODES if the user may not patch Nodes and the Node has a GPUNode."""
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
    """Return the patch of a GPUNode that requests what `body` would do to its Node: `false` stands for a removal."""
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
    """Ask at the terminal whether to continue although pods may be evicted; the end of the input means no. Raises Trouble if `answers` is not a terminal."""
    if not answers.isatty():
        raise Trouble(
            "this may evict pods and must be confirmed, but there is no terminal: pass --yes or --dry-run"
        )
    with suppress(EOFError):
        return ask_line("This may evict pods. Continue? [y/N]", answers).lower() in ("y", "yes")
    return False

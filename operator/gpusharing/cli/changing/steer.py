"""Carry out a steering verb: show a small patch and send it.

If the patch may evict pods, the user must confirm it or give --yes. If no operator is installed, nothing would act on
the patch, and the command says so.

Terms: docs/design/glossary.md#fence.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import TextIO

from gpusharing.cli.changing.steering import STEERING, Change, SteeringRequest, annotations_of
from gpusharing.cli.live.installed import is_missing
from gpusharing.cli.shell.drawing import Ink, Span, line, prose
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal, agrees
from gpusharing.cli.shell.troubles import DONE, FAILED, INSTALL, Trouble, sentence
from gpusharing.kube.client import JSON, NODES, Resource
from gpusharing.kube.errors import Conflict, KubeError
from gpusharing.kube.fence import read_fence
from gpusharing.kube.raw import section, text, whole

DID = "Done."
TRIES = 5
"""How often the patch is tried if somebody else writes the object between our read and our patch."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Show the patch, ask for confirmation if it may evict pods and --yes is not given, and send it (see VerbModule).
    With --dry-run, nothing is asked or sent. With -o json or yaml, only the patch and whether it was sent are
    printed, at the end. Returns DONE, or FAILED if the user does not confirm. Raises Trouble if the object cannot
    be read, or if the patch would have no effect, cannot be sent, or needs a confirmation for which there is no
    terminal."""
    verb, flags = STEERING[typed.verb], vars(typed)
    shown = await session.get(verb.resource, typed.name)
    absent = await _find_absence(session, typed, lasts=verb.lasts)
    request = SteeringRequest(
        session.now(),
        hash=flags.get("hash", ""),
        when_paused=flags.get("when_paused", ""),
        undo=flags.get("undo", False),
        gpunodes=() if verb.read is None else await verb.read(session, typed.name),
    )
    change = verb.find(shown, request)

    def end(message: str, *, done: bool = False) -> int:
        """Print `message`, or with -o json or yaml the patch and `done`, and return DONE."""
        if terminal.structured:
            kind = verb.resource.plural
            terminal.data({"kind": kind, "name": typed.name, "patch": change.body, "done": done})
        elif message == DID:
            terminal.show([line(Span(message, Ink.GOOD))])
        else:
            terminal.show(prose(message, terminal.paper, ink=Ink.WAITING if done else Ink.FAINT))
        return DONE

    if not terminal.structured:
        patch = json.dumps(change.body, separators=(",", ":"))
        head = line(Span(_reference(verb.resource, typed.name), Ink.TITLE), f"  {patch}")
        terminal.show([head, *prose(f"{change.means[:1].upper()}{change.means[1:]}.", terminal.paper)])
    if typed.dry_run:
        return end("Nothing was changed.")
    if change.moves and not typed.yes and not is_wanted(sys.stdin):
        end("Nothing was changed.")
        return FAILED
    await _send(session, verb.resource, shown, change, lambda raw: verb.find(raw, request))
    return end(absent or DID, done=True)


async def _find_absence(session: Session, typed: Namespace, *, lasts: bool) -> str:
    """Return a closing sentence that says that no operator is installed; empty if one is, or if that is unknown.
    `lasts` says whether an operator that is installed later would act on the patch.

    Raises Trouble if no operator is installed and `lasts` is false, because the patch would have no effect, and for
    errors of the API server.
    """
    try:
        missing = await is_missing(session.client)
    except KubeError as error:
        raise Trouble(sentence(error, session.where)) from error
    if not missing:
        return ""
    why = f"no operator is installed in {session.where}"
    if not lasts:
        raise Trouble(f"{why}, so nothing would {typed.verb} {typed.name}. To install it: {INSTALL}")
    return f"The patch was written, but {why}, so it has no effect yet. To install it, run: {INSTALL}"


async def _send(
    session: Session, resource: Resource, shown: JSON, change: Change, find: Callable[[JSON], Change]
) -> None:
    """Patch the object that was shown to the user as `shown`. Raises Trouble if it has changed since then in a way
    that matters to the user's decision: the user may have thought for a long time. `find` computes the patch for
    the present object, to compare it with `change`; a Trouble that `find` raises passes through.

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
        try:
            await session.client.patch(resource, name, body)
        except Conflict:
            continue
        except KubeError as error:
            raise Trouble(sentence(error, session.where)) from error
        return
    raise Trouble(
        f"{what} was modified by somebody else {TRIES} times in a row, so nothing was written; try again"
    )


def _decided_on(raw: JSON) -> tuple[str, int, str]:
    """Return the parts of an object that the user's decision depends on: its UID, the generation of a policy, and the
    operation and stage of a node's fence. If the fence cannot be read, the last part says why."""
    fence, damage = read_fence(annotations_of(raw))
    stands = f"{fence.op} {fence.stage}" if fence is not None else damage
    return text(raw, "metadata", "uid"), whole(raw, "metadata", "generation"), stands


def _reference(resource: Resource, name: str) -> str:
    """Return the name of the object as kubectl accepts it: gsp/NAME or node/NAME."""
    return f"{'node' if resource == NODES else 'gsp'}/{name}"


def is_wanted(answers: TextIO) -> bool:
    """Ask at the terminal `answers` whether to continue although pods may be evicted, and return the answer. Raises
    Trouble if it is not a terminal."""
    if not answers.isatty():
        raise Trouble(
            "this may evict pods and must be confirmed, but there is no terminal: pass --yes or --dry-run"
        )
    return agrees("This may evict pods. Continue?", answers)

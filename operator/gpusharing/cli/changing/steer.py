"""What `approve`, `pause`, `resume`, `retry`, `abort`, `skip` have in common: a small patch, shown before it is sent.

Whatever may evict pods needs confirmation, unless --yes gives it. Where no operator is installed, nothing would carry
it out, and the verb says so.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable
from typing import TextIO

from gpusharing.cli.changing.steering import Change, Steered, SteeringWish, as_seen, decided_on
from gpusharing.cli.live.installed import is_missing
from gpusharing.cli.shell.drawing import Ink, TextSpan, line, prose
from gpusharing.cli.shell.questions import agrees
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import DONE, FAILED, INSTALL, Trouble, sentence
from gpusharing.kube.client import JSON
from gpusharing.kube.errors import Conflict, KubeError

DID = "Done."
KINDS = {"gpusharingpolicies": "gsp", "nodes": "node"}
Learn = Callable[[Session, SteeringWish, str], Awaitable[SteeringWish]]
"""Called with the name of the object that the verb is about."""
TRIES = 5
"""How often the object is read again where somebody else writes it between reading and patching."""


async def steer(
    session: Session, typed: Namespace, terminal: Terminal, steered: Steered, *, learn: Learn | None = None
) -> int:
    """Carry out one of these verbs. `learn`: adds to the wish what has to be read from the cluster first."""
    find, given = steered.find, vars(typed)
    seen = await session.one(steered.resource, typed.name)
    absent = await _find_absence(session, typed, lasts=steered.lasts)
    wish = SteeringWish(
        session.now(),
        hash=given.get("hash", ""),
        when_paused=given.get("when_paused", ""),
        undo=given.get("undo", False),
    )
    if learn is not None:
        wish = await learn(session, wish, typed.name)
    change = find(seen, wish)
    if not terminal.structured:
        _preview(change, terminal)
    if typed.dry_run:
        return _end(change, terminal, "Nothing was changed.")
    if change.moves and not typed.yes and not is_wanted(sys.stdin):
        _end(change, terminal, "Nothing was changed.")
        return FAILED
    await _send(session, seen, change, lambda raw: find(raw, wish))
    return _end(change, terminal, absent or DID, done=True)


async def _find_absence(session: Session, typed: Namespace, *, lasts: bool) -> str:
    """What to say where no operator is installed and the patch is written nevertheless; empty: one is, or that is
    unknown.

    Raises Trouble when the request would have no effect.
    """
    try:
        missing = await is_missing(session.client)
    except KubeError as error:
        raise Trouble(sentence(error, session.where)) from error
    if not missing:
        return ""
    why = f"no operator is installed in {session.where}"
    if not lasts:
        raise Trouble(f"{why}, so nothing would {typed.verb} {typed.name}. To install: {INSTALL}")
    return f"Written, but {why}: it has no effect until one is. To install: {INSTALL}"


async def _send(session: Session, seen: JSON, change: Change, find: Callable[[JSON], Change]) -> None:
    """Write it on the object that was shown. Raises Trouble if that has changed: a person may think for a long time.

    After an irrelevant write, such as a kubelet's heartbeat, the server refuses the patch, and the object is read
    again.
    """
    what = f"{KINDS[change.resource.plural]}/{change.name}"
    for _ in range(TRIES):
        now = await session.one(change.resource, change.name)
        if find(now).body != change.body or decided_on(now) != decided_on(seen):
            raise Trouble(f"{what} changed since it was shown to you, so nothing was written: look again")
        try:
            await session.client.patch(change.resource, change.name, as_seen(change.body, now))
        except Conflict:
            continue
        except KubeError as error:
            raise Trouble(sentence(error, session.where)) from error
        return
    raise Trouble(f"others keep changing {what}, so nothing was written: try again")


def is_wanted(answers: TextIO) -> bool:
    """Ask the person at the terminal. Raises Trouble when there is no terminal."""
    if not answers.isatty():
        raise Trouble(
            "this may evict pods, and there is no terminal to ask for confirmation: give --yes or --dry-run"
        )
    return agrees("This may evict pods. Go on?", answers)


def _preview(change: Change, terminal: Terminal) -> None:
    patch = json.dumps(change.body, separators=(",", ":"))
    head = line(TextSpan(f"{KINDS[change.resource.plural]}/{change.name}", Ink.TITLE), f"  {patch}")
    terminal.show([head, *prose(f"{change.means[:1].upper()}{change.means[1:]}.", terminal.paper)])


def _end(change: Change, terminal: Terminal, said: str, *, done: bool = False) -> int:
    """`done`: it was written."""
    if terminal.structured:
        terminal.data(change.as_data(done=done))
    elif said == DID:
        terminal.show([line(TextSpan(said, Ink.GOOD))])
    else:
        terminal.show(prose(said, terminal.paper, ink=Ink.WAITING if done else Ink.FAINT))
    return DONE

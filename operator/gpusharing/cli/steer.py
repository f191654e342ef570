"""`approve`, `pause`, `resume`, `retry`, `abort`, `skip`: one small patch each, shown before it is sent.

What may evict pods is asked for once more, unless --yes says that it was thought about. Where no operator is installed
nobody would do what is asked for, and that is said.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import TextIO

from gpusharing.cli.drawing import Ink, TextSpan, line, prose
from gpusharing.cli.fleet import Seen, read_node
from gpusharing.cli.installed import is_missing
from gpusharing.cli.questions import agrees
from gpusharing.cli.session import Session
from gpusharing.cli.steering import STEERING, Change, SteeringWish, as_seen, decided_on
from gpusharing.cli.terminal import Terminal
from gpusharing.cli.troubles import DONE, FAILED, INSTALL, Trouble, sentence
from gpusharing.kube.client import GPUNODES, JSON
from gpusharing.kube.errors import Conflict, Forbidden, KubeError, NotFound
from gpusharing.planning.words.reasons import Reason

DID = "Done."
KINDS = {"gpusharingpolicies": "gsp", "nodes": "node"}
LASTING = frozenset({"pause", "skip"})
"""What a person may well say before the operator is there, which then keeps to it."""
TRIES = 5
"""How often the object is read again where somebody else writes it between reading and patching."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""
    resource, find = STEERING[typed.verb]
    given = vars(typed)
    seen = await session.one(resource, typed.name)
    absent = await _find_absence(session, typed)
    wish = SteeringWish(
        session.now(),
        hash=given.get("hash", ""),
        when_paused=given.get("when_paused", ""),
        undo=given.get("undo", False),
        halted=await _halted(session, typed.name) if typed.verb == "resume" else (),
        stands=await _stands(session, typed.name) if typed.verb == "retry" else None,
    )
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


async def _find_absence(session: Session, typed: Namespace) -> str:
    """What to say where no operator is installed and it is written all the same; empty: one is, or nobody can tell.

    Raises Trouble where nothing would come of what is asked for.
    """
    try:
        missing = await is_missing(session.client)
    except KubeError as error:
        raise Trouble(sentence(error, session.where)) from error
    if not missing:
        return ""
    why = f"no operator is installed in {session.where}"
    if typed.verb not in LASTING:
        raise Trouble(f"{why}, so nobody would {typed.verb} {typed.name}. To install: {INSTALL}")
    return f"Written, but {why}: nobody heeds it until one is. To install: {INSTALL}"


async def _send(session: Session, seen: JSON, change: Change, find: Callable[[JSON], Change]) -> None:
    """Write it on the object that was shown. Raises Trouble where it is no longer that: a person may think for long.

    What makes no difference, such as a kubelet's heartbeat, makes the server refuse the patch, and it is read again.
    """
    what = f"{KINDS[change.resource.plural]}/{change.name}"
    for _ in range(TRIES):
        now = await session.one(change.resource, change.name)
        if find(now).body != change.body or decided_on(now) != decided_on(seen):
            raise Trouble(f"{what} changed since you were shown it, and nothing was written: look again")
        try:
            await session.client.patch(change.resource, change.name, as_seen(change.body, now))
        except Conflict:
            continue
        except KubeError as error:
            raise Trouble(sentence(error, session.where)) from error
        return
    raise Trouble(f"others keep changing {what}, and nothing was written: try again")


async def _halted(session: Session, policy: str) -> tuple[str, ...]:
    """Which nodes wait for a resume: a policy does not list them itself."""
    nodes = map(read_node, await session.all(GPUNODES))
    return tuple(seen.name for seen in nodes if (seen.policy, seen.reason) == (policy, Reason.HALTED))


async def _stands(session: Session, node: str) -> Seen | None:
    """How the operator sees a node; None: whoever asks may not know. Raises Trouble where it has nothing to do there:
    every node with GPUs or a policy has a GPUNode."""
    try:
        return read_node(await session.client.get(GPUNODES, node))
    except Forbidden:
        return None
    except NotFound as error:
        raise Trouble(
            f"there is nothing to try again on {node}: it has no GPUNode, so the operator changes no GPUs there"
        ) from error
    except KubeError as error:
        raise Trouble(sentence(error, session.where)) from error


def is_wanted(answers: TextIO) -> bool:
    """Ask whoever sits there. Raises Trouble where nobody does."""
    if not answers.isatty():
        raise Trouble("this may evict pods, and there is no terminal to ask at: give --yes, or --dry-run")
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

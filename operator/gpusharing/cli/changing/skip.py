"""`skip NODE`: begin no change there."""

from argparse import Namespace

from gpusharing.api import names
from gpusharing.cli.changing.steer import steer
from gpusharing.cli.changing.steering import Change, Steered, SteeringWish
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import Trouble
from gpusharing.kube.client import JSON, NODES
from gpusharing.kube.raw import section, text, texts


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""
    return await steer(session, typed, terminal, Steered(NODES, find, lasts=True))


def find(node: JSON, wish: SteeringWish) -> Change:
    """Keep changes from starting on a node, or let them start again. Raises Trouble when that is the case already."""
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

"""`abort NODE`: give up the change that is in flight."""

from argparse import Namespace

from gpusharing.api import names
from gpusharing.cli.changing.steer import steer
from gpusharing.cli.changing.steering import Change, Steered, SteeringWish, annotation
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import Trouble
from gpusharing.kube.client import JSON, NODES
from gpusharing.kube.fence import parse_fence
from gpusharing.kube.raw import section, text, texts


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""
    return await steer(session, typed, terminal, Steered(NODES, find))


def find(node: JSON, wish: SteeringWish) -> Change:
    """Give up the change that is in flight. Raises Trouble where none is, or it cannot be given up any more."""
    name = text(node, "metadata", "name")
    recorded = texts(section(node, "metadata", "annotations")).get(names.ANNOTATION_FENCE)
    if recorded is None:
        raise Trouble(f"no change is in flight on {name}")
    fence, damage = parse_fence(recorded)
    if fence is None:
        raise Trouble(f"the fence of {name} cannot be read: {damage}")
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
    return Change(
        NODES, name, annotation(names.ANNOTATION_ABORT, fence.op), "the node is given back as it was"
    )

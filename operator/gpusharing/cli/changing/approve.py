"""`approve POLICY`: let the current plan be carried out."""

from argparse import Namespace

from gpusharing.api import names
from gpusharing.cli.changing.steer import steer
from gpusharing.cli.changing.steering import Change, Steered, SteeringWish, annotation, expect_seen
from gpusharing.cli.shell.ages import counted
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import Trouble
from gpusharing.kube.client import JSON, POLICIES
from gpusharing.kube.raw import part, section, text, texts, whole


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""
    return await steer(session, typed, terminal, Steered(POLICIES, find))


def find(policy: JSON, wish: SteeringWish) -> Change:
    """Let the current plan be carried out. Raises Trouble when there is none, or when it is not the one that was
    read."""
    name, plan = text(policy, "metadata", "name"), section(policy, "status", "plan")
    expect_seen(policy)
    if part(policy, "spec", "rollout", "approval") != "Manual":
        raise Trouble(f"{name} needs no approval: spec.rollout.approval is not Manual")
    found = text(plan, "hash")
    if not found:
        raise Trouble(f"{name} has no plan: there is nothing to change")
    if wish.hash and wish.hash != found:
        raise Trouble(
            f"the plan of {name} is {found} now, not {wish.hash}: read it again (kubectl gpusharing plan {name})"
        )
    if texts(section(policy, "metadata", "annotations")).get(names.ANNOTATION_APPROVE) == found:
        raise Trouble(f"plan {found} of {name} is approved already")
    nodes, pods = counted(whole(plan, "nodeCount"), "node"), counted(whole(plan, "pods"), "pod")
    means = f"plan {found} may be carried out: class {text(plan, 'disruption')}, {nodes}, {pods} to leave"
    return Change(POLICIES, name, annotation(names.ANNOTATION_APPROVE, found), means, moves=not wish.hash)

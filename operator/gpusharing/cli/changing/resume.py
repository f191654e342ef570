"""`resume POLICY`: end a pause, or let a rollout go on after failures."""

from argparse import Namespace
from dataclasses import replace

from gpusharing.api import names
from gpusharing.cli.changing.steer import steer
from gpusharing.cli.changing.steering import Change, Steered, SteeringWish, annotation, expect_seen
from gpusharing.cli.pools.fleet import read_node
from gpusharing.cli.shell.ages import counted
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import Trouble
from gpusharing.kube.client import GPUNODES, JSON, POLICIES
from gpusharing.kube.raw import part, text, whole
from gpusharing.planning.pools.resuming import read_value
from gpusharing.planning.vocabulary.reasons import Reason


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""
    return await steer(session, typed, terminal, Steered(POLICIES, find), learn=_halted)


def find(policy: JSON, wish: SteeringWish) -> Change:
    """End a pause, or else let a rollout go on that failures have halted. Raises Trouble when the policy is neither
    paused nor halted."""
    name, generation = text(policy, "metadata", "name"), whole(policy, "metadata", "generation")
    if part(policy, "spec", "rollout", "paused") is True:
        means = "nodes start again, and earlier failures no longer count"
        return Change(POLICIES, name, {"spec": {"rollout": {"paused": False}}}, means, moves=True)
    expect_seen(policy)
    if not wish.halted:
        raise Trouble(f"{name} is neither paused nor halted by failures")
    nodes = counted(len(wish.halted), "node")
    means = (
        f"{nodes} may start although others failed, and further failures halt it again; those that failed stay as they"
        " are until a retry"
    )
    # What the operator asks for may be of an earlier generation that it has judged the nodes by.
    value = wish.resume if wish.resume.partition(".")[0] == str(generation) else str(generation)
    return Change(POLICIES, name, annotation(names.ANNOTATION_RESUME, value), means, moves=True)


async def _halted(session: Session, wish: SteeringWish, policy: str) -> SteeringWish:
    """Which nodes wait for a resume, and for which: a policy does not list them itself."""
    nodes = map(read_node, await session.all(GPUNODES))
    halted = [seen for seen in nodes if (seen.policy, seen.reason) == (policy, Reason.HALTED)]
    value = read_value(halted[0].message) if halted else ""
    return replace(wish, halted=tuple(seen.name for seen in halted), resume=value)

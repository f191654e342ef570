"""`pause POLICY`: start no further node."""

from argparse import Namespace

from gpusharing.cli.changing.steer import steer
from gpusharing.cli.changing.steering import Change, Steered, SteeringWish
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import Trouble
from gpusharing.kube.client import JSON, POLICIES
from gpusharing.kube.raw import section, text


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""
    return await steer(session, typed, terminal, Steered(POLICIES, find, lasts=True))


def find(policy: JSON, wish: SteeringWish) -> Change:
    """Start no further node. Raises Trouble when the policy is paused already."""
    name, rollout = text(policy, "metadata", "name"), section(policy, "spec", "rollout")
    when = wish.when_paused or text(rollout, "whenPaused") or "Finish"
    if rollout.get("paused") is True and when == (text(rollout, "whenPaused") or "Finish"):
        raise Trouble(f"{name} is paused already (whenPaused: {when})")
    body: JSON = {"paused": True}
    if wish.when_paused:
        body["whenPaused"] = wish.when_paused
    flight = {
        "Finish": "nodes in flight go on to their end",
        "Hold": "nodes in flight that are before the point of no return wait, cordoned, and no pod is evicted",
        "Abort": "nodes in flight that are before the point of no return are given back",
    }
    return Change(
        POLICIES, name, {"spec": {"rollout": body}}, f"no further node starts; {flight.get(when, when)}"
    )

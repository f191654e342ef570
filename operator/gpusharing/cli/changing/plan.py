"""`plan -f FILE | POLICY`: what an edit would do, by the operator's own planner on a live snapshot.

Exit status: 0 nothing would change, 2 something would, 1 a policy is refused or the plan could not be made.
"""

from argparse import Namespace
from dataclasses import replace

from gpusharing.cli.changing.dependents import find_vanishing, read_dependents
from gpusharing.cli.changing.plantext import Planned, as_data, describe
from gpusharing.cli.live.cluster import Decided, gathered
from gpusharing.cli.live.files import read_policies
from gpusharing.cli.shell.session import Session, no_such
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import CHANGES, DONE, FAILED, Trouble
from gpusharing.kube.client import JSON, POLICIES
from gpusharing.kube.raw import text
from gpusharing.planning.report.proposal import Proposal, tell_proposal


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""
    proposed, others = read_policies(typed.filename)
    only = {text(raw, "metadata", "name") for raw in proposed}
    if typed.policy:
        if only and typed.policy not in only:
            raise Trouble(no_such(POLICIES, typed.policy, sorted(only), "the file"))
        only = {typed.policy}
    planned = await propose(session, proposed, only)
    planned = replace(planned, notes=(*others, *planned.notes))
    terminal.answer(lambda: as_data(planned, session.name), lambda paper: describe(planned, paper))
    if any(not one.accepted for one in planned.proposals):
        return FAILED
    return CHANGES if any(one.changes for one in planned.proposals) else DONE


async def propose(session: Session, proposed: tuple[JSON, ...], only: set[str]) -> Planned:
    """Return what would happen to the pools of the policies named in `only`, or to all pools if it is empty, once the
    proposed policies were applied, and what is uncertain about that. Nothing is written. Raises Trouble, also for a
    name that no policy has."""
    async with gathered(session, proposed) as cluster:
        decided = await cluster.decide(only or None)
        told, ignored = tuple(tell(decided, only)), decided.snapshot.settings.gpu_operator_namespace
        dependents, unread = await read_dependents(session.client, find_vanishing(told, decided), ignored)
    names = [policy.name for policy in decided.snapshot.policies]
    for name in sorted(only):
        if name not in names:
            raise Trouble(no_such(POLICIES, name, names, session.where))
    nodes = {node for one in told for node in decided.plan.pools[one.policy].names}
    return Planned(told, (*decided.notes, *unread), decided.simulated(nodes), dependents)


def tell(decided: Decided, only: set[str]) -> list[Proposal]:
    """Return the proposals for the policies named in `only`, or for all if it is empty, in the order of their names."""
    return [
        tell_proposal(policy, decided.plan, decided.snapshot, decided.now)
        for policy in decided.snapshot.policies
        if not only or policy.name in only
    ]

"""The headline of a policy, which the condition Ready and the columns STATUS and MESSAGE show in their own words.

HEADLINES are checked in order, and the first that applies is shown everywhere.
"""

from collections.abc import Callable

from gpusharing.api.names import Phase
from gpusharing.planning.report.members import Members, tell_first, urgency
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value


@value
class Headline:
    """The state of one pool, worded for the three places that show it."""

    ready: str
    """Message of the condition Ready."""
    word: str
    """Value of the column STATUS."""
    message: str
    """Value of the column MESSAGE."""


@value
class PoolState:
    """A state that a pool may be in, and how it is reported."""

    find: Callable[[Members, RolloutPlan], Headline | None]
    """Returns the headline of this state, or None if the pool is not in it."""
    reason: Reason
    """The reason of the condition Ready in this state."""


def find_headline(pool: Members, plan: RolloutPlan) -> tuple[Reason, Headline]:
    """Return the reason of the condition Ready and the headline of the pool, from the first of HEADLINES that applies.
    If none applies, the headline says how many nodes are done and names the most urgent node that is not proven, or
    the most urgent of all if all are proven. The reason is then that of this node if it has the mark UNSUPPORTED,
    else RolloutInProgress, and the columns are those of `_shown`. Ready is True only with the reason Synced."""
    for state in HEADLINES:
        if (found := state.find(pool, plan)) is not None:
            return state.reason, found
    urgent = min(pool.unproven or pool.verdicts, key=urgency)
    reason = urgent.reason if Mark.UNSUPPORTED in urgent.reason.marks else Reason.ROLLOUT_IN_PROGRESS
    return reason, Headline(f"{_progress(pool)}; {tell_first([urgent])}", *_shown(pool))


def _deleting(pool: Members, plan: RolloutPlan) -> Headline | None:
    """Return the headline of a policy that is being deleted and releases its nodes as they are. None for any other
    policy. `plan` is ignored."""
    if not pool.policy.deleting:
        return None
    return Headline(
        "the policy is being deleted", "Deleting", "changes in flight are first finished or rolled back"
    )


def _resetting(pool: Members, plan: RolloutPlan) -> Headline | None:
    """Return the headline of a policy that is being deleted but first changes its nodes to whole GPUs. It says how many
    nodes are not proven yet, if any, and names the most urgent one. None for any other policy. `plan` is ignored."""
    if not pool.policy.resetting:
        return None
    text, left = "the policy is being deleted, and spec.deletionPolicy is Reset", pool.unproven
    if left:
        nodes = counted(len(left), "node has", "nodes have")
        text = f"{text}: {nodes} yet to be returned to whole GPUs; {tell_first(left)}"
    return Headline(text, "Deleting", text)


def _refused(pool: Members, plan: RolloutPlan) -> Headline | None:
    """Return a headline with the reason and message of the objection if the policy is not accepted, else None."""
    objection = plan.objections.get(pool.policy.name)
    if objection is None:
        return None
    return Headline(objection.message, str(objection.reason), objection.message)


def _empty(pool: Members, plan: RolloutPlan) -> Headline | None:
    """Return the headline of a policy that has no nodes, with the cause: spec.products leaves all of them out, else
    another policy owns them, else the selector matches none. None if the policy has a node that spec.products does not
    leave out, or will have one after a change of another policy. `plan` is ignored."""
    if pool.verdicts or pool.coming:
        return None
    text = "spec.nodeSelector matches no node with GPUs; label the nodes of the pool"
    if pool.skipped:
        text = tell_first(pool.skipped)
    elif pool.lost:
        owned = f"another policy owns every node that spec.nodeSelector selects: {some(pool.lost, 1)}"
        text = f"{owned}. Narrow one of the selectors, or give this policy a strictly higher spec.priority"
    return Headline(text, str(Reason.NO_NODES), text)


def _away(pool: Members, plan: RolloutPlan) -> Headline | None:
    """Return a headline that names the first node that is not Ready, if all nodes of the pool are proven. None if a
    node is not proven, or if all are Ready. `plan` is ignored."""
    if pool.unproven or not pool.away:
        return None
    text = f"{_progress(pool)} and Ready; {pool.away} is not Ready"
    return Headline(text, str(Reason.NODE_NOT_READY), f"{pool.away} is proven but not Ready")


def _awaited(pool: Members, plan: RolloutPlan) -> Headline | None:
    """Return the headline of a pool whose own nodes, if it has any, are all proven, while other nodes that the policy
    now owns are still in a change that another policy began. None for other pools. `plan` is ignored."""
    if pool.unproven or not pool.coming:
        return None
    proven = counted(pool.done, "node is", "nodes are")
    return Headline(f"{proven} proven; {tell_coming(pool)}", str(Phase.PENDING), tell_coming(pool))


def _proven(pool: Members, plan: RolloutPlan) -> Headline | None:
    """Return the headline of a pool whose nodes are all proven and Ready with nothing left to write. None for any other
    pool. The pool must have nodes. `plan` is ignored."""
    if pool.done < len(pool.verdicts):
        return None
    return Headline(f"{counted(pool.done, 'node is', 'nodes are')} proven", *_shown(pool))


HEADLINES = (
    PoolState(_deleting, Reason.DELETING),
    PoolState(_resetting, Reason.DELETING),
    PoolState(_refused, Reason.NOT_ACCEPTED),  # the column STATUS shows the reason of the objection instead
    PoolState(_empty, Reason.NO_NODES),
    PoolState(_away, Reason.NODE_NOT_READY),
    PoolState(_awaited, Reason.ROLLOUT_IN_PROGRESS),
    PoolState(_proven, Reason.SYNCED),
)
"""The first match wins. States that a person has to end come before those that only take
time."""


def tell_coming(pool: Members) -> str:
    """Return a message that names the first node of the pool that is still in a change which another policy began, and
    says how many more there are."""
    return f"waiting for {some(pool.coming, 1)}: a change that another policy began there must end first"


def _progress(pool: Members) -> str:
    """Return how many of the pool's nodes are done (`Members.done`), as a clause such as `3 of 8 nodes are proven`."""
    are = "is" if pool.done == 1 else "are"
    return f"{pool.done} of {counted(len(pool.verdicts), 'node')} {are} proven"


def _shown(pool: Members) -> tuple[str, str]:
    """Return the values of STATUS and MESSAGE, taken from the most urgent verdict. This verdict is chosen from the
    failed nodes (`Members.failures`) if there are any, else from those in flight, else from those not proven, else
    from all. The pool must have nodes.

    STATUS is the phase of that node. The reason takes its place if it has the mark STATUS, or if the node is Pending
    or Skipped for a reason other than Progressing. MESSAGE is the message of the verdict, or for a Synced node that
    its layout is proven.
    """
    moving = [verdict for verdict in pool.verdicts if verdict.phase.in_flight]
    shown = min(pool.failures or moving or pool.unproven or pool.verdicts, key=urgency)
    word = str(shown.reason) if Mark.STATUS in shown.reason.marks else str(shown.phase)
    if shown.phase in (Phase.PENDING, Phase.SKIPPED) and shown.reason is not Reason.PROGRESSING:
        word = str(shown.reason)
    return word, tell_first([shown]) if shown.phase is not Phase.SYNCED else f"{shown.wanted} proven"

"""The headline of a policy, which the condition Ready and the columns STATUS and MESSAGE show in their own words."""

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

    reason: Reason
    """The reason of the condition Ready, which is True only with the reason Synced."""
    ready: str
    """The message of the condition Ready."""
    word: str
    """The value of the column STATUS."""
    message: str
    """The value of the column MESSAGE."""


def find_headline(pool: Members, plan: RolloutPlan) -> Headline:
    """Return the headline of the pool. States that a person has to end come before those that only take time."""
    policy, left = pool.policy, pool.unproven
    if policy.deleting:
        message = "changes in flight are first finished or rolled back"
        return Headline(Reason.DELETING, "the policy is being deleted", "Deleting", message)
    if policy.resetting:
        text = "the policy is being deleted, and spec.deletionPolicy is Reset"
        if left:
            nodes = counted(len(left), "node has", "nodes have")
            text = f"{text}: {nodes} yet to be returned to whole GPUs; {tell_first(left)}"
        return Headline(Reason.DELETING, text, "Deleting", text)
    if (objection := plan.objections.get(policy.name)) is not None:
        text = objection.message
        return Headline(Reason.NOT_ACCEPTED, text, str(objection.reason), text)
    if not pool.verdicts and not pool.coming:
        text = "spec.nodeSelector matches no node with GPUs; label the nodes of the pool"
        if pool.skipped:
            text = tell_first(pool.skipped)
        elif pool.lost:
            owned = f"another policy owns every node that spec.nodeSelector selects: {some(pool.lost, 1)}"
            text = (
                f"{owned}. Narrow one of the selectors, or give this policy a strictly higher spec.priority"
            )
        return Headline(Reason.NO_NODES, text, str(Reason.NO_NODES), text)
    done, total = pool.done, len(pool.verdicts)
    progress = f"{done} of {counted(total, 'node')} {'is' if done == 1 else 'are'} proven"
    proven = f"{counted(done, 'node is', 'nodes are')} proven"
    if not left and pool.away:
        ready, message = (
            f"{progress} and Ready; {pool.away} is not Ready",
            f"{pool.away} is proven but not Ready",
        )
        return Headline(Reason.NODE_NOT_READY, ready, str(Reason.NODE_NOT_READY), message)
    if not left and pool.coming:
        coming = tell_coming(pool)
        return Headline(Reason.ROLLOUT_IN_PROGRESS, f"{proven}; {coming}", str(Phase.PENDING), coming)
    moving = [verdict for verdict in pool.verdicts if verdict.phase.in_flight]
    shown = min(pool.failures or moving or left or pool.verdicts, key=urgency)
    waits = shown.phase in (Phase.PENDING, Phase.SKIPPED) and shown.reason is not Reason.PROGRESSING
    word = str(shown.reason if waits or Mark.STATUS in shown.reason.marks else shown.phase)
    message = tell_first([shown]) if shown.phase is not Phase.SYNCED else f"{shown.wanted} proven"
    if done == total:
        return Headline(Reason.SYNCED, proven, word, message)
    urgent = min(left or pool.verdicts, key=urgency)
    reason = urgent.reason if Mark.UNSUPPORTED in urgent.reason.marks else Reason.ROLLOUT_IN_PROGRESS
    return Headline(reason, f"{progress}; {tell_first([urgent])}", word, message)


def tell_coming(pool: Members) -> str:
    """Return a message about the nodes of the pool that are still in a change which another policy began."""
    return f"waiting for {some(pool.coming, 1)}: a change that another policy began there must end first"

"""Errors about one node or one policy must not end the pass. A node that the planner cannot judge shows the error, and
the other nodes go on. If a policy cannot be judged, all its nodes show that, and the nodes of other policies go on.

The readers of input do not raise (`yamltext.py`, `kube/convert.py`), so this module only catches faults in our own
code. Without it, the process would end, restart, and fail on the same object again.

Terms: docs/design/glossary.md#fence.
"""

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason


class UnjudgedPolicyError(Exception):
    """The error about a policy, in the form in which it is recorded for each of the policy's nodes."""

    def __init__(self, policy: str, error: Exception) -> None:
        """Store the Finding that `policy` cannot be judged because of `error`."""
        self.finding = of_policy(policy, error)
        super().__init__(self.finding.message)


def of_policy(policy: str, error: Exception) -> Finding:
    """Return the Finding (PolicyNotJudged) that a policy cannot be judged, with the error (`explain_error`)."""
    return Finding(Reason.POLICY_NOT_JUDGED, f"policy {policy} cannot be evaluated: {explain_error(error)}")


def find_fault(error: Exception) -> Finding:
    """Return the Finding (NodeNotJudged) that a node cannot be judged, with the error (`explain_error`). For an
    UnjudgedPolicyError, return the Finding that its policy cannot be judged."""
    if isinstance(error, UnjudgedPolicyError):
        return error.finding
    return Finding(Reason.NODE_NOT_JUDGED, explain_error(error))


def not_judged(node: NodeView, policy: str, error: Exception) -> Verdict:
    """Return the Blocked verdict for a node whose judgment raised an error: nothing is done to the node, and its fence
    and cordon stay. `policy` is shown if the node has no fence."""
    fence, why = node.fence, find_fault(error)
    return Verdict(
        node=node.name,
        policy=fence.policy if fence else policy,
        phase=Phase.BLOCKED,
        reason=why.reason,
        message=f"{why.message}; the node is left unchanged",
        disruption=fence.disruption if fence else DisruptionClass.NONE,
        wanted=fence.to_layout if fence else "",
        attempt=fence.attempt if fence else 0,
    )


def explain_error(error: Exception) -> str:
    """Return a clause with the type and the text of the error and the place where it was raised, such as `KeyError: 'a'
    (plan.py, plan_drain, line 80)`, or `place unknown` if the error has no traceback. The error's text is cut to 200
    characters."""
    trace, place = error.__traceback__, "place unknown"
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{code.co_filename.rpartition('/')[2]}, {code.co_name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {str(error)[:200]} ({place})"

"""Errors about one node or one policy must not end the pass: the node, or all nodes of the policy, show the error, and the others go on.

The readers of input do not raise (`yamltext.py`, `kube/convert.py`), so this module only catches faults in our own code. Without it, the process would end, restart, and fail on the same object again.
"""

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason


class UnjudgedPolicyError(Exception):
    """The error about a policy, as it is recorded for each of its nodes."""

    def __init__(self, policy: str, error: Exception) -> None:
        self.finding = of_policy(policy, error)
        super().__init__(self.finding.message)


def of_policy(policy: str, error: Exception) -> Finding:
    return Finding(Reason.POLICY_NOT_JUDGED, f"policy {policy} cannot be evaluated: {explain_error(error)}")


def find_fault(error: Exception) -> Finding:
    if isinstance(error, UnjudgedPolicyError):
        return error.finding
    return Finding(Reason.NODE_NOT_JUDGED, explain_error(error))


def not_judged(node: NodeView, policy: str, error: Exception) -> Verdict:
    """Return the Blocked verdict for a node whose judgment raised an error; its fence and cordon stay."""
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
    """Return the type, the text and the place of the error, such as `KeyError: 'a' (plan.py, plan_drain, line 80)`."""
    trace, place = error.__traceback__, "place unknown"
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{code.co_filename.rpartition('/')[2]}, {code.co_name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {str(error)[:200]} ({place})"

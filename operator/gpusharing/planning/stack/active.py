"""Which of several ClusterPolicies the GPU Operator follows (docs/design/nvidia.md#d7)."""

from collections.abc import Iterable

from gpusharing.planning.snapshot.stackviews import ClusterPolicyView


def find_active(found: Iterable[ClusterPolicyView]) -> tuple[ClusterPolicyView | None, tuple[str, ...]]:
    """The one that it follows, and the names among which that cannot be decided; the policy returned is then the first
    of these.

    The GPU Operator marks all but one as `ignored`; before it has looked, or while it is away, it may have marked
    none. A single ClusterPolicy is the one, whatever its mark.
    """
    policies = sorted(found, key=lambda policy: policy.name)
    heeded = [policy for policy in policies if not policy.ignored] or policies
    rivals = tuple(policy.name for policy in heeded)
    return (heeded[0] if heeded else None), (rivals if len(rivals) > 1 else ())

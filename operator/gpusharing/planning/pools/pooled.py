"""The nodes of one policy, as holds, approval and canary see them."""

from collections.abc import Sequence
from datetime import datetime

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.pools.hours import Hours
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.members import Member
from gpusharing.planning.vocabulary.values import value


@value
class Pooled:
    """Everything about a pool that a hold may depend on."""

    policy: PolicyView
    """The policy whose nodes are to start."""
    spec: GPUSharingPolicySpec
    """The spec of the policy."""
    members: Sequence[Member]
    """The nodes that concern the policy."""
    failed_before: tuple[str, ...]
    """The nodes, as messages name them, whose failure in this generation is known only from the record."""
    frozen: bool
    """Whether spec.rollout.maxUnavailable allows no node at all, whatever the size of the pool."""
    hours: Hours
    """What the windows allow."""
    now: datetime
    """The time of the pass."""

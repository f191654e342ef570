"""The nodes of one policy, as what keeps them from starting is asked about them: holds, approval, canary."""

from collections.abc import Sequence
from datetime import datetime

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.pools.hours import Hours
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.way.members import Member
from gpusharing.planning.words.values import value


@value
class Pooled:
    """All that a hold may look at."""

    policy: PolicyView
    spec: GPUSharingPolicySpec
    """The policy's."""
    members: Sequence[Member]
    """Those that its budget is about."""
    frozen: bool
    """The limit is 0, whatever the pool has."""
    hours: Hours
    """What the windows say."""
    now: datetime

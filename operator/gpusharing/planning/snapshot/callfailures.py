"""Failing calls about one node, or to an object that all nodes share, and the back-off after them.

Kept in memory only. A failed call may nevertheless have taken effect, if only its response was lost, so each attempt is
planned afresh from the current state of the cluster.
"""

from datetime import datetime, timedelta

from gpusharing.planning.vocabulary.values import value

FIRST_WAIT = 2.0
"""Seconds to wait after the first failure."""
LONGEST_WAIT = 60.0
"""The longest wait between two attempts, in seconds."""
LASTING = 2
"""How many failures in a row it takes before they are shown to people. A single one is often over before they read it."""
STUCK = 6
"""How many failures in a row it takes, about a minute's worth, before other nodes no longer count on this node's slot."""

CLAIMS, CONFIG_MAPS = "claims on the Lease", "our ConfigMaps"
"""Subjects of failures that do not concern one node. No fence is written while calls about either of them fail."""
CLUSTER_POLICY = "pointers of ClusterPolicy"
"""Like the next two, a subject for which no fence waits."""
MPS_DAEMON_SET = "MPS DaemonSet"
DEVICE_CLASS = "DeviceClasses"
TAINT_RULE = "DeviceTaintRules"
"""A node whose rule cannot be written is cordoned."""
POLICIES = "list of policies"
"""No node starts before the LIST succeeds, because the plan may be based on outdated policies."""


def policy_subject(policy: str) -> str:
    """Return the subject of failed writes to `policy`; only fences of that policy wait for such writes."""
    return f"policy {policy}"  # cannot be the name of a node: it has a space


def backoff(tries: int, first: float, jitter: float = 0.0) -> float:
    """Return the seconds to wait after so many failures in a row: doubling from `first` to LONGEST_WAIT.

    `jitter` is in [0, 1) and shortens the wait by up to a quarter, so that calls do not all come again at once.
    """
    return min(LONGEST_WAIT, first * 2.0 ** min(tries - 1, 10)) * (1 - jitter / 4)


@value
class CallFailure:
    """The latest failure of an unbroken series of failed calls about one node or one other subject."""

    message: str
    """Which call failed, and what the server answered."""
    next_try: datetime
    """When the next call about the node may be made."""
    tries: int = 1
    call: str = ""
    """Which kind of call failed. Only a successful call of the same kind ends the series."""

    def holds(self, now: datetime) -> bool:
        return now < self.next_try

    @property
    def lasts(self) -> bool:
        """Whether to show the failures to people and to give up a slot that was claimed for a fence.

        After the first failure the fence may exist although its call failed. By the second, the watch would have
        shown that fence.
        """
        return self.tries >= LASTING

    @property
    def stuck(self) -> bool:
        return self.tries >= STUCK


def failed_again(
    before: CallFailure | None, message: str, now: datetime, jitter: float, call: str = ""
) -> CallFailure:
    """Return the failure to remember after one more failed call, which continues the series of `before` whatever its kind."""
    tries = before.tries + 1 if before is not None else 1
    return CallFailure(message, now + timedelta(seconds=backoff(tries, FIRST_WAIT, jitter)), tries, call)

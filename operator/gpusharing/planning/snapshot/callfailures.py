"""Failing calls about one node, or to an object that all nodes share. A node whose calls fail waits and shows the
server's answer, while the other nodes go on.

Failures are kept in memory only. A failed call may nevertheless have taken effect, if only its response was lost. So
each attempt is planned afresh from the current state of the cluster.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#claim, docs/design/glossary.md#slot.
"""

from datetime import datetime, timedelta

from gpusharing.planning.vocabulary.values import value

FIRST_WAIT = 2.0
"""Seconds to wait after the first failure. Each further failure doubles the wait."""
LONGEST_WAIT = 60.0
"""The longest wait between two attempts, in seconds."""
LASTING = 2
"""How many failures in a row it takes before they are shown to people. A single failure is often over before anybody
reads about it."""


STUCK = 6
"""How many failures in a row it takes, about a minute's worth, before nodes that wait for this node's slot are told
not to count on it."""

CLAIMS, CONFIG_MAPS = "claims on the Lease", "our ConfigMaps"
"""Subjects of failures that do not concern one node. No fence is written while calls about either of them fail."""
CLUSTER_POLICY = "pointers of ClusterPolicy"
"""Subject of a failed write to ClusterPolicy. No fence waits for it."""
MPS_DAEMON_SET = "MPS DaemonSet"
"""Subject of a failed repair of the MPS DaemonSet. No fence waits for it."""
DEVICE_CLASS = "DeviceClasses"
"""Subject of a failed write of DeviceClasses. No fence waits for it."""
TAINT_RULE = "DeviceTaintRules"
"""Subject of a failed write of DeviceTaintRules. A node whose rule cannot be written is cordoned."""
POLICIES = "list of policies"
"""Subject of a failed LIST of the policies. The plan may then be based on outdated policies, so no node starts before
the LIST succeeds."""


def policy_subject(policy: str) -> str:
    """Return the subject under which failures to write to `policy` are recorded. Only fences of that policy wait for
    such writes."""
    return f"policy {policy}"  # cannot be the name of a node: it has a space


@value
class CallFailure:
    """The latest failure of an unbroken series of failed calls about one node or one other subject."""

    message: str
    """Which call failed, and what the server answered."""
    next_try: datetime
    """When the next call about the node may be made."""
    tries: int = 1
    """The number of failures in a row; the next wait depends on it."""
    call: str = ""
    """Which kind of call failed. Only a successful call of the same kind ends the series."""

    def holds(self, now: datetime) -> bool:
        """Whether calls about the node or other subject are still suspended at `now`. They are suspended until
        `next_try`."""
        return now < self.next_try

    @property
    def lasts(self) -> bool:
        """Whether there were enough failures in a row (LASTING) to show them to people and to give up a slot that was
        claimed for a fence.

        After the first failure the fence may exist although its call failed. By the second failure, the watch would
        have shown that fence.
        """
        return self.tries >= LASTING

    @property
    def stuck(self) -> bool:
        """Whether there were enough failures in a row (STUCK) to tell the nodes that wait for this node's slot not to
        count on it."""
        return self.tries >= STUCK


def failed_again(
    before: CallFailure | None, message: str, now: datetime, jitter: float, call: str = ""
) -> CallFailure:
    """Return the failure to remember after a call of kind `call` has failed with `message`. The failure continues the
    series of `before`, whatever kind of call failed then, or starts a series if `before` is None. The wait doubles
    with each failure, up to LONGEST_WAIT; `jitter` is in [0, 1) and shortens the wait by up to a quarter."""
    tries = before.tries + 1 if before is not None else 1
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(tries - 1, 10)) * (1 - jitter / 4)
    return CallFailure(message, now + timedelta(seconds=wait), tries, call)

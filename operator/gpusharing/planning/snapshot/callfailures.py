"""Calls about one node that fail: the node waits, with its name and the server's answer in a message, and the other
nodes go on.

Failures are kept in memory only. A failed call may have been carried out nevertheless, when only its answer was lost,
so the next attempt is decided anew from the state of the cluster at that time.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#claim, docs/design/glossary.md#slot.
"""

from datetime import datetime, timedelta

from gpusharing.planning.vocabulary.values import value

FIRST_WAIT = 2.0
"""Seconds to wait after the first failure. Each further failure doubles the wait."""
LONGEST_WAIT = 60.0
"""The longest wait between two attempts, in seconds."""
LASTING = 2
"""This many failures in a row are shown to people. A single one is often over before anybody reads about it."""


STUCK = 6
"""This many failures in a row, in about a minute, are no hiccup: nodes that wait for the slot of this one say so."""

CLAIMS, CONFIG_MAPS = "claims on the Lease", "our ConfigMaps"
"""Subjects of failures that are not about one node. No fence is written while either of these calls fails."""
CLUSTER_POLICY = "pointers of ClusterPolicy"
"""Subject of a failed write to ClusterPolicy. No fence waits for it."""
POLICIES = "list of policies"
"""Subject of a failed LIST of the policies. What is planned may be out of date, so no node starts before it
succeeds."""


def policy_subject(policy: str) -> str:
    """Return the subject under which failing writes to a policy are counted. Only fences of that policy wait
    for it."""
    return f"policy {policy}"  # cannot be the name of a node: it has a space


@value
class CallFailure:
    """The last of several failures in a row of the calls about one node."""

    message: str
    """Which call failed, and what the server answered."""
    next_try: datetime
    """When the next call about the node may be made."""
    tries: int = 1
    """How many attempts in a row have failed, which decides about the next wait."""
    call: str = ""
    """Which call failed; only a success of the same call removes the failure."""

    def holds(self, now: datetime) -> bool:
        """Whether calls about this node are suspended until `next_try`."""
        return now < self.next_try

    def is_fresh(self, now: datetime) -> bool:
        """Whether the next attempt may not have been made yet. It can come up to LONGEST_WAIT after `next_try`,
        because much has to be proven again before some calls."""
        return now < self.next_try + timedelta(seconds=LONGEST_WAIT)

    @property
    def lasts(self) -> bool:
        """Whether it has lasted long enough to be shown to people, and to give up a slot that was claimed for a fence.

        After the first failure the fence may exist although its call failed; by the second the watch would have shown
        it.
        """
        return self.tries >= LASTING

    @property
    def stuck(self) -> bool:
        """Whether it has failed so often that those who wait for the node's slot are told not to count on it."""
        return self.tries >= STUCK


def failed_again(
    before: CallFailure | None, message: str, now: datetime, jitter: float, call: str = ""
) -> CallFailure:
    """Return what to remember of a failure that follows `before`. `jitter` is in [0, 1) and shortens the wait by up to
    a quarter."""
    tries = before.tries + 1 if before is not None else 1
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(tries - 1, 10)) * (1 - jitter / 4)
    return CallFailure(message, now + timedelta(seconds=wait), tries, call)

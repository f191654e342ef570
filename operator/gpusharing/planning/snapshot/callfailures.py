"""Calls about one node that fail: the node waits, named, with the server's words; the other nodes go on.

Failures are kept in memory only. A failed call may have been carried out nevertheless (a lost answer), so the next try
is decided again from the state of the cluster then.
"""

from datetime import datetime, timedelta

from gpusharing.planning.vocabulary.values import value

FIRST_WAIT = 2.0
"""Seconds after the first failure; doubles with each further one."""
LONGEST_WAIT = 60.0
"""Seconds."""
LASTING = 2
"""This many failures in a row are shown to people; a single one is often over before anybody reads about it."""


STUCK = 6
"""This many, in about a minute, are no hiccup: who waits for the node's slot is told."""

CLAIMS, CONFIG_MAPS = "claims on the Lease", "our ConfigMaps"
"""Subjects of failures that are not about a node: no fence is written before claims are, or while ConfigMaps are."""
CLUSTER_POLICY = "pointers of ClusterPolicy"
"""The same, and no fence waits for it."""
POLICIES = "list of policies"
"""What is planned may be out of date: no node starts before it succeeds."""


def policy_subject(policy: str) -> str:
    """The subject of a failing write to a policy; only its own fences wait for it."""
    return f"policy {policy}"  # cannot be the name of a node: it has a space


@value
class CallFailure:
    """The last of several failures in a row of the calls about one node."""

    message: str
    """Which call, and what the server said."""
    next_try: datetime
    """When the next call about the node may be made."""
    tries: int = 1
    """How many failed in a row; decides about the next wait."""
    call: str = ""
    """What was called; only a success of the same call removes the failure."""

    def holds(self, now: datetime) -> bool:
        """Nothing is sent about the node yet."""
        return now < self.next_try

    def is_fresh(self, now: datetime) -> bool:
        """The next try may not have come yet: much has to be proven again before some calls."""
        return now < self.next_try + timedelta(seconds=LONGEST_WAIT)

    @property
    def lasts(self) -> bool:
        """It is shown to people, and a slot that was taken for a fence is given back.

        Before that the fence may exist although its call failed; by the second time the watch has shown it.
        """
        return self.tries >= LASTING

    @property
    def stuck(self) -> bool:
        """Nobody counts on the node's slot any more."""
        return self.tries >= STUCK


def failed_again(
    before: CallFailure | None, message: str, now: datetime, jitter: float, call: str = ""
) -> CallFailure:
    """What to remember of a failure. `jitter` is in [0, 1) and shortens the wait by up to a quarter."""
    tries = before.tries + 1 if before is not None else 1
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(tries - 1, 10)) * (1 - jitter / 4)
    return CallFailure(message, now + timedelta(seconds=wait), tries, call)

"""A Finding says why something is not, or not yet, as it should be. An expected "no" is returned as a value and not
raised as an exception."""

from datetime import datetime

from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value


@value
class Finding:
    """One reason with its details. It may be about a policy, a card, an agent, a gate that refuses, or a source of
    proof that disagrees."""

    reason: Reason
    """The word for tools, whose meaning never changes."""
    message: str
    """What is wrong and what to do about it. The text stays the same as long as nothing changes."""
    until: datetime | None = None
    """When the passing of time alone may end the situation, or None if something else has to change."""
    keeper: str = ""
    """The object that holds the node back, in the form of the column CULPRIT, such as `gsp/NAME`. Empty if the
    reason's own keeper is precise enough."""
    stands: bool = False
    """Whether only a person can end this situation, although other situations with the same reason may end by
    themselves."""

    @staticmethod
    def of(result: "str | Finding", reason: Reason) -> "Finding":
        """Return the result of one check as a Finding. A message, even an empty one, becomes a Finding with `reason`.
        A Finding is returned unchanged, with its own reason."""
        return result if isinstance(result, Finding) else Finding(reason, result)

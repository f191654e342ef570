"""A Finding says why something is not, or not yet, as it should be: an expected "no" is returned, not raised."""

from datetime import datetime

from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value


@value
class Finding:
    """One reason with its details. The text stays the same as long as nothing changes."""

    reason: Reason
    message: str
    until: datetime | None = None
    """When the passing of time alone may end the situation, or None if something else has to change."""
    keeper: str = ""
    """The object that holds the node back, in the form of the column CULPRIT, such as `gsp/NAME`. Empty if the reason's own keeper is precise enough."""
    stands: bool = False
    """Whether only a person can end this situation, although other situations with the same reason may end by themselves."""

    @staticmethod
    def of(result: "str | Finding", reason: Reason) -> "Finding":
        """Return the result of a check as a Finding; a message gets `reason`."""
        return result if isinstance(result, Finding) else Finding(reason, result)

"""Why something is not, or not yet, as it should be: an expected "no" is a value and no exception."""

from datetime import datetime

from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value


@value
class Finding:
    """One reason with its particulars: about a policy, a card, an agent, a closed gate, or a source that disagrees."""

    reason: Reason
    """The word for tools; it never changes its meaning."""
    message: str
    """What is wrong and what to do about it. The text stays the same as long as nothing changes."""
    until: datetime | None = None
    """When the clock alone may end it, or None if it ends only when something else changes."""
    keeper: str = ""
    """The object that keeps the node waiting, as a culprit is shown. Empty if the keeper of the reason says enough."""
    stands: bool = False
    """Whether only a person can end it in this case, although its reason may otherwise end by itself."""

    @staticmethod
    def of(result: "str | Finding", reason: Reason) -> "Finding":
        """Return what one row of a ladder of checks found as a Finding: a text gets the reason of the row, a Finding
        keeps its own."""
        return result if isinstance(result, Finding) else Finding(reason, result)

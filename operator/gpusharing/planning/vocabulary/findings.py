"""Why something is not, or not yet, as it should be: an expected "no" is a value."""

from datetime import datetime

from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value


@value
class Finding:
    """One reason with its particulars: about a policy, a card, an agent, a closed gate, or a source that disagrees."""

    reason: Reason
    """The word for tools; it never changes its meaning."""
    message: str
    """What is the case, and what to do about it; the same text as long as nothing changes."""
    until: datetime | None = None
    """When the clock alone may end it; None: it ends only when something changes."""
    keeper: str = ""
    """The object that keeps the node, as a culprit is shown; empty: the reason says it."""
    stands: bool = False
    """Whether only a person ends it, although the reason also has an end that comes by itself."""

    @staticmethod
    def of(found: "str | Finding", reason: Reason) -> "Finding":
        """What one row of a ladder found: a text gets the row's reason, a finding keeps its own."""
        return found if isinstance(found, Finding) else Finding(reason, found)

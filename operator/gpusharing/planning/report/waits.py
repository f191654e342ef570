"""For every wait that is shown: who keeps the node if no pod does, and until when (docs/design/drain.md#rule-14).

A wait that the clock ends has a time. Any other wait says who ends it: a person, or others.
"""

from datetime import UTC, datetime, timedelta

from gpusharing.api.names import Phase
from gpusharing.api.times import NEVER, to_rfc3339
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import culprit
from gpusharing.planning.vocabulary.reasonkinds import Passes
from gpusharing.planning.vocabulary.reasons import Reason

PERSON, OTHERS = "person", "others"
"""What DEADLINE shows if no clock ends the wait."""
DAY = timedelta(days=1)
"""A deadline that is further than this from the beginning of its phase is shown with its date."""


def is_wait(verdict: Verdict) -> bool:
    """Something still has to happen to this node: a person, somebody else or the clock decides when."""
    return verdict.reason.passes is not Passes.DONE or verdict.reason is Reason.PROGRESSING


def who_keeps(verdict: Verdict, node: NodeView) -> str:
    """The first pod that keeps the node and how many more, otherwise the object or program that keeps it; empty: there
    is no wait."""
    if not is_wait(verdict):
        return ""
    if found := culprit(verdict.blockers) or verdict.leaving or verdict.keeper:
        return found
    match verdict.reason.keeper:
        case "policy" if verdict.policy:
            return f"gsp/{verdict.policy}"
        case "node":
            return f"node/{node.name}"
        case "foreign" if node.foreign:
            return node.foreign
        case who:
            return who


def until_when(verdict: Verdict, since: datetime) -> str:
    """When the clock ends the wait: a time of day in UTC, with its date if it is more than a day after `since`, when
    the phase began. Otherwise who ends it; empty: there is no wait."""
    if not is_wait(verdict):
        return ""
    if verdict.phase is Phase.FAILED or verdict.reason is Reason.DRAIN_HELD or verdict.stands:
        return PERSON
    deadline = verdict.deadline
    if deadline is not None and deadline != NEVER:
        return to_rfc3339(deadline) if deadline - since > DAY else f"{deadline.astimezone(UTC):%H:%M:%SZ}"
    foreign = verdict.reason is Reason.FOREIGN_MAINTENANCE
    return PERSON if verdict.reason.passes is Passes.BY_A_PERSON and not foreign else OTHERS

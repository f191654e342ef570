"""The verdict on a plan: nothing to do, changes, cannot, or unknown. The text, the data and the exit status of `plan`
are all read from it. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum

from gpusharing.cli.shell.documents import ConclusionData
from gpusharing.cli.shell.drawing import Ink, length
from gpusharing.cli.shell.troubles import CHANGES, DONE, FAILED_ON
from gpusharing.planning.report.proposal import Proposal, Step
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasonkinds import Mark, Passes

MOST = 3
"""How many policies the verdict names."""
FAIL_ON = ("evictions", "shortfall")
"""The words of --fail-on; see `_find_applying`."""
UNREADABLE = "the labels of the node and the resources that it advertises do not show which GPUs it has"


class Outcome(IntEnum):
    """The result of a plan; the value is the exit status. Of several policies, the highest counts."""

    NOTHING = DONE
    CHANGES = CHANGES
    CANNOT = 3
    UNKNOWN = 4

    def __str__(self) -> str:
        """Return the outcome in words: `nothing to do` for NOTHING, and for the others their name in lower case."""
        return "nothing to do" if self is Outcome.NOTHING else self.name.lower()


INKS = dict(zip(Outcome, (Ink.GOOD, Ink.BUSY, Ink.BAD, Ink.WAITING), strict=True))


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The verdict on the plans for one or more policies."""

    outcome: Outcome
    """The outcome of all policies together."""
    why: str
    """What will change, or why nothing will, or why that is unknown, in sentences."""
    steps: Sequence[Step]
    """The nodes that will change."""
    lasts: tuple[timedelta, ...]
    """How long all changes take at least and at most; empty if that is unknown or nothing changes."""
    estimate: bool
    """Whether the GPUs were inferred from labels, because the operator is not installed."""
    failed_on: tuple[str, ...] | None
    """The words of --fail-on that apply to the plan, or None if the flag was not given."""

    @property
    def status(self) -> int:
        """The exit status of `plan`: FAILED_ON if a word of --fail-on applies, otherwise the value of the outcome. With
        --fail-on, changes to which no word applies give DONE; the outcomes CANNOT and UNKNOWN keep their own status."""
        if self.failed_on:
            return FAILED_ON
        return DONE if self.failed_on is not None and self.outcome is Outcome.CHANGES else self.outcome

    @property
    def text(self) -> str:
        """The verdict as the first sentences of the answer: the outcome, whether it is an estimate, why, and the words
        of --fail-on that apply."""
        failed = f" --fail-on found: {', '.join(self.failed_on)}." if self.failed_on else ""
        estimate = " (estimate, because the operator is not installed)" if self.estimate else ""
        return f"{str(self.outcome).capitalize()}{estimate}: {self.why}{failed}"

    @property
    def data(self) -> ConclusionData:
        """The verdict as plain data: outcome, exit status, text, the numbers of nodes and evicted pods, how long the
        changes take, whether it is an estimate, and the words of --fail-on that apply. The seconds are None if they are
        unknown or nothing changes, and the words are an empty list also if the flag was not given."""
        pods, complete = count_evicted(self.steps)
        low, high = [int(one.total_seconds()) for one in self.lasts] or (None, None)
        return {
            "outcome": str(self.outcome),
            "exitStatus": int(self.status),  # YAML cannot represent a member of an enumeration
            "message": self.text,
            "nodes": len(self.steps),
            "pods": pods,
            "podsComplete": complete,
            "secondsAtLeast": low,
            "secondsAtMost": high,
            "estimate": self.estimate,
            "failedOn": list(self.failed_on or ()),
        }


def count_evicted(steps: Iterable[Step]) -> tuple[int, bool]:
    """Return how many pods these changes evict, as far as they were listed. The second result is whether they were
    listed on every node that would be cordoned; nodes that would not be cordoned need no list."""
    pods, complete = 0, True
    for step in steps:
        pods += len(step.preview.pods) if step.preview is not None else 0
        complete = complete and (step.preview is not None or not step.verdict.disruption.cordons)
    return pods, complete


def conclude(
    proposals: Sequence[Proposal], *, estimate: bool = False, fail_on: Sequence[str] | None = None
) -> Conclusion:
    """Return the verdict on the plans for these policies together. The highest outcome counts (NOTHING if there are no
    policies), and only the policies that have it are named as the reason, at most MOST of them; for NOTHING, the reason
    is that of `_tell_nothing`. What changes on all nodes is said too: before the reason if the outcome is CHANGES,
    otherwise after it. The time that the changes take is that of the policy that takes longest, and is unknown if it is
    so for one policy that changes nodes. `estimate` is true if the operator is not installed. `fail_on` has words of
    FAIL_ON, or is None if the flag --fail-on was not given."""
    found = [(one.policy, *judge(one, estimate=estimate)) for one in proposals]
    outcome = max((which for _, which, _ in found), default=Outcome.NOTHING)
    whys = [f"{policy}: {why.rstrip('.')}" for policy, which, why in found if which is outcome and why]
    changing = [one for one in proposals if one.steps]
    steps, spans = [step for one in changing for step in one.steps], [one.lasts for one in changing]
    lasts = tuple(map(max, zip(*spans, strict=True))) if all(spans) else ()
    first = _tell_nothing(proposals) if outcome is Outcome.NOTHING else some(whys, MOST)
    parts = [first, _tell_changes(steps, lasts)]
    why = " ".join(f"{part}." for part in parts[:: -1 if outcome is Outcome.CHANGES else 1] if part)
    failed_on = None if fail_on is None else _find_applying(fail_on, proposals, steps)
    return Conclusion(outcome, why, steps, lasts, estimate, failed_on)


def _find_applying(
    words: Iterable[str], proposals: Sequence[Proposal], steps: Sequence[Step]
) -> tuple[str, ...]:
    """Return the words of --fail-on in `words`, in their order, that apply to plans with these steps: `evictions` if
    pods are evicted or were not listed on a node that would be cordoned (`count_evicted`), `shortfall` if a policy
    changes nodes and pods then request more devices of a resource than will remain. Both apply if some nodes change and
    it is unknown what will happen to others. Raises KeyError for a word that is not in FAIL_ON."""
    unknown = bool(steps) and any(one.unread for one in proposals)
    short = any(lost.demand.waiting for one in proposals if one.steps for lost in one.vanishing)
    applies = {"evictions": unknown or count_evicted(steps) != (0, True), "shortfall": unknown or short}
    return tuple(word for word in words if applies[word])


def _tell_nothing(proposals: Sequence[Proposal]) -> str:
    """Return a clause that says why there is nothing to do: how many nodes already match their policies, governed by
    them or not yet; if none does, that no node with GPUs is selected or, without proposals, that there is no policy."""
    if nodes := sum(one.settled + len(one.adopted) for one in proposals):
        return f"{counted(nodes, 'node has', 'nodes have')} what the policies ask for"
    return "no node with GPUs is selected" if proposals else "there is no policy"


def judge(proposal: Proposal, *, estimate: bool = False) -> tuple[Outcome, str]:
    """Return the first outcome that applies to one policy, and why: CANNOT if the policy is refused; CHANGES if nodes
    change; CANNOT if other policies own all its nodes; UNKNOWN if nodes were not read or another policy still changes
    them; CANNOT if a person or another program must act first, unless the nodes do not concern the policy
    (`Mark.OUTSIDE`); else NOTHING. The text is empty for NOTHING, and for CHANGES unless a node was not read. Where
    several nodes are meant, it names at most three, and has the message of the first. `estimate` is true if the
    operator is not installed; nodes that were not read then have the message UNREADABLE instead of their own."""
    stuck = [one for one in proposal.left_out if Mark.OUTSIDE not in one.reason.marks]
    if not proposal.accepted:
        return Outcome.CANNOT, proposal.about
    unknown = ""
    if unread := proposal.unread:
        unknown = f"{some([one.node for one in unread])}: {UNREADABLE if estimate else unread[0].message}"
    if proposal.steps:
        return Outcome.CHANGES, unknown and f"it is unknown what will happen on {unknown}"
    if proposal.lost:
        owners, nodes = some(sorted({*proposal.lost.values()})), some(tuple(proposal.lost))
        why = f"other policies ({owners}) own every node that spec.nodeSelector selects ({nodes})"
        return Outcome.CANNOT, f"{why}. Narrow a selector, or give this policy a higher spec.priority"
    if unknown:
        return Outcome.UNKNOWN, unknown
    if proposal.coming:
        return Outcome.UNKNOWN, f"another policy is still changing {some(proposal.coming)}"
    if stuck:
        return Outcome.CANNOT, f"{some([one.node for one in stuck])}: {stuck[0].reason}: {stuck[0].message}"
    return Outcome.NOTHING, ""


def tell_span(lasts: Sequence[timedelta]) -> str:
    """Return a range of time in words, such as `about 20m to 1h5m`; both ends are named only if they differ in words
    (`length`). `lasts` has the least and the greatest time, and must not be empty."""
    return f"about {' to '.join(dict.fromkeys(map(length, lasts)))}"


def _tell_changes(steps: Sequence[Step], lasts: Sequence[timedelta]) -> str:
    """Return sentences that say how many nodes change and pods are evicted, for how many nodes a person has to act
    first (they do not start now, and nothing else ends the reason of their wait), and how long all of it takes, without
    the last period. If pods were not listed everywhere, their number is given as `at least`. Empty if no node changes.
    """
    if not steps:
        return ""
    pods, complete = count_evicted(steps)
    waiting = sum(not step.starts and step.verdict.reason.passes is Passes.BY_A_PERSON for step in steps)
    held = f" ({waiting} of them only after a person has acted)" if waiting else ""
    pods_evicted = f"{'' if complete else 'at least '}{counted(pods, 'pod')} will be evicted"
    long = "How long this takes is unknown: no past change is recorded, or no window is long enough"
    if lasts:
        long = f"This takes {tell_span(lasts)}, judging by past changes and the windows"
    return f"{counted(len(steps), 'node')} will change{held} and {pods_evicted}. {long}"

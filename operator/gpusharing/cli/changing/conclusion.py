"""The verdict on a plan: nothing to do, changes, cannot, or unknown. The text, the data and the exit status of `plan`
are all read from it. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from gpusharing.cli.shell.drawing import Ink, length
from gpusharing.cli.shell.troubles import CANNOT, CHANGES, DONE, FAILED_ON, UNKNOWN
from gpusharing.planning.report.proposal import Proposal, Step
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasonkinds import Mark, Passes

MOST = 3
"""How many policies the verdict names."""
UNREADABLE = "the labels of the node and the resources that it advertises do not show which GPUs it has"


class Outcome(StrEnum):
    """What a plan comes to."""

    NOTHING = "nothing to do"
    CHANGES = "changes"
    CANNOT = "cannot"
    UNKNOWN = "unknown"


STATUS = {Outcome.NOTHING: DONE, Outcome.CHANGES: CHANGES, Outcome.CANNOT: CANNOT, Outcome.UNKNOWN: UNKNOWN}
"""The exit status for each outcome. Of several policies, the outcome with the highest one counts."""
INKS = {
    Outcome.NOTHING: Ink.GOOD,
    Outcome.CHANGES: Ink.BUSY,
    Outcome.CANNOT: Ink.BAD,
    Outcome.UNKNOWN: Ink.WAITING,
}


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The verdict on the plans for one or more policies."""

    outcome: Outcome
    """The outcome of all policies together."""
    why: str
    """What will change, or why nothing will, or why that is unknown, in sentences."""
    steps: Sequence[Step]
    """The nodes that will change."""
    lasts: tuple[timedelta, timedelta] | None
    """How long all changes take at least and at most, or None if that is unknown or nothing changes."""
    estimate: bool
    """Whether the GPUs were inferred from labels, because the operator is not installed."""
    failed_on: tuple[str, ...] | None
    """The words of --fail-on that apply to the plan, or None if the flag was not given."""

    @property
    def status(self) -> int:
        """The exit status of `plan`: FAILED_ON if a word of --fail-on applies, otherwise that of the outcome. With
        --fail-on, changes to which no word applies give DONE."""
        if self.failed_on:
            return FAILED_ON
        allowed = self.failed_on is not None and self.outcome is Outcome.CHANGES
        return DONE if allowed else STATUS[self.outcome]

    @property
    def text(self) -> str:
        """The verdict as the first sentences of the answer."""
        failed = f" --fail-on found: {', '.join(self.failed_on)}." if self.failed_on else ""
        estimate = " (estimate, because the operator is not installed)" if self.estimate else ""
        return f"{self.outcome.capitalize()}{estimate}: {self.why}{failed}"

    @property
    def data(self) -> dict[str, Any]:
        """The verdict as plain data. The seconds are None if they are unknown or nothing changes."""
        pods, complete = count_evicted(self.steps)
        low, high = (int(one.total_seconds()) for one in self.lasts) if self.lasts else (None, None)
        return {
            "outcome": str(self.outcome),
            "exitStatus": self.status,
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
    """Return how many pods these changes evict, as far as they were listed, and whether they were listed on every node
    that is drained."""
    pods, complete = 0, True
    for step in steps:
        pods += len(step.preview.pods) if step.preview is not None else 0
        complete = complete and (step.preview is not None or not step.verdict.disruption.cordons)
    return pods, complete


def _falls_short(proposals: Sequence[Proposal]) -> bool:
    """Whether pods request more devices of a resource than will remain when a plan with changes is carried out."""
    return any(lost.demand.waiting for one in proposals if one.steps for lost in one.vanishing)


FAIL_ON: Mapping[str, Callable[[Sequence[Proposal]], bool]] = {
    "evictions": lambda proposals: count_evicted(_steps(proposals)) != (0, True),
    "shortfall": _falls_short,
}
"""The words of --fail-on, and whether each applies to a plan. Pods that were not listed count as evicted."""


def _steps(proposals: Iterable[Proposal]) -> list[Step]:
    """Return the nodes that change under any of these policies."""
    return [step for one in proposals for step in one.steps]


def conclude(
    proposals: Sequence[Proposal], *, estimate: bool = False, fail_on: Sequence[str] | None = None
) -> Conclusion:
    """Return the verdict on the plans for these policies together. `estimate` is true if the operator is not installed.
    `fail_on` has keys of FAIL_ON, or is None if the flag --fail-on was not given."""
    found = [(one.policy, *judge(one, estimate=estimate)) for one in proposals]
    outcome = max((which for _, which, _ in found), key=STATUS.__getitem__, default=Outcome.NOTHING)
    steps, lasts = _steps(proposals), _span([one.lasts for one in proposals if one.steps])
    whys = [f"{policy}: {why.rstrip('.')}." for policy, which, why in found if which is outcome]
    if outcome in (Outcome.NOTHING, Outcome.CHANGES):
        whys = [_tell_nothing(proposals)] if outcome is Outcome.NOTHING else []
    parts = whys[:MOST]
    if len(whys) > MOST:
        parts.append(
            f"The same is true of {counted(len(whys) - MOST, 'further policy', 'further policies')}."
        )
    if steps:
        parts.append(_tell_changes(steps, lasts))
    failed_on = None if fail_on is None else tuple(word for word in fail_on if FAIL_ON[word](proposals))
    return Conclusion(outcome, " ".join(parts), steps, lasts, estimate, failed_on)


def judge(proposal: Proposal, *, estimate: bool = False) -> tuple[Outcome, str]:
    """Return the outcome of the plan for one policy, and why nothing changes or why that is unknown. The second part is
    empty if nodes change or if nothing is to be done. `estimate` is true if the operator is not installed."""
    stuck = [one for one in proposal.left_out if Mark.OUTSIDE not in one.reason.marks]
    if not proposal.accepted:
        return Outcome.CANNOT, proposal.about
    if proposal.steps:
        return Outcome.CHANGES, ""
    if proposal.lost:
        owners, nodes = some(sorted({*proposal.lost.values()})), some(tuple(proposal.lost))
        return Outcome.CANNOT, (
            f"other policies ({owners}) own every node that spec.nodeSelector selects ({nodes}). Narrow one of the"
            " selectors, or give this policy a strictly higher spec.priority"
        )
    if unread := proposal.unread:
        why = UNREADABLE if estimate else unread[0].message
        return Outcome.UNKNOWN, f"{some([one.node for one in unread])}: {why}"
    if proposal.coming:
        return Outcome.UNKNOWN, f"another policy is still changing {some(proposal.coming)}"
    if stuck:
        return Outcome.CANNOT, f"{some([one.node for one in stuck])}: {stuck[0].reason}: {stuck[0].message}"
    return Outcome.NOTHING, ""


def _span(
    spans: Sequence[tuple[timedelta, timedelta] | None],
) -> tuple[timedelta, timedelta] | None:
    """Return how long changes take at least and at most that go on side by side and take as long as `spans` say. None
    if there are no spans, or if one is unknown."""
    known = [span for span in spans if span is not None]
    if not known or len(known) < len(spans):
        return None
    return max(low for low, _ in known), max(high for _, high in known)


def tell_span(lasts: tuple[timedelta, timedelta]) -> str:
    """Return a range of time in words, such as `about 20m to 1h5m`; both ends are named only if they differ."""
    return f"about {' to '.join(dict.fromkeys(map(length, lasts)))}"


def _tell_changes(steps: Sequence[Step], lasts: tuple[timedelta, timedelta] | None) -> str:
    """Return sentences that say how many nodes change and pods are evicted, for how many nodes a person has to act
    first, and how long all of it takes."""
    pods, complete = count_evicted(steps)
    waiting = sum(not step.starts and step.verdict.reason.passes is Passes.BY_A_PERSON for step in steps)
    held = f" ({waiting} of them only after a person has acted)" if waiting else ""
    least = "" if complete else "at least "
    long = "How long this takes is unknown: no past change is recorded, or no window is long enough"
    if lasts:
        long = f"This takes {tell_span(lasts)}, judging by past changes and the windows"
    changes = (
        f"{counted(len(steps), 'node')} will change{held} and {least}{counted(pods, 'pod')} will be evicted"
    )
    return f"{changes}. {long}."


def _tell_nothing(proposals: Sequence[Proposal]) -> str:
    """Return a sentence that says why there is nothing to do."""
    nodes = sum(one.settled + len(one.adopted) for one in proposals)
    if nodes:
        return f"{counted(nodes, 'node has', 'nodes have')} what the policies ask for."
    return "no node with GPUs is selected." if proposals else "there is no policy."

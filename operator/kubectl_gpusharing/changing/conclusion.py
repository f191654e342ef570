"""The verdict on a plan: nothing to do, changes, cannot, or unknown. It decides text, data and exit status. Pure."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from enum import IntEnum

from gpusharing.planning.report.proposal import Proposal, Step
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasonkinds import Mark, Passes
from kubectl_gpusharing.shell.documents import ConclusionData
from kubectl_gpusharing.shell.drawing import Ink, length
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED_ON

FAIL_ON = ("evictions", "shortfall")
UNREADABLE = "the labels of the node and the resources that it advertises do not show which GPUs it has"


class Outcome(IntEnum):
    """The result of a plan; the value is the exit status."""

    NOTHING = DONE
    CHANGES = CHANGES
    CANNOT = 3
    UNKNOWN = 4

    def __str__(self) -> str:
        return "nothing to do" if self is Outcome.NOTHING else self.name.lower()


INKS = dict(zip(map(str, Outcome), (Ink.GOOD, Ink.BUSY, Ink.BAD, Ink.WAITING), strict=True))


def count_evicted(steps: Iterable[Step]) -> tuple[int, bool]:
    """Return how many pods these changes evict, and whether they were listed on every node that would be cordoned."""
    pods, complete = 0, True
    for step in steps:
        pods += len(step.preview.pods) if step.preview is not None else 0
        complete = complete and (step.preview is not None or not step.verdict.disruption.cordons)
    return pods, complete


def conclude(
    proposals: Sequence[Proposal],
    *,
    estimate: bool = False,
    fail_on: Sequence[str] | None = None,
    bars_tenants: bool = False,
) -> ConclusionData:
    """Return the verdict on the plans for these policies together: the highest outcome counts. `fail_on` is None if the flag was not given."""
    judged = [(one, *judge(one, estimate=estimate)) for one in proposals]
    outcome = max((which for _, which, _ in judged), default=Outcome.NOTHING)
    steps = [step for one in proposals for step in one.steps]
    spans = [one.lasts for one in proposals if one.steps]
    lasts = tuple(map(max, zip(*spans, strict=True))) if all(spans) else ()
    pods, complete = count_evicted(steps)
    whys = [f"{one.policy}: {why.rstrip('.')}" for one, which, why in judged if which is outcome and why]
    reason = some(whys)
    if outcome is Outcome.NOTHING:
        matching = sum(one.settled + len(one.adopted) for one in proposals)
        reason = "no node with GPUs is selected" if judged else "there is no policy"
        if matching:
            reason = f"{counted(matching, 'node has', 'nodes have')} what the policies ask for"
    changes = ""
    if steps:
        person = sum(not step.starts and step.verdict.reason.passes is Passes.BY_A_PERSON for step in steps)
        held = f" ({person} of them only after a person has acted)" if person else ""
        evicted = f"{'' if complete else 'at least '}{counted(pods, 'pod')} will be evicted"
        long = "How long this takes is unknown: no past change is recorded, or no window is long enough"
        if lasts:
            long = f"This takes {tell_span(lasts)}, judging by past changes and the windows"
        changes = f"{counted(len(steps), 'node')} will change{held} and {evicted}. {long}"
    parts = (changes, reason) if outcome is Outcome.CHANGES else (reason, changes)
    why = " ".join(f"{part}." for part in parts if part)
    unread = bool(steps) and any(one.unread for one in proposals)
    waiting = any(lost.demand.waiting for one in proposals if one.steps for lost in one.vanishing)
    evicts, short = unread or pods > 0 or not complete, unread or waiting or bars_tenants
    failed_on = [word for word in fail_on or () if (evicts if word == "evictions" else short)]
    status = DONE if fail_on is not None and outcome is Outcome.CHANGES else int(outcome)
    guess = " (estimate, because the operator is not installed)" * estimate
    failed = f" --fail-on found: {', '.join(failed_on)}." if failed_on else ""
    low, high = [int(one.total_seconds()) for one in lasts] or (None, None)
    return {
        "outcome": str(outcome),
        "exitStatus": FAILED_ON if failed_on else status,
        "message": f"{str(outcome).capitalize()}{guess}: {why}{failed}",
        "nodes": len(steps),
        "pods": pods,
        "podsComplete": complete,
        "secondsAtLeast": low,
        "secondsAtMost": high,
        "estimate": estimate,
        "failedOn": failed_on,
    }


def judge(proposal: Proposal, *, estimate: bool = False) -> tuple[Outcome, str]:
    """Return the first outcome that applies to one policy, and why; the text may be empty for NOTHING and CHANGES."""
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
    if stuck := [one for one in proposal.left_out if Mark.OUTSIDE not in one.reason.marks]:
        return Outcome.CANNOT, f"{some([one.node for one in stuck])}: {stuck[0].reason}: {stuck[0].message}"
    return Outcome.NOTHING, ""


def tell_span(lasts: Sequence[timedelta]) -> str:
    """Return a range of time in words, such as `about 20m to 1h5m`."""
    return f"about {' to '.join(dict.fromkeys(map(length, lasts)))}"

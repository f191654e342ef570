"""The verdict on a plan: nothing to do, changes, cannot, or unknown. The text, the data and the exit status of `plan`
are all read from it. Pure."""

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


INKS = dict(zip(map(str, Outcome), (Ink.GOOD, Ink.BUSY, Ink.BAD, Ink.WAITING), strict=True))


def count_evicted(steps: Iterable[Step]) -> tuple[int, bool]:
    """Return how many pods these changes evict, as far as they were listed. The second result is whether they were
    listed on every node that would be cordoned; nodes that would not be cordoned need no list."""
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
    """Return the verdict on the plans for these policies together, as plain data. `estimate` is true if the operator is
    not installed. `fail_on` has words of FAIL_ON, or is None if the flag --fail-on was not given. `bars_tenants` is
    `Planned.bars_tenants`.

    The highest outcome counts (NOTHING if there are no policies), and only the policies that have it are named as the
    reason (`_tell_reason`). What changes on all nodes is said too: before the reason if the outcome is CHANGES,
    otherwise after it. The time that the changes take is that of the policy that takes longest. Its seconds are None if
    nothing changes, or if it is unknown for one policy that changes nodes. The exit status is FAILED_ON if a word of
    `fail_on` applies, otherwise the value of the outcome. With `fail_on`, changes to which no word applies give DONE;
    the outcomes CANNOT and UNKNOWN keep their own status. `failedOn` is an empty list also without the flag."""
    judged = [(one, *judge(one, estimate=estimate)) for one in proposals]
    outcome = max((which for _, which, _ in judged), default=Outcome.NOTHING)
    steps = [step for one in proposals for step in one.steps]
    spans = [one.lasts for one in proposals if one.steps]
    lasts = tuple(map(max, zip(*spans, strict=True))) if all(spans) else ()
    parts = [_tell_reason(judged, outcome), _tell_changes(steps, lasts)]
    why = " ".join(f"{part}." for part in parts[:: -1 if outcome is Outcome.CHANGES else 1] if part)
    failed_on = _find_applying(fail_on or (), proposals, steps, bars_tenants=bars_tenants)
    status = DONE if fail_on is not None and outcome is Outcome.CHANGES else int(outcome)
    guess = " (estimate, because the operator is not installed)" * estimate
    failed = f" --fail-on found: {', '.join(failed_on)}." if failed_on else ""
    pods, complete = count_evicted(steps)
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


def _find_applying(
    words: Iterable[str], proposals: Sequence[Proposal], steps: Sequence[Step], *, bars_tenants: bool
) -> list[str]:
    """Return the words of --fail-on in `words`, in their order, that apply to plans with these steps: `evictions` if
    pods are evicted or were not listed on a node that would be cordoned (`count_evicted`), `shortfall` if a policy
    changes nodes and pods then request more devices of a resource than will remain, or if `bars_tenants`. Both apply if
    some nodes change and it is unknown what will happen to others. Raises KeyError for a word that is not in FAIL_ON.
    """
    unknown = bool(steps) and any(one.unread for one in proposals)
    waiting = any(lost.demand.waiting for one in proposals if one.steps for lost in one.vanishing)
    short = waiting or bars_tenants
    applies = {"evictions": unknown or count_evicted(steps) != (0, True), "shortfall": unknown or short}
    return [word for word in words if applies[word]]


def _tell_reason(judged: Sequence[tuple[Proposal, Outcome, str]], outcome: Outcome) -> str:
    """Return a clause with the reasons of the policies whose outcome is `outcome`, of at most three of them. For
    NOTHING, say how many nodes already match their policies, governed by them or not yet; if none does, that no node
    with GPUs is selected or, without policies, that there is none. `judged` has each policy and what `judge` says."""
    if outcome is not Outcome.NOTHING:
        whys = (f"{one.policy}: {why.rstrip('.')}" for one, which, why in judged if which is outcome and why)
        return some([*whys])
    if nodes := sum(one.settled + len(one.adopted) for one, _, _ in judged):
        return f"{counted(nodes, 'node has', 'nodes have')} what the policies ask for"
    return "no node with GPUs is selected" if judged else "there is no policy"


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

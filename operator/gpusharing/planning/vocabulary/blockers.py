"""What keeps pods from leaving, in words that do not change while the situation does not
(docs/design/drain.md#messages)."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.reasons import Reason, most_urgent
from gpusharing.planning.vocabulary.values import value

MAX_LINES = 5
MAX_PODS = 3
MAX_MESSAGE = 400
"""Characters of a message; server texts can be long."""


@value
class Blocker:
    """One reason why some pods do not leave."""

    reason: Reason
    """Why they do not leave."""
    pods: tuple[str, ...] = ()
    """`namespace/name`, sorted."""
    pdb: str = ""
    """`namespace/name` of the PodDisruptionBudget; several are joined by a comma."""
    message: str = ""
    """The particulars; it quotes what the API server said verbatim, after `Server:`."""
    until: datetime | None = None
    """When the clock alone ends it; None: the clock does not."""


def merge(blockers: Iterable[Blocker]) -> tuple[Blocker, ...]:
    """Blockers that differ only in their pods become one; sorted by reason, then pods."""
    pods: dict[tuple[Reason, str, str, datetime | None], set[str]] = {}
    for blocker in blockers:
        alike = (blocker.reason, blocker.pdb, blocker.message, blocker.until)
        pods.setdefault(alike, set()).update(blocker.pods)
    merged = (
        Blocker(reason, tuple(sorted(names)), pdb, message, until)
        for (reason, pdb, message, until), names in pods.items()
    )
    return tuple(sorted(merged, key=_order))


def explain_blockers(blockers: Iterable[Blocker]) -> tuple[str, ...]:
    """One line per reason: budget, at most three pods, particulars, remedy. At most five lines.

    Equal blockers in any order give equal lines: status must not change while nothing does.
    """
    ordered = merge(blockers)
    if len(ordered) <= MAX_LINES:
        return tuple(_line(blocker) for blocker in ordered)
    shown = ordered[: MAX_LINES - 1]
    return (*(_line(blocker) for blocker in shown), f"... ({len(ordered) - len(shown)} more)")


def culprit(blockers: Iterable[Blocker]) -> str:
    """The first pod of the most urgent blocker and how many more block: `ns/pod +2`; "" when no pod does."""
    with_pods = sorted((b for b in blockers if b.pods), key=lambda b: (b.reason.urgency, b.pods))
    if not with_pods:
        return ""
    more = len({pod for blocker in with_pods for pod in blocker.pods}) - 1
    return with_pods[0].pods[0] + (f" +{more}" if more else "")


def ends_at(blockers: Iterable[Blocker]) -> datetime | None:
    """When the clock will have ended all of them; None: some need more than the clock, or there are none."""
    ends = [blocker.until for blocker in blockers]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def main_reason(blockers: Iterable[Blocker]) -> Reason | None:
    """The reason to show where there is room for one; None when nothing blocks."""
    reasons = [blocker.reason for blocker in blockers]
    return most_urgent(reasons) if reasons else None


def _order(blocker: Blocker) -> tuple[str, tuple[str, ...], str, str]:
    return blocker.reason.value, blocker.pods, blocker.pdb, blocker.message


def _line(blocker: Blocker) -> str:
    parts = [f"{blocker.reason} {blocker.pdb}".rstrip()]
    if blocker.pods:
        parts[0] += f": {_pods(blocker.pods)}."
    else:
        parts[0] += ":"
    if blocker.message:
        parts.append(_sentence(cut(" ".join(blocker.message.split()), MAX_MESSAGE)))
    if blocker.reason.remedy:
        parts.append(f"Remedy: {blocker.reason.remedy}")
    return " ".join(parts)


def _pods(pods: Sequence[str]) -> str:
    text = ", ".join(sorted(pods)[:MAX_PODS])
    if len(pods) > MAX_PODS:
        text += f", ... ({len(pods) - MAX_PODS} more)"
    return ("Pod " if len(pods) == 1 else "Pods ") + text


def _sentence(text: str) -> str:
    return text if text.endswith((".", "...")) else f"{text}."

"""Explains what keeps pods from leaving a node, in a form that does not change while the situation does not
(docs/design/drain.md#messages).

Terms: docs/design/glossary.md#blocker.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.reasons import Reason, most_urgent
from gpusharing.planning.vocabulary.values import value

MAX_LINES = 5
"""The most lines that are shown about the blockers of one node."""
MAX_PODS = 3
"""The most pods that one line names."""
MAX_MESSAGE = 400
"""The most characters of a blocker's message that its line shows, because a server's message can be long."""


@value
class Blocker:
    """One reason why some pods cannot leave their node."""

    reason: Reason
    """Why these pods cannot leave."""
    pods: tuple[str, ...] = ()
    """The pods concerned, as `namespace/name`, sorted."""
    pdb: str = ""
    """The PodDisruptionBudget that refuses the eviction, as `namespace/name`; several are separated by commas."""
    message: str = ""
    """Details. A response of the API server is quoted verbatim, after `Server:`."""
    until: datetime | None = None
    """When the passing of time alone ends the blocker, or None if it does not."""


def merge(blockers: Iterable[Blocker]) -> tuple[Blocker, ...]:
    """Return the blockers, sorted by the word of their reason, then by pods, budget and message. Blockers that differ
    only in their pods are merged into one blocker with all of these pods, sorted and each named once."""
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
    """Return one line for each merged blocker, with its reason, budget, pods (at most MAX_PODS), message and remedy.
    At most MAX_LINES lines are returned; if blockers are left out, the last line says how many.

    Equal blockers in any order give equal lines, because a status must not change while the situation does not.
    """
    ordered = merge(blockers)
    if len(ordered) <= MAX_LINES:
        return tuple(_line(blocker) for blocker in ordered)
    shown = ordered[: MAX_LINES - 1]
    return (*(_line(blocker) for blocker in shown), f"... ({len(ordered) - len(shown)} more)")


def culprit(blockers: Iterable[Blocker]) -> str:
    """Return the first pod of the most urgent blocker that names pods, and the number of all other blocking pods, such
    as `namespace/name +2`. Empty if no blocker names a pod."""
    with_pods = sorted((b for b in blockers if b.pods), key=lambda b: (b.reason.urgency, b.pods))
    if not with_pods:
        return ""
    more = len({pod for blocker in with_pods for pod in blocker.pods}) - 1
    return with_pods[0].pods[0] + (f" +{more}" if more else "")


def ends_at(blockers: Iterable[Blocker]) -> datetime | None:
    """Return the time by which all blockers will have ended by themselves. None if one of them does not end with time,
    or if there are no blockers."""
    ends = [blocker.until for blocker in blockers]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def main_reason(blockers: Iterable[Blocker]) -> Reason | None:
    """Return the most urgent reason of the blockers, or None if there are no blockers."""
    reasons = [blocker.reason for blocker in blockers]
    return most_urgent(reasons) if reasons else None


def _order(blocker: Blocker) -> tuple[str, tuple[str, ...], str, str]:
    """Return the sort key of a blocker: the word of its reason, its pods, budget and message, in that order."""
    return blocker.reason.value, blocker.pods, blocker.pdb, blocker.message


def _line(blocker: Blocker) -> str:
    """Return the line that people read about one blocker: reason and budget, pods, message, remedy. Parts that the
    blocker or its reason does not have are left out. The message is put on one line and cut to MAX_MESSAGE
    characters."""
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
    """Return the first MAX_PODS names in alphabetical order after `Pod` or `Pods`, and how many more there are."""
    text = ", ".join(sorted(pods)[:MAX_PODS])
    if len(pods) > MAX_PODS:
        text += f", ... ({len(pods) - MAX_PODS} more)"
    return ("Pod " if len(pods) == 1 else "Pods ") + text


def _sentence(text: str) -> str:
    """Return the text with a period at the end, which is added only if there is none."""
    return text if text.endswith((".", "...")) else f"{text}."

"""Why is something not as it should be, on a node or for a pod that has not left?"""

from collections.abc import Iterable
from datetime import datetime

from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value


@value
class Finding:
    """Why something is not, or not yet, as it should be. The text stays the same as long as nothing changes."""

    reason: Reason
    message: str
    until: datetime | None = None
    """When the passing of time alone may end the situation, or None if something else has to change."""
    keeper: str = ""
    """The object that holds the node back, such as `gsp/NAME`, if the reason's own keeper is not precise enough."""
    stands: bool = False
    """Whether only a person can end this situation, though others with the same reason end by themselves."""
    commands: tuple[Command, ...] = ()
    """The commands that the message tells people to run."""

    @staticmethod
    def of(result: "str | Finding", reason: Reason) -> "Finding":
        return result if isinstance(result, Finding) else Finding(reason, result)


MAX_LINES = 5
MAX_PODS = 3
MAX_MESSAGE = 400
"""The most characters of a blocker's message that its line shows. A server's message can be long."""


@value
class Blocker:
    """One reason why some pods cannot leave their node (docs/design/drain.md#messages)."""

    reason: Reason
    pods: tuple[str, ...] = ()
    """As `namespace/name`, sorted."""
    pdb: str = ""
    """The PodDisruptionBudget that refuses the eviction, as `namespace/name`. Several are separated by commas."""
    message: str = ""
    """The details of the blocker. A response of the API server is quoted verbatim, after `Server:`."""
    until: datetime | None = None
    """When the passing of time alone ends the blocker, or None if it does not."""


def merge(blockers: Iterable[Blocker]) -> tuple[Blocker, ...]:
    """Return the blockers, the most urgent first. Those that differ only in their pods are merged into one."""
    pods: dict[tuple[Reason, str, str, datetime | None], set[str]] = {}
    for blocker in blockers:
        pods.setdefault((blocker.reason, blocker.pdb, blocker.message, blocker.until), set()).update(blocker.pods)
    merged = (
        Blocker(reason, tuple(sorted(names)), pdb, message, until)
        for (reason, pdb, message, until), names in pods.items()
    )
    return tuple(sorted(merged, key=lambda one: (one.reason.urgency, one.pods, one.pdb, one.message)))


def explain_blockers(blockers: Iterable[Blocker]) -> tuple[str, ...]:
    ordered = merge(blockers)
    shown = ordered if len(ordered) <= MAX_LINES else ordered[: MAX_LINES - 1]
    lines = []
    for blocker in shown:
        about, pods = f"{blocker.reason} {blocker.pdb}".rstrip(), blocker.pods
        if pods:
            more = f", ... ({len(pods) - MAX_PODS} more)" if len(pods) > MAX_PODS else ""
            about += f": {'Pod' if len(pods) == 1 else 'Pods'} {', '.join(sorted(pods)[:MAX_PODS])}{more}."
        else:
            about += ":"
        message = cut(" ".join(blocker.message.split()), MAX_MESSAGE)
        if message and not message.endswith("."):
            message += "."
        remedy = blocker.reason.remedy and f"Remedy: {blocker.reason.remedy}"
        lines.append(" ".join(filter(None, (about, message, remedy))))
    if len(shown) < len(ordered):
        lines.append(f"... ({len(ordered) - len(shown)} more)")
    return tuple(lines)


def culprit(blockers: Iterable[Blocker]) -> str:
    """Return the first pod of the most urgent blocker and how many others block, as `namespace/name +2`, or nothing."""
    with_pods = sorted((b for b in blockers if b.pods), key=lambda b: (b.reason.urgency, b.pods))
    if not with_pods:
        return ""
    more = len({pod for blocker in with_pods for pod in blocker.pods}) - 1
    return with_pods[0].pods[0] + (f" +{more}" if more else "")


def ends_at(blockers: Iterable[Blocker]) -> datetime | None:
    """Return the time by which all blockers will have ended by themselves, or None if one of them does not."""
    ends = [blocker.until for blocker in blockers]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def main_reason(blockers: Iterable[Blocker]) -> Reason | None:
    return min((blocker.reason for blocker in blockers), key=lambda reason: reason.urgency, default=None)

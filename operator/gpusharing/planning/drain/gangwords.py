"""A gang in words: which one it is, how many members it has, and where they are (docs/design/drain.md#gangs)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from gpusharing.planning.snapshot.podviews import GangView
from gpusharing.planning.vocabulary.blockers import Blocker
from gpusharing.planning.vocabulary.lengths import counted

MAX_NODES = 3
"""The most nodes of a gang that a text names."""
MAX_GANGS = 2
"""The most gangs of a node that a text names."""


def describe_gang(view: GangView) -> str:
    """`JobSet team-a/train, 16 pods (8 on gpu-1, 8 on gpu-2)`; at most three nodes."""
    count = len(view.members)
    where = Counter(member.node for member in view.members)
    waiting = where.pop("", 0)
    places = [f"{number} on {name}" for name, number in sorted(where.items())]
    if len(places) > MAX_NODES:
        places = [*places[:MAX_NODES], counted(len(places) - MAX_NODES, "more node")]
    places += [f"{waiting} without a node"] * bool(waiting)
    least = "at least " if view.partial else ""
    text = f"{view.gang.ref}, {least}{counted(count, 'pod')}"
    return f"{text} ({', '.join(places)})" if places else text


def explain_gangs(gangs: Sequence[GangView]) -> str:
    """The gangs of a node in one phrase; at most two."""
    shown = [describe_gang(view) if not view.error else view.gang.ref for view in gangs[:MAX_GANGS]]
    more = len(gangs) - len(shown)
    return " and ".join(shown) + (f" and {counted(more, 'more gang')}" if more else "")


def name_gang(view: GangView, blocker: Blocker) -> Blocker:
    """The blocker with the gang that it concerns."""
    return replace(blocker, message=f"Gang: {describe_gang(view)}. {blocker.message}".rstrip())


def unlisted(view: GangView) -> str:
    """Why nothing is known about the members of a gang."""
    return f"The members of {view.gang.ref} cannot be listed: {view.error}"

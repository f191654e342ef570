"""The pictures of the page: a pool's bar, a rollout's timeline, the slices of cards; as SVG inside of it. Pure.

Colours are the page's own (`pagestyle.py`); each cell says what it is in a character and in words, too. Lengths are
percentages, so that a picture is as wide as its place and its letters stay as they are.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from gpusharing.cli.pools.cards import Face
from gpusharing.cli.pools.fleet import Seen, State
from gpusharing.cli.pools.markup import Markup, tag
from gpusharing.cli.pools.timeline import Timeline, Track
from gpusharing.cli.pools.timelinetext import glyph_of, moment
from gpusharing.cli.shell.ages import counted

CELL = 26
"""Pixels of a node in a pool's bar."""
PER_LINE = 12
"""Nodes of a line of the bar: a telephone has room for as many."""
BAR = 22
"""Pixels: height of a timeline and of a card."""
LETTER = 4.0
"""Percent of a timeline that a letter needs."""
LABEL = 20.0
"""Percent of a card that the whole name of a profile needs; a narrower slice has its number only."""
CLASSES = {
    State.DONE: "done",
    State.MOVES: "moves",
    State.WAITS: "waits",
    State.BLOCKED: "blocked",
    State.FAILED: "failed",
}
MARKS = {State.DONE: "✓", State.MOVES: "▸", State.WAITS: "·", State.BLOCKED: "!", State.FAILED: "×"}
"""Shown in the cells, so that nothing depends on colour."""


def bar(members: Sequence[Seen]) -> Markup:
    """A cell for each node, those that are done first."""
    order = sorted(members, key=lambda seen: list(State).index(seen.state))
    per_line = PER_LINE if len(order) <= 4 * PER_LINE else 4 * PER_LINE
    cells = [_cell(number, seen, per_line) for number, seen in enumerate(order)]
    wide, high = min(len(order), per_line) * CELL, -(-len(order) // per_line) * CELL
    states = Counter(seen.state for seen in members)
    told = ", ".join(f"{states[state]} {state.value.word}" for state in State if states[state])
    size = {"viewBox": f"0 0 {wide} {high}", "width": str(wide), "height": str(high)}
    label = f"{counted(len(order), 'node')}: {told}"
    return tag("svg", *cells, class_="bar", role="img", aria_label=label, **size)


def _cell(number: int, seen: Seen, per_line: int) -> Markup:
    x, y = number % per_line * CELL, number // per_line * CELL
    place = {"x": str(x + 1), "y": str(y + 1), "width": str(CELL - 2), "height": str(CELL - 2), "rx": "4"}
    centre = {"x": str(x + CELL // 2), "y": str(y + CELL // 2 + 5)}
    return tag(
        "g",
        tag("title", f"{seen.name}: {seen.phase or 'new'} {seen.reason}"),
        tag("rect", **place),
        tag("text", MARKS[seen.state], **centre),
        class_=CLASSES[seen.state],
    )


def track(found: Timeline, one: Track) -> Markup:
    """The phases of a node, from the beginning of the rollout to its end."""
    whole = (found.end - found.begin).total_seconds() or 1.0

    def percent(at: datetime) -> float:
        return (at - found.begin).total_seconds() / whole * 100

    parts: list[Markup] = []
    for stretch in one.stretches:
        x, wide = percent(stretch.begin), percent(stretch.end) - percent(stretch.begin)
        glyph = glyph_of(stretch)
        letter = MARKS[stretch.state] if glyph is stretch.state.value else glyph.drawn
        parts.append(
            tag(
                "g",
                tag("title", f"{stretch.phase} {stretch.reason}, from {moment(stretch.begin, stretch.end)}"),
                tag("rect", x=f"{x:.2f}%", width=f"{wide:.2f}%", height=str(BAR)),
                *([_centred(letter, x + wide / 2)] if wide >= LETTER else []),
                class_=CLASSES[stretch.state],
            )
        )
    told = ", ".join(f"{one.phase} from {moment(one.begin, found.end)}" for one in one.stretches)
    return tag("svg", *parts, class_="track", role="img", aria_label=told or "nothing is known")


def card(face: Face) -> Markup:
    """A card from its first memory unit to its last. What is free on it is empty; a card without instances is one
    piece, and one of unknown size has instances that are all as wide."""
    if not face.slices:
        return _card([_slice(0, 100, face.told, face.told, "whole")], face.told or "nothing is known")
    spans: Iterable[tuple[float, float]]
    if face.units and all(one.start >= 0 for one in face.slices):
        spans = [(one.start / face.units * 100, one.size / face.units * 100) for one in face.slices]
    else:
        each = 100 / len(face.slices)
        spans = [(number * each, each) for number in range(len(face.slices))]
    parts = [
        _slice(x, wide, one.profile, one.profile if wide >= LABEL else one.profile.partition(".")[0], "slice")
        for one, (x, wide) in zip(face.slices, spans, strict=True)
    ]
    counts = Counter(one.profile for one in face.slices)
    return _card(parts, ", ".join(f"{count} {name}" for name, count in counts.items()))


def _card(parts: Iterable[Markup], told: str) -> Markup:
    ground = tag("rect", class_="free", width="100%", height=str(BAR))
    return tag("svg", ground, *parts, class_="card", role="img", aria_label=told)


def _slice(x: float, wide: float, name: str, label: str, kind: str) -> Markup:
    place = {"x": f"{x:.2f}%", "width": f"{wide:.2f}%", "height": str(BAR)}
    return tag("g", tag("title", name), tag("rect", **place), _centred(label, x + wide / 2), class_=kind)


def _centred(text: str, x: float) -> Markup:
    return tag("text", text, x=f"{x:.2f}%", y=str(BAR // 2 + 4))

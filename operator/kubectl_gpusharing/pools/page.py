"""The page of `status -o html`, which loads nothing from elsewhere."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import accumulate

from gpusharing.api.gpunode import GPUStatus, ModelStatus
from gpusharing.api.records import from_wire
from gpusharing.api.times import to_rfc3339
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, section, text
from gpusharing.planning.gpus.cards import extent
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.gpus.texts import read_indexes, read_layout, read_profiles
from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.pools.fleet import Known, NodeStatus, PoolStatus, State, choose, lists_nodes, read_node
from kubectl_gpusharing.pools.status import (
    NODE_COLUMNS,
    count_states,
    describe_events,
    describe_facts,
    describe_health,
    describe_table,
    describe_title,
    tell_each,
    tell_misfits,
    tell_unowned,
)
from kubectl_gpusharing.pools.timeline import Timeline, Track, find_timeline, glyph_of, glyphs_of, moment
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.drawing import Glyph, Ink, length, prose, prose_of_each
from kubectl_gpusharing.shell.markup import HTML_OPTIONS, POLICY, Link, Markup, flow, frame, grid, plain_cell, tag
from kubectl_gpusharing.shell.session import Session

Pieces = tuple[tuple[str, float, float], ...]
"""The parts of a card: the name of each, its start, and its width, in percent of the card."""
Cards = Mapping[tuple[str, str, Pieces], Sequence[str]]
"""The names of the nodes, once for each card, by its product, its division in words, and its pieces."""


def read_cards(gpunodes: Iterable[JSON]) -> Mapping[str, Cards]:
    """Return the cards by policy, the most common first."""
    by_policy: dict[str, dict[tuple[str, str, Pieces], list[str]]] = {}
    for raw in gpunodes:
        observed, transition = section(raw, "status", "observed"), section(raw, "status", "transition")
        models = [from_wire(ModelStatus, model) for model in entries(observed, "models")]
        by_index = {
            index: (model.product, read_sizes(model.profiles)) for model in models for index in read_indexes(model.gpus)
        }
        cards = by_policy.setdefault(text(transition, "policy"), {})
        for index, gpu in enumerate(from_wire(GPUStatus, gpu) for gpu in entries(observed, "gpus")):
            layout, _ = read_layout(gpu)
            product, sizes = by_index.get(index, ("", {}))
            divided = product, *divide(layout or (), sizes, text(transition, "observed"))
            cards.setdefault(divided, []).append(text(raw, "metadata", "name"))
    return {
        policy: dict(sorted(cards.items(), key=lambda item: (-len(item[1]), min(item[1]))))
        for policy, cards in by_policy.items()
    }


def read_sizes(profiles: str) -> Mapping[str, float]:
    """Return the share of the card's memory that an instance of each profile has, in percent; empty if unknown."""
    known = read_profiles(profiles)
    _, units = extent(known)
    return {profile.name: profile.size / units * 100 for profile in known} if units else {}


def divide(layout: Layout, sizes: Mapping[str, float], otherwise: str) -> tuple[str, Pieces]:
    """Return how a card is divided: its instances, largest first, or the layout `otherwise` if there is none."""
    names = [profile for profile, count in layout for _ in range(count)] or [otherwise]
    even = 100 / len(names)
    widths = [sizes.get(name) or even for name in names] if set(names) <= sizes.keys() else [even] * len(names)
    starts = accumulate(widths[:-1], initial=0.0)
    counts = ", ".join(f"{count} {name}" for name, count in layout)
    return counts or otherwise or "unknown", tuple(zip(names, starts, widths, strict=True))


CELL = 26
"""Width and height, in pixels, of a node in the bar of a pool."""
PER_LINE = 12
"""How many nodes one line of the bar has, which fits on a phone."""
BAR = 22
"""Height, in pixels, of a timeline and of a card."""
LETTER = 4.0
"""Width that a letter needs, in percent of a timeline."""
LABEL = 20.0
"""Width that the whole name of a profile needs, in percent of a card."""
DRAWN = 480
"""The most cells of a bar if not all nodes of a pool are listed: ten lines."""
MARKS = {State.DONE: "✓", State.MOVES: "▸", State.WAITS: "·", State.BLOCKED: "!", State.FAILED: "×"}
"""The marks in the cells, so that nothing depends on color."""


def _mark(glyph: Glyph) -> str:
    return next((mark for state, mark in MARKS.items() if state.value is glyph), glyph.drawn)


def bar(members: Sequence[NodeStatus]) -> Markup:
    """Return a picture with one cell for each node, in the order of `State`."""
    order, cells = sorted(members, key=lambda node: list(State).index(node.state)), []
    per_line = PER_LINE if len(order) <= 4 * PER_LINE else 4 * PER_LINE
    for number, node in enumerate(order):
        x, y = number % per_line * CELL, number // per_line * CELL
        title = tag("title", f"{node.name}: {node.phase or 'new'} {node.reason}")
        rect = tag("rect", x=str(x + 1), y=str(y + 1), width=str(CELL - 2), height=str(CELL - 2), rx="4")
        mark = tag("text", MARKS[node.state], x=str(x + CELL // 2), y=str(y + CELL // 2 + 5))
        cells.append(tag("g", title, rect, mark, class_=node.state.name.lower()))
    wide, high = min(len(order), per_line) * CELL, -(-len(order) // per_line) * CELL
    size = {"viewBox": f"0 0 {wide} {high}", "width": str(wide), "height": str(high)}
    label = count_states("node", members)
    return tag("svg", *cells, class_="bar", role="img", aria_label=label, **size)


def track(timeline: Timeline, row: Track) -> Markup:
    begin, until, _ = timeline
    period = (until - begin).total_seconds() or 1.0
    parts: list[Markup] = []
    for stretch in row.stretches:
        moments = stretch.begin, stretch.end
        x, end = ((at - begin).total_seconds() / period * 100 for at in moments)
        title = f"{stretch.phase} {stretch.reason}, from {moment(*moments)}"
        letter = _mark(glyph_of(stretch)) if end - x >= LETTER else ""
        parts.append(_piece(x, end - x, title, letter, stretch.state.name.lower()))
    label = ", ".join(f"{one.phase} from {moment(one.begin, until)}" for one in row.stretches)
    return tag("svg", *parts, class_="track", role="img", aria_label=label or "no history")


def card(label: str, pieces: Pieces) -> Markup:
    """Return a picture of a card from its first memory unit to its last; free memory stays empty."""
    parts = [tag("rect", class_="free", width="100%", height=str(BAR))]
    for name, x, wide in pieces:
        parts.append(_piece(x, wide, name, name if wide >= LABEL else name.partition(".")[0], "slice"))
    return tag("svg", *parts, class_="card", role="img", aria_label=label)


def _piece(x: float, wide: float, title: str, text: str, kind: str) -> Markup:
    rect = tag("rect", x=f"{x:.2f}%", width=f"{wide:.2f}%", height=str(BAR))
    inside = [tag("text", text, x=f"{x + wide / 2:.2f}%", y=str(BAR // 2 + 4))] if text else []
    return tag("g", tag("title", title), rect, *inside, class_=kind)


def page(session: Session, known: Known, typed: Arguments) -> str:
    title = f"GPU pools of {session.name}"
    made = tag("p", f"As of {to_rfc3339(session.now())}, by kubectl gpusharing status.", class_="faint")
    head = [tag("meta", http_equiv="Content-Security-Policy", content=POLICY)]
    return frame(title, head, tag("h1", title), made, tag("main", *overview(session, known, typed)))


def overview(
    session: Session, known: Known, typed: Arguments, most: int | None = None, link: Link = plain_cell
) -> list[Markup]:
    """Return the sections of the pools, each with at most `most` nodes."""
    policies, gpunodes, *events = known
    pools, unowned = choose(typed, session.where, policies, map(read_node, gpunodes), events)
    now, cards = session.now(), read_cards(gpunodes)
    listed = lists_nodes(typed, pools, unowned)
    parts = flow(describe_health(pools, unowned, HTML_OPTIONS, typed.selector, listed=listed))
    for number, pool in enumerate(pools):
        parts.append(_pool(pool, f"pool-{number}", now, cards.get(pool.name, {}), most, link))
    return parts + flow(prose_of_each([tell_unowned(unowned), *tell_misfits(unowned)], HTML_OPTIONS))


def _pool(pool: PoolStatus, name: str, now: datetime, cards: Cards, most: int | None, link: Link) -> Markup:
    first = {node.name: rank for rank, node in enumerate(pool.changing)}
    members = sorted(pool.members, key=lambda node: (node.state is State.DONE, first.get(node.name, 0)))
    shown, (title, *_) = members[:most], describe_title(pool, HTML_OPTIONS)
    parts = [tag("h2", link("POLICY", pool.name), id=name)]
    parts += flow([title[1:], *prose(pool.product, HTML_OPTIONS, ink=Ink.FAINT)])
    if members and (most is None or len(members) <= DRAWN):
        counts = Counter(node.state for node in members)
        words = (f"{MARKS[one]} {counts[one]} {one.value.word}" for one in State if counts[one])
        parts += [bar(members), _legend(words)]
    parts += flow(describe_facts(pool, now, HTML_OPTIONS) + describe_events(pool, now, HTML_OPTIONS))
    parts += flow(describe_table(NODE_COLUMNS, shown, now, HTML_OPTIONS) if shown else [], link)
    messages = tell_each([node for node in shown if node in pool.changing], pool.message)
    parts += flow(prose_of_each(messages, HTML_OPTIONS))
    if left := len(members) - len(shown):
        parts.append(tag("p", f"and {counted(left, 'more node')}: ", link("POLICY", pool.name)))
    if (timeline := find_timeline(pool, now)) is not None:
        begin, end, tracks = timeline
        rows = [(row.node, "" if row.took is None else length(row.took), track(timeline, row)) for row in tracks[:most]]
        caption = f"The last rollout, from {moment(begin, end)} to {moment(end, begin)}"
        parts.append(grid(caption, "pictures", ("Node", "Took", "Phases"), rows))
        parts.append(_legend(f"{_mark(glyph)} {glyph.word}" for glyph in glyphs_of(tracks)))
    if cards:
        titles = ("GPUs", "Nodes", "Product", "Divided into")
        every = (
            (counted(len(nodes), "GPU"), some(sorted(set(nodes))), product, card(label, pieces))
            for (product, label, pieces), nodes in cards.items()
        )
        parts.append(grid("Cards as they are now", "pictures", titles, every))
    return tag("section", *parts, aria_labelledby=name)


def _legend(texts: Iterable[str]) -> Markup:
    return tag("ul", *(tag("li", text) for text in texts), class_="legend faint")

"""`status -o html`: an HTML page that shows the pools. Pure. The page loads nothing from elsewhere."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from gpusharing.api.times import to_rfc3339
from gpusharing.cli.pools import status
from gpusharing.cli.pools.fleet import NodeStatus, PoolStatus, State, simulated_nodes
from gpusharing.cli.pools.timeline import LETTERS, Timeline, Track, find_timeline, glyph_of, moment
from gpusharing.cli.shell.drawing import age, length, simulated_sentence
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, section, text, whole
from gpusharing.planning.vocabulary.lengths import counted


@dataclass(frozen=True, slots=True)
class Slice:
    """One MIG instance on a card."""

    profile: str
    """The profile of the instance, such as 3g.40gb."""
    start: int
    """The first memory unit that the instance covers; -1 if the agent may not read it."""
    size: int
    """How many memory units the instance covers; 0 if the agent may not read it."""


@dataclass(frozen=True, slots=True)
class Face:
    """The appearance of a card: its product and how it is divided."""

    product: str
    """The card's product name."""
    units: int
    """The memory units of the whole card; 0 if they are unknown, so that nothing can be drawn to scale."""
    slices: tuple[Slice, ...]
    """The MIG instances on the card, from the first memory unit to the last."""
    layout: str
    """The layout of a card without instances, as the operator writes it: `1x full`, `4x shared`. Otherwise empty."""


@dataclass(frozen=True, slots=True)
class Cards:
    """A group of cards with the same product and the same division."""

    face: Face
    """The appearance that these cards have in common."""
    gpus: int
    """How many such cards there are."""
    nodes: tuple[str, ...]
    """The sorted names of the nodes that have such cards."""


def read_cards(gpunodes: Iterable[JSON]) -> Mapping[str, tuple[Cards, ...]]:
    """Return the groups of equal cards of each policy, by the policy's name; a policy whose nodes report no GPUs has
    no groups. The largest group comes first; among equally large groups, the order is by the name of the first
    node. Nodes without a policy are under the empty name."""
    by_policy: dict[str, dict[Face, list[str]]] = {}
    for raw in gpunodes:
        transition = section(raw, "status", "transition")
        faces = by_policy.setdefault(text(transition, "policy"), {})
        for face in _faces(raw, text(transition, "observed")):
            faces.setdefault(face, []).append(text(raw, "metadata", "name"))
    return {
        policy: tuple(
            Cards(face, len(nodes), tuple(sorted(set(nodes))))
            for face, nodes in sorted(faces.items(), key=lambda item: (-len(item[1]), min(item[1])))
        )
        for policy, faces in by_policy.items()
    }


def _faces(raw: JSON, layout: str) -> list[Face]:
    """Return the `Face` of each card of a node, in the order of the agent's report. A card without MIG instances gets
    `layout`, the layout that the operator observed on the node, and 0 memory units."""
    observed = section(raw, "status", "observed")
    units = {text(model, "product"): _units(model) for model in entries(observed, "models")}
    faces = []
    for gpu in entries(observed, "gpus"):
        product = text(gpu, "product")
        slices = tuple(
            sorted(
                map(_read_slice, entries(gpu, "instances")), key=lambda piece: (piece.start, piece.profile)
            )
        )
        faces.append(Face(product, units.get(product, 0) if slices else 0, slices, "" if slices else layout))
    return faces


def _read_slice(raw: JSON) -> Slice:
    """Convert the JSON of one MIG instance. A start that is missing or is not an integer becomes -1, a missing profile
    an empty string, and a missing size 0."""
    start = raw.get("start")
    return Slice(text(raw, "profile"), start if isinstance(start, int) else -1, whole(raw, "size"))


def _units(model: JSON) -> int:
    """Return the number of memory units of a card, which is where its last possible instance ends. Return 0 if the
    agent reports no placements for the card's profiles."""
    ends = [0]
    for profile in entries(model, "profiles"):
        starts = profile.get("starts")
        numbers = [start for start in starts if isinstance(start, int)] if isinstance(starts, list) else []
        ends += [start + whole(profile, "size") for start in numbers]
    return max(ends)


_LIGHT = """
--ground:#ffffff;--raised:#f5f6f8;--text:#1c1e21;--faint:#5a6069;--line:#d5d9df;--accent:#0b57d0;
--done:#1a7f37;--done-ink:#ffffff;--moves:#0b57d0;--moves-ink:#ffffff;--waits:#e3e6ea;--waits-ink:#3d434b;
--blocked:#b35900;--blocked-ink:#ffffff;--failed:#b3261e;--failed-ink:#ffffff;--free:#f5f6f8;
--slice:#d8e5fd;--slice-ink:#0a2a66;
"""
_DARK = """
--ground:#14171a;--raised:#1d2126;--text:#e8eaed;--faint:#a5acb5;--line:#3a4048;--accent:#8ab4f8;
--done:#57c777;--done-ink:#06210e;--moves:#8ab4f8;--moves-ink:#06193a;--waits:#3a4048;--waits-ink:#e8eaed;
--blocked:#ffb04d;--blocked-ink:#2b1700;--failed:#ff8a80;--failed-ink:#3a0703;--free:#1d2126;
--slice:#2c4470;--slice-ink:#e4edff;
"""
CSS = (
    f":root{{color-scheme:light dark;{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    """
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;background:var(--ground);color:var(--text);
 font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.5rem 0 0}h2{font-size:1.2rem;margin:0}h3{font-size:1rem;margin:1.25rem 0 .25rem}
p{margin:.25rem 0;unicode-bidi:isolate}
.faint{color:var(--faint)}
section{border:1px solid var(--line);border-radius:10px;padding:1rem;margin:1rem 0}
.title{display:flex;flex-wrap:wrap;gap:.25rem .75rem;align-items:baseline}
.badge{border:1px solid var(--line);border-radius:99px;padding:0 .6rem;background:var(--raised)}
.alarm{border-left:4px solid var(--failed);padding-left:.6rem}
svg{display:block;max-width:100%}
svg text{font:600 12px ui-monospace,monospace;text-anchor:middle}
.bar{height:auto;margin:.5rem 0}
.track,.card{width:100%;height:22px}
.card{max-width:32rem;border:1px solid var(--line)}
.done rect{fill:var(--done)}.done text{fill:var(--done-ink)}
.moves rect{fill:var(--moves);stroke:var(--ground)}.moves text{fill:var(--moves-ink)}
.waits rect{fill:var(--waits)}.waits text{fill:var(--waits-ink)}
.blocked rect{fill:var(--blocked)}.blocked text{fill:var(--blocked-ink)}
.failed rect{fill:var(--failed)}.failed text{fill:var(--failed-ink)}
.free{fill:var(--free)}
.slice rect,.whole rect{fill:var(--slice);stroke:var(--ground);stroke-width:2}
.slice text,.whole text{fill:var(--slice-ink)}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1rem;list-style:none;margin:.25rem 0;padding:0}
.scroll{overflow-x:auto;margin:.5rem 0}
.scroll:focus-visible{outline:2px solid var(--accent)}
table{border-collapse:collapse;width:100%;font-size:.9rem}
caption{text-align:left;font-weight:600;padding:.25rem 0}
th,td{text-align:left;vertical-align:top;padding:.3rem .75rem .3rem 0;border-top:1px solid var(--line);
 unicode-bidi:isolate}
thead th{color:var(--faint);font-weight:500;border-top:0;white-space:nowrap}
tbody th{font-weight:600}
th,td{overflow-wrap:normal}
tbody th,.nodes td:nth-child(2){white-space:nowrap}
.nodes td.long{min-width:16rem;overflow-wrap:anywhere}
.pictures td:last-child{width:70%;min-width:12rem}
@media print{section{break-inside:avoid}}
"""
)


VOID = frozenset({"meta", "rect"})
"""Elements without content and end tag."""
_HARMLESS = dict.fromkeys((*range(32), 127, *range(8234, 8239), *range(8294, 8298)), "�") | {
    ord(blank): " " for blank in "\t\n\r"
}
"""The replacements of characters that a page must not contain, or that change the direction of the text after them."""


@dataclass(frozen=True, slots=True)
class Markup:
    """A string that is HTML already and is not escaped again. Only `tag` and `style` create one."""

    text: str
    """The HTML, in which strings from a cluster are escaped."""


Child = Markup | str


def tag(name: str, /, *children: Child, **attributes: str | None) -> Markup:
    """Return an HTML element. Children and attributes that are plain strings are escaped. Elements in VOID have no
    children.

    In the names of `attributes`, a final underscore is dropped (`class_`) and any other becomes a dash. An attribute
    whose value is None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{written}>" if name == "meta" else f"<{name}{written}/>")
    inner = "".join(child.text if isinstance(child, Markup) else _escaped(child) for child in children)
    return Markup(f"<{name}{written}>{inner}</{name}>")


def style(css: str) -> Markup:
    """Return a style element with our own CSS, which is not escaped, so it must not contain strings from a cluster.
    Raises ValueError if the CSS contains a `<`."""
    if "<" in css:
        raise ValueError("the style sheet contains a < and could end its element")
    return Markup(f"<style>{css}</style>")


def document(root: Markup) -> str:
    """Return the whole page as ASCII with character references, so that it is the same in every encoding."""
    return "<!doctype html>\n" + root.text.encode("ascii", "xmlcharrefreplace").decode() + "\n"


def _escaped(text: str) -> str:
    """Return the string escaped for HTML. Characters that a page must not contain are replaced."""
    return escape(text.translate(_HARMLESS), quote=True)


CELL = 26
"""Width and height, in pixels, of a node in the bar of a pool."""
PER_LINE = 12
"""How many nodes one line of the bar has, which fits on a phone. Large pools get four times as many."""
BAR = 22
"""Height, in pixels, of a timeline and of a card."""
LETTER = 4.0
"""The width that a letter needs, in percent of a timeline."""
LABEL = 20.0
"""The width that the whole name of a profile needs, in percent of a card. A narrower slice shows only the part before
the dot."""
MARKS = {State.DONE: "✓", State.MOVES: "▸", State.WAITS: "·", State.BLOCKED: "!", State.FAILED: "×"}
"""The marks in the cells, so that nothing depends on color."""


def bar(members: Sequence[NodeStatus]) -> Markup:
    """Return a picture with one cell for each node, sorted by state; those that are done come first."""
    order = sorted(members, key=lambda node: list(State).index(node.state))
    per_line = PER_LINE if len(order) <= 4 * PER_LINE else 4 * PER_LINE
    cells = [_cell(number, node, per_line) for number, node in enumerate(order)]
    wide, high = min(len(order), per_line) * CELL, -(-len(order) // per_line) * CELL
    size = {"viewBox": f"0 0 {wide} {high}", "width": str(wide), "height": str(high)}
    label = status.count_states("node", members)
    return tag("svg", *cells, class_="bar", role="img", aria_label=label, **size)


def _cell(number: int, node: NodeStatus, per_line: int) -> Markup:
    """Return the cell at position `number` in the bar: a square with the mark of the node's state, whose tooltip has
    the node's name, phase and reason."""
    x, y = number % per_line * CELL, number // per_line * CELL
    place = {"x": str(x + 1), "y": str(y + 1), "width": str(CELL - 2), "height": str(CELL - 2), "rx": "4"}
    centre = {"x": str(x + CELL // 2), "y": str(y + CELL // 2 + 5)}
    return tag(
        "g",
        tag("title", f"{node.name}: {node.phase or 'new'} {node.reason}"),
        tag("rect", **place),
        tag("text", MARKS[node.state], **centre),
        class_=node.state.name.lower(),
    )


def track(timeline: Timeline, row: Track) -> Markup:
    """Return a picture of the phases of one node from the beginning of the rollout to its end. A phase that is too
    short for its letter is drawn without one."""
    whole = (timeline.end - timeline.begin).total_seconds() or 1.0

    def percent(at: datetime) -> float:
        """Return the position of a time in the picture, in percent of its width."""
        return (at - timeline.begin).total_seconds() / whole * 100

    parts: list[Markup] = []
    for stretch in row.stretches:
        x, wide = percent(stretch.begin), percent(stretch.end) - percent(stretch.begin)
        glyph = glyph_of(stretch)
        letter = MARKS[stretch.state] if glyph is stretch.state.value else glyph.drawn
        parts.append(
            tag(
                "g",
                tag("title", f"{stretch.phase} {stretch.reason}, from {moment(stretch.begin, stretch.end)}"),
                tag("rect", x=f"{x:.2f}%", width=f"{wide:.2f}%", height=str(BAR)),
                *([_centred(letter, x + wide / 2)] if wide >= LETTER else []),
                class_=stretch.state.name.lower(),
            )
        )
    label = ", ".join(f"{one.phase} from {moment(one.begin, timeline.end)}" for one in row.stretches)
    return tag("svg", *parts, class_="track", role="img", aria_label=label or "no history")


def card(face: Face) -> Markup:
    """Return a picture of a card from its first memory unit to its last; free memory stays empty. A card without
    instances is a single piece. If the size of the card or the start of an instance is unknown, all instances are
    drawn with the same width."""
    if not face.slices:
        return _card([_slice(0, 100, face.layout, face.layout, "whole")], face.layout or "unknown")
    spans: Iterable[tuple[float, float]]
    if face.units and all(piece.start >= 0 for piece in face.slices):
        spans = [(piece.start / face.units * 100, piece.size / face.units * 100) for piece in face.slices]
    else:
        each = 100 / len(face.slices)
        spans = [(number * each, each) for number in range(len(face.slices))]
    parts = [
        _slice(
            x,
            wide,
            piece.profile,
            piece.profile if wide >= LABEL else piece.profile.partition(".")[0],
            "slice",
        )
        for piece, (x, wide) in zip(face.slices, spans, strict=True)
    ]
    counts = Counter(piece.profile for piece in face.slices)
    return _card(parts, ", ".join(f"{count} {name}" for name, count in counts.items()))


def _card(parts: Iterable[Markup], label: str) -> Markup:
    """Return a picture of a card: an empty background with these parts on it. `label` describes it for
    screen readers."""
    ground = tag("rect", class_="free", width="100%", height=str(BAR))
    return tag("svg", ground, *parts, class_="card", role="img", aria_label=label)


def _slice(x: float, wide: float, name: str, label: str, kind: str) -> Markup:
    """Return one part of a card, at `x` and `wide` percent of its width. `name` is the tooltip, `label` the text
    inside, and `kind` the CSS class."""
    place = {"x": f"{x:.2f}%", "width": f"{wide:.2f}%", "height": str(BAR)}
    return tag("g", tag("title", name), tag("rect", **place), _centred(label, x + wide / 2), class_=kind)


def _centred(text: str, x: float) -> Markup:
    """Return a text element centered at `x` percent of the width."""
    return tag("text", text, x=f"{x:.2f}%", y=str(BAR // 2 + 4))


POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The page's Content-Security-Policy: the browser fetches and runs nothing, even if foreign markup got
into the page."""
NODES = (
    *(one.title.capitalize() for one in (*status.COLUMNS, *status.WIDE) if one.title != "PROGRESS"),
    "Message",
)
"""The headings of the table of nodes."""


@dataclass(frozen=True, slots=True)
class View:
    """The data that the page shows."""

    where: str
    """Name of the context."""
    now: datetime
    """The time at which the page was made."""
    pools: Sequence[PoolStatus]
    """All pools."""
    unowned: Sequence[NodeStatus]
    """GPU nodes that no policy selects."""
    cards: Mapping[str, Sequence[Cards]]
    """The cards of each policy, by the policy's name."""


def page(view: View) -> str:
    """Return the whole HTML page: a warning that names nodes with SIMULATED GPUs, the health and totals of the pools or
    that there are none, each pool with its last rollout and its cards, and the GPU nodes without a policy."""
    title = f"GPU pools of {view.where}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        style(CSS),
    )
    made = ("As of ", _time(view.now, to_rfc3339(view.now)), ", by kubectl gpusharing status.")
    pools = [_pool(pool, number, view) for number, pool in enumerate(view.pools)]
    health = status.tell_health(view.pools) if pools else ("There is no GPUSharingPolicy",)
    simulated = simulated_sentence(simulated_nodes(view.pools, view.unowned))
    alarm = [tag("p", f"{simulated}.", class_="alarm")] if simulated else []
    if view.unowned:
        pools.append(tag("section", tag("p", status.tell_unowned(view.unowned))))
    main = tag("main", *(tag("p", f"{text}.") for text in health), *pools)
    body = tag("body", tag("h1", title), *alarm, tag("p", *made, class_="faint"), main)
    return document(tag("html", head, body, lang="en"))


def _pool(pool: PoolStatus, number: int, view: View) -> Markup:
    """Return the section of one pool: heading, bar, a warning if the operator has not processed its policy yet,
    message, facts, Events if they were read, nodes, last rollout and cards. The message is left out if the pool is
    Synced. Among the nodes, those that need a person's attention come first and those that are done last. `number`
    makes the section's id unique on the page."""
    name = f"pool-{number}"
    parts = [*_title(pool, name), *_bar(pool)]
    if pool.unseen:
        parts.append(tag("p", status.NOT_SEEN.format(pool.unseen), class_="alarm"))
    if pool.message and pool.status != "Synced":
        parts.append(tag("p", pool.message))
    events = [status.tell_event(event, view.now) for event in pool.events or ()]
    parts += [tag("p", text, class_="faint") for text in (*status.facts(pool, view.now), *events)]
    if pool.members:
        first = {node.name: rank for rank, node in enumerate(pool.changing)}
        members = sorted(pool.members, key=lambda node: (node.state is State.DONE, first.get(node.name, 0)))
        parts.append(_table("Nodes", "nodes", NODES, [_row(node, view.now) for node in members]))
    parts += [*_timeline(pool, view.now), *_cards(view.cards.get(pool.name, ()))]
    return tag("section", *parts, aria_labelledby=name)


def _title(pool: PoolStatus, name: str) -> list[Markup]:
    """Return the heading of a pool: its name, mode, layout, status and numbers, and its product if that is known.
    `name` is the id of the heading."""
    what = " ".join(filter(None, (pool.mode, pool.layout)))
    badge = tag("span", pool.status or "new", class_="badge")
    line = (tag("h2", pool.name, id=name), tag("span", what), badge, tag("span", status.numbers(pool)))
    product = [tag("p", pool.product, class_="faint")] if pool.product else []
    return [tag("div", *line, class_="title"), *product]


def _bar(pool: PoolStatus) -> list[Markup]:
    """Return the bar of a pool and its legend; empty if the pool has no nodes."""
    if not pool.members:
        return []
    counts = Counter(node.state for node in pool.members)
    return [
        bar(pool.members),
        _legend(f"{MARKS[one]} {counts[one]} {one.value.word}" for one in State if counts[one]),
    ]


def _legend(texts: Iterable[str]) -> Markup:
    """Return a list with one item for each of `texts`, which explain the marks in a picture."""
    return tag("ul", *(tag("li", text) for text in texts), class_="legend faint")


def _row(node: NodeStatus, now: datetime) -> list[Markup]:
    """Return the cells of a node in the table of nodes; see NODES. The last cell has the node's message and blockers
    without duplicates. A phase is preceded by the mark of the node's state."""
    texts = dict.fromkeys(text for text in (node.message, *node.blockers) if text)
    cells: list[Child] = [*status.cells_of(node, now)]
    cells[0] = f"{MARKS[node.state]} {cells[0]}"
    if node.entered is not None:
        cells[4] = _time(node.entered, age(node.entered, now))
    last = tag("td", *(tag("p", text) for text in texts), class_="long" if texts else None)
    return [tag("th", node.name, scope="row"), *(tag("td", one) for one in cells), last]


def _timeline(pool: PoolStatus, now: datetime) -> list[Markup]:
    """Return the table of a pool's last rollout and its legend; empty if no node's history contains a change."""
    timeline = find_timeline(pool, now)
    if timeline is None:
        return []
    rows = [
        [
            tag("th", row.node, scope="row"),
            tag("td", "" if row.took is None else length(row.took)),
            tag("td", track(timeline, row)),
        ]
        for row in timeline.tracks
    ]
    begin, end = moment(timeline.begin, timeline.end), moment(timeline.end, timeline.begin)
    caption = f"The last rollout, from {begin} to {end}"
    return [_table(caption, "pictures", ("Node", "Took", "Phases"), rows), _legend(_letters(timeline))]


def _letters(timeline: Timeline) -> list[str]:
    """Return the meaning of each mark that occurs in the timeline: first the phases in their order, then
    the states."""
    there = {one.phase: one for row in timeline.tracks for one in row.stretches}
    letters = [f"{letter} {phase}" for phase, letter in LETTERS.items() if phase in there]
    states = {one.state for one in there.values() if glyph_of(one) is one.state.value}
    return letters + [f"{MARKS[state]} {state.value.word}" for state in State if state in states]


def _cards(cards: Sequence[Cards]) -> list[Markup]:
    """Return the table of a pool's cards, with one row for each group of equal cards; empty without cards. For more
    than three nodes, a row names only the first and the last and says how many there are."""
    if not cards:
        return []
    rows = []
    for group in cards:
        few = len(group.nodes) <= 3
        nodes = (
            ", ".join(group.nodes)
            if few
            else f"{group.nodes[0]} to {group.nodes[-1]}, {counted(len(group.nodes), 'node')}"
        )
        cells = (tag("td", nodes), tag("td", group.face.product), tag("td", card(group.face)))
        rows.append([tag("th", counted(group.gpus, "GPU"), scope="row"), *cells])
    return [_table("Cards as they are now", "pictures", ("GPUs", "Nodes", "Product", "Divided into"), rows)]


def _table(caption: str, kind: str, header: Iterable[str], rows: Iterable[Sequence[Markup]]) -> Markup:
    """Return a table that can be scrolled sideways in a narrow window, also with the keyboard. `kind` is its CSS
    class."""
    head = tag("thead", tag("tr", *(tag("th", one, scope="col") for one in header)))
    body = tag("tbody", *(tag("tr", *row) for row in rows))
    inner = tag("table", tag("caption", caption), head, body, class_=kind)
    return tag("div", inner, class_="scroll", role="region", tabindex="0", aria_label=caption)


def _time(at: datetime, text: str) -> Markup:
    """Return a time element that shows `text`, with the exact time in UTC as its tooltip."""
    moment_of_it = to_rfc3339(at)
    return tag("time", text, datetime=moment_of_it, title=moment_of_it)

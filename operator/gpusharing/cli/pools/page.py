"""`status -o html`: one page of the pools, as a view of them and as text. Pure; it loads nothing from elsewhere."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from gpusharing.api.times import to_rfc3339
from gpusharing.cli.pools.fleet import PoolStatus, Seen, State, simulated_nodes
from gpusharing.cli.pools.status import NOT_SEEN, facts, numbers
from gpusharing.cli.pools.timeline import LETTERS, Timeline, Track, find_timeline, glyph_of, moment
from gpusharing.cli.shell.drawing import age, length, simulated_sentence
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, section, text, whole
from gpusharing.planning.vocabulary.lengths import counted


@dataclass(frozen=True, slots=True)
class Slice:
    """One MIG instance on a card."""

    profile: str
    """For example 3g.40gb."""
    start: int
    """In memory units; -1: the agent may not read it."""
    size: int
    """Memory units that it covers; 0: the agent may not read it."""


@dataclass(frozen=True, slots=True)
class Face:
    """How a card looks."""

    product: str
    """The card's product name."""
    units: int
    """Memory units of the whole card; 0: unknown, so nothing can be drawn to scale."""
    slices: tuple[Slice, ...]
    """From the first unit to the last."""
    told: str
    """What the operator calls it, where no instances are on it: `1x full`, `4x shared`."""


@dataclass(frozen=True, slots=True)
class Cards:
    """Cards that look the same."""

    face: Face
    """How they look."""
    gpus: int
    """How many they are."""
    nodes: tuple[str, ...]
    """By name."""


def read_cards(gpunodes: Iterable[JSON]) -> Mapping[str, tuple[Cards, ...]]:
    """By policy: the looks that its cards have, what most of them have first."""
    found: dict[str, dict[Face, list[str]]] = {}
    for raw in gpunodes:
        told = section(raw, "status", "transition")
        faces = found.setdefault(text(told, "policy"), {})
        for face in _faces(raw, text(told, "observed")):
            faces.setdefault(face, []).append(text(raw, "metadata", "name"))
    return {
        policy: tuple(
            Cards(face, len(nodes), tuple(sorted(set(nodes))))
            for face, nodes in sorted(faces.items(), key=lambda item: (-len(item[1]), min(item[1])))
        )
        for policy, faces in found.items()
    }


def _faces(raw: JSON, told: str) -> list[Face]:
    """Of each card of a node."""
    observed = section(raw, "status", "observed")
    units = {text(model, "product"): _units(model) for model in entries(observed, "models")}
    faces = []
    for gpu in entries(observed, "gpus"):
        product = text(gpu, "product")
        slices = tuple(
            sorted(map(_read_slice, entries(gpu, "instances")), key=lambda one: (one.start, one.profile))
        )
        faces.append(Face(product, units.get(product, 0) if slices else 0, slices, "" if slices else told))
    return faces


def _read_slice(raw: JSON) -> Slice:
    start = raw.get("start")
    return Slice(text(raw, "profile"), start if isinstance(start, int) else -1, whole(raw, "size"))


def _units(model: JSON) -> int:
    """Where the last instance ends that the card can have."""
    ends = [0]
    for profile in entries(model, "profiles"):
        starts = profile.get("starts")
        found = [one for one in starts if isinstance(one, int)] if isinstance(starts, list) else []
        ends += [one + whole(profile, "size") for one in found]
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
"""Elements that end where they begin."""
_HARMLESS = dict.fromkeys((*range(32), 127, *range(8234, 8239), *range(8294, 8298)), "�") | {
    ord(blank): " " for blank in "\t\n\r"
}
"""Of characters that no page may have, or that turn the direction of what follows."""


@dataclass(frozen=True, slots=True)
class Markup:
    """What stands in the page as it is. Only `tag` and `style` make it."""

    text: str
    """HTML, with everything escaped that is not markup."""


Child = Markup | str


def tag(name: str, /, *children: Child, **attributes: str | None) -> Markup:
    """An element; text becomes text, whatever it holds.

    `attributes`: `class_` for class, `_` for a dash; None: the attribute is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{given}>" if name == "meta" else f"<{name}{given}/>")
    inner = "".join(child.text if isinstance(child, Markup) else _escaped(child) for child in children)
    return Markup(f"<{name}{given}>{inner}</{name}>")


def style(css: str) -> Markup:
    """A style sheet of ours: no text of a cluster may come in here."""
    if "<" in css:
        raise ValueError("a style sheet could end itself")
    return Markup(f"<style>{css}</style>")


def document(root: Markup) -> str:
    """The whole page, in ASCII: it is the same in every encoding."""
    return "<!doctype html>\n" + root.text.encode("ascii", "xmlcharrefreplace").decode() + "\n"


def _escaped(text: str) -> str:
    return escape(text.translate(_HARMLESS), quote=True)


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
        class_=seen.state.name.lower(),
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
                class_=stretch.state.name.lower(),
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


POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Of the page's content: the browser fetches and runs nothing, even if markup of others came in."""
NODES = ("Node", "Phase", "Reason", "Pods", "Kept by", "Since", "Until", "Runs", "Wanted", "Message")


@dataclass(frozen=True, slots=True)
class View:
    """What the page shows."""

    where: str
    """Name of the cluster."""
    now: datetime
    """The time that the page shows."""
    pools: Sequence[PoolStatus]
    """Every policy."""
    loose: Sequence[Seen]
    """GPU nodes of no policy."""
    cards: Mapping[str, Sequence[Cards]]
    """By policy."""


def page(view: View) -> str:
    """A whole document of HTML."""
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
    if not pools:
        pools = [tag("p", "There is no GPUSharingPolicy.")]
    simulated = simulated_sentence(simulated_nodes(view.pools, view.loose))
    alarm = [tag("p", f"{simulated}.", class_="alarm")] if simulated else []
    if view.loose:
        names = ", ".join(seen.name for seen in view.loose)
        text = f"{counted(len(view.loose), 'node')} with GPUs and no policy: {names}"
        pools.append(tag("section", tag("p", text)))
    body = tag("body", tag("h1", title), *alarm, tag("p", *made, class_="faint"), tag("main", *pools))
    return document(tag("html", head, body, lang="en"))


def _pool(pool: PoolStatus, number: int, view: View) -> Markup:
    """Return the section of one pool; `number` makes its id unique."""
    name = f"pool-{number}"
    parts = [*_title(pool, name), *_bar(pool)]
    if pool.unseen:
        parts.append(tag("p", NOT_SEEN.format(pool.unseen), class_="alarm"))
    if pool.message and pool.status != "Synced":
        parts.append(tag("p", pool.message))
    parts += [tag("p", text, class_="faint") for text in facts(pool, view.now)]
    if pool.members:
        first = {seen.name: rank for rank, seen in enumerate(pool.changing)}
        members = sorted(pool.members, key=lambda seen: (seen.state is State.DONE, first.get(seen.name, 0)))
        parts.append(_table("Nodes", "nodes", NODES, [_row(seen, view.now) for seen in members]))
    parts += [*_timeline(pool, view.now), *_cards(view.cards.get(pool.name, ()))]
    return tag("section", *parts, aria_labelledby=name)


def _title(pool: PoolStatus, name: str) -> list[Markup]:
    what = " ".join(filter(None, (pool.mode, pool.layout)))
    badge = tag("span", pool.status or "new", class_="badge")
    line = (tag("h2", pool.name, id=name), tag("span", what), badge, tag("span", numbers(pool)))
    product = [tag("p", pool.product, class_="faint")] if pool.product else []
    return [tag("div", *line, class_="title"), *product]


def _bar(pool: PoolStatus) -> list[Markup]:
    if not pool.members:
        return []
    counts = Counter(seen.state for seen in pool.members)
    return [
        bar(pool.members),
        _legend(f"{MARKS[one]} {counts[one]} {one.value.word}" for one in State if counts[one]),
    ]


def _legend(texts: Iterable[str]) -> Markup:
    return tag("ul", *(tag("li", text) for text in texts), class_="legend faint")


def _row(seen: Seen, now: datetime) -> list[Markup]:
    since = "" if seen.entered is None else _time(seen.entered, age(seen.entered, now))
    said = [text for text in (seen.message, *seen.blockers, seen.unhealthy) if text]
    cells: list[Child] = [
        f"{MARKS[seen.state]} {seen.phase or '-'}",
        seen.reason,
        "" if seen.pods is None else str(seen.pods),
        seen.culprit,
        since,
        seen.deadline,
        seen.observed,
        seen.wanted,
    ]
    last = tag("td", *(tag("p", text) for text in dict.fromkeys(said)), class_="long" if said else None)
    return [tag("th", seen.name, scope="row"), *(tag("td", one) for one in cells), last]


def _timeline(pool: PoolStatus, now: datetime) -> list[Markup]:
    found = find_timeline(pool, now)
    if found is None:
        return []
    rows = [
        [
            tag("th", one.node, scope="row"),
            tag("td", "" if one.took is None else length(one.took)),
            tag("td", track(found, one)),
        ]
        for one in found.tracks
    ]
    begin, end = moment(found.begin, found.end), moment(found.end, found.begin)
    caption = f"The last rollout, from {begin} to {end}"
    return [_table(caption, "pictures", ("Node", "Took", "Way"), rows), _legend(_letters(found))]


def _letters(found: Timeline) -> list[str]:
    """What the letters of a timeline stand for: the phases that are there in their order, then states."""
    there = {one.phase: one for row in found.tracks for one in row.stretches}
    letters = [f"{letter} {phase}" for phase, letter in LETTERS.items() if phase in there]
    states = {one.state for one in there.values() if glyph_of(one) is one.state.value}
    return letters + [f"{MARKS[state]} {state.value.word}" for state in State if state in states]


def _cards(cards: Sequence[Cards]) -> list[Markup]:
    if not cards:
        return []
    rows = []
    for one in cards:
        few = len(one.nodes) <= 3
        nodes = (
            ", ".join(one.nodes)
            if few
            else f"{one.nodes[0]} to {one.nodes[-1]}, {counted(len(one.nodes), 'node')}"
        )
        cells = (tag("td", nodes), tag("td", one.face.product), tag("td", card(one.face)))
        rows.append([tag("th", counted(one.gpus, "GPU"), scope="row"), *cells])
    return [_table("Cards as they are now", "pictures", ("GPUs", "On", "Product", "Divided into"), rows)]


def _table(caption: str, kind: str, header: Iterable[str], rows: Iterable[Sequence[Markup]]) -> Markup:
    """A table that can be moved sideways where the window is narrow, with the keyboard too."""
    head = tag("thead", tag("tr", *(tag("th", one, scope="col") for one in header)))
    body = tag("tbody", *(tag("tr", *row) for row in rows))
    inner = tag("table", tag("caption", caption), head, body, class_=kind)
    return tag("div", inner, class_="scroll", role="region", tabindex="0", aria_label=caption)


def _time(at: datetime, text: str) -> Markup:
    moment_of_it = to_rfc3339(at)
    return tag("time", text, datetime=moment_of_it, title=moment_of_it)

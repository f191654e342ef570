"""`status -o html`: one page of the pools, as a view of them and as text. Pure; it loads nothing from elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from gpusharing.api.times import to_rfc3339
from gpusharing.cli.pools.cards import Cards
from gpusharing.cli.pools.fleet import PoolStatus, Seen, State, simulated_nodes
from gpusharing.cli.pools.markup import Child, Markup, document, style, tag
from gpusharing.cli.pools.pagepictures import MARKS, bar, card, track
from gpusharing.cli.pools.pagestyle import CSS
from gpusharing.cli.pools.statustext import facts
from gpusharing.cli.pools.timeline import Timeline, find_timeline
from gpusharing.cli.pools.timelinetext import LETTERS, glyph_of, moment
from gpusharing.cli.shell.ages import age, counted, length
from gpusharing.cli.shell.simulated import sentence

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Of the page's content: the browser fetches and runs nothing, even if markup of others came in."""
NODES = (
    "Node",
    "Phase",
    "Reason",
    "Pods",
    "Kept by",
    "Since",
    "Until",
    "Runs",
    "Wanted",
    "Message",
)


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
    above = (tag("h1", title), *_simulated(view), tag("p", *made, class_="faint"))
    body = tag("body", *above, tag("main", *pools, *_loose(view)))
    return document(tag("html", head, body, lang="en"))


def _simulated(view: View) -> list[Markup]:
    told = sentence(simulated_nodes(view.pools, view.loose))
    return [tag("p", f"{told}.", class_="alarm")] if told else []


def _pool(pool: PoolStatus, number: int, view: View) -> Markup:
    name = f"pool-{number}"
    parts = [*_title(pool, name), *_bar(pool)]
    if pool.unseen:
        text = (
            f"The operator has not looked at generation {pool.unseen} yet. If this persists, check that it is"
            " running."
        )
        parts.append(tag("p", text, class_="alarm"))
    if pool.message and pool.status != "Synced":
        parts.append(tag("p", pool.message))
    parts += [tag("p", text, class_="faint") for text in facts(pool, view.now)]
    parts += [*_nodes(pool, view.now), *_timeline(pool, view.now), *_cards(view.cards.get(pool.name, ()))]
    return tag("section", *parts, aria_labelledby=name)


def _title(pool: PoolStatus, name: str) -> list[Markup]:
    what = " ".join(filter(None, (pool.mode, pool.layout)))
    told = [f"{pool.nodes or '0/0'} nodes", counted(pool.gpus, "GPU")]
    if pool.used:
        told.append(f"{pool.used} used")
    if pool.pending_pods:
        told.append(f"{counted(pool.pending_pods, 'pod')} waiting")
    badge = tag("span", pool.status or "new", class_="badge")
    line = (tag("h2", pool.name, id=name), tag("span", what), badge, tag("span", ", ".join(told)))
    product = [tag("p", pool.product, class_="faint")] if pool.product else []
    return [tag("div", *line, class_="title"), *product]


def _bar(pool: PoolStatus) -> list[Markup]:
    if not pool.members:
        return []
    counts = {state: sum(seen.state is state for seen in pool.members) for state in State}
    told = [f"{MARKS[state]} {count} {state.value.word}" for state, count in counts.items() if count]
    return [bar(pool.members), _legend(told)]


def _legend(texts: Iterable[str]) -> Markup:
    return tag("ul", *(tag("li", text) for text in texts), class_="legend faint")


def _nodes(pool: PoolStatus, now: datetime) -> list[Markup]:
    if not pool.members:
        return []
    first = {seen.name: rank for rank, seen in enumerate(pool.changing)}
    members = sorted(pool.members, key=lambda seen: (seen.state is State.DONE, first.get(seen.name, 0)))
    return [_table("Nodes", "nodes", NODES, [_row(seen, now) for seen in members])]


def _row(seen: Seen, now: datetime) -> list[Markup]:
    since = "" if seen.since is None else _time(seen.since, age(seen.since, now))
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
    rows = [
        [
            tag("th", counted(one.gpus, "GPU"), scope="row"),
            tag("td", _names(one.nodes)),
            tag("td", one.face.product),
            tag("td", card(one.face)),
        ]
        for one in cards
    ]
    return [_table("Cards as they are now", "pictures", ("GPUs", "On", "Product", "Divided into"), rows)]


def _names(nodes: Sequence[str]) -> str:
    return ", ".join(nodes) if len(nodes) <= 3 else f"{nodes[0]} to {nodes[-1]}, {len(nodes)} nodes"


def _table(caption: str, kind: str, header: Iterable[str], rows: Iterable[Sequence[Markup]]) -> Markup:
    """A table that can be moved sideways where the window is narrow, with the keyboard too."""
    head = tag("thead", tag("tr", *(tag("th", one, scope="col") for one in header)))
    body = tag("tbody", *(tag("tr", *row) for row in rows))
    inner = tag("table", tag("caption", caption), head, body, class_=kind)
    return tag("div", inner, class_="scroll", role="region", tabindex="0", aria_label=caption)


def _time(at: datetime, text: str) -> Markup:
    moment_of_it = to_rfc3339(at)
    return tag("time", text, datetime=moment_of_it, title=moment_of_it)


def _loose(view: View) -> list[Markup]:
    if not view.loose:
        return []
    names = ", ".join(seen.name for seen in view.loose)
    text = f"{counted(len(view.loose), 'node')} with GPUs and no policy: {names}"
    return [tag("section", tag("p", text))]

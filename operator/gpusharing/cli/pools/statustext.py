"""The pools at a glance: what the operator published, drawn. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from gpusharing.api.names import WAY, Phase
from gpusharing.api.times import to_rfc3339
from gpusharing.cli.pools.estimate import find_estimate
from gpusharing.cli.pools.fleet import PoolStatus, Seen, State, known_phase, simulated_nodes
from gpusharing.cli.pools.timeline import describe_timeline
from gpusharing.cli.shell.drawing import (
    BLANK,
    Column,
    Glyph,
    Ink,
    Line,
    Paper,
    TextSpan,
    age,
    bar,
    describe_simulated,
    length,
    line,
    prose,
    table,
)
from gpusharing.planning.vocabulary.lengths import counted

MOST = 20
"""Nodes of a pool that are listed; -o wide lists all."""
COLUMNS = (
    Column("NODE"),
    Column("WAY", drop=5),
    Column("PHASE"),
    Column("REASON"),
    Column("PODS", drop=4),
    Column("CULPRIT", drop=1),
    Column("SINCE", drop=2),
    Column("DEADLINE", drop=3),
)
WIDE = (
    Column("STEP", drop=6),
    Column("WANTED", drop=7),
    Column("OBSERVED", drop=7),
    Column("CORDON", drop=7),
    Column("HEALTH", drop=8),
)
_AHEAD = Glyph("·", "-", Ink.FAINT)
_CELLS = (*WAY, Phase.SYNCED)
"""What the cells of the column WAY stand for."""


def describe(
    pools: Sequence[PoolStatus], loose: Sequence[Seen], now: datetime, paper: Paper, *, timeline: bool = False
) -> list[Line]:
    """All pools; `loose`: GPU nodes of none of them; `timeline`: with the last rollout of each."""
    lines = describe_simulated(simulated_nodes(pools, loose), paper)
    if not pools:
        lines += prose(
            "There is no GPUSharingPolicy. kubectl gpusharing plan -f FILE says what one would do.", paper
        )
    else:
        for pool in pools:
            drawn = describe_timeline(pool, now, paper) if timeline else []
            lines += [*describe_pool(pool, now, paper), *drawn, BLANK]
        lines.pop()
    if loose:
        names = ", ".join(seen.name for seen in loose[:5]) + (" ..." if len(loose) > 5 else "")
        lines += [
            BLANK,
            *prose(f"{counted(len(loose), 'node')} with GPUs and no policy: {names}", paper, ink=Ink.FAINT),
        ]
    return lines


def describe_pool(pool: PoolStatus, now: datetime, paper: Paper) -> list[Line]:
    """One pool: what it runs, a cell for each node, what is in the way, and the nodes that are not done."""
    lines = [*_title(pool, paper), *_bar(pool, paper)]
    if pool.unseen:
        lines += prose(
            f"The operator has not looked at generation {pool.unseen} yet. If this persists, check that it is"
            " running.",
            paper,
            ink=Ink.BAD,
        )
    if pool.message and pool.status != "Synced":
        lines += prose(pool.message, paper)
    lines += [one for text in facts(pool, now) for one in prose(text, paper, hang="  ")]
    shown = pool.members if paper.wide else pool.changing[:MOST]
    if shown:
        columns = COLUMNS + (WIDE if paper.wide else ())
        lines += table(columns, [_row(seen, now, paper) for seen in shown], paper, "  ")
    if (more := len(pool.changing) - len(shown)) > 0:
        lines.append(line(TextSpan(f"  and {more} more; -o wide lists all", Ink.FAINT)))
    return lines


def _title(pool: PoolStatus, paper: Paper) -> list[Line]:
    ink = Ink.GOOD if pool.status == "Synced" else Ink.BUSY if pool.status else Ink.FAINT
    what = " ".join(filter(None, (pool.mode, pool.layout)))
    facts = [f"{pool.nodes or '0/0'} nodes", counted(pool.gpus, "GPU")]
    if pool.used:
        facts.append(f"{pool.used} used")
    if pool.pending_pods:
        facts.append(f"{counted(pool.pending_pods, 'pod')} waiting")
    head = line(TextSpan(pool.name, Ink.TITLE), f"  {what}  ", TextSpan(pool.status or "new", ink))
    tail = ", ".join(facts)
    if sum(len(span.text) for span in head) + len(tail) + 2 > paper.room:
        return [head, line(tail)]
    return [line(*head, "  ", tail)]


def _bar(pool: PoolStatus, paper: Paper) -> list[Line]:
    """A cell for each node, and what the cells are."""
    if not pool.members:
        return []
    states = Counter(seen.state for seen in pool.members)
    legend: list[TextSpan | str] = []
    for state in State:
        if count := states[state]:
            glyph = state.value
            legend += ["  ", TextSpan(f"{glyph.on(paper)} {count} {glyph.word}", glyph.ink)]
    order = sorted(pool.members, key=lambda seen: list(State).index(seen.state))
    # The legend stands on a line of its own where the bar leaves it no room.
    cells = bar([seen.state.value for seen in order], paper, min(60, paper.room))
    words = sum(len(one if isinstance(one, str) else one.text) for one in legend)
    if sum(len(span.text) for span in cells) + words > paper.room:
        return [cells, line(*legend[1:])]
    return [line(*cells, *legend)]


def facts(pool: PoolStatus, now: datetime) -> list[str]:
    """What is about to happen, when, and how long it may take."""
    facts = []
    plan = pool.plan
    if plan:
        nodes, pods = counted(plan.get("nodeCount", 0), "node"), counted(plan.get("pods", 0), "pod")
        facts.append(f"plan {plan.get('hash', '')}: {plan.get('disruption', '')}, {nodes}, {pods} to leave")
    if pool.paused:
        facts.append("paused: no further node starts (kubectl gpusharing resume)")
    if pool.next_window:
        head = "window" if pool.next_window.startswith("open") else "next window"
        facts.append(f"{head}: {pool.next_window}")
    if (found := find_estimate(pool, now)) is not None:
        facts.append(
            f"about {length(found.left)} left: {counted(found.nodes, 'node')}, {length(found.each)} each by the last"
            f" {'change' if found.changes == 1 else f'{found.changes} changes'}"
        )
    return facts


def _row(seen: Seen, now: datetime, paper: Paper) -> list[TextSpan]:
    ink = seen.state.value.ink
    cells = [
        TextSpan(seen.name),
        TextSpan(_way(seen, paper), ink),
        TextSpan(seen.phase or "-", ink),
        TextSpan(seen.reason),
        TextSpan("" if seen.pods is None else str(seen.pods)),
        TextSpan(seen.culprit),
        TextSpan(age(seen.entered, now), Ink.FAINT),
        TextSpan(seen.deadline),
    ]
    if not paper.wide:
        return cells
    more = (seen.step, seen.wanted, seen.observed, seen.cordon, seen.unhealthy)
    return [*cells, *(TextSpan(text) for text in more)]


def _way(seen: Seen, paper: Paper) -> str:
    """How far the change of a node is: a cell for each phase of a change that goes well."""
    phase = known_phase(seen.phase)
    done = _CELLS.index(phase) + 1 if phase in _CELLS else 0
    glyph = seen.state.value
    if seen.state in (State.BLOCKED, State.FAILED):
        return glyph.on(paper) + _AHEAD.on(paper) * (len(_CELLS) - 1)
    return glyph.on(paper) * done + _AHEAD.on(paper) * (len(_CELLS) - done)


# --- as data ---------------------------------------------------------------------------------------------


def as_data(pools: Sequence[PoolStatus], loose: Sequence[Seen], where: str, now: datetime) -> dict[str, Any]:
    """The same for programs; times as the API has them."""
    return {
        "context": where,
        "pools": [_pool_data(pool, now) for pool in pools],
        "nodesWithoutPolicy": [seen.name for seen in loose],
        "simulated": simulated_nodes(pools, loose),
    }


def _pool_data(pool: PoolStatus, now: datetime) -> dict[str, Any]:
    found = find_estimate(pool, now)
    return {
        "name": pool.name,
        "status": pool.status,
        "message": pool.message,
        "mode": pool.mode,
        "layout": pool.layout,
        "nodes": pool.nodes,
        "gpus": pool.gpus,
        "used": pool.used,
        "pendingPods": pool.pending_pods,
        "product": pool.product,
        "nextWindow": pool.next_window,
        "paused": pool.paused,
        "unseenGeneration": pool.unseen or None,
        "secondsLeft": None if found is None else round(found.left.total_seconds()),
        "plan": dict(pool.plan) or None,
        "members": [node_data(seen) for seen in pool.members],
    }


def node_data(seen: Seen) -> Mapping[str, Any]:
    """One node for programs."""
    return {
        "name": seen.name,
        "state": seen.state.value.word,
        "phase": seen.phase,
        "reason": seen.reason,
        "message": seen.message,
        "since": None if seen.entered is None else to_rfc3339(seen.entered),
        "deadline": seen.deadline,
        "disruption": seen.disruption,
        "wanted": seen.wanted,
        "observed": seen.observed,
        "pods": seen.pods,
        "culprit": seen.culprit,
        "blockers": list(seen.blockers),
        "cordon": seen.cordon,
        "unhealthy": seen.unhealthy,
    }

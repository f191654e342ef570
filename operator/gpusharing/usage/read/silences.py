"""Nodes that Prometheus did not see at the beginning or at the end of the window, and what it knows about why.

Of a node that came in the window or left it nothing is missing; of one whose agent is dead, or began late, something
is. The agent's pod tells the two apart: while it is there, Prometheus scrapes it, and `up` is 0, or the agent says that
it cannot read its GPUs.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from datetime import timedelta

from gpusharing.cli.shell.ages import counted, length
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.usage.prometheus.client import Prometheus, side_by_side
from gpusharing.usage.prometheus.matchers import OF_TARGETS, braced, labels_of, of_others
from gpusharing.usage.prometheus.windows import days, moment
from gpusharing.usage.read.absences import POINT, SHORT, Absences, by_node, describe_absences, find_absences
from gpusharing.usage.read.meterqueries import POLICY, MeterQuery

AGENTS = 'job="gpusharing-agent"'
"""The job of the chart's PodMonitor (templates/podmonitor.yaml, jobLabel), unless the selector names another."""
LATELY = 600
"""Seconds before the end of the window in which a node without a Ready agent had none: an update takes less."""
LOOK = "kubectl get pods -A -o wide -l app.kubernetes.io/name=gpusharing-agent"


@dataclass(slots=True)
class Losses:
    """What is known of time that was not metered."""

    missing: list[str] = field(default_factory=list)
    """Why the bill is incomplete."""
    remarks: list[str] = field(default_factory=list)
    """What may be missing."""


async def find_losses(prometheus: Prometheus, wish: MeterQuery, metered: Set[str]) -> Losses:
    """Of all nodes that were not seen for a while; of one policy, only of those of `metered`. Raises Trouble."""
    absences = await find_absences(prometheus, wish)
    down = await _find_down(prometheus, wish)
    bare = await _find_bare(prometheus, wish)
    # Other policies' nodes are none of ours.
    ours = metered if POLICY in labels_of(wish.selector) else {*absences.first, *absences.last, *down}
    silent = {
        node: told for node in ours & down.keys() if (told := silence_of(node, absences, down[node])) > SHORT
    }
    found = Losses(
        describe_absences({node: absences.seconds[node] for node in ours & absences.seconds.keys()})
    )
    if silent:
        names = some(
            [f"{node or 'a node'} ({length(timedelta(seconds=silent[node]))})" for node in sorted(silent)]
        )
        found.missing.append(
            f"Prometheus got no answer from the agent of {names}, or it could not read its GPUs: what they did"
            f" meanwhile is billed to nobody. See {LOOK}"
        )
    if bare > sum(1 for node in silent if down[node][1] > wish.end - LATELY):
        have = "have" if bare > 1 else "has"
        found.missing.append(
            f"{counted(bare, 'node')} {have} no Ready agent at the end of the window"
            f" (gpusharing_policy_nodes_without_agent), and what such GPUs do is billed to nobody. See {LOOK}"
        )
    others = ours - silent.keys()
    found.remarks += _came({node: absences.first[node] for node in others & absences.came(SHORT)})
    found.remarks += _left({node: absences.last[node] for node in others & absences.left(SHORT)})
    return found


def silence_of(node: str, absences: Absences, down: tuple[float, float]) -> float:
    """Seconds before a node was first seen, and after it was last seen, in which its agent did not answer or
    could not read. `down`: when that was so first and last."""
    begin, end = down
    if node not in absences.first and node not in absences.last:
        return absences.missed(begin, end)
    seconds = 0.0
    if node not in absences.last or absences.began(node):
        seconds += absences.missed(begin, min(end, absences.first[node]))
    if node in absences.last and node not in absences.returned:
        seconds += absences.missed(absences.last[node], end)
    return round(seconds)


async def _find_down(prometheus: Prometheus, wish: MeterQuery) -> dict[str, tuple[float, float]]:
    """When the agent of each node did not answer, or was not Ready, first and last."""
    job = "" if "job" in labels_of(wish.selector) else AGENTS
    chosen = of_others(wish.selector, frozenset({POLICY}))
    asked = f"up{braced(chosen, job)}", f"gpusharing_agent_ready{braced(chosen)}"
    silent = f"timestamp({' or '.join(f'max by (node) ({one}) == 0' for one in asked)})"
    found: dict[str, tuple[float, float]] = {}
    for start, end in days(wish.start, wish.end):
        span = f"[{round(end - start)}s:{POINT:g}s]"
        firsts, lasts = await side_by_side(
            *(prometheus.instant(f"{function}_over_time({silent}{span})", end) for function in ("min", "max"))
        )
        ended = by_node(lasts)
        for node, first in by_node(firsts).items():
            found[node] = found.get(node, (first, 0.0))[0], ended.get(node, first)
    return found


async def _find_bare(prometheus: Prometheus, wish: MeterQuery) -> int:
    """Nodes that had no Ready agent at the end, by the operator, which names only their policy."""
    if OF_TARGETS & set(labels_of(wish.selector)):
        return 0
    counts = f"max by ({POLICY}) (gpusharing_policy_nodes_without_agent{braced(wish.selector)})"
    found = await prometheus.instant(f"min_over_time(({counts})[{LATELY}s:{POINT:g}s])", wish.end)
    return sum(round(min(one.value, 1e6)) for one in found if one.value > 0)


def _came(first: Mapping[str, float]) -> list[str]:
    """A sentence, if there is something to say."""
    if not first:
        return []
    told = some([f"{node or 'a node'} (from {moment(first[node])} on)" for node in sorted(first)])
    return [
        f"nodes that were not seen from the beginning: {told}; what GPUs that were there earlier did until then is"
        " billed to nobody"
    ]


def _left(last: Mapping[str, float]) -> list[str]:
    """A sentence, if there is something to say."""
    if not last:
        return []
    told = some([f"{node or 'a node'} (until {moment(last[node])})" for node in sorted(last)])
    return [
        f"nodes that were not seen until the end: {told}; what GPUs that are still there did since is billed to nobody"
    ]

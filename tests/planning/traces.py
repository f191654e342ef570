"""SIMULATED traces of workloads, to play `recommend` on a past whose future is known. No GPU was measured for them.

A trace is what the busiest pod of a workload uses in each hour: memory and activity at their highest, as parts of the
card. There are six kinds, with numbers drawn from a seeded generator, so that a seed always is the same pool:

| Kind | Memory | Activity |
|---|---|---|
| steady | a level, ±3 % of noise | a level, ±10 % |
| daily | up to its level by day, down to 60 % at night | as memory, down to a fifth |
| bursts | a level, and for 2 % of the hours up to 1.6 times as much | high in those hours |
| growing | from its level up by 0.3 % a day | grows likewise |
| preallocated | 90 % of the device from the first hour on | up to a tenth |
| short-lived | three hours a day; between them no pod and no sample | a level |

Levels are spread evenly on a logarithmic scale, from 2 % to 55 % of the card: models come in all sizes. What a
preallocated workload really needs is known to the generator alone (`Trace.declared`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log, pi, sin
from random import Random

from tests.planning.histories import BEGIN, HOUR

from gpusharing.planning.gpus.cards import Card, memory_of
from kubectl_gpusharing.usage.needs import GIB, History, Holding, Workload

SIMULATED = "SIMULATED"
DAY = 24
"""Hours."""
Hourly = Callable[[int], tuple[float, float] | None]
"""Memory and activity in an hour, as parts of the card; None: no pod ran."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A workload whose future is known."""

    name: str
    kind: str
    pods: int
    hourly: tuple[tuple[float, float] | None, ...]
    """Memory and activity of its busiest pod, as parts of the card."""
    declared: float | None = None
    """Preallocated: the part of the card's memory that it needs, which its owner says."""

    def history(self, card: Card, begin: int, end: int, *, told: bool = True) -> History:
        """What was seen from one hour to another; `told`: with what its owner says."""
        whole = memory_of(card) * GIB
        seen = [(hour, self.hourly[hour]) for hour in range(begin, end)]
        at = [(BEGIN + (hour + 1) * HOUR, used) for hour, used in seen if used is not None]
        said = round(self.declared * whole) if told and self.declared is not None else None
        return History(
            Workload(SIMULATED.lower(), "deploy", self.name),
            self.pods,
            Holding(),
            tuple((when, memory * whole) for when, (memory, _) in at),
            tuple((when, active) for when, (_, active) in at),
            said,
        )

    def highest(self, card: Card, begin: int, end: int) -> float:
        """Bytes that a pod needed at most from one hour to another; of a preallocated one what it really needs."""
        whole = memory_of(card) * GIB
        if self.declared is not None:
            return self.declared * whole
        return whole * max((used[0] for used in self.hourly[begin:end] if used is not None), default=0.0)


def _steady(draw: Random, level: float, active: float) -> Hourly:
    return lambda hour: (level * draw.uniform(0.97, 1.0), active * draw.uniform(0.9, 1.0))


def _daily(draw: Random, level: float, active: float) -> Hourly:
    def hourly(hour: int) -> tuple[float, float]:
        by_day = 0.5 + 0.5 * sin(2 * pi * (hour % DAY) / DAY)
        noise = draw.uniform(0.97, 1.0)
        return level * (0.6 + 0.4 * by_day) * noise, active * (0.2 + 0.8 * by_day) * noise

    return hourly


def _bursts(draw: Random, level: float, active: float) -> Hourly:
    most = min(1.6 * level, 0.95)

    def hourly(hour: int) -> tuple[float, float]:
        if draw.random() < 0.02:
            return draw.uniform(level, most), min(1.0, 3 * active)
        return level * draw.uniform(0.9, 1.0), active * draw.uniform(0.5, 1.0)

    return hourly


def _growing(draw: Random, level: float, active: float) -> Hourly:
    def hourly(hour: int) -> tuple[float, float]:
        grown = 1 + 0.003 * hour / DAY
        return level * grown * draw.uniform(0.97, 1.0), min(1.0, active * grown * draw.uniform(0.9, 1.0))

    return hourly


def _preallocated(draw: Random, level: float, active: float) -> Hourly:
    return lambda hour: (0.9, min(active, 0.1) * draw.uniform(0.1, 1.0))


def _short_lived(draw: Random, level: float, active: float) -> Hourly:
    start = draw.randrange(DAY - 3)

    def hourly(hour: int) -> tuple[float, float] | None:
        if not start <= hour % DAY < start + 3:
            return None
        return level * draw.uniform(0.95, 1.0), active * draw.uniform(0.9, 1.0)

    return hourly


KINDS: dict[str, Callable[[Random, float, float], Hourly]] = {
    "steady": _steady,
    "daily": _daily,
    "bursts": _bursts,
    "growing": _growing,
    "preallocated": _preallocated,
    "short-lived": _short_lived,
}


def make_pool(seed: int, *, workloads: int, hours: int) -> tuple[Trace, ...]:
    """The traces of a pool; workload after workload of the next kind."""
    draw = Random(seed)
    found = []
    for index in range(workloads):
        kind = list(KINDS)[index % len(KINDS)]
        level = exp(draw.uniform(log(0.02), log(0.55)))
        # Who needs more memory mostly computes more; 5 % to 60 % of the card at most.
        active = min(0.6, max(0.05, level * draw.uniform(0.5, 1.2)))
        hourly = KINDS[kind](draw, level, active)
        pods = draw.randint(1, 6)
        trace = Trace(
            f"{kind}-{index}",
            kind,
            pods,
            tuple(hourly(hour) for hour in range(hours)),
            level if kind == "preallocated" else None,
        )
        found.append(trace)
    return tuple(found)

"""How much of a GPU a workload needs, by what it used: memory, part of the compute, and how sure that is.

- *Memory*: the 99th percentile of the hourly peaks with headroom, and never less than a tenth above the highest peak:
  a pod that runs out of memory is killed, so memory is never traded for price. People plan with 20 to 30 % of headroom.
- *Compute*: a percentile of the activity. A pod that gets less is only slower.
- *Nothing* where the history is too short, or where memory is flat beside little activity: servers such as vLLM take
  most of the memory at their start, so that what is in use is a setting and no need. Their owner has to say it.

Activity cannot show that a pod would have computed more: one that takes all its slice has is said to be held back.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import StrEnum
from fractions import Fraction
from math import ceil

from gpusharing.planning.gpus.capacity import memory_of
from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.vocabulary.values import value
from gpusharing.usage.reckon.histogram import ACTIVITY, MEMORY, Histogram, Sample, build

GIB = 2**30
MIN_POINTS = 24
"""Hourly peaks below which nothing is advised. KRR wants 100 points of any step and 3 hours (robusta-dev/krr
robusta_krr/strategies/simple.py); a day is the shortest time in which day and night can differ."""
MIN_SPAN = timedelta(hours=24)
"""From the beginning of the first hour to the end of the last."""
FLAT = 0.95
"""Memory is flat when the lowest hourly peak is at least this part of the highest."""
FILLED = 0.5
"""Part of the device's memory: below it no program has taken most of the memory at its start."""
LOW_ACTIVITY = 0.5
"""Activity is low when its part of the card's compute is below this part of memory's part of the card's memory."""
COVERED = 0.8
"""Hours with a peak, of all hours of the span; below that there are gaps worth reporting."""
FULL = 0.9
"""Part of a device's compute from which on a pod takes all of it: what it would take of more, nobody knows."""
IDLE = 0.01
"""Activity below this means that nothing computes."""
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


class Goal(StrEnum):
    """What a recommendation optimises. As in Kruize (kruize/autotune, RecommendationConstants.java: the 60th and
    98th percentile) it decides which part of the use a profile has to hold."""

    COST = "cost"
    """As few GPUs as hold 95 % of the activity."""
    PERFORMANCE = "performance"
    """As much room as the GPUs of the pool have, and at least for 98 % of the activity."""


@value
class Level:
    """Which part of its use a workload gets."""

    headroom: float
    """Factor on the 99th percentile of memory."""
    activity: float
    """Percentile of activity, 0 to 1."""


MEMORY_PART = 0.99
RARE = 1.1
"""Factor on the highest peak: if peaks come a few times in a fortnight, the next may be a little higher."""
LEVELS: Mapping[Goal, Level] = {Goal.COST: Level(1.2, 0.95), Goal.PERFORMANCE: Level(1.3, 0.98)}


class Confidence(StrEnum):
    """How much data a need rests on: days of hours seen, as VPA 1.7.1 counts (logic/estimator.go, getConfidence)."""

    NONE = "none"
    """Nothing is advised."""
    LOW = "low"
    """Less than 3 days."""
    MEDIUM = "medium"
    """Less than 7: each day of a week has its own load."""
    HIGH = "high"


class Doubt(StrEnum):
    """What is not known about a workload."""

    TOO_LITTLE = "too little history"
    PREALLOCATED = "LIKELY PREALLOCATED"
    HELD_BACK = "takes all the compute of its slice, so may need more"
    NO_ACTIVITY = "activity unknown"
    GAPS = "gaps"


@value(order=True)
class Workload:
    """The owner of some pods."""

    namespace: str
    """Namespace of its pods."""
    kind: str
    """In lower case: deployment, statefulset, job, pod."""
    name: str
    """Name of the owner; where only pods are known, theirs without the generated suffix."""


@value
class Holding:
    """What each pod of a workload holds now."""

    resource: str = "nvidia.com/gpu"
    """The name that its pods ask for."""
    devices: int = 1
    """Of each pod."""
    share: Fraction | None = Fraction(1)
    """Part of a card's memory that such a device is for: 1 for a whole GPU, 1/4 with four replicas. None: unknown."""
    compute: Fraction = Fraction(1)
    """Part of a card's compute that a pod can have of it: that of its MIG instance, or all of the GPU, whoever else has
    a replica of it."""


@value
class History:
    """What a workload used. A sample is that of the pod that used most, on the device with the highest use."""

    workload: Workload
    """Whose use it is."""
    pods: int
    """The most at the same time in the window."""
    holds: Holding
    """What its pods hold now."""
    memory: tuple[Sample, ...]
    """For each hour its highest use, in bytes, with the hour's end as its time."""
    activity: tuple[Sample, ...] | None = None
    """Part of a whole card's compute that was in use, 0 to 1: that of an instance times its part of the card's slices.
    None: nobody measured it."""
    declared: int | None = None
    """Bytes that a pod needs according to its owner; this wins over what was seen."""
    of_device: bool = False
    """Whether some of the activity is that of a whole device which other pods held too: more than a pod took."""


@value
class Need:
    """What each pod of a workload needs."""

    history: History
    """What was seen."""
    goal: Goal
    """What the headroom is for: it decides how much there is."""
    memory: int | None
    """Bytes, headroom included. None: not known."""
    compute: float | None
    """Part of a whole card, 0 to 1. None: nobody measured it."""
    peak: float
    """The 99th percentile of the hourly peaks, in bytes, without headroom; 0 without samples, as `highest`."""
    highest: float
    """The highest hourly peak, in bytes."""
    span: timedelta
    """From the first to the last hour with a peak."""
    coverage: float
    """Hours with a peak, of all hours of the span; 0 to 1."""
    idle: float | None
    """Part of the samples of activity in which nothing computed."""
    full: float | None
    """Part of them in which it took all the compute that it could have."""
    confidence: Confidence
    """How much data it rests on."""
    doubts: tuple[Doubt, ...]
    """What makes it less certain, or unknown."""
    reason: str
    """What the answer rests on, as a clause for people."""

    @property
    def samples(self) -> int:
        """Hourly peaks that were seen."""
        return len(self.history.memory)

    @property
    def workload(self) -> Workload:
        """Whose need it is."""
        return self.history.workload


def find_need(history: History, card: Card, goal: Goal) -> Need:
    """The need by the use seen on `card`. ValueError: a sample is negative or not a number, or activity is above 1."""
    memory = build(MEMORY, history.memory)
    activity = _activity(history)
    level = LEVELS[goal]
    span = _span(memory)
    coverage = min(1.0, memory.samples * _HOUR / span) if span else 0.0
    peak = memory.percentile(MEMORY_PART)
    compute = None if activity is None else activity.percentile(level.activity)
    doubts = _doubts(history, memory, compute, card, coverage)
    needed = _memory(history, memory, peak, level, doubts)
    confidence = Confidence.NONE if needed is None else _confidence(memory, span)
    return Need(
        history,
        goal,
        needed,
        compute,
        peak,
        memory.highest,
        span,
        coverage,
        _part_of_activity(history, lambda value: value < IDLE),
        _part_of_activity(history, lambda value: value >= _ceiling(history)),
        confidence,
        doubts,
        _reason(history, memory, span, doubts),
    )


def _activity(history: History) -> Histogram | None:
    """None if it was not measured, or not for long enough."""
    if history.activity is None or len(history.activity) < MIN_POINTS:
        return None
    found = build(ACTIVITY, history.activity)
    if found.highest > 1:
        raise ValueError(f"activity: {found.highest} is not a part of a card; for example 0.35")
    return found


def _span(memory: Histogram) -> timedelta:
    """From the beginning of the first hour to the end of the last."""
    return timedelta(0) if memory.first is None or memory.last is None else memory.last - memory.first + _HOUR


def _doubts(
    history: History, memory: Histogram, compute: float | None, card: Card, coverage: float
) -> tuple[Doubt, ...]:
    holds = {
        Doubt.TOO_LITTLE: memory.samples < MIN_POINTS or _span(memory) < MIN_SPAN,
        Doubt.PREALLOCATED: _is_preallocated(history, memory, compute, card),
        Doubt.HELD_BACK: _is_held_back(history, compute),
        Doubt.NO_ACTIVITY: compute is None,
        Doubt.GAPS: 0 < coverage < COVERED,
    }
    return tuple(doubt for doubt, held in holds.items() if held)


def _is_preallocated(history: History, memory: Histogram, compute: float | None, card: Card) -> bool:
    """Flat, most of the device, and with little activity. Unknown if activity was not measured."""
    whole = memory_of(card) * GIB
    if compute is None or not memory.samples or not whole:
        return False
    device = whole * float(history.holds.share or 1)
    flat = memory.lowest >= FLAT * memory.highest
    return flat and memory.highest >= FILLED * device and compute < LOW_ACTIVITY * memory.highest / whole


def _is_held_back(history: History, compute: float | None) -> bool:
    """By a slice, or by those it shares a GPU with. There is nothing larger than a whole GPU of its own."""
    alone = history.holds.share == 1 and history.holds.compute == 1
    return compute is not None and not alone and compute >= _ceiling(history)


def _ceiling(history: History) -> float:
    return FULL * float(history.holds.compute)


def _memory(
    history: History, memory: Histogram, peak: float, level: Level, doubts: tuple[Doubt, ...]
) -> int | None:
    if history.declared is not None:
        return history.declared
    if Doubt.TOO_LITTLE in doubts or Doubt.PREALLOCATED in doubts:
        return None
    return ceil(max(level.headroom * peak, RARE * memory.highest))


def _confidence(memory: Histogram, span: timedelta) -> Confidence:
    days = min(span / _DAY, memory.samples / 24)
    return Confidence.LOW if days < 3 else Confidence.MEDIUM if days < 7 else Confidence.HIGH


def _part_of_activity(history: History, holds: Callable[[float], bool]) -> float | None:
    if not history.activity:
        return None
    return sum(holds(sample.value) for sample in history.activity) / len(history.activity)


def _reason(history: History, memory: Histogram, span: timedelta, doubts: tuple[Doubt, ...]) -> str:
    if history.declared is not None:
        return "its owner says what it needs"
    if Doubt.TOO_LITTLE in doubts:
        hours = round(span / _HOUR)
        return (
            f"{memory.samples} hourly peaks over {hours} h, and at least {MIN_POINTS} over "
            f"{round(MIN_SPAN / _HOUR)} h are needed"
        )
    if Doubt.PREALLOCATED in doubts:
        return "memory is flat and activity low, so the program may just reserve it: say what it needs"
    days = min(span / _DAY, memory.samples / 24)
    return f"{days:.0f} days of data" if days >= 1.5 else "1 day of data"

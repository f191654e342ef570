"""How much of a GPU a workload needs, by what it used: memory, part of the compute, and how certain that is.

- *Memory*: the 99th percentile of the hourly peaks with headroom, and never less than a tenth above the highest
peak. A pod that runs out of memory is killed, so memory is never traded for price. People plan with 20 to 30 % of
headroom.

- *Compute*: a percentile of the activity. A pod that gets less is only slower.

- *Nothing* where the history is too short, or where memory is flat while activity is low: servers such as vLLM
allocate most of the memory at their start, so what they use is a setting and not a need. Only their owner can say
what they need.

Activity cannot show that a pod would have computed more: one that uses all the compute of its slice is reported as
held back.
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
"""The shortest history, from the beginning of the first hour to the end of the last, below which nothing is advised."""
FLAT = 0.95
"""Memory is flat when the lowest hourly peak is at least this part of the highest."""
FILLED = 0.5
"""Part of the device's memory below which memory does not count as preallocated."""
LOW_ACTIVITY = 0.5
"""Activity is low when its part of the card's compute is below this part of memory's part of the card's memory."""
COVERED = 0.8
"""Part of the span's hours that have a peak, below which gaps are reported."""
FULL = 0.9
"""Part of a device's compute from which on a pod uses all of it, so that it might use more if it had more."""
IDLE = 0.01
"""Activity below this counts as idle."""
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


class Goal(StrEnum):
    """What a recommendation optimizes. As in Kruize (kruize/autotune, RecommendationConstants.java: the 60th and
    98th percentile) it decides which part of the use a profile has to hold."""

    COST = "cost"
    """As few GPUs as hold 95 % of the activity."""
    PERFORMANCE = "performance"
    """As much room as the GPUs of the pool have, and at least for 98 % of the activity."""


@value
class Level:
    """Which part of its use a workload is given room for."""

    headroom: float
    """Factor on the 99th percentile of memory."""
    activity: float
    """Percentile of activity, 0 to 1."""


MEMORY_PART = 0.99
"""Percentile of the hourly memory peaks that the headroom is added to."""
RARE = 1.1
"""Factor on the highest peak: where peaks are rare, the next one may be a little higher."""
LEVELS: Mapping[Goal, Level] = {Goal.COST: Level(1.2, 0.95), Goal.PERFORMANCE: Level(1.3, 0.98)}


class Confidence(StrEnum):
    """How much data a need rests on: days of observed hours, as VPA 1.7.1 counts (logic/estimator.go,
    getConfidence)."""

    NONE = "none"
    """There is no advice."""
    LOW = "low"
    """There are less than 3 days of data."""
    MEDIUM = "medium"
    """There are less than 7 days of data, and each day of a week has its own load."""
    HIGH = "high"


class Doubt(StrEnum):
    """What is not known about the need of a workload."""

    TOO_LITTLE = "too little history"
    PREALLOCATED = "LIKELY PREALLOCATED"
    HELD_BACK = "takes all the compute of its slice, so may need more"
    NO_ACTIVITY = "activity unknown"
    GAPS = "gaps"


@value(order=True)
class Workload:
    """The owner of some pods, such as a Deployment."""

    namespace: str
    """Namespace of its pods."""
    kind: str
    """Kind in lower case, such as deployment, statefulset, job or pod."""
    name: str
    """Name of the owner; if only pods are known, their name without the generated suffix."""


@value
class Holding:
    """What each pod of a workload holds now."""

    resource: str = "nvidia.com/gpu"
    """The resource name that its pods request."""
    devices: int = 1
    """How many devices each pod holds."""
    share: Fraction | None = Fraction(1)
    """Part of a card's memory that such a device has: 1 for a whole GPU, 1/4 with four replicas, None if unknown."""
    compute: Fraction = Fraction(1)
    """Part of a card's compute that a pod can use: that of its MIG instance, or all of the GPU even if other pods have
    replicas of it."""


@value
class History:
    """What a workload used. Each sample is that of the pod that used most, on the device with the highest use."""

    workload: Workload
    """The workload that used it."""
    pods: int
    """How many pods ran at the same time in the window."""
    holds: Holding
    """What its pods hold now."""
    memory: tuple[Sample, ...]
    """Highest use of each hour, in bytes, with the hour's end as its time."""
    activity: tuple[Sample, ...] | None = None
    """Part of a whole card's compute that was in use, 0 to 1: that of an instance times its part of the card's slices.
    None if it was not measured."""
    declared: int | None = None
    """Bytes that a pod needs according to its owner, which wins over the measured use; None if undeclared."""
    of_device: bool = False
    """Whether some of the activity is that of a whole device that other pods held too, so more than a pod used."""


@value
class Need:
    """What each pod of a workload needs."""

    history: History
    """The use that the need is derived from."""
    goal: Goal
    """The goal, which decides how much headroom is included."""
    memory: int | None
    """Bytes of memory, headroom included, or None if it is not known."""
    compute: float | None
    """Part of a whole card's compute, 0 to 1, or None if it was not measured."""
    peak: float
    """The 99th percentile of the hourly peaks, in bytes, without headroom; 0 without samples, as `highest`."""
    highest: float
    """The highest hourly peak, in bytes."""
    span: timedelta
    """From the first to the last hour with a peak."""
    coverage: float
    """Part of the span's hours that have a peak, 0 to 1."""
    idle: float | None
    """Part of the activity samples in which nothing computed, or None without samples."""
    full: float | None
    """Part of the activity samples in which a pod used all the compute that it could have, or None without samples."""
    confidence: Confidence
    """How much data it rests on."""
    doubts: tuple[Doubt, ...]
    """What makes it less certain, or unknown."""
    reason: str
    """What the answer rests on, as a clause for people."""

    @property
    def samples(self) -> int:
        """How many hourly peaks the need rests on."""
        return len(self.history.memory)

    @property
    def workload(self) -> Workload:
        """The workload that has this need."""
        return self.history.workload


def find_need(history: History, card: Card, goal: Goal) -> Need:
    """Return the need of a workload by its use on `card`. Raises ValueError if a sample is negative or not a
    number, or if activity is above 1."""
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
    """Return the histogram of the activity, or None if it was not measured for long enough. Raises ValueError if
    it is above 1."""
    if history.activity is None or len(history.activity) < MIN_POINTS:
        return None
    activity = build(ACTIVITY, history.activity)
    if activity.highest > 1:
        raise ValueError(f"activity: {activity.highest} is not a part of a card; for example 0.35")
    return activity


def _span(memory: Histogram) -> timedelta:
    """Return the time from the beginning of the first hour to the end of the last; 0 without samples."""
    return timedelta(0) if memory.first is None or memory.last is None else memory.last - memory.first + _HOUR


def _doubts(
    history: History, memory: Histogram, compute: float | None, card: Card, coverage: float
) -> tuple[Doubt, ...]:
    """Return what is not known about the need, in the order of Doubt."""
    holds = {
        Doubt.TOO_LITTLE: memory.samples < MIN_POINTS or _span(memory) < MIN_SPAN,
        Doubt.PREALLOCATED: _is_preallocated(history, memory, compute, card),
        Doubt.HELD_BACK: _is_held_back(history, compute),
        Doubt.NO_ACTIVITY: compute is None,
        Doubt.GAPS: 0 < coverage < COVERED,
    }
    return tuple(doubt for doubt, held in holds.items() if held)


def _is_preallocated(history: History, memory: Histogram, compute: float | None, card: Card) -> bool:
    """Whether the memory is flat and most of the device while activity is low. False if activity was not measured."""
    whole = memory_of(card) * GIB
    if compute is None or not memory.samples or not whole:
        return False
    device = whole * float(history.holds.share or 1)
    flat = memory.lowest >= FLAT * memory.highest
    return flat and memory.highest >= FILLED * device and compute < LOW_ACTIVITY * memory.highest / whole


def _is_held_back(history: History, compute: float | None) -> bool:
    """Whether the pod uses all the compute of its slice or of its share of a GPU. A whole GPU of its own holds
    nothing back: there is nothing larger."""
    alone = history.holds.share == 1 and history.holds.compute == 1
    return compute is not None and not alone and compute >= _ceiling(history)


def _ceiling(history: History) -> float:
    """Return the activity from which on a pod uses all the compute it can have."""
    return FULL * float(history.holds.compute)


def _memory(
    history: History, memory: Histogram, peak: float, level: Level, doubts: tuple[Doubt, ...]
) -> int | None:
    """Return the bytes that a pod needs: as declared, else by its use with headroom. None if the history is too
    short or the memory likely preallocated."""
    if history.declared is not None:
        return history.declared
    if Doubt.TOO_LITTLE in doubts or Doubt.PREALLOCATED in doubts:
        return None
    return ceil(max(level.headroom * peak, RARE * memory.highest))


def _confidence(memory: Histogram, span: timedelta) -> Confidence:
    """Return how certain a need is: by the days of the span, or of the samples if they are fewer."""
    days = min(span / _DAY, memory.samples / 24)
    return Confidence.LOW if days < 3 else Confidence.MEDIUM if days < 7 else Confidence.HIGH


def _part_of_activity(history: History, holds: Callable[[float], bool]) -> float | None:
    """Return the part of the activity samples for which `holds` is true, or None without samples."""
    if not history.activity:
        return None
    return sum(holds(sample.value) for sample in history.activity) / len(history.activity)


def _reason(history: History, memory: Histogram, span: timedelta, doubts: tuple[Doubt, ...]) -> str:
    """Return what the need rests on, or why it is unknown, as a clause for people."""
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

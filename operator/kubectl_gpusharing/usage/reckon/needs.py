"""How much of a GPU each pod of a workload needs, judged by what it used: memory, a part of the compute, and how
certain both are.

- *Memory*: the 99th percentile of the hourly peaks with headroom, and at least a tenth more than the highest peak. A
pod that runs out of memory is killed, so memory is never traded for price. People plan with 20 to 30 % of headroom.

- *Compute*: a percentile of the activity. A pod that gets less is only slower.

- *Nothing* where the history is too short, or where memory is flat while activity is low: servers such as vLLM
allocate most of the memory when they start, so their use is a setting and not a need. Only their owner can say what
they need.

Activity cannot show that a pod would have computed more: one that uses all the compute of its slice is reported as
held back.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import StrEnum
from fractions import Fraction
from math import ceil

from gpusharing.api.names import ANNOTATION_GPU_MEMORY
from gpusharing.kube.quantity import count
from gpusharing.planning.gpus.capacity import memory_of
from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.vocabulary.values import value
from kubectl_gpusharing.usage.reckon.histogram import ACTIVITY, MEMORY, Histogram, Sample, build

GIB = 2**30
MIN_POINTS = 24
"""The number of hourly peaks below which nothing is advised. KRR demands 100 points of any step and 3 hours
(robusta-dev/krr robusta_krr/strategies/simple.py). A day is the shortest time in which day and night can differ."""
MIN_SPAN = timedelta(hours=24)
"""The length of the history, from the beginning of its first hour to the end of its last, below which nothing is
advised."""
FLAT = 0.95
"""Memory is flat if the lowest hourly peak is at least this fraction of the highest."""
FILLED = 0.5
"""The fraction of the device's memory below which memory does not count as preallocated."""
LOW_ACTIVITY = 0.5
"""Activity is low if the used part of the card's compute is below this fraction of the used part of its memory."""
COVERED = 0.8
"""Gaps are reported if less than this fraction of the span's hours have a peak."""
FULL = 0.9
"""A pod whose activity reaches this fraction of its device's compute is considered to use all of it, and might use
more if it had more."""
IDLE = 0.01
"""Activity below this counts as idle."""
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


class Goal(StrEnum):
    """The objective of a recommendation. As in Kruize (kruize/autotune, RecommendationConstants.java: the 60th and
    98th percentile) it decides which percentile of the use a profile must hold."""

    COST = "cost"
    """The fewest GPUs that suffice, with room for the 95th percentile of the activity."""
    PERFORMANCE = "performance"
    """As much room as the pool's GPUs offer, and at least for the 98th percentile of the activity."""


@value
class Level:
    """The headroom and the percentile that belong to a goal."""

    headroom: float
    """Factor on the 99th percentile of memory."""
    activity: float
    """Percentile of activity, 0 to 1."""


MEMORY_PART = 0.99
"""The percentile of the hourly memory peaks to which headroom is added."""
RARE = 1.1
"""Factor on the highest peak: where peaks are rare, the next one may be a little higher."""
LEVELS: Mapping[Goal, Level] = {Goal.COST: Level(1.2, 0.95), Goal.PERFORMANCE: Level(1.3, 0.98)}


class Confidence(StrEnum):
    """How much data a need is based on: the number of days with observed hours, as VPA 1.7.1 counts
    (logic/estimator.go, getConfidence)."""

    NONE = "none"
    """There is no advice."""
    LOW = "low"
    """There are fewer than 3 days of data."""
    MEDIUM = "medium"
    """There are fewer than 7 days of data, and every weekday may have its own load."""
    HIGH = "high"


class Doubt(StrEnum):
    """A reason why the need of a workload is uncertain or unknown."""

    TOO_LITTLE = "too little history"
    PREALLOCATED = "LIKELY PREALLOCATED"
    HELD_BACK = "uses all the compute of its slice, so it may need more"
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
    """The part of a card's memory that one such device has: 1 for a whole GPU, 1/4 with four replicas, None if
    unknown."""
    compute: Fraction = Fraction(1)
    """The part of a card's compute that a pod can use: that of its MIG instance, or 1 for a GPU, even if other pods
    have replicas of it."""


@value
class History:
    """What the pods of a workload used, hour by hour. Each sample is the highest of all pods and devices."""

    workload: Workload
    """The workload that used it."""
    pods: int
    """How many pods ran at the same time in the window."""
    holds: Holding
    """What its pods hold now."""
    memory: tuple[Sample, ...]
    """Highest use of each hour, in bytes, with the hour's end as its time."""
    activity: tuple[Sample, ...] | None = None
    """The part of the whole card's compute that was in use, 0 to 1. (For an instance, its activity times its part of
    the card's slices.) None if it was not measured."""
    declared: int | None = None
    """The bytes that a pod needs on each of its devices according to its owner, which take precedence over the measured
    use; None if undeclared."""
    of_device: bool = False
    """Whether some of the activity is that of a whole device that other pods held too, and so more than a pod used."""


@value
class Need:
    """What each pod of a workload needs."""

    history: History
    """The use that the need is derived from."""
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
    """The fraction of the activity samples in which the GPU was idle, or None without samples."""
    full: float | None
    """The fraction of the activity samples in which a pod used all the compute it had, or None without samples."""
    confidence: Confidence
    """How much data the need is based on."""
    doubts: tuple[Doubt, ...]
    """The reasons why the need is uncertain or unknown."""
    reason: str
    """A clause for people that says what the need is based on, or why it is unknown."""

    @property
    def samples(self) -> int:
        """How many hourly peaks the need is based on."""
        return len(self.history.memory)

    @property
    def workload(self) -> Workload:
        """The workload that has this need."""
        return self.history.workload


def declared_memory(pod: str, size: str) -> tuple[int, str]:
    """Return the bytes of GPU memory that `size`, the value of the annotation gpusharing.dev/gpu-memory, declares for
    each device of `pod`, a namespace and a name, and an empty text. If it is not a whole Kubernetes quantity such as
    15Gi, or is below 1 MiB, return 0 and a clause which says that the value is ignored."""
    number = count(size) or 0
    if number >= 2**20:
        return number, ""
    return 0, (
        f"the annotation {ANNOTATION_GPU_MEMORY} of pod {pod} is {size[:40]!r}, which is not a valid size and is"
        " ignored: use a size such as 15Gi"
    )


def find_need(history: History, card: Card, goal: Goal) -> Need:
    """Return what each pod of the workload needs on `card`, given its history. Raises ValueError if a sample is
    negative, infinite or not a number, or if activity is above 1. Activity with fewer than MIN_POINTS samples is
    not checked, and the compute is then unknown."""
    memory = build(MEMORY, history.memory)
    level, compute = LEVELS[goal], None
    if history.activity is not None and len(history.activity) >= MIN_POINTS:
        activity = build(ACTIVITY, history.activity)
        if activity.highest > 1:
            raise ValueError(
                f"activity: {activity.highest} is not a fraction of a card; pass a number from 0 to 1, for example 0.35"
            )
        compute = activity.percentile(level.activity)
    times = [sample.at for sample in history.memory]
    # From the beginning of the first hour to the end of the last.
    span = max(times) - min(times) + _HOUR if times else timedelta(0)
    coverage = min(1.0, memory.samples * _HOUR / span) if span else 0.0
    peak = memory.percentile(MEMORY_PART)
    doubts = _doubts(history, memory, compute, card, span, coverage)
    # The days that the samples span, or one for every 24 samples if that is fewer days.
    days = min(span / _DAY, memory.samples / 24)
    measured = ceil(max(level.headroom * peak, RARE * memory.highest))
    needed, reason = _memory(history, measured, span, days, doubts)
    enough = Confidence.LOW if days < 3 else Confidence.MEDIUM if days < 7 else Confidence.HIGH
    confidence = Confidence.NONE if needed is None else enough
    idle = _part_of_activity(history, lambda value: value < IDLE)
    full = _part_of_activity(history, lambda value: value >= _ceiling(history))
    return Need(
        history, needed, compute, peak, memory.highest, span, coverage, idle, full, confidence, doubts, reason
    )


def _doubts(
    history: History, memory: Histogram, compute: float | None, card: Card, span: timedelta, coverage: float
) -> tuple[Doubt, ...]:
    """Return all doubts that apply to the need, in the order of Doubt: fewer than MIN_POINTS samples or a span below
    MIN_SPAN; probably preallocated (`_is_preallocated`); held back, if the pods use all the compute of their slice or
    share (`_ceiling`) and do not each have a whole GPU of their own, beyond which there is nothing larger; an unknown
    activity; and gaps, if the coverage is below COVERED and there are samples."""
    alone = history.holds.share == 1 and history.holds.compute == 1
    holds = {
        Doubt.TOO_LITTLE: memory.samples < MIN_POINTS or span < MIN_SPAN,
        Doubt.PREALLOCATED: _is_preallocated(history, memory, compute, card),
        Doubt.HELD_BACK: compute is not None and not alone and compute >= _ceiling(history),
        Doubt.NO_ACTIVITY: compute is None,
        Doubt.GAPS: 0 < coverage < COVERED,
    }
    return tuple(doubt for doubt, held in holds.items() if held)


def _is_preallocated(history: History, memory: Histogram, compute: float | None, card: Card) -> bool:
    """Whether the memory is probably preallocated: it is flat (FLAT), fills much of the device (FILLED), and the
    activity is below LOW_ACTIVITY times the used part of the card's memory. A device whose share of the card is unknown
    counts as a whole card. False if memory or activity was not measured, or the card's memory is unknown."""
    whole = memory_of(card) * GIB
    if compute is None or not memory.samples or not whole:
        return False
    device = whole * float(history.holds.share or 1)
    flat = memory.lowest >= FLAT * memory.highest
    return flat and memory.highest >= FILLED * device and compute < LOW_ACTIVITY * memory.highest / whole


def _ceiling(history: History) -> float:
    """Return the activity, as a part of the whole card, from which a pod is considered to use all its compute."""
    return FULL * float(history.holds.compute)


def _memory(
    history: History, measured: int, span: timedelta, days: float, doubts: tuple[Doubt, ...]
) -> tuple[int | None, str]:
    """Return the bytes that each pod needs, and a clause for people that says why. The first that applies counts: what
    the owner declared; None if the history is too short; None if the memory is probably preallocated; otherwise
    `measured`, with the number of days of data."""
    if history.declared is not None:
        return history.declared, "its owner declared what it needs"
    if Doubt.TOO_LITTLE in doubts:
        return None, (
            f"{len(history.memory)} hourly peaks over {round(span / _HOUR)} h, but at least {MIN_POINTS} over "
            f"{round(MIN_SPAN / _HOUR)} h are needed"
        )
    if Doubt.PREALLOCATED in doubts:
        return None, (
            "memory usage is flat and activity low, so the program may merely be reserving memory: declare what it"
            " needs"
        )
    return measured, f"{days:.0f} days of data" if days >= 1.5 else "1 day of data"


def _part_of_activity(history: History, holds: Callable[[float], bool]) -> float | None:
    """Return the fraction of the activity samples for which `holds` is true, or None without samples."""
    if not history.activity:
        return None
    return sum(holds(sample.value) for sample in history.activity) / len(history.activity)

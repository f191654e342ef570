"""How much of a GPU does each pod of a workload need, judged by what it used, and how certain is that?

Memory is a high percentile of the hourly peaks with headroom (people plan with 20 to 30 %): a pod that runs out of it
is killed, so memory is never traded for price. Compute is a percentile of the activity: a pod that gets less is only
slower, and activity cannot show that it would have computed more. Nothing is known where the history is short, or where
memory is flat near the device's size, or flat while activity is low (`find_need`).
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from fractions import Fraction
from math import ceil, fsum, isfinite, log

from gpusharing.api.names import ANNOTATION_GPU_MEMORY
from gpusharing.kube.raw import count
from gpusharing.planning.gpus.cards import Card, Profile, memory_of, usable_memory
from gpusharing.planning.gpus.geometry import resource_name
from gpusharing.planning.vocabulary.values import value

GROWTH = 1.05
HALF_LIFE = timedelta(hours=24)
Sample = tuple[datetime, float]
"""A measured value, preceded by its time."""


@value
class Scale:
    """The buckets for one kind of measurement."""

    name: str
    first: float
    """Upper bound of the first bucket; smaller values are reported as this one."""
    last: float
    """The highest bound; larger values are reported as this one."""

    def bucket(self, value: float) -> int:
        """Return the index of the bucket for `value`: 0 up to `first`, and n up to first x GROWTH^n."""
        if value <= self.first:
            return 0
        return max(1, ceil(log(min(value, self.last) / self.first) / log(GROWTH) - 1e-9))

    def bound(self, bucket: int) -> float:
        return min(self.first * GROWTH**bucket, self.last)


MEMORY = Scale("memory", 10e6, 1e12)
"""The scale of memory use, in bytes: from 10 MB to 1 TB as in VPA, with 237 buckets."""
ACTIVITY = Scale("activity", 0.001, 1.0)
"""The scale of activity, as a part of a whole card: from a thousandth to 1, with 143 buckets."""


def percentile(scale: Scale, samples: Sequence[Sample], part: float) -> float:
    """Return the smallest bucket bound up to which the samples have the fraction `part` of the weight; 0 without any.

    It is at most the highest sample. The newest sample weighs 1, and one a half-life earlier 0.5.

    The scheme is that of the Vertical Pod Autoscaler 1.7.1 (kubernetes/autoscaler,
    pkg/recommender/model/aggregations_config.go and util/decaying_histogram.go: growth 0.05, half-life 24 h). In VPA
    the width of a bucket grows by 5 %, here its upper bound does, so that no value is reported more than 5 % too high.
    Histograms are built anew for each recommendation, because Prometheus stores the samples (docs/adr/0048).

    Raises ValueError if `part` is not between 0 and 1, or if a value is negative, infinite or NaN.
    """
    if not 0 <= part <= 1:
        raise ValueError(f"a percentile is a number from 0 to 1, for example 0.99, not {part}")
    for at, size in samples:
        if not isfinite(size) or size < 0:
            time = f"{at:%Y-%m-%d %H:%M}"
            raise ValueError(f"{scale.name}: {size} at {time} is not a finite number of at least 0")
    if not samples:
        return 0.0
    last, highest = max(at for at, _ in samples), _highest(samples)
    weights = defaultdict[int, list[float]](list)
    for at, size in samples:
        weights[scale.bucket(size)].append(float(0.5 ** ((last - at) / HALF_LIFE)))
    sums = [(bucket, fsum(parts)) for bucket, parts in sorted(weights.items())]
    wanted, reached = part * fsum(weight for _, weight in sums), 0.0
    for bucket, weight in sums:
        reached += weight
        if reached >= wanted * (1 - 1e-12):
            return min(scale.bound(bucket), highest)
    return highest


def _highest(samples: Sequence[Sample]) -> float:
    return max((value for _, value in samples), default=0.0)


GIB = 2**30
MIN_POINTS = 24
"""The number of hourly peaks below which nothing is advised: a day, the shortest time with day and night. KRR demands
100 points of any step and 3 hours (robusta-dev/krr robusta_krr/strategies/simple.py)."""
MIN_SPAN = timedelta(hours=24)
"""The length of the history below which nothing is advised."""
FLAT = 0.95
"""Memory is flat if the lowest hourly peak is at least this fraction of the highest."""
FILLED = 0.5
"""The fraction of the device's memory below which memory does not count as preallocated."""
LOW_ACTIVITY = 0.5
"""Activity is low if the used compute is below this fraction of the used memory, as parts of the card."""
COVERED = 0.8
"""Gaps are reported if less than this fraction of the span's hours have a peak."""
FULL = 0.9
"""The fraction of its device's compute from which a pod is considered to use all of it, and might use more."""
IDLE = 0.01
"""Activity below this counts as idle."""
_HOUR = timedelta(hours=1)


class Goal(StrEnum):
    """The objective of a recommendation.

    Kruize has such goals too (kruize/autotune, RecommendationConstants.java: its 60th and 98th percentile).
    """

    COST = "cost"
    """The fewest GPUs that suffice."""
    PERFORMANCE = "performance"
    """As much room as the pool's GPUs offer."""


MEMORY_PART = 0.99
"""The percentile of the hourly memory peaks to which headroom is added."""
RARE = 1.1
"""Factor on the highest peak: where peaks are rare, the next one may be a little higher."""
LEVELS = {Goal.COST: (1.2, 0.95), Goal.PERFORMANCE: (1.3, 0.98)}
"""The factor on the 99th percentile of memory, and the percentile of activity, by goal."""


class Confidence(StrEnum):
    """How many days with observed hours a need is based on, as VPA 1.7.1 counts (logic/estimator.go, getConfidence)."""

    NONE = "none"
    LOW = "low"
    """Fewer than 3 days of data."""
    MEDIUM = "medium"
    """Fewer than 7 days of data; every weekday may have its own load."""
    HIGH = "high"


class Doubt(StrEnum):
    TOO_LITTLE = "too little history"
    PREALLOCATED = "LIKELY PREALLOCATED"
    HELD_BACK = "uses all the compute of its slice, so it may need more"
    NO_ACTIVITY = "activity unknown"
    GAPS = "gaps"


@value(order=True)
class Workload:
    """The owner of some pods, such as a Deployment."""

    namespace: str
    kind: str
    """The kind in lower case, such as deployment, statefulset, job or pod."""
    name: str
    """The name of the owner; if only pods are known, their name without the generated suffix."""

    @property
    def ref(self) -> str:
        return f"{self.namespace}/{self.name}"


@value
class Holding:
    resource: str = "nvidia.com/gpu"
    devices: int = 1
    share: Fraction | None = Fraction(1)
    """The part of a card's memory that one such device has; None if unknown."""
    compute: Fraction = Fraction(1)
    """The part of a card's compute that a pod can use: that of its MIG instance, or 1 for a GPU, even a replica."""

    def profile(self, card: Card) -> Profile | None:
        """Return the profile of the devices, which pods may share; None for a GPU."""
        names = {resource_name(one.name, shared=shared): one for one in card.profiles for shared in (False, True)}
        return names.get(self.resource)


@value
class History:
    """What the pods of a workload used, hour by hour; each sample is the highest of all pods and devices."""

    workload: Workload
    pods: int
    holds: Holding
    memory: tuple[Sample, ...]
    """The highest use of each hour, in bytes, with the hour's end as time."""
    activity: tuple[Sample, ...] | None = None
    """The part of the whole card's compute in use, 0 to 1, also for an instance; None if it was not measured."""
    declared: int | None = None
    """Bytes for each device, declared by the owner; None if undeclared. They precede the measured use."""
    of_device: bool = False
    """Whether some of the activity is that of a whole device that other pods held too."""


@value
class Need:
    history: History
    memory: int | None
    """The bytes that a pod needs, headroom included; None if unknown."""
    compute: float | None
    """The part of a whole card's compute, 0 to 1; None if it was not measured."""
    peak: float
    """The 99th percentile of the hourly peaks, in bytes, without headroom; 0 without samples."""
    highest: float
    """The highest hourly peak, in bytes; 0 without samples."""
    span: timedelta
    coverage: float
    """Part of the span's hours that have a peak, 0 to 1."""
    idle: float | None
    """Part of the activity samples in which the GPU was idle; None without samples."""
    full: float | None
    """Part of the activity samples in which a pod used all the compute it had; None without samples."""
    confidence: Confidence
    doubts: tuple[Doubt, ...]
    reason: str
    """A clause that says what the need is based on, or why it is unknown."""

    @property
    def samples(self) -> int:
        return len(self.history.memory)

    @property
    def workload(self) -> Workload:
        return self.history.workload


def declared_memory(pod: str, size: str) -> tuple[int, str]:
    """Parse a pod's annotation gpusharing.dev/gpu-memory: the bytes for each device, or 0 and what is wrong."""
    number = count(size) or 0
    if number >= 2**20:
        return number, ""
    return 0, (
        f"the annotation {ANNOTATION_GPU_MEMORY} of pod {pod} is {size[:40]!r}, which is not a valid size and is"
        " ignored: use a size such as 15Gi"
    )


def find_need(history: History, card: Card, goal: Goal) -> Need:
    """Return what each pod of the workload needs on `card`.

    Servers such as vLLM allocate most of their device's memory when they start, so their use is a setting, and only
    their owner can say what they need. The need for memory is unknown if it is flat and so near the device's size that
    headroom would demand a larger device, on which it would grow, or if it is flat while activity is low. Raises
    ValueError if a sample is negative, infinite or NaN, or activity is above 1.
    """
    peak, highest = percentile(MEMORY, history.memory, MEMORY_PART), _highest(history.memory)
    samples = len(history.memory)
    (headroom, part), compute = LEVELS[goal], None
    if history.activity is not None and len(history.activity) >= MIN_POINTS:
        compute = percentile(ACTIVITY, history.activity, part)
        if (most := _highest(history.activity)) > 1:
            raise ValueError(
                f"activity: {most} is not a fraction of a card; pass a number from 0 to 1, for example 0.35"
            )
    times = [at for at, _ in history.memory]
    # From the beginning of the first hour to the end of the last.
    span = max(times) - min(times) + _HOUR if times else timedelta(0)
    coverage = min(1.0, samples * _HOUR / span) if span else 0.0
    measured = ceil(max(headroom * peak, RARE * highest))
    doubts = _doubts(history, compute, card, span, coverage, measured)
    # The days that the samples span, or one for every 24 samples if that is fewer days.
    days = min(span / timedelta(days=1), samples / 24)
    needed: int | None = None
    if history.declared is not None:
        needed, reason = history.declared, "its owner declared what it needs"
    elif Doubt.TOO_LITTLE in doubts:
        reason = (
            f"{samples} hourly peaks over {round(span / _HOUR)} h, but at least {MIN_POINTS} over "
            f"{round(MIN_SPAN / _HOUR)} h are needed"
        )
    elif Doubt.PREALLOCATED in doubts:
        reason = (
            "memory usage is flat, so the program may merely be reserving memory, and it keeps the size that it has:"
            " declare what it needs"
        )
    else:
        needed, reason = measured, f"{days:.0f} days of data" if days >= 1.5 else "1 day of data"
    enough = Confidence.LOW if days < 3 else Confidence.MEDIUM if days < 7 else Confidence.HIGH
    confidence = Confidence.NONE if needed is None else enough
    idle, full = None, None
    if history.activity:
        values = [value for _, value in history.activity]
        idle = sum(value < IDLE for value in values) / len(values)
        full = sum(value >= _ceiling(history) for value in values) / len(values)
    return Need(history, needed, compute, peak, highest, span, coverage, idle, full, confidence, doubts, reason)


def _doubts(
    history: History, compute: float | None, card: Card, span: timedelta, coverage: float, measured: int
) -> tuple[Doubt, ...]:
    device, whole, highest = history.holds, memory_of(card) * GIB, _highest(history.memory)
    alone, profile = device.share == 1 and device.compute == 1, device.profile(card)
    flat = bool(history.memory) and min(value for _, value in history.memory) >= FLAT * highest
    # MPS limits each pod to its share of a GPU, and time-slicing does not.
    sizes = (usable_memory(card, profile) * GIB,) if profile else (whole * float(device.share or 1), whole)
    near = any(FLAT * highest <= size < measured for size in sizes)
    filled = whole > 0 and highest >= FILLED * whole * float(device.share or 1)
    idle = compute is not None and compute * whole < LOW_ACTIVITY * highest
    preallocated = flat and filled and (near or idle)
    holds = {
        Doubt.TOO_LITTLE: len(history.memory) < MIN_POINTS or span < MIN_SPAN,
        Doubt.PREALLOCATED: preallocated,
        Doubt.HELD_BACK: compute is not None and not alone and compute >= _ceiling(history),
        Doubt.NO_ACTIVITY: compute is None,
        Doubt.GAPS: 0 < coverage < COVERED,
    }
    return tuple(doubt for doubt, held in holds.items() if held)


def _ceiling(history: History) -> float:
    return FULL * float(history.holds.compute)

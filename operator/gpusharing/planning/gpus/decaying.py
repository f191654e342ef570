"""What was seen over days in a few hundred numbers: a histogram with buckets that grow by 5 % and weights that halve
in a day.

The scheme is that of the Vertical Pod Autoscaler (kubernetes/autoscaler, pkg/recommender/model/
aggregations_config.go and util/decaying_histogram.go: growth 0.05, half-life 24 h for memory and CPU). One difference:
there the width of a bucket grows by 5 %, here its bounds do, so that no value is told more than 5 % too high.

Histograms of parts merge into that of the whole, whatever the parts are: pods, days, Prometheus servers. So a window of
a month may be read a day at a time, and nothing needs to keep all samples.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil, fsum, inf, isfinite, log
from typing import Any, NamedTuple

GROWTH = 1.05
HALF_LIFE = timedelta(hours=24)
_NEGLIGIBLE = 2.0**-60
"""Of the heaviest bucket: what weighs less than that changes no percentile and is dropped (after two months)."""


class Sample(NamedTuple):
    """A value at a time."""

    at: datetime
    """With a time zone."""
    value: float


@dataclass(frozen=True, slots=True)
class Scale:
    """What is measured."""

    name: str
    first: float
    """The first bucket is from 0 to here; what is less is told as this."""
    last: float
    """What is more is told as this."""

    def bucket(self, value: float) -> int:
        """Bucket n > 0 has what is above first x GROWTH^(n-1), up to first x GROWTH^n."""
        if value <= self.first:
            return 0
        index = ceil(log(min(value, self.last) / self.first) / log(GROWTH) - 1e-9)
        return max(1, index)

    def bound(self, bucket: int) -> float:
        """The upper bound of a bucket."""
        return min(self.first * GROWTH**bucket, self.last)

    @property
    def buckets(self) -> int:
        """How many there can be."""
        return self.bucket(self.last) + 1


MEMORY = Scale("memory", 10e6, 1e12)
"""Bytes, from 10 MB to 1 TB as in VPA: 237 buckets."""
ACTIVITY = Scale("activity", 0.001, 1.0)
"""Of a whole card, from a thousandth: 143 buckets."""
SCALES = {scale.name: scale for scale in (MEMORY, ACTIVITY)}


@dataclass(frozen=True, slots=True)
class Histogram:
    """What was seen, newer samples weighing more. Bounded: a weight for each bucket of the scale at most."""

    scale: Scale
    weights: tuple[tuple[int, float], ...] = ()
    """By bucket, in ascending order; a sample at `last` weighs 1, one of a half-life before 0.5."""
    samples: int = 0
    first: datetime | None = None
    last: datetime | None = None
    lowest: float = inf
    """Of all samples, however old; exact, as `highest`."""
    highest: float = 0.0

    def percentile(self, part: float) -> float:
        """The least value that at least `part` of the weight does not exceed, told up to 5 % too high and never above
        the highest sample; 0 without samples. ValueError: `part` is not within 0 to 1."""
        if not 0 <= part <= 1:
            raise ValueError(f"a percentile is from 0 to 1, for example 0.99; not {part}")
        wanted = part * fsum(weight for _, weight in self.weights)
        reached = 0.0
        for bucket, weight in self.weights:
            reached += weight
            if reached >= wanted * (1 - 1e-12):
                return min(self.scale.bound(bucket), self.highest)
        return self.highest

    def checkpoint(self) -> dict[str, Any]:
        """In plain values, to be kept and read back by `restore`."""
        return {
            "scale": self.scale.name,
            "weights": {str(bucket): weight for bucket, weight in self.weights},
            "samples": self.samples,
            "first": _told(self.first),
            "last": _told(self.last),
            "lowest": self.lowest if self.samples else None,
            "highest": self.highest,
        }


def build(scale: Scale, samples: Iterable[Sample | tuple[datetime, float]]) -> Histogram:
    """Of samples in any order. ValueError: one is negative or not a number."""
    found = [Sample(*one) for one in samples]
    if not found:
        return Histogram(scale)
    wrong = next((one for one in found if not isfinite(one.value) or one.value < 0), None)
    if wrong is not None:
        raise ValueError(
            f"{scale.name}: {wrong.value} at {wrong.at:%Y-%m-%d %H:%M} is no value that was measured"
        )
    last = max(one.at for one in found)
    weights: dict[int, list[float]] = {}
    for one in found:
        weights.setdefault(scale.bucket(one.value), []).append(_weight(last - one.at))
    return Histogram(
        scale,
        _kept({bucket: fsum(parts) for bucket, parts in weights.items()}),
        len(found),
        min(one.at for one in found),
        last,
        min(one.value for one in found),
        max(one.value for one in found),
    )


def merge(one: Histogram, other: Histogram) -> Histogram:
    """As if the samples of both had been built into one. ValueError: they are of different scales."""
    if one.scale != other.scale:
        raise ValueError(f"a histogram of {one.scale.name} and one of {other.scale.name} do not merge")
    if one.last is None or one.first is None:
        return other
    if other.last is None or other.first is None:
        return one
    last = max(one.last, other.last)
    weights: dict[int, float] = {}
    for part, age in ((one, last - one.last), (other, last - other.last)):
        for bucket, weight in part.weights:
            weights[bucket] = weights.get(bucket, 0.0) + weight * _weight(age)
    return Histogram(
        one.scale,
        _kept(weights),
        one.samples + other.samples,
        min(one.first, other.first),
        last,
        min(one.lowest, other.lowest),
        max(one.highest, other.highest),
    )


def restore(checkpoint: Mapping[str, Any]) -> Histogram:
    """What `checkpoint` wrote. ValueError names the field that nobody can read."""
    field = "scale"
    try:
        scale = SCALES[checkpoint[field]]
        field = "weights"
        weights = {int(bucket): float(weight) for bucket, weight in checkpoint[field].items()}
        if not all(0 <= bucket < scale.buckets and 0 < weight < inf for bucket, weight in weights.items()):
            raise ValueError
        field = "samples"
        samples = int(checkpoint[field])
        if samples < 0 or bool(samples) != bool(weights):
            raise ValueError
        if not samples:
            return Histogram(scale)
        field = "first"
        first = _time(checkpoint[field])
        field = "last"
        last = _time(checkpoint[field])
        if last < first:
            raise ValueError
        field = "lowest"
        lowest = float(checkpoint[field])
        if not 0 <= lowest < inf:
            raise ValueError
        field = "highest"
        highest = float(checkpoint[field])
        if not lowest <= highest < inf:
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(
            f"checkpoint of a histogram: {field} is missing or cannot be read; as an example: "
            '{"scale": "memory", "weights": {"0": 1.0}, "samples": 1, "first": "2026-11-01T00:00:00+00:00",'
            ' "last": "2026-11-01T00:00:00+00:00", "lowest": 0.0, "highest": 0.0}'
        ) from None
    return Histogram(scale, _kept(weights), samples, first, last, lowest, highest)


def _weight(age: timedelta) -> float:
    return float(0.5 ** (age / HALF_LIFE))


def _kept(weights: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    least = max(weights.values()) * _NEGLIGIBLE
    return tuple(sorted((bucket, weight) for bucket, weight in weights.items() if weight >= least))


def _told(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat()


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError
    return at

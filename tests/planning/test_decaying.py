"""Histograms that forget: what they may get wrong, and that parts of them are the whole."""

import json
from datetime import timedelta
from math import ceil, inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning.histories import BEGIN, HOUR

from gpusharing.planning.gpus.decaying import (
    ACTIVITY,
    GROWTH,
    HALF_LIFE,
    MEMORY,
    SCALES,
    Histogram,
    Sample,
    Scale,
    build,
    merge,
    restore,
)

samples_of_memory = st.lists(
    st.builds(
        Sample,
        st.integers(0, 60 * 24).map(lambda hour: BEGIN + hour * HOUR),
        st.floats(0, 2e12, allow_nan=False, allow_subnormal=False),
    ),
    max_size=60,
)
parts = st.floats(0, 1)


def agree(one: Histogram, other: Histogram) -> None:
    """All but the last digits of the weights."""
    assert one.scale == other.scale
    assert (one.samples, one.first, one.last) == (other.samples, other.first, other.last)
    assert (one.lowest, one.highest) == (other.lowest, other.highest)
    mine, yours = dict(one.weights), dict(other.weights)
    for bucket in mine.keys() | yours.keys():
        assert mine.get(bucket, 0.0) == pytest.approx(yours.get(bucket, 0.0), rel=1e-9, abs=1e-15)


@given(samples_of_memory, st.integers(0, 60))
def test_histograms_of_two_parts_are_that_of_the_whole(found: list[Sample], cut: int) -> None:
    one, other = build(MEMORY, found[:cut]), build(MEMORY, found[cut:])
    agree(merge(one, other), build(MEMORY, found))
    agree(merge(other, one), build(MEMORY, found))


@given(samples_of_memory, parts, parts)
def test_a_higher_percentile_is_never_less(found: list[Sample], one: float, other: float) -> None:
    histogram = build(MEMORY, found)
    low, high = sorted((one, other))
    assert histogram.percentile(low) <= histogram.percentile(high) <= histogram.highest


@given(st.lists(st.floats(10e6, 1e12), min_size=1, max_size=80), parts)
def test_of_samples_of_one_time_a_percentile_is_at_most_5_percent_too_high(
    values: list[float], part: float
) -> None:
    found = build(MEMORY, [Sample(BEGIN, value) for value in values]).percentile(part)
    exact = sorted(values)[max(ceil(part * len(values) * (1 - 1e-12)) - 1, 0)]
    assert exact * (1 - 1e-6) <= found <= exact * GROWTH * (1 + 1e-6)


@given(samples_of_memory)
def test_a_checkpoint_is_read_back_as_it_was_and_stays_small(found: list[Sample]) -> None:
    histogram = build(MEMORY, found)
    written = json.dumps(histogram.checkpoint())
    assert restore(json.loads(written)) == histogram
    assert len(histogram.weights) <= MEMORY.buckets == 237
    assert len(written) < 10_000


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_each_bucket_is_5_percent_wider_and_values_at_its_bound_are_in_it(scale: Scale) -> None:
    for bucket in range(scale.buckets):
        assert scale.bucket(scale.bound(bucket)) == bucket
    assert scale.bound(2) == pytest.approx(scale.bound(1) * 1.05)
    assert scale.bound(scale.buckets - 1) == scale.last
    assert scale.bucket(scale.last * 100) == scale.buckets - 1


def test_a_sample_weighs_half_a_day_later() -> None:
    histogram = build(MEMORY, [Sample(BEGIN, 1e9), Sample(BEGIN + HALF_LIFE, 2e9)])
    assert [weight for _, weight in histogram.weights] == [0.5, 1.0]
    assert histogram.percentile(0.3) == pytest.approx(1e9, rel=0.05)
    assert histogram.percentile(0.4) == 2e9


def test_what_was_long_ago_is_forgotten_but_for_the_highest() -> None:
    old = [Sample(BEGIN, 50e9)]
    new = [Sample(BEGIN + timedelta(days=90, hours=hour), 5e9) for hour in range(48)]
    histogram = build(MEMORY, old + new)
    assert len(histogram.weights) == 1
    assert histogram.percentile(1) == pytest.approx(5e9, rel=0.05)
    assert histogram.highest == 50e9


def test_without_samples_there_is_nothing() -> None:
    empty = build(ACTIVITY, [])
    assert (empty.percentile(0.99), empty.samples, empty.highest) == (0.0, 0, 0.0)
    assert restore(empty.checkpoint()) == empty == merge(empty, empty)


@pytest.mark.parametrize("value", [-1.0, nan, inf])
def test_what_nobody_can_have_measured_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"memory: .* at 2026-11-01 00:00 is no value that was measured"):
        build(MEMORY, [Sample(BEGIN, value)])


@pytest.mark.parametrize("part", [-0.1, 1.1, 99, nan])
def test_a_percentile_is_from_0_to_1(part: float) -> None:
    with pytest.raises(ValueError, match=r"for example 0\.99"):
        build(MEMORY, []).percentile(part)


def test_memory_and_activity_do_not_merge() -> None:
    with pytest.raises(ValueError, match="histogram of memory and one of activity do not merge"):
        merge(build(MEMORY, [Sample(BEGIN, 1e9)]), build(ACTIVITY, [Sample(BEGIN, 0.5)]))


WRONG: dict[str, object] = {
    "scale": "length",
    "weights": {"9999": 1.0},
    "samples": -1,
    "first": "yesterday",
    "last": "2026-10-01T00:00:00+00:00",
    "lowest": -1,
    "highest": "much",
}


@pytest.mark.parametrize("field", WRONG)
@pytest.mark.parametrize("missing", [False, True], ids=["wrong", "missing"])
def test_a_checkpoint_that_cannot_be_read_names_the_field(field: str, missing: bool) -> None:
    good = build(MEMORY, [Sample(BEGIN, 1e9)]).checkpoint()
    assert restore(good).samples == 1
    bad = {name: value for name, value in good.items() if name != field}
    if not missing:
        bad[field] = WRONG[field]
    with pytest.raises(ValueError, match=f"checkpoint of a histogram: {field} is missing"):
        restore(bad)


def test_a_checkpoint_without_a_time_zone_is_refused() -> None:
    good = build(MEMORY, [Sample(BEGIN, 1e9)]).checkpoint()
    with pytest.raises(ValueError, match="first"):
        restore({**good, "first": "2026-11-01T00:00:00"})

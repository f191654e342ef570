"""Histograms that forget: what they may get wrong, and what they forget."""

from datetime import timedelta
from math import ceil, inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning.histories import BEGIN, HOUR

from kubectl_gpusharing.usage.needs import ACTIVITY, GROWTH, HALF_LIFE, MEMORY, Sample, Scale, percentile

samples_of_memory = st.lists(
    st.tuples(
        st.integers(0, 60 * 24).map(lambda hour: BEGIN + hour * HOUR),
        st.floats(0, 2e12, allow_nan=False, allow_subnormal=False),
    ),
    max_size=60,
)
parts = st.floats(0, 1)


@given(samples_of_memory, parts, parts)
def test_a_higher_percentile_is_never_less(found: list[Sample], one: float, other: float) -> None:
    low, high = (percentile(MEMORY, found, part) for part in sorted((one, other)))
    assert low <= high <= max((value for _, value in found), default=0)


@given(st.lists(st.floats(10e6, 1e12), min_size=1, max_size=80), parts)
def test_of_samples_of_one_time_a_percentile_is_at_most_5_percent_too_high(values: list[float], part: float) -> None:
    found = percentile(MEMORY, [(BEGIN, value) for value in values], part)
    exact = sorted(values)[max(ceil(part * len(values) * (1 - 1e-12)) - 1, 0)]
    assert exact * (1 - 1e-6) <= found <= exact * GROWTH * (1 + 1e-6)


@pytest.mark.parametrize("scale", [MEMORY, ACTIVITY], ids=lambda scale: scale.name)
def test_each_bucket_is_5_percent_wider_and_values_at_its_bound_are_in_it(scale: Scale) -> None:
    highest = scale.bucket(scale.last)
    for bucket in range(highest + 1):
        assert scale.bucket(scale.bound(bucket)) == bucket
    assert scale.bound(2) == pytest.approx(scale.bound(1) * 1.05)
    assert scale.bound(highest) == scale.last
    assert scale.bucket(scale.last * 100) == highest


def test_a_sample_weighs_half_a_day_later() -> None:
    samples = [(BEGIN, 1e9), (BEGIN + HALF_LIFE, 2e9)]
    assert percentile(MEMORY, samples, 0.33) == pytest.approx(1e9, rel=0.05)
    assert percentile(MEMORY, samples, 0.34) == 2e9


def test_what_was_long_ago_is_forgotten() -> None:
    old = [(BEGIN, 50e9)]
    new = [(BEGIN + timedelta(days=90, hours=hour), 5e9) for hour in range(48)]
    assert percentile(MEMORY, old + new, 1) == pytest.approx(5e9, rel=0.05)


def test_without_samples_there_is_nothing() -> None:
    assert percentile(ACTIVITY, [], 0.99) == 0.0


@pytest.mark.parametrize("value", [-1.0, nan, inf])
def test_what_nobody_can_have_measured_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"memory: .* at 2026-11-01 00:00 is not a finite number of at least 0"):
        percentile(MEMORY, [(BEGIN, value)], 0.5)


@pytest.mark.parametrize("part", [-0.1, 1.1, 99, nan])
def test_a_percentile_is_from_0_to_1(part: float) -> None:
    with pytest.raises(ValueError, match=r"for example 0\.99"):
        percentile(MEMORY, [], part)

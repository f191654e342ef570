"""Marks on pods that ask not to disturb them."""

from datetime import datetime

import pytest
from tests.build import at, make_pod
from tests.wording import lacks

from gpusharing.planning.drain.pods import find_protection
from gpusharing.planning.snapshot.podviews import PodView

KARPENTER, OURS = "karpenter.sh/do-not-disrupt", "gpusharing.dev/do-not-disrupt"
SAFE, CAPI = "cluster-autoscaler.kubernetes.io/safe-to-evict", "cluster.x-k8s.io/drain"
FOREVER, FREE = "forever", "free"
HELD: dict[str, tuple[str, str, float | str]] = {
    "Karpenter's mark": (KARPENTER, "true", FOREVER),
    "our own mark": (OURS, "true", FOREVER),
    "a mark in capitals": (OURS, "True", FOREVER),
    "a mark that says no": (KARPENTER, "false", FREE),
    "a duration that is not over": (KARPENTER, "5m", 300),
    "a duration of two units": (OURS, "1h30m", 5400),
    "a fraction, as Go writes it": (OURS, "1.5h", 5400),
    "a duration that is over": (OURS, "30s", FREE),
    "a duration that ends now": (OURS, "1m", FREE),
    "no time at all": (OURS, "0", FREE),
    "nonsense": (OURS, "abc", FOREVER),
    "a number without a unit": (OURS, "15", FOREVER),
    "a unit that Go does not have": (OURS, "5M", FOREVER),
    "a negative duration": (OURS, "-5m", FOREVER),
    "nothing": (OURS, "", FOREVER),
    "days, which Go does not have": (OURS, "2d", FOREVER),
    "longer than any clock": (OURS, "9" * 400 + "h", FOREVER),
    "not safe to evict": (SAFE, "false", FOREVER),
    "safe to evict": (SAFE, "true", FREE),
    "to be skipped": (CAPI, "skip", FOREVER),
    "to be skipped, in capitals": (CAPI, "Skip", FOREVER),
    "to be waited for": (CAPI, "wait-completed", FOREVER),
    "to be drained": (CAPI, "drain", FREE),
    "somebody else's mark": ("example.com/do-not-disrupt", "true", FREE),
}


@pytest.mark.parametrize(("key", "value", "until"), HELD.values(), ids=HELD.keys())
def test_how_long_a_mark_protects_a_pod_that_started_a_minute_ago(key: str, value: str, until: float | str) -> None:
    pod = make_pod(marks={key: value}, started=at(0))
    found = find_protection(pod, at(60))
    if until == FREE:
        assert found is None
        return
    assert found is not None
    assert found.until == (at(float(until)) if until != FOREVER else None)
    assert key in found.message
    assert value[:30] in found.message


def test_the_mark_that_holds_longest_decides() -> None:
    both = make_pod(marks={KARPENTER: "5m", OURS: "10m"}, started=at(0))
    assert _until(both) == at(600)
    assert _until(make_pod(marks={KARPENTER: "5m", SAFE: "false"}, started=at(0))) is None


def _until(pod: PodView) -> datetime | None:
    found = find_protection(pod, at(60))
    assert found is not None
    return found.until


def test_a_duration_counts_from_the_start_and_a_pod_that_has_not_started_is_protected() -> None:
    waiting = find_protection(make_pod(marks={KARPENTER: "5m"}, started=None), at(9999))
    assert waiting is not None
    assert waiting.until is None
    assert "has not started" in waiting.message


def test_a_policy_that_blocks_on_marks_does_not_ask_how_long() -> None:
    found = find_protection(make_pod(marks={KARPENTER: "5m"}, started=at(0)), None)
    assert found is not None
    assert found.until is None


def test_the_text_says_until_when_and_is_the_same_as_long_as_the_pod_is() -> None:
    pod = make_pod(marks={KARPENTER: "5m"}, started=at(0))
    first, later = find_protection(pod, at(1)), find_protection(pod, at(299))
    assert first == later
    assert first is not None
    assert not lacks(first.message, 'karpenter.sh/do-not-disrupt is "5m"', "2026-11-20T10:05:00Z")


def test_an_endless_value_is_cut() -> None:
    found = find_protection(make_pod(marks={OURS: "x\n" * 5000}), at(0))
    assert found is not None
    assert len(found.message) < 200

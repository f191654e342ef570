"""How long failures in a row make us wait."""

from gpusharing.kube.clock import Backoff, half_to_one_and_a_half


def test_waits_double_up_to_a_limit_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(1.0, 5.0, lambda: 1.0)
    assert [backoff.after_failure() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.success()
    assert backoff.after_failure() == 1.0


def test_who_failed_together_does_not_come_back_together() -> None:
    waits = {Backoff(1.0, 5.0).after_failure() for _ in range(20)}
    assert len(waits) == 20
    assert 0.5 <= min(waits) <= max(waits) <= 1.5
    assert 0.5 <= half_to_one_and_a_half() <= 1.5

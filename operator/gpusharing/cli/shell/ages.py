"""Lengths of time and counts, as people write them."""

from datetime import datetime, timedelta

from gpusharing.planning.vocabulary.lengths import counted

__all__ = ["age", "counted", "length"]


def age(since: datetime | None, now: datetime) -> str:
    """How long ago, as kubectl writes it: 42s, 5m, 3h, 41d; empty when unknown. A clock that is behind gives 0s."""
    return "" if since is None else length(now - since)


def length(time: timedelta) -> str:
    """In the largest unit that is full, and the next one where the number is small."""
    seconds = max(0, int(time.total_seconds()))
    for unit, size, below, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        count, rest = divmod(seconds, size)
        if count >= 1:
            finer = rest // small if count < 5 else 0
            return f"{count}{unit}{finer}{below}" if finer else f"{count}{unit}"
    return f"{seconds}s"

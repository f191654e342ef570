"""Durations as people write them in policies, settings and flags: 90s, 15m or 1h30m."""

import re
from datetime import timedelta

from gpusharing.api import rules

_DURATION = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6}(?:[.][0-9]+)?)s)?")


def parse_duration(text: str) -> timedelta:
    """Return hours, minutes and seconds, each at most once; the API refuses decimals of seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"{text!r} {rules.POSITIVE_DURATION.message}")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)

"""Times and durations as strings: RFC 3339, as in Kubernetes and in our own records, and 90s, 15m or 1h30m."""

import re
from datetime import UTC, datetime, timedelta

from gpusharing.api import rules

NEVER = datetime(9000, 1, 1, tzinfo=UTC)
"""A deadline that never comes, for records that need one. It is far enough from the end of the calendar that durations
can be added to it."""


def to_rfc3339(moment: datetime) -> str:
    """Return the time in UTC in whole seconds, as metav1.Time is written. A time without a zone counts as local time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_micro_time(moment: datetime) -> str:
    """Return the time in UTC with exactly six decimal places of the second, as metav1.MicroTime requires."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def from_rfc3339(text: object) -> datetime | None:
    """Return the time in UTC, or None if `text` is not a string that holds a time with a time zone."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


_DURATION = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6}(?:[.][0-9]+)?)s)?")


def parse_duration(text: str) -> timedelta:
    """Return hours, minutes and seconds, each at most once; the API refuses decimals of seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"{text!r} {rules.POSITIVE_DURATION.message}")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)

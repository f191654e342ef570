"""Times as strings: RFC 3339, as in Kubernetes and in our own records."""

from datetime import UTC, datetime

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

"""Moments as text: RFC 3339, as in Kubernetes and in our own records."""

from datetime import UTC, datetime

NEVER = datetime(9000, 1, 1, tzinfo=UTC)
"""A deadline that never comes, for records that need one. Far enough from the end of the calendar to add to."""


def to_rfc3339(moment: datetime) -> str:
    """Return the moment in UTC with a Z and in whole seconds, as metav1.Time has it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_micro_time(moment: datetime) -> str:
    """Return the moment in UTC with a Z and exactly six digits of a second, as metav1.MicroTime requires."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def from_rfc3339(text: object) -> datetime | None:
    """Return the moment in UTC, or None if `text` is not a time in RFC 3339 with a time zone."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None

"""The annotation that tells when a configuration was written."""

import json
from datetime import UTC, datetime

import pytest

from gpusharing.kube.written import parse_written


def test_the_time_of_every_entry_is_read() -> None:
    text = json.dumps({"pool-b-3f9c2a1": "2026-11-20T10:00:00Z", "full-1": "2026-11-20T11:00:00+01:00"})
    ten = datetime(2026, 11, 20, 10, tzinfo=UTC)
    assert parse_written(text) == {"pool-b-3f9c2a1": ten, "full-1": ten}


@pytest.mark.parametrize("text", ["", "{}", "null", "[]", "no JSON", '{"a": "yesterday"}', '{"a": 7}'])
def test_what_cannot_be_read_counts_as_never_stamped(text: str) -> None:
    assert parse_written(text) == {}


def test_a_time_without_a_zone_counts_as_never_stamped() -> None:
    assert parse_written('{"a": "2026-11-20T10:00:00", "b": "2026-11-20T10:00:00Z"}').keys() == {"b"}

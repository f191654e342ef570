"""hack/cluster/audit.py: the log is read while the server writes it."""

import json
from pathlib import Path

import pytest
from hack.cluster.audit import lines_since, read_requests

WHO = "system:serviceaccount:gpusharing:gpusharing-operator"


def line(number: int) -> bytes:
    event = {
        "verb": "patch",
        "stage": "ResponseComplete",
        "user": {"username": WHO},
        "objectRef": {"resource": "nodes", "name": f"gpu-{number}"},
        "responseStatus": {"code": 200},
        "requestReceivedTimestamp": "2026-03-01T12:00:00.000000Z",
    }
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"  # as Go writes it


def test_a_line_that_is_half_there_is_none_yet(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_bytes(line(1) + line(2)[:-20])
    assert [request.name for request in read_requests(log, WHO)] == ["gpu-1"]


@pytest.mark.parametrize("half", [1, 100, len(line(1)) - 1])
def test_a_mark_in_the_middle_of_a_line_is_one_after_it(half: int, tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_bytes(line(1) + line(2))
    assert [request.name for request in read_requests(log, WHO, start=half)] == ["gpu-2"]


def test_a_mark_at_the_end_of_a_line_leaves_the_next_one_whole(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_bytes(line(1) + line(2))
    assert list(lines_since(log)) == [line(1), line(2)]
    assert list(lines_since(log, len(line(1)))) == [line(2)]
    assert list(lines_since(log, log.stat().st_size)) == []

"""tests/integration/nursery.py: what it kills is always an operator of its own."""

import os
from pathlib import Path

import pytest
from hack.cluster.process import text_of, wait_until
from tests.integration.nursery import Nursery


def test_the_pid_of_an_operator_that_ended_is_kept_until_it_was_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "operator.log"
    with Nursery() as nursery:
        pid = nursery.start({"GPUSHARING_LOG_LEVEL": "loud"}, log)  # no level: it ends at once
        wait_until(lambda: "LOG_LEVEL" in text_of(log), 60, "its complaint")
        nursery.strike(pid)
        os.kill(pid, 0)  # nobody else can have it
        nursery.wait(pid)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        nursery.kill(pid)
        with pytest.raises(ValueError, match=f"{pid} is not an operator of ours"):
            nursery.strike(pid)


def test_who_has_ended_by_itself_is_noticed_and_signalled_no_more(tmp_path: Path) -> None:
    with Nursery() as nursery:
        pid = nursery.start({"GPUSHARING_LOG_LEVEL": "loud"}, tmp_path / "operator.log")
        wait_until(lambda: nursery.has_ended(pid), 60, "its end")
        assert nursery.has_ended(pid)
        with pytest.raises(ValueError, match=f"{pid} is not an operator of ours"):
            nursery.freeze(pid)

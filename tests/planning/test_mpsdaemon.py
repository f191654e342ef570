"""Whether labels can switch MPS on in an installation, as `doctor` says it."""

from dataclasses import replace

import pytest
from tests.planning.test_installation import WANTS_MPS, pointers
from tests.seen import Seen
from tests.wording import lacks

from gpusharing.planning.snapshot.nvidia import MpsDaemonView
from gpusharing.planning.stack.installation import find_deaf_mps
from gpusharing.planning.wanted.target import RELEASED_DAEMON

MENDED = replace(RELEASED_DAEMON, signalled="mps-control-daemon")


@pytest.mark.parametrize(
    ("daemon", "command"),
    [
        (RELEASED_DAEMON, '{"spec":{"devicePlugin":{"version":"v0.20.0"}}}'),
        (replace(RELEASED_DAEMON, version="v0.20.0"), "PROCESS_TO_SIGNAL=mps-control-daemon"),
    ],
    ids=["the device plugin is too old as well", "the name alone is wrong"],
)
def test_an_mps_daemon_that_follows_no_label_is_told_with_the_first_step_that_mends_it(
    daemon: MpsDaemonView, command: str
) -> None:
    (found,) = find_deaf_mps(pointers(WANTS_MPS, mps_daemon=daemon).installation)
    assert (found.reason, found.severity) == ("MPSNotSwitchable", "ERROR")
    assert command in str(found.command)
    assert not lacks(found.message, "pool-e", "no label", "MPS")
    assert "-c config-manager PROCESS_TO_SIGNAL=mps-control-daemon" in found.message


@pytest.mark.parametrize(
    "view",
    [
        pointers(mps_daemon=RELEASED_DAEMON),
        pointers(WANTS_MPS, mps_daemon=replace(MENDED, version="v0.20.0")),
        pointers(WANTS_MPS),
    ],
    ids=["no policy wants MPS", "the GPU Operator is right by itself", "no daemon was seen"],
)
def test_nothing_is_told_of_an_mps_daemon_that_nobody_needs_or_that_follows_labels(view: Seen) -> None:
    assert list(find_deaf_mps(view.installation)) == []

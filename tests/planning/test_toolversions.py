"""What device plugins serve differently by version. Rung 3 holds `counts_without_suffixes` against the real 0.19.3."""

from dataclasses import replace

import pytest

from gpusharing.planning.snapshot.nvidia import MpsDaemonView
from gpusharing.planning.wanted.target import (
    RELEASED_DAEMON,
    SKIPS_THREADS,
    counts_without_suffixes,
    find_deafness,
    find_remedy,
    find_suffixed,
    merges_suffixes,
    needs_newer_plugin,
)


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("v0.19.3", True),
        ("0.17.1-ubi8", True),
        ("v0.20.0", False),
        ("v1.0.0", False),
        ("", False),
        ("sha256:0.1", False),
    ],
    ids=["the last old one", "with an image suffix", "the first new one", "a later one", "unknown", "a digest"],
)
def test_a_version_is_too_old_only_when_it_is_known_to_be(version: str, old: bool) -> None:
    assert merges_suffixes(version) is old


@pytest.mark.parametrize(
    ("version", "named", "sees_host", "says"),
    [
        ("v0.18.1", False, True, ""),
        ("v0.18.2", False, True, "crashes when it reads the host's kernel threads"),
        ("v0.19.3", True, True, "crashes when it reads the host's kernel threads"),
        (
            "0.19.3-ubi9",
            False,
            False,
            "looks for a process named /usr/bin/mps-control-daemon, but the daemon is called mps-",
        ),
        ("v0.20.0", False, True, "looks for a process named /usr/bin/mps-control-daemon"),
        ("v0.20.0", True, True, ""),
        ("v0.20.0", None, True, ""),
        ("", False, True, ""),
        ("sha256:0.17.1", False, True, ""),
        ("sha256:0.19.1", True, True, ""),
    ],
    ids=[
        "the last that waits for the label",
        "the first that does not",
        "the name would be right",
        "the host is not seen",
        "the first that passes over threads",
        "nothing is wrong",
        "a shell around it",
        "a version that is unknown, and the released name",
        "a digest, and the released name",
        "a digest, and the right name",
    ],
)
def test_an_mps_daemon_is_deaf_where_its_config_manager_cannot_reach_it(
    version: str, named: bool | None, sees_host: bool, says: str
) -> None:
    name = "mps-control-daemon"
    program = "/bin/sh" if named is None else name
    daemon = MpsDaemonView(version, program, name if named else f"/usr/bin/{name}", sees_host)
    found = find_deafness(daemon)
    assert says in found
    assert bool(found) is bool(says)


@pytest.mark.parametrize(
    ("signalled", "says"),
    [
        ("mps-control-deamon", "looks for a process named mps-control-deamon, but"),
        ("", "has no value in PROCESS_TO_SIGNAL, but"),
        (None, "has no value in PROCESS_TO_SIGNAL, but"),
    ],
    ids=["a name with a typing error", "an empty name", "no name"],
)
@pytest.mark.parametrize("version", ["v0.20.0", ""], ids=["by version", "by digest"])
def test_an_mps_daemon_is_deaf_whenever_config_manager_looks_for_another_process(
    version: str, signalled: str | None, says: str
) -> None:
    daemon = MpsDaemonView(version, "mps-control-daemon", signalled, sees_host=True)
    assert says in find_deafness(daemon)
    assert "PROCESS_TO_SIGNAL=mps-control-daemon" in find_remedy(daemon)[0]


@pytest.mark.parametrize("version", ["v0.20.1", "v0.21.0", "v1.0.0"])
@pytest.mark.parametrize("signalled", ["/usr/bin/mps-control-daemon", "mps-control-deamon", None])
def test_after_0_20_only_the_last_part_of_the_name_has_to_match(version: str, signalled: str | None) -> None:
    daemon = MpsDaemonView(version, "mps-control-daemon", signalled, sees_host=True)
    found = signalled == "/usr/bin/mps-control-daemon" and version != "v0.20.1"
    assert (find_deafness(daemon) == "") is found


@pytest.mark.parametrize("program", ["/bin/sh", "bash", "/sbin/tini", ""])
def test_what_a_daemon_is_called_is_unknown_behind_another_program(program: str) -> None:
    daemon = MpsDaemonView("v0.20.0", program, "/usr/bin/mps-control-daemon", sees_host=True)
    assert find_deafness(daemon) == ""
    assert find_remedy(daemon)[1] is None


SET_ENV = "kubectl -n nvidia set env daemonset/mps -c config-manager PROCESS_TO_SIGNAL=mps-control-daemon"


@pytest.mark.parametrize(
    ("version", "program", "signalled", "sees_host", "newer", "command"),
    [
        ("v0.19.3", "mps-control-daemon", "/usr/bin/mps-control-daemon", True, True, SET_ENV),
        ("v0.19.3", "mps-control-daemon", "mps-control-daemon", True, True, SET_ENV),
        ("v0.19.3", "/bin/sh", "/usr/bin/mps-control-daemon", True, True, ""),
        ("v0.19.3", "mps-control-daemon", "/usr/bin/mps-control-daemon", False, False, SET_ENV),
        ("v0.20.0", "mps-control-daemon", "/usr/bin/mps-control-daemon", True, False, SET_ENV),
    ],
    ids=[
        "both faults",
        "a name that the GPU Operator writes anew",
        "a shell around it",
        "the host is not seen",
        "the name",
    ],
)
def test_the_remedy_has_the_steps_that_the_daemon_needs(
    version: str, program: str, signalled: str, sees_host: bool, newer: bool, command: str
) -> None:
    daemon = MpsDaemonView(version, program, signalled, sees_host, name="mps", namespace="nvidia")
    assert find_deafness(daemon)
    text, found = find_remedy(daemon)
    assert (needs_newer_plugin(daemon), str(found or "")) == (newer, command)
    assert ("devicePlugin.version in ClusterPolicy to v0.20.0 or newer" in text) == newer
    assert command in text


def test_a_daemon_hears_once_the_remedy_was_carried_out() -> None:
    """NVIDIA/k8s-device-plugin#1105 and #1118: where the GPU Operator itself is right, there is nothing to do."""
    program = RELEASED_DAEMON.program
    assert find_deafness(RELEASED_DAEMON)
    assert find_deafness(replace(RELEASED_DAEMON, version=SKIPS_THREADS, signalled=program)) == ""


def test_the_first_profile_with_a_suffix_is_named() -> None:
    assert find_suffixed([None, (("2g.20gb", 1),), (("1g.10gb", 2), ("1g.10gb+me", 1))]) == "1g.10gb+me"
    assert find_suffixed([(("1g.24gb-me", 1),)]) == "1g.24gb-me"
    assert find_suffixed([None, (("7g.80gb", 1),)]) == ""


def test_suffixed_names_are_added_to_the_plain_ones_and_renamed_ones_stay_renamed() -> None:
    predicted = {
        "nvidia.com/mig-1g.10gb": 2,
        "nvidia.com/mig-1g.10gb.me": 1,
        "nvidia.com/mig-1g.24gb-me": 3,
        "nvidia.com/mig-1g.24gb.gfx.shared": 4,
        "nvidia.com/mig-2g.20gb.shared": 2,
        "nvidia.com/gpu": 1,
    }
    assert counts_without_suffixes(predicted) == {
        "nvidia.com/mig-1g.10gb": 3,
        "nvidia.com/mig-1g.24gb": 3,
        "nvidia.com/mig-1g.24gb.shared": 4,
        "nvidia.com/mig-2g.20gb.shared": 2,
        "nvidia.com/gpu": 1,
    }

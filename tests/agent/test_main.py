"""The agent as a process: its flags, and how it starts and ends."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster.certs import create_pki
from tests.wording import lacks

from gpusharing.agent.main import _FLAGS, _variable, address, main, parse

ROOT = Path(__file__).parents[2]
SECONDS = 120.0


def test_flags_win_over_the_environment_which_wins_over_defaults() -> None:
    environ = {"NODE_NAME": "gpu-01", "INTERVAL": "1m", "METRICS_ADDR": "[fd00::2]:9000"}
    options = parse(["--interval", "5s"], environ)
    assert (options.node_name, options.interval, options.hung_after) == ("gpu-01", 5.0, 40.0)
    assert options.metrics_addr == ("fd00::2", 9000)
    assert str(options.pod_resources_socket) == "/var/lib/kubelet/pod-resources/kubelet.sock"


@pytest.mark.parametrize("arguments", [[], ["--node-name", "n", "--metrics-addr", "8081"]], ids=["no node", "no host"])
def test_what_cannot_work_is_refused_with_the_flag_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments, {})
    assert ("--metrics-addr" if arguments else "--node-name") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--interval", "30"], "argument --interval: '30' is not a duration of more than 0, for example 30s"),
        (["--metrics-addr", "8081"], "argument --metrics-addr: '8081' is not HOST:PORT, for example 0.0.0.0:8080"),
        (["--metrics-addr", "host:x"], "argument --metrics-addr: 'host:x' is not HOST:PORT"),
        (["--interval", "0s"], "argument --interval: '0s' is not a duration of more than 0"),
        (["--hung-after", "inf"], "argument --hung-after: 'inf' is not a duration of more than 0"),
        (["--log-level", "loud"], "argument --log-level: 'loud' is not a log level: use debug, info, warning or"),
    ],
)
def test_a_value_that_cannot_work_is_refused_in_a_sentence_with_an_example(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["--node-name", "n", *arguments], {})
    assert words in capsys.readouterr().err


def test_a_variable_that_is_empty_counts_as_not_set() -> None:
    empty = {_variable(flag): "" for flag, *_ in _FLAGS}
    assert parse(["--node-name", "n"], empty) == parse(["--node-name", "n"], {})


def test_metrics_stay_on_loopback_unless_told_otherwise() -> None:
    assert parse(["--node-name", "n"], {}).metrics_addr == ("127.0.0.1", 8081)
    assert address("10.0.0.7:80") == ("10.0.0.7", 80)


def test_metrics_are_secure_if_that_is_said_in_words_that_cannot_be_mistaken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parse(["--node-name", "n"], {}).metrics_secure is False
    assert parse(["--node-name", "n"], {"METRICS_SECURE": "true"}).metrics_secure is True
    with pytest.raises(SystemExit):
        parse(["--node-name", "n"], {"METRICS_SECURE": "yes"})
    assert "--metrics-secure: 'yes' is neither true nor false" in capsys.readouterr().err


def start(*arguments: str) -> subprocess.Popen[str]:
    """The shipped process, without credentials from this test's environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("KUBE", "NODE_NAME"))}
    environment["PYTHONPATH"] = str(ROOT / "operator")
    command = [sys.executable, "-m", "gpusharing.agent.main", "--node-name", "n", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def root_log() -> Iterator[None]:
    """Lend the root logger to the test without handlers; it gets its own back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("root_log")
def test_without_credentials_it_says_so_and_its_exit_status_is_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("KUBE")]:
        monkeypatch.delenv(name)
    assert main(["--node-name", "n", "--service-account", "/no/such"]) == 2
    assert not lacks(capsys.readouterr().err, "pod", "KUBECONFIG")


def test_sigterm_ends_it_cleanly_even_when_the_api_server_is_away(tmp_path: Path) -> None:
    config = tmp_path / "config"
    (tmp_path / "ca").write_text(create_pki(tmp_path / "pki").ca.read_text())
    config.write_text(
        '{"current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],'
        '"clusters": [{"name": "k", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority": "ca"}}],'
        '"users": [{"name": "u", "user": {"token": "t"}}]}'
    )
    with start("--kubeconfig", str(config), "--metrics-addr", "127.0.0.1:0") as process:
        assert process.stderr is not None
        assert "agent started" in process.stderr.readline()
        assert any("cannot watch the GPUNode" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        _, logs = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert "agent stopped" in logs
    assert "Traceback" not in logs

"""The agent as a process: its flags, how it starts and ends, and its probes, metrics and logs as the kubelet, Prometheus and people see them."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from hack.cluster.certs import create_pki
from hack.sim.gpu import SimulatedGPUs
from prometheus_client.registry import CollectorRegistry
from tests.fakes.gpus import FixedPods, OneNode
from tests.wording import lacks

from gpusharing.agent.library import GPU, DeviceUse
from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.main import _FLAGS, JSONLines, _variable, address, main, parse, probe
from gpusharing.agent.metrics import AgentCollector
from gpusharing.agent.podresources import Holdings
from gpusharing.kube.pageserver import Answer

ROOT = Path(__file__).parents[2]
SECONDS = 120.0


def test_flags_win_over_the_environment_which_wins_over_defaults() -> None:
    environ = {"NODE_NAME": "gpu-01", "INTERVAL": "1m", "METRICS_ADDR": "[fd00::2]:9000"}
    options = parse(["--interval", "5s"], environ)
    assert (options.node_name, options.interval, options.hung_after) == ("gpu-01", 5.0, 40.0)
    assert options.metrics_addr == ("fd00::2", 9000)
    assert str(options.pod_resources_socket) == "/var/lib/kubelet/pod-resources/kubelet.sock"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--node-name"),
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
        parse(["--node-name", "n", *arguments] if arguments else [], {})
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


def test_a_probe_says_ok_or_why_not() -> None:
    assert probe(str)("") == Answer(200, b"ok\n")
    assert probe(lambda: "GPUNode gpu-01 does not exist")("") == Answer(503, b"GPUNode gpu-01 does not exist\n")


def test_what_a_library_does_not_say_of_a_gpu_is_no_trouble_and_hides_nothing() -> None:
    assert not GPU(0, access="Lost").instances_withheld
    device = DeviceUse(0, "GPU-0", "GPU-0", memory_used=None, memory=None)
    assert (device.all_listed, device.reports_sm) == (True, False)


async def test_metrics_tell_what_the_loop_did_and_saw() -> None:
    node, pods = OneNode(), FixedPods()
    gpus = SimulatedGPUs("gpu-01", ["NVIDIA H100 80GB HBM3", "Tesla T4"])
    gpus.set_mig_mode(0, on=True)
    gpus.create(0, "3g.40gb")
    gpus.add_process(1, "python3", 42)
    gpus.set_health(0, 3, (False, True))
    gpus.set_health(1, None, None)
    gpus.ask_recovery(0, "Reset")
    gpus.ask_recovery(1, None)
    pods.holdings = Holdings({"nvidia.com/mig-3g.40gb": 1}, 1)
    loop = AgentLoop("gpu-01", node.client, gpus, pods, LoopSettings(interval=3600.0))
    registry = CollectorRegistry()
    registry.register(AgentCollector(loop))
    build = {"version": version("gpu-sharing-operator"), "component": "agent"}
    assert registry.get_sample_value("gpusharing_build_info", build) == 1
    assert registry.get_sample_value("gpusharing_agent_ready") == 0
    assert registry.get_sample_value("gpusharing_agent_reading_seconds_total") == 0
    node.ask("r1", quiet=True)
    task = asyncio.create_task(loop.run())
    await node.answered("r1")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"gpusharing_agent_{name}", labels)

    assert sample("readings_total", outcome="ok") == 1
    assert sample("readings_total", outcome="hung") == 0
    assert sample("writes_total", outcome="ok") == 1
    assert (sample("ready"), sample("quiet"), sample("simulated"), sample("pods")) == (1, 1, 1, 1)
    for gpu in gpus.read().gpus:
        assert sample("gpu_info", gpu=str(gpu.index), uuid=gpu.uuid, product=gpu.product) == 1
    assert sample("allocated_devices", resource="nvidia.com/mig-3g.40gb") == 1
    assert sample("gpu_mig_instances", gpu="0", profile="3g.40gb") == 1
    assert (sample("gpu_mig_enabled", gpu="0"), sample("gpu_mig_enabled", gpu="1")) == (1, 0)
    assert (sample("gpu_processes", gpu="0"), sample("gpu_processes", gpu="1")) == (0, 1)
    assert (sample("gpu_ecc_uncorrected", gpu="0"), sample("gpu_ecc_uncorrected", gpu="1")) == (3, None)
    assert (sample("gpu_row_remap_failed", gpu="0"), sample("gpu_row_remap_failed", gpu="1")) == (1, None)
    assert (sample("gpu_row_remap_pending", gpu="0"), sample("gpu_row_remap_pending", gpu="1")) == (0, None)
    assert (sample("gpu_healthy", gpu="0"), sample("gpu_healthy", gpu="1")) == (0, 1)
    assert sample("gpu_recovery_action", gpu="0", action="Reset") == 1
    assert sample("gpu_recovery_action", gpu="1", action="None") is None
    assert sample("gpu_critical_xid", gpu="0") is None


def test_a_log_line_is_json_with_stable_keys() -> None:
    record = logging.makeLogRecord(
        {"name": "gpusharing.agent.loop", "levelname": "WARNING", "msg": "cannot read %s", "args": ("GPUs",)}
        | {"created": 0.0, "error": "NVMLHung: x"}
    )
    assert json.loads(JSONLines("gpu-01").format(record)) == {
        "timestamp": "1970-01-01T00:00:00.000+00:00",
        "level": "warning",
        "logger": "gpusharing.agent.loop",
        "event": "cannot read GPUs",
        "node": "gpu-01",
        "error": "NVMLHung: x",
    }


def test_an_exception_is_one_line_too() -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "bug", "exc_info": (ValueError, error, error.__traceback__)})
    line = JSONLines("gpu-01").format(record)
    assert "\n" not in line
    assert "ValueError: broken" in json.loads(line)["exception"]

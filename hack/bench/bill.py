"""How long `kubectl gpusharing cost` takes to report 30 days, and its peak memory, with a real Prometheus here. The
samples are SIMULATED, and are written into its storage beforehand."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hack.bench.machine import cpu_ms
from hack.bench.results import Measured
from hack.cluster.process import free_ports, responds, wait_until
from hack.promtool import ensure

DAYS, GPUS, POOLS, TENANTS = 30, 2, 4, 20
BEGIN, END = 1_790_812_800, "2026-10-31"
"""The beginning of the window, 2026-10-01 in UTC, in seconds since 1970, and its end."""
HOUR, DAY = 3600, 86_400
LOOKBACK = "65m"
"""How long Prometheus shows a sample: longer than the time between two of them."""
SECONDS = 120.0
PROGRAM = """
import sys, time
from kubectl_gpusharing.main import run
status = run(sys.argv[1:])
print(time.process_time() * 1000, file=sys.stderr)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(status)
"""
"""Runs the plugin and then prints its CPU milliseconds and its peak memory. The ru_maxrss of a child may be that of its
parent."""


def bill(count: int) -> Iterator[Measured]:
    """Measure `kubectl gpusharing cost` over DAYS days of `count` nodes of GPUS GPUs, held by two tenants."""
    with tempfile.TemporaryDirectory() as folder, _prometheus(Path(folder), count) as (url, pid):
        begun, used = time.monotonic(), cpu_ms(pid)
        own, memory = _run("cost", "--prometheus", url, "--window", f"{DAYS}d", "--until", END)
        seconds, used = time.monotonic() - begun, cpu_ms(pid) - used
    how = f"{count} nodes, 2 pods each, a sample an hour; plugin {own:.0f} ms and a real Prometheus {used:.0f} ms"
    yield Measured("cost_30_days_1000_nodes_ms", own + used, how)
    yield Measured("cost_30_days_1000_nodes_s", seconds, "same; wall-clock time, both on the same cores")
    yield Measured("cost_30_days_1000_nodes_mib", memory, "same; VmHWM of the plugin")


def _run(*arguments: str) -> tuple[float, float]:
    program = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(program, check=True, capture_output=True, text=True, timeout=SECONDS)
    own, _, memory, _ = done.stderr.split()
    return float(own), int(memory) / 1024


@contextmanager
def _prometheus(folder: Path, count: int) -> Iterator[tuple[str, int]]:
    text, data = folder / "day.txt", folder / "data"
    for day in range(DAYS):
        with text.open("w") as file:
            file.writelines(_metrics(count, [BEGIN + day * DAY + hour * HOUR for hour in range(24)]))
            file.write("# EOF\n")
        blocks: list[str | Path] = ["tsdb", "create-blocks-from", "openmetrics", "--max-block-duration=24h", text, data]
        subprocess.run([ensure("promtool"), *blocks], check=True, capture_output=True)
    (folder / "prometheus.yaml").write_text("scrape_configs: []\n")
    (port,) = free_ports(1)
    arguments = (
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={data}",
        "--storage.tsdb.retention.time=100y",
        f"--query.lookback-delta={LOOKBACK}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    url = f"http://127.0.0.1:{port}"
    quiet = subprocess.DEVNULL
    with subprocess.Popen([ensure("prometheus"), *arguments], stdout=quiet, stderr=quiet) as process:
        try:
            wait_until(lambda: responds(f"{url}/-/ready"), SECONDS, "Prometheus to be ready")
            yield url, process.pid
        finally:
            process.terminate()


def _metrics(count: int, times: list[int]) -> Iterator[str]:
    """Yield text in OpenMetrics, without its last line: counters that grow evenly since BEGIN, and constant gauges."""
    parts: dict[str, list[tuple[str, float]]] = {}
    gauges: dict[str, list[tuple[str, float]]] = {}
    for number in range(count):
        node = f'node="gpu-{number:04}",job="gpusharing-agent"'
        policy = f'{node},policy="pool-{number % POOLS}"'
        resource = 'resource="nvidia.com/gpu"'
        parts.setdefault("gpusharing_gpu_seconds", []).append((policy, float(GPUS)))
        parts.setdefault("gpusharing_stranded_slice_seconds", []).append((policy, 0.0))
        parts.setdefault("gpusharing_transition_slice_seconds", []).append((policy, 0.0))
        parts.setdefault("gpusharing_idle_slice_seconds", []).append((f"{policy},{resource}", 0.5))
        gauges.setdefault("up", []).append((node, 1))
        gauges.setdefault("gpusharing_agent_ready", []).append((node, 1))
        for index in range(GPUS):
            tenant = f'namespace="team-{(number + index) % TENANTS}"'
            parts.setdefault("gpusharing_slice_seconds", []).append((f"{policy},{tenant},{resource}", 0.75))
            device = f'{node},gpu="{index}",uuid="GPU-{number}-{index}"'
            pod = f'{device},{tenant},pod="train-{number}-{index}"'
            for name, labels, value in (
                ("gpusharing_agent_gpu_info", f'{device},product="NVIDIA H100 80GB HBM3"', 1),
                ("gpusharing_device_slices", f"{device},{resource}", 1),
                ("gpusharing_device_memory_bytes", device, 80 * 2**30),
                ("gpusharing_pod_slices", f"{pod},{resource}", 1),
                ("gpusharing_pod_memory_used_bytes", pod, 30 * 2**30),
                ("gpusharing_pod_sm_ratio", pod, 0.4),
            ):
                gauges.setdefault(name, []).append((labels, value))
    gauges["gpusharing_policy_gpu_hourly_price"] = [
        (f'policy="pool-{number}",currency="USD"', 2.5) for number in range(POOLS)
    ]
    for name, series in parts.items():
        yield f"# TYPE {name} counter\n"
        for labels, rate in series:
            yield "".join(f"{name}_total{{{labels}}} {rate * (at - BEGIN)} {at}\n" for at in times)
    for name, series in gauges.items():
        yield f"# TYPE {name} gauge\n"
        for labels, value in series:
            yield "".join(f"{name}{{{labels}}} {value} {at}\n" for at in times)

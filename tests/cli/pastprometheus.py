"""A real Prometheus with a SIMULATED past."""

import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hack.cluster.process import free_ports, wait_until
from hack.promtool import ensure

SECONDS = 120.0


@contextmanager
def prometheus_with(folder: Path, texts: Sequence[str], *flags: str) -> Iterator[str]:
    """Its address. It scrapes nothing: all that it knows are these texts, in OpenMetrics. `flags`: further ones."""
    told, data = folder / "past.txt", folder / "data"
    for text in texts:
        told.write_text(text)
        command: list[str | Path] = [
            ensure("promtool"), "tsdb", "create-blocks-from", "openmetrics", told, data
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    (folder / "prometheus.yaml").write_text("scrape_configs: []\n")
    (port,) = free_ports(1)
    started: list[str | Path] = [
        ensure("prometheus"),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={data}",
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}",
        *flags,
    ]
    url = f"http://127.0.0.1:{port}"
    with (folder / "prometheus.log").open("w") as log, subprocess.Popen(started, stderr=log, stdout=log) as running:
        try:
            wait_until(lambda: _ready(url), SECONDS, "Prometheus to be ready")
            yield url
        finally:
            running.terminate()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready"):
            return True
    except OSError:
        return False

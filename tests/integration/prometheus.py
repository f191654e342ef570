"""A real Prometheus that `kubectl gpusharing` can be told of, and that is asked for times of long ago."""

import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from hack.cluster.process import free_ports
from hack.promtool import ensure
from tests.chart.scraping import RunningPrometheus


class AskedPrometheus(RunningPrometheus):
    """A running one."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.address = f"http://127.0.0.1:{port}"

    def then(self, query: str, at: float) -> list[dict[str, Any]]:
        """What it answers to an instant query of that time, in seconds since 1970; nothing while it starts."""
        found: list[dict[str, Any]] = self._get("query", query=query, time=f"{at:.3f}").get("result", [])
        return found

    def grown(self, metrics: Iterable[str], seconds: float, at: float) -> dict[str, float]:
        """All increases of these in so many seconds up to then, by the samples as they are: increase() extrapolates."""
        grown = dict.fromkeys(metrics, 0.0)
        for series in self.then(f'{{__name__=~"{"|".join(grown)}"}}[{round(seconds)}s]', at):
            values = [float(value) for _, value in series["values"]]
            grown[series["metric"]["__name__"]] += sum(
                now - (before if now >= before else 0.0) for before, now in pairwise(values)
            )
        return grown


@contextmanager
def asked(folder: Path, jobs: Sequence[Mapping[str, Any]], **settings: Any) -> Iterator[AskedPrometheus]:
    """One with these jobs, which it scrapes every second unless they say otherwise. `settings`: more of its file."""
    (port,) = free_ports(1)
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": list(jobs), **settings}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command: list[str | Path] = [
        ensure("prometheus"),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("w") as log, subprocess.Popen(command, stderr=log, stdout=log) as running:
        try:
            yield AskedPrometheus(port)
        finally:
            running.terminate()

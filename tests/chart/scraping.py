"""A real Prometheus, of Debian's package, that scrapes what the tests have running, every second."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from hack.cluster.process import free_ports
from hack.promtool import ensure
from hack.sim.dcgmexporter import DCGMValues, MetricsPage, SetUp
from prometheus_client.registry import CollectorRegistry

from gpusharing.kube.pageserver import PageServer, metrics_page


class RunningPrometheus:
    """What it answers; nothing while it starts."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def ask(self, query: str, at: float | None = None) -> list[dict[str, Any]]:
        """The result of an instant query of now, or of a time in seconds since 1970."""
        when = {} if at is None else {"time": f"{at:.3f}"}
        found: list[dict[str, Any]] = self._get("query", query=query, **when).get("result", [])
        return found

    def firing(self) -> list[dict[str, str]]:
        found = self._get("alerts").get("alerts", [])
        return [one["labels"] for one in found if one["state"] == "firing"]

    def values(self, metric: str, label: str) -> list[str]:
        return list(self._get(f"label/{label}/values", **{"match[]": metric}))

    def series(self, metric: str) -> list[dict[str, str]]:
        return list(self._get("series", **{"match[]": metric}))

    def increases(self, metrics: Iterable[str], seconds: float = 600, at: float | None = None) -> dict[str, float]:
        """All increases of these in so many seconds, to the last sample: increase() without its extrapolation.

        One query, which sees a scrape as a whole or not at all: between two queries another one may come in.
        """
        grown = dict.fromkeys(metrics, 0.0)
        for series in self.ask(f'{{__name__=~"{"|".join(grown)}"}}[{round(seconds)}s]', at):
            values = [float(value) for _, value in series["values"]]
            grown[series["metric"]["__name__"]] += sum(
                now - (before if now >= before else 0.0) for before, now in pairwise(values)
            )
        return grown

    def _get(self, what: str, **asked: str) -> Any:
        url = f"{self.address}/api/v1/{what}?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(url) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 503:  # it starts
                    raise AssertionError(f"{what} {asked}: {error.read().decode()}") from error
            return {}
        except OSError:
            return {}


@contextmanager
def scraping(
    folder: Path, jobs: Sequence[Mapping[str, Any]], rules: Mapping[str, str] | None = None, **settings: Any
) -> Iterator[RunningPrometheus]:
    """One that scrapes and evaluates every second, unless a job says otherwise. `rules`: files by name; `settings`: more of its file."""
    (port,) = free_ports(1)
    for name, text in (rules or {}).items():
        (folder / name).write_text(text)
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": every, "rule_files": list(rules or ()), "scrape_configs": list(jobs), **settings}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command: list[str | Path] = [
        ensure("prometheus"),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("w") as log, subprocess.Popen(command, stderr=log, stdout=log) as running:
        try:
            yield RunningPrometheus(port)
        finally:
            running.terminate()


def dcgm_exporter(port: int) -> dict[str, Any]:
    other = {"namespace": "gpu-operator", "pod": "dcgm-exporter-x"}
    return {"job_name": "dcgm-exporter", "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": other}]}


@contextmanager
def page(metered: list[DCGMValues]) -> Iterator[int]:
    """The SIMULATED dcgm-exporter, listening; its port."""
    registry = CollectorRegistry()
    registry.register(MetricsPage(metered, SetUp()))
    server = PageServer(("127.0.0.1", 0), {"/metrics": metrics_page(registry)})
    server.start()
    try:
        yield server.port
    finally:
        server.stop()

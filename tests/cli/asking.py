"""A verb on a SIMULATED cluster in this process, and what it says. Some of these clusters people reported in public: each file in tests/cli/cases holds the objects of one. Names are invented; the shape of the cluster is that of the report."""

import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from hack.sim.fakecluster import FakeCluster
from tests.cli.schema import check
from tests.embedded.scene import Scene, nodes, open_scene
from tests.fakes.virtualtime import virtual_now

from gpusharing.kube import client as kinds
from gpusharing.kube.client import DEPLOYMENTS, JSON, KubeClient
from kubectl_gpusharing.live.cluster import OPERATOR
from kubectl_gpusharing.shell.arguments import VERBS, Arguments, parse
from kubectl_gpusharing.shell.running import run_each
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal

ME = "a-person"
CASES = Path(__file__).parent / "cases"
KINDS = {
    "Node": kinds.NODES,
    "Pod": kinds.PODS,
    "ConfigMap": kinds.CONFIG_MAPS,
    "DaemonSet": kinds.DAEMON_SETS,
    "ClusterPolicy": kinds.CLUSTER_POLICIES,
}
"""The resource of each kind that a case may hold."""


@dataclass(frozen=True)
class Answered:
    status: int
    out: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@cache
def _parsed(words: tuple[str, ...]) -> Arguments:
    """Return the words as a command line has them; the parser takes longer than some verbs."""
    return parse(words)


async def ask(
    cluster: FakeCluster,
    *words: str,
    client: KubeClient | None = None,
    width: int | None = None,
    stream: io.StringIO | None = None,
) -> Answered:
    """Type a command line; Trouble is raised as it is. `client`: what the calls go through, if not the person's own; `width`: of the terminal, if it is one; `stream`: what is written on, for who reads it before the end."""
    typed = _parsed(words)
    stream = io.StringIO() if stream is None else stream
    terminal = Terminal(stream, typed.output, width=width)
    session = Session(client or cluster.client(ME), "context test", now=virtual_now)
    status = await run_each(import_module(f"kubectl_gpusharing.{VERBS[typed.verb].module}"), session, typed, terminal)
    return Answered(status, _checked(terminal))


def written(folder: Path, *manifests: Any) -> str:
    path = folder / "policies.yaml"
    path.write_text("\n---\n".join(json.dumps(one) for one in manifests))
    return str(path)


def writes(cluster: FakeCluster) -> list[str]:
    return [write.call.path for write in cluster.writes if write.call.identity == ME]


def install(cluster: FakeCluster, **variables: str) -> None:
    """The operator's Deployment, as the chart makes it; `variables` are its settings."""
    given = {"GPUSHARING_AGENT_NAMESPACE": "gpusharing-agent", **variables}
    container = {"name": "operator", "env": [{"name": key, "value": value} for key, value in given.items()]}
    labels = {"app.kubernetes.io/name": OPERATOR, "app.kubernetes.io/version": version("gpu-sharing-operator")}
    cluster.add(
        DEPLOYMENTS,
        {
            "metadata": {"name": OPERATOR, "namespace": "gpusharing", "labels": labels},
            "spec": {"template": {"spec": {"containers": [container]}}},
        },
    )


@asynccontextmanager
async def operated(
    count: int, serving: JSON | None = None, settings: Mapping[str, str] | None = None, **more: Any
) -> AsyncIterator[Scene]:
    """A scene with so many nodes, the operator's Deployment, and a mig-manager that runs on each node.

    `serving`: the spec of a policy that is Ready when the scene opens; `settings`: variables of the operator.
    """
    async with open_scene(*nodes(count), **more) as scene:
        install(scene.e.cluster, **(settings or {}))
        await scene.running("nvidia-mig-manager", count)
        if serving is not None:
            await scene.serve(serving)
        yield scene


def alone(*words: str, width: int | None = None, stream: io.StringIO | None = None) -> Answered:
    """Type a command line that asks no cluster; Trouble is raised as it is. `stream`: as in `ask`."""
    typed = parse(words)
    stream = io.StringIO() if stream is None else stream
    terminal = Terminal(stream, typed.output, width=width)
    status = import_module(f"kubectl_gpusharing.{VERBS[typed.verb].module}").run_offline(typed, terminal)
    return Answered(status, _checked(terminal))


def _checked(terminal: Terminal) -> str:
    assert isinstance(terminal.stream, io.StringIO)
    if terminal.output == "json":
        check(terminal.stream.getvalue())
    return terminal.stream.getvalue()


def reported(name: str) -> FakeCluster:
    """Return a cluster without our operator and CRDs that holds the objects of tests/cli/cases/NAME.yaml."""
    cluster = FakeCluster(now=virtual_now)
    for manifest in yaml.safe_load_all((CASES / f"{name}.yaml").read_text(encoding="utf-8")):
        cluster.add(KINDS[manifest["kind"]], manifest)
    cluster.uninstalled |= {kinds.POLICIES, kinds.GPUNODES}
    return cluster

"""Carry out the commands that `doctor` prints, on a SIMULATED cluster.

helm installs and upgrades a simulated chart: our kinds, a Deployment with the real variables, and the shipped
operator. kubectl patches and labels objects. Commands that only show something change nothing, and those with a word
in capitals are left to a person.
"""

import asyncio
import json
import shlex
from dataclasses import dataclass, field, replace

from tests.cli.asking import install
from tests.embedded.scene import Scene

from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DAEMON_SETS,
    DEPLOYMENTS,
    GPUNODES,
    JSON,
    NODES,
    PODS,
    POLICIES,
)
from kubectl_gpusharing.live.cluster import OPERATOR

QUIET = 400.0
"""Seconds after which NVIDIA's programs, operator and agents have nothing more to do."""
SPACE = "gpusharing"
SHOWS = frozenset({"get", "describe", "logs", "auth"})
"""Verbs of kubectl that change nothing."""
VARIABLES = {
    "gpuOperator.namespace": "GPUSHARING_GPU_OPERATOR_NAMESPACE",
    "gpuOperator.adminPluginConfigMap": "GPUSHARING_ADMIN_PLUGIN_CONFIG_MAP",
    "gpuOperator.adminMigConfigMap": "GPUSHARING_ADMIN_MIG_CONFIG_MAP",
}
"""Values of the chart, and the variable of the operator that each becomes."""


@dataclass
class CommandPlayer:
    """Somebody who types what `doctor` prints."""

    scene: Scene
    values: dict[str, str] = field(default_factory=dict)
    """Values of our release that differ from the chart's."""
    released: bool = False
    """Whether there is a release."""

    def allocatable(self) -> dict[tuple[str, str], int]:
        """How many devices each node offers, by node and resource name."""
        return {
            (raw["metadata"]["name"], name): int(count)
            for raw in self.scene.e.cluster.objects(NODES)
            for name, count in raw["status"]["allocatable"].items()
            if name.startswith("nvidia.com/") and int(count)
        }

    @staticmethod
    def changes(command: str) -> bool:
        """Whether a command changes anything without a decision of a person."""
        words = shlex.split(command)
        open_ = any(word.rpartition("=")[2] in ("NAME", "NODE") for word in words)
        return not open_ and (words[0] == "helm" or not SHOWS & set(words[:4]))

    async def play(self, command: str) -> None:
        """Carry it out, and wait until everything rests."""
        words = shlex.split(command)
        if words[0] == "helm":
            await self._helm(words)
        elif words[1:3] == ["patch", "clusterpolicy"]:
            self.scene.e.cluster.patch(CLUSTER_POLICIES, words[3], json.loads(words[-1]))
        elif words[1:3] == ["label", "node"]:
            self._label(words[3:])
        elif words[1:3] == ["label", "configmap"]:
            labels = dict([words[-1].split("=")])
            self.scene.e.cluster.patch(
                CONFIG_MAPS, words[3], {"metadata": {"labels": labels}}, words[words.index("-n") + 1]
            )
        elif words[3:5] == ["set", "env"]:
            self._set_env(words[5], words[2], words[7], words[8])
        elif words[3:] == ["rollout", "restart", f"deployment/{OPERATOR}"]:
            await self.roll_out()
        else:
            raise AssertionError(f"nobody knows how to play: {command}")
        await asyncio.sleep(QUIET)

    def _set_env(self, daemon_set: str, namespace: str, container: str, pair: str) -> None:
        """Set one variable of one container of a DaemonSet, given as `daemonset/NAME`."""
        cluster, name = self.scene.e.cluster, daemon_set.removeprefix("daemonset/")
        variable, _, value = pair.partition("=")
        containers = cluster.get(DAEMON_SETS, name, namespace)["spec"]["template"]["spec"]["containers"]
        for one in containers:
            if one["name"] == container:
                others = [row for row in one["env"] if row["name"] != variable]
                one["env"] = [*others, {"name": variable, "value": value}]
        body = {"spec": {"template": {"spec": {"containers": containers}}}}
        cluster.patch(DAEMON_SETS, name, body, namespace)

    def _label(self, words: list[str]) -> None:
        pairs = [word.partition("=") for word in words if "=" in word]
        labels: JSON = {key: value for key, _, value in pairs}
        labels |= {word.removesuffix("-"): None for word in words if "/" in word and word.endswith("-")}
        for name in (word for word in words if "/" not in word and not word.startswith("--")):
            self.scene.person(name, {"metadata": {"labels": labels}})

    async def _helm(self, words: list[str]) -> None:
        assert words[2:4] == ["gpusharing", "CHART"], words
        assert (words[1] == "upgrade") is self.released, "helm installs a release once and upgrades what there is"
        sets = words[words.index("--set") + 1].split(",") if "--set" in words else []
        self.values |= dict(one.split("=") for one in sets)
        await self.roll_out()

    async def roll_out(self) -> None:
        """Make the cluster what the chart with these values makes of it; a new operator starts unless it is scaled to
        0."""
        e, replicas = self.scene.e, int(self.values.get("operator.replicas", "1"))
        e.cluster.uninstalled -= {POLICIES, GPUNODES}
        await e.kill_operator()
        if self.released:
            e.cluster.delete(DEPLOYMENTS, OPERATOR, SPACE)
        given = {variable: self.values[name] for name, variable in VARIABLES.items() if name in self.values}
        install(e.cluster, **given)
        self.released = True
        e.cluster.patch(DEPLOYMENTS, OPERATOR, {"spec": {"replicas": replicas}}, SPACE)
        if not replicas:
            return
        pod = {"name": f"{OPERATOR}-0", "namespace": SPACE, "labels": {"app.kubernetes.io/name": OPERATOR}}
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        if not e.cluster.objects(PODS, namespace=SPACE):
            e.cluster.add(PODS, {"metadata": pod, "spec": {"nodeName": "cpu-1"}, "status": ready})
        e.settings = replace(
            e.settings,
            admin_plugin_config_map=self.values.get("gpuOperator.adminPluginConfigMap", ""),
            admin_mig_config_map=self.values.get("gpuOperator.adminMigConfigMap", ""),
            plan=replace(
                e.settings.plan,
                gpu_operator_namespace=self.values.get("gpuOperator.namespace", "gpu-operator"),
            ),
        )
        e.start_operator()

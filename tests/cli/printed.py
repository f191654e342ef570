"""Carry out the commands that messages print, on a SIMULATED cluster.
helm installs and upgrades a simulated chart: our kinds, a Deployment with the real variables, and the shipped operator. kubectl changes objects, and `kubectl gpusharing` is our own plugin. Commands that only show something change nothing, and those with a word in capitals are left to a person."""

import asyncio
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tests.cli.asking import ask, install
from tests.embedded.scene import Scene

from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DAEMON_SETS,
    DEPLOYMENTS,
    GPUNODES,
    NODES,
    PODS,
    POLICIES,
    Resource,
)
from gpusharing.planning.vocabulary.commands import Command
from kubectl_gpusharing.live.cluster import OPERATOR

QUIET = 400.0
"""Seconds after which NVIDIA's programs, operator and agents have nothing more to do."""
SPACE = "gpusharing"
ASKS = frozenset({"advise", "doctor", "free", "import", "layouts", "plan", "recommend", "status", "why"})
VARIABLES = {
    "gpuOperator.namespace": "GPUSHARING_GPU_OPERATOR_NAMESPACE",
    "gpuOperator.adminPluginConfigMap": "GPUSHARING_ADMIN_PLUGIN_CONFIG_MAP",
    "gpuOperator.adminMigConfigMap": "GPUSHARING_ADMIN_MIG_CONFIG_MAP",
}
"""Values of the chart, and the variable of the operator that each becomes."""
CHARTS = ("CHART", "deploy/helm/gpu-sharing-operator")
KINDS: dict[str, Resource] = {
    "node": NODES,
    "nodes": NODES,
    "gpunode": GPUNODES,
    "gsp": POLICIES,
    "configmap": CONFIG_MAPS,
    "clusterpolicy": CLUSTER_POLICIES,
}
_OPEN = re.compile(r"\b[A-Z]{4,}\b(?!_)")
_BEGINS = re.compile(r"(?<![\w/-])(?:until kubectl|kubectl|helm) (?=[a-z-])")
_READS = re.compile(
    r"kubectl get configmap (\S+) -n (\S+) -o jsonpath='{\.data\.(\S+)}' \| grep (?:-q|-qF) (\S+?)(?=;| )"
)
"""What a loop of `import` waits for: ConfigMap, namespace, key and text."""


class NotPlayed(Exception):
    """The simulators do not know what this command, without its options, does."""


def commands_in(text: str) -> Iterator[str]:
    """Yield the commands in prose or in the lines of a verb; commands that && joins are one."""
    at = 0
    while (begin := _BEGINS.search(text, at)) is not None:
        at = end = begin.start()
        quote, loop = "", text.startswith("until", at)
        while end < len(text) and text[end] != "\n":
            char = text[end]
            if quote or char in "'\"":
                quote = "" if char == quote else quote or char
            elif not loop and (char in ";`)" or re.match(r"[,.:]?(?: \(|$|\n)|[,.:] ", text[end:])):
                break
            end += 1
        yield text[at:end].strip()
        at = max(end, at + 1)


def is_open(command: str) -> bool:
    words = (word.rpartition("=")[2].rstrip(".") for word in command.split(" -p ")[0].split())
    return any(_OPEN.fullmatch(word) for word in words if word != "CHART")


def changes(command: str) -> bool:
    """Whether a command changes anything without a decision of a person."""
    if command.startswith("until "):
        return not is_open(command)
    typed = as_value(command.split(" && ")[0])
    if typed.verb == "gpusharing":
        return typed.words[2] not in ASKS
    return not is_open(command) and not typed.reads


@dataclass
class CommandPlayer:
    scene: Scene
    values: dict[str, str] = field(default_factory=dict)
    """Values of our release that differ from the chart's."""
    released: bool = False

    def allocatable(self) -> dict[tuple[str, str], int]:
        return {
            (raw["metadata"]["name"], name): int(count)
            for raw in self.scene.e.cluster.objects(NODES)
            for name, count in raw["status"]["allocatable"].items()
            if name.startswith("nvidia.com/") and int(count)
        }

    async def play(self, command: str) -> None:
        """Carry it out, and wait until everything rests.

        Raises NotPlayed if the simulators do not know it, and TimeoutError if it waits for something that never comes.
        """
        await asyncio.sleep(QUIET if command.startswith("until ") else 0)
        if not all(self._is_written(*read) for read in _READS.findall(command)):
            raise TimeoutError(command)
        if command.startswith("until "):
            return
        for one in command.split(" && "):
            await self._play(as_value(one))
        await asyncio.sleep(QUIET)

    def _is_written(self, name: str, namespace: str, key: str, text: str) -> bool:
        found = self.scene.e.cluster.objects(CONFIG_MAPS, namespace=namespace)
        data = next((raw.get("data") or {} for raw in found if raw["metadata"]["name"] == name), {})
        return text.strip("'") in data.get(key.replace("\\.", "."), "") if text != "." else bool(data.get(key))

    async def _play(self, command: Command) -> None:
        cluster, options, pairs = self.scene.e.cluster, command.options, dict(command.pairs)
        where = options.get("-n", "")
        match command.words:
            case ["kubectl", "gpusharing", *asked]:
                await ask(cluster, *asked)
            case ["helm", "install" | "upgrade" as verb, "gpusharing", chart] if chart in CHARTS:
                assert (verb == "upgrade") is self.released, "helm installs a release once and upgrades what there is"
                self.values |= dict(one.split("=", 1) for one in options.get("--set", "").split(",") if one)
                await self.roll_out()
            case ["kubectl", "patch", "clusterpolicy", name]:
                cluster.patch(CLUSTER_POLICIES, name, json.loads(options["-p"]))
            case ["kubectl", "label", "node" | "nodes", *_]:
                names = command.names or [
                    raw["metadata"]["name"] for raw in cluster.objects(NODES, label_selector=options["-l"])
                ]
                for name in names:
                    self.scene.person(name, {"metadata": {"labels": pairs}})
            case ["kubectl", "label" | "annotate" as verb, kind, name, *_] if kind in KINDS:
                what = "labels" if verb == "label" else "annotations"
                cluster.patch(KINDS[kind], name, {"metadata": {what: pairs}}, where)
            case ["kubectl", "uncordon" | "cordon" as verb, name]:
                self.scene.cordon(name, verb == "cordon")
            case ["kubectl", "delete", "pod"]:
                chosen = {"label_selector": options["-l"], "field_selector": options["--field-selector"]}
                for raw in cluster.objects(PODS, namespace=where, **chosen):
                    cluster.delete(PODS, raw["metadata"]["name"], where)
            case ["kubectl", "delete", "configmap" | "clusterpolicy" as kind, name]:
                cluster.delete(KINDS[kind], name, where)
            case ["kubectl", "set", "env", daemon_set, pair]:
                self._set_env(daemon_set, where, options["-c"], pair)
            case ["kubectl", "rollout", "restart", target] if target == f"deployment/{OPERATOR}":
                await self.roll_out()
            case _:
                raise NotPlayed(" ".join(command.words))

    def _set_env(self, daemon_set: str, namespace: str, container: str, pair: str) -> None:
        cluster, name = self.scene.e.cluster, daemon_set.removeprefix("daemonset/")
        variable, _, value = pair.partition("=")
        containers = cluster.get(DAEMON_SETS, name, namespace)["spec"]["template"]["spec"]["containers"]
        for one in containers:
            if one["name"] == container:
                others = [row for row in one["env"] if row["name"] != variable]
                one["env"] = [*others, {"name": variable, "value": value}]
        body = {"spec": {"template": {"spec": {"containers": containers}}}}
        cluster.patch(DAEMON_SETS, name, body, namespace)

    async def roll_out(self) -> None:
        """Make the cluster what the chart with these values makes of it; a new operator starts unless it is scaled to 0."""
        e, replicas = self.scene.e, int(self.values.get("operator.replicaCount", "1"))
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
            gpu_operator_namespace=self.values.get("gpuOperator.namespace", "gpu-operator"),
        )
        e.start_operator()


def as_value(command: str) -> Command:
    return Command(tuple(shlex.split(command)), ())

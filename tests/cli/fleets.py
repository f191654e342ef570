"""Random clusters as people have them, before and after our operator is installed, and what they offer."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import Random

from hack.cluster.nodes import LABEL_POOL
from hack.sim.fakefaults import EVER
from hack.sim.gpu import DriverRefusal
from hack.sim.node import SimNode
from hack.sim.workloads import SimWorkload
from tests.cli.printed import QUIET, CommandPlayer
from tests.embedded.plainscene import GPU_OPERATORS
from tests.embedded.scene import A100, FULL, H100, L40S, MIG_SLICED, MIXED, MPS, SINGLE, SLICED, Scene, node, open_scene
from tests.embedded.scene import policy as policy_of
from tests.recipes import MIG, MIXED_FLAG, PLUGIN, parted, time_slicing

from gpusharing.agent.library import LibraryError, Reading
from gpusharing.api import names
from gpusharing.kube.client import ACCESS_REVIEWS, CONFIG_MAPS, GPUNODES, JSON, PODS, POLICIES, RESOURCE_SLICES
from gpusharing.kube.errors import Forbidden

STATES = ("nothing", "CRDs only", "a chart without operator", "everything", "everything")
BEFORE = STATES[:2]
OURS, OUR_MIG, THEIRS, THEIR_MIG = (
    "gpusharing-device-plugin",
    "gpusharing-mig-parted",
    "time-slicing-config",
    "custom-mig-config",
)
DEPLOY = "nvidia.com/gpu.deploy."
ENTRIES = {
    "any": time_slicing({"nvidia.com/gpu": 4}),
    "whole": "version: v1\n",
    "mixed": f"version: v1\n{MIXED_FLAG}",
    "single": "version: v1\nflags:\n  migStrategy: single\n",
    "parts": time_slicing({"nvidia.com/gpu": 2, "nvidia.com/mig-1g.10gb": 2}, MIXED_FLAG),
    "mps-4": time_slicing({"nvidia.com/gpu": 4}).replace("timeSlicing", "mps"),
}
LAYOUTS: dict[str, tuple[str, ...]] = {
    "all-1g.10gb": ("1g.10gb",) * 7,
    "all-3g.40gb": ("3g.40gb",) * 2,
    "five-1g-one-2g": ("2g.20gb", *("1g.10gb",) * 5),
}
"""What one GPU has, by the name of the entry."""
PARTED = parted({"five-1g-one-2g": {"1g.10gb": 5, "2g.20gb": 1}, "all-1g.10gb": {"1g.10gb": 7}})
SPECS = (FULL, SLICED, MPS, SINGLE, MIXED, MIG_SLICED, {"mode": "MIG", "mig": {"config": "all-1g.10gb"}})


@dataclass(frozen=True)
class Machine:
    """One node, and what somebody did to it before the operator came."""

    name: str
    pool: str
    product: str
    labels: Mapping[str, str]
    divided: tuple[str, ...] = ()
    """Instances of each of its two GPUs that somebody makes, as nvidia-smi does."""
    when: str = "early"
    """When somebody does that: `early`, as cloud-init does before NVIDIA's programs start, or `before us`, or `after us`."""
    restarted: bool = True
    """Whether the device plugin is restarted after that."""
    later: Mapping[str, str | None] = field(default_factory=dict)
    agent: str = ""
    gated: bool = False


@dataclass(frozen=True)
class RandomCluster:
    state: str
    spec: JSON
    config_maps: Mapping[str, Mapping[str, str]]
    machines: tuple[Machine, ...]
    policies: tuple[JSON, ...]
    values: Mapping[str, str]
    dra: bool = False
    configures: bool = False

    def __str__(self) -> str:
        maps = {name: sorted(data) for name, data in self.config_maps.items() if name in (OURS, THEIRS)}
        lines = [
            f"{self.state}, {self.values}, dra={self.dra}, configures={self.configures}",
            str(self.spec),
            str(maps),
        ]
        policies = [f"{one['metadata']['name']}: {one['spec']}" for one in self.policies]
        return "\n".join(f"  {line}" for line in (*lines, *map(str, self.machines), *policies))


def _chance(random: Random, often: float) -> bool:
    return random.random() < often


def draw(random: Random) -> RandomCluster:
    pick, dra = random.choice, _chance(random, 0.1)
    keys = sorted(random.sample(sorted(ENTRIES), random.randint(1, len(ENTRIES))))
    plugin = pick(["", "", OURS, THEIRS, THEIRS, THEIRS, "gone"])
    default = pick({OURS: ["", "", "any"], THEIRS: ["", *keys, "lost"]}.get(plugin, [""]))
    mig = pick(["", "", "", "default-mig-parted-config", THEIR_MIG, OUR_MIG, "gone"])
    spec: JSON = {
        "devicePlugin": {"config": {"name": plugin, "default": default}},
        "migManager": {
            "enabled": _chance(random, 0.7),
            "config": {"name": mig, "default": pick(["all-disabled"] * 3 + [""])},
        },
        "mig": {"strategy": pick([None, None, "single", "mixed", "mixed"])},
        "gfd": {"enabled": _chance(random, 0.9)},
        "sandboxWorkloads": {"enabled": _chance(random, 0.1)},
    }
    spec["devicePlugin"]["enabled"] = _chance(random, 0.3) if dra else _chance(random, 0.9)
    maps: dict[str, Mapping[str, str]] = {THEIRS: {key: ENTRIES[key] for key in keys}}
    maps |= {OURS: {"any": ENTRIES["any"]}} if _chance(random, 0.05) else {}
    maps |= {name: {"config.yaml": PARTED} for name in (THEIR_MIG, "default-mig-parted-config")}
    machines = tuple(_machine(random, number, keys) for number in range(random.randint(2, 4)))
    state = pick(STATES)
    pools = sorted({one.pool for one in machines})
    policies = tuple(
        policy_of(pick(SPECS), f"pool-{pool}", pool, rollout={"paused": _chance(random, 0.6)})
        for pool in pools
        if state not in BEFORE and _chance(random, 0.5)
    )
    values = {"gpuOperator.adminPluginConfigMap": THEIRS} if plugin == THEIRS and _chance(random, 0.5) else {}
    values |= {"gpuOperator.adminMigConfigMap": THEIR_MIG} if mig == THEIR_MIG and _chance(random, 0.5) else {}
    values = {} if state in BEFORE else values | ({} if state == "everything" else {"operator.replicaCount": "0"})
    return RandomCluster(state, spec, maps, machines, policies, values, dra, configures=_chance(random, 0.2))


def _machine(random: Random, number: int, keys: list[str]) -> Machine:
    pick = random.choice
    labels: dict[str, str] = {}
    product = pick([H100, H100, A100, L40S])
    config = pick(["", "", "all-1g.10gb", "all-3g.40gb", "five-1g-one-2g", "all-disabled", "lost"])
    if config and product == H100:
        labels[MIG] = config
    if _chance(random, 0.4):
        labels[PLUGIN] = pick(keys)
    if _chance(random, 0.2):
        labels[DEPLOY + pick(["mig-manager", "mig-manager", "device-plugin", "operands"])] = "false"
    later: dict[str, str | None] = {}
    if _chance(random, 0.15):
        later[PLUGIN] = pick(["lost", None, *keys])
    if _chance(random, 0.1):
        later[DEPLOY + "mig-manager"] = "false"
    if _chance(random, 0.05):
        later[names.LABEL_WORKLOAD_CONFIG] = "vm-passthrough"
    if _chance(random, 0.05):
        later[f"{DEPLOY}device-plugin"] = names.PAUSED_FOR_MIG
    agent = pick(["", "", "", "", "cannot read", "reports nothing", "is not Ready"])
    return Machine(
        f"gpu-{number + 1}",
        pick("aab"),
        product,
        labels,
        divided=LAYOUTS[pick(sorted(LAYOUTS))] if product == H100 and _chance(random, 0.5) else (),
        when=pick(["early", "before us", "before us", "after us"]),
        restarted=_chance(random, 0.8) or agent != "",  # nothing in the API would tell of such instances
        later=later,
        agent=agent,
        gated=_chance(random, 0.05),
    )


@dataclass(frozen=True)
class Holdings:
    offers: Mapping[tuple[str, str], int]
    instances: Mapping[str, frozenset[str]]
    pods: Mapping[str, str]
    """The node of each GPU pod that runs, by its UID."""

    def lost(self, later: "Holdings") -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for (name, resource), count in self.offers.items():
            if (now := later.offers.get((name, resource), 0)) < count:
                found.setdefault(name, []).append(f"{resource}: {count} -> {now}")
        for name, instances in self.instances.items():
            if gone := instances - later.instances[name]:
                found.setdefault(name, []).append(f"{len(gone)} MIG instances")
        for uid, name in self.pods.items():
            if uid not in later.pods:
                found.setdefault(name, []).append("a pod")
        return found


@dataclass
class Inhabited:
    fleet: RandomCluster
    scene: Scene
    player: CommandPlayer

    def holdings(self) -> Holdings:
        cluster, served = self.scene.e.cluster, self._served_by_dra()
        offers = {key: count for key, count in self.player.allocatable().items() if key[0] not in served}
        nodes = self.scene.e.software.nodes
        instances = {
            name: frozenset(instance.uuid for gpu in one.gpus.look() for instance in gpu.instances)
            for name, one in nodes.items()
        }
        running = (raw for raw in cluster.objects(PODS, namespace="default") if raw["status"].get("phase") == "Running")
        return Holdings(offers, instances, {raw["metadata"]["uid"]: raw["spec"]["nodeName"] for raw in running})

    def _served_by_dra(self) -> set[str]:
        slices = self.scene.e.cluster.objects(RESOURCE_SLICES) if self.fleet.dra else []
        return {str(raw["spec"]["nodeName"]) for raw in slices}

    def somebody_divides(self, when: str) -> None:
        cluster = self.scene.e.cluster
        for one in self.fleet.machines:
            if one.when != when:
                continue
            simulated = self.scene.e.software.nodes[one.name]
            if one.agent == "cannot read":
                simulated.agent_library.change = _refuse
            if one.agent == "is not Ready":
                stop_reports(self.scene, one.name)
                for pod in cluster.objects(PODS, namespace="gpusharing-agent"):
                    if pod["spec"]["nodeName"] == one.name:
                        sick = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
                        cluster.patch(PODS, pod["metadata"]["name"], sick, "gpusharing-agent", "status")
            _divide(simulated, one.divided)
            if one.later:
                self.scene.person(one.name, {"metadata": {"labels": dict(one.later)}})
            if one.divided and one.restarted:
                simulated.policy_changed(plugin=True, mig=False)

    def wanting_mig(self) -> set[str]:
        """The nodes whose policy waits until ClusterPolicy leaves the strategy to it."""
        specs = [(one["spec"]["nodeSelector"]["matchLabels"][LABEL_POOL], one["spec"]) for one in self.fleet.policies]
        pools = {pool for pool, spec in specs if spec["mode"] == "MIG" and not spec["rollout"]["paused"]}
        return {one.name for one in self.fleet.machines if one.pool in pools}

    def fenced_since(self, mark: int) -> set[str]:
        """The nodes on which the operator began a change since that position of the log, which policies want."""
        return {
            write.call.name
            for write in self.scene.writes(mark, "nodes")
            if names.ANNOTATION_FENCE in ((write.call.body or {}).get("metadata", {}).get("annotations") or {})
        }


@asynccontextmanager
async def inhabited(fleet: RandomCluster) -> AsyncIterator[Inhabited]:
    """The cluster at rest, with so much of our operator as its state says."""
    policy = {"metadata": {"name": "cluster-policy"}, "spec": fleet.spec, "status": {"state": "ready"}}
    machines = [_manifest(one) for one in fleet.machines]
    pods = [
        SimWorkload(f"serve-{number}", 1, resource=resource)
        for number, resource in enumerate(("nvidia.com/gpu", "nvidia.com/mig-1g.10gb"))
    ]
    async with open_scene(
        *machines,
        start=False,
        cluster_policy=policy,
        sim={"dra": fleet.dra},
        workloads=() if fleet.dra else pods,
        configure_gpu_operator=fleet.configures,
    ) as scene:
        cluster, found = scene.e.cluster, Inhabited(fleet, scene, CommandPlayer(scene, dict(fleet.values)))
        for name, data in fleet.config_maps.items():
            cluster.add(CONFIG_MAPS, {"metadata": {"name": name, "namespace": "gpu-operator"}, "data": dict(data)})
        cluster.uninstalled |= {ACCESS_REVIEWS}
        for one in fleet.machines:
            if one.agent == "reports nothing":
                stop_reports(scene, one.name)
        await asyncio.sleep(1)
        found.somebody_divides("early")
        await asyncio.sleep(QUIET)
        found.somebody_divides("before us")
        await asyncio.sleep(QUIET)
        if fleet.state == "nothing":
            cluster.uninstalled |= {POLICIES, GPUNODES}
        yield found
        cluster.uninstalled.clear()


def stop_reports(scene: Scene, name: str) -> None:
    scene.e.cluster.faults.fail("patch", GPUNODES, Forbidden("no"), times=EVER, identity=f"agent-{name}")


def _refuse(reading: Reading) -> Reading:
    raise LibraryError("no driver library in the container", "NVMLNotLoaded")


def _manifest(machine: Machine) -> JSON:
    raw = node(machine.name, machine.product, machine.pool, 2, plugin=False)
    labels = {key: value for key, value in raw["metadata"]["labels"].items() if not key.startswith(GPU_OPERATORS)}
    raw["metadata"]["labels"] = labels | dict(machine.labels)
    if machine.gated:
        raw["spec"] = {**raw.get("spec", {}), "taints": [{"key": names.TAINT_UNPROVEN, "effect": "NoSchedule"}]}
    return raw


def _divide(machine: SimNode, instances: tuple[str, ...]) -> None:
    for index in range(machine.gpus.count) if instances else ():
        with suppress(DriverRefusal):  # MPS uses the GPU
            machine.gpus.destroy_all(index)
            machine.gpus.set_mig_mode(index, True)
            for profile in instances:
                machine.gpus.create(index, profile)

"""The SIMULATED node software of a whole cluster: one watch per kind, one `SimNode` per GPU node, and no polling.

task = asyncio.create_task(NodeSoftware(client, SimSettings(time_factor=10), log=print).run())
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DAEMON_SETS,
    GPUNODES,
    JSON,
    NODES,
    PODS,
    KubeClient,
)
from hack.sim.agentpages import ANNOTATION_LAPSE, LAPSING, AgentPages, Lapse, Pages
from hack.sim.agents import AgentAPI, SharedGPUNodes, run_again
from hack.sim.configmaps import MountedConfigMaps
from hack.sim.daemons import AGENT, MIG_MANAGER_SET, MPS_DAEMON, DaemonSetPlayer, daemon_pods, players
from hack.sim.dra import DRA_SET
from hack.sim.feed import follow
from hack.sim.gpu import SimulatedGPUs
from hack.sim.gpuoperator import ClusterPolicy, cluster_policy, default_policy
from hack.sim.handout import Handout
from hack.sim.mpsset import DAEMON, MANAGER
from hack.sim.node import SimNode, simulated_gpus
from hack.sim.nodeobject import SimCluster
from hack.sim.pods import PodBook
from hack.sim.readings import ODDITIES, Change, Readings
from hack.sim.settings import Clock, SimSettings

ANNOTATION_INJECT = "sim.gpusharing.dev/inject"
BEFORE = float("-inf")
STRAY_PID = 4242
CRASH_BACKOFF = 10.0
"""Simulated seconds from a container's end to its restart: the kubelet's first back-off."""


_SETTERS = {
    MIG_MANAGER_SET: SimNode.set_mig_manager_pod,
    MPS_DAEMON: SimNode.set_mps_pod,
    DRA_SET: SimNode.set_kubelet_plugin_pod,
}


def _served_by(policy: ClusterPolicy) -> tuple[object, ...]:
    configured = (policy.plugin_config, policy.plugin_default, policy.mig_strategy)
    return (*configured, policy.versions[0], policy.tolerations)


def _divided_by(policy: ClusterPolicy) -> tuple[object, ...]:
    return policy.mig_config, policy.with_reboot, policy.versions[1], policy.tolerations, "mig-manager" in policy.off


class NodeSoftware:
    """Simulates NVIDIA's software, and runs the shipped agents, on every node whose cards are in the card table."""

    def __init__(
        self,
        client: KubeClient,
        settings: SimSettings | None = None,
        *,
        log: Callable[[str], None] = lambda line: None,
        hardware: dict[str, SimulatedGPUs] | None = None,
        agent_client: Callable[[str], KubeClient] | None = None,
        pages: Pages | None = None,
    ) -> None:
        self.settings = settings or SimSettings()
        self.nodes: dict[str, SimNode] = {}
        self._cluster = SimCluster(
            client=client,
            settings=self.settings,
            clock=Clock(self.settings),
            log=log,
            config_maps=MountedConfigMaps(self.settings.times.config_map),
            policy=default_policy(self.settings),
        )
        self._hardware = dict(hardware or {})
        self._agent_client = agent_client or (lambda node: client)
        self._policies: dict[str, JSON] = {}
        self._configs_synced = asyncio.Event()
        self._gpunodes = SharedGPUNodes()
        self._book = PodBook()
        self._pods = daemon_pods(self.settings)
        self._players: tuple[DaemonSetPlayer, ...] = ()
        self._agents: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._handouts: dict[str, Handout] = {}
        """The device assignments of each node's kubelet, which outlives the agent."""
        self._injecting: set[str] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._lapse = Lapse()
        port = self.settings.agent_port
        self.pages: Pages | None = pages or (None if port is None else AgentPages(port))
        """The server of the agents' metrics, or None if they are not served."""

    def refuse(self, pod: JSON) -> str:
        """Return the error with which the device plugin of the pod's node refuses the pod; empty if it admits it."""
        node = self.nodes.get(pod["spec"].get("nodeName", ""))
        return node.refuse(pod) if node is not None else ""

    def keeps_waiting(self, pod: JSON) -> bool:
        """Whether the kubelet of the pod's node cannot start it yet (`SimNode.keeps_waiting`)."""
        node = self.nodes.get(pod["spec"].get("nodeName", ""))
        return node is not None and node.keeps_waiting(pod)

    async def run(self) -> None:
        """Simulate until canceled, and close `pages` at the end."""
        try:
            await self._run()
        finally:
            if self.pages is not None:
                self.pages.close()

    async def _run(self) -> None:
        client, log = self._cluster.client, self._cluster.log
        namespace = self.settings.gpu_operator_namespace
        async with asyncio.TaskGroup() as self._tasks:
            self._players = players(self._cluster, self._spawn, self._pods)
            configs, policy = self._configs_synced, asyncio.Event()
            take = self._take_config_map
            self._spawn(follow(client, CONFIG_MAPS, take, namespace=namespace, log=log, synced=configs))
            self._spawn(follow(client, CLUSTER_POLICIES, self._take_cluster_policy, log=log, synced=policy))
            await configs.wait()
            await policy.wait()
            if self.settings.agents:
                self._spawn(follow(client, GPUNODES, self._gpunodes.take, log=log))
            if not self._cluster.policy.plain:
                self._spawn(follow(client, DAEMON_SETS, self._take_daemon_set, namespace=namespace, log=log))
            self._spawn(follow(client, PODS, self._take_pod, log=log))
            self._spawn(follow(client, NODES, self._take_node, log=log))

    def add_node(self, raw: JSON) -> SimNode | None:
        """Simulate this Node, and return it; None if its cards are unknown or its name has another prefix."""
        name = raw["metadata"]["name"]
        gpus = self._hardware.get(name) or simulated_gpus(raw)
        if gpus is None or not name.startswith(self.settings.node_prefix):
            return None
        node = SimNode(self._cluster, raw, gpus, self._spawn)
        self.nodes[name] = node
        node.start()
        for daemon_set in self._pods:
            self._pass_on(daemon_set, name)
        return node

    def inject(self, node: str, fault: str) -> None:
        if fault not in FAULTS:
            raise ValueError(f"unknown fault {fault!r}; choose from {', '.join(FAULTS)}")
        self._cluster.log(f"{node}: inject {fault}")
        FAULTS[fault](self.nodes[node])

    # --- events ------------------------------------------------------------------------------------------

    def _take_node(self, raw: JSON, gone: bool) -> None:
        name = raw["metadata"]["name"]
        node = self.nodes.get(name)
        if gone:
            if node is not None:
                self.nodes.pop(name).stop()
            self._handouts.pop(name, None)
            self._look_at_agent(name)
            return
        if node is None:
            node = self.add_node(raw)
            if node is None:
                return
        else:
            node.take(raw)
        for player in self._players:
            player.look(name, node.object.labels)
        if node.object.annotations.get(ANNOTATION_INJECT) and name not in self._injecting:
            self._injecting.add(name)
            self._spawn(self._inject_from_annotation(node))

    def _take_pod(self, pod: JSON, gone: bool) -> None:
        """With `dra` the record stays empty: a kubelet does not list DRA's devices with those of plugins."""
        if not self.settings.dra:
            self._book.take(pod, gone)
        for daemon_set, pods in self._pods.items():
            if (name := pods.take(pod, gone)) is not None:
                self._pass_on(daemon_set, name)
                for player in self._players if name in self.nodes else ():
                    player.look(name, self.nodes[name].object.labels)

    def _pass_on(self, daemon_set: str, name: str) -> None:
        """Tell a node, or the agents, which pod of the DaemonSet runs there now."""
        if daemon_set == AGENT:
            self._look_at_agent(name)
        elif name in self.nodes:
            _SETTERS[daemon_set](self.nodes[name], self._pods[daemon_set].running(name))

    def _take_config_map(self, raw: JSON, gone: bool) -> None:
        name, labels = raw["metadata"]["name"], raw["metadata"].get("labels") or {}
        is_generated = name.endswith("-mig-config") and "nvidia.com/node-name" in labels  # by the simulated mig-manager
        if not is_generated:
            now = self._cluster.clock.now() if self._configs_synced.is_set() else BEFORE
            self._cluster.config_maps.put(name, None if gone else raw, now)

    def _take_cluster_policy(self, raw: JSON, gone: bool) -> None:
        if self._cluster.policy.plain:
            return
        name = raw["metadata"]["name"]
        if gone:
            self._policies.pop(name, None)
        else:
            self._policies[name] = raw
        before, after = self._cluster.policy, cluster_policy(self._policies.values())
        self._cluster.policy = after
        plugin = _served_by(before) != _served_by(after)
        mig = _divided_by(before) != _divided_by(after)
        if before != after:
            for node in self.nodes.values():
                node.policy_changed(plugin=plugin, mig=mig)
                for player in self._players:
                    if plugin and player.name == MPS_DAEMON:
                        player.renew(node.name)
                    player.look(node.name, node.object.labels)

    def _take_daemon_set(self, raw: JSON, gone: bool) -> None:
        spec = ((raw.get("spec") or {}).get("template") or {}).get("spec") or {}
        named = {container["name"] for container in spec.get("containers", ())}
        if raw["metadata"]["name"] != MPS_DAEMON or gone or not {DAEMON, MANAGER} <= named:
            return
        before, self._cluster.mps_pod = self._cluster.mps_pod, spec
        if before and before != spec:
            for player in self._players:
                if player.name == MPS_DAEMON:
                    for node in self.nodes:
                        player.renew(node)

    # --- inside ------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._tasks is not None, "call it while run() runs"
        return self._tasks.create_task(work)

    def _look_at_agent(self, name: str) -> None:
        node, pod = self.nodes.get(name), self._pods[AGENT].running(name)
        uid = pod["metadata"]["uid"] if pod is not None and node is not None else ""
        running, task = self._agents.get(name, ("", None))
        if uid == running or not self.settings.agents:
            return
        if task is not None:
            task.cancel()
            del self._agents[name]
            self._lapse.leave(name)
            if self.pages is not None:
                self.pages.hide(name)
        if node is not None and uid:
            container = run_again(partial(self._agent, node), partial(self._cluster.clock.sleep, CRASH_BACKOFF))
            self._agents[name] = (uid, self._spawn(container))

    def _agent(self, node: SimNode) -> AgentLoop:
        lapsing = node.object.annotations.get(ANNOTATION_LAPSE) == "true"
        clock = self._lapse.join(node.name) if lapsing else asyncio.get_running_loop().time
        own = self.settings
        settings = LoopSettings(interval=own.agent_interval, hung_after=own.agent_hung_after, meter_lag=own.meter_lag)
        agent = AgentLoop(
            node.name,
            AgentAPI(self._agent_client(node.name), self._gpunodes, node.name),
            node.agent_library,
            self._handouts.setdefault(node.name, Handout(self._book, node.object, node.gpus)),
            LAPSING if lapsing else settings,
            clock=clock,
            background=Readings(node.gpus),
            pod_uids=partial(self._book.uids, node.name),
        )
        if self.pages is not None:
            self.pages.show(node.name, agent, self._lapse if lapsing else None)
        return agent

    def silence_kubelet(self, node: str) -> None:
        """Keep the node's agent from reading which devices pods hold."""
        self._handouts[node].answers = False

    def gpus_of(self, node: str, uid: str) -> set[int]:
        """Return the GPUs of the devices that the kubelet gave a pod; empty if it has none."""
        handout = self._handouts.get(node)
        return set() if handout is None else handout.gpus_of(uid)

    async def _inject_from_annotation(self, node: SimNode) -> None:
        while (faults := node.object.annotations.get(ANNOTATION_INJECT)) and node.name in self.nodes:
            for fault in faults.split(","):
                try:
                    self.inject(node.name, fault.strip())
                except ValueError as error:
                    self._cluster.log(f"{node.name}: {error}")
            version = node.object.raw
            await node.object.patch(annotations={ANNOTATION_INJECT: None})
            if node.object.raw is version:
                break  # the Node does not exist any more
        self._injecting.discard(node.name)


def _unwedge(node: SimNode) -> None:
    node.faults.wedge_pending = False
    node.kill_mig_manager()


def _break_next_run(fault: str, node: SimNode) -> None:
    setattr(node.faults, fault, True)


def _accept(node: SimNode) -> None:
    node.faults.refuse, node.faults.refused = False, ""


def _default_mode(node: SimNode) -> None:
    for index in range(node.gpus.count):
        node.gpus.set_compute_mode(index, "Default")


def _change_reading(change: Change, node: SimNode) -> None:
    node.agent_library.change = change


FAULTS: dict[str, Callable[[SimNode], None]] = {
    "wedge-pending": partial(_break_next_run, "wedge_pending"),
    "unwedge": _unwedge,
    "wedge-paused": partial(_break_next_run, "wedge_paused"),
    "failed": partial(_break_next_run, "failed"),
    "refuse": partial(_break_next_run, "refuse"),
    "accept": _accept,
    "reboot": partial(_break_next_run, "reboot"),
    "reboot-now": lambda node: node.reboot(),
    "kill-mig-manager": lambda node: node.kill_mig_manager(),
    "kill-mps-daemon": lambda node: node.mps.kill(),
    "default-compute-mode": _default_mode,
    **{word: partial(_change_reading, change) for word, change in ODDITIES.items()},
    "lose-instances": lambda node: node.lose_instances(),
    "hang-nvml": lambda node: node.gpus.hang(),
    "unhang-nvml": lambda node: node.gpus.unhang(),
    "stray-process": lambda node: node.gpus.add_process(0, "python3", STRAY_PID),
    "no-stray-process": lambda node: node.gpus.remove_process(STRAY_PID),
    "sick-gpu": lambda node: node.gpus.ask_recovery(0, "Reset"),
    "heal-gpu": lambda node: node.gpus.ask_recovery(0, "None"),
    "broken-row": lambda node: node.gpus.set_health(0, 0, (False, True)),
    "lose-gpu": lambda node: node.gpus.lose(0),
    "find-gpu": lambda node: node.gpus.lose(0, "Ok"),
}
"""The faults that can be injected: those of mig-manager happen at its next run that changes GPUs, the others at once.

The wedges are those of docs/design/nvidia.md#a7, and refuse lasts for its configuration until accept. reboot means that
a mode change needs one (WITH_REBOOT), reboot-now that the node reboots. kill-mps-daemon leaves the GPUs exclusive, and
default-compute-mode is a person's nvidia-smi -c 0. stray-process computes on GPU 0 without a pod, sick-gpu asks for its
reset, and a broken-row of its memory could not be remapped. The words of readings.py change what the agent reads.
"""

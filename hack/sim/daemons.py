"""The DaemonSet controller and the kubelet for NVIDIA's DaemonSets and ours, for FakeCluster, which has neither."""

import random
from collections.abc import Mapping

from gpusharing.api.names import LABEL_DEPLOY_CLIENT, LABEL_DEPLOY_PREFIX, LABEL_MPS_CAPABLE, TAINT_UNPROVEN
from gpusharing.kube.client import DAEMON_SETS, JSON, PODS
from gpusharing.kube.errors import AlreadyExists, Conflict, NotFound
from hack.sim.dra import DRA_SET, KUBELET_PLUGIN, LABEL_DRA
from hack.sim.gpuoperator import LABEL_DEPLOY_MIG_MANAGER
from hack.sim.node import Spawn
from hack.sim.nodeobject import SimCluster
from hack.sim.pods import DaemonPods
from hack.sim.settings import SimSettings

LABEL_AGENT = "app.kubernetes.io/name"
AGENT = "gpusharing-agent"
LABEL_MIG_MANAGER = "app"
MIG_MANAGER = "nvidia-mig-manager"
MIG_MANAGER_SET = "nvidia-mig-manager-daemonset"
LABEL_MPS_DAEMON = "app"
MPS_DAEMON = "nvidia-device-plugin-mps-control-daemon"
PLAIN_PLUGIN = "nvidia-device-plugin"
MPS_SELECTOR: Mapping[str, str] = {LABEL_MPS_CAPABLE: "true", f"{LABEL_DEPLOY_PREFIX}device-plugin": "true"}
"""The node selector of the MPS control daemon's DaemonSet (GO:assets/state-mps-control-daemon)."""


GPU_TAINT: JSON = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
START_UP_TAINT: JSON = {"key": TAINT_UNPROVEN, "operator": "Exists", "effect": "NoSchedule"}
TOLERATED = (GPU_TAINT, START_UP_TAINT)
"""The taints that our chart lets the agent tolerate, and an admin lets NVIDIA's pods tolerate."""


_CONTAINERS = {AGENT: "agent", DRA_SET: "gpus", MPS_DAEMON: "mps-control-daemon-ctr"}
"""The container of a pod, by DaemonSet, where its name matters."""
GPU_NODES = {"nvidia.com/gpu.present": "true"}


class DaemonSetPlayer:
    """Keeps a pod on every node that the selector matches, unless ClusterPolicy turns `operand` off."""

    def __init__(
        self,
        cluster: SimCluster,
        pods: DaemonPods,
        name: str,
        selector: Mapping[str, str],
        spawn: Spawn,
        operand: str = "",
    ) -> None:
        self._cluster = cluster
        self._pods = pods
        self.name = name
        self._selector = selector
        self._spawn = spawn
        self._operand = operand
        self._random = random.Random(f"{cluster.settings.seed}{name}")
        self._busy: set[str] = set()

    def look(self, node: str, labels: Mapping[str, str]) -> None:
        """Start to create or delete this node's pod, if that is necessary and no earlier change is in progress."""
        if node in self._busy:
            return
        wanted = self._operand not in self._cluster.policy.off and self._selector.items() <= labels.items()
        if wanted and not self._pods.exists(node):
            self._busy.add(node)
            self._spawn(self._create(node))
        pod = self._pods.running(node)
        if not wanted and pod is not None:
            self._busy.add(node)
            self._spawn(self._delete(node, pod))

    def renew(self, node: str) -> None:
        """Start to delete the running pod, because the DaemonSet has a new template."""
        pod = self._pods.running(node)
        if pod is not None and node not in self._busy:
            self._busy.add(node)
            self._spawn(self._delete(node, pod))

    async def _create(self, node: str) -> None:
        client, namespace = self._cluster.client, self._pods.namespace
        suffix = "".join(self._random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
        try:
            body = self._body(f"{self.name}-{suffix}", node, await self._uid())
            pod = await client.create(PODS, body, namespace=namespace)
            await self._cluster.clock.sleep(self._cluster.settings.times.pod_start / 4)
            name = pod["metadata"]["name"]
            await client.patch(PODS, name, {"status": self._running()}, namespace=namespace, subresource="status")
        except (NotFound, AlreadyExists) as error:
            self._cluster.log(f"{node}: {self.name}: {error!r}")
        finally:
            self._busy.discard(node)

    async def _delete(self, node: str, pod: JSON) -> None:
        metadata = pod["metadata"]
        try:
            await self._cluster.client.delete(
                PODS, metadata["name"], namespace=metadata["namespace"], uid=metadata["uid"]
            )
        except (NotFound, Conflict) as error:
            self._cluster.log(f"{node}: {self.name}: {error!r}")
        finally:
            self._busy.discard(node)

    async def _uid(self) -> str:
        try:
            found = await self._cluster.client.get(DAEMON_SETS, self.name, namespace=self._pods.namespace)
        except NotFound:
            return f"daemonset-{self.name}"
        return str(found["metadata"]["uid"])

    def _body(self, name: str, node: str, uid: str) -> JSON:
        owner = {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "name": self.name,
            "uid": uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self._pods.namespace,
                "labels": {self._pods.label: self._pods.value},
                "ownerReferences": [owner],
            },
            "spec": {
                "nodeName": node,
                "tolerations": list(TOLERATED),
                "terminationGracePeriodSeconds": 30,
                "containers": [{"name": _CONTAINERS.get(self.name, "main"), "image": "simulated"}],
            },
        }

    def _running(self) -> JSON:
        moment = self._cluster.clock.rfc3339()
        conditions = [
            {"type": kind, "status": "True", "lastTransitionTime": moment}
            for kind in ("Initialized", "ContainersReady", "Ready", "PodScheduled")
        ]
        return {"phase": "Running", "startTime": moment, "conditions": conditions}


def daemon_pods(settings: SimSettings) -> dict[str, DaemonPods]:
    operator = settings.gpu_operator_namespace
    mps = (LABEL_AGENT, PLAIN_PLUGIN) if settings.plain_config else (LABEL_MPS_DAEMON, MPS_DAEMON)
    return {
        MIG_MANAGER_SET: DaemonPods(operator, LABEL_MIG_MANAGER, MIG_MANAGER),
        MPS_DAEMON: DaemonPods(operator, *mps),
        DRA_SET: DaemonPods(operator, LABEL_DRA, KUBELET_PLUGIN),
        AGENT: DaemonPods(settings.agent_namespace, LABEL_AGENT, AGENT),
    }


def played_daemon_sets(settings: SimSettings) -> tuple[tuple[str, str], ...]:
    """Return name and namespace of each DaemonSet whose pods the `players` may create; the caller creates these."""
    operator = settings.gpu_operator_namespace
    sets: tuple[tuple[str, str], ...] = ((MIG_MANAGER_SET, operator), (MPS_DAEMON, operator))
    sets += ((DRA_SET, operator),) if settings.dra else ()
    return (*sets, (AGENT, settings.agent_namespace)) if settings.agents else sets


def players(cluster: SimCluster, spawn: Spawn, pods: Mapping[str, DaemonPods]) -> tuple[DaemonSetPlayer, ...]:
    """Return the players of the simulated DaemonSets; none if real controllers create the pods."""
    settings = cluster.settings
    if not settings.play_daemon_sets:
        return ()
    mps_selector = {LABEL_MPS_CAPABLE: "true"} if settings.plain_config else dict(MPS_SELECTOR)
    if settings.plain_mig:
        mps_selector[LABEL_DEPLOY_CLIENT] = "true"
    mig_is_here = bool(settings.plain_mig) or not settings.plain_config
    rows = (
        (MIG_MANAGER_SET, {LABEL_DEPLOY_MIG_MANAGER: "true"}, "mig-manager", mig_is_here),
        (MPS_DAEMON, mps_selector, "mps-control-daemon", True),
        (DRA_SET, GPU_NODES, "", settings.dra),
        (AGENT, GPU_NODES, "", settings.agents),
    )
    return tuple(
        DaemonSetPlayer(cluster, pods[name], name, selector, spawn, operand)
        for name, selector, operand, is_here in rows
        if is_here
    )

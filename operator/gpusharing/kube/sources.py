"""Everything the operator follows in the API, each kind by its own reflector. One callback: look again."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    GPU_CLUSTERS,
    GPUNODES,
    JSON,
    NODES,
    PODS,
    KubeClient,
)
from gpusharing.kube.convert import cluster_policy_view, gpunode_view, has_condition, node_view
from gpusharing.kube.policies import PolicyCache
from gpusharing.kube.reflector import Reflector
from gpusharing.planning.views import ClusterPolicyView, GPUNodeView, NodeView, Operand, Settings

AGENT_SELECTOR = "app.kubernetes.io/name=gpusharing-agent"
MIG_MANAGER, MPS_DAEMON = "nvidia-mig-manager", "nvidia-device-plugin-mps-control-daemon"
OPERAND_SELECTOR = f"app in ({MIG_MANAGER},{MPS_DAEMON})"
NODE_CONFIG_SUFFIX = "-mig-config"
"""mig-manager >= 0.14 publishes what it generated from the hardware as ConfigMap <node>-mig-config (a.10)."""


@dataclass(frozen=True, slots=True)
class PodPlace:
    """Which pod runs where, and whether it is Ready."""

    node: str
    operand: Operand
    app: str


@dataclass(frozen=True, slots=True)
class ConfigMapView:
    """Data and the annotation that tells when each entry was written."""

    data: Mapping[str, str]
    annotations: Mapping[str, str]


def _pod_place(raw: JSON) -> PodPlace:
    metadata = raw.get("metadata", {})
    ready = has_condition(raw, "Ready") and "deletionTimestamp" not in metadata
    operand = Operand(metadata.get("namespace", ""), metadata.get("name", ""), metadata.get("uid", ""), ready)
    app = (metadata.get("labels") or {}).get("app", "")
    return PodPlace(raw.get("spec", {}).get("nodeName", ""), operand, app)


def _config_map(raw: JSON, wanted: frozenset[str]) -> ConfigMapView:
    metadata = raw.get("metadata", {})
    name = metadata.get("name", "")
    if name not in wanted and not name.endswith(NODE_CONFIG_SUFFIX):
        return ConfigMapView({}, {})
    return ConfigMapView(dict(raw.get("data") or {}), dict(metadata.get("annotations") or {}))


class Sources:
    """The reflectors, and what they hold that is no decision input: mirrors and raw versions."""

    def __init__(
        self,
        client: KubeClient,
        settings: Settings,
        wake: Callable[[], None],
        *,
        admin_mig_map: str = "",
        agent_namespace: str = "",
    ) -> None:
        ours = frozenset({settings.plugin_config_map, settings.mig_config_map, admin_mig_map})
        self.mirrors: dict[str, Mapping[str, Any]] = {}

        def changed(_: str) -> None:
            wake()

        def gpunode(raw: JSON) -> GPUNodeView:
            self.mirrors[raw["metadata"]["name"]] = (raw.get("status") or {}).get("transition") or {}
            return gpunode_view(raw)

        def gpunode_changed(name: str) -> None:
            if name not in self.gpunodes.items:
                self.mirrors.pop(name, None)
            wake()

        self.policies = PolicyCache(client)
        self.nodes: Reflector[NodeView] = Reflector(client, NODES, node_view, on_change=changed)
        self.gpunodes: Reflector[GPUNodeView] = Reflector(
            client, GPUNODES, gpunode, on_change=gpunode_changed
        )
        self.agents: Reflector[PodPlace] = Reflector(
            client,
            PODS,
            _pod_place,
            namespace=agent_namespace or settings.namespace,
            label_selector=AGENT_SELECTOR,
            on_change=changed,
        )
        operator_namespace = settings.gpu_operator_namespace
        self.operands: Reflector[PodPlace] = Reflector(
            client,
            PODS,
            _pod_place,
            namespace=operator_namespace,
            label_selector=OPERAND_SELECTOR,
            on_change=changed,
        )
        self.config_maps: Reflector[ConfigMapView] = Reflector(
            client,
            CONFIG_MAPS,
            lambda raw: _config_map(raw, ours),
            namespace=operator_namespace,
            on_change=changed,
        )
        self.cluster_policies: Reflector[ClusterPolicyView] = Reflector(
            client, CLUSTER_POLICIES, cluster_policy_view, on_change=changed
        )
        self.gpu_clusters: Reflector[str] = Reflector(
            client, GPU_CLUSTERS, lambda raw: str(raw["metadata"]["name"]), on_change=changed
        )

    @property
    def required(self) -> Mapping[str, Reflector[Any]]:
        """Those without which nothing may be decided."""
        return {
            "nodes": self.nodes,
            "gpunodes": self.gpunodes,
            "agent pods": self.agents,
            "operand pods": self.operands,
            "configmaps": self.config_maps,
        }

    @property
    def optional(self) -> Mapping[str, Reflector[Any]]:
        """NVIDIA's kinds may not be installed; absent then means: none."""
        return {"clusterpolicies": self.cluster_policies, "gpuclusters": self.gpu_clusters}

    async def run(self) -> None:
        """Follow everything until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in (*self.required.values(), *self.optional.values()):
                group.create_task(reflector.run())

    def missing(self) -> dict[str, str]:
        """Sources that hold no complete list yet, with the reason."""
        missing = {
            name: str(source.error or "not listed yet")
            for name, source in self.required.items()
            if not source.synced.is_set()
        }
        for name, source in self.optional.items():
            if not source.synced.is_set() and source.error is None:
                missing[name] = "not listed yet"
        return missing

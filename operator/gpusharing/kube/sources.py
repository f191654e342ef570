"""All objects that the operator follows: a Reflector for each kind, and the PolicyCache. Every change wakes the loop."""

import asyncio
import json
import marshal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import is_
from typing import Any, TypeVar, Unpack

from gpusharing.api.names import ANNOTATION_WRITTEN, LABEL_MANAGED_BY, MANAGED_BY
from gpusharing.kube.agentpods import AGENT, agent_pod, agent_warning, unknown_agent_pod
from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DAEMON_SETS,
    DEVICE_CLASSES,
    DEVICE_TAINT_RULES,
    EVENTS,
    GPU_CLUSTERS,
    GPUNODES,
    JSON,
    MEDIK8S_MAINTENANCES,
    NODES,
    NVIDIA_MAINTENANCES,
    PODS,
    RESOURCE_SLICES,
    Filters,
    KubeClient,
    Resource,
)
from gpusharing.kube.convert import cluster_policy_view, gpunode_view, node_view, unknown_gpunode, unknown_node
from gpusharing.kube.daemonsets import daemon_set_view, operand_view, unknown_operand
from gpusharing.kube.dra import FIELD_SELECTOR, OUR_RULES, device_class_view, device_index, slice_view, taint_rule_view
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.lists import or_unknown
from gpusharing.kube.maintenance import (
    Maintenance,
    as_last_read,
    find_maintained,
    medik8s_maintenance,
    nvidia_maintenance,
    with_maintenance,
)
from gpusharing.kube.policycache import PolicyCache
from gpusharing.kube.raw import entries, part, section, text
from gpusharing.kube.reflector import Reflector
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.planning.snapshot.agents import find_troubles
from gpusharing.planning.snapshot.nvidia import NodeDevices, Program, TaintRuleView
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView
from gpusharing.planning.vocabulary.findings import Finding

View = TypeVar("View")

AGENT_SELECTOR = f"app.kubernetes.io/name={AGENT}"
WARNINGS = "type=Warning"
"""The field selector of Warning events."""
KUBELET_PLUGIN_SELECTOR = f"{Program.KUBELET_PLUGIN.label}={Program.KUBELET_PLUGIN}"
OPERAND_SELECTOR = f"app in ({','.join(one for one in Program if one.label == 'app')})"
CHART_SELECTOR = "app.kubernetes.io/name=nvidia-device-plugin"
"""Selects the pods of NVIDIA's device-plugin chart. Its device plugin, GPU Feature Discovery and MPS daemon have the
same labels (k8s-device-plugin v0.19.3, templates/_helpers.tpl, templateLabels). With the chart value nameOverride they
have another name."""
NOT_YET = "not listed yet"
RESTORE_NOTE = "the cluster was restored from a backup; listing its objects again"
NODE_CONFIG_SUFFIX = "-mig-config"
"""mig-manager >= 0.14 publishes a ConfigMap <node>-mig-config from the hardware (docs/design/nvidia.md#a10)."""


@dataclass(frozen=True, slots=True)
class ConfigMapView:
    """The parts that we read of a ConfigMap, and whether it is ours."""

    data: Mapping[str, str]
    annotations: Mapping[str, str]
    uid: str = ""
    labelled: bool = False
    ours: bool = False
    """Whether it has a mark of ours, or this process has seen one on it."""

    @property
    def is_foreign(self) -> bool:
        return bool(self.data) and not self.ours


def config_map_view(raw: JSON) -> ConfigMapView:
    """Convert a raw ConfigMap; a malformed one raises an error, because none of its entries may count as absent."""
    metadata = raw.get("metadata", {})
    annotations = dict(metadata.get("annotations") or {})
    labelled = (metadata.get("labels") or {}).get(LABEL_MANAGED_BY) == MANAGED_BY
    ours = labelled or ANNOTATION_WRITTEN in annotations
    return ConfigMapView(dict(raw.get("data") or {}), annotations, str(metadata.get("uid", "")), labelled, ours)


def arch_of(nodes: Mapping[str, NodeView]) -> Callable[[str], str]:
    """Return the function that returns a node's architecture, or an empty string if it is unknown."""
    return lambda name: nodes[name].labels.get("kubernetes.io/arch", "") if name in nodes else ""


_Parts = tuple[NodeView, Maintenance | None, NodeDevices | None, TaintRuleView | None]
"""The view of a Node, its NodeMaintenance, the devices of its DRA driver and its DeviceTaintRule."""


class Sources:
    """The reflectors of all kinds, and parts of GPUNodes that people are shown and no decision depends on.

    Pods of the agents and Warning events are followed in the agents' namespace, NVIDIA's pods, DaemonSets and
    ConfigMaps in the GPU Operator's namespace, and all other kinds in the whole cluster.
    """

    def __init__(
        self,
        client: KubeClient,
        settings: SourceSettings,
        wake: Callable[[], None],
        restores: Callable[[], int] = int,
        stop: Callable[[], str] = str,
    ) -> None:
        """`wake` is called when the view of an object changes; `restores` and `stop` are those of LeaderLease."""
        self._client, self._wake, self._restores, self.stop = client, wake, restores, stop
        self.settings, admin = settings, settings.admin_maps
        self._read_maps = {settings.plugin_config_map, settings.mig_config_map, admin.plugin, admin.mig}
        self._our_maps: set[str] = set()
        """UIDs of ConfigMaps with a mark of ours, kept even if somebody removes the mark soon after."""
        pods, namespace = settings.agent_namespace or settings.namespace, settings.gpu_operator_namespace
        self._shown: dict[str, str] = {}
        """Transition and conditions of each GPUNode by name, as JSON, which takes a fifth of the memory."""
        self._reports: dict[str, int] = {}
        """A hash of the agent's report in each GPUNode, by name, because most versions repeat the report."""
        self.policies = PolicyCache(client, restores, settings.paused, stop)
        node = partial(node_view, maintenance_keys=frozenset(settings.maintenance_keys))
        self._node = or_unknown(NODES, node, unknown_node)
        self.nodes = self._follow(NODES, self._node)
        self.gpunodes = self._follow(
            GPUNODES, or_unknown(GPUNODES, self._gpunode, self._unknown_gpunode), self._gpunode_changed
        )
        agent = or_unknown(PODS, agent_pod, unknown_agent_pod)
        self.agents = self._follow(PODS, agent, namespace=pods, label_selector=AGENT_SELECTOR)
        self.agent_warnings = self._follow(EVENTS, agent_warning, namespace=pods, field_selector=WARNINGS)
        """Warning events about the agent's pods. No decision waits for them: they only explain."""
        operand = or_unknown(PODS, operand_view, unknown_operand)
        self.operands = self._follow(PODS, operand, namespace=namespace, label_selector=OPERAND_SELECTOR)
        self.chart_pods = self._follow(PODS, operand, namespace=namespace, label_selector=CHART_SELECTOR)
        self.config_maps = self._follow(CONFIG_MAPS, self._config_map, namespace=namespace)
        self.cluster_policies = self._follow(CLUSTER_POLICIES, cluster_policy_view)
        self.daemon_sets = self._follow(DAEMON_SETS, daemon_set_view, self._dra_changed, namespace=namespace)
        self.gpu_clusters = self._follow(GPU_CLUSTERS, lambda raw: None, self._dra_changed)
        self._maintenances = {
            "medik8s nodemaintenances": self._follow(MEDIK8S_MAINTENANCES, medik8s_maintenance),
            "nvidia nodemaintenances": self._follow(NVIDIA_MAINTENANCES, nvidia_maintenance),
        }
        # The kinds that NVIDIA's DRA stack needs make no call before that stack has been seen.
        self.resource_slices = self._follow(RESOURCE_SLICES, slice_view, field_selector=FIELD_SELECTOR)
        self.kubelet_plugins = self._follow(PODS, operand, namespace=namespace, label_selector=KUBELET_PLUGIN_SELECTOR)
        self.device_classes = self._follow(DEVICE_CLASSES, device_class_view)
        self.taint_rules = self._follow(DEVICE_TAINT_RULES, taint_rule_view, label_selector=OUR_RULES)
        self._dra_seen = asyncio.Event()
        """Set once NVIDIA's DRA stack has been seen, and never cleared."""
        self.devices = device_index(lambda: self.resource_slices.items)
        self._joined: dict[str, tuple[_Parts, NodeView]] = {}
        """The nodes with something joined to their view, by name: the parts of the view, and the view."""
        self.required: Mapping[str, Reflector[Any]] = {
            "nodes": self.nodes,
            "gpunodes": self.gpunodes,
            "agent pods": self.agents,
            "operand pods": self.operands,
            "device-plugin chart pods": self.chart_pods,
            "configmaps": self.config_maps,
        }
        """The reflectors without which nothing may be decided."""
        self.optional: Mapping[str, Reflector[Any]] = {
            "clusterpolicies": self.cluster_policies,
            "gpuclusters": self.gpu_clusters,
            "daemonsets": self.daemon_sets,
            **self._maintenances,
        }
        """Other programs' kinds: one that is not installed, or that we could never read, counts as empty."""

    def _follow(
        self,
        resource: Resource,
        project: Callable[[JSON], View],
        on_change: Callable[[str], None] | None = None,
        **where: Unpack[Filters],
    ) -> Reflector[View]:
        on_change = on_change or (lambda _: self._wake())
        return Reflector(self._client, resource, project, on_change=on_change, restores=self._restores, **where)

    def _gpunode_changed(self, name: str) -> None:
        if name not in self.gpunodes.items:
            self._shown.pop(name, None)
            self._reports.pop(name, None)
        self._wake()

    @property
    def rules(self) -> Mapping[str, TaintRuleView]:
        """Our DeviceTaintRules by name; none while we cannot list them, as the scheduler may not follow them then."""
        return {} if isinstance(self.taint_rules.error, NotFound | Forbidden) else self.taint_rules.items

    def _dra_changed(self, _: str) -> None:
        drivers = (view.dra for view in self.daemon_sets.items.values())
        if self.gpu_clusters.items or any(driver is not None and driver.serves_gpus for driver in drivers):
            self._dra_seen.set()
        self._wake()

    async def _follow_dra(self) -> None:
        await self._dra_seen.wait()
        async with asyncio.TaskGroup() as group:
            for reflector in self.of_dra.values():
                group.create_task(reflector.run())

    def node_view(self, raw: JSON) -> NodeView:
        """Convert a raw Node, and join it with its NodeMaintenance, its DRA devices and its DeviceTaintRule."""
        return self._with_parts(self._node(raw))

    def seen_node(self, name: str) -> NodeView | None:
        """Return the latest known view of a Node, joined as in `node_view`; None if the Node is not known."""
        view = self.nodes.items.get(name)
        return None if view is None else self._with_parts(view)

    def _with_parts(self, view: NodeView) -> NodeView:
        joined = self._join({view.name: view})
        return joined[view.name][1] if joined else view

    def node_views(self) -> dict[str, NodeView]:
        """Return all Nodes by name, joined as in `node_view`; the same objects as long as their parts are."""
        self._joined = self._join(self.nodes.items)
        return {**self.nodes.items, **{name: view for name, (_, view) in self._joined.items()}}

    def _join(self, nodes: Mapping[str, NodeView]) -> dict[str, tuple[_Parts, NodeView]]:
        # A person who waits for the end of a maintenance is told that the operator cannot see it any more.
        maintenances = (
            as_last_read(kind.items) if isinstance(kind.error, Forbidden) else kind.items
            for kind in self._maintenances.values()
        )
        maintained, devices = find_maintained(*maintenances), self.devices()
        rules = {rule.node: rule for rule in self.rules.values()}
        joined: dict[str, tuple[_Parts, NodeView]] = {}
        for name in (maintained.keys() | devices.keys() | rules.keys()) & nodes.keys():
            parts = nodes[name], maintained.get(name), devices.get(name), rules.get(name)
            known = self._joined.get(name)
            if known and all(map(is_, known[0], parts)):
                joined[name] = known
                continue
            view, maintenance, published, rule = parts
            view = with_maintenance(view, maintenance)
            if published is not None or rule is not None:
                view = replace(view, devices=published, rule_since=rule.since if rule is not None else None)
            joined[name] = parts, view
        return joined

    @property
    def agent_troubles(self) -> dict[str, Finding | None]:
        pods, warnings = self.agents.items.values(), self.agent_warnings.items.values()
        return find_troubles(pods, warnings, arch_of(self.nodes.items))

    def _gpunode(self, raw: JSON) -> GPUNodeView:
        name = raw["metadata"]["name"]
        shown = [section(raw, "status", "transition"), entries(raw, "status", "conditions")]
        self._shown[name] = json.dumps(shown)
        before, report = self._reports.get(name), hash(marshal.dumps(part(raw, "status", "observed"), 2))
        self._reports[name] = report
        known = self.gpunodes.items.get(name) if before == report else None
        return gpunode_view(raw, known.observed if known is not None else None)

    def _unknown_gpunode(self, raw: JSON, why: str) -> GPUNodeView:
        self._reports.pop(text(raw, "metadata", "name"), None)  # the report must be converted again
        return unknown_gpunode(raw, why)

    def _config_map(self, raw: JSON) -> ConfigMapView:
        name = raw.get("metadata", {}).get("name", "")
        if name not in self._read_maps and not name.endswith(NODE_CONFIG_SUFFIX):
            return ConfigMapView({}, {})
        view = config_map_view(raw)
        if view.ours:
            self._our_maps.add(view.uid)
        return replace(view, ours=view.uid in self._our_maps)

    def shown(self, node: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
        if node not in self.gpunodes.items:
            return {}, []
        transition, conditions = json.loads(self._shown[node])
        return transition, conditions

    async def run(self) -> None:
        """Follow all kinds but the policies until canceled; an error that is no KubeError is raised in a group."""
        async with asyncio.TaskGroup() as group:
            for reflector in (*self.required.values(), *self.optional.values(), self.agent_warnings):
                group.create_task(reflector.run())
            group.create_task(self._follow_dra())

    @property
    def of_dra(self) -> Mapping[str, Reflector[Any]]:
        if not self._dra_seen.is_set():
            return {}
        return {
            "resourceslices": self.resource_slices,
            "deviceclasses": self.device_classes,
            "devicetaintrules": self.taint_rules,
            "DRA driver pods": self.kubelet_plugins,
        }

    def ages(self) -> dict[str, float]:
        """Return the age in seconds (`Reflector.age`) of each kind in `required` and `of_dra`, by its name."""
        of_dra = {
            name: source for name, source in self.of_dra.items() if not isinstance(source.error, NotFound | Forbidden)
        }
        return {name: source.age for name, source in {**self.required, **of_dra}.items() if not source.gone}

    def missing(self) -> dict[str, str]:
        """Return by name why sources that decisions need cannot be relied on. Also requests overdue lists.

        A source is missing before its first list, after a restore until the next one, and while one of its objects
        cannot be converted, as that may concern every node. A kind that is `gone`, or optional and not readable, is
        not.
        """
        missing = {}
        for name, source in {**self.required, **self.optional, **self.of_dra}.items():
            restored = source.check_restored()
            if source.gone or (name not in self.required and isinstance(source.error, NotFound | Forbidden)):
                continue
            if not source.synced.is_set():
                missing[name] = str(source.error or NOT_YET)
            elif restored:
                missing[name] = RESTORE_NOTE
            elif source.unreadable:
                missing[name] = min(source.unreadable.values())
        return missing

    def revoked(self) -> dict[str, str]:
        """Return the optional kinds that we may not read any more; others' work in them counts as it was last read."""
        return {
            name: str(source.error)
            for name, source in self.optional.items()
            if source.synced.is_set() and isinstance(source.error, Forbidden)
        }

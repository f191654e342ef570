"""All objects that the operator follows: a Reflector for each kind, but a list of the policies.

Every change calls the same callback.
"""

import asyncio
import json
import marshal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import is_
from typing import Any, TypeVar, Unpack

from gpusharing.api.names import ANNOTATION_WRITTEN, LABEL_MANAGED_BY, MANAGED_BY
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
    POLICIES,
    RESOURCE_SLICES,
    Filters,
    KubeClient,
    Resource,
)
from gpusharing.kube.convert import (
    cluster_policy_view,
    gpunode_view,
    node_view,
    policy_view,
    unknown_gpunode,
    unknown_node,
    unknown_policy,
)
from gpusharing.kube.daemonsets import (
    AGENT,
    MPS,
    agent_pod,
    agent_warning,
    daemon_set_view,
    is_daemon_down,
    lone_restarts,
    unknown_agent_pod,
)
from gpusharing.kube.dra import (
    FIELD_SELECTOR,
    GPUS,
    OUR_RULES,
    device_class_view,
    device_index,
    slice_view,
    taint_rule_view,
)
from gpusharing.kube.errors import Forbidden, NotFound, Unavailable
from gpusharing.kube.lists import or_unknown, pages_of
from gpusharing.kube.maintenance import (
    Maintenance,
    as_last_read,
    find_maintained,
    medik8s_maintenance,
    nvidia_maintenance,
    with_maintenance,
)
from gpusharing.kube.raw import entries, has_condition, newer, part, section, strings, text
from gpusharing.kube.reflector import Reflector
from gpusharing.planning.snapshot.agents import find_troubles
from gpusharing.planning.snapshot.nvidia import NodeDevices, Operand, Program, TaintRuleView
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, PlanSettings, PolicyView
from gpusharing.planning.vocabulary.findings import Finding


class PolicyCache:
    """The policies as last listed. An event only says that something may have changed; the list decides.

    There are few, so they are always listed as a whole. A view, and the tuple of all views, stays the same object while
    nothing has changed.

    Like a Reflector, the cache never goes back unless the store was restored from a backup: a list that is older than
    what the server has already shown is rejected. A deleted policy in such a list would own nodes again, and would stay
    for good, because no watch continues from that list.
    """

    def __init__(self, client: KubeClient, restores: Callable[[], int] = int, paused: str = "false") -> None:
        """Prepare an empty cache; `paused` applies to every view (PlanSettings).

        `restores` returns how often a write has proven a restore (LeaderLease).
        """
        self._client, self._paused = client, paused
        self._restores, self._restores_seen, self._doubted = restores, restores(), False
        """`restores` as of the last list that was accepted, and whether one has been refused since."""
        self._raw: dict[str, JSON] = {}
        self.views: tuple[PolicyView, ...] = ()
        """The policies as last listed, sorted by name."""
        self._dirty = True
        self._listing = False
        self._newest = ""
        """The highest resourceVersion of policies that the server has shown in a list, an event or an answer."""
        self.listed = False

    @property
    def stale(self) -> bool:
        """Whether the next pass must list (`dirty`), or a list is under way."""
        return self.dirty or self._listing

    @property
    def dirty(self) -> bool:
        return self._dirty or self._restores() > self._restores_seen

    def touch(self, name: str = "", resource_version: str = "") -> bool:
        """Record that the policies must be listed again, and return True.

        False means that the cache has this version, as after our own write. Without `name` and `resource_version`,
        which come from an event, any policy may have changed.
        """
        if name and resource_version and _version(self._raw.get(name, {})) == resource_version:
            return False
        self._reached(resource_version)
        self._dirty = True
        return True

    async def refresh(self) -> tuple[PolicyView, ...]:
        """Return the views of all policies by name; they are listed again only if the cache is `dirty`.

        Raises a KubeError if they cannot be listed, and Unavailable if the server answers with an older state than it
        has shown already. The policies known before stay, and the next call lists again.
        """
        if self.dirty:
            self._dirty, self._listing = False, True
            try:
                self._raw = await self._list()
            except BaseException:
                self._dirty = True
                raise
            finally:
                self._listing = False
            self.listed = True
            self._rebuild()
        return self.views

    async def _list(self) -> dict[str, JSON]:
        listed: dict[str, JSON] = {}
        at_least, version = self._newest, ""
        async for page in pages_of(self._client, POLICIES):
            listed |= {raw["metadata"]["name"]: raw for raw in page.items}
            version = page.resource_version
        if newer(at_least, version):
            # A second one, after a write has proven that the store was restored from a backup, is accepted.
            if not (self._doubted and self._restores() > self._restores_seen):
                self._doubted = True
                raise Unavailable(
                    f"the API server returned an older state (resourceVersion {version}) than before ({at_least})"
                )
            self._newest = ""
        self._doubted, self._restores_seen = False, self._restores()
        self._reached(version)
        return listed

    def accept(self, raw: JSON) -> None:
        """Store the policy that the server returned for our write, unless it is unknown or out of date.

        Statuses are written alongside the passes: an edit can be listed before the answer to an older write arrives.
        """
        name = text(raw, "metadata", "name")
        self._reached(_version(raw))
        if name in self._raw and not newer(_version(self._raw[name]), _version(raw)):
            self._raw[name] = raw
            self._rebuild()

    def _reached(self, version: str) -> None:
        if not self._newest or newer(version, self._newest):
            self._newest = version

    def _rebuild(self) -> None:
        before = {view.name: view for view in self.views}
        views = []
        for name in sorted(self._raw):
            view = _view(self._raw[name]).paused_by(self._paused)
            views.append(before[name] if before.get(name) == view else view)
        if tuple(views) != self.views:
            self.views = tuple(views)

    def finalizers(self, policy: str) -> tuple[str, tuple[str, ...]]:
        raw = self._raw.get(policy, {})
        return _version(raw), strings(part(raw, "metadata", "finalizers"))

    def status(self, policy: str) -> Mapping[str, Any]:
        return section(self._raw.get(policy, {}), "status")


_view = or_unknown(POLICIES, policy_view, unknown_policy)


def _version(raw: JSON) -> str:
    return text(raw, "metadata", "resourceVersion")


View = TypeVar("View")

AGENT_SELECTOR = f"app.kubernetes.io/name={AGENT}"
WARNINGS = "type=Warning"
"""The field selector of Warning events."""
KUBELET_PLUGIN_SELECTOR = f"{Program.KUBELET_PLUGIN.label}={Program.KUBELET_PLUGIN}"
OPERAND_SELECTOR = f"app in ({','.join(one for one in Program if one.label == 'app')})"
CHART_SELECTOR = "app.kubernetes.io/name=nvidia-device-plugin"
"""Selects the pods of NVIDIA's device-plugin chart.

Its device plugin, GPU Feature Discovery and MPS daemon have the same labels (k8s-device-plugin v0.19.3,
templates/_helpers.tpl, templateLabels). With the chart value nameOverride they have another name."""
NOT_YET = "not listed yet"
RESTORE_NOTE = "the cluster was restored from a backup; listing its objects again"
MIG_KEY = "config.yaml"
"""The one key of a ConfigMap of configurations that mig-manager mounts (docs/design/nvidia.md#a10)."""
NODE_CONFIG_SUFFIX = "-mig-config"
"""mig-manager >= 0.14 publishes what it generated from the hardware as <node>-mig-config.

It is a ConfigMap (docs/design/nvidia.md#a10)."""


@dataclass(frozen=True, slots=True)
class AdminMaps:
    """Names of the admin's ConfigMaps whose entries are merged into ours; empty if there is none.

    They are in the namespace of ours.
    """

    plugin: str = ""
    mig: str = ""


NO_MAPS = AdminMaps()


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """Which objects are read, and the planner's settings."""

    plan: PlanSettings = field(default_factory=PlanSettings)
    admin_maps: AdminMaps = NO_MAPS
    agent_namespace: str = ""
    """Namespace of the agents' pods; our own namespace if empty."""
    maintenance_keys: frozenset[str] = frozenset()
    """Additional keys of labels, annotations and taints which mean that somebody else maintains a Node."""


@dataclass(frozen=True, slots=True)
class ConfigMapView:
    """The parts that we read of a ConfigMap, and whether it is ours."""

    data: Mapping[str, str]
    annotations: Mapping[str, str]
    uid: str = ""
    labelled: bool = False
    """Whether the ConfigMap has our label."""
    ours: bool = False
    """Whether it has a mark of ours, or this process has seen one on it."""

    @property
    def is_foreign(self) -> bool:
        return bool(self.data) and not self.ours


def _operand_view(raw: JSON) -> Operand:
    """Convert a raw pod of NVIDIA's components.

    One that runs the MPS daemon gets its `app`, because NVIDIA's chart gives it no label of its own.
    """
    app = text(raw, "metadata", "labels", "app")
    containers = {text(container, "name") for container in entries(raw, "spec", "containers")}
    if text(raw, "metadata", "labels", Program.KUBELET_PLUGIN.label) == Program.KUBELET_PLUGIN:
        app = Program.KUBELET_PLUGIN if GPUS in containers else ""  # not one for compute domains only
    restarts, cause, settling = lone_restarts(raw) if app == Program.MPS_DAEMON else (0, "", False)
    if MPS in containers:
        app = Program.MPS_DAEMON
    deleting = "deletionTimestamp" in section(raw, "metadata")
    namespace, name, uid = (text(raw, "metadata", key) for key in ("namespace", "name", "uid"))
    return Operand(
        namespace,
        name,
        uid,
        ready=has_condition(raw, "Ready") and not deleting,
        deleting=deleting,
        lone_restarts=restarts,
        restart_cause=cause,
        settling=settling,
        down=app == Program.MPS_DAEMON and is_daemon_down(raw),
        node=text(raw, "spec", "nodeName"),
        app=app,
    )


def _unknown_operand(raw: JSON, _: str) -> Operand:
    namespace, name, uid = (text(raw, "metadata", key) for key in ("namespace", "name", "uid"))
    node, app = text(raw, "spec", "nodeName"), text(raw, "metadata", "labels", "app")
    return Operand(namespace, name, uid, ready=False, node=node, app=app)


_operand = or_unknown(PODS, _operand_view, _unknown_operand)
_Parts = tuple[NodeView, Maintenance | None, NodeDevices | None, TaintRuleView | None]
"""The view of a Node, its NodeMaintenance, the devices of its DRA driver and its DeviceTaintRule."""


class Sources:
    """The reflectors of all kinds, and parts of GPUNodes that people are shown and no decision depends on.

    Pods of the agents and Warning events are followed in the agents' namespace, NVIDIA's pods, DaemonSets and
    ConfigMaps in the GPU Operator's namespace, and all other kinds in the whole cluster.
    """

    def __init__(
        self, client: KubeClient, settings: SourceSettings, wake: Callable[[], None], restores: Callable[[], int] = int
    ) -> None:
        """`wake` is called when the view of an object changes; `restores` is that of `Reflector`."""
        self._client, self._wake, self._restores = client, wake, restores
        self.settings, plan, admin = settings, settings.plan, settings.admin_maps
        self._read_maps = {plan.plugin_config_map, plan.mig_config_map, admin.plugin, admin.mig}
        self._our_maps: set[str] = set()
        """UIDs of ConfigMaps with a mark of ours, kept even if somebody removes the mark soon after."""
        pods, namespace = settings.agent_namespace or plan.namespace, plan.gpu_operator_namespace
        self._shown: dict[str, str] = {}
        """Transition and conditions of each GPUNode by name, as JSON, which takes a fifth of the memory."""
        self._reports: dict[str, int] = {}
        """A hash of the agent's report in each GPUNode, by name, because most versions repeat the report."""
        self.policies = PolicyCache(client, restores, plan.paused)
        node = partial(node_view, maintenance_keys=settings.maintenance_keys)
        self._node = or_unknown(NODES, node, unknown_node)
        self.nodes = self._follow(NODES, self._node)
        self.gpunodes = self._follow(
            GPUNODES, or_unknown(GPUNODES, self._gpunode, self._unknown_gpunode), self._gpunode_changed
        )
        agent = or_unknown(PODS, agent_pod, unknown_agent_pod)
        self.agents = self._follow(PODS, agent, namespace=pods, label_selector=AGENT_SELECTOR)
        self.agent_warnings = self._follow(EVENTS, agent_warning, namespace=pods, field_selector=WARNINGS)
        """Warning events about the agent's pods. No decision waits for them: they only explain."""
        self.operands = self._follow(PODS, _operand, namespace=namespace, label_selector=OPERAND_SELECTOR)
        self.chart_pods = self._follow(PODS, _operand, namespace=namespace, label_selector=CHART_SELECTOR)
        self.config_maps = self._follow(CONFIG_MAPS, self._config_map, namespace=namespace)
        self.cluster_policies = self._follow(CLUSTER_POLICIES, cluster_policy_view)
        self.daemon_sets = self._follow(DAEMON_SETS, daemon_set_view, self._dra_changed, namespace=namespace)
        self.gpu_clusters = self._follow(GPU_CLUSTERS, lambda raw: None, self._dra_changed)
        maintenances = {
            "medik8s nodemaintenances": self._follow(MEDIK8S_MAINTENANCES, medik8s_maintenance),
            "nvidia nodemaintenances": self._follow(NVIDIA_MAINTENANCES, nvidia_maintenance),
        }
        self._maintenances: list[Reflector[Maintenance]] = list(maintenances.values())
        # The kinds that NVIDIA's DRA stack needs make no call before that stack has been seen.
        self.resource_slices = self._follow(RESOURCE_SLICES, slice_view, field_selector=FIELD_SELECTOR)
        self.kubelet_plugins = self._follow(PODS, _operand, namespace=namespace, label_selector=KUBELET_PLUGIN_SELECTOR)
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
            **maintenances,
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
        """The DeviceTaintRules with our label, by name.

        There are none while the API server does not serve them or we may not read them, because the scheduler may not
        follow them then.
        """
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
        view = self._node(raw)
        return self._join({view.name: view}).get(view.name, (None, view))[1]

    def seen_node(self, name: str) -> NodeView | None:
        """Return the latest known view of a Node, joined as in `node_view`; None if the Node is not known."""
        view = self.nodes.items.get(name)
        return None if view is None else self._join({name: view}).get(name, (None, view))[1]

    def node_views(self) -> dict[str, NodeView]:
        """Return the views of all Nodes by name, joined as in `node_view`.

        They are the same objects as long as their parts do not change.
        """
        self._joined = self._join(self.nodes.items)
        return {**self.nodes.items, **{name: view for name, (_, view) in self._joined.items()}}

    def _join(self, nodes: Mapping[str, NodeView]) -> dict[str, tuple[_Parts, NodeView]]:
        # A person who waits for the end of a maintenance is told that the operator cannot see it any more.
        maintenances = (
            as_last_read(kind.items) if isinstance(kind.error, Forbidden) else kind.items for kind in self._maintenances
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
        agents, nodes = self.agents.items.values(), self.nodes.items
        return find_troubles(
            agents,
            self.agent_warnings.items.values(),
            lambda name: nodes[name].labels.get("kubernetes.io/arch", "") if name in nodes else "",
        )

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
        metadata = raw.get("metadata", {})
        name, uid = metadata.get("name", ""), str(metadata.get("uid", ""))
        if name not in self._read_maps and not name.endswith(NODE_CONFIG_SUFFIX):
            return ConfigMapView({}, {})
        annotations = dict(metadata.get("annotations") or {})
        labelled = (metadata.get("labels") or {}).get(LABEL_MANAGED_BY) == MANAGED_BY
        if labelled or ANNOTATION_WRITTEN in annotations:
            self._our_maps.add(uid)
        return ConfigMapView(dict(raw.get("data") or {}), annotations, uid, labelled, ours=uid in self._our_maps)

    def shown(self, node: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
        if node not in self.gpunodes.items:
            return {}, []
        transition, conditions = json.loads(self._shown[node])
        return transition, conditions

    async def run(self) -> None:
        """Follow all kinds but the policies until canceled.

        An error other than a KubeError ends everything and is raised in a group.
        """
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
        return {name: source.age for name, source in {**self.required, **of_dra}.items()}

    def missing(self) -> dict[str, str]:
        """Return the sources that cannot be relied on, by name, each with the reason.

        Also requests the lists that are overdue. A source is missing before its first list, after a restore until the
        next one, and as long as one of its objects cannot be converted, because what that object says may concern every
        node. Optional kinds and those of `of_dra` are left out while they are not installed or we may not read them.
        """
        missing = {}
        for name, source in {**self.required, **self.optional, **self.of_dra}.items():
            renews = source.renews()
            if name not in self.required and isinstance(source.error, NotFound | Forbidden):
                continue
            if not source.synced.is_set():
                missing[name] = str(source.error or NOT_YET)
            elif renews:
                missing[name] = RESTORE_NOTE
            elif source.unreadable:
                missing[name] = min(source.unreadable.values())
        return missing

    def revoked(self) -> dict[str, str]:
        """Return the optional kinds that we may not read any more, by name, each with the server's answer.

        The cache goes on with their last known objects, because dropping them could end our wait for somebody else's
        work.
        """
        return {
            name: str(source.error)
            for name, source in self.optional.items()
            if source.synced.is_set() and isinstance(source.error, Forbidden)
        }


def by_node(pods: Iterable[Operand], app: str) -> dict[str, Operand]:
    """Return the pod of NVIDIA's component `app` on each node, by node name; of several, a Ready one."""
    operands: dict[str, Operand] = {}
    for pod in pods:
        if pod.app == app and pod.node and (pod.node not in operands or pod.ready):
            operands[pod.node] = pod
    return operands

"""What is installed, as read from the cluster, and which rights do our programs need?

The rights are those that the roles of the chart grant. tests/chart/rbac.yaml lists them again with the reasons; a test
compares both.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import field
from enum import StrEnum
from functools import reduce
from typing import Any, Literal

from gpusharing.planning.snapshot.nvidia import TAINT_TEST, PlainStackView, StackView
from gpusharing.planning.snapshot.views import ClusterSnapshot, PlanSettings
from gpusharing.planning.stack.effects import Foresee, find_effects
from gpusharing.planning.stack.mps import DAEMON_SET
from gpusharing.planning.vocabulary.commands import Change, Command, Effect, Effects
from gpusharing.planning.vocabulary.values import value

Scope = Literal["cluster", "own", "agent", "gpu-operator"]
"""The namespace in which a right is needed, or the whole cluster; `own` is the operator's."""


@value
class Right:
    """The right to use one verb on one kind of object."""

    verb: str
    group: str
    """API group of the kind. Empty for the core group."""
    resource: str
    subresource: str = ""
    scope: Scope = "cluster"
    name: str = ""
    """Name of the only object for which the right is needed. In braces it is the setting that contains the name."""

    @property
    def text(self) -> str:
        """The right as `kubectl auth can-i` takes it, such as `patch nodes` or `create pods/eviction`."""
        kind = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {kind}{'/' + self.subresource if self.subresource else ''}"

    @property
    def place(self) -> str:
        return "" if self.scope == "cluster" else f" (namespace: {self.scope})"


def _rights(verbs: str, group: str, resource: str, subresource: str = "", **more: str) -> tuple[Right, ...]:
    return tuple(Right(verb, group, resource, subresource, **more) for verb in verbs.split())  # type: ignore[arg-type]  # scope is one of the words above


_OURS, _NVIDIA = "gpusharing.dev", "nvidia.com"

OPERATOR_RIGHTS: tuple[Right, ...] = (
    *_rights("get list watch patch", _OURS, "gpusharingpolicies"),
    *_rights("patch", _OURS, "gpusharingpolicies", "status"),
    *_rights("list watch create patch", _OURS, "gpunodes"),
    *_rights("patch", _OURS, "gpunodes", "status"),
    *_rights("get list watch patch", "", "nodes"),
    *_rights("list", "", "pods"),
    *_rights("create", "", "pods", "eviction"),
    *_rights("create", "events.k8s.io", "events"),
    *_rights("list", "policy", "poddisruptionbudgets"),
    *_rights("get", "", "namespaces"),
    *_rights("get", "apps", "daemonsets"),
    *_rights("get", "resource.k8s.io", "resourceclaims"),
    *_rights("list watch", "resource.k8s.io", "resourceslices"),
    *_rights("list watch create patch delete", "resource.k8s.io", "deviceclasses"),
    *_rights("get list watch delete", "resource.k8s.io", "devicetaintrules"),
    *_rights("list watch", _NVIDIA, "clusterpolicies"),
    *_rights("list watch", _NVIDIA, "gpuclusters"),
    *_rights("list watch", "nodemaintenance.medik8s.io", "nodemaintenances"),
    *_rights("list watch", "maintenance.nvidia.com", "nodemaintenances"),
    *_rights("create", "coordination.k8s.io", "leases", scope="own"),
    *_rights("get patch", "coordination.k8s.io", "leases", scope="own", name="{lease}"),
    *_rights("get", "", "configmaps", scope="own", name="gpusharing-stop"),
    *_rights("list watch", "", "pods", scope="agent"),
    *_rights("list watch", "events.k8s.io", "events", scope="agent"),
    *_rights("list watch create", "", "configmaps", scope="gpu-operator"),
    *_rights("patch", "", "configmaps", scope="gpu-operator", name="{plugin_config_map}"),
    *_rights("patch", "", "configmaps", scope="gpu-operator", name="{mig_config_map}"),
    *_rights("watch delete", "", "pods", scope="gpu-operator"),
    *_rights("list watch", "apps", "daemonsets", scope="gpu-operator"),
    *_rights("get", "", "pods", "log", scope="gpu-operator"),
)

CONFIGURE: tuple[Right, ...] = _rights("patch", _NVIDIA, "clusterpolicies")
"""Additional rights of the operator's service account if chart value gpuOperator.configure is on."""

REPAIR_MPS: tuple[Right, ...] = _rights("patch", "apps", "daemonsets", scope="gpu-operator", name=DAEMON_SET)
"""Additional rights of the operator's service account if chart value gpuOperator.repairMps is on."""

FORCE_DELETE: tuple[Right, ...] = _rights("delete", "", "pods")
"""Additional rights of the operator's service account if chart value forceDelete is on."""

DEVICE_TAINTS: tuple[Right, ...] = (
    *_rights("create", "resource.k8s.io", "devicetaintrules"),
    *_rights("patch", "apps", "replicasets", "scale", scope="own", name=TAINT_TEST),
)
"""Additional rights of the operator's service account if chart value dra.deviceTaints is on."""

AGENT_RIGHTS: tuple[Right, ...] = (
    *_rights("list watch", _OURS, "gpunodes"),
    *_rights("patch", _OURS, "gpunodes", "status"),
)

SECURE_METRICS: tuple[Right, ...] = (
    *_rights("create", "authentication.k8s.io", "tokenreviews"),
    *_rights("create", "authorization.k8s.io", "subjectaccessreviews"),
)
"""Additional rights of the agent's service account if chart value agent.secureMetrics is on."""


OPERATOR, AGENT = "gpusharing-operator", "gpusharing-agent"
"""The default names of the service accounts, and the names of the workloads that use them."""


@value
class Place(PlanSettings):
    """Where the release is installed and how it is configured.

    It has the operator's settings and some values of the chart.
    """

    release: str = "gpusharing"
    agent_namespace: str = "gpusharing-agent"
    admin_mig_config_map: str = ""
    """ConfigMap of the admin whose mig-parted entries are merged into ours, or an empty string."""
    startup_gate: bool = False
    """Whether nodes will join with the start-up taint (chart value gpuOperator.startupGate)."""
    operator_account: str = OPERATOR
    agent_account: str = AGENT

    def account(self, subject: str) -> str:
        if subject == AGENT:
            return f"{self.agent_namespace}/{self.agent_account}"
        return f"{self.namespace}/{self.operator_account}"


@value
class AgentsState:
    """The agent's DaemonSet and its prerequisites."""

    selector: Mapping[str, str]
    runtime_class: str = ""
    runtime_class_exists: bool | None = None
    """Whether the agent's RuntimeClass exists. None if that is unknown."""
    enforced: str = ""
    """The PodSecurity level that its namespace enforces, or an empty string."""
    secure_metrics: bool = False
    """Whether its pods ask the API server who may read their metrics (chart value agent.secureMetrics)."""


@value
class Installation:
    """A cluster as the planner sees it, and what only the checks of an installation ask; read once."""

    snapshot: ClusterSnapshot
    """What could not be read is empty. Only a running operator knows of claims, pods and its own failed writes."""
    place: Place = Place()
    unread: Mapping[str, str] = field(default_factory=dict)
    """Why a kind of object could not be read, by the name of the kind as kubectl uses it."""
    not_served: frozenset[str] = frozenset()
    """Our own kinds that the API server does not serve."""
    rights: Mapping[str, Mapping[Right, bool | str]] = field(default_factory=dict)
    """Whether OPERATOR and AGENT have each right that they need, or, as a text, why that is unknown."""
    operator_replicas: int | None = None
    """Replicas according to the Deployment's spec. None if there is no Deployment, or if it could not be read."""
    leader: str | None = None
    """The pod that leads, or the machine outside of the cluster whose process does, as in `make run`. Empty if no
    process leads. None if the Lease was not read: it could not be, or all pods are Ready, or none is and there should
    be some."""
    operator_pods: Mapping[str, str] = field(default_factory=dict)
    """Why each pod of the operator is not Ready, such as `ImagePullBackOff: ...`, by name; empty for one that is."""
    agents: AgentsState | None = None
    kubelets: Mapping[str, str] = field(default_factory=dict)
    """The version of the kubelet, such as `v1.36.3`, by node. Empty if it is unknown."""
    system_plugins: frozenset[str] = frozenset()
    """Nodes whose operating system includes a device plugin that runs unless its settings disable it."""
    ignored_policies: tuple[str, ...] = ()
    """Names of the ClusterPolicies that the GPU Operator reports to ignore, sorted."""
    void_maps: frozenset[str] = frozenset()
    """Names of ConfigMaps of others that ClusterPolicy names and that are known to be missing or empty."""
    foresee: Foresee | None = None
    """As in `find_effects`."""

    @property
    def stack(self) -> StackView:
        return self.snapshot.stack

    def effects(self, change: Change) -> tuple[Effect, ...]:
        return find_effects(change, self.snapshot, self.foresee, unread="nodes" in self.unread)

    def upgrade(self, values: str) -> "Command":
        return upgrade(self.place.release, self.place.namespace, values)

    @property
    def operator_ready(self) -> bool:
        """Whether the operator has pods, all of which are Ready. True if pods could not be read."""
        return "pods" in self.unread or (bool(self.operator_pods) and not any(self.operator_pods.values()))

    @property
    def installed(self) -> bool:
        """Whether the chart is installed, which is assumed if only our kinds can be seen."""
        hidden = "deployments.apps" in self.unread and not self.not_served
        return self.operator_replicas is not None or hidden


class Topic(StrEnum):
    """The topics of the checks, in the order of the output."""

    API = "API"
    RIGHTS = "rights"
    OPERATOR = "operator"
    CLUSTER_POLICY = "ClusterPolicy"
    CONFIG_MAPS = "ConfigMaps"
    AGENTS = "agents"
    KUBELETS = "kubelets"
    NODES = "labels of Nodes"


ASKED_BY_PEOPLE = frozenset({Topic.KUBELETS, Topic.NODES})
"""Topics that only `kubectl gpusharing doctor` checks, and not `helm test`."""


Severity = Literal["ERROR", "WARNING"]
"""ERROR: some or all policies cannot be carried out. WARNING: the installation works today or its state is unknown, but
it may fail later."""


@value
class Symptom:
    topic: Topic
    severity: Severity
    reason: str
    """One CamelCase word for tools, whose meaning never changes."""
    message: str
    command: Command
    """The command that corrects the problem, or that shows what a person has to decide."""


def error(topic: Topic, reason: str, message: str, command: Command) -> Symptom:
    return Symptom(topic, "ERROR", reason, message, command)


def warning(topic: Topic, reason: str, message: str, command: Command) -> Symptom:
    return Symptom(topic, "WARNING", reason, message, command)


def upgrade(release: str, namespace: str, values: str) -> Command:
    # Our chart has none of NVIDIA's programs, and its operator asks `find_effects` before it points them anywhere.
    line = f"helm upgrade {release} CHART -n {namespace} --reset-then-reuse-values --set"
    return Command.of(line, values, effects=())


_POLICIES, _GPUNODES = "gpusharingpolicies.gpusharing.dev", "gpunodes.gpusharing.dev"
_STACK = frozenset({"clusterpolicies.nvidia.com", "daemonsets.apps"})
LOOKED_AT: Mapping[Topic, frozenset[str]] = {
    # A LIST without the right to make it is refused even if the kind is not served, because the API server
    # authorizes before it routes.
    Topic.API: frozenset({_POLICIES, _GPUNODES}),
    Topic.OPERATOR: frozenset({"deployments.apps", "pods"}),
    Topic.CLUSTER_POLICY: _STACK | {"gpuclusters.nvidia.com", "configmaps", "nodes", _POLICIES},
    Topic.CONFIG_MAPS: frozenset({"configmaps"}),
    Topic.AGENTS: frozenset(
        {"daemonsets.apps", "pods", "nodes", "namespaces", "runtimeclasses.node.k8s.io", _GPUNODES}
    ),
    Topic.KUBELETS: frozenset({"nodes"}),
    Topic.NODES: _STACK | {"nodes", "configmaps", _POLICIES},
}
"""The kinds of objects that have to be read to check a topic, by the names that kubectl uses. An unknown right is a
symptom."""
Unseen = Mapping[Topic, str]
"""By topic: what could not be read, as a clause."""


def find_unread_topics(view: Installation) -> Unseen:
    found = {topic: sorted(LOOKED_AT.get(topic, frozenset()) & view.unread.keys()) for topic in Topic}
    return {topic: f"{', '.join(kinds)} cannot be read" for topic, kinds in found.items() if kinds}


def join_unseen(*parts: Unseen) -> Unseen:
    found = {topic: [part[topic] for part in parts if topic in part] for topic in Topic}
    return {topic: "; ".join(clauses) for topic, clauses in found.items() if clauses}


def kubectl_patch(cluster_policy: str, fields: Iterable[tuple[str, object]], *, effects: Effects) -> Command | None:
    """Return one merge patch of all fields by path, None removing one, after labels; None if it must not be run."""
    spec: dict[str, Any] = {}
    for path, setting in fields:
        *blocks, name = path.split(".")
        reduce(lambda block, key: block.setdefault(key, {}), blocks, spec)[name] = setting
    body = json.dumps({"spec": spec}, separators=(",", ":"))
    return Command.if_safe(f"kubectl patch clusterpolicy {cluster_policy} --type merge -p", body, effects=effects)


def plain_upgrade(
    plain: PlainStackView, namespace: str, helm_value: str, *, effects: Effects, option: str = "--set"
) -> Command | None:
    """Return the command that sets a value of NVIDIA's chart, after labels; None if it must not be run."""
    version = f"--version {plain.version or 'VERSION'}"  # the newest one would change and restart every program
    line = (
        f"helm upgrade {plain.release or 'RELEASE'} nvdp/nvidia-device-plugin -n {namespace} {version} --reuse-values"
    )
    return Command.if_safe(f"{line} {option}", helm_value, effects=effects)


def helm_install(release: str, namespace: str, gpu_operator: str, values: Iterable[str]) -> Command:
    where = [] if gpu_operator == "gpu-operator" else [f"gpuOperator.namespace={gpu_operator}"]
    sets = ",".join([*where, *values])
    line = f"helm install {release} CHART -n {namespace} --create-namespace"
    return Command.of(line, *(("--set", sets) if sets else ()), effects=())  # as in `upgrade`

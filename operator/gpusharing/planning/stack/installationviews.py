"""Plain values: what is read from a cluster to check an installation, and the symptoms that a check returns."""

from collections.abc import Iterable, Mapping
from dataclasses import field
from enum import StrEnum

from gpusharing.api.names import LABEL_MIG_CONFIG, LABEL_PLUGIN_CONFIG
from gpusharing.api.policy import LabelSelector
from gpusharing.planning.snapshot.draviews import NO_DRA, DraView
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, FinderState
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, PlanSettings, PolicyView
from gpusharing.planning.stack.rights import Right
from gpusharing.planning.vocabulary.values import value

OPERATOR, AGENT = "gpusharing-operator", "gpusharing-agent"
"""The default names of the service accounts, and the names of the workloads that use them."""


@value
class Place(PlanSettings):
    """Where the release is installed and how it is configured: the operator's settings and some values of the
    chart."""

    release: str = "gpusharing"
    """Name of the Helm release."""
    agent_namespace: str = "gpusharing-agent"
    """The namespace of the agents."""
    admin_mig_config_map: str = ""
    """ConfigMap of the admin whose mig-parted entries are merged into ours; empty if there is none."""
    startup_gate: bool = False
    """Whether nodes will join with the start-up taint (chart value gpuOperator.startupGate)."""
    operator_account: str = OPERATOR
    """Name of the operator's service account."""
    agent_account: str = AGENT
    """Name of the agent's service account."""

    def account(self, subject: str) -> str:
        """Return the agent's service account as `namespace/name` if `subject` is AGENT, else that of the operator."""
        if subject == AGENT:
            return f"{self.agent_namespace}/{self.agent_account}"
        return f"{self.namespace}/{self.operator_account}"


@value
class PodState:
    """One pod of the operator or of the agent."""

    name: str
    """Name of the pod."""
    node: str
    """Name of its node; empty if the pod is not scheduled."""
    ready: bool
    """Whether its condition Ready is True."""
    problem: str = ""
    """Why a container is waiting or the scheduler cannot place the pod, as the API reports it, such as
    `ImagePullBackOff: ...`. Empty if there is no problem."""


@value
class RightState:
    """Whether a service account has a right."""

    subject: str
    """OPERATOR or AGENT, the program to whose service account this applies."""
    right: Right
    """The right that it needs."""
    allowed: bool | None
    """Whether it is allowed, or None if that is unknown."""
    why: str = ""
    """Why that is unknown. Empty if it is known."""

    @property
    def text(self) -> str:
        """The right in the form that kubectl uses. Unless it is cluster-wide, its scope follows, such as ` (namespace:
        own)`."""
        scope = self.right.scope
        return self.right.text if scope == "cluster" else f"{self.right.text} (namespace: {scope})"


@value
class ConfigMapState:
    """One of our two ConfigMaps, or one that ClusterPolicy names instead."""

    keys: frozenset[str]
    """The keys of its data."""
    ours: bool
    """Whether it has our label or our record of writes."""
    mig_entries: frozenset[str] = frozenset()
    """The names of its mig-parted configurations. Only read for our own ConfigMap."""
    mig_file: str = ""
    """Its mig-parted file. Only read for our own ConfigMap."""


@value
class AgentsState:
    """The agent's DaemonSet and its prerequisites."""

    selector: Mapping[str, str]
    """The node selector of its pods."""
    pods: tuple[PodState, ...]
    """The agents' pods."""
    runtime_class: str = ""
    """The RuntimeClass of its pods. Empty if they have none."""
    runtime_class_exists: bool | None = None
    """Whether that RuntimeClass exists, or None if that is unknown."""
    enforced: str = ""
    """The PodSecurity level that its namespace enforces. Empty if it enforces none."""
    secure_metrics: bool = False
    """Whether its pods ask the API server who may read their metrics (chart value agent.secureMetrics)."""
    reports: Mapping[str, str] = field(default_factory=dict)
    """The error that keeps the agent from reading the GPUs, or an empty string if there is none, by node."""


@value
class InstallationView:
    """Everything in a cluster that the checks depend on, read once."""

    place: Place = Place()
    """Where the release is."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Why a kind of object could not be read, by the name of the kind as kubectl uses it."""
    not_served: frozenset[str] = frozenset()
    """Our own kinds that the API server does not serve."""
    rights: tuple[RightState, ...] = ()
    """Each right that the roles of the chart should grant, for both service accounts."""
    operator_replicas: int | None = None
    """Replicas of the operator's Deployment according to its spec. None if there is no Deployment, or if it could not
    be read."""
    leader: str | None = None
    """The name of the pod that leads, or of the machine outside of the cluster whose process does, as in `make run`.
    Empty if no process leads. None if the Lease was not read: it could not be, or all pods of the operator are Ready,
    or none is and there should be some."""
    operator_pods: tuple[PodState, ...] = ()
    """The operator's pods."""
    cluster_policies: tuple[ClusterPolicyView, ...] = ()
    """Every ClusterPolicy."""
    finders: tuple[FinderState, ...] = ()
    """Workers of Node Feature Discovery in the GPU Operator's namespace."""
    nodes: tuple[NodeView, ...] = ()
    """Every Node. Empty if they could not be read."""
    kubelets: Mapping[str, str] = field(default_factory=dict)
    """The version of the kubelet, such as `v1.36.3`, by node. Empty if it is unknown."""
    system_plugins: frozenset[str] = frozenset()
    """Nodes whose operating system includes a device plugin that runs unless its settings disable it."""
    plain: ClusterPolicyView | None = None
    """The view of NVIDIA's device-plugin chart that takes the place of a ClusterPolicy. None if there is a
    ClusterPolicy, or no such chart."""
    gpu_cluster: bool = False
    """Whether there is a GPUCluster."""
    dra: DraView = NO_DRA
    """NVIDIA's DRA driver, and mig-manager without the GPU Operator. ResourceSlices are not read."""
    config_maps: Mapping[str, ConfigMapState] = field(default_factory=dict)
    """Our ConfigMaps that exist, and those that ClusterPolicy names instead, by name, as far as they could be read. A
    ConfigMap that ClusterPolicy names but that does not exist has no keys."""
    agents: AgentsState | None = None
    """The agent's DaemonSet. None if there is none, or if it could not be read."""
    simulated: frozenset[str] = frozenset()
    """Nodes whose agents report that their GPUs are simulated."""
    policies: tuple[PolicyView, ...] = ()
    """Every GPUSharingPolicy."""
    gpunodes: Mapping[str, GPUNodeView] = field(default_factory=dict)
    """Every GPUNode, by node. Empty if they could not be read."""
    plugin_entries: Mapping[str, str] = field(default_factory=dict)
    """Device-plugin configurations by key, as they are in our ConfigMap. Empty if it could not be read."""

    @property
    def operator_ready(self) -> bool:
        """Whether the operator has pods, all of which are Ready. True if pods could not be read."""
        return "pods" in self.unread or min((pod.ready for pod in self.operator_pods), default=False)

    @property
    def not_led(self) -> str:
        """Why no Ready pod of the operator leads, for people. Empty if one does, if a process outside of the cluster
        does, or if it is unknown who leads."""
        if self.leader == "":
            return "by this machine's clock no operator pod leads, so policies have no effect"
        if self.leader in {pod.name for pod in self.operator_pods if not pod.ready}:
            return "the operator pod that leads is not Ready, so policies may have no effect"
        return ""

    @property
    def unready_pods(self) -> str:
        """What is wrong with the operator's pods, for people. It begins with the fact that no pod is Ready or, if some
        are, with `not_led` or the fact that not every pod is Ready. At most two pods that are not Ready are named with
        their problems, first the one that leads, then by name. Meant for an operator that is not `operator_ready`."""
        pods = [pod for pod in self.operator_pods if not pod.ready]
        pods.sort(key=lambda pod: (pod.name != self.leader, pod.name))
        some = self.not_led or "not every operator pod is Ready"
        which = some if len(pods) < len(self.operator_pods) else "no operator pod is Ready"
        troubles = "; ".join(f"{pod.name}: {pod.problem or 'not Ready'}" for pod in pods[:2])
        return f"{which}: {troubles or 'none was created'}"

    @property
    def named_entries(self) -> frozenset[str]:
        """The entries of the device plugin's ConfigMap that any Nodes name in their label for it, whether or not the
        ConfigMap has them."""
        return frozenset(one.labels.get(LABEL_PLUGIN_CONFIG, "") for one in self.nodes) - {""}

    @property
    def missing_mig_entries(self) -> tuple[str, ...]:
        """The mig-parted configurations that Nodes name in their label and our ConfigMap lacks, sorted. Empty if our
        ConfigMap does not exist or could not be read."""
        config_map = self.config_maps.get(self.place.mig_config_map)
        named = {one.labels.get(LABEL_MIG_CONFIG, "") for one in self.nodes}
        return () if config_map is None else tuple(sorted(named - {"", *config_map.mig_entries}))

    @property
    def selectors(self) -> tuple[LabelSelector, ...] | None:
        """The node selectors of the policies whose spec can be read, which may be none. A policy that is being deleted
        counts only while it resets its nodes. None if there are no policies at all. Empty if policies could not be
        read, in which case nothing is reported about their nodes."""
        if "gpusharingpolicies.gpusharing.dev" in self.unread:
            return ()
        specs = (one.spec for one in self.policies if not one.deleting)
        return tuple(spec.node_selector for spec in specs if spec is not None) if self.policies else None

    @property
    def installed(self) -> bool:
        """Whether the chart is installed. This is assumed if the operator's Deployment exists, or if Deployments could
        not be read but our kinds are served."""
        hidden = "deployments.apps" in self.unread and not self.not_served
        return self.operator_replicas is not None or hidden

    @property
    def followed_policy(self) -> ClusterPolicyView | None:
        """The first ClusterPolicy that the GPU Operator does not ignore, or else the view of NVIDIA's device-plugin
        chart. None if there is neither."""
        return next((one for one in self.cluster_policies if not one.ignored), self.plain)

    @property
    def followed_stacks(self) -> tuple[ClusterPolicyView, ...]:
        """The ClusterPolicies that the GPU Operator does not ignore, or if there are none, the view of NVIDIA's
        device-plugin chart. Empty if there is neither."""
        heeded = tuple(one for one in self.cluster_policies if not one.ignored)
        return heeded or ((self.plain,) if self.plain is not None else ())

    def is_void(self, name: str) -> bool:
        """Whether the ConfigMap of this name is known to be empty, or is named by ClusterPolicy and known not to
        exist. False if it could not be read."""
        held = self.config_maps.get(name)
        return held is not None and not held.keys


# --- what a check says ---------------------------------------------------------------------------------


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


class Severity(StrEnum):
    """How serious a symptom is."""

    ERROR = "ERROR"
    """Some or all policies cannot be carried out."""
    WARNING = "WARNING"
    """The installation works today or its state is unknown, but it may fail later."""


@value
class Symptom:
    """One problem of an installation."""

    topic: Topic
    """What was checked."""
    severity: Severity
    """How serious the problem is."""
    reason: str
    """One CamelCase word for tools, whose meaning never changes."""
    message: str
    """What is wrong, and what follows from it."""
    command: str
    """The command that corrects the problem, or that shows what a person has to decide. Words in CAPITALS are for the
    person to fill in."""


Symptoms = Iterable[Symptom]


def error(topic: Topic, reason: str, message: str, command: str) -> Symptom:
    """Return a symptom that keeps some or all policies from being carried out."""
    return Symptom(topic, Severity.ERROR, reason, message, command)


def warning(topic: Topic, reason: str, message: str, command: str) -> Symptom:
    """Return a symptom that does not keep the installation from working today, or whose effect is unknown."""
    return Symptom(topic, Severity.WARNING, reason, message, command)


def upgrade(view: InstallationView, values: str) -> str:
    """Return the command that sets values of the release. `values` are pairs NAME=VALUE, separated by commas."""
    place = view.place
    return f"helm upgrade {place.release} CHART -n {place.namespace} --reset-then-reuse-values --set {values}"


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
"""The kinds of objects that have to be read to check a topic, by the names that kubectl uses. Rights that could not be
determined are reported as a symptom."""
Unseen = Mapping[Topic, str]
"""By topic: what could not be read, as a clause."""


def find_unread_topics(view: InstallationView) -> Unseen:
    """Return, for each topic that depends on a kind of object (LOOKED_AT) that could not be read, a clause that lists
    all such kinds in alphabetical order, without the causes. Other topics are left out."""
    found = {topic: sorted(LOOKED_AT.get(topic, frozenset()) & view.unread.keys()) for topic in Topic}
    return {topic: f"{', '.join(kinds)} cannot be read" for topic, kinds in found.items() if kinds}


def join_unseen(*parts: Unseen) -> Unseen:
    """Return one mapping with the clauses of all `parts`. Clauses about the same topic are joined by semicolons, in the
    order of `parts`. Topics without a clause are left out."""
    found = {topic: [part[topic] for part in parts if topic in part] for topic in Topic}
    return {topic: "; ".join(clauses) for topic, clauses in found.items() if clauses}

"""What each node has for a pod, and what keeps the pod from it: its own rules about nodes, and their taints, as the
scheduler filters them. Nothing is added up: a pod runs on one node. Pure.

From core/v1 of Kubernetes 1.36: NodeAffinity (component-helpers v0.36.3, nodeaffinity.go) and Toleration (k8s.io/api
v0.36.3, core/v1/toleration.go). The kubelet's conditions and cordons are taints too, and are told apart from them.
KAI-Scheduler's fractions: kai-scheduler/KAI-Scheduler v0.17.0, pkg/common/constants/constants.go and
api/node_info/node_info.go (MIG).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpusharing.api.names import TAINT_UNPROVEN, Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.selectors import FIELD, Row, holds, parse_int
from gpusharing.cli.live.cluster import Decided
from gpusharing.kube.client import JSON
from gpusharing.kube.convert_pods import NO_NODE, node_terms
from gpusharing.kube.podrequests import largest_requests
from gpusharing.kube.raw import entries, part, section, text, texts
from gpusharing.planning.gpus.capacity import fits
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.wanted.target import is_plugin_resource, plugin_config

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_KEEPS_OUT = ("NoSchedule", "NoExecute")
_OPERATORS = frozenset({"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"})
TOLD_APART = frozenset(
    {
        "node.kubernetes.io/unschedulable",
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
        TAINT_UNPROVEN,
    }
)
"""Taints that go by themselves, with a cordon, a condition or our proof: a node that has one is called closed."""
_NOT_LOOKED_AT = {
    "spec.affinity.podAffinity": ("affinity", "podAffinity", _REQUIRED),
    "spec.affinity.podAntiAffinity": ("affinity", "podAntiAffinity", _REQUIRED),
    "spec.resourceClaims": ("resourceClaims",),
}

_PERSISTENT = ("persistentVolumeClaim", "ephemeral")
"""Volumes that may be bound to some of the nodes."""


def find_obstacle(pod: JSON, node: JSON, labels: Mapping[str, str] | None = None) -> str:
    """Return the first requirement of the pod that the node does not meet, as a clause; empty if it meets all that are
    evaluated. `labels`: the labels that the node will have; None stands for its present ones."""
    spec = section(pod, "spec")
    labels = texts(part(node, "metadata", "labels")) if labels is None else labels
    for key, value in sorted(texts(spec.get("nodeSelector")).items()):
        if labels.get(key) != value:
            return f"spec.nodeSelector of the pod requires {key}={value}"
    named = {**labels, f"{FIELD}metadata.name": text(node, "metadata", "name")}
    if (terms := node_terms(pod)) and (why := _outside(terms, named)):
        return f"spec.affinity.nodeAffinity of the pod requires {why}"
    tolerations = entries(spec, "tolerations")
    for taint in entries(node, "spec", "taints"):
        told_apart = text(taint, "key") in TOLD_APART
        if text(taint, "effect") in _KEEPS_OUT and not told_apart and not _tolerated(taint, tolerations):
            return f"the pod does not tolerate the taint {_written(taint)}"
    return ""


def find_overlooked(pod: JSON) -> tuple[str, ...]:
    """Return the fields of the pod by which the scheduler may also exclude nodes, but which are not evaluated here:
    they depend on other pods, on volumes, or on another scheduler."""
    spec = section(pod, "spec")
    found = [field for field, path in _NOT_LOOKED_AT.items() if entries(spec, *path)]
    spreads = entries(spec, "topologySpreadConstraints")
    if any(text(one, "whenUnsatisfiable") != "ScheduleAnyway" for one in spreads):
        found.append("spec.topologySpreadConstraints")
    volumes = entries(spec, "volumes")
    found += [f"spec.volumes[].{kind}" for kind in _PERSISTENT if any(kind in one for one in volumes)]
    if text(spec, "schedulerName") not in ("", "default-scheduler"):
        found.append("spec.schedulerName")
    if any("hostPort" in port for one in entries(spec, "containers") for port in entries(one, "ports")):
        found.append("spec.containers[].ports[].hostPort")
    return tuple(found)


def _outside(terms: Sequence[Sequence[Row]], labels: Mapping[str, str]) -> str:
    """Return what the terms require of a node that matches none of them; empty if it matches one. The API server
    refuses operators that are not among _OPERATORS, and for the scheduler they fail."""
    wanted = []
    for term in terms:
        missing = [row for row in term if row[1] not in _OPERATORS or not holds(labels, row)]
        if not missing:
            return ""
        key, operator, values = missing[0]
        said = " ".join(filter(None, (key.removeprefix(FIELD), operator, ",".join(values))))
        wanted.append("something that no node has" if missing[0] == NO_NODE else said)
    return " or ".join(dict.fromkeys(wanted))


# --- taints --------------------------------------------------------------------------------------------------


def _tolerated(taint: JSON, tolerations: Sequence[JSON]) -> bool:
    return any(_tolerates(one, taint) for one in tolerations)


def _tolerates(toleration: JSON, taint: JSON) -> bool:
    """Whether a toleration matches a taint, as Kubernetes compares them. One with an unknown operator matches none."""
    if text(toleration, "effect") not in ("", text(taint, "effect")):
        return False
    if text(toleration, "key") not in ("", text(taint, "key")):
        return False
    match text(toleration, "operator"):
        case "" | "Equal":
            return text(toleration, "value") == text(taint, "value")
        case "Exists":
            return True
        case "Gt" | "Lt" as operator:
            here, there = parse_int(text(taint, "value")), parse_int(text(toleration, "value"))
            if here is None or there is None:
                return False
            return here > there if operator == "Gt" else here < there
        case _:
            return False


def _written(taint: JSON) -> str:
    """Return the taint in the form of `kubectl describe`."""
    value = text(taint, "value")
    return f"{text(taint, 'key')}{f'={value}' if value else ''}:{text(taint, 'effect')}"


NOTE = (
    "KAI-Scheduler takes this fraction from a whole GPU of a node without MIG: from a free nvidia.com/gpu, or from one"
    " that it has reserved, which counts as held although it may have room"
)


def find_fraction(raw: JSON) -> tuple[str, int]:
    """Return the fraction that a Pod asks KAI-Scheduler for, which no request of its containers shows, in words, and of
    how many GPUs. Empty and 0 if it asks for none, or if the default scheduler binds it."""
    annotations = texts(part(raw, "metadata", "annotations"))
    memory, devices = annotations.get("gpu-memory", ""), annotations.get("gpu-fraction-num-devices", "1")
    share = annotations.get("gpu-fraction", f"{memory} MiB" if memory else "")
    if not share or text(raw, "spec", "schedulerName") in ("", "default-scheduler"):
        return "", 0
    count = max(1, parse_int(devices) or 1)
    return (
        f"{share} of {'a GPU' if count == 1 else 'each of ' + counted(count, 'GPU')} from KAI-Scheduler",
        count,
    )


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """What one node has for a pod; counts are by resource name."""

    node: str
    """Name of the node."""
    pool: str
    """The policy that selects the node; empty: none."""
    now: Mapping[str, int]
    """What is allocatable now; empty while a rule keeps the pod from the node."""
    free: Mapping[str, int] | None
    """What of `now` no pod holds, as the agent reports it; empty while the node takes no pods. None: unknown."""
    after: Mapping[str, int]
    """What is allocatable when all changes are done; empty if a rule keeps the pod away then."""
    closed: str
    """Why the node takes no pods now, as a clause; empty: it does."""
    later: str
    """The rule that keeps the pod from the node after the changes; empty: none."""
    refusal: str
    """Why the device plugin refuses the pod under the policy of the node; empty: it does not."""
    planned: Mapping[str, int]
    """What is allocatable when all changes are done, even if a rule keeps the pod away then."""
    names: frozenset[str]
    """Resources that the node advertises, now or when all changes are done, whatever keeps the pod away."""

    def has_free(self, requests: Mapping[str, int]) -> bool:
        """Whether everything that is requested is free, or only allocatable where it is unknown what is free."""
        return fits(requests, self.now if self.free is None else self.free)

    def rank(self, requests: Mapping[str, int]) -> tuple[bool, bool, bool, bool, int]:
        """Sort key: the largest is that of the node which comes nearest to having everything that is requested."""
        most = sum(
            min(n, max(self.now.get(name, 0), self.after.get(name, 0))) for name, n in requests.items()
        )
        lasts = fits(requests, self.after)
        return self.has_free(requests), lasts, fits(requests, self.now), not self.closed, most


class RoomSearch:
    """The search for nodes that have room for a pod. Nothing else of a Node is kept: there may be thousands."""

    def __init__(self, pod: JSON, decided: Decided) -> None:
        """Begin a search for nodes for this pod. `look` has to be called with the Nodes."""
        self.pod, self.decided = pod, decided
        self._specs = {policy.name: policy.spec for policy in decided.snapshot.policies}
        self._several = any(n > 1 for name, n in largest_requests(pod).items() if is_plugin_resource(name))
        self.rooms: dict[str, NodeRoom] = {}
        """What was found, by name of the node."""

    def look(self, nodes: Iterable[JSON]) -> None:
        """Add what each of these Nodes has for the pod to `rooms`. One that joined after the snapshot is left out."""
        for raw in nodes:
            if (node := self.decided.snapshot.nodes.get(text(raw, "metadata", "name"))) is not None:
                self.rooms[node.name] = self._room(raw, node)

    def _room(self, raw: JSON, node: NodeView) -> NodeRoom:
        """Return what one node has for the pod. A node that the pod's rules or the device plugin keep it from has
        nothing; a cordoned one, or one that is not Ready, has nothing free."""
        plan, report = self.decided.plan, self.decided.snapshot.gpunodes.get(node.name)
        verdict = plan.verdicts.get(node.name)
        pool = "" if verdict is None else verdict.policy
        spec = self._specs.get(pool)
        refusal = find_refusal(pool, spec) if spec is not None and self._several else ""
        lasts = spec is None or verdict is None or verdict.phase is Phase.SYNCED
        obstacle = find_obstacle(self.pod, raw) or (refusal if lasts else "")
        planned, now = node.resources, {} if obstacle else node.resources
        if (target := plan.targets.get(node.name)) is not None:  # a change leaves what other plugins serve
            planned = {name: n for name, n in planned.items() if not is_plugin_resource(name)} | dict(target)
        becomes = plan.afterwards.find_node(node.name)
        futures: tuple[Mapping[str, str] | None, ...] = (None,) if becomes is None else becomes.labels
        later = min(find_obstacle(self.pod, raw, labels) for labels in futures) or refusal
        gated = node.gate is not None
        shut = gated or node.unschedulable or not node.ready
        held = report.observed.allocated if report and report.observed else None
        free = None if held is None else {name: max(0, n - held.get(name, 0)) for name, n in now.items()}
        return NodeRoom(
            node=node.name,
            pool=pool,
            now=now,
            free={} if shut or not now else free,
            after={} if later else planned,
            closed=f"cordoned{', not proven yet' if gated else ''} or not Ready" if shut else "",
            later=later,
            refusal=refusal,
            planned=planned,
            names=frozenset((*node.resources, *planned)),
        )


def find_refusal(policy: str, spec: GPUSharingPolicySpec) -> str:
    """Return why the device plugin refuses a container that requests several shares under a policy; empty if it does
    not."""
    sharing = plugin_config(spec, ()).sharing
    if sharing is None or not sharing.fail_requests_greater_than_one:
        return ""
    how = "has mode MPS, which implies" if sharing.strategy == "mps" else "sets"
    return f"policy {policy} {how} failRequestsGreaterThanOne; request 1 in each container"

"""What each node has for a pod, and which rule excludes the pod from the node: the pod's own rules about nodes, or taints, evaluated as the scheduler does.

Each node is judged alone, because a pod runs on one node. Pure.

From core/v1 of Kubernetes 1.36: NodeAffinity (component-helpers v0.36.3, nodeaffinity.go) and Toleration (k8s.io/api
v0.36.3, core/v1/toleration.go). Cordons and the kubelet's conditions are taints too; they are handled separately.
KAI-Scheduler's fractions: kai-scheduler/KAI-Scheduler v0.17.0, pkg/common/constants/constants.go and
api/node_info/node_info.go (MIG).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpusharing.api.names import LABEL_MODE, Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.selectors import FIELD, Row, holds, parse_int
from gpusharing.kube.client import JSON
from gpusharing.kube.convert import gpunode_view
from gpusharing.kube.convert_pods import NO_NODE, node_terms
from gpusharing.kube.podrequests import largest_requests, pod_requests
from gpusharing.kube.raw import entries, part, section, text, texts
from gpusharing.kube.taints import KEEPS_OUT, TRANSIENT_TAINTS, taint_text
from gpusharing.planning.drain.isolation import describe_guard, find_admitted
from gpusharing.planning.gpus.capacity import fits, remaining
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.wanted.target import PolicyTargets, Target, is_plugin_resource, plugin_config
from gpusharing.planning.wanted.verify import served
from kubectl_gpusharing.live.cluster import LivePlan
from kubectl_gpusharing.pools.fleet import read_node

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_OPERATORS = frozenset({"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"})


def find_obstacle(pod: JSON, node: JSON, labels: Mapping[str, str] | None = None) -> str:
    """Return a clause about the first rule that excludes the pod from the node, now or with these labels."""
    spec = section(pod, "spec")
    labels = texts(part(node, "metadata", "labels")) if labels is None else labels
    for key, value in sorted(texts(spec.get("nodeSelector")).items()):
        if labels.get(key) != value:
            return f"the pod's spec.nodeSelector requires {key}={value}"
    named = {**labels, f"{FIELD}metadata.name": text(node, "metadata", "name")}
    if (terms := node_terms(pod)) and (why := _outside(terms, named)):
        return f"the pod's spec.affinity.nodeAffinity requires {why}"
    tolerations = entries(spec, "tolerations")
    for taint in entries(node, "spec", "taints"):
        counts = text(taint, "effect") in KEEPS_OUT and text(taint, "key") not in TRANSIENT_TAINTS
        if counts and not any(_tolerates(one, taint) for one in tolerations):
            return f"the pod does not tolerate the taint {taint_text(taint)}"
    return ""


def find_overlooked(pod: JSON) -> tuple[str, ...]:
    """Return the paths of those fields of the pod because of which the scheduler may exclude nodes, but which are not evaluated here."""
    spec = section(pod, "spec")
    volumes, spreads = entries(spec, "volumes"), entries(spec, "topologySpreadConstraints")
    ports = [port for container in entries(spec, "containers") for port in entries(container, "ports")]
    overlooked: dict[str, object] = {
        "spec.affinity.podAffinity": entries(spec, "affinity", "podAffinity", _REQUIRED),
        "spec.affinity.podAntiAffinity": entries(spec, "affinity", "podAntiAffinity", _REQUIRED),
        "spec.resourceClaims": entries(spec, "resourceClaims"),
        "spec.topologySpreadConstraints": {text(one, "whenUnsatisfiable") for one in spreads}
        - {"ScheduleAnyway"},
        "spec.volumes[].persistentVolumeClaim": any("persistentVolumeClaim" in volume for volume in volumes),
        "spec.volumes[].ephemeral": any("ephemeral" in volume for volume in volumes),
        "spec.schedulerName": text(spec, "schedulerName") not in ("", "default-scheduler"),
        "spec.containers[].ports[].hostPort": any("hostPort" in port for port in ports),
    }
    return tuple(field for field, applies in overlooked.items() if applies)


def _outside(terms: Sequence[Sequence[Row]], labels: Mapping[str, str]) -> str:
    """Return what the terms require of a node that matches none of them: the first unmet row of each."""
    wanted = []
    for term in terms:
        missing = [row for row in term if row[1] not in _OPERATORS or not holds(labels, row)]
        if not missing:
            return ""
        key, operator, values = missing[0]
        row_text = " ".join(filter(None, (key.removeprefix(FIELD), operator, ",".join(values))))
        wanted.append("something that no node has" if missing[0] == NO_NODE else row_text)
    return " or ".join(dict.fromkeys(wanted))


def _tolerates(toleration: JSON, taint: JSON) -> bool:
    if any(text(toleration, key) not in ("", text(taint, key)) for key in ("effect", "key")):
        return False
    operator, value = text(toleration, "operator") or "Equal", text(toleration, "value")
    if operator in ("Gt", "Lt"):
        return holds({"taint": text(taint, "value")}, ("taint", operator, (value,)))
    return operator == "Exists" or (operator == "Equal" and value == text(taint, "value"))


NOTE = (
    "KAI-Scheduler allocates this fraction from a whole GPU on a node without MIG: a free nvidia.com/gpu, or one that"
    " it has reserved already. A reserved GPU is not counted as free here, although it may have free capacity"
)


def find_fraction(raw: JSON) -> tuple[str, int]:
    """Return a description of the fraction of a GPU that the pod requests from KAI-Scheduler, and of how many GPUs; 0 if of none."""
    annotations = texts(part(raw, "metadata", "annotations"))
    # gpu-memory is in MiB; gpu-fraction takes precedence.
    memory, devices = annotations.get("gpu-memory", ""), annotations.get("gpu-fraction-num-devices", "1")
    share = annotations.get("gpu-fraction", f"{memory} MiB" if memory else "")
    if not share or text(raw, "spec", "schedulerName") in ("", "default-scheduler"):
        return "", 0
    count = max(1, parse_int(devices) or 1)
    whole = "a GPU" if count == 1 else f"each of {counted(count, 'GPU')}"
    return f"{share} of {whole} from KAI-Scheduler", count


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """What one node has for a pod. All counts are by resource name."""

    node: str
    pool: str
    """The policy that selects the node; empty if none does."""
    now: Mapping[str, int]
    """The devices that are allocatable now; empty if a rule excludes the pod from the node."""
    free: Mapping[str, int] | None
    """The part of `now` that no pod holds, according to the agent: empty while the node accepts no pods, None if unknown."""
    after: Mapping[str, int]
    """The devices that will be allocatable once all changes are done; empty if a rule will exclude the pod then."""
    closed: str
    """Why the node accepts no pods now, as a clause; empty if it does."""
    later: str
    """The rule that excludes the pod from the node after the changes; empty if none does."""
    refusal: str
    """Why the device plugin refuses the pod under the policy of the node; empty if it does not."""
    planned: Mapping[str, int]
    """Like `after`, even if a rule will exclude the pod."""
    names: frozenset[str]
    """What the node advertises now or will advertise, even if a rule excludes the pod."""

    def has_free(self, requests: Mapping[str, int]) -> bool:
        """Whether everything that is requested is free on the node, as far as is known."""
        return fits(requests, self.now if self.free is None else self.free)

    def most(self, resource: str) -> int:
        """Return how many devices of this resource the pod may use on the node, now or after the changes."""
        return max(self.now.get(resource, 0), self.after.get(resource, 0))

    def rank(self, requests: Mapping[str, int]) -> tuple[bool, bool, bool, bool, int]:
        """Return a sort key: the node with the greatest key comes nearest to having everything that is requested."""
        most = sum(min(n, self.most(name)) for name, n in requests.items())
        lasts = fits(requests, self.after)
        return self.has_free(requests), lasts, fits(requests, self.now), not self.closed, most


def find_room(pod: JSON, raw: JSON, live: LivePlan) -> NodeRoom | None:
    """Return what the Node `raw` has for the pod, or None if the plan does not know this Node."""
    plan, node = live.plan, live.snapshot.nodes.get(text(raw, "metadata", "name"))
    if node is None:
        return None
    report, verdict = live.snapshot.gpunodes.get(node.name), plan.verdicts.get(node.name)
    # Agents do not count what ResourceClaims hold.
    observed = report.observed if report is not None and node.devices is None else None
    pool = "" if verdict is None else verdict.policy
    spec = next((policy.spec for policy in live.snapshot.policies if policy.name == pool), None)
    refusal = find_refusal(pod, pool, spec)
    lasts = spec is None or verdict is None or verdict.phase is Phase.SYNCED
    obstacle = find_obstacle(pod, raw) or (refusal if lasts else "")
    advertised = {**node.resources, **served(node)}
    planned, now = advertised, {} if obstacle else advertised
    if (target := plan.targets.get(node.name)) is not None:
        # A change does not touch what other plugins serve.
        planned = {name: n for name, n in planned.items() if not is_plugin_resource(name)} | dict(target)
    becomes = plan.afterwards.find_node(node.name)
    futures: tuple[Mapping[str, str] | None, ...] = (None,) if becomes is None else becomes.labels
    later = min(find_obstacle(pod, raw, labels) for labels in futures) or refusal
    gated = node.gate is not None
    tainted = node.fence is not None and node.fence.tainted
    shut = gated or node.unschedulable or not node.ready or tainted
    why = f"{'fenced' if tainted else 'cordoned'}{', not proven yet' if gated else ''} or not Ready"
    held = None if observed is None else observed.allocated
    return NodeRoom(
        node=node.name,
        pool=pool,
        now=now,
        free={} if shut or not now else None if held is None else remaining(now, held),
        after={} if later else planned,
        closed=why if shut else "",
        later=later,
        refusal=refusal,
        planned=planned,
        names=frozenset((*advertised, *planned)),
    )


def read_room(pod: JSON, raw: JSON, targets: Mapping[str, PolicyTargets]) -> NodeRoom:
    """Return what a node has for the pod, as its GPUNode shows it."""
    node, observed = read_node(raw), gpunode_view(raw).observed
    policy = targets.get(node.policy)
    target = policy.find(node.name, observed.hardware) if policy and observed and observed.gpus else None
    planned = target.resources if isinstance(target, Target) else {}
    refusal = find_refusal(pod, node.policy, policy.policy.spec if policy else None)
    after = {} if refusal else planned
    now = after if node.phase == Phase.SYNCED else {}
    held = None if observed is None else observed.allocated
    free = {} if node.cordon else None if held is None else remaining(now, held)
    closed, names = node.cordon and "cordoned", frozenset(planned)
    return NodeRoom(node.name, node.policy, now, free, after, closed, refusal, refusal, planned, names)


def find_refusal(pod: JSON, policy: str, spec: GPUSharingPolicySpec | None) -> str:
    """Return why the device plugin refuses the pod under a policy with this spec: a container requests several shares."""
    several = any(n > 1 for name, n in largest_requests(pod).items() if is_plugin_resource(name))
    sharing = plugin_config(spec, ()).sharing if spec is not None and several else None
    if sharing is None or not sharing.fail_requests_greater_than_one:
        return ""
    how = "has mode MPS, which implies" if sharing.strategy == "mps" else "sets"
    return f"policy {policy} {how} failRequestsGreaterThanOne; request 1 in each container"


# --- the guard for tenants -----------------------------------------------------------------------------------


def explain_guard(
    raw: JSON, rooms: Mapping[str, NodeRoom], live: LivePlan, namespace_labels: Mapping[str, str]
) -> str:
    """Return sentences about the chart's guard for tenants (docs/how-to/isolate-tenants.md); empty if it does not concern the pod."""
    asks, admitted = pod_requests(raw), find_admitted(namespace_labels)
    required = {
        *texts(part(raw, "spec", "nodeSelector")),
        *(row[0] for term in node_terms(raw) for row in term),
    }
    if admitted is None or not asks or text(raw, "spec", "nodeName") or LABEL_MODE not in required:
        return ""
    guard = describe_guard(text(raw, "metadata", "namespace"), namespace_labels)
    sentences = [guard[:1].upper() + guard[1:]]
    modes: dict[str, set[str]] = {}
    for name in sorted(rooms):
        becomes = live.plan.afterwards.find_node(name)
        labels = (live.snapshot.nodes[name].labels, *(() if becomes is None else becomes.labels))
        if found := {one[LABEL_MODE] for one in labels if one.get(LABEL_MODE) in admitted}:
            modes[name] = found
    if admitted and not modes:
        sentences.append(
            f"No node has mode {' or '.join(admitted)}, and none will under the existing policies"
        )
    lacking: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, found in modes.items():
        absent = sorted(asks.keys() - rooms[name].names)
        if absent:
            lacking[", ".join(absent), " or ".join(sorted(found))].append(name)
    for (resources, mode), nodes in sorted(lacking.items()):
        verb = "does" if len(nodes) == 1 else "do"
        sentences.append(f"{some(nodes)} (mode {mode}) {verb} not advertise {resources}")
    return ". ".join(sentences)

"""Which nodes a pod may go to, by its own rules about nodes and by their taints, as the scheduler filters them. Pure.

From core/v1 of Kubernetes 1.36: NodeAffinity (component-helpers v0.36.3, nodeaffinity.go) and Toleration (k8s.io/api
v0.36.3, core/v1/toleration.go). The kubelet's conditions and cordons are taints too, and are told apart from them.
"""

from collections.abc import Iterator, Mapping, Sequence

from gpusharing.api.names import TAINT_UNPROVEN
from gpusharing.api.selectors import holds, parse_int
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, part, section, strings, text, texts

_NODE_AFFINITY = "requiredDuringSchedulingIgnoredDuringExecution"
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
    "spec.affinity.podAffinity": ("affinity", "podAffinity", _NODE_AFFINITY),
    "spec.affinity.podAntiAffinity": ("affinity", "podAntiAffinity", _NODE_AFFINITY),
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
    affinity = part(spec, "affinity", "nodeAffinity", _NODE_AFFINITY)
    fields = {"metadata.name": text(node, "metadata", "name")}
    if affinity is not None and (why := _outside(entries(affinity, "nodeSelectorTerms"), labels, fields)):
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


# --- affinity ------------------------------------------------------------------------------------------------


def _outside(terms: Sequence[JSON], labels: Mapping[str, str], fields: Mapping[str, str]) -> str:
    """Return what the terms require of a node that matches none of them; empty if it matches one. A term without any
    requirement matches no node, and neither does an empty list of terms."""
    wanted = []
    for term in terms:
        missing = list(_missing(term, labels, fields))
        if not missing and _requirements(term):
            return ""
        wanted.append(missing[0] if missing else "something that no node has")
    return " or ".join(dict.fromkeys(wanted)) or "something that no node has"


def _requirements(term: JSON) -> list[JSON]:
    return [*entries(term, "matchExpressions"), *entries(term, "matchFields")]


def _missing(term: JSON, labels: Mapping[str, str], fields: Mapping[str, str]) -> Iterator[str]:
    """The requirements of a term that the node does not meet."""
    for rows, known in ((entries(term, "matchExpressions"), labels), (entries(term, "matchFields"), fields)):
        for row in rows:
            if not _meets(row, known):
                values = ",".join(strings(row.get("values")))
                yield " ".join(filter(None, (text(row, "key"), text(row, "operator"), values)))


def _meets(row: JSON, known: Mapping[str, str]) -> bool:
    """Whether a row matches. The API server refuses other operators, and for the scheduler they fail."""
    operator = text(row, "operator")
    return operator in _OPERATORS and holds(known, (text(row, "key"), operator, strings(row.get("values"))))


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

"""Could this pod start there? The drain, `plan`, `why` and `free` ask `find_obstacles`, and nothing else decides it.

Cordons, conditions of the node, devices that other pods hold, and rules about other pods and volumes are left out.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from enum import StrEnum
from functools import cached_property

from gpusharing.api.names import LABEL_MIG_STRATEGY, RESOURCE_GPU, RESOURCE_MIG_PREFIX, is_gpu_resource
from gpusharing.api.selectors import FIELD, OPERATORS, Row, holds
from gpusharing.planning.drain.pods import gpu_groups
from gpusharing.planning.snapshot.podviews import PodView, Taint, Toleration
from gpusharing.planning.vocabulary.values import value

KAI = frozenset({"kai-scheduler", "runai-scheduler"})
"""The usual names of KAI-Scheduler and of Run:ai's edition of it in spec.schedulerName."""
LABEL_KAI_MIG = "node-role.kubernetes.io/mig-enabled"
"""The label by which KAI-Scheduler knows a node with MIG; without it, only allocatable MIG resources tell."""
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
"""What Go's strconv.ParseBool reads as true."""


class Kind(StrEnum):
    COUNT = "too few devices"
    LABELS = "labels of the node"
    TAINT = "a taint"
    SHARES = "several shares for one container"
    KAI = "KAI-Scheduler"


@value
class Obstacle:
    """Why a pod could not start on a node."""

    kind: Kind
    text: str
    """A clause for people."""
    unmet: tuple[Row, ...] = ()
    """Of the kind LABELS: the requirements that the node does not meet."""


@value
class Needs:
    """What a pod requires of a node. Two pods with equal needs could start on the same nodes."""

    devices: tuple[tuple[str, int], ...]
    """How many devices of each GPU resource one node must have, sorted by name. A fraction counts as a whole GPU."""
    per_container: tuple[tuple[str, int], ...] = ()
    """The most that one container requests of each."""
    selector: tuple[tuple[str, str], ...] = ()
    terms: tuple[tuple[Row, ...], ...] = ()
    """The terms of its required node affinity, of which a node must match at least one; empty if it has none."""
    tolerations: tuple[Toleration, ...] = ()
    fraction: bool = False
    """Whether KAI-Scheduler gives it a fraction of its devices."""
    kai: bool = False
    """Whether KAI-Scheduler chooses its node."""


def needs_of(pod: PodView) -> Needs:
    devices = tuple(sorted((name, n) for name, n in pod.resources.items() if n > 0 and is_gpu_resource(name)))
    gpus = 0 if devices else pod.fractions or len(gpu_groups(pod.labels))
    return Needs(
        devices or (((RESOURCE_GPU, gpus),) if gpus else ()),
        tuple(sorted(pod.per_container.items())),
        tuple(sorted(pod.node_selector.items())),
        pod.node_terms,
        pod.tolerations,
        fraction=gpus > 0,
        kai=gpus > 0 or pod.scheduler in KAI,
    )


@value(eq=False, slots=False)  # no slots, because `labels` is a cached property
class Offer:
    """What a node has for new pods, now or after the changes."""

    node: str
    devices: Mapping[str, int]
    """How many devices it advertises, by resource name."""
    limited: Mapping[str, str] = field(default_factory=dict)
    """The resources of which a container is refused more than one share, and what says so."""
    taints: tuple[Taint, ...] = ()
    """The taints that exclude pods until somebody removes them."""
    divided: bool = False
    """Whether its nvidia.com/gpu are MIG devices (strategy single)."""
    find_labels: Callable[[], tuple[Mapping[str, str], ...]] = tuple

    @cached_property
    def labels(self) -> tuple[Mapping[str, str], ...]:
        """The labels of the node, including its name as a field (FIELD).

        If there are several sets, it will have one of them. Empty if they are unknown: no rule about labels is then an
        obstacle.
        """
        return self.find_labels()


def could_start(needs: Needs, offer: Offer) -> bool:
    return next(find_obstacles(needs, offer), None) is None


def find_obstacles(needs: Needs, offer: Offer) -> Iterator[Obstacle]:
    """Yield everything that would keep the pod from starting on the node, the cheapest to compute first."""
    if short := [f"{count} {name}" for name, count in needs.devices if offer.devices.get(name, 0) < count]:
        yield Obstacle(Kind.COUNT, f"the node does not have {', '.join(short)}")
    yield from _broken_rules(needs, offer)
    for taint in offer.taints:
        if not any(one.covers(taint) for one in needs.tolerations):
            yield Obstacle(Kind.TAINT, f"the pod does not tolerate the taint {taint.text}")
    # k8s-device-plugin v0.20.0, internal/rm/rm.go: the kubelet asks for each container and resource by itself.
    for name, count in needs.per_container:
        if count > 1 and name in offer.limited:
            why = f"a container requests {count} {name}, but {offer.limited[name]}; request 1 in each container"
            yield Obstacle(Kind.SHARES, why)
    if needs.kai and (why := _find_kai_rule(needs, offer)):
        yield Obstacle(Kind.KAI, why)


def _broken_rules(needs: Needs, offer: Offer) -> Iterator[Obstacle]:
    first: list[Obstacle] = []
    for labels in offer.labels:
        unmet = [(key, "In", (wanted,)) for key, wanted in needs.selector if labels.get(key) != wanted]
        found = []
        if unmet:
            key, _, (wanted,) = unmet[0]
            found.append(Obstacle(Kind.LABELS, f"the pod's spec.nodeSelector requires {key}={wanted}", tuple(unmet)))
        # component-helpers v0.36.3, nodeaffinity.go: a term with an unknown operator matches no node.
        missing = [[row for row in term if row[1] not in OPERATORS or not holds(labels, row)] for term in needs.terms]
        if missing and all(missing):
            wants = " or ".join(dict.fromkeys(_describe_row(rows[0]) for rows in missing))
            rows = tuple(row for term in missing for row in term)
            found.append(Obstacle(Kind.LABELS, f"the pod's spec.affinity.nodeAffinity requires {wants}", rows))
        if not found:
            return
        first = first or found
    yield from first


def _describe_row(row: Row) -> str:
    key, operator, values = row
    if key.startswith(FIELD) and operator == "In" and not values:
        return "something that no node has"
    return " ".join(filter(None, (key.removeprefix(FIELD), operator, ",".join(values))))


def _find_kai_rule(needs: Needs, offer: Offer) -> str:
    """Return why KAI-Scheduler does not place the pod on the node.

    kai-scheduler/KAI-Scheduler v0.17.0, pkg/scheduler/api/node_info/node_info.go, PredicateByNodeResourcesType and
    IsMIGEnabled. With strategy single and without the label it assigns a fraction that sees no device
    (NVIDIA/KAI-Scheduler#506).
    """
    labels = offer.labels[0] if offer.labels else {}
    has_mig = any(name.startswith(RESOURCE_MIG_PREFIX) and count > 0 for name, count in offer.devices.items())
    asks_mig = any(name.startswith(RESOURCE_MIG_PREFIX) for name, _ in needs.devices)
    written = labels.get(LABEL_KAI_MIG)
    is_mig = has_mig if written is None else written in _TRUE
    assumed = "mixed" if has_mig and not offer.labels else ""
    strategy = labels.get(LABEL_MIG_STRATEGY, assumed) if is_mig else ""
    asks_gpus = needs.fraction or any(name == RESOURCE_GPU for name, _ in needs.devices)
    if needs.fraction and (offer.divided or strategy == "single"):
        label = "" if is_mig else f", which it recognizes only by the label {LABEL_KAI_MIG}=true"
        return f"KAI-Scheduler gives no fractions of the MIG devices of a node with MIG strategy single{label}"
    # To KAI-Scheduler, a pod that requests only nvidia.com/gpu.shared requests no GPU (IsCPUOnlyRequest).
    if strategy == "mixed" and asks_gpus and not asks_mig:
        return "KAI-Scheduler places only pods that request MIG devices on a node that has some (MIG strategy mixed)"
    if asks_mig and written is not None and not is_mig:
        return (
            f"KAI-Scheduler places no pod that requests MIG devices on a node with the label {LABEL_KAI_MIG}={written}"
        )
    return ""

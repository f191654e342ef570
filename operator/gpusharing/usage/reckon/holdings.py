"""Who holds which GPU resources, and what is free: counted from raw Nodes and Pods as the scheduler counts. Pure.

Terms: docs/design/glossary.md#fence.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from gpusharing.api.names import (
    ANNOTATION_FENCE,
    LABEL_POLICY,
    LABEL_SHARING_STRATEGY,
    TAINT_UNPROVEN,
)
from gpusharing.kube.client import JSON
from gpusharing.kube.podrequests import pod_requests
from gpusharing.kube.quantity import gpu_counts
from gpusharing.kube.raw import entries, has_condition, part, section, text, texts
from gpusharing.kube.taints import KEEPS_OUT, TRANSIENT_TAINTS, taint_text
from gpusharing.planning.gpus.capacity import remaining

NO_POLICY = "no policy"
ENDED = ("Succeeded", "Failed")
"""The phases of pods that hold nothing any more."""


@dataclass(frozen=True, slots=True)
class NodeStock:
    """The GPU resources of one node, and whether new pods may use them."""

    name: str
    """Name of the node."""
    policy: str = ""
    """The policy that owns the node; empty if none does."""
    allocatable: Mapping[str, int] | None = None
    """Allocatable devices by resource name, or None if the Node could not be read."""
    closed: str = ""
    """Why the node accepts no new pods now, as a phrase; empty if it does."""
    taints: tuple[str, ...] = ()
    """The lasting taints that exclude pods which do not tolerate them."""
    one_each: bool = False
    """Whether the device plugin refuses a container that requests more than one device, as it does under MPS."""
    allocated: Mapping[str, int] | None = None
    """Devices that pods hold according to the node's agent; None if that was not read or is unknown."""
    simulated: bool = False
    """Whether its agent reports SIMULATED GPUs; False also if that was not read."""


@dataclass(frozen=True, slots=True)
class GPUPod:
    """A pod that requests GPU resources and has not ended."""

    namespace: str
    """Namespace of the pod."""
    name: str
    """Name of the pod."""
    node: str
    """Name of the node that the pod is bound to; empty while it waits for one."""
    requests: Mapping[str, int]
    """The devices that the pod holds or waits for, by resource name."""
    created: str
    """When the pod was created, as the API server writes it."""
    message: str = ""
    """The scheduler's message about a pod that waits; empty if there is none."""

    @property
    def ref(self) -> str:
        """`namespace/name` of the pod."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Inventory:
    """The nodes and the pods that an answer of `free` is computed from."""

    stocks: Mapping[str, NodeStock]
    """The nodes, by name."""
    pods: Sequence[GPUPod]
    """The pods that hold or wait for GPU resources, sorted by namespace and name."""
    complete: bool
    """Whether `pods` covers the pods of all namespaces."""
    nodes_known: bool = True
    """Whether Nodes could be read. Otherwise pods are counted whatever node they are on; else only those on nodes in
    `stocks`, because a pod whose Node is gone holds nothing."""
    chosen: bool = False
    """Whether the user chose some nodes by their labels. Then a pod that waits belongs to the answer only if such a
    node advertises what it requests."""
    namespace: str = ""
    """The namespace that the answer is about; empty for all."""
    blind: bool = False
    """Whether no pods at all could be read."""

    @property
    def subjects(self) -> list[GPUPod]:
        """The pods of `namespace` that the answer is about."""
        advertised = {name for stock in self.stocks.values() for name in stock.allocatable or ()}
        return [
            pod
            for pod in self.pods
            if self.is_own(pod)
            and (self.counts(pod) if pod.node else not self.chosen or not advertised.isdisjoint(pod.requests))
        ]

    def is_own(self, pod: GPUPod) -> bool:
        """Whether a pod is in the namespace that the answer is about."""
        return self.namespace in ("", pod.namespace)

    def counts(self, pod: GPUPod) -> bool:
        """Whether the node of a pod, which must have one, belongs to the answer."""
        return pod.node in self.stocks or not self.nodes_known


@dataclass(slots=True)
class FreeRow:
    """One row of an answer. A number is None if it is unknown."""

    resource: str
    """The resource name."""
    node: str = ""
    """Name of the node, if the row is about one."""
    policy: str = ""
    """Name of the policy, or NO_POLICY, if the row is about one."""
    namespace: str = ""
    """The namespace, if the row is about one."""
    pod: str = ""
    """`namespace/name` of the pod, if the row is about one."""
    pods: int = 0
    """How many pods hold some of the devices."""
    requested: int | None = 0
    """How many devices the pods of the answer hold."""
    others: int | None = 0
    """How many devices pods of other namespaces hold."""
    allocatable: int | None = 0
    """How many devices are allocatable."""
    free: int | None = 0
    """How many of them no pod holds, on nodes that accept pods."""
    largest: int | None = 0
    """The most devices that one container can request and still find free on one node."""
    closed: int | None = 0
    """How many devices no pod holds on nodes that accept no pods now."""
    waiting: int = 0
    """How many devices pods without a node request."""
    state: str = ""
    """Why the node of the row accepts no pods; empty if it does or if the row is not about a node."""
    taints: str = ""
    """The lasting taints of the node of the row, separated by commas."""


COLUMNS: Mapping[str, tuple[str, ...]] = {
    "resource": ("resource", "requested", "others", "allocatable", "free", "largest", "closed", "waiting"),
    "node": ("node", "policy", "resource", "requested", "others", "allocatable", "free", "closed", "state", "taints"),
    "policy": ("policy", "resource", "requested", "others", "allocatable", "free", "largest", "closed"),
    "namespace": ("namespace", "resource", "pods", "requested", "waiting"),
    "pod": ("pod", "node", "resource", "requested", "waiting"),
}  # fmt: skip
"""The fields of FreeRow that an answer shows, by what its rows are about."""
_NUMBERS = {each.name for each in fields(FreeRow) if "int" in str(each.type)}


def columns_of(inventory: Inventory, by: str) -> tuple[str, ...]:
    """Return the names of the fields that an answer shows, in order. `others` is left out unless the answer is about
    one namespace."""
    return tuple(name for name in COLUMNS[by] if inventory.namespace or name != "others")


def is_number(column: str) -> bool:
    """Whether a field of FreeRow is a number."""
    return column in _NUMBERS


def read_stock(raw: JSON) -> NodeStock:
    """Convert a raw Node. It is closed if it is cordoned, if it has our fence or our start-up taint, and if it is not
    Ready."""
    taints = entries(raw, "spec", "taints")
    labels = texts(part(raw, "metadata", "labels"))
    reasons = {
        "the operator is changing it": ANNOTATION_FENCE in section(raw, "metadata", "annotations"),
        "cordoned": part(raw, "spec", "unschedulable") is True,
        "its layout is not proven yet": any(text(taint, "key") == TAINT_UNPROVEN for taint in taints),
        "not Ready": not has_condition(raw, "Ready"),
    }
    return NodeStock(
        text(raw, "metadata", "name"),
        labels.get(LABEL_POLICY, ""),
        gpu_counts(part(raw, "status", "allocatable")),
        ", ".join(reason for reason, holds in reasons.items() if holds),
        tuple(
            taint_text(taint)
            for taint in taints
            if text(taint, "effect") in KEEPS_OUT and text(taint, "key") not in TRANSIENT_TAINTS
        ),
        labels.get(LABEL_SHARING_STRATEGY) == "mps",
    )


def read_gpunode(raw: JSON) -> NodeStock:
    """Convert a raw GPUNode, for users who may not read Nodes: it has the policy and what pods hold, but not what is
    allocatable."""
    allocated = part(raw, "status", "observed", "allocated")
    return NodeStock(
        text(raw, "metadata", "name"),
        text(raw, "status", "transition", "policy"),
        allocated=gpu_counts(allocated) if isinstance(allocated, dict) else None,
        simulated=part(raw, "status", "observed", "simulated") is True,
    )


def read_pod(raw: JSON) -> GPUPod | None:
    """Convert a raw Pod, or return None if it has ended or requests no GPU resource."""
    if text(raw, "status", "phase") in ENDED or not (requests := pod_requests(raw)):
        return None
    metadata, node = section(raw, "metadata"), text(raw, "spec", "nodeName")
    conditions = () if node else entries(raw, "status", "conditions")
    message = next((text(row, "message") for row in conditions if row.get("type") == "PodScheduled"), "")
    return GPUPod(
        text(metadata, "namespace"),
        text(metadata, "name"),
        node,
        requests,
        text(metadata, "creationTimestamp"),
        message,
    )


def count_rows(inventory: Inventory, by: str) -> list[FreeRow]:
    """Return the rows of an answer, sorted by their name and resource. `by` is a key of COLUMNS."""
    if by == "pod":
        return list(_of_pods(inventory.subjects))
    rows = _of_namespaces(inventory.subjects) if by == "namespace" else _of_nodes(inventory, by)
    return [rows[key] for key in sorted(rows)]


def _of_nodes(inventory: Inventory, by: str) -> dict[tuple[str, str], FreeRow]:
    """Return a row for each node or policy and each resource or, if `by` is `resource`, for each resource. The keys
    are the name of the node or policy, which is empty in the last case, and the resource."""
    rows: dict[tuple[str, str], FreeRow] = {}
    for stock, shares in share_nodes(inventory):
        node = stock.name if by == "node" else ""
        policy = "" if by == "resource" else stock.policy or NO_POLICY
        state, taints = (stock.closed, ",".join(stock.taints)) if node else ("", "")
        for name, share in shares.items():
            new = FreeRow(name, node, policy, state=state, taints=taints)
            _add(rows.setdefault((node or policy, name), new), stock, share)
    if by == "resource":
        for name, number in sum_requests(pod for pod in inventory.subjects if not pod.node).items():
            rows.setdefault(("", name), FreeRow(name)).waiting = number
    return rows


def _of_namespaces(pods: Iterable[GPUPod]) -> dict[tuple[str, str], FreeRow]:
    """Return a row for each namespace and each resource that its pods request. The keys are these two."""
    rows: dict[tuple[str, str], FreeRow] = {}
    for pod in pods:
        for row in _of_pods([pod]):
            total = rows.setdefault(
                (pod.namespace, row.resource), FreeRow(row.resource, namespace=pod.namespace)
            )
            total.pods += 1 if pod.node else 0
            total.requested = _sum(total.requested, row.requested)
            total.waiting += row.waiting
    return rows


def sum_requests(pods: Iterable[GPUPod]) -> Counter[str]:
    """Return what these pods request together, by resource name."""
    total: Counter[str] = Counter()
    for pod in pods:
        total.update(pod.requests)
    return total


def _of_pods(pods: Iterable[GPUPod]) -> Iterator[FreeRow]:
    """Yield a row for each pod and each resource that it requests, in the order of `pods`."""
    for pod in pods:
        for name, number in sorted(pod.requests.items()):
            held, waits = (number, 0) if pod.node else (0, number)
            yield FreeRow(name, node=pod.node, pod=pod.ref, requested=held, waiting=waits)


@dataclass(frozen=True, slots=True)
class NodeShare:
    """One resource of one node. A number is None if it is unknown."""

    own: int | None
    """How many devices the pods of the answer hold."""
    others: int | None
    """How many devices all other pods hold."""
    allocatable: int | None
    """How many devices are allocatable."""
    free: int | None
    """How many of these no pod holds, whether or not the node accepts pods."""


def share_nodes(inventory: Inventory) -> Iterator[tuple[NodeStock, dict[str, NodeShare]]]:
    """Yield every node that advertises GPU resources or on which pods hold some, sorted by name, with its shares by
    resource name."""
    pods: dict[str, list[GPUPod]] = {}
    for pod in inventory.pods:
        if pod.node and inventory.counts(pod):
            pods.setdefault(pod.node, []).append(pod)
    for name in sorted({*inventory.stocks, *pods}):
        stock = inventory.stocks.get(name, NodeStock(name))
        if shares := _shares(inventory, stock, pods.get(name, [])):
            yield stock, shares


def _shares(inventory: Inventory, stock: NodeStock, pods: Sequence[GPUPod]) -> dict[str, NodeShare]:
    """Return the shares of one node by resource name. `pods` are the pods on it. Where the pods of other namespaces
    could not be read, what the node's agent reports as allocated is used instead."""
    held = sum_requests(pods)
    own = sum_requests(pod for pod in pods if inventory.is_own(pod)) if inventory.namespace else held
    allocatable, listed = stock.allocatable or {}, stock.allocatable is not None
    known = inventory.complete or stock.allocated is not None
    total = held if inventory.complete else held | Counter(stock.allocated or {})
    free = remaining(allocatable, total)
    return {
        name: NodeShare(
            _if(not inventory.blind, own[name]),
            _if(known, total[name] - own[name]),
            _if(listed, allocatable.get(name, 0)),
            _if(known and listed, free.get(name, 0)),
        )
        for name in {**allocatable, **total}
    }


def _if(known: bool, number: int) -> int | None:
    """Return the number, or None if it is not known."""
    return number if known else None


def _add(row: FreeRow, stock: NodeStock, share: NodeShare) -> None:
    """Add the share of one node to a row. A sum with an unknown number becomes None."""
    row.requested = _sum(row.requested, share.own)
    row.others = _sum(row.others, share.others)
    row.allocatable = _sum(row.allocatable, share.allocatable)
    row.free = _sum(row.free, 0 if stock.closed else share.free)
    row.closed = _sum(row.closed, share.free if stock.closed else 0)
    largest = 0 if stock.closed else share.free
    if row.largest is not None:
        row.largest = (
            None if largest is None else max(row.largest, min(largest, 1) if stock.one_each else largest)
        )


def _sum(one: int | None, other: int | None) -> int | None:
    """Return the sum of two numbers, or None if one is unknown."""
    return None if one is None or other is None else one + other

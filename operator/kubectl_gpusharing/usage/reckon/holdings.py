"""Who holds which GPU resources, and what is free: counted from raw Nodes and Pods as the scheduler counts, and from
GPUNodes where these may not be read. Pure.

Terms: docs/design/glossary.md#fence.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpusharing.api import names
from gpusharing.kube.client import JSON
from gpusharing.kube.convert_pods import pod_view
from gpusharing.kube.podrequests import pod_requests
from gpusharing.kube.quantity import gpu_counts
from gpusharing.kube.raw import entries, has_condition, part, section, text, texts
from gpusharing.kube.taints import KEEPS_OUT, TRANSIENT_TAINTS, taint_text
from gpusharing.planning.drain.holders import gpu_groups, is_reservation
from gpusharing.planning.gpus.capacity import remaining

NO_POLICY = "no policy"
ENDED = ("Succeeded", "Failed")
"""The phases of pods that hold nothing any more."""
NUMBERS = ("pods", "requested", "others", "allocatable", "free", "largest", "closed", "waiting")
"""The columns with numbers: how many pods hold some of the devices; how many devices the pods of the answer hold, and
how many other pods hold; how many are allocatable; how many of these no pod holds, on nodes that accept pods; the most
of them that one container can request of one node; how many no pod holds on other nodes; and how many devices pods
without a node request."""
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "resource": ("resource", "requested", "others", "allocatable", "free", "largest", "closed", "waiting"),
    "node": ("node", "policy", "resource", "requested", "others", "allocatable", "free", "closed", "state", "taints"),
    "policy": ("policy", "resource", "requested", "others", "allocatable", "free", "largest", "closed"),
    "namespace": ("namespace", "resource", "pods", "requested", "waiting"),
    "pod": ("pod", "node", "resource", "requested", "waiting"),
}  # fmt: skip
"""The columns of an answer, by what its rows are about. `state` says why a node accepts no pods, and is empty if it
does; `taints` are its lasting taints."""
Row = dict[str, Any]
"""One row of an answer, by column. A number is None if it is unknown."""


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
    one_each: bool | None = False
    """Whether the device plugin refuses a container that requests more than one device, as it does under MPS, and with
    time-slicing if the policy says so; None if the policy that says it was not read."""
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
    requests: Counter[str]
    """The devices that the pod holds or waits for, by resource name."""
    created: str
    """When the pod was created, as the API server writes it."""
    message: str
    """The scheduler's message about a pod that waits; empty if there is none."""
    reserves: bool
    """Whether KAI-Scheduler reserves a GPU with this pod for other pods, which request fractions of it."""

    @property
    def ref(self) -> str:
        """`namespace/name` of the pod."""
        return f"{self.namespace}/{self.name}"


@dataclass(slots=True)
class Inventory:
    """The nodes and the pods that could be read, and which of them the answer is about."""

    stocks: dict[str, NodeStock] = field(default_factory=dict)
    """The nodes, by name."""
    pods: list[GPUPod] = field(default_factory=list)
    """The pods that hold or wait for GPU resources."""
    agents: list[JSON] = field(default_factory=list)
    """The raw pods of our agent."""
    with_claims: int = 0
    """How many pods have ResourceClaims."""
    namespace: str = ""
    """The namespace that the answer is about; empty for all."""
    chosen: bool = False
    """Whether the user chose some nodes by their labels. Then a pod that waits belongs to the answer only if such a
    node advertises what it requests."""
    no_nodes: str = ""
    """Why Nodes could not be read; empty if they were. If they were, a pod on another node than those of `stocks` is
    not counted, because a pod whose Node is gone holds nothing."""
    no_pods: str = ""
    """Why the pods of all namespaces could not be read; empty if they were."""
    blind: bool = False
    """Whether no pods at all could be read."""

    @property
    def subjects(self) -> list[GPUPod]:
        """The pods that the answer is about, sorted by namespace and name: those in its namespace that are bound to one
        of its nodes or wait for a node. If the user chose nodes, a pod that waits is only included if one of them
        advertises a resource that the pod requests."""
        advertised = {name for stock in self.stocks.values() for name in stock.allocatable or ()}

        def belongs(pod: GPUPod) -> bool:
            """Whether a pod of any namespace is bound to a node of the answer, or may wait for one."""
            if pod.node:
                return self.counts(pod)
            return not self.chosen or not advertised.isdisjoint(pod.requests)

        return sorted(filter(belongs, filter(self.is_own, self.pods)), key=lambda pod: pod.ref)

    def is_own(self, pod: GPUPod) -> bool:
        """Whether a pod is in the namespace that the answer is about; always True if it is about all."""
        return self.namespace in ("", pod.namespace)

    def counts(self, pod: GPUPod) -> bool:
        """Whether the node of a pod, which must have one, belongs to the answer. Every node does if Nodes could not be
        read."""
        return pod.node in self.stocks or bool(self.no_nodes)

    def columns(self, by: str) -> tuple[str, ...]:
        """Return the columns of an answer. `by` is a key of COLUMNS. The column `others` is left out unless the answer
        is about one namespace."""
        return tuple(name for name in COLUMNS[by] if self.namespace or name != "others")

    @property
    def closed(self) -> Iterator[tuple[NodeStock, dict[str, int]]]:
        """The nodes that accept no pods but have devices that no pod holds, sorted by name. With each come the numbers
        of these devices by resource name, without those that are 0 or unknown."""
        for stock, shares in share_nodes(self):
            unused = {name: share[3] for name, share in shares.items() if share[3]}
            if stock.closed and unused:
                yield stock, unused


def read_stock(raw: JSON) -> NodeStock:
    """Convert a raw Node. It is closed if it is cordoned, has our fence or our start-up taint, or is not Ready; all of
    these reasons are named. Only allocatable GPU resources are kept. Of its taints, only the lasting ones that exclude
    pods are kept. `one_each` is True if its labels say that GPUs are shared by MPS, and None if they say that GPUs are
    shared by time-slicing and name a policy."""
    taints, labels = entries(raw, "spec", "taints"), texts(part(raw, "metadata", "labels"))
    reasons = {
        "the operator is changing it": names.ANNOTATION_FENCE in section(raw, "metadata", "annotations"),
        "cordoned": part(raw, "spec", "unschedulable") is True,
        "its layout is not proven yet": any(text(taint, "key") == names.TAINT_UNPROVEN for taint in taints),
        "not Ready": not has_condition(raw, "Ready"),
    }
    lasting = [taint for taint in taints if text(taint, "key") not in TRANSIENT_TAINTS]
    sharing, policy = labels.get(names.LABEL_SHARING_STRATEGY), labels.get(names.LABEL_POLICY, "")
    return NodeStock(
        text(raw, "metadata", "name"),
        policy,
        gpu_counts(part(raw, "status", "allocatable")),
        ", ".join(reason for reason, holds in reasons.items() if holds),
        tuple(taint_text(taint) for taint in lasting if text(taint, "effect") in KEEPS_OUT),
        None if sharing == "time-slicing" and policy else sharing == "mps",
    )


def read_gpunode(raw: JSON) -> NodeStock:
    """Convert a raw GPUNode, for users who may not read Nodes or all pods. It has the policy of its last transition,
    what pods hold according to the agent (None if the report does not say that), and whether the GPUs are SIMULATED,
    but not what is allocatable, whether the node is closed, or its taints."""
    observed = section(raw, "status", "observed")
    return NodeStock(
        text(raw, "metadata", "name"),
        text(raw, "status", "transition", "policy"),
        allocated=gpu_counts(observed["allocated"]) if isinstance(observed.get("allocated"), dict) else None,
        simulated=observed.get("simulated") is True,
    )


def read_pod(raw: JSON) -> GPUPod | None:
    """Convert a raw Pod, or return None if it has ended or requests no GPU resource (`pod_requests`). The scheduler's
    message is kept only if the pod has no node."""
    if text(raw, "status", "phase") in ENDED or not (requests := pod_requests(raw)):
        return None
    metadata, node = section(raw, "metadata"), text(raw, "spec", "nodeName")
    conditions = () if node else entries(raw, "status", "conditions")
    message = next((text(row, "message") for row in conditions if row.get("type") == "PodScheduled"), "")
    namespace, name, created = (text(metadata, key) for key in ("namespace", "name", "creationTimestamp"))
    of_kai = gpu_groups(texts(metadata.get("labels"))) and is_reservation(pod_view(raw, {}))
    return GPUPod(namespace, name, node, requests, created, message, bool(of_kai))


Share = tuple[int | None, int | None, int | None, int | None]
"""One resource of one node: how many devices the pods of the answer hold, how many all other pods hold, how many are
allocatable, and how many of these no pod holds, whether or not the node accepts pods. Each is None if it is unknown."""


def share_nodes(inventory: Inventory) -> Iterator[tuple[NodeStock, dict[str, Share]]]:
    """Yield every node that advertises GPU resources or on which pods hold some, sorted by name, with its shares by
    resource name. If the pods of all namespaces could not be read, what pods hold on a node is, for each resource, what
    its agent reports as allocated, or what the pods that were read hold there if that is more. If Nodes could be read,
    pods on nodes that are not in `stocks` are ignored."""
    held, own = defaultdict[str, Counter[str]](Counter), defaultdict[str, Counter[str]](Counter)
    for pod in inventory.pods:
        if pod.node and inventory.counts(pod):
            held[pod.node].update(pod.requests)
            own[pod.node].update(pod.requests if inventory.is_own(pod) else ())
    for name in sorted({*inventory.stocks, *held}):
        stock, total = inventory.stocks.get(name, NodeStock(name)), held[name]
        total = total | Counter(stock.allocated or {}) if inventory.no_pods else total
        if shares := _shares(inventory, stock, own[name], total):
            yield stock, shares


def _shares(
    inventory: Inventory, stock: NodeStock, own: Counter[str], total: Counter[str]
) -> dict[str, Share]:
    """Return the shares of one node by resource name. `own` is what pods of the answer hold, `total` what all hold.
    What pods of the answer hold is None if no pods could be read, and what others hold if neither all pods nor the
    agent's report could be read. What is allocatable is None if the Node could not be read. What is free is None in the
    last two cases."""
    allocatable, listed = stock.allocatable or {}, stock.allocatable is not None
    known = not inventory.no_pods or stock.allocated is not None
    free = remaining(allocatable, total)
    return {
        name: (
            None if inventory.blind else own[name],
            total[name] - own[name] if known else None,
            allocatable.get(name, 0) if listed else None,
            free.get(name, 0) if known and listed else None,
        )
        for name in {**allocatable, **total}
    }


def count_rows(inventory: Inventory, by: str) -> list[Row]:
    """Return the rows of the table by `by`, a key of COLUMNS, with the columns of `Inventory.columns`. They are sorted
    by the object that the row is for (such as a node or a namespace), then by resource. Rows by node or policy come
    from `share_nodes` alone, rows by namespace or pod from `Inventory.subjects` alone, and rows by resource from both:
    what pods without a node wait for comes from the subjects, the rest from `share_nodes`. Nodes without a policy are
    counted under NO_POLICY."""
    rows: dict[tuple[str, str], Row] = {}
    if by in ("resource", "node", "policy"):
        _count_nodes(inventory, by, rows)
    for pod in inventory.subjects if by in ("resource", "namespace", "pod") else ():
        words = {"namespace": pod.namespace, "pod": pod.ref, "node": pod.node}
        for name, number in pod.requests.items():
            row = _row(rows, by, name, words)
            row["pods"] += bool(pod.node)
            if not pod.node:
                row["waiting"] += number
            elif by != "resource":  # by resource, they are counted with the nodes
                row["requested"] += number
    columns = inventory.columns(by)
    return [{name: row[name] for name in columns} for _, row in sorted(rows.items())]


def _row(rows: dict[tuple[str, str], Row], by: str, resource: str, words: Mapping[str, str]) -> Row:
    """Return the row of `rows` for a resource of the object that `words` names under the key `by`. If there is none,
    add one with the columns in `words` and the number 0 in every column of NUMBERS."""
    new = {**dict.fromkeys(NUMBERS, 0), **words, "resource": resource}
    return rows.setdefault((words.get(by, ""), resource), new)


def _count_nodes(inventory: Inventory, by: str, rows: dict[tuple[str, str], Row]) -> None:
    """Add the shares of all nodes (`share_nodes`) to `rows`, to the row of their resource, node or policy, as `by`
    says. Nodes without a policy count under NO_POLICY. The columns about a node (`state`, `taints`) are those of the
    first node of the row."""
    for stock, shares in share_nodes(inventory):
        words = {"node": stock.name, "policy": stock.policy or NO_POLICY}
        words |= {"state": stock.closed, "taints": ",".join(stock.taints)}
        for name, share in shares.items():
            _add(_row(rows, by, name, words), stock, share)


def _add(row: Row, stock: NodeStock, share: Share) -> None:
    """Add one resource of one node to a row. What is free on a node that is closed is added to `closed`, otherwise to
    `free`. `largest` becomes what is free on this node if that is more, but counts at most 1 if the node is `one_each`.
    A sum or maximum with an unknown number becomes None."""
    own, others, allocatable, free = share
    opened, closed = (0, free) if stock.closed else (free, 0)
    sums = {"requested": own, "others": others, "allocatable": allocatable, "free": opened, "closed": closed}
    for column, number in sums.items():
        row[column] = None if None in (row[column], number) else row[column] + number
    most = opened if opened is None or not stock.one_each else min(opened, 1)
    row["largest"] = None if None in (row["largest"], most) else max(row["largest"], most)

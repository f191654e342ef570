"""What do pods hold now, and what is free?

Devices are counted from raw Nodes and Pods as the scheduler counts, and from GPUNodes where these may not be read.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from gpusharing.api import names
from gpusharing.kube.client import JSON
from gpusharing.kube.convert import lasting_taints
from gpusharing.kube.pods import pod_requests, pod_view
from gpusharing.kube.raw import entries, gpu_counts, has_condition, part, section, text, texts
from gpusharing.planning.drain.placement import Needs, Offer, could_start
from gpusharing.planning.drain.pods import gpu_groups, is_reservation
from gpusharing.planning.gpus.cards import remaining
from gpusharing.planning.vocabulary.lengths import counted, some

NO_POLICY = "no policy"
ENDED = ("Succeeded", "Failed")
"""The phases of pods that hold nothing any more."""
NUMBERS = ("pods", "requested", "others", "allocatable", "free", "largest", "closed", "waiting")
"""The columns with numbers. `free` is what no pod holds on nodes that accept pods, `largest` the most of it that one
container can request of one node, and `closed` what no pod holds on other nodes."""
OF_NODES = ("allocatable", "free", "largest", "closed")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "resource": ("resource", "device", "requested", "others", "allocatable", "free", "largest", "closed", "waiting"),
    "node": ("node", "policy", "resource", "requested", "others", "allocatable", "free", "closed", "state", "taints"),
    "policy": ("policy", "resource", "device", "requested", "others", "allocatable", "free", "largest", "closed"),
    "namespace": ("namespace", "resource", "device", "pods", "requested", "waiting"),
    "pod": ("pod", "node", "resource", "requested", "waiting"),
}  # fmt: skip
"""The columns of an answer, by what its rows are about; `state` says why a node accepts no pods. One resource name may
stand for whole GPUs, shares and instances of several models. They are never added: `device` says which it is."""
ANY = "any"
"""The `device` of requests that wait and may get one of several."""
USED = ("gpu", "profile", "memoryBytes", "deviceMemoryBytes", "smRatio")
"""The columns about what a pod uses of a device; None if unknown, as `smRatio` (0 to 1) on MIG devices."""
Row = dict[str, Any]
"""One row of an answer, by column. A number is None if it is unknown."""
Count = TypeVar("Count", int, int | None)


@dataclass(frozen=True, slots=True)
class NodeStock:
    """The GPU resources of one node, and whether new pods may use them."""

    name: str
    policy: str = ""
    offer: Offer | None = None
    """What it has for new pods, without its labels; None if the Node could not be read."""
    closed: str = ""
    """Why the node accepts no new pods now; empty if it does."""
    sliced_by: str = ""
    """The policy that says how many shares a container may request; empty if none does, or once it was read."""
    allocated: Mapping[str, int] | None = None
    """Devices that pods hold according to the node's agent; None if that is unknown or was not read."""
    simulated: bool = False
    devices: Mapping[str, str] = field(default_factory=dict)
    """What one device is, by resource, such as `1/4 H100-80GB-HBM3`; those that no label tells are missing."""

    @property
    def allocatable(self) -> Mapping[str, int] | None:
        return self.offer.devices if self.offer is not None else None

    @property
    def taints(self) -> tuple[str, ...]:
        return tuple(taint.text for taint in self.offer.taints) if self.offer is not None else ()

    def sliced(self, *, strict: bool) -> "NodeStock":
        """Return the stock of a time-sliced node whose policy was read; `strict` if it allows one share each."""
        limit = f"policy {self.sliced_by} sets failRequestsGreaterThanOne"
        offer = self.offer
        if strict and offer is not None:
            offer = replace(offer, limited=dict.fromkeys(offer.devices, limit))
        return replace(self, offer=offer, sliced_by="")

    def named(self, counts: Mapping[str, Count]) -> Mapping[str, Count]:
        """Return the counts by resource and, where it is known, what one device is."""
        return {f"{name} ({self.devices[name]})" if name in self.devices else name: n for name, n in counts.items()}

    def largest(self, resource: str, free: int | None) -> int | None:
        """Return the most of the `free` devices that one container can request, if the pod tolerates the taints."""
        if free is None or self.offer is None:
            return free
        offer = replace(self.offer, devices={resource: free}, taints=())
        sizes = (Needs(((resource, n),), ((resource, n),)) for n in (free, 1) if n)
        return next((needs.devices[0][1] for needs in sizes if could_start(needs, offer)), 0)


@dataclass(frozen=True, slots=True)
class GPUPod:
    namespace: str
    name: str
    node: str
    """The node that the pod is bound to; empty while it waits for one."""
    requests: Counter[str]
    created: str
    message: str
    """The scheduler's message about a pod that waits."""
    reserves: bool
    """Whether KAI-Scheduler reserves a GPU with this pod for other pods, which request fractions of it."""

    @property
    def ref(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(slots=True)
class Inventory:
    """The nodes and the pods that could be read, and which of them the answer is about."""

    by: str = "resource"
    """What the rows of the answer are about, a key of COLUMNS."""
    stocks: dict[str, NodeStock] = field(default_factory=dict)
    pods: list[GPUPod] = field(default_factory=list)
    agents: list[JSON] = field(default_factory=list)
    with_claims: int = 0
    namespace: str = ""
    chosen: bool = False
    """Whether the user chose nodes by labels; only pods that request what these advertise are then waiting for them."""
    no_nodes: str = ""
    """Why Nodes could not be read; if they were, a pod on a node outside `stocks` holds nothing: its Node is gone."""
    no_pods: str = ""
    """Why the pods of all namespaces could not be read; empty if they were."""
    blind: bool = False
    """Whether no pods at all could be read."""
    used: Mapping[tuple[str, str], Mapping[str, Row]] | None = None
    """The columns of USED by namespace and name of the pod, then by UUID of the device; None if not requested. They
    have `resource` too, if it is known as which the pod holds the device."""
    sources: tuple[str, ...] = ()
    usage_unknown: tuple[str, ...] = ()
    """Sentences about what is missing in `used`, and why."""
    simulated_use: frozenset[str] = frozenset()
    """Nodes whose GPUs are SIMULATED by the series of `used`; "" for one that Prometheus does not name."""

    @property
    def subjects(self) -> list[GPUPod]:
        advertised = {name for stock in self.stocks.values() for name in stock.allocatable or ()}
        found = (
            pod
            for pod in filter(self.is_own, self.pods)
            if (self.counts(pod) if pod.node else not self.chosen or not advertised.isdisjoint(pod.requests))
        )
        return sorted(found, key=lambda pod: pod.ref)

    def is_own(self, pod: GPUPod) -> bool:
        return self.namespace in ("", pod.namespace)

    def counts(self, pod: GPUPod) -> bool:
        """Whether the node of a pod, which must have one, belongs to the answer."""
        return pod.node in self.stocks or bool(self.no_nodes)

    def device(self, pod: GPUPod, resource: str) -> str | None:
        """Return what one device is that the pod holds or waits for; None if that is unknown."""
        if pod.node:
            return self.stocks[pod.node].devices.get(resource) if pod.node in self.stocks else None
        known = {stock.devices.get(resource) for stock in self.stocks.values() if resource in (stock.allocatable or ())}
        return ANY if len(known) > 1 else next(iter(known), None)

    @property
    def counted_columns(self) -> tuple[str, ...]:
        return tuple(name for name in COLUMNS[self.by] if self.namespace or name != "others")

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.counted_columns, *(() if self.used is None else USED))

    @property
    def closed(self) -> Iterator[tuple[NodeStock, dict[str, int | None]]]:
        """Nodes that accept no pods, with what no pod holds there; None is unknown."""
        for stock, shares in share_nodes(self):
            unused = {name: share[3] for name, share in shares.items() if share[3] != 0}
            if stock.closed and unused:
                yield stock, unused

    @property
    def waiting(self) -> list[GPUPod]:
        return sorted((pod for pod in self.subjects if not pod.node), key=lambda pod: pod.created)

    @property
    def simulated(self) -> list[str]:
        names = {name for name, stock in self.stocks.items() if stock.simulated}
        return sorted(names | self.simulated_use)

    @property
    def unknown(self) -> list[str]:
        """Sentences about what is unknown, and why; empty if the answer is complete."""
        sentences = []
        if self.no_nodes:
            sentences.append(f"what is allocatable and free is unknown, because {self.no_nodes}")
        if self.no_pods:
            seen = "no pods are" if self.blind else f"only the pods of namespace {self.namespace} are"
            agents = all(stock.allocated is not None for stock in self.stocks.values() if stock.allocatable)
            free = "computed from what the agents report as allocated" if agents else "unknown"
            rest = "" if self.no_nodes else f"; what is free is {free}"
            sentences.append(f"{seen} counted (-n NAME chooses another namespace){rest}: {self.no_pods}")
        return [*sentences, *self.usage_unknown]

    @property
    def notes(self) -> list[str]:
        free, partly = defaultdict[str, Counter[str]](Counter), set[str]()
        for stock, shares in share_nodes(self):
            for taint in () if stock.closed else stock.taints:
                free[taint].update(stock.named({name: share[3] or 0 for name, share in shares.items()}))
                partly.update([taint] if any(share[3] is None for share in shares.values()) else [])
        notes = [
            f"{'at least ' * (taint in partly)}{tell_counts(counts)} of the free devices are only for pods that tolerate"
            f" the taint {taint}"
            for taint, counts in sorted(free.items())
            if any(counts.values())
        ]
        if claims := self.with_claims:
            have = "has" if claims == 1 else "have"
            notes.append(f"{counted(claims, 'pod')} {have} ResourceClaims, whose devices are not counted here")
        unread = sorted({one.sliced_by for one in self.stocks.values()} - {""})
        if unread and "largest" in self.columns:
            notes.append(
                "the largest request that fits may be 1 on time-sliced nodes: whether containers may request more than"
                f" one share is in policies that could not be read ({some(unread)})"
            )
        pods = self.pods
        if kept := sorted(pod.ref for pod in pods if pod.reserves and self.counts(pod)):
            notes.append(
                f"with {some(kept)}, KAI-Scheduler reserves GPUs for pods that request fractions, which may be in other"
                " namespaces; the GPUs count as held by the reservation, and the fractions are not counted here"
            )
        return [*notes, *self.sources]

    def rows(self) -> list[Row]:
        """Return the rows by `by`.

        With --usage, a row is repeated for every device that the pod holds as this resource; a device of unknown
        resource belongs to the pod's first row.
        """
        rows, pairs = count_rows(self), []
        if self.used is None:
            return rows
        left = {"/".join(pod): dict(devices) for pod, devices in self.used.items()}
        for row in rows:
            known = left.get(row["pod"], {}) if row["node"] else {}
            devices = {
                uuid: known.pop(uuid)
                for uuid, use in list(known.items())
                if use.get("resource", row["resource"]) == row["resource"]
            }
            for uuid, use in (devices or {"": dict.fromkeys(USED)}).items():
                pairs.append(((row["node"], use["gpu"] or 0, uuid, row["pod"]), row | use))
        return [row for _, row in sorted(pairs, key=lambda pair: pair[0])]


def read_stock(raw: JSON) -> NodeStock:
    taints, labels = entries(raw, "spec", "taints"), texts(part(raw, "metadata", "labels"))
    reasons = {
        "the operator's change is unfinished": names.ANNOTATION_FENCE in section(raw, "metadata", "annotations"),
        "cordoned": part(raw, "spec", "unschedulable") is True,
        "its layout is not proven yet": any(text(taint, "key") == names.TAINT_UNPROVEN for taint in taints),
        "not Ready": not has_condition(raw, "Ready"),
    }
    sharing, policy = labels.get(names.LABEL_SHARING_STRATEGY), labels.get(names.LABEL_POLICY, "")
    name, devices = text(raw, "metadata", "name"), gpu_counts(part(raw, "status", "allocatable"))
    limited = dict.fromkeys(devices, "its device plugin uses MPS") if sharing == "mps" else {}
    # GFD writes the strategy of whole GPUs, which is none if there are only MIG devices (docs/design/nvidia.md#c).
    sliced = sharing == "time-slicing" or labels.get(names.LABEL_MODE) in ("time-slicing", "mig-time-slicing")
    return NodeStock(
        name,
        policy,
        Offer(name, devices, limited, lasting_taints(raw)),
        ", ".join(reason for reason, holds in reasons.items() if holds),
        policy if sliced else "",
        devices={resource: device for resource in devices if (device := _device_of(resource, labels))},
    )


def _device_of(resource: str, labels: Mapping[str, str]) -> str:
    """Return what GFD's labels say about one device of the resource (docs/design/nvidia.md#c); empty if nothing."""
    base = resource.removesuffix(".shared")
    product = labels.get(f"{base}.product") or labels.get(names.LABEL_GPU_PRODUCT, "")
    product = product.removeprefix("NVIDIA-").removesuffix("-SHARED")
    replicas = labels.get(f"{base}.replicas", "")
    return f"1/{replicas} {product}" if product and replicas.isdecimal() and int(replicas) > 1 else product


def read_gpunode(raw: JSON) -> NodeStock:
    """Convert a raw GPUNode, for users who may not read Nodes or all pods."""
    observed = section(raw, "status", "observed")
    return NodeStock(
        text(raw, "metadata", "name"),
        text(raw, "status", "transition", "policy"),
        allocated=gpu_counts(observed["allocated"]) if isinstance(observed.get("allocated"), dict) else None,
        simulated=observed.get("simulated") is True,
    )


def read_pod(raw: JSON) -> GPUPod | None:
    """Convert a raw Pod; return None if it has ended or requests no GPU resource."""
    if text(raw, "status", "phase") in ENDED or not (requests := pod_requests(raw)):
        return None
    metadata, node = section(raw, "metadata"), text(raw, "spec", "nodeName")
    conditions = () if node else entries(raw, "status", "conditions")
    message = next((text(row, "message") for row in conditions if row.get("type") == "PodScheduled"), "")
    namespace, name, created = (text(metadata, key) for key in ("namespace", "name", "creationTimestamp"))
    of_kai = gpu_groups(texts(metadata.get("labels"))) and is_reservation(pod_view(raw, {}))
    return GPUPod(namespace, name, node, requests, created, message, bool(of_kai))


Share = tuple[int | None, int | None, int | None, int | None]
"""What the pods of the answer hold of one resource on one node, what others hold, what is allocatable, and the rest.
None is unknown. What no pod holds counts whether or not the node accepts pods."""


def share_nodes(inventory: Inventory) -> Iterator[tuple[NodeStock, dict[str, Share]]]:
    """Yield every node with GPU resources, sorted by name, with its shares by resource.

    Where pods of other namespaces could not be read, the agent's report takes their place.
    """
    held, own = defaultdict[str, Counter[str]](Counter), defaultdict[str, Counter[str]](Counter)
    for pod in inventory.pods:
        if pod.node and inventory.counts(pod):
            held[pod.node].update(pod.requests)
            own[pod.node].update(pod.requests if inventory.is_own(pod) else ())
    for name in sorted({*inventory.stocks, *held}):
        stock, total = inventory.stocks.get(name, NodeStock(name)), held[name]
        total = total | Counter(stock.allocated or {}) if inventory.no_pods else total
        allocatable, listed = stock.allocatable or {}, stock.allocatable is not None
        known, free = not inventory.no_pods or stock.allocated is not None, remaining(allocatable, total)
        if shares := {
            resource: (
                None if inventory.blind else own[name][resource],
                total[resource] - own[name][resource] if known and not inventory.blind else None,
                allocatable.get(resource, 0) if listed else None,
                free.get(resource, 0) if known and listed else None,
            )
            for resource in {**allocatable, **total}
        }:
            yield stock, shares


def count_rows(inventory: Inventory) -> list[Row]:
    """Return the rows, sorted by the object that the row is for, resource and device."""
    rows: dict[tuple[str, str, str], Row] = {}
    unread = [*(OF_NODES if inventory.no_nodes else ()), *(("waiting",) if inventory.blind else ())]
    unread += ["others"] if inventory.no_nodes and inventory.no_pods else []
    columns, by = inventory.counted_columns, inventory.by

    def row_of(resource: str, words: Mapping[str, str], device: str | None) -> Row:
        new = {**dict.fromkeys(NUMBERS, 0), **dict.fromkeys(unread), **words, "resource": resource, "device": device}
        return rows.setdefault((words.get(by, ""), resource, (device or "") * ("device" in columns)), new)

    for stock, shares in share_nodes(inventory) if by in ("resource", "node", "policy") else ():
        words = {"node": stock.name, "policy": stock.policy or NO_POLICY}
        words |= {"state": stock.closed, "taints": ",".join(stock.taints)}
        for name, (own, others, allocatable, free) in shares.items():
            row = row_of(name, words, stock.devices.get(name))
            opened, closed = (0, free) if stock.closed else (free, 0)
            sums = {"requested": own, "others": others, "allocatable": allocatable, "free": opened, "closed": closed}
            for column, number in sums.items():
                row[column] = None if None in (row[column], number) else row[column] + number
            most = stock.largest(name, opened)
            row["largest"] = None if None in (row["largest"], most) else max(row["largest"], most)
    for pod in inventory.subjects if by in ("resource", "namespace", "pod") else ():
        words = {"namespace": pod.namespace, "pod": pod.ref, "node": pod.node}
        for name, count in pod.requests.items() if by != "resource" or not pod.node else ():  # else with the nodes
            row = row_of(name, words, inventory.device(pod, name))
            row["pods"] += bool(pod.node)
            row["requested" if pod.node else "waiting"] += count
    return [{name: row[name] for name in columns} for _, row in sorted(rows.items())]


def tell_counts(counts: Mapping[str, int | None]) -> str:
    known = [(name, "?" if number is None else number) for name, number in sorted(counts.items()) if number != 0]
    return " and ".join(f"{number} {name}" for name, number in known)

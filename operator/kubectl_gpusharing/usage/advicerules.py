"""Which mode suits workloads, by what a person says about them, or by what their pods request?

The rules have a fixed order, and the first that applies decides. docs/design/hardware.md says which mode isolates what.
The layouts are those of a recommendation (`recommend`).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.kube.client import JSON
from gpusharing.kube.pods import container_requests, largest_requests, pod_requests
from gpusharing.kube.raw import entries, section, text, texts, whole
from gpusharing.planning.gpus.cards import HEADROOM, TURNS, Card, Profile, client_memory, memory_of, usable_memory
from gpusharing.planning.gpus.geometry import Layout, maximal_layouts, normalize, resource_name
from gpusharing.planning.gpus.geometry import describe as layout_text
from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.shell.manifests import policy_manifest
from kubectl_gpusharing.usage.holdings import ENDED
from kubectl_gpusharing.usage.needs import GIB, Goal, History, Holding, Workload, declared_memory, find_need
from kubectl_gpusharing.usage.recommendation import ModelPool, Portion, layout_rows, recommend


@dataclass(frozen=True, slots=True)
class AdviceAnswers:
    card: Card
    needs: tuple[tuple[int, float], ...]
    """How many workloads need how much memory each, in GiB and with headroom; not empty."""
    promise: bool = False
    strangers: bool = False
    bill: bool = False
    bursts: bool = False
    """Whether workloads compute only now and then."""
    unanswered: tuple[str, ...] = ()
    """Those of the four fields above that nobody answered; until then, workloads are isolated."""
    isolation: str = ""
    """The level that the label of the pods' namespace demands: `hardware` or `memory`; empty if none."""
    no_mps: str = ""
    """Why no label can switch MPS on in the cluster, or why that is unknown; empty if one can."""
    mps_remedy: str = ""
    """What a person can do so that a label can switch MPS on, in sentences; empty if one can."""
    per_node: int = 1
    """How many GPUs each node has; with 1, all GPUs get the same layout."""

    @property
    def pods(self) -> int:
        return sum(count for count, _ in self.needs)

    @property
    def largest(self) -> float:
        return max(gib for _, gib in self.needs)

    @property
    def most(self) -> int:
        """How many workloads fit into the memory of one GPU, whichever they are; 0 if one of the largest does not."""
        return int(memory_of(self.card) // self.largest)

    @property
    def whole(self) -> int:
        """How many GPUs the workloads take if each has whole ones."""
        have = memory_of(self.card)
        return sum(count * ceil(gib / have) for count, gib in self.needs)


@dataclass(frozen=True, slots=True)
class Advice:
    mode: Mode
    shares: int
    """How many workloads share one GPU; with several layouts, those on the first GPU."""
    why: tuple[str, ...]
    """The reasons, each with the page that explains it."""
    but: str
    gpus: int = 0
    """How many GPUs the workloads take; 0 if that is unknown."""
    portions: tuple[Portion, ...] = ()
    """The layouts in mode MIG, each with its GPUs; empty in the other modes."""
    profile: Profile | None = None
    """The profile of each instance in mode MIG if all have the same; otherwise None."""
    unanswered: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        """The layout of each GPU in mode MIG. It is empty in the other modes, and if the GPUs of a node differ."""
        return (self.portions[0].layout or ()) if len(self.portions) == 1 else ()

    def policy(self, name: str, pool: str) -> dict[str, object]:
        blocks: dict[Mode, dict[str, object]] = {
            Mode.MIG: {"mig": {"layouts": layout_rows(self.portions)}},
            Mode.MPS: {"mps": {"replicas": self.shares}},
            Mode.TIME_SLICING: {"timeSlicing": {"replicas": self.shares}},
        }
        selector = {"matchLabels": {"gpusharing.dev/pool": pool}}
        spec = {"nodeSelector": selector, "mode": str(self.mode), **blocks.get(self.mode, {})}
        return policy_manifest(name, spec)


def advise(answers: AdviceAnswers) -> Advice:
    least, have = min(gib for _, gib in answers.needs), memory_of(answers.card)
    if least > have / 2:
        why = f"{least:.1f} GiB (the peak plus a fifth) leave no room for a second workload on {have:.1f} GiB"
        but = "no other workload can use a GPU that its own workload leaves idle"
        if answers.largest > have:
            gpus = -(-answers.largest // have)
            but = f"it needs {gpus:.0f} GPUs and a framework that spreads one model across them; instances cannot be joined"
        return Advice(Mode.FULL, 1, (f"{why} (docs/how-to/choose-a-mode.md)",), but, answers.whole)
    reasons = {
        "latency or availability is promised": answers.promise,
        "the users of the GPUs do not trust each other": answers.strangers,
        "each workload must be billed separately": answers.bill,
        f"the namespace has the label {names.LABEL_ISOLATION}={answers.isolation}": answers.isolation == "hardware"
        or (answers.isolation == "memory" and bool(answers.no_mps)),
    }
    isolated = "memory, bandwidth and faults must be isolated (docs/how-to/choose-a-mode.md)"
    if needed := ", ".join(reason for reason, holds in reasons.items() if holds):
        return _divided(answers, f"{needed}: {isolated}")
    if unsaid := tuple(name for name in answers.unanswered if name != "bursts"):
        asked = ", ".join(f"--{name} or --no-{name}" for name in unsaid)
        advice = _divided(answers, f"nobody said that they need not be ({asked}), {isolated}")
        return replace(advice, unanswered=unsaid)
    unlimited = answers.bursts and answers.isolation != "memory"  # nobody limits the memory of the others
    sharing = _in_turns(answers) if unlimited or answers.no_mps else _together(answers)
    divided = _divided(
        answers,
        "the workloads differ in size, and equal shares would have to be as large as the largest needs"
        " (docs/how-to/choose-a-mode.md)",
    )
    if sharing.shares < 2 or divided.gpus < sharing.gpus:
        return divided
    return replace(sharing, unanswered=answers.unanswered)


def _divided(answers: AdviceAnswers, why: str) -> Advice:
    card = answers.card
    histories = [
        History(Workload("", "needs", f"{number:03}"), count, Holding(), (), declared=ceil(gib * GIB))
        for number, (count, gib) in enumerate(answers.needs)
    ]
    # A node for each workload is enough.
    pool = ModelPool("needs", card, (answers.per_node,) * answers.pods, answers.pods)
    needs = [find_need(history, card, Goal.COST) for history in histories]
    found = recommend(pool, needs, goal=Goal.COST)
    sizes = {profile.name: profile for profile in card.profiles}
    used = {place.profile for place in found.placed if place.profile}
    if not used:
        why_not = "MIG would take no fewer GPUs" if card.profiles else f"{card.key} has no MIG"
        but = f"{why_not}; while a workload leaves its GPU idle, no other workload can use that GPU"
        return Advice(Mode.FULL, 1, (why,), but, answers.whole)
    texts = [
        f"a workload that needs {(place.need.memory or 0) / GIB:.1f} GiB fits on {place.profile}, which has about"
        f" {usable_memory(card, sizes[place.profile]):.1f} GiB (docs/reference/gpus.md)"
        for place in found.placed
        if place.profile
    ]
    but = "changing the layout requires draining each node; no other workload can use an idle instance"
    if left := sum(one.pods for one in found.unplaced):
        but += (
            f". There is no place for {counted(left, 'workload')} that must have whole GPUs: use another pool for that"
            " or, if nodes have several GPUs, pass --gpus-per-node"
        )
    gpus = found.gpus + sum(one.gpus * one.pods for one in found.unplaced)
    first = sum(dict(found.template[0] or ()).values())
    profile = sizes[used.pop()] if len(found.portions) == len(used) == 1 else None
    return Advice(Mode.MIG, first, (why, *texts), but, gpus, found.portions, profile)


def _together(answers: AdviceAnswers) -> Advice:
    clients = max(1, min(answers.most, answers.card.mps_max_clients))
    why = (
        "the workloads trust each other, and MPS lets them compute at the same time; with time-slicing they would"
        " take turns (docs/design/hardware.md#mps)"
    )
    each = client_memory(answers.card, clients)
    if answers.isolation:
        why = (
            f"the namespace has the label {names.LABEL_ISOLATION}=memory, and MPS limits the memory of each client"
            " (docs/design/hardware.md#mps-share)"
        )
    size = f"{clients} clients have {each:.1f} GiB each (docs/design/hardware.md#mps-share)"
    but = "a fatal fault in one client affects all clients of the GPU (docs/design/hardware.md#mps-faults)"
    return Advice(Mode.MPS, clients, (why, size), but, ceil(answers.pods / clients))


def _in_turns(answers: AdviceAnswers) -> Advice:
    shares = max(1, min(TURNS, answers.most))
    why = (
        "the workloads use the GPU only now and then, so each can have the whole GPU in turn"
        " (docs/design/hardware.md#time-slicing)"
    )
    if not answers.bursts:
        why = (
            "with MPS the workloads could compute at the same time, but the operator refuses it where no label can switch"
            f" it on: {answers.no_mps} (MPSNotSwitchable, docs/design/nvidia.md#b5); with time-slicing they take turns"
        )
    size = (
        f"{shares} fit even when all are at their peak: {shares * answers.largest / HEADROOM:.1f} of"
        f" {memory_of(answers.card):.1f} GiB (docs/reference/gpus.md)"
    )
    but = (
        "the workloads are not isolated: nothing limits what one of them uses, so one that uses too much memory makes"
        " the others fail (docs/design/hardware.md#time-slicing), and none can be billed for what it uses"
    )
    if not answers.bursts and answers.mps_remedy:
        but += f". {answers.mps_remedy}"
    return Advice(Mode.TIME_SLICING, shares, (why, size), but, ceil(answers.pods / shares))


NOTEBOOKS = {"notebook-name": "", "component": "singleuser-server"}
"""Labels of notebooks: Kubeflow's, which may have any value, and JupyterHub's."""


@dataclass(slots=True)
class Demand:
    """The GPU requests of the pods in a namespace, added up."""

    namespace: str
    pods: int = 0
    devices: Counter[str] = field(default_factory=Counter)
    several: list[str] = field(default_factory=list)
    """Names of pods with a container that requests more than one whole GPU or share."""
    joined: list[str] = field(default_factory=list)
    """Names of pods that request more than one MIG instance."""
    spread: int = 0
    """How many pods have several containers that request GPUs; each container gets its own."""
    guaranteed: int = 0
    ranked: int = 0
    notebooks: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    """For how many devices the pods declare which GPU memory, in bytes. They count under the key 0 if they declare
    none, or no valid one."""
    wrong: str = ""
    """A clause about the first pod whose annotation is not valid; empty if there is none."""

    @property
    def promised(self) -> bool:
        return max(self.guaranteed, self.ranked) * 2 > self.pods

    @property
    def bursts(self) -> bool:
        return self.notebooks * 2 > self.pods

    @property
    def sentence(self) -> str:
        asks = ", ".join(f"{count} {name}" for name, count in sorted(self.devices.items()))
        facts = {
            "with several GPU containers": self.spread,
            "of QoS Guaranteed": self.guaranteed,
            "of a priority above 0": self.ranked,
            "notebook" if self.notebooks == 1 else "notebooks": self.notebooks,
        }
        details = ", ".join(f"{count} {what}" for what, count in facts.items() if count)
        tail = f" ({details})" if details else ""
        return f"{self.namespace}: {counted(self.pods, 'pod')} with GPUs{tail}, which request {asks}"

    def unknown(self, card: Card) -> list[str]:
        """Return the sorted resource names of MIG instances, shared ones too, that pods request and this card lacks."""
        known = {resource_name(one.name, shared=shared) for one in card.profiles for shared in (False, True)}
        return sorted(name for name in self.devices if name.startswith(names.RESOURCE_MIG_PREFIX) and name not in known)


def read_demand(namespace: str, pods: Iterable[JSON]) -> Demand:
    demand = Demand(namespace)
    for raw in pods:
        asks, largest = pod_requests(raw), largest_requests(raw)
        if not asks or text(raw, "status", "phase") in ENDED:
            continue
        demand.pods += 1
        demand.devices.update(asks)
        if max(largest[names.RESOURCE_GPU], largest[names.RESOURCE_GPU_SHARED]) > 1:
            demand.several.append(text(raw, "metadata", "name"))
        if sum(count for name, count in asks.items() if name.startswith(names.RESOURCE_MIG_PREFIX)) > 1:
            demand.joined.append(text(raw, "metadata", "name"))
        demand.spread += sum(map(bool, map(container_requests, entries(raw, "spec", "containers")))) > 1
        demand.guaranteed += text(raw, "status", "qosClass") == "Guaranteed"
        demand.ranked += whole(raw, "spec", "priority") > 0
        labels, owners = section(raw, "metadata", "labels"), entries(raw, "metadata", "ownerReferences")
        by_label = any(name in labels and value in ("", labels[name]) for name, value in NOTEBOOKS.items())
        demand.notebooks += by_label or any(text(owner, "kind") == "Notebook" for owner in owners)
        memory = texts(section(raw, "metadata", "annotations")).get(names.ANNOTATION_GPU_MEMORY, "")
        pod = f"{namespace}/{text(raw, 'metadata', 'name')}"
        size, wrong = declared_memory(pod, memory) if memory else (0, "")
        demand.sizes[size] += asks.total()
        demand.wrong = demand.wrong or wrong
    demand.several.sort()
    demand.joined.sort()
    return demand


def advise_for(demand: Demand, card: Card) -> Advice | None:
    """Return the advice that follows from the pods' requests; None if the user must answer questions."""
    if demand.several:
        pods = ", ".join(demand.several[:3]) + (" ..." if len(demand.several) > 3 else "")
        why = (
            f"containers of {pods} request more than one GPU each: two shares give no more compute than one, and"
            " instances cannot be joined (docs/design/hardware.md#time-slicing, docs/design/hardware.md#inside-mig)"
        )
        but = (
            "a pod that requests only one GPU may leave part of it unused, and no other workload can use that part: give"
            " such pods a pool of their own"
        )
        return Advice(Mode.FULL, 1, (why,), but + _unserved(demand, {names.RESOURCE_GPU}))
    profiles = {resource_name(profile.name): profile.name for profile in card.profiles}
    wanted = Counter({profiles[name]: count for name, count in demand.devices.items() if name in profiles})
    if not wanted:
        return None
    layout, left = _layout(wanted, card.profiles)
    counts = dict(layout)
    gpus = max(ceil(wanted[name] / counts[name]) for name in wanted if name in counts)
    instances = ", ".join(f"{count}x{name}" for name, count in sorted(wanted.items()))
    unserved = _unserved(demand, {resource_name(name) for name in counts})
    who = "some" if unserved else "they"
    why = f"{who} request MIG instances ({instances}), which no other mode provides (docs/design/nvidia.md#b7)"
    size = f"{counted(gpus, 'GPU')} with {layout_text(layout)} {'have' if gpus > 1 else 'has'} all of these instances"
    if left:
        size = f"{size} but {', '.join(left)}: no layout has room for these as well"
    but = f"changing the layout requires draining each node; no other workload can use an idle instance{unserved}"
    if demand.joined:
        but += (
            f". {some(demand.joined)} {'request' if len(demand.joined) > 1 else 'requests'} several instances: neither NCCL nor"
            " tensor parallelism works across instances (docs/design/hardware.md#inside-mig), so a model that needs more"
            " than one needs a larger instance or whole GPUs"
        )
    reasons = (why, f"{size} (docs/reference/gpus.md)")
    return Advice(Mode.MIG, sum(counts.values()), reasons, but, gpus, (Portion(layout, (0,), gpus),))


def _unserved(demand: Demand, served: Collection[str]) -> str:
    left = ", ".join(f"{count} {name}" for name, count in sorted(demand.devices.items()) if name not in served)
    remedy = "the pods that request these need a pool of their own, or another request"
    return f". This pool would have no place for {left}: {remedy}" if left else ""


def _layout(wanted: Counter[str], profiles: Sequence[Profile]) -> tuple[Layout, list[str]]:
    """Return the full layout that serves the requested profiles with the fewest GPUs, and the profiles without room."""
    plain = [one for one in profiles if one.name in wanted or one.is_plain]
    layouts = maximal_layouts(plain)
    ranked = [name for name, _ in sorted(wanted.items(), key=lambda item: (-item[1], item[0]))]

    def cost(layout: Layout) -> tuple[int, int]:
        counts = dict(layout)
        unused = sum(counts.values()) - sum(counts[name] for name in served)
        return max(ceil(wanted[name] / counts[name]) for name in served), unused

    for last in range(len(ranked), 0, -1):
        served = ranked[:last]
        if fits := [layout for layout in layouts if set(served) <= dict(layout).keys()]:
            return min(fits, key=cost), ranked[last:]
    return normalize({ranked[0]: 1}), ranked[1:]

"""`advise --card CARD --need 4x20Gi ...`: which mode, layout and policy suit workloads?

The answer has the reason, the disadvantage, and what it saves. No cluster is contacted, except with -n: then the pods
of that namespace, the cards in the cluster, and what NVIDIA's ClusterPolicy turns off are read. Flags that are missing
are asked for at a terminal, and are unknown on a pipe. With --from-prometheus, which `recommend` stands for, the
needs are measured instead (usage/recommend.py).

The rules have a fixed order, and the first that applies decides. docs/design/hardware.md says which mode isolates what.
The layouts are those of a recommendation.
"""

import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TypeVar

import yaml

from gpusharing.api import names
from gpusharing.api.names import LABEL_ISOLATION, Mode
from gpusharing.api.validation import validate_policy
from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, GPUNODES, JSON, PODS, Resource
from gpusharing.kube.convert import cluster_policy_view
from gpusharing.kube.daemonsets import daemon_set_view
from gpusharing.kube.pods import container_requests, largest_requests, pod_requests
from gpusharing.kube.raw import entries, section, text, texts, whole
from gpusharing.planning.drain.stranded import describe_guard, find_admitted
from gpusharing.planning.gpus.cards import HEADROOM, TURNS, Card, Profile, client_memory, memory_of, usable_memory
from gpusharing.planning.gpus.geometry import Layout, maximal_layouts, normalize, resource_name
from gpusharing.planning.gpus.geometry import describe as layout_text
from gpusharing.planning.snapshot.nvidia import find_active
from gpusharing.planning.stack.requirements import OPERANDS
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.wanted import target
from kubectl_gpusharing.live.files import Document, policy_manifest
from kubectl_gpusharing.setup.layouts import draw, pick
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import AdviceData, SavingData
from kubectl_gpusharing.shell.drawing import BLANK, Ink, Line, PrintOptions, line, prose, prose_of_each
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal, ask_line
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, Trouble
from kubectl_gpusharing.usage import recommend as measured
from kubectl_gpusharing.usage.bills import price_of
from kubectl_gpusharing.usage.holdings import ENDED
from kubectl_gpusharing.usage.needs import GIB, Goal, History, Holding, Workload, declared_memory, find_need
from kubectl_gpusharing.usage.recommend import layouts_of, saving_data, saving_of
from kubectl_gpusharing.usage.recommendation import ModelPool, Portion, layout_rows, recommend


@dataclass(frozen=True, slots=True)
class AdviceAnswers:
    """What is known about workloads. Until the questions are answered, which are None then, workloads are isolated."""

    card: Card
    needs: tuple[tuple[int, float], ...]
    """How many workloads need how much memory each, in GiB and with headroom; not empty."""
    promise: bool | None = False
    strangers: bool | None = False
    bill: bool | None = False
    bursts: bool | None = False
    """Whether workloads compute only now and then."""
    isolation: str = ""
    """The level that the label of the pods' namespace demands: `hardware` or `memory`; empty if none."""
    no_mps: str = ""
    """Why no label can switch MPS on in the cluster, or why that is unknown; empty if one can."""
    mps_remedy: str = ""
    """What a person can do so that a label can switch MPS on, in sentences; empty if one can."""
    per_node: int = 1
    """How many GPUs each node has; with 1, all GPUs get the same layout."""

    @property
    def unanswered(self) -> tuple[str, ...]:
        return tuple(name for name in QUESTIONS if getattr(self, name) is None)

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
    if answers.bursts is None:
        but = (
            f"{sharing.but}. Nobody said whether the workloads use the GPU only now and then (--bursts or --no-bursts); if"
            " they do, time-slicing gives each the whole GPU in turn"
        )
        return replace(sharing, but=but, unanswered=answers.unanswered)
    return sharing


def _divided(answers: AdviceAnswers, why: str) -> Advice:
    card = answers.card
    histories = [
        History(Workload("", "needs", f"{number:03}"), count, Holding(), (), declared=ceil(gib * GIB))
        for number, (count, gib) in enumerate(answers.needs)
    ]
    # A node for each workload is enough.
    pool = ModelPool(card.key, card, (answers.per_node,) * answers.pods, answers.pods)
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


T = TypeVar("T")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(Gi|GiB|G|GB|Mi|MiB)?")
_GIB = {"Gi": 1.0, "GiB": 1.0, "": 1.0, "G": 0.931, "GB": 0.931, "Mi": 1 / 1024, "MiB": 1 / 1024}
HOW_MUCH = (
    "How much memory does each workload need at its peak? For example 15Gi or, for 4 workloads of 20Gi and 12 of 5Gi,"
    " 4x20Gi, 12x5Gi"
)
WHICH = "Which card (kubectl gpusharing layouts lists them)?"
UNNAMED = "with GPU Operator v25.10.2 up to at least v26.7.0 none can; to name yours, pass --gpu-operator VERSION"
QUESTIONS = {
    "promise": "Were users promised a certain latency or availability?",
    "strangers": "Do people who do not trust each other share the GPUs?",
    "bill": "Is each workload billed for its share of a GPU?",
    "bursts": "Do the workloads use the GPU only now and then, as notebooks do?",
}
STATED = ("need", "memory", *QUESTIONS, "gpus_per_node", "gpu_operator", "name", "pool", "namespace")
MEASURED = ("selector", "policy", "goal", "verbose", "write", "until", "service", "match")
"""Flags for needs that a person states, and flags for needs that Prometheus measured."""


def run_offline(typed: Arguments, terminal: Terminal) -> int:
    if _is_measured(typed, terminal):
        return measured.run_offline(typed, terminal)
    card = _card(typed.card) if typed.card else _ask(WHICH, "--card", _card)
    answers = _find_answers(typed, card, None)
    return _show(advise(answers), card, answers, "", typed, terminal)


async def run(session: Session, typed: Arguments, terminal: Terminal) -> int:
    if _is_measured(typed, terminal):
        return await measured.run(session, typed, terminal)
    demand = read_demand(typed.namespace, await session.all(PODS, namespace=typed.namespace))
    if not demand.pods:
        raise Trouble(
            f"no pod in namespace {typed.namespace} of {session.where} requests a GPU, or all that do have finished"
        )
    word = typed.card
    if not word:
        nodes = await _readable(session, GPUNODES)
        products = {text(model, "product") for raw in nodes for model in entries(raw, "status", "observed", "models")}
        word = products.pop() if len(products) == 1 else ""
    card = _card(word) if word else _ask(WHICH, "--card", _card)
    if unknown := demand.unknown(card):
        raise Trouble(
            f"{card.key} does not have {', '.join(unknown)}, which the pods request: pass their card with --card"
        )
    answers = None
    if (advice := advise_for(demand, card)) is None:
        labels = await session.namespace_labels(typed.namespace)
        if find_admitted(labels) == ():
            raise Trouble(describe_guard(typed.namespace, labels))
        answers = _find_answers(typed, card, demand, labels.get(LABEL_ISOLATION, ""))
        # The installed DaemonSet outweighs the flag.
        if advise(replace(answers, no_mps="")).mode is Mode.MPS:
            views = [daemon_set_view(raw).mps_daemon for raw in await _readable(session, DAEMON_SETS)]
            if (daemon := next(filter(None, views), None)) is not None:
                why = target.find_deafness(daemon)
                remedy = target.find_remedy(daemon)[0] if why else ""
                answers = replace(answers, no_mps=why, mps_remedy=remedy)
        advice = advise(answers)
    policy, _ = find_active(map(cluster_policy_view, await _readable(session, CLUSTER_POLICIES)))
    off = [] if policy is None else [row for row in OPERANDS if row.is_off(policy) and advice.mode in row.modes]
    if missing := ", and ".join(row.off for row in off):
        but = f"{advice.but}; {missing} (kubectl gpusharing doctor has the command)"
        advice = replace(advice, but=but)
    return _show(advice, card, answers, demand.sentence, typed, terminal)


def _is_measured(typed: Arguments, terminal: Terminal) -> bool:
    read = bool(typed.from_prometheus or typed.prometheus)
    scope = "stated, not measured" if read else "measured: add --from-prometheus"
    for name in STATED if read else MEASURED:
        if getattr(typed, name):
            raise Trouble(f"--{name.replace('_', '-')} works only where needs are {scope}")
    if terminal.output == "csv" and not read:
        raise Trouble(f"-o csv works only where needs are {scope}")
    return read


async def _readable(session: Session, resource: Resource) -> list[JSON]:
    try:
        return await session.all(resource)
    except Trouble:
        return []


def _card(word: str) -> Card:
    card = pick(word)
    if not card.memory_gb:
        raise Trouble(f"{card.key} shares its memory with the CPU, so this plugin does not know what fits on it")
    return card


def _find_answers(typed: Arguments, card: Card, demand: Demand | None, isolation: str = "") -> AdviceAnswers:
    no_mps = target.find_deaf_release(typed.gpu_operator)
    if no_mps is None:
        no_mps = f"GPU Operator {typed.gpu_operator} was not examined" if typed.gpu_operator else UNNAMED
    if typed.gpu_operator and not target.is_readable(typed.gpu_operator):
        raise Trouble(f"--gpu-operator {typed.gpu_operator} is not a version; pass one such as v25.10.1")
    needs = _find_needs(typed, demand)
    answers: dict[str, bool | None] = {}
    if demand is not None:
        answers |= {"promise": demand.promised, "bursts": demand.bursts}
    for name in QUESTIONS:
        stated = getattr(typed, name)
        answers[name] = answers.get(name) if stated is None else stated
    for name, question in QUESTIONS.items() if sys.stdin.isatty() else ():
        if answers[name] is None:
            answers[name] = _ask(question, f"--{name}", yes_of)
    return AdviceAnswers(
        card,
        needs,
        isolation=isolation,
        no_mps=no_mps,
        mps_remedy=target.find_remedy(target.RELEASED_DAEMON)[0] if no_mps else "",
        per_node=typed.gpus_per_node or 1,
        **answers,
    )


def _find_needs(typed: Arguments, demand: Demand | None) -> tuple[tuple[int, float], ...]:
    count = 1 if demand is None else demand.devices.total()
    sizes = [*typed.need, *filter(None, [typed.memory])]
    if sizes:
        return tuple(need_of(text, count) for text in sizes)
    if demand is not None and demand.sizes and 0 not in demand.sizes:
        return tuple((devices, size / GIB) for size, devices in sorted(demand.sizes.items()))
    reason = "" if demand is None else ", because not all pods declare how much memory they need"
    wrong = "" if demand is None else demand.wrong
    flags = f"--memory or --need{reason}{wrong and f' ({wrong})'}"
    return _ask(
        f"{wrong and f'Note: {wrong}. '}{HOW_MUCH}",
        flags,
        lambda answer: tuple(need_of(text, count) for text in answer.split(",")),
    )


def _show(
    advice: Advice, card: Card, answers: AdviceAnswers | None, pods: str, typed: Arguments, terminal: Terminal
) -> int:
    policy = advice.policy(typed.name or "pool", typed.pool or "pool")
    problems = validate_policy(policy)
    if fault := Document("", 0, "", policy).fault[1] or (
        "; ".join(map(str, problems)) if isinstance(problems, tuple) else ""
    ):
        raise Trouble(fault)
    price = price_of(typed.price)
    saved = answers.whole - advice.gpus if answers is not None and answers.pods > 1 else None
    if terminal.output == "yaml":
        comments = textwrap.wrap(f"{advice.mode}, because {'; '.join(advice.why)}. But {advice.but}.", 118)
        terminal.write("".join(f"# {comment}\n" for comment in comments))
        terminal.document(policy)
    elif terminal.structured:
        terminal.data(AdviceData, as_data(advice, policy, saving_data(saved, price)))
    else:
        options = terminal.options
        lines = prose(f"{pods}.", options, hang="  ") if pods else []
        lines += describe(advice, card, options)
        if answers is not None and saved is not None:
            text = f"{answers.pods} workloads take {counted(advice.gpus, 'GPU')}; with whole GPUs each, they would take"
            saving = f"{text} {answers.whole}. {saving_of(saved, price)}"
            lines += prose(saving, options, hang="  ", ink=Ink.GOOD)
        rows = yaml.safe_dump(policy, sort_keys=False).splitlines()
        terminal.show([*lines, BLANK, *map(line, rows)])
    return CHANGES if advice.unanswered else DONE


def need_of(text: str, count: int) -> tuple[int, float]:
    """Parse a number of workloads, by default `count`, and the memory of each, in GiB with headroom."""
    number, _, size = text.partition("x")
    if re.fullmatch(r"\s*[1-9]\d{0,3}\s*", number) and size:
        return int(number), size_of(size) * HEADROOM
    return count, size_of(text) * HEADROOM


def size_of(text: str) -> float:
    """Parse a size such as `15Gi`, by default in GiB, to GiB; G and GB are decimal. Raises Trouble."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise Trouble(f"{text!r} is not a memory size; use one such as 15Gi, or 4x15Gi for up to 9999 workloads")
    return float(match[1]) * _GIB[match[2] or ""]


def yes_of(text: str) -> bool:
    if text.lower() not in ("", "y", "yes", "n", "no"):
        raise Trouble(f"{text!r} is neither yes nor no; answer y or n")
    return text.lower() in ("y", "yes")


def _ask(question: str, flag: str, read: Callable[[str], T]) -> T:
    choice = " [y/N]" if question in QUESTIONS.values() else ""
    while sys.stdin.isatty():
        try:
            return read(ask_line(f"{question}{choice}", sys.stdin))
        except Trouble as trouble:
            print(trouble, file=sys.stderr)
        except EOFError:
            break
    raise Trouble(f"advise needs {flag}")


def describe(advice: Advice, card: Card, options: PrintOptions) -> list[Line]:
    what = "; ".join(layouts_of(advice.portions)) or f"{counted(advice.shares, 'share')} of each GPU"
    title = str(advice.mode) if advice.mode is Mode.FULL else f"{advice.mode}, {what}"
    lines = prose(title, options, hang="  ", ink=Ink.TITLE)
    if advice.layout and (drawn := draw(advice.layout, card.profiles, options)):
        lines.append(line("  ", *drawn))
    lines += prose_of_each((f"Because {reason}." for reason in advice.why), options)
    return [*lines, *prose(f"But {advice.but}.", options, hang="  ", ink=Ink.WAITING)]


def as_data(advice: Advice, policy: dict[str, object], saving: SavingData | None) -> AdviceData:
    return {
        "mode": str(advice.mode),
        "shares": advice.shares,
        "profile": "" if advice.profile is None else advice.profile.name,
        "layout": dict(advice.layout),
        "gpus": advice.gpus or None,
        "why": list(advice.why),
        "but": advice.but,
        "policy": policy,
        "saving": saving,
    }

"""`advise --card CARD --need 4x20Gi ...`: which mode, layout and policy suit workloads?

The answer has the reason, the disadvantage, and what it saves. No cluster is contacted, except with -n: then the pods
of that namespace, the cards in the cluster, and what NVIDIA's ClusterPolicy turns off are read. Flags that are missing
are asked for at a terminal, and are unknown on a pipe. With --from-prometheus, which `recommend` stands for, the
needs are measured instead (usage/recommend.py).
"""

import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import yaml

from gpusharing.api.names import LABEL_ISOLATION, Mode
from gpusharing.api.validation import validate_policy
from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, GPUNODES, JSON, PODS, Resource
from gpusharing.kube.convert import cluster_policy_view
from gpusharing.kube.daemonsets import daemon_set_view
from gpusharing.kube.raw import entries, text
from gpusharing.planning.drain.stranded import describe_guard, find_admitted
from gpusharing.planning.gpus.cards import HEADROOM, Card
from gpusharing.planning.snapshot.nvidia import find_active
from gpusharing.planning.stack.requirements import OPERANDS
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.wanted import target
from kubectl_gpusharing.live.files import Document
from kubectl_gpusharing.setup.layouts import draw, pick
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import AdviceData, SavingData
from kubectl_gpusharing.shell.drawing import BLANK, Ink, Line, PrintOptions, line, prose, prose_of_each
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal, ask_line
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, Trouble
from kubectl_gpusharing.usage import recommend
from kubectl_gpusharing.usage.advicerules import Advice, AdviceAnswers, Demand, advise, advise_for, read_demand
from kubectl_gpusharing.usage.needs import GIB
from kubectl_gpusharing.usage.prices import price_of
from kubectl_gpusharing.usage.recommendtext import layouts_of, saving_data, saving_of

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
        return recommend.run_offline(typed, terminal)
    card = _card(typed.card) if typed.card else _ask(WHICH, "--card", _card)
    answers = _find_answers(typed, card, None)
    return _show(advise(answers), card, answers, "", typed, terminal)


async def run(session: Session, typed: Arguments, terminal: Terminal) -> int:
    if _is_measured(typed, terminal):
        return await recommend.run(session, typed, terminal)
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
    if missing := ", and ".join(f"ClusterPolicy {row.switch} is false, so {row.consequence}" for row in off):
        but = f"{advice.but}; {missing} (kubectl gpusharing doctor has the command)"
        advice = replace(advice, but=but)
    return _show(advice, card, answers, demand.sentence, typed, terminal)


def _is_measured(typed: Arguments, terminal: Terminal) -> bool:
    measured = bool(typed.from_prometheus or typed.prometheus)
    scope = "stated, not measured" if measured else "measured: add --from-prometheus"
    for name in STATED if measured else MEASURED:
        if getattr(typed, name):
            raise Trouble(f"--{name.replace('_', '-')} works only where needs are {scope}")
    if terminal.output == "csv" and not measured:
        raise Trouble(f"-o csv works only where needs are {scope}")
    return measured


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
        unanswered=tuple(name for name, answer in answers.items() if answer is None),
        **{name: bool(answer) for name, answer in answers.items()},
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

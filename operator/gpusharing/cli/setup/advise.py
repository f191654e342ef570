"""`advise --card CARD --memory 15Gi ...`: advise a mode and a layout, with the reason, the disadvantage, and the
policy to apply.

No cluster is contacted, except with -n: then the pods of that namespace, the cards in the cluster, and what NVIDIA's
ClusterPolicy turns off are read. Flags that are missing are asked for at a terminal, and count as "no" on a pipe.
"""

import re
import sys
from argparse import Namespace
from dataclasses import replace
from typing import Any

import yaml

from gpusharing.api.names import LABEL_ISOLATION, Mode
from gpusharing.cli.setup.advice import (
    Advice,
    AdviceAnswers,
    Demand,
    advise,
    advise_for,
    describe_demand,
    read_demand,
)
from gpusharing.cli.setup.layouts import draw, pick
from gpusharing.cli.shell.drawing import BLANK, Ink, Line, Paper, Span, fold, line, prose
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal, agrees, ask_line
from gpusharing.cli.shell.troubles import DONE, Trouble
from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, GPUNODES, PODS
from gpusharing.kube.convert import cluster_policy_view
from gpusharing.kube.plainstack import daemon_set_view
from gpusharing.kube.raw import entries, text
from gpusharing.planning.drain.isolation import describe_guard, find_admitted
from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.gpus.geometry import describe as layout_text
from gpusharing.planning.snapshot.stackviews import find_active
from gpusharing.planning.stack.requirements import find_off
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.wanted.toolversions import (
    RELEASED_DAEMON,
    find_deaf_release,
    find_deafness,
    find_remedy,
    is_release,
)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(Gi|GiB|G|GB|Mi|MiB)?")
_GIB = {"Gi": 1.0, "GiB": 1.0, "": 1.0, "G": 0.931, "GB": 0.931, "Mi": 1 / 1024, "MiB": 1 / 1024}
WHICH = "Which card (kubectl gpusharing layouts lists them)?"
QUESTIONS = {
    "promise": "Were users promised a certain latency or availability?",
    "strangers": "Do people who do not trust each other share the GPUs?",
    "bill": "Is each workload billed for its share of a GPU?",
    "bursts": "Do the workloads use the GPU only now and then, as notebooks do?",
}


def run_offline(typed: Namespace, terminal: Terminal) -> int:
    """Give advice based on the user's answers, without a cluster, and return DONE (see VerbModule). Raises Trouble if
    the card is not known or shares the CPU's memory, if a flag cannot be parsed, or if the card or the memory is
    missing and there is no terminal to ask at."""
    card = _card(typed.card or _ask(WHICH, "--card"))
    return _show(advise(_find_answers(typed, card, None)), card, None, typed, terminal)


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Give advice based on the pods of a namespace, and on the user's answers to questions that the pods leave open
    (see VerbModule). Returns DONE. Raises Trouble if the pods cannot be read or none requests a GPU, if they
    request MIG instances that the card does not have, if the card is not known or shares the CPU's memory, if a
    flag cannot be parsed, if the card or the memory is missing and there is no terminal to ask at, or if the
    isolation label of the namespace has a value that admits no mode."""
    demand = read_demand(typed.namespace, await session.all(PODS, typed.namespace))
    if not demand.pods:
        raise Trouble(
            f"no pod in namespace {typed.namespace} of {session.where} requests a GPU, or all that do have finished"
        )
    card = _card(typed.card or await _only_card(session) or _ask(WHICH, "--card"))
    if unknown := demand.unknown(card):
        raise Trouble(
            f"{card.key} does not have {', '.join(unknown)}, which the pods request: pass their card with --card"
        )
    if (advice := advise_for(demand, card)) is None:
        level = await _isolation(session, typed.namespace)
        answers = _find_answers(typed, card, demand, level)
        # The installed DaemonSet outweighs the flag.
        if advise(replace(answers, no_mps=None)).mode is Mode.MPS:
            why, remedy = await _deafness(session)
            answers = answers if why is None else replace(answers, no_mps=why, mps_remedy=remedy)
        advice = advise(answers)
    if obstacle := await _obstacle(session, advice.mode):
        advice = replace(advice, but=f"{advice.but}; {obstacle}")
    return _show(advice, card, demand, typed, terminal)


async def _isolation(session: Session, namespace: str) -> str:
    """Return the level of isolation that the label of the namespace demands; empty if it has none or cannot be read.
    Raises Trouble if the value is not a level, because no mode would be admitted."""
    labels = await session.namespace_labels(namespace)
    if find_admitted(labels) == ():
        raise Trouble(describe_guard(namespace, labels))
    return labels.get(LABEL_ISOLATION, "")


async def _obstacle(session: Session, mode: Mode) -> str:
    """Return a clause about NVIDIA's programs that the mode needs and ClusterPolicy turns off. Empty if there are
    none, if there is no ClusterPolicy, or if ClusterPolicies cannot be read for any reason."""
    try:
        policy, _ = find_active(map(cluster_policy_view, await session.all(CLUSTER_POLICIES)))
    except Trouble:
        return ""
    off = [] if policy is None else [row for row in find_off(policy) if mode in row.modes]
    missing = [f"ClusterPolicy {row.switch} is false, so {row.consequence}" for row in off]
    return f"{', and '.join(missing)} (kubectl gpusharing doctor has the command)" if missing else ""


async def _deafness(session: Session) -> tuple[str | None, str]:
    """Return why no label can switch MPS on, found by the check that the operator makes before a change, and the
    remedy. Both are empty if a label can, as far as the DaemonSet shows. If there is no MPS daemon of the GPU
    Operator, or if DaemonSets cannot be listed for any reason, the reason is None and the remedy empty."""
    try:
        views = [daemon_set_view(raw).mps_daemon for raw in await session.all(DAEMON_SETS)]
    except Trouble:
        return None, ""
    daemon = next((daemon for daemon in views if daemon is not None), None)
    if daemon is None:
        return None, ""
    why = find_deafness(daemon)
    return why, find_remedy(daemon).text if why else ""


async def _only_card(session: Session) -> str:
    """Return the product of the GPUs in the cluster, as the agents report it. Empty if they report no product or
    several, or if GPUNodes cannot be read for any reason."""
    try:
        nodes = await session.all(GPUNODES)
    except Trouble:
        return ""
    products = {text(gpu, "product") for raw in nodes for gpu in entries(raw, "status", "observed", "gpus")}
    return products.pop() if len(products) == 1 else ""


def _card(word: str) -> Card:
    """Return the card that `word` names (see `pick`). Raises Trouble if none or several match, or if the card uses the
    memory of the CPU."""
    card = pick(word)
    if not card.memory_gb:
        raise Trouble(
            f"{card.key} shares its memory with the CPU, so this plugin does not know what fits on it"
        )
    return card


def _find_answers(typed: Namespace, card: Card, demand: Demand | None, isolation: str = "") -> AdviceAnswers:
    """Collect the answers to all questions from the flags. If no flag answers a question, the answer comes from
    `demand` where that is possible (`promised` and `bursts`), or else from the terminal; without a terminal it is
    no. Whether MPS can be switched on follows from --gpu-operator. `isolation` is the level that the label of the
    namespace demands. Raises Trouble if a flag cannot be parsed, or if the memory is unknown and there is no
    terminal to ask at."""
    no_mps = find_deaf_release(typed.gpu_operator)
    if typed.gpu_operator and not is_release(typed.gpu_operator):
        raise Trouble(f"--gpu-operator {typed.gpu_operator} is not a version; pass one such as v25.10.1")
    known = {} if demand is None else {"promise": demand.promised, "bursts": demand.bursts}
    size = typed.memory or _ask(
        "How much memory does one workload need at its peak (for example 15Gi)?",
        "--memory"
        if demand is None
        else "--memory, because the pods do not declare how much memory they need",
    )
    answers = {
        name: getattr(typed, name)
        or (known[name] if name in known else sys.stdin.isatty() and agrees(question, sys.stdin))
        for name, question in QUESTIONS.items()
    }
    remedy = find_remedy(RELEASED_DAEMON).text if no_mps else ""
    named = typed.gpu_operator
    return AdviceAnswers(
        card,
        size_of(size),
        isolation=isolation,
        no_mps=no_mps,
        mps_remedy=remedy,
        gpu_operator=named,
        **answers,
    )


def _show(advice: Advice, card: Card, demand: Demand | None, typed: Namespace, terminal: Terminal) -> int:
    """Print the advice and the policy in the output format, and return DONE. In YAML only the policy is printed."""
    policy = advice.policy(typed.name, typed.pool)
    if terminal.output == "yaml":
        terminal.data(policy)
    elif terminal.structured:
        terminal.data(as_data(advice, policy))
    else:
        paper = terminal.paper
        lines = [] if demand is None else prose(f"{describe_demand(demand)}.", paper, hang="  ")
        terminal.show([*lines, *describe(card, advice, policy, paper)])
    return DONE


def size_of(text: str) -> float:
    """Parse a size such as `15Gi` and return it in GiB. The unit may be Gi or GiB, G or GB (decimal), or Mi or MiB;
    without one, the number is in GiB. Raises Trouble if the size cannot be parsed or is not positive."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise Trouble(f"{text!r} is not a memory size; use one such as 15Gi")
    return float(match[1]) * _GIB[match[2] or ""]


def _ask(question: str, flag: str) -> str:
    """Ask a question at the terminal and return the answer. If there is no terminal, raises a Trouble that names
    `flag`."""
    if not sys.stdin.isatty():
        raise Trouble(f"advise needs {flag}")
    return ask_line(question, sys.stdin)


def describe(card: Card, advice: Advice, policy: dict[str, object], paper: Paper) -> list[Line]:
    """Draw the advice with its reasons and its disadvantage, and the policy as YAML."""
    layout = advice.layout
    what = f"{advice.mode}, {layout_text(layout)} on each GPU" if layout else str(advice.mode)
    if not layout and advice.shares > 1:
        what = f"{advice.mode}, {counted(advice.shares, 'share')} of each GPU"
    lines = fold(line(Span(what, Ink.TITLE)), paper)
    if layout and (drawn := draw(layout, card.profiles, paper)):
        lines.append(line("  ", *drawn))
    for reason in advice.why:
        lines += prose(f"Because {reason}.", paper, hang="  ")
    lines += prose(f"But {advice.but}.", paper, hang="  ", ink=Ink.WAITING)
    lines.append(BLANK)
    return [*lines, *(line(row) for row in yaml.safe_dump(policy, sort_keys=False).splitlines())]


def as_data(advice: Advice, policy: dict[str, object]) -> dict[str, Any]:
    """Return the advice and the policy as plain data, for JSON."""
    return {
        "mode": str(advice.mode),
        "shares": advice.shares,
        "profile": "" if advice.profile is None else advice.profile.name,
        "layout": dict(advice.layout),
        "why": list(advice.why),
        "but": advice.but,
        "policy": policy,
    }

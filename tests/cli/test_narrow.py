"""What every verb says on a terminal of 40 columns."""

import re

import pytest
from tests.cli.asking import ask, operated
from tests.embedded.scene import MIXED
from tests.fakes.virtualtime import virtually

from gpusharing.cli.drawing import Ink, Paper, Span, fold, line, plain
from gpusharing.cli.layouts import find_answer, pick, wanted_of
from gpusharing.cli.layoutstext import describe
from gpusharing.kube.client import JSON, PODS

WIDTH = 40
WHOLE = re.compile(r" *-> |.*\{|.*http")
"""Lines that are copied, and are never broken for that: commands and patches."""
TYPED = {
    "status": ("status",),
    "status with a timeline": ("status", "--timeline"),
    "plan": ("plan",),
    "why of a node": ("why", "gpu-1"),
    "doctor": ("doctor",),
    "skip": ("skip", "gpu-1", "--dry-run"),
    "retry": ("retry", "gpu-1", "--dry-run"),
    "abort": ("abort", "gpu-1", "--dry-run"),
    "pause": ("pause", "pool-b", "--dry-run"),
    "why of a pod": ("why", "pod/llm"),
}


def waiting(name: str, resource: str) -> JSON:
    """A pod that asks for one of these and has no node."""
    container = {"name": "main", "resources": {"limits": {resource: "1"}}}
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [container]},
        "status": {"phase": "Pending"},
    }


def too_long(text: str) -> list[str]:
    """Lines that do not fit and could have been broken."""
    return [
        line
        for line in text.splitlines()
        if len(line) > WIDTH and " " in line.strip() and not WHOLE.match(line)
    ]


@virtually
async def test_no_verb_says_a_line_that_does_not_fit() -> None:
    async with operated(2) as stage:
        stage.apply(MIXED)
        await stage.phase("gpu-1", "Cordoned")
        stage.e.cluster.add(PODS, waiting("llm", "nvidia.com/mig-7g.80gb"))
        found = {}
        for name, words in TYPED.items():
            told = await ask(stage.e.cluster, *words, width=WIDTH)
            found[name] = too_long(told.out)
            assert told.out
    assert {name: lines for name, lines in found.items() if lines} == {}


@virtually
async def test_a_proof_that_is_cut_says_below_what_is_wrong() -> None:
    """Both sides begin alike, and what differs is what was cut."""
    async with operated(1) as stage:
        stage.apply(MIXED)
        await stage.phase("gpu-1", "Reconfiguring")
        told = await ask(stage.e.cluster, "why", "gpu-1", width=WIDTH)
    text = " ".join(told.out.split())
    assert re.search(r"x mig-man\S+ (\S+\.\.) \1", text)
    assert re.search(r"mig-manager: mig-manager applies \S+ \(state pending\)", text)


@virtually
async def test_what_a_pool_waits_for_is_told_below_where_its_cell_is_cut() -> None:
    async with operated(1) as stage:
        stage.apply(MIXED)
        await stage.phase("gpu-1", "Cordoned")
        stage.e.cluster.add(PODS, waiting("llm", "nvidia.com/mig-3g.40gb"))
        told = await ask(stage.e.cluster, "why", "pod/llm", width=WIDTH)
    text = " ".join(told.out.split())
    assert re.search(r"pool-b: not yet; \S+: gpu-1: .+", text), text


@pytest.mark.parametrize("fits", ["3g.40gb", "7g.80gb,1g.10gb"])
def test_no_layout_is_told_in_a_line_that_does_not_fit(fits: str) -> None:
    answer = find_answer(pick("h100-80gb"), wanted_of(fits), everything=False)
    assert too_long(plain(describe(answer, Paper(WIDTH)))) == []


def test_a_line_of_several_inks_is_broken_between_words_and_keeps_them() -> None:
    one = line(Span("gpu-1", Ink.TITLE), "  pool-b  ", Span("Draining", Ink.BUSY), ", until 10:11:00Z")
    assert fold(one, Paper(80)) == [one]
    folded = fold(one, Paper(24))
    assert plain(folded) == "gpu-1 pool-b Draining,\nuntil 10:11:00Z\n"
    assert Span("Draining", Ink.BUSY) in folded[0]

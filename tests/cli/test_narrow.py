"""What every verb says on a terminal of 40 columns."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.cli.asking import CASES, Answered, alone, ask, operated
from tests.cli.fakeprometheus import DAY, HOURS, FakePrometheus, hourly
from tests.embedded.scene import FULL, MIXED, at_once, node
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import JSON, NODES, PODS
from kubectl_gpusharing.setup.layouts import describe, find_answer, pick, wanted_of
from kubectl_gpusharing.shell.arguments import VERBS
from kubectl_gpusharing.shell.drawing import Ink, PrintOptions, Span, fold, line, plain

WIDTH = 40
WHOLE = re.compile(r" *-> |.*\{|.*http")
"""Lines that are copied, and are never broken for that: commands and patches."""
Typed = Mapping[str, Sequence[str]]
TYPED: Typed = {
    "status": ("status",),
    "status with a timeline": ("status", "--timeline"),
    "plan": ("plan",),
    "why of a node": ("why", "gpu-1"),
    "doctor": ("doctor",),
    "skip": ("skip", "gpu-1", "--dry-run"),
    "abort": ("abort", "gpu-1", "--dry-run"),
    "pause": ("pause", "pool-b", "--dry-run"),
    "why of a pod": ("why", "pod/llm"),
    "advise by pods": ("advise", "-n", "default", "--card", "h100-80gb"),
    "support-bundle": ("support-bundle",),
    "free": ("free",),
    "free by node": ("free", "--by", "node"),
    "free by policy": ("free", "--by", "policy"),
    "free by namespace": ("free", "--by", "namespace"),
    "free by pod": ("free", "--by", "pod"),
    "free with the use": ("free", "--usage"),
    "free of a namespace": ("free", "-n", "default"),
}
"""While a node changes."""
WAITING: Typed = {
    "plan that waits": ("plan",),
    "status that waits": ("status",),
    "approve": ("approve", "pool-b", "--dry-run"),
    "retry": ("retry", "gpu-2", "--dry-run"),
    "resume": ("resume", "pool-c", "--dry-run"),
}
"""While a plan waits for an approval, a person has cordoned a node, and another pool is paused."""
SHARED = ("--no-promise", "--no-strangers", "--no-bill")
ALONE: Typed = {
    "advise MIG": ("advise", "--card", "h100-80gb", "--memory", "4Gi", "--promise", "--strangers", "--bill"),
    "advise sizes": ("advise", "--card", "h100-80gb", "--need", "2x60Gi", "--need", "9x8Gi", "--price", "3.20"),
    "advise MPS": ("advise", "--card", "l40s", "--memory", "4Gi", "--gpu-operator", "v25.10.1", *SHARED),
    "advise TimeSlicing": ("advise", "--card", "l40s", "--memory", "4Gi", "--bursts", *SHARED),
    "advise without answers": ("advise", "--card", "h100-80gb", "--memory", "4Gi"),
    "advise Full": ("advise", "--card", "h100-80gb", "--memory", "200Gi"),
    "layouts": ("layouts",),
    "layouts of a card": ("layouts", "h100-80gb"),
    "layouts of a card without MIG": ("layouts", "l40s"),
    "lint": ("lint", str(CASES)),
}
METERED: Typed = {
    "cost": ("cost", "--window", "1d"),
    "recommend": ("recommend", "--window", f"{HOURS}h"),
    "recommend with its evidence": ("recommend", "--window", f"{HOURS}h", "-v"),
}
"""By Prometheus alone."""
LONG = {"namespace": "a-team-of-many-words", "pod": "a-model-of-many-words-6b8f9c7d5-x2k4p"}
LASTING: Typed = {"ui": ("ui",)}
"""Goes on until Ctrl-C: tests/cli/test_ui.py."""
FILES: Typed = {"import": ("import",)}
"""A file for kubectl, which goes by no terminal."""


def waiting(name: str, resource: str) -> JSON:
    container = {"name": "main", "resources": {"limits": {resource: "1"}}}
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [container]},
        "status": {"phase": "Pending"},
    }


def too_long(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > WIDTH and " " in line.strip() and not WHOLE.match(line)]


def check(told: Mapping[str, Answered]) -> None:
    assert [name for name, one in told.items() if not one.out] == []
    assert {name: lines for name, one in told.items() if (lines := too_long(one.out))} == {}


def test_no_verb_is_left_out() -> None:
    tried = {words[0] for typed in (TYPED, WAITING, ALONE, METERED, LASTING, FILES) for words in typed.values()}
    assert tried == set(VERBS), "a new verb goes into one of the tables above"


@virtually
async def test_no_verb_says_a_line_that_does_not_fit_while_a_node_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with operated(2) as scene:
        scene.apply(MIXED)
        await scene.phase("gpu-1", "Cordoned")
        for number, profile in enumerate(("2g.20gb", "1g.20gb", "1g.10gb", "1g.10gb")):
            scene.e.cluster.add(PODS, waiting(f"small-{number}", f"nvidia.com/mig-{profile}"))
        scene.e.cluster.add(PODS, waiting("llm", "nvidia.com/mig-7g.80gb"))
        check({name: await ask(scene.e.cluster, *typed, width=WIDTH) for name, typed in TYPED.items()})
        path = tmp_path / ("far-" * 12) / "bundle.tar.gz"
        path.parent.mkdir()
        check({"far": await ask(scene.e.cluster, "support-bundle", str(path), width=WIDTH)})


@virtually
async def test_no_verb_says_a_line_that_does_not_fit_while_a_plan_waits() -> None:
    async with operated(2) as scene:
        scene.e.cluster.add(NODES, node("other-1", pool="c"))
        scene.e.cluster.patch(NODES, "gpu-2", {"spec": {"unschedulable": True}})
        scene.apply(MIXED, rollout=at_once(1, approval="Manual"))
        scene.apply(FULL, "pool-c", "c", rollout={"paused": True})
        await scene.reason("gpu-1", "ApprovalNeeded")
        await scene.reason("gpu-2", "AlreadyCordoned")
        check({name: await ask(scene.e.cluster, *typed, width=WIDTH) for name, typed in WAITING.items()})


def test_no_verb_says_a_line_that_does_not_fit_without_a_cluster() -> None:
    check({name: alone(*typed, width=WIDTH) for name, typed in ALONE.items()})


@pytest.mark.usefixtures("used")
def test_no_verb_says_a_line_that_does_not_fit_of_what_prometheus_knows(fake: FakePrometheus) -> None:
    fake.answers |= DAY
    for query, value in (("quantile_over_time(0.95, DCGM", "0.1"), ("DCGM_FI_DEV_FB_USED", "6144")):
        fake.ranges[query] = hourly(value, **LONG)
    check({name: alone(*typed, "--prometheus", fake.url, width=WIDTH) for name, typed in METERED.items()})


@virtually
async def test_a_file_is_the_same_on_every_terminal() -> None:
    async with operated(2) as scene:
        for typed in FILES.values():
            narrow, pipe = [await ask(scene.e.cluster, *typed, width=width) for width in (WIDTH, None)]
            assert narrow == pipe
            assert "kind: GPUSharingPolicy" in pipe.out


@virtually
async def test_a_proof_that_is_cut_says_below_what_is_wrong() -> None:
    async with operated(1) as scene:
        scene.apply(MIXED)
        await scene.phase("gpu-1", "Reconfiguring")
        told = await ask(scene.e.cluster, "why", "gpu-1", width=WIDTH)
    text = " ".join(told.out.split())
    assert re.search(r"x mig-man\S+ (\S+\.\.) \1", text)
    assert re.search(r"mig-manager: mig-manager is applying \S+ \(state pending\)", text)


@virtually
async def test_what_a_pool_waits_for_is_told_below_where_its_cell_is_cut() -> None:
    async with operated(1) as scene:
        scene.apply(MIXED)
        await scene.phase("gpu-1", "Cordoned")
        scene.e.cluster.add(PODS, waiting("llm", "nvidia.com/mig-3g.40gb"))
        told = await ask(scene.e.cluster, "why", "pod/llm", width=WIDTH)
    text = " ".join(told.out.split())
    assert re.search(r"pool-b: .*; \S+: gpu-1: .+", text), text


@pytest.mark.parametrize("fits", ["3g.40gb", "7g.80gb,1g.10gb"])
def test_no_layout_is_told_in_a_line_that_does_not_fit(fits: str) -> None:
    answer = find_answer(pick("h100-80gb"), wanted_of(fits), everything=False)
    assert too_long(plain(describe(answer, PrintOptions(WIDTH)))) == []


def test_a_line_of_several_inks_is_broken_between_words_and_keeps_them() -> None:
    one = line(Span("gpu-1", Ink.TITLE), "  pool-b  ", Span("Draining", Ink.BUSY), ", until 10:11:00Z")
    assert fold(one, PrintOptions(80)) == [one]
    folded = fold(one, PrintOptions(24))
    assert plain(folded) == "gpu-1 pool-b Draining,\nuntil 10:11:00Z\n"
    assert Span("Draining", Ink.BUSY) in folded[0]

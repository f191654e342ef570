"""`make demo` as people run it, and that it fails when it shows something that is not so."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hack.cluster import toolchain
from hack.demo import fleet
from hack.demo.__main__ import TRY_NEXT
from hack.demo.demo import Demo
from hack.demo.embedded import EmbeddedStage
from hack.demo.record import RECORD, Recorder
from hack.demo.screen import WIDTH, DemoFailed, Screen
from hack.demo.stage import ROOT
from hack.demo.story import fleet_appears
from hack.embedded import embedded
from hack.generate_picture import status
from tests.docs.commands import fences

from gpusharing.kube.client import JSON

CHECKS = 35
"""A story that lost a check would still end well."""
AGE = r"(?:\d+[smhd]){1,2}"
"""As kubectl writes it: 119s, then 2m and 2m1s, after ten minutes 11m."""
TABLE = [
    r"NAME +MODE +LAYOUT +NODES +GPUS +USED +READY +STATUS +AGE",
    rf"pool-a +MIG +4x1g\.20gb +4/4 +32 +97/128 +True +Synced +{AGE}",
    rf"pool-b +MIG +1x3g\.40gb\+4x1g\.10gb +3/3 +24 +15/120 +True +Synced +{AGE}",
    rf"pool-c +Full +1x full +2/2 +16 +16/16 +True +Synced +{AGE}",
    rf"pool-d +TimeSlicing +4x shared +2/2 +8 +21/32 +True +Synced +{AGE}",
]

[README] = [one.output for one in fences("README.md", (ROOT / "README.md").read_text()) if one.is_output]


def run_demo(driver: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`python -m hack.demo` with nothing of our environment that could change it."""
    environ = {key: value for key, value in os.environ.items() if key not in ("DRIVER", "KUBECONFIG")}
    return subprocess.run(
        [sys.executable, "-m", "hack.demo", "--driver", driver, *options],
        cwd=ROOT,
        env=environ | {"PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def assert_whole_story(done: subprocess.CompletedProcess[str], driver: str) -> None:
    """Exit status, banner, final table, every check, and what to try next."""
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert "SIMULATED" in lines[0]
    last = len(lines) - 1 - lines[::-1].index("$ kubectl get gpusharingpolicies")
    shown = [line.strip() for line in lines[last + 1 : last + 6]]
    assert [bool(re.fullmatch(row, line)) for row, line in zip(TABLE, shown, strict=True)] == [True] * 5, shown
    assert sum(line.startswith("  ✓ ") for line in lines) == CHECKS
    assert [line for line in lines if line.startswith(f"All {CHECKS} checks passed. What to try next:")]
    assert lines[-len(TRY_NEXT[driver]) :] == [f"  {line}" for line in TRY_NEXT[driver]]
    assert [line for line in lines if len(line) > WIDTH] == []
    README.as_part.assert_printed(done.stdout)


def test_the_story_on_the_embedded_cluster_holds_and_the_picture_is_of_it(tmp_path: Path) -> None:
    """Names of pods, the plan's hash and times differ from run to run; else: what record.py says takes it anew."""
    path = tmp_path / "record.json"
    assert_whole_story(run_demo("embedded", "--record", str(path)), "embedded")
    taken, kept = (json.loads(one.read_text()) for one in (path, RECORD))
    assert said(taken["fleet"]) == said(kept["fleet"])
    for number in (0, -1):  # with the plan, and after the change
        assert said(taken["rollout"][number]) == said(kept["rollout"][number])
    for record in (taken, kept):
        assert {"Pending", "Draining", "Synced"} <= phases(record, fleet.RANKER_NODE)


def phases(record: JSON, node: str) -> set[str]:
    moves = (one for state in record["rollout"] for one in state["gpunodes"] if one["metadata"]["name"] == node)
    return {one["status"]["transition"]["phase"] for one in moves}


def said(state: JSON) -> str:
    """What the picture shows of a recorded state, in words, without what is of one run: the server's answer comes later."""
    rows = ("".join(span.text for span in row) for row in status(state))
    text = re.sub(r' Server: "[^"]*"\.', "", " ".join(" ".join(rows).split()))
    text = re.sub(r"ranker-\w{5}", "ranker-POD", re.sub(r"plan \w{7}", "plan HASH", text))
    text = re.sub(r"\d\d:\d\d:\d\dZ|\b\d+[smh](\d+[sm])?\b", "TIME", text)
    # Whether the end can be foreseen goes by whether this drain has lasted longer than any change before it.
    return re.sub(
        r"about TIME left for 1 node: the (?:last change took|median of the last \d+ changes is) TIME ", "", text
    )


@pytest.mark.cluster
def test_the_story_on_a_real_control_plane_holds() -> None:
    toolchain.control_plane_programs()
    for name in ("kwok", "helm"):
        toolchain.program(name)
    assert_whole_story(run_demo("cluster"), "cluster")


def test_an_unknown_driver_is_refused_with_those_there_are() -> None:
    done = run_demo("kindd")
    assert done.returncode == 2
    assert "DRIVER must be one of embedded, cluster, not 'kindd'" in done.stderr


async def test_a_fleet_that_is_not_as_told_ends_the_story() -> None:
    async with embedded(fleet.nodes()[:-1]) as environment:
        demo = Demo(EmbeddedStage(environment), Screen(io.StringIO()))
        with pytest.raises(DemoFailed, match="the nodes to serve 80 whole GPUs"):
            await fleet_appears(demo, seconds=0.1)


async def test_what_does_not_come_ends_the_story_with_where_everything_stands() -> None:
    async with embedded(fleet.nodes()) as environment:
        demo = Demo(EmbeddedStage(environment), Screen(io.StringIO()))
        await demo.stage.apply(fleet.example("a"))  # and no operator
        with pytest.raises(DemoFailed, match=r"this did not happen within 0 s: pool-a Ready\nNAME +MODE"):
            await demo.ready("pool-a", seconds=0.1)


async def test_a_story_that_fails_while_it_is_recorded_says_only_why() -> None:
    async with embedded(fleet.nodes()) as environment:
        recorder = Recorder(EmbeddedStage(environment))
        with pytest.raises(DemoFailed, match="this does not hold"):
            async with recorder.following("pool-b"):
                raise DemoFailed("this does not hold")

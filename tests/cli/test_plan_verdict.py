"""The verdict of `plan` in text, data and exit status, and what `-f` and `--fail-on` take (kubectl_gpusharing/changing/plan.py, kubectl_gpusharing/live/files.py, report/proposal.py, pools/windows.py)."""

import asyncio
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.sim.fakefaults import EVER
from hack.sim.workloads import SimWorkload
from tests.cli.asking import ME, Answered, ask, install, operated, writes, written
from tests.embedded.scene import FULL, MIXED, SLICED, Scene, at_once, nodes, open_scene, policy
from tests.fakes.virtualtime import virtual_now, virtually
from tests.wording import lacks

from gpusharing.api.names import LABEL_ISOLATION, LABEL_SKIP
from gpusharing.kube.client import GPUNODES, JSON, NAMESPACES
from gpusharing.kube.errors import Forbidden
from gpusharing.planning.pools.windows import Course
from kubectl_gpusharing.changing.plan import FAIL_ON, Outcome
from kubectl_gpusharing.live.files import read_policies
from kubectl_gpusharing.pools.timeline import tell_courses
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED, FAILED_ON, Trouble, worst

SEVEN = {"layouts": [{"profiles": {"1g.10gb": 7}}]}
CANNOT, UNKNOWN = Outcome.CANNOT, Outcome.UNKNOWN


async def both(scene: Scene, *words: str) -> tuple[Answered, dict[str, Any]]:
    """The answer to `plan` with these words as text, and its verdict as data, which have to agree."""
    told = await ask(scene.e.cluster, "plan", *words)
    data = await ask(scene.e.cluster, "plan", "-o", "json", *words)
    verdict = data.data["verdict"]
    assert told.status == data.status == verdict["exitStatus"]
    first, _, _ = told.out.partition("\n\n")
    assert " ".join(first.split()).startswith(" ".join(verdict["message"].split()))
    return told, verdict


@virtually
async def test_a_policy_whose_nodes_all_follow_another_one_cannot_be_carried_out(tmp_path: Path) -> None:
    async with operated(2) as scene:
        await scene.serve(FULL, priority=5)
        told, verdict = await both(scene, "-f", written(tmp_path, policy(MIXED, "late")))
    assert (told.status, verdict["outcome"], verdict["nodes"]) == (CANNOT, "cannot", 0)
    assert verdict["message"].startswith("Cannot: late: other policies (pool-b) own every node")
    assert not lacks(verdict["message"], "spec.nodeSelector", "(gpu-1, gpu-2)")


@virtually
async def test_before_an_agent_has_reported_it_is_unknown_what_would_happen(tmp_path: Path) -> None:
    async with open_scene(*nodes(2), start=False, played=False) as scene:
        install(scene.e.cluster)
        told, verdict = await both(scene, "-f", written(tmp_path, policy(MIXED)))
    assert (told.status, verdict["outcome"]) == (UNKNOWN, "unknown")
    assert "Unknown: pool-b: gpu-1, gpu-2: " in told.out
    assert "agent" in verdict["message"]
    assert "nothing to change" not in told.out


@virtually
async def test_a_node_that_only_a_person_can_free_is_counted_apart(tmp_path: Path) -> None:
    async with operated(2, serving=FULL) as scene:
        scene.cordon("gpu-1")
        told, verdict = await both(scene, "-f", written(tmp_path, policy(MIXED)))
    assert told.status == CHANGES
    assert not lacks(verdict["message"], "1 node", "person", "0 pods")
    assert "Blocked: gpu-1 (AlreadyCordoned)" in verdict["message"]
    assert (verdict["nodes"], verdict["blocked"]) == (1, ["gpu-1"])


@virtually
async def test_where_every_node_waits_for_a_person_none_changes_now_and_each_has_its_command() -> None:
    async with operated(2, serving=FULL) as scene:
        scene.e.software.inject("gpu-1", "failed")
        scene.person("gpu-2", {"metadata": {"labels": {LABEL_SKIP: "true"}}})
        scene.apply(MIXED)
        await scene.phase("gpu-1", "Failed")
        told, verdict = await both(scene)
    assert (told.status, verdict["nodes"]) == (CHANGES, 0)
    assert verdict["message"].startswith("Changes: No node will change now. Blocked: ")
    commands = [f"kubectl annotate gpunode {name} --overwrite gpusharing.dev/" for name in ("gpu-1", "gpu-2")]
    assert not lacks(" ".join(told.out.split()), f"{commands[0]}retry=again", f"{commands[1]}skip=false")


@virtually
async def test_a_pod_on_a_blocked_node_fails_in_ci_although_it_is_not_counted(tmp_path: Path) -> None:
    async with operated(1, workloads=[SimWorkload("llm", 1)], serving=FULL) as scene:
        await scene.running("llm", 1)
        scene.cordon("gpu-1")
        told, verdict = await both(scene, "--fail-on", "evictions", "-f", written(tmp_path, policy(MIXED)))
    assert (told.status, verdict["failedOn"], verdict["pods"]) == (FAILED_ON, ["evictions"], 0)


@virtually
async def test_of_several_policies_the_gravest_outcome_counts_and_the_changes_are_told_too(tmp_path: Path) -> None:
    bad = policy({"mode": "TimeSlicing", "timeSlicing": {"replicas": 1}}, "bad", "nowhere")
    async with operated(1, serving=FULL) as scene:
        told, verdict = await both(scene, "-f", written(tmp_path, policy(MIXED), bad))
        data = await ask(scene.e.cluster, "plan", "-o", "json", "-f", written(tmp_path, policy(MIXED), bad))
        text = await ask(scene.e.cluster, "plan", "-o", "yaml", "-f", written(tmp_path, policy(MIXED), bad))
    assert yaml.safe_load(text.out) == data.data
    assert (told.status, verdict["nodes"]) == (CANNOT, 1)
    assert "Cannot: bad: spec.timeSlicing.replicas" in told.out
    assert not lacks(told.out, "1 node", "0 pods")
    assert {one["name"]: one["verdict"]["exitStatus"] for one in data.data["policies"]} == {
        "bad": CANNOT,
        "pool-b": CHANGES,
    }


@virtually
async def test_without_a_policy_there_is_nothing_to_do() -> None:
    async with operated(1) as scene:
        told, _ = await both(scene)
    assert (told.status, told.out.splitlines()[0]) == (DONE, "Nothing to do: there is no policy.")


# --- how long ----------------------------------------------------------------------------------------------------


@virtually
async def test_how_long_the_changes_take_is_a_range_from_those_that_were_made(tmp_path: Path) -> None:
    async with operated(4, serving=FULL) as scene:
        await scene.serve(MIXED, rollout=at_once(4))
        one, slow = await both(scene, "-f", written(tmp_path, policy(FULL, rollout=at_once(1))))
        _, fast = await both(scene, "-f", written(tmp_path, policy(FULL, rollout=at_once(4))))
        soaked = at_once(1, canary={"nodes": 1, "soak": "6h"})
        _, canary = await both(scene, "-f", written(tmp_path, policy(FULL, rollout=soaked)))
        scene.e.cluster.faults.fail("get", GPUNODES, Forbidden("no"), times=EVER, identity=ME)
        _, blind = await both(scene, "-f", written(tmp_path, policy(FULL)))
    assert "This takes about " in one.out
    assert "; this takes about " in one.out
    assert 0 < fast["secondsAtLeast"] <= fast["secondsAtMost"]
    assert slow["secondsAtLeast"] == pytest.approx(4 * fast["secondsAtLeast"], abs=4)
    assert canary["secondsAtMost"] == pytest.approx(slow["secondsAtMost"] + 6 * 3600, abs=4)
    assert (blind["secondsAtLeast"], blind["secondsAtMost"]) == (None, None)
    assert "How long this takes is unknown" in blind["message"]


@virtually
async def test_windows_are_part_of_how_long_the_changes_take(tmp_path: Path) -> None:
    async with operated(4, serving=FULL) as scene:
        await scene.serve(MIXED, rollout=at_once(4))
        opens = (virtual_now() + timedelta(hours=3)).astimezone(UTC)
        windows = [{"schedule": f"{opens.minute} {opens.hour} * * *", "duration": "31m"}]
        edit = policy(FULL, rollout=at_once(1, windows=windows), drain={"timeout": "30m"})
        told, verdict = await both(scene, "-f", written(tmp_path, edit))
        long = policy(FULL, rollout=at_once(4, windows=[{**windows[0], "duration": "2h"}]), drain={"timeout": "30m"})
        fits, once = await both(scene, "-f", written(tmp_path, long))
        short = policy(FULL, rollout=at_once(1, windows=[{**windows[0], "duration": "5m"}]), drain={"timeout": "30m"})
        _, never = await both(scene, "-f", written(tmp_path, short))
    assert told.status == CHANGES
    assert timedelta(days=3) < timedelta(seconds=verdict["secondsAtLeast"]) < timedelta(days=4)
    assert verdict["windowsAtMost"] == 4
    assert not lacks(verdict["message"], "does not fit", "first change")
    assert not lacks(told.out, "does not fit")
    assert timedelta(hours=2, minutes=58) < timedelta(seconds=once["secondsToStart"]) <= timedelta(hours=3)
    assert once["secondsToStart"] < once["secondsAtLeast"] <= once["secondsAtMost"] < once["secondsToStart"] + 1800
    assert once["windowsAtMost"] == 1
    assert re.search(r"first change may start in (3h|2h\d\dm), .* \d+[ms]", once["message"])
    assert re.search(r"first change may start in (3h|2h\d\dm), ", " ".join(fits.out.split()))
    assert (never["secondsToStart"], never["secondsAtLeast"], never["windowsAtMost"]) == (None, None, None)


HELD: dict[str, tuple[JSON, bool, str, str]] = {
    "a window": ({"windows": [{"schedule": "0 0 29 2 *", "duration": "6h"}]}, False, "WindowClosed", "may start in"),
    "windows that are too short": (
        {"windows": [{"schedule": "0 0 * * *", "duration": "1m"}]}, False, "WindowTooShort",
        "only after a person has acted"),
    "a node that a person cordoned": ({"maxUnavailable": 1}, True, "BudgetFull", "only after a person has acted"),
}  # fmt: skip


@pytest.mark.parametrize(("rollout", "cordons", "reason", "words"), HELD.values(), ids=HELD)
@virtually
async def test_what_will_hold_a_node_is_told_the_same_while_its_configuration_is_delivered(
    tmp_path: Path, rollout: JSON, cordons: bool, reason: str, words: str
) -> None:
    async with operated(2, serving=FULL) as scene:
        await scene.serve(MIXED, rollout=at_once(2))
        if cordons:
            scene.cordon("gpu-1")
        edit = policy({**MIXED, "mig": SEVEN}, rollout=rollout)
        _, before = await both(scene, "-f", written(tmp_path, edit))
        scene.e.apply(edit)
        await scene.reason("gpu-2", "ConfigPropagating")
        told, verdict = await both(scene)
        why = await ask(scene.e.cluster, "why", "gpu-2", "-o", "json")
        text = await ask(scene.e.cluster, "why", "gpu-2")
        status = await ask(scene.e.cluster, "status", "-o", "json")
    assert words in verdict["message"]
    assert (verdict["nodes"], verdict["blocked"]) == (before["nodes"], before["blocked"])
    assert reason in told.out
    assert "the first node starts" not in told.out
    assert f"once the configuration has reached the node, it waits further ({reason}): " in " ".join(text.out.split())
    assert ("Expected" in text.out) == (why.data["course"]["secondsToStart"] is not None) == (reason == "WindowClosed")
    assert status.data["pools"][0]["secondsLeft"] is None


@virtually
async def test_the_first_node_starts_when_its_configuration_has_been_delivered(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        await scene.serve(MIXED)
        scene.apply({**MIXED, "mig": SEVEN})
        await scene.reason("gpu-1", "ConfigPropagating")
        told, verdict = await both(scene)
        why = await ask(scene.e.cluster, "why", "gpu-1")
    assert "waits further" not in why.out
    assert "Expected: " in why.out
    assert verdict["nodes"] == 1
    assert re.search(r"the first node starts to change in (2m|1m\d+s), when it has its configuration", told.out)


def test_pools_that_begin_at_different_times_do_not_hide_that_one_fits_no_window() -> None:
    day, now = timedelta(days=1), datetime(2026, 11, 29, tzinfo=UTC)
    course = Course(now + day / 4, now + 3 * day, 2)
    told = tell_courses([course, course], now, apart=True)
    assert not lacks(told, "does not fit", "start in 6h", "72h")
    assert tell_courses([replace(course, spans=1)], now, apart=True) == told.partition(": ")[2]


@virtually
async def test_a_change_that_is_under_way_waits_for_no_window(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        await scene.serve(MIXED)
        scene.apply(FULL)
        await scene.any_fenced("actuating")
        windows = [{"schedule": "0 0 1 1 *", "duration": "2h"}]
        _, verdict = await both(scene, "-f", written(tmp_path, policy(FULL, rollout={"windows": windows})))
    assert (verdict["nodes"], verdict["secondsToStart"], verdict["windowsAtMost"]) == (1, 0, 1)
    assert verdict["secondsAtMost"] < 1800


@virtually
async def test_only_those_that_have_not_begun_wait_for_the_window(tmp_path: Path) -> None:
    async with operated(2, serving=FULL) as scene:
        await scene.serve(MIXED, rollout=at_once(2))
        scene.apply(FULL, rollout=at_once(1))
        await scene.any_fenced("actuating")
        opens = (virtual_now() + timedelta(hours=3)).astimezone(UTC)
        windows = [{"schedule": f"{opens.minute} {opens.hour} * * *", "duration": "2h"}]
        _, verdict = await both(scene, "-f", written(tmp_path, policy(FULL, rollout=at_once(1, windows=windows))))
    assert (verdict["nodes"], verdict["secondsToStart"], verdict["windowsAtMost"]) == (2, 0, 2)
    assert timedelta(hours=2, minutes=58) < timedelta(seconds=verdict["secondsAtMost"]) < timedelta(hours=3, minutes=5)
    assert not lacks(verdict["message"], "does not fit", "last change")


# --- --fail-on ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pods", "spec", "words", "status", "found"),
    [
        (0, MIXED, "evictions,shortfall", DONE, []),
        (2, MIXED, "evictions", FAILED_ON, ["evictions"]),
        (2, MIXED, "shortfall, evictions", FAILED_ON, ["shortfall", "evictions"]),
        (2, FULL, "evictions,shortfall", DONE, []),
    ],
    ids=["an idle node", "a pod leaves", "its resource vanishes", "nothing to do"],
)
@virtually
async def test_what_fails_in_ci(
    tmp_path: Path, pods: int, spec: dict[str, Any], words: str, status: int, found: list[str]
) -> None:
    async with operated(1, workloads=[SimWorkload("llm", pods)], serving=FULL) as scene:
        await scene.running("llm", pods)
        told, verdict = await both(scene, "--fail-on", words, "-f", written(tmp_path, policy(spec)))
    assert (told.status, verdict["failedOn"]) == (status, found)


GUARDED: dict[str, tuple[str, str, bool, int]] = {
    "team-a loses its last admitted node": ("mutating", "hardware", False, FAILED_ON),
    "its label admits the new mode too": ("validating", "memory", False, DONE),
    "the guard is off": ("false", "hardware", False, DONE),
    "nobody may read whether such a namespace exists": ("mutating", "", True, FAILED_ON),
}


@pytest.mark.parametrize(("guard", "level", "refused", "status"), GUARDED.values(), ids=GUARDED)
@virtually
async def test_a_guarded_namespace_without_a_node_is_a_shortfall_also_without_a_pod(
    tmp_path: Path, guard: str, level: str, refused: bool, status: int
) -> None:
    edit = written(tmp_path, policy({"mode": "MPS", "mps": {"replicas": 4}}))
    async with operated(1, settings={"GPUSHARING_GUARD": guard}) as scene:
        team = {"name": "team-a", "labels": {LABEL_ISOLATION: level} if level else {}}
        scene.e.cluster.add(NAMESPACES, {"metadata": team})
        await scene.serve(FULL)
        if refused:
            scene.e.cluster.faults.fail("list", NAMESPACES, Forbidden("no"), times=EVER, identity=ME)
        told, verdict = await both(scene, "--fail-on", "shortfall", "-f", edit)
    assert (told.status, verdict["failedOn"]) == (status, ["shortfall"] * (status == FAILED_ON))


@virtually
async def test_a_refused_policy_fails_in_ci_whatever_was_named_and_an_unknown_word_is_named(tmp_path: Path) -> None:
    bad = written(tmp_path, policy({"mode": "TimeSlicing", "timeSlicing": {"replicas": 1}}))
    async with operated(1) as scene:
        told, _ = await both(scene, "--fail-on", "evictions", "-f", bad)
        with pytest.raises(Trouble, match="--fail-on has no word 'eviction'; use one or more of evictions,shortfall"):
            await ask(scene.e.cluster, "plan", "--fail-on", "eviction")
    assert told.status == CANNOT


@pytest.mark.parametrize(
    ("statuses", "found"),
    [([], DONE), ([DONE, CHANGES], CHANGES), ([CANNOT, FAILED, UNKNOWN], FAILED), ([UNKNOWN, CANNOT], UNKNOWN)],
)
def test_of_several_exit_statuses_an_error_counts_most_then_the_highest(statuses: list[int], found: int) -> None:
    assert worst(statuses) == found


# --- before the installation ---------------------------------------------------------------------------------------

BARE = {"metadata": {"name": "cluster-policy"}, "spec": {}, "status": {"state": "ready"}}


@pytest.mark.parametrize(
    ("spec", "status", "changing", "pods"),
    [(MIXED, CHANGES, 1, 0), (SLICED, CHANGES, 2, 1), (FULL, DONE, 0, 0)],
    ids=["MIG", "time-slicing", "as it is"],
)
@virtually
async def test_before_the_installation_the_plan_is_an_estimate(
    tmp_path: Path, spec: dict[str, Any], status: int, changing: int, pods: int
) -> None:
    workload = SimWorkload("llm", 1)
    async with open_scene(*nodes(2), start=False, cluster_policy=BARE, workloads=[workload]) as scene:
        await scene.running("nvidia-mig-manager", 2)
        await scene.running("llm", 1)
        told, verdict = await both(scene, "-f", written(tmp_path, policy(spec)))
        assert writes(scene.e.cluster) == []
    assert (told.status, verdict["nodes"], verdict["estimate"]) == (status, changing, True)
    assert "(estimate, because the operator is not installed): " in told.out
    assert "No agent has read the GPUs" in told.out
    assert (verdict["pods"], len(verdict["blocked"])) == (pods, int(spec is MIXED))


@virtually
async def test_before_the_installation_labels_that_tell_nothing_leave_it_unknown(tmp_path: Path) -> None:
    async with open_scene(*nodes(1), start=False, cluster_policy=BARE) as scene:
        await asyncio.sleep(60)
        scene.person("gpu-1", {"metadata": {"labels": {"nvidia.com/gpu.product": None}}})
        told, verdict = await both(scene, "-f", written(tmp_path, policy(MIXED)))
    assert told.status == UNKNOWN
    assert not lacks(verdict["message"], "do not show which GPUs")


@virtually
async def test_beside_nodes_that_change_those_are_named_of_which_nothing_is_known_and_not_harmless_in_ci(
    tmp_path: Path,
) -> None:
    async with open_scene(*nodes(2), start=False, cluster_policy=BARE) as scene:
        await scene.running("nvidia-mig-manager", 2)
        scene.person("gpu-1", {"metadata": {"labels": {"nvidia.com/gpu.product": None}}})
        edit = written(tmp_path, policy(MIXED))
        told, verdict = await both(scene, "-f", edit)
        failed = {word: await both(scene, "--fail-on", word, "-f", edit) for word in FAIL_ON}
    assert (told.status, verdict["nodes"]) == (CHANGES, 1)
    assert not lacks(verdict["message"], "1 node", "0 pods", "pool-b", "unknown", "gpu-1", "labels")
    assert {word: (one.status, found["failedOn"]) for word, (one, found) in failed.items()} == {
        word: (FAILED_ON, [word]) for word in FAIL_ON
    }


@virtually
async def test_before_the_installation_a_cluster_without_the_gpu_operator_is_told_so(tmp_path: Path) -> None:
    async with open_scene(*nodes(1), start=False, cluster_policy=None, played=False) as scene:
        told, verdict = await both(scene, "-f", written(tmp_path, policy(MIXED)))
    assert told.status == CANNOT
    assert not lacks(verdict["message"], "ClusterPolicy", "device plugin")


# --- -f ----------------------------------------------------------------------------------------------------------


def test_a_directory_and_several_files_are_read_together(tmp_path: Path) -> None:
    """Standard input: tests/integration/test_import.py."""
    folder = tmp_path / "pools"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.yaml").write_text(json.dumps(policy(FULL, "a")))
    (folder / "b.json").write_text(json.dumps(policy(FULL, "b")))
    (folder / "notes.txt").write_text("{{")
    (folder / "deeper" / "z.yaml").write_text("{{")
    service = {"kind": "Service", "metadata": {"name": "s"}}
    file = written(tmp_path, policy(FULL, "c"), service, {"kind": "List", "items": [policy(FULL, "d")]})
    found, others = read_policies([str(folder), file])
    assert [one["metadata"]["name"] for one in found] == ["a", "b", "c", "d"]
    assert others == (f"{file}: Service/s is ignored",)


def test_a_directory_without_policies_is_named_and_one_with_a_kustomization_with_the_command_that_builds_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(Trouble, match=f"there is no GPUSharingPolicy in {tmp_path}"):
        read_policies([str(tmp_path)])
    (tmp_path / "kustomization.yaml").write_text("resources: [a.yaml]")
    with pytest.raises(Trouble, match=re.escape(f"kubectl kustomize {tmp_path} | kubectl gpusharing plan -f -")):
        read_policies([str(tmp_path)])

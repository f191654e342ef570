"""Somebody edits, deletes and renames our ConfigMaps behind the operator's back, and an admin the entries that are merged into them (docs/design/transition.md#configuration)."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import yaml
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from hack.sim.workloads import SimWorkload
from structlog.testing import capture_logs
from tests.embedded.scene import FULL, HOUR, MIXED, OTHER_MIXED, SLICED, Scene, node, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.api import names
from gpusharing.kube.client import CLUSTER_POLICIES, CONFIG_MAPS, JSON, LEASES, NODES, POLICIES
from gpusharing.kube.errors import Forbidden, Invalid

PLUGIN, MIG, SPACE = "gpusharing-device-plugin", "gpusharing-mig-parted", "gpu-operator"
PROPAGATION = timedelta(seconds=120)
HALVES = "[{devices: all, mig-enabled: true, mig-devices: {3g.40gb: 2}}]"
OLD: JSON = {"mode": "MIG", "mig": {"strategy": "single", "layouts": [{"profiles": {"1g.10gb": 7}}]}}
WHOLE = "[{devices: all, mig-enabled: false}]"


@virtually
async def test_an_entry_that_is_refused_holds_up_only_the_policy_that_wants_it() -> None:
    async with open_scene(node("gpu-b", pool="b"), node("gpu-c", pool="c")) as scene:
        scene.apply(FULL, name="pool-b", pool="b")
        scene.apply(SLICED, name="pool-c", pool="c")
        await scene.ready("pool-b", "pool-c")
        refusal = Invalid("etcd: request is too large")
        scene.e.cluster.faults.fail("patch", CONFIG_MAPS, refusal, times=EVER)
        scene.apply({"mode": "TimeSlicing", "timeSlicing": {"replicas": 8}}, name="pool-b", pool="b")
        await scene.reason("gpu-b", "ConfigNotWritten")
        scene.e.cluster.add(NODES, node("gpu-d", pool="c"))
        await scene.phase("gpu-d", "Synced")
        assert scene.transition("gpu-b")["reason"] == "ConfigNotWritten"


@virtually
async def test_while_the_policies_cannot_be_listed_a_node_that_would_start_says_so_and_takes_no_slot() -> None:
    async with open_scene(node("gpu-c", pool="c")) as scene:
        await scene.serve(SLICED, name="pool-c", pool="c")
        refusal = Forbidden("may not list gpusharingpolicies")
        scene.e.cluster.faults.fail("list", POLICIES, refusal, identity="operator", times=EVER)
        await asyncio.sleep(1500)
        scene.e.cluster.add(NODES, node("gpu-d", pool="c"))
        shown = await scene.reason("gpu-d", "CallFailed")
        assert shown["phase"] == "Pending"
        assert "the policies cannot be listed: may not list gpusharingpolicies" in shown["message"]
        annotations = [lease["metadata"].get("annotations") or {} for lease in scene.e.cluster.objects(LEASES)]
        assert "gpu-d" not in str(annotations)


def config_map(scene: Scene, name: str) -> JSON:
    return scene.e.cluster.get(CONFIG_MAPS, name, SPACE)


def data(scene: Scene) -> Mapping[str, Mapping[str, str]]:
    found = {raw["metadata"]["name"]: raw["data"] for raw in scene.e.cluster.objects(CONFIG_MAPS, namespace=SPACE)}
    return {name: dict(found.get(name, {})) for name in (PLUGIN, MIG)}


def entries(scene: Scene) -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load(data(scene)[MIG]["config.yaml"])["mig-configs"]
    return found


def patch(cluster: FakeCluster, name: str, changes: Mapping[str, str | None], **metadata: Any) -> None:
    """As `kubectl patch` and `kubectl edit` do."""
    cluster.patch(CONFIG_MAPS, name, {"data": dict(changes), "metadata": metadata}, SPACE)


def rename_keys(scene: Scene) -> None:
    found = data(scene)[PLUGIN]
    patch(scene.e.cluster, PLUGIN, {**{f"renamed-{key}": text for key, text in found.items()}})
    patch(scene.e.cluster, PLUGIN, dict.fromkeys(found))


def add_foreign_key(scene: Scene) -> None:
    patch(scene.e.cluster, PLUGIN, {"foreign": "version: v1\n"})


def set_keys(scene: Scene, text: str | None) -> None:
    patch(scene.e.cluster, PLUGIN, dict.fromkeys(data(scene)[PLUGIN], text))


def set_file(scene: Scene, change: Callable[[str], str | None]) -> None:
    patch(scene.e.cluster, MIG, {"config.yaml": change(data(scene)[MIG]["config.yaml"])})


def nest_times(scene: Scene) -> None:
    for name in (PLUGIN, MIG):
        patch(scene.e.cluster, name, {}, annotations={"gpusharing.dev/written": "[" * 5000 + "]" * 5000})


def misdate_times(scene: Scene) -> None:
    for name in (PLUGIN, MIG):
        stamps = dict.fromkeys([*data(scene)[PLUGIN], *entries(scene)], "0001-01-01T00:00:00+01:00")
        patch(scene.e.cluster, name, {}, annotations={"gpusharing.dev/written": json.dumps(stamps)})


def delete_config_maps(scene: Scene) -> None:
    for name in (PLUGIN, MIG):
        scene.e.cluster.delete(CONFIG_MAPS, name, SPACE)


def strip_marks(scene: Scene) -> None:
    for name in (PLUGIN, MIG):
        marks = {"app.kubernetes.io/managed-by": None}
        patch(scene.e.cluster, name, {}, labels=marks, annotations={"gpusharing.dev/written": None})


BEHIND: dict[str, Callable[[Scene], None]] = {
    "edits our keys": lambda scene: set_keys(scene, "version: v1\nflags: {}\n"),
    "deletes our keys": lambda scene: set_keys(scene, None),
    "renames our keys": rename_keys,
    "adds a key": add_foreign_key,
    "adds an entry": lambda scene: set_file(scene, lambda text: f"{text}  foreign: {HALVES}\n"),
    "gives our entries another meaning": lambda scene: set_file(
        scene, lambda text: text.replace("3g.40gb", "4g.40gb").replace("1g.10gb", "1g.20gb")
    ),
    "spoils the file": lambda scene: set_file(scene, lambda text: f"version: v2\n{text}"),
    "nests the file without end": lambda scene: set_file(
        scene, lambda _: "mig-configs: {x: " + "[" * 5000 + "]" * 5000 + "}"
    ),
    "nests our keys without end": lambda scene: set_keys(scene, "{a: " * 5000 + "}" * 5000),
    "nests the times without end": nest_times,
    "dates the times before time": misdate_times,
    "deletes the file": lambda scene: set_file(scene, lambda _: None),
    "deletes both ConfigMaps": delete_config_maps,
    "takes our marks off": strip_marks,
}
cases = pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())


def marks(scene: Scene) -> list[tuple[str, set[str]]]:
    found = []
    for name in (PLUGIN, MIG):
        metadata = config_map(scene, name)["metadata"]
        stamped = set(yaml.safe_load(metadata["annotations"]["gpusharing.dev/written"]))
        found.append((metadata["labels"]["app.kubernetes.io/managed-by"], stamped))
    return found


@cases
@virtually
async def test_while_pools_are_synced_it_is_put_right_at_once_and_nothing_else_happens(
    behind: Callable[[Scene], None],
) -> None:
    async with open_scene(
        *nodes(2), workloads=[SimWorkload("llm", 4, "nvidia.com/mig-3g.40gb")], serving=MIXED
    ) as scene:
        await scene.running("llm", 4)
        await asyncio.sleep(300)
        before, marked, labels = data(scene), marks(scene), [scene.labels(f"gpu-{n}") for n in (1, 2)]
        ready, mark = scene.condition("Ready"), scene.mark()
        behind(scene)
        await asyncio.sleep(5)
        assert (data(scene), marks(scene)) == (before, marked)
        await asyncio.sleep(300)
        assert data(scene) == before
        assert [scene.labels(f"gpu-{n}") for n in (1, 2)] == labels
        assert scene.condition("Ready") == ready, "nobody was told of a drift that was none"
        assert {write.call.resource.plural for write in scene.writes(mark)} == {"configmaps"}
        assert scene.evicted() == []
        assert scene.events()["Drifted"] == 0


@cases
@virtually
async def test_in_the_middle_of_a_change_the_label_waits_until_the_repair_has_reached_the_node(
    behind: Callable[[Scene], None],
) -> None:
    async with open_scene(*nodes(1), serving=OLD) as scene:
        old = scene.labels("gpu-1")[names.LABEL_PLUGIN_CONFIG], scene.labels("gpu-1")[names.LABEL_MIG_CONFIG]
        await asyncio.sleep(300)
        await scene.begin(MIXED)
        wanted, since, mark = data(scene), virtual_now(), scene.mark()
        behind(scene)
        await asyncio.sleep(2)
        assert data(scene) == wanted, "also the entries that only the node's labels name"
        await scene.fenced("gpu-1", "actuating")
        repaired = [write.call.name for write in scene.writes(mark, "configmaps")]
        assert repaired
        if behind is not add_foreign_key:
            assert virtual_now() - since >= PROPAGATION
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert scene.node_writes(mark) == {"gpu-1": 2}
        await asyncio.sleep(5)
        assert old[0] not in data(scene)[PLUGIN]
        assert old[1] not in entries(scene)


@pytest.mark.parametrize("days", [1, 300_000], ids=["tomorrow", "in the far future"])
@virtually
async def test_a_time_of_writing_that_is_yet_to_come_holds_nobody_up(days: int) -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        await scene.begin(MIXED)
        for name in (PLUGIN, MIG):
            stamps = yaml.safe_load(config_map(scene, name)["metadata"]["annotations"]["gpusharing.dev/written"])
            text = json.dumps(dict.fromkeys(stamps, (virtual_now() + timedelta(days=days)).isoformat()))
            patch(scene.e.cluster, name, {}, annotations={"gpusharing.dev/written": text})
        await scene.ready(seconds=300)


@virtually
async def test_without_the_right_to_put_it_back_the_change_waits_and_says_for_what() -> None:
    async with open_scene(*nodes(1), workloads=[SimWorkload("llm", 1)], serving=FULL) as scene:
        await scene.running("llm", 1)
        await asyncio.sleep(60)
        labels = scene.labels("gpu-1")
        refused = Forbidden("not allowed to patch configmaps")
        scene.e.cluster.faults.fail("patch", CONFIG_MAPS, refused, times=60)
        mark = scene.mark()
        transition = await scene.reach(SLICED, reason="ConfigNotWritten")
        assert "not allowed to patch configmaps" in transition["message"]
        assert scene.condition("Ready")["status"] == "False"
        await asyncio.sleep(100)
        assert scene.labels("gpu-1") == labels
        assert scene.node_writes(mark) == {}
        assert scene.evicted() == []
        await scene.ready(seconds=HOUR)


# --- a ConfigMap of somebody else ------------------------------------------------------------------

THEIRS = {PLUGIN: {"theirs": "version: v1\n"}, MIG: {"config.yaml": f"mig-configs: {{theirs: {WHOLE}}}"}}


def foreign(scene: Scene, name: str) -> None:
    scene.e.cluster.add(CONFIG_MAPS, {"metadata": {"name": name, "namespace": SPACE}, "data": THEIRS[name]})


def hand_over(scene: Scene, name: str) -> None:
    patch(scene.e.cluster, name, {}, labels={"app.kubernetes.io/managed-by": "gpusharing-operator"})


@pytest.mark.parametrize("name", THEIRS)
@virtually
async def test_a_config_map_that_was_there_before_us_is_not_touched_until_it_is_handed_over(name: str) -> None:
    async with open_scene(*nodes(1), start=False) as scene:
        foreign(scene, name)
        scene.e.start_operator()
        row = await scene.reject(MIXED, reason="ConfigMapTaken")
        assert f"kubectl label configmap {name} -n gpu-operator --overwrite" in row["message"]
        await asyncio.sleep(300)
        assert config_map(scene, name)["data"] == THEIRS[name]
        assert scene.node_writes() == {}
        hand_over(scene, name)
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert "theirs" not in {**data(scene)[PLUGIN], **entries(scene)}


@pytest.mark.parametrize("moment", ["fenced", "actuating"])
@virtually
async def test_somebody_who_puts_theirs_in_the_place_of_ours_stops_a_change_and_takes_no_label(moment: str) -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        scene.apply(MIXED)
        await scene.fenced("gpu-1", moment)
        labels = scene.labels("gpu-1")
        await scene.e.kill_operator()
        scene.e.cluster.delete(CONFIG_MAPS, PLUGIN, SPACE)
        foreign(scene, PLUGIN)
        scene.e.start_operator()
        await scene.until_condition("Accepted", "False", "ConfigMapTaken")
        await asyncio.sleep(300)
        now = scene.labels("gpu-1")
        ours = (names.LABEL_PLUGIN_CONFIG, names.LABEL_MIG_CONFIG)
        assert [now.get(label) for label in ours] == [labels.get(label) for label in ours]
        assert scene.cordoned("gpu-1") is (moment == "actuating"), "given back, or fenced until proven"
        assert config_map(scene, PLUGIN)["data"] == THEIRS[PLUGIN]
        hand_over(scene, PLUGIN)
        await scene.ready(seconds=HOUR)
        assert_as_wanted(scene, MIXED, "gpu-1")


# --- what goes and what stays ----------------------------------------------------------------------


@virtually
async def test_a_key_of_somebody_else_goes_with_the_last_label_that_names_it() -> None:
    async with open_scene(*nodes(1), node("gpu-9", pool="z"), serving=SLICED) as scene:
        patch(scene.e.cluster, PLUGIN, {"for-all": "version: v1\n", "theirs": "version: v1\n", "lost": "x"})
        default = {"spec": {"devicePlugin": {"config": {"default": "for-all"}}}}
        scene.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", default)
        scene.person("gpu-9", {"metadata": {"labels": {names.LABEL_PLUGIN_CONFIG: "theirs"}}})
        await scene.e.until(lambda: "lost" not in data(scene)[PLUGIN], "lost to go", 60)
        await asyncio.sleep(60)
        assert {"for-all", "theirs"} <= data(scene)[PLUGIN].keys()
        scene.person("gpu-9", {"metadata": {"labels": {names.LABEL_PLUGIN_CONFIG: None}}})
        await scene.e.until(lambda: "theirs" not in data(scene)[PLUGIN], "theirs to go", 60)


@virtually
async def test_between_actuation_and_proof_only_the_last_proof_keeps_the_old_entry() -> None:
    async with open_scene(*nodes(1), serving=OLD) as scene:
        key = scene.labels("gpu-1")[names.LABEL_PLUGIN_CONFIG]
        scene.apply(MIXED)
        named: list[tuple[bool, bool, bool]] = []
        while key in data(scene)[PLUGIN]:
            fence, annotations = scene.fence("gpu-1"), scene.annotations("gpu-1")
            label = scene.labels("gpu-1")[names.LABEL_PLUGIN_CONFIG] == key
            aimed = fence is not None and fence.target_plugin_config == key
            named.append((label, aimed, key in annotations.get(names.ANNOTATION_VERIFIED, "")))
            await asyncio.sleep(0.5)
        assert (False, False, True) in named, "after the PNR only the record of the last proof names it"
        await scene.ready()
        assert key not in json.dumps(scene.e.node("gpu-1")["metadata"])


SITE = "site-mig"
SEVENTHS = "[{devices: all, mig-enabled: true, mig-devices: {1g.10gb: 7}}]"


def site(scene: Scene, **entries_by_name: str) -> None:
    lines = "".join(f"  {name.replace('_', '-')}: {text}\n" for name, text in entries_by_name.items())
    patch(scene.e.cluster, SITE, {"config.yaml": f"version: v1\nmig-configs:\n{lines}"})


@asynccontextmanager
async def with_site(**entries_by_name: str) -> AsyncIterator[Scene]:
    """One node whose policy names the admin's entry `mine`; pods use what it offers."""
    async with open_scene(*nodes(1), start=False) as scene:
        scene.e.settings = replace(scene.e.settings, admin_mig_config_map=SITE)
        scene.e.cluster.add(CONFIG_MAPS, {"metadata": {"name": SITE, "namespace": SPACE}, "data": {}})
        site(scene, **entries_by_name)
        scene.e.start_operator()
        await scene.serve(MINE)
        await asyncio.sleep(300)
        yield scene


MINE: JSON = {"mode": "MIG", "mig": {"config": "mine"}}
MINE_AS = {HALVES: MIXED, SEVENTHS: OTHER_MIXED}


@virtually
async def test_what_an_admin_adds_or_changes_that_no_node_uses_is_merged_and_touches_no_node() -> None:
    async with with_site(mine=HALVES, other=SEVENTHS) as scene:
        mark = scene.mark()
        site(scene, mine=HALVES, other=WHOLE, more=SEVENTHS)
        await asyncio.sleep(300)
        assert entries(scene)["other"] == yaml.safe_load(WHOLE)
        assert entries(scene)["more"] == yaml.safe_load(SEVENTHS)
        assert {write.call.resource.plural for write in scene.writes(mark)} == {"configmaps"}


@virtually
async def test_another_meaning_of_an_entry_in_use_is_a_normal_change_as_often_as_it_is_given() -> None:
    async with with_site(mine=HALVES) as scene:
        for meaning in (SEVENTHS, HALVES, SEVENTHS):
            mark, since = scene.mark(), virtual_now()
            site(scene, mine=meaning)
            fence = await scene.fenced("gpu-1")
            assert not fence.drift, "nothing drifted: somebody wants something else"
            await scene.fenced("gpu-1", "actuating")
            assert virtual_now() - since >= PROPAGATION
            await scene.ready()
            assert_as_wanted(scene, MINE_AS[meaning], "gpu-1")
            assert scene.node_writes(mark) == {"gpu-1": 3}
            assert scene.events()["Drifted"] == 0


@pytest.mark.parametrize("moment", ["fenced", "actuating"])
@virtually
async def test_another_meaning_in_the_middle_of_a_change_is_reached_too(moment: str) -> None:
    async with with_site(mine=HALVES) as scene:
        site(scene, mine=SEVENTHS)
        await scene.fenced("gpu-1", moment)
        site(scene, mine=HALVES, other=SEVENTHS)
        await scene.ready(seconds=HOUR)
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert scene.labels("gpu-1")[names.LABEL_MIG_CONFIG] == "mine"


@pytest.mark.parametrize("broken", ["", None], ids=["empty", "gone"])
@virtually
async def test_entries_in_use_outlive_a_file_of_the_admins_that_cannot_be_read(broken: str | None) -> None:
    async with with_site(mine=HALVES) as scene:
        mark, ready = scene.mark(), scene.condition("Ready")
        if broken is None:
            scene.e.cluster.delete(CONFIG_MAPS, SITE, SPACE)
        else:
            patch(scene.e.cluster, SITE, {"config.yaml": broken})
        await asyncio.sleep(300)
        assert entries(scene)["mine"] == yaml.safe_load(HALVES)
        assert scene.condition("Ready") == ready
        assert scene.node_writes(mark) == {}
        await scene.serve(FULL)
        assert_as_wanted(scene, FULL, "gpu-1")


@virtually
async def test_a_policy_that_names_an_entry_which_mig_parted_would_refuse_is_not_accepted() -> None:
    async with with_site(mine=HALVES) as scene:
        site(scene, mine=HALVES, wrong="[{devices: all, mig-enabled: perhaps}]")
        row = await scene.reject({"mode": "MIG", "mig": {"config": "wrong"}}, reason="ConfigUnknown")
        assert "entry wrong: mig-enabled is neither true nor false" in row["message"]
        assert "wrong" not in entries(scene)
        await scene.serve(OTHER_MIXED)
        assert_as_wanted(scene, OTHER_MIXED, "gpu-1")


REFUSED = {
    "no rows": ("[]", "it is an empty list"),
    "only counts of 0": (
        "[{devices: all, mig-enabled: true, mig-devices: {1g.10gb: 0}}]",
        "all counts in mig-devices are 0",
    ),
    "an attribute that is added and taken away": (
        "[{devices: all, mig-enabled: true, mig-devices: {1g.24gb+gfx-me: 1}}]",
        "1g.24gb+gfx-me: 1 in mig-devices is not a profile with a count",
    ),
    "an attribute without a name": (
        '[{devices: all, mig-enabled: true, mig-devices: {"1g.24gb+,": 1}}]',
        "1g.24gb+,: 1 in mig-devices is not a profile with a count",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@virtually
async def test_an_entry_for_which_mig_parted_refuses_the_file_holds_up_no_other_and_is_named(name: str) -> None:
    """mig-parted reads the file as a whole (api/spec/v1), so one such entry used to stop every node."""
    rows, why = REFUSED[name]
    with capture_logs() as lines:
        async with with_site(mine=HALVES, spare=rows) as scene:
            assert "spare" not in entries(scene)
            assert_as_wanted(scene, MIXED, "gpu-1")
            assert scene.labels("gpu-1")[names.LABEL_MIG_CONFIG] == "mine"
            row = await scene.reject({"mode": "MIG", "mig": {"config": "spare"}}, reason="ConfigUnknown")
            assert f"entry spare: {why}" in row["message"]
    told = [
        line
        for line in lines
        if line["event"]
        == "mig-parted would reject entries in the admin's ConfigMap, so the operator does not merge them into its own"
    ]
    assert [(line["configmap"], why in line["why"]) for line in told] == [(SITE, True)]
    assert "the status cannot be computed; please report this bug" not in {line["event"] for line in lines}

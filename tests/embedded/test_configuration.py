"""Somebody edits, deletes and renames our ConfigMaps behind the operator's back (docs/design/way.md#configuration)."""

import asyncio
import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest
import yaml
from hack.sim.fakecluster import FakeCluster
from hack.sim.workloads import Workload
from tests.embedded.scene import FULL, HOUR, MIXED, SLICED, Scene, node, nodes, scene
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.api import names
from gpusharing.kube.client import CLUSTER_POLICIES, CONFIG_MAPS, JSON
from gpusharing.kube.errors import Forbidden

PLUGIN, MIG, SPACE = "gpusharing-device-plugin", "gpusharing-mig-parted", "gpu-operator"
PROPAGATION = timedelta(seconds=120)
HALVES = "[{devices: all, mig-enabled: true, mig-devices: {3g.40gb: 2}}]"
OLD: JSON = {"mode": "MIG", "mig": {"strategy": "single", "layouts": [{"profiles": {"1g.10gb": 7}}]}}
WHOLE = "[{devices: all, mig-enabled: false}]"


def config_map(stage: Scene, name: str) -> JSON:
    return stage.e.cluster.get(CONFIG_MAPS, name, SPACE)


def data(stage: Scene) -> Mapping[str, Mapping[str, str]]:
    """What both of our ConfigMaps hold."""
    found = {
        raw["metadata"]["name"]: raw["data"] for raw in stage.e.cluster.objects(CONFIG_MAPS, namespace=SPACE)
    }
    return {name: dict(found.get(name, {})) for name in (PLUGIN, MIG)}


def entries(stage: Scene) -> Mapping[str, Any]:
    """Entries of the mig-parted file."""
    found: Mapping[str, Any] = yaml.safe_load(data(stage)[MIG]["config.yaml"])["mig-configs"]
    return found


def patch(cluster: FakeCluster, name: str, changes: Mapping[str, str | None], **metadata: Any) -> None:
    """As `kubectl patch` and `kubectl edit` do."""
    cluster.patch(CONFIG_MAPS, name, {"data": dict(changes), "metadata": metadata}, SPACE)


def edit_keys(stage: Scene) -> None:
    patch(stage.e.cluster, PLUGIN, dict.fromkeys(data(stage)[PLUGIN], "version: v1\nflags: {}\n"))


def delete_keys(stage: Scene) -> None:
    patch(stage.e.cluster, PLUGIN, dict.fromkeys(data(stage)[PLUGIN]))


def rename_keys(stage: Scene) -> None:
    found = data(stage)[PLUGIN]
    patch(stage.e.cluster, PLUGIN, {**{f"renamed-{key}": text for key, text in found.items()}})
    patch(stage.e.cluster, PLUGIN, dict.fromkeys(found))


def add_foreign_key(stage: Scene) -> None:
    patch(stage.e.cluster, PLUGIN, {"foreign": "version: v1\n"})


def add_foreign_entry(stage: Scene) -> None:
    patch(stage.e.cluster, MIG, {"config.yaml": data(stage)[MIG]["config.yaml"] + f"  foreign: {HALVES}\n"})


def edit_mig_file(stage: Scene) -> None:
    text = data(stage)[MIG]["config.yaml"].replace("3g.40gb", "4g.40gb").replace("1g.10gb", "1g.20gb")
    patch(stage.e.cluster, MIG, {"config.yaml": text})


def spoil_mig_file(stage: Scene) -> None:
    patch(stage.e.cluster, MIG, {"config.yaml": "version: v2\n" + data(stage)[MIG]["config.yaml"]})


def nest_mig_file(stage: Scene) -> None:
    patch(stage.e.cluster, MIG, {"config.yaml": "mig-configs: {x: " + "[" * 5000 + "]" * 5000 + "}"})


def nest_keys(stage: Scene) -> None:
    patch(stage.e.cluster, PLUGIN, dict.fromkeys(data(stage)[PLUGIN], "{a: " * 5000 + "}" * 5000))


def nest_times(stage: Scene) -> None:
    for name in (PLUGIN, MIG):
        patch(stage.e.cluster, name, {}, annotations={"gpusharing.dev/written": "[" * 5000 + "]" * 5000})


def misdate_times(stage: Scene) -> None:
    for name in (PLUGIN, MIG):
        stamps = dict.fromkeys([*data(stage)[PLUGIN], *entries(stage)], "0001-01-01T00:00:00+01:00")
        patch(stage.e.cluster, name, {}, annotations={"gpusharing.dev/written": json.dumps(stamps)})


def delete_mig_file(stage: Scene) -> None:
    patch(stage.e.cluster, MIG, {"config.yaml": None})


def delete_config_maps(stage: Scene) -> None:
    for name in (PLUGIN, MIG):
        stage.e.cluster.delete(CONFIG_MAPS, name, SPACE)


def strip_marks(stage: Scene) -> None:
    for name in (PLUGIN, MIG):
        marks = {"app.kubernetes.io/managed-by": None}
        patch(stage.e.cluster, name, {}, labels=marks, annotations={"gpusharing.dev/written": None})


BEHIND: dict[str, Callable[[Scene], None]] = {
    "edits our keys": edit_keys,
    "deletes our keys": delete_keys,
    "renames our keys": rename_keys,
    "adds a key": add_foreign_key,
    "adds an entry": add_foreign_entry,
    "gives our entries another meaning": edit_mig_file,
    "spoils the file": spoil_mig_file,
    "nests the file without end": nest_mig_file,
    "nests our keys without end": nest_keys,
    "nests the times without end": nest_times,
    "dates the times before time": misdate_times,
    "deletes the file": delete_mig_file,
    "deletes both ConfigMaps": delete_config_maps,
    "takes our marks off": strip_marks,
}
cases = pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())


def marks(stage: Scene) -> list[tuple[str, set[str]]]:
    """Label and stamped entries of both ConfigMaps."""
    found = []
    for name in (PLUGIN, MIG):
        metadata = config_map(stage, name)["metadata"]
        stamped = set(yaml.safe_load(metadata["annotations"]["gpusharing.dev/written"]))
        found.append((metadata["labels"]["app.kubernetes.io/managed-by"], stamped))
    return found


@cases
@virtually
async def test_while_pools_are_synced_it_is_put_right_at_once_and_nothing_else_happens(
    behind: Callable[[Scene], None],
) -> None:
    async with scene(*nodes(2), workloads=[Workload("llm", 4, "nvidia.com/mig-3g.40gb")]) as stage:
        stage.apply(MIXED)
        await stage.ready()
        await stage.running("llm", 4)
        await asyncio.sleep(300)
        before, marked, labels = data(stage), marks(stage), [stage.labels(f"gpu-{n}") for n in (1, 2)]
        ready, mark = stage.condition("Ready"), stage.mark()
        behind(stage)
        await asyncio.sleep(5)
        assert (data(stage), marks(stage)) == (before, marked)
        await asyncio.sleep(300)
        assert data(stage) == before
        assert [stage.labels(f"gpu-{n}") for n in (1, 2)] == labels
        assert stage.condition("Ready") == ready, "nobody was told of a drift that was none"
        assert {write.call.resource.plural for write in stage.writes(mark)} == {"configmaps"}
        assert stage.evicted() == []
        assert stage.events()["Drifted"] == 0


@cases
@virtually
async def test_in_the_middle_of_a_change_the_label_waits_until_the_repair_has_reached_the_node(
    behind: Callable[[Scene], None],
) -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(OLD)
        await stage.ready()
        old = stage.labels("gpu-1")[names.LABEL_PLUGIN_CONFIG], stage.labels("gpu-1")[names.LABEL_MIG_CONFIG]
        await asyncio.sleep(300)
        stage.apply(MIXED)
        await stage.fenced("gpu-1")
        wanted, since, mark = data(stage), virtual_now(), stage.mark()
        behind(stage)
        await asyncio.sleep(2)
        assert data(stage) == wanted, "also the entries that only the node's labels name"
        await stage.fenced("gpu-1", "actuating")
        repaired = [write.call.name for write in stage.writes(mark, "configmaps")]
        assert repaired
        if behind is not add_foreign_key:
            assert virtual_now() - since >= PROPAGATION
        await stage.ready()
        assert_as_wanted(stage, MIXED, "gpu-1")
        assert stage.node_writes(mark) == {"gpu-1": 2}
        await asyncio.sleep(5)
        assert old[0] not in data(stage)[PLUGIN]
        assert old[1] not in entries(stage)


@virtually
async def test_a_time_of_writing_in_the_far_future_holds_nobody_up_for_ever() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(FULL)
        await stage.ready()
        stage.apply(MIXED)
        await stage.fenced("gpu-1")
        for name, _ in ((PLUGIN, 0), (MIG, 1)):
            stamps = yaml.safe_load(
                config_map(stage, name)["metadata"]["annotations"]["gpusharing.dev/written"]
            )
            text = json.dumps(dict.fromkeys(stamps, "2999-01-01T00:00:00+00:00"))
            patch(stage.e.cluster, name, {}, annotations={"gpusharing.dev/written": text})
        await stage.ready(seconds=300)


@virtually
async def test_without_the_right_to_put_it_back_the_change_waits_and_says_for_what() -> None:
    async with scene(*nodes(1), workloads=[Workload("llm", 1)]) as stage:
        stage.apply(FULL)
        await stage.ready()
        await stage.running("llm", 1)
        await asyncio.sleep(60)
        labels = stage.labels("gpu-1")
        refused = Forbidden("no right to patch configmaps")
        stage.e.cluster.faults.fail("patch", CONFIG_MAPS, refused, times=60)
        mark = stage.mark()
        stage.apply(SLICED)
        transition = await stage.reason("gpu-1", "ConfigNotWritten")
        assert "no right to patch configmaps" in transition["message"]
        assert stage.condition("Ready")["status"] == "False"
        await asyncio.sleep(100)
        assert stage.labels("gpu-1") == labels
        assert stage.node_writes(mark) == {}
        assert stage.evicted() == []
        await stage.ready(seconds=HOUR)


# --- a ConfigMap of somebody else ------------------------------------------------------------------

THEIRS = {PLUGIN: {"theirs": "version: v1\n"}, MIG: {"config.yaml": f"mig-configs: {{theirs: {WHOLE}}}"}}


def foreign(stage: Scene, name: str) -> None:
    stage.e.cluster.add(CONFIG_MAPS, {"metadata": {"name": name, "namespace": SPACE}, "data": THEIRS[name]})


def hand_over(stage: Scene, name: str) -> None:
    """The command in the message."""
    patch(stage.e.cluster, name, {}, labels={"app.kubernetes.io/managed-by": "gpusharing-operator"})


@pytest.mark.parametrize("name", THEIRS)
@virtually
async def test_a_config_map_that_was_there_before_us_is_not_touched_until_it_is_handed_over(
    name: str,
) -> None:
    async with scene(*nodes(1), start=False) as stage:
        foreign(stage, name)
        stage.e.start_operator()
        stage.apply(MIXED)
        row = await stage.until_condition("Accepted", "False", "ConfigMapTaken")
        assert f"kubectl label configmap {name} -n gpu-operator --overwrite" in row["message"]
        await asyncio.sleep(300)
        assert config_map(stage, name)["data"] == THEIRS[name]
        assert stage.node_writes() == {}
        hand_over(stage, name)
        await stage.ready()
        assert_as_wanted(stage, MIXED, "gpu-1")
        assert "theirs" not in {**data(stage)[PLUGIN], **entries(stage)}


@pytest.mark.parametrize("moment", ["fenced", "actuating"])
@virtually
async def test_somebody_who_puts_theirs_in_the_place_of_ours_stops_a_change_and_takes_no_label(
    moment: str,
) -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(FULL)
        await stage.ready()
        stage.apply(MIXED)
        await stage.fenced("gpu-1", moment)
        labels = stage.labels("gpu-1")
        await stage.e.kill_operator()
        stage.e.cluster.delete(CONFIG_MAPS, PLUGIN, SPACE)
        foreign(stage, PLUGIN)
        stage.e.start_operator()
        await stage.until_condition("Accepted", "False", "ConfigMapTaken")
        await asyncio.sleep(300)
        now = stage.labels("gpu-1")
        ours = (names.LABEL_PLUGIN_CONFIG, names.LABEL_MIG_CONFIG)
        assert [now.get(label) for label in ours] == [labels.get(label) for label in ours]
        assert stage.cordoned("gpu-1") is (moment == "actuating"), "given back, or fenced until proven"
        assert config_map(stage, PLUGIN)["data"] == THEIRS[PLUGIN]
        hand_over(stage, PLUGIN)
        await stage.ready(seconds=HOUR)
        assert_as_wanted(stage, MIXED, "gpu-1")


# --- what goes and what stays ----------------------------------------------------------------------


@virtually
async def test_a_key_of_somebody_else_stays_while_a_label_or_cluster_policys_default_names_it() -> None:
    async with scene(*nodes(1), node("gpu-9", pool="z")) as stage:
        stage.apply(SLICED)
        await stage.ready()
        patch(stage.e.cluster, PLUGIN, {"for-all": "version: v1\n", "theirs": "version: v1\n", "lost": "x"})
        default = {"spec": {"devicePlugin": {"config": {"default": "for-all"}}}}
        stage.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", default)
        stage.person("gpu-9", {"metadata": {"labels": {names.LABEL_PLUGIN_CONFIG: "theirs"}}})
        await stage.e.until(lambda: "lost" not in data(stage)[PLUGIN], "lost to go", 60)
        await asyncio.sleep(60)
        assert {"for-all", "theirs"} <= data(stage)[PLUGIN].keys()
        stage.person("gpu-9", {"metadata": {"labels": {names.LABEL_PLUGIN_CONFIG: None}}})
        await stage.e.until(lambda: "theirs" not in data(stage)[PLUGIN], "theirs to go", 60)


@virtually
async def test_an_entry_stays_until_no_label_fence_or_last_verified_pair_names_it() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(OLD)
        await stage.ready()
        key = stage.labels("gpu-1")[names.LABEL_PLUGIN_CONFIG]
        stage.apply(MIXED)
        named: list[tuple[bool, bool, bool]] = []
        while key in data(stage)[PLUGIN]:
            fence, annotations = stage.fence("gpu-1"), stage.annotations("gpu-1")
            label = stage.labels("gpu-1")[names.LABEL_PLUGIN_CONFIG] == key
            aimed = fence is not None and fence.target_plugin_config == key
            named.append((label, aimed, key in annotations.get(names.ANNOTATION_VERIFIED, "")))
            await asyncio.sleep(0.5)
        assert (False, False, True) in named, "after the PNR only the record of the last proof names it"
        await stage.ready()
        assert key not in json.dumps(stage.e.node("gpu-1")["metadata"])


@virtually
async def test_a_time_of_writing_that_is_yet_to_come_blocks_for_no_day() -> None:
    """A clock that was ahead, or somebody's hand: the entry is stamped anew."""
    async with scene(*nodes(1)) as stage:
        stage.apply(MIXED)
        await asyncio.sleep(2)
        for raw in stage.e.cluster.objects(CONFIG_MAPS):
            text = (raw["metadata"].get("annotations") or {}).get(names.ANNOTATION_WRITTEN)
            if text:
                late = (virtual_now() + timedelta(days=1)).isoformat()
                stamps = json.dumps(dict.fromkeys(json.loads(text), late))
                body = {"metadata": {"annotations": {names.ANNOTATION_WRITTEN: stamps}}}
                place = raw["metadata"]["namespace"]
                stage.e.cluster.patch(CONFIG_MAPS, raw["metadata"]["name"], body, namespace=place)
        await stage.ready(seconds=900)

"""An admin's own mig-parted entries are merged into our file, and the admin edits them (docs/design/transition.md#configuration)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import yaml
from structlog.testing import capture_logs
from tests.embedded.scene import FULL, HOUR, MIXED, OTHER_MIXED, Scene, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_configuration import PROPAGATION, SPACE, WHOLE, entries, patch
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.api import names
from gpusharing.kube.client import CONFIG_MAPS, JSON

SITE = "site-mig"
HALVES = "[{devices: all, mig-enabled: true, mig-devices: {3g.40gb: 2}}]"
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

"""NVIDIA's stack as one view (kube/stackreader.py), our two ConfigMaps in it, what is logged while it is read;
and why mig-manager failed, by its own log."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hack.sim.fakefaults import SILENCE
from structlog.testing import capture_logs
from tests.build import NOW, at, make_fence, make_node, make_operand
from tests.fakes.cluster import FakeCluster
from tests.fakes.virtualtime import virtual_now, virtually
from tests.kube.gathering import gathering
from tests.kube.test_gather import config_map

from gpusharing.api.names import ANNOTATION_WRITTEN, LABEL_MIG_STATE
from gpusharing.kube.actuatorlogs import RETRY, ActuatorLogs, failure_in
from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import CONFIG_MAPS, PODS
from gpusharing.kube.fanout import Workers
from gpusharing.kube.sources import ConfigMapView, Sources
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.kube.stackreader import OurConfigMaps, StackReader, parse_repairs, parse_written
from gpusharing.planning.snapshot.nvidia import MpsRepairs, Operand
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.wanted import migfile
from gpusharing.planning.wanted.pluginconfig import key_for
from gpusharing.planning.wanted.target import known_times


def test_the_view_says_what_the_executor_was_refused_and_stays_the_same_object_until_that_changes() -> None:
    sources, calls = Sources(FakeCluster().client("operator"), SourceSettings(), lambda: None), CallMemory()
    reader = StackReader(sources, calls, silent=False)
    first = reader.read(NOW)
    assert (first.write_error, reader.read(at(1)) is first) == ("", True)
    calls.write_error = "may not create configmaps"
    assert reader.read(at(2)).write_error == "may not create configmaps"


def test_the_time_of_every_entry_is_read_that_has_a_zone() -> None:
    times = {
        "pool-b-3f9c2a1": "2026-11-20T10:00:00Z",
        "full-1": "2026-11-20T11:00:00+01:00",
        "a": "2026-11-20T10:00:00",
    }
    ten = datetime(2026, 11, 20, 10, tzinfo=UTC)
    assert parse_written(json.dumps(times)) == {"pool-b-3f9c2a1": ten, "full-1": ten}


@pytest.mark.parametrize("text", ["", "{}", "null", "[]", "no JSON", '{"a": "yesterday"}', '{"a": 7}'])
def test_what_cannot_be_read_counts_as_never_stamped(text: str) -> None:
    assert parse_written(text) == {}


REPAIRS = {
    '{"count": 2, "plugin": "v0.20.0", "state": "uid/1"}': MpsRepairs(2, "v0.20.0", "uid/1"),
    '{"count": 2, "plugin": "v0.20.0", "state": "uid/1", "pending": true}': MpsRepairs(
        2, "v0.20.0", "uid/1", pending=True
    ),
    '{"count": Infinity, "plugin": "v0.20.0", "state": "uid/1"}': MpsRepairs(0, "v0.20.0", "uid/1"),
    '{"count": NaN}': MpsRepairs(),
    '{"count": 3, "plugin": "v0.20.0", "state": 7, "pending": 7}': MpsRepairs(3, "v0.20.0"),
    "": MpsRepairs(),
    "[]": MpsRepairs(),
    "no JSON": MpsRepairs(),
}


@pytest.mark.parametrize(("text", "repairs"), REPAIRS.items())
def test_the_repairs_of_the_mps_daemon_are_read_as_far_as_the_annotation_can_be(text: str, repairs: MpsRepairs) -> None:
    assert parse_repairs(text) == repairs


TEXT = "version: v1\n"
KEY = key_for("pool-b", TEXT)
ENTRY: migfile.Entry = [{"devices": "all", "mig-enabled": False}]
NAME = key_for("pool-b", migfile.entry_text(ENTRY))


def plugin_map(labelled: bool = False, uid: str = "1", written: str = "", **data: str) -> ConfigMapView:
    """The device-plugin ConfigMap; a name with `_` stands for one with `-`."""
    annotations = {ANNOTATION_WRITTEN: written} if written else {}
    found = {key.replace("_", "-"): text for key, text in data.items()}
    return ConfigMapView(found, annotations, uid, labelled)


def test_what_is_named_after_its_content_is_remembered_and_nothing_else() -> None:
    ours = OurConfigMaps()
    mig = ConfigMapView({"config.yaml": migfile.render({NAME: ENTRY, "all-disabled": ENTRY})}, {}, "2", True)
    ours.read(plugin_map(True, theirs="x", **{KEY: TEXT}), mig)
    ours.read(plugin_map(True, **{KEY: "edited"}), None)
    assert ours.seen_plugin_configs == {KEY: TEXT}
    assert ours.seen_mig_entries == {NAME: ENTRY}


def test_each_of_the_two_is_read_again_though_the_other_one_stayed_the_same() -> None:
    ours, plugin, first, second = (OurConfigMaps(), plugin_map(uid="1"), plugin_map(uid="2"), plugin_map(uid="3"))
    ours.read(plugin, first)
    ours.read(plugin, second)
    assert (ours.plugin, ours.mig) == (plugin, second)
    ours.read(first, second)
    assert (ours.plugin, ours.mig) == (first, second)


def test_one_of_somebody_else_has_entries_and_never_had_a_mark_of_ours() -> None:
    full = ConfigMapView({"theirs": "x"}, {}, "1")
    assert full.is_foreign
    assert not replace(full, ours=True).is_foreign
    assert not replace(full, data={}).is_foreign


def test_only_so_many_are_remembered_the_newest_ones() -> None:
    ours, texts = OurConfigMaps(), [f"version: v1 #{number}" for number in range(510)]
    for text in texts:
        ours.read(plugin_map(True, **{key_for("p", text): text}), None)
    assert list(ours.seen_plugin_configs.values()) == texts[10:]


def test_a_time_that_is_yet_to_come_counts_as_never_stamped() -> None:
    ours = OurConfigMaps()
    times = {"a": at(-1).isoformat(), "b": at(0).isoformat(), "c": at(60).isoformat()}
    ours.read(plugin_map(True, written=json.dumps(times)), None)
    assert known_times(ours.times, NOW).keys() == {"a", "b"}


SITE = SourceSettings(admin_mig_config_map="site-mig")
MISSPELT = SourceSettings(admin_plugin_config_map="misspelt", admin_mig_config_map="site-mig")


@virtually
async def test_a_missing_configmap_of_the_admin_is_logged_once() -> None:
    async with gathering(config_map("site-mig", "mig-configs: {}"), settings=MISSPELT) as stage:
        with capture_logs() as logged:
            stacks = [(await stage.snapshot(second)).stack for second in (0, 1)]
    assert [one.missing_maps for one in stacks] == [("misspelt",)] * 2
    assert [(one["event"], one["configmap"]) for one in logged] == [
        ("the admin's ConfigMap does not exist", "misspelt")
    ]


@virtually
async def test_a_wrong_file_of_the_admin_is_logged_when_it_changes_and_its_configmap_when_it_goes() -> None:
    async with gathering(config_map("site-mig", "no YAML: ["), settings=SITE) as stage:
        changes: list[Callable[[], object]] = [
            lambda: stage.cluster.add(*config_map("gpusharing-mig-parted", "mig-configs: {}")),
            lambda: stage.cluster.patch(
                CONFIG_MAPS, "site-mig", {"data": {"config.yaml": "nor this: ["}}, "gpu-operator"
            ),
            lambda: stage.cluster.store.remove(CONFIG_MAPS, ("gpu-operator", "site-mig")),
        ]
        with capture_logs() as logged:
            await stage.snapshot()
            counts = [len(logged)]
            for change in changes:
                change()
                await stage.seen()
                await stage.snapshot()
                counts.append(len(logged))
    assert counts == [1, 1, 2, 3]
    wrong, gone = (
        "mig-parted would reject entries in the admin's ConfigMap, so the operator does not merge them into its own",
        "the admin's ConfigMap does not exist",
    )
    assert [one["event"] for one in logged] == [wrong, wrong, gone]


@virtually
async def test_a_program_whose_output_is_the_answer_is_told_nothing_in_passing() -> None:
    """Log lines of the plugin stood before the YAML that kubectl apply was to read."""
    async with gathering(config_map("site-mig", "no YAML: ["), settings=MISSPELT) as stage:
        stage.gatherer.stack.silent = True
        with capture_logs() as logged:
            stack = (await stage.snapshot()).stack
    assert (stack.missing_maps, logged) == (("misspelt",), [])


LOG = """\
time="2026-11-20T10:54:00Z" level=info msg="Updating to MIG config: before"
time="2026-11-20T10:54:01Z" level=error msg="Error of an earlier run"
time="2026-11-20T10:55:20Z" level=info msg="Updating to MIG config: halves"
level=fatal msg="Assertion failure: selected configuration not currently applied"
time="2026-11-20T10:55:26Z" level=debug msg="    MIG capable: true\\n"
time="2026-11-20T10:55:26Z" level=error msg="Error creating GPU instance for '3g.40gb': ERROR_UNKNOWN"
time="2026-11-20T10:55:26Z" level=error msg="Error creating GPU instance for '1g.10gb': ERROR_UNKNOWN"
level=fatal msg="Error applying MIG configuration: error setting MIGConfig: all orderings failed"
time="2026-11-20T10:55:26Z" level=error msg="Error: failed to apply MIG configuration: exit status 1"
time="2026-11-20T10:55:26Z" level=info msg="Waiting for change to 'nvidia.com/mig.config' label"
"""
WHY = (
    "Error creating GPU instance for '3g.40gb': ERROR_UNKNOWN; "
    "Error applying MIG configuration: error setting MIGConfig: all orderings failed"
)


WORKERS = Workers(parallel=4)


def failed_node(attempt: int = 1) -> NodeView:
    return make_node(labels={LABEL_MIG_STATE: "failed"}, fence=make_fence(attempt=attempt))


def cluster_with(pod: Operand, log: str) -> FakeCluster:
    cluster = FakeCluster()
    cluster.add(PODS, {"metadata": {"name": pod.name, "namespace": pod.namespace}})
    cluster.logs[pod.namespace, pod.name] = log
    return cluster


def test_the_first_error_and_the_last_line_of_the_last_run_are_told() -> None:
    assert failure_in(LOG) == WHY


def test_mig_managers_own_line_stands_in_where_mig_parted_said_nothing() -> None:
    line = 'level=error msg="Error: failed to apply MIG configuration: signal: killed"'
    assert failure_in(line) == "Error: failed to apply MIG configuration: signal: killed"


def test_no_more_than_400_characters_of_an_error_are_told() -> None:
    assert failure_in(f'level=error msg="{"x" * 1000}"') == "x" * 400


async def test_of_a_log_the_last_200_lines_are_read() -> None:
    node, pod = failed_node(), make_operand("gpu-07")
    for more, told in ((199, {node.name: "why"}), (200, {})):
        cluster = cluster_with(pod, 'level=error msg="why"\n' + "level=debug\n" * more)
        logs = ActuatorLogs(cluster.client("operator"))
        assert await logs.read({node.name: node}, {node.name: pod}, NOW, WORKERS) == told


@virtually
async def test_a_kubelet_that_does_not_answer_is_given_up_after_two_seconds() -> None:
    node, pod, workers = failed_node(), make_operand("gpu-07"), Workers(parallel=4)
    cluster = cluster_with(pod, LOG)
    cluster.faults.fail("log", PODS, SILENCE)
    logs, begun = ActuatorLogs(cluster.client("operator")), virtual_now()
    while not begun < virtual_now() or workers.busy:
        assert await logs.read({node.name: node}, {node.name: pod}, NOW, workers) == {}
        await asyncio.sleep(0.25)
    assert 2.0 <= (virtual_now() - begun).total_seconds() <= 2.5


async def test_a_node_whose_mig_manager_has_no_pod_any_more_has_no_reason() -> None:
    assert await ActuatorLogs(FakeCluster().client("operator")).read({"gpu-07": failed_node()}, {}, NOW, WORKERS) == {}


def test_a_log_without_an_error_tells_nothing() -> None:
    assert failure_in("") == failure_in('level=info msg="Updating to MIG config: halves"') == ""


async def test_the_log_is_read_once_per_failure() -> None:
    node, pod = failed_node(), make_operand("gpu-07")
    cluster = cluster_with(pod, LOG)
    logs = ActuatorLogs(cluster.client("operator"))
    for _ in range(3):
        assert await logs.read({node.name: node}, {node.name: pod}, NOW, WORKERS) == {node.name: WHY}
    assert cluster.calls["operator", "log", "pods"] == 1
    again = failed_node(attempt=2)
    await logs.read({again.name: again}, {again.name: pod}, NOW, WORKERS)
    assert cluster.calls["operator", "log", "pods"] == 2


async def test_nothing_is_read_where_mig_manager_did_not_fail_for_us() -> None:
    node, pod = failed_node(), make_operand("gpu-07")
    cluster = cluster_with(pod, LOG)
    logs = ActuatorLogs(cluster.client("operator"))
    others = (replace(node, fence=None), replace(node, labels={LABEL_MIG_STATE: "success"}))
    for other in others:
        assert await logs.read({node.name: other}, {node.name: pod}, NOW, WORKERS) == {}
    assert cluster.calls["operator", "log", "pods"] == 0


async def test_a_log_that_cannot_be_read_is_asked_for_again_after_a_while() -> None:
    node, pod = failed_node(), make_operand("gpu-07")
    cluster = FakeCluster()
    logs = ActuatorLogs(cluster.client("operator"))
    for moment in (NOW, NOW + RETRY / 2, NOW + RETRY + timedelta(seconds=1)):
        assert await logs.read({node.name: node}, {node.name: pod}, moment, WORKERS) == {}
    assert cluster.calls["operator", "log", "pods"] == 2


async def test_a_log_that_is_never_answered_is_asked_for_more_and_more_seldom() -> None:
    node, pod = failed_node(), make_operand("gpu-07")
    cluster = FakeCluster()
    logs = ActuatorLogs(cluster.client("operator"))
    for seconds in range(0, 7200, 10):
        moment = NOW + timedelta(seconds=seconds)
        assert await logs.read({node.name: node}, {node.name: pod}, moment, WORKERS) == {}
    assert cluster.calls["operator", "log", "pods"] == 5 + (7200 - 930) // 600 + 1
    again = failed_node(attempt=2)
    await logs.read({again.name: again}, {again.name: pod}, moment, WORKERS)
    await logs.read({again.name: again}, {again.name: pod}, moment + RETRY, WORKERS)
    assert cluster.calls["operator", "log", "pods"] == 18, "another attempt begins anew"

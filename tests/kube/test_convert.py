"""Raw Nodes, GPUNodes and policies become views; what is malformed becomes the careful value.
kube/raw.py is tested through them; kube/maintenance.py: test_foreign.py."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.build import NO_MIG_MANAGER, make_spec
from tests.kube.damage import places, put
from tests.kube.objects import node, observed, observed_gpu
from tests.kube.test_fence import FENCE
from tests.wording import lacks

from gpusharing.api.names import TAINT_UNPROVEN, DisruptionClass
from gpusharing.kube import convert
from gpusharing.kube.convert import find_zone, find_zones
from gpusharing.kube.fence import record_text
from gpusharing.kube.raw import count
from gpusharing.planning.gpus.cards import Profile, find_card
from gpusharing.planning.snapshot.records import Deferred, SpecVersion, Verified

JSON = dict[str, Any]
JUNK: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({"a": [1]})
)


def test_a_node_shows_gpus_readiness_and_labels() -> None:
    view = convert.node_view(node())
    assert (view.name, view.ready, view.unschedulable, view.deleting) == ("gpu-07", True, False, False)
    assert view.resources == {"nvidia.com/gpu": 8}
    assert view.labels["gpusharing.dev/pool"] == "b"
    assert (view.fence, view.fence_error, view.foreign) == (None, "", "")


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_node_that_says_so_or_says_nothing_any_more_is_not_ready(status: str) -> None:
    raw = node()
    raw["status"]["conditions"][1]["status"] = status
    assert not convert.node_view(raw).ready


def test_a_heartbeat_does_not_change_the_view() -> None:
    beating = node(metadata={"resourceVersion": "42"})
    beating["status"]["conditions"][1]["lastHeartbeatTime"] = "2026-11-20T09:05:00Z"
    assert convert.node_view(beating) == convert.node_view(node())


@pytest.mark.parametrize(
    ("capacity", "allocatable", "unhealthy"),
    [
        pytest.param({}, {"nvidia.com/gpu": "7"}, {}, id="no capacity"),
        pytest.param({"nvidia.com/gpu": "8"}, {"nvidia.com/gpu": "8"}, {}, id="8 of 8"),
        pytest.param({"nvidia.com/gpu": "8"}, {"nvidia.com/gpu": "7"}, {"nvidia.com/gpu": 1}, id="7 of 8"),
        pytest.param({"nvidia.com/gpu": "8"}, {"nvidia.com/gpu": "0"}, {"nvidia.com/gpu": 8}, id="0 of 8"),
        pytest.param({"nvidia.com/gpu": "7"}, {"nvidia.com/gpu": "8"}, {}, id="8 of 7"),
        pytest.param({"cpu": "64"}, {"cpu": "63"}, {}, id="no GPU"),
    ],
)
def test_devices_that_are_counted_but_not_offered_are_unhealthy(
    capacity: JSON, allocatable: JSON, unhealthy: JSON
) -> None:
    raw = node()
    raw["status"] |= {"capacity": capacity, "allocatable": allocatable}
    assert convert.node_view(raw).unhealthy == unhealthy


def test_zero_and_unreadable_counts_are_absent_and_thousands_are_read() -> None:
    raw = node()
    raw["status"]["allocatable"] = {
        "nvidia.com/gpu": "0",
        "nvidia.com/gpu.shared": "2k",
        "nvidia.com/mig-1g.10gb": "many",
        "nvidia.com/hostdev": "4",
        "cpu": "128",
    }
    assert convert.node_view(raw).resources == {"nvidia.com/gpu.shared": 2000}


def test_our_records_and_wishes_on_a_node_are_read() -> None:
    until = datetime(2026, 11, 20, 11, tzinfo=UTC)
    deferred, verified = (
        Deferred(2, until, "PDB", SpecVersion("uid-b", "r7")),
        Verified("pool-b", "all-disabled", "pool-b-1", layout="1x full", gpus=1),
    )
    view = convert.node_view(
        node(
            metadata={
                "annotations": {
                    "gpusharing.dev/fence": record_text(FENCE),
                    "gpusharing.dev/deferred": record_text(deferred),
                    "gpusharing.dev/verified": record_text(verified),
                    "gpusharing.dev/hold-cordon": "true",
                    "gpusharing.dev/retry": "once more",
                }
            }
        )
    )
    assert (view.fence, view.deferred, view.verified) == (FENCE, deferred, verified)
    assert (view.hold_cordon, view.retry) == (True, "once more")
    assert view.fence is not None
    assert view.fence.disruption is DisruptionClass.RESET


def test_a_fence_that_cannot_be_read_is_an_error_and_not_an_absent_fence() -> None:
    view = convert.node_view(node(metadata={"annotations": {"gpusharing.dev/fence": "{"}}))
    assert view.fence is None
    assert "not JSON" in view.fence_error


@pytest.mark.parametrize(
    ("key", "effect", "barred"),
    [
        ("dedicated", "NoSchedule", True),
        ("dedicated", "NoExecute", True),
        ("dedicated", "PreferNoSchedule", False),
        ("node.kubernetes.io/unschedulable", "NoSchedule", False),
        ("node.kubernetes.io/not-ready", "NoExecute", False),
        (TAINT_UNPROVEN, "NoExecute", True),
    ],
)
def test_a_taint_keeps_pods_off_unless_it_only_tells_a_condition(key: str, effect: str, barred: bool) -> None:
    assert convert.node_view(node(spec={"taints": [{"key": key, "effect": effect}]})).barred is barred


def gpunode(report: object) -> JSON:
    return {
        "metadata": {"name": "gpu-07", "uid": "g7"},
        "spec": {"request": {"id": "r1", "quiet": True}},
        "status": {"observed": report, "transition": {"phase": "Draining"}},
    }


def test_a_gpunode_shows_the_request_and_the_observation() -> None:
    gpus = observed_gpu(mig="2x3g.40gb@0123456789abcdef"), observed_gpu(1, migPending=True)
    programs = "0; 0-1 python3"
    view = convert.gpunode_view(gpunode(observed(*gpus, programs=programs)))
    assert (view.request_id, view.quiet) == ("r1", True)
    assert view.observed is not None
    assert view.observed.allocated == {"nvidia.com/gpu": 1}
    gpu, other = view.observed.gpus
    assert (gpu.mig_enabled, gpu.mig_pending, gpu.layout) == (True, False, (("3g.40gb", 2),))
    assert (other.mig_enabled, other.mig_pending, other.layout) == (False, True, None)
    assert (gpu.processes, other.processes) == (("", "python3"), ("python3",))
    assert view.observed.devices == ("0123456789abcdef", "GPU-1")


def test_what_the_agent_may_not_see_is_unknown_and_not_empty() -> None:
    silent = observed(observed_gpu(instancesWithheld=True), computeModes="0 Unknown")
    del silent["allocated"], silent["pods"]
    view = convert.observed_view(silent)
    assert (view.error, view.allocated, view.pods) == ("", None, None)
    (gpu,) = view.gpus
    assert (gpu.instances_withheld, gpu.compute_mode) == (True, "Unknown")


def test_a_gpu_that_nvml_fails_on_is_told_with_nvmls_words() -> None:
    (gpu,) = convert.observed_view(observed(observed_gpu(access="Failed", error="Unknown Error"))).gpus
    assert (gpu.vitals.access, gpu.vitals.error) == ("Failed", "Unknown Error")


def test_remapped_rows_make_a_gpu_sick_only_where_they_are_pending_or_have_failed() -> None:
    def told(**rows: bool) -> tuple[bool, bool]:
        (gpu,) = convert.observed_view(observed(observed_gpu(**rows))).gpus
        return gpu.vitals.remap_pending, gpu.vitals.remap_failed

    assert [told(), told(remapPending=True), told(remapFailed=True)] == [(False, False), (True, False), (False, True)]


def test_what_a_report_leaves_out_is_at_its_default() -> None:
    view = convert.observed_view(observed(observed_gpu()))
    (gpu,) = view.gpus
    assert (gpu.instances_withheld, gpu.vitals.error, view.pods) == (False, "", 1)


def test_profiles_come_from_the_table_when_the_driver_lists_none() -> None:
    card = find_card("NVIDIA H100 80GB HBM3")
    assert card is not None
    view = convert.observed_view(observed(observed_gpu()))
    assert view.gpus[0].profiles == card.profiles


def test_placements_that_the_driver_does_not_tell_come_from_the_table() -> None:
    (gpu,) = convert.observed_view(observed(observed_gpu(), profiles=["3g.40gb id=9 max=2"])).gpus
    assert [(p.name, p.starts, p.size, p.max_count) for p in gpu.profiles] == [("3g.40gb", (0, 4), 4, 2)]


def test_what_the_driver_lists_beats_the_table() -> None:
    (gpu,) = convert.observed_view(observed(observed_gpu(), profiles=[PROFILE])).gpus
    assert gpu.profiles == (Profile("1g.99gb", (3,), 1, 1, 1, 99, 77),)


def test_where_the_driver_is_known_to_count_wrong_the_table_beats_what_it_lists() -> None:
    listed = "1g.6gb id=14 max=1 placements={0}:1"
    raw, card = observed(observed_gpu(), profiles=[listed]), find_card("NVIDIA A30")
    raw["models"][0]["product"] = "NVIDIA A30"
    assert card is not None
    assert convert.observed_view(raw).gpus[0].profiles == card.profiles


def test_a_card_that_the_driver_runs_without_mig_raises_no_doubt_about_its_profiles() -> None:
    raw = observed(observed_gpu())
    assert convert.observed_view(raw).gpus[0].doubt is not None, "it could have MIG, and lists no profile"
    del raw["gpus"][0]["mig"]
    assert convert.observed_view(raw).gpus[0].doubt is None


PROFILE = "1g.99gb id=77 max=1 placements={3}:1"


@pytest.mark.parametrize(
    "profile",
    [
        "1g.99gb id=77 max=33",
        "1g.99gb id=77 max=-1",
        "1g.99gb id=77 max=1 placements={-1}:1",
        "1g.99gb id=77 max=1 placements={32}:1",
        "1g.99gb id=77 max=1 placements={3}:33",
        "1g.99gb id=77 max=1 placements={3}:0",
        "1g.99gb id=77 max=1 placements={}:1",
        "1g.99gb id=77",
        "1g.99gb id=77 max=1\n",
    ],
)
def test_a_report_of_a_card_that_there_cannot_be_is_an_error_of_that_node(profile: str) -> None:
    """Placements are tried out, and counts go into the mig-parted file of all nodes."""
    view = convert.observed_view(observed(observed_gpu(), profiles=[profile]))
    assert view.gpus == ()
    assert not lacks(view.error, "models.0.profiles", "another form", "images")
    assert "id=" not in view.error, "no pattern is shown"


def test_a_profile_without_a_readable_name_and_a_place_that_is_told_twice_are_left_out() -> None:
    odd = [f"{name} max=1" for name in ("1g", "all-disabled", "1g.99gb:", "1g.99gb\n", "0g.5gb", "9g.5gb")]
    reported = observed(observed_gpu(), profiles=[*odd, "1g.99gb max=1 placements={3,3,0}:1"])
    (gpu,) = convert.observed_view(reported).gpus
    assert [(profile.name, profile.starts) for profile in gpu.profiles] == [("1g.99gb", (3, 0))]


def test_a_card_that_nobody_knows_offers_no_profiles() -> None:
    unknown = observed(observed_gpu(product="NVIDIA X1"), models=[])
    (gpu,) = convert.observed_view(unknown).gpus
    assert gpu.profiles == ()


def test_a_report_that_cannot_be_read_proves_nothing() -> None:
    view = convert.observed_view(observed(observed_gpu(mig="Perhaps")))
    assert (view.request_id, view.gpus) == ("", ())
    assert "gpus.0.mig" in view.error


def test_a_gpunode_without_an_observation_has_none() -> None:
    raw = gpunode(None)
    del raw["status"]
    assert convert.gpunode_view(raw).observed is None


def test_a_gpunode_is_read_with_what_its_annotations_ask_for_and_with_no_other_annotation() -> None:
    raw = gpunode(None)
    asked = {"gpusharing.dev/retry": "again", "gpusharing.dev/abort": "op-1", "gpusharing.dev/skip": "true"}
    raw["metadata"]["annotations"] = {**asked, "gpusharing.dev/fence": "{}", "team": "a"}
    assert convert.gpunode_view(raw).requests == asked
    raw["metadata"]["annotations"] = {"gpusharing.dev/retry": 1}
    assert convert.gpunode_view(raw).requests == {}


def test_a_policy_is_read_with_its_marks() -> None:
    view = convert.policy_view(
        {
            "metadata": {
                "name": "pool-b",
                "uid": "p1",
                "generation": 3,
                "creationTimestamp": "2026-10-10T08:00:00Z",
                "deletionTimestamp": "2026-11-20T08:00:00Z",
                "finalizers": ["gpusharing.dev/in-flight"],
                "annotations": {"gpusharing.dev/force-release": "true"},
            },
            "spec": {"nodeSelector": {"matchLabels": {"gpusharing.dev/pool": "b"}}, "mode": "Full"},
        }
    )
    assert (view.generation, view.deleting, view.finalizer, view.force_release) == (3, True, True, True)
    assert view.spec is not None
    assert view.problems == ()


@pytest.mark.parametrize(("field", "resets"), [("Reset", True), ("Retain", False), (None, False), (7, False)])
def test_a_policy_under_deletion_asks_for_whole_gpus_where_it_says_reset(field: object, resets: bool) -> None:
    metadata = {"name": "x", "deletionTimestamp": "2026-11-20T08:00:00Z", "finalizers": ["gpusharing.dev/in-flight"]}
    selector = {"matchLabels": {"gpusharing.dev/pool": "b"}}
    spec = {"nodeSelector": selector, "mode": "TimeSlicing", "timeSlicing": {"replicas": 4}, "deletionPolicy": field}
    view = convert.policy_view({"metadata": metadata, "spec": spec})
    assert (view.resetting, view.deleting) == (resets, not resets)


def test_a_policy_that_cannot_be_read_has_problems_and_no_spec() -> None:
    view = convert.policy_view({"metadata": {"name": "x"}, "spec": {"mode": "Sideways"}})
    assert view.spec is None
    assert view.problems


def test_a_cluster_policy_shows_what_can_override_us() -> None:
    plugin = {"config": {"name": "ours", "default": "any"}}
    metadata = {"name": "gpu-cluster-policy"}
    view = convert.cluster_policy_view(
        {"metadata": metadata, "spec": {"devicePlugin": plugin, "mig": {"strategy": "single"}}}
    )
    assert view.name == "gpu-cluster-policy"
    assert (view.plugin_config_name, view.plugin_default, view.mig_strategy) == ("ours", "any", "single")
    assert (view.switches, view.mig_config_name, view.with_reboot) == ({}, "", False)
    manager = {"enabled": False, "config": {"name": "x"}, "env": [{"name": "WITH_REBOOT", "value": "true"}]}
    view = convert.cluster_policy_view({"spec": {"migManager": manager}})
    assert (view.switches, view.mig_config_name, view.with_reboot) == (NO_MIG_MANAGER, "x", True)
    manager["env"] = [{"name": "WITH_REBOOT", "value": "false"}]
    assert not convert.cluster_policy_view({"spec": {"migManager": manager}}).with_reboot


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("8", 8), ("1k", 1000), ("2Ki", 2048), ("1500m", 2), (3, 3), ("-1", None), ("1e3x", None), (True, None)],
)
def test_quantities_are_read_as_the_server_writes_them(quantity: object, number: int | None) -> None:
    assert count(quantity) == number


def places_in(raw: JSON) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.sampled_from([place for place in places(raw) if place])


FULL_NODE = node(
    metadata={"annotations": {"gpusharing.dev/fence": record_text(FENCE)}},
    spec={"unschedulable": True, "taints": [{"key": "karpenter.sh/disrupted"}]},
)


@given(places_in(FULL_NODE), JUNK)
def test_a_node_with_any_damaged_field_is_still_converted(path: tuple[Any, ...], junk: object) -> None:
    view = convert.node_view(put(FULL_NODE, path, junk))
    assert view.fence is None or view.fence == FENCE


FULL_GPUNODE = gpunode(observed(observed_gpu()))


@given(places_in(FULL_GPUNODE), JUNK)
def test_a_gpunode_with_any_damaged_field_is_still_converted(path: tuple[Any, ...], junk: object) -> None:
    view = convert.gpunode_view(put(FULL_GPUNODE, path, junk))
    assert view.observed is None or view.observed.error or len(view.observed.gpus) <= 1


@pytest.mark.parametrize("guest", [True, False])
def test_a_card_that_needs_a_reset_in_a_virtual_machine_is_noted(guest: bool) -> None:
    raw = observed(observed_gpu())
    raw["models"][0]["resetInGuest"] = guest
    view = convert.observed_view(raw)
    assert view.error == ""
    assert [gpu.reset_in_guest for gpu in view.gpus] == [guest]


BERLIN = "Europe/Berlin"


def test_a_zone_is_that_of_the_package_and_not_of_the_system() -> None:
    berlin = find_zone(BERLIN)
    assert berlin is not None
    assert datetime(2026, 7, 1, 12, tzinfo=UTC).astimezone(berlin).hour == 14
    assert find_zone("UTC") is UTC
    assert [find_zone(name) for name in ("localtime", "../zones", "europe/berlin")] == [None, None, None]


def test_a_policy_has_the_zones_that_it_names_and_none_that_does_not_exist() -> None:
    nightly = {"schedule": "0 22 * * *", "duration": "2h"}
    spec = make_spec(
        "Full",
        rollout={
            "windows": [{**nightly, "timeZone": BERLIN}, {**nightly, "timeZone": "Mars/Olympus"}],
            "blackouts": [{**nightly, "timeZone": "America/New_York"}],
        },
    )
    assert find_zones(spec) == {name: find_zone(name) for name in ("America/New_York", BERLIN, "UTC")}
    assert find_zones(make_spec("Full")) == {"UTC": UTC}

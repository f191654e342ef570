"""policy × GPUs → what the node is to become, or why it cannot, with what the card offers instead."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import (
    H100,
    NO_MIG_MANAGER,
    SETTINGS,
    make_cluster_policy,
    make_gpu,
    make_policy,
    make_spec,
    make_stack,
)
from tests.configs import make_shared, target_for
from tests.wording import lacks

from gpusharing.planning.snapshot.nvidia import PlainStackView, StackView
from gpusharing.planning.snapshot.views import GpuView, Hardware
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted import migfile
from gpusharing.planning.wanted.target import (
    MOST_KINDS,
    PolicyTargets,
    Target,
    describe_layouts,
    find_request,
    predict_resources,
)

T4, A30, A100, H200 = "Tesla T4", "NVIDIA A30", "NVIDIA A100-SXM4-80GB", "NVIDIA H200"
TWO = (make_gpu(0), make_gpu(1))
MODELS = [make_gpu(product=product) for product in (H100, A30, A100, H200)]
NOT_OURS = make_cluster_policy(mig_config_name="default-mig-parted-config")
PARTED = migfile.render({"all-balanced": [{"devices": "all", "mig-enabled": True, "mig-devices": {"7g.80gb": 1}}]})


def target(*gpus: GpuView, mode: str = "MIG", stack: StackView | None = None, **fields: Any) -> Target | Finding:
    """What gpu-07 with these GPUs (two H100 unless given) becomes."""
    policy = make_policy(mode=mode, **fields)
    return target_for(policy, gpus or TWO, stack or make_stack(policy, models=MODELS))


def reached(*gpus: GpuView, **fields: Any) -> Target:
    found = target(*gpus, **fields)
    assert isinstance(found, Target), found
    return found


def refused(*gpus: GpuView, **fields: Any) -> Finding:
    found = target(*gpus, **fields)
    assert isinstance(found, Finding), found
    return found


GPU, ONE_G, THREE_G = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"
HALVES_AND_WHOLE = {"layouts": [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {}}]}
SINGLE = {"strategy": "single", "config": "all-1g.10gb"}
RENAMED = {"replicas": 3, "renameByDefault": True}
BALANCED, BALANCED_TEXT = {"config": "all-balanced"}, "1x3g.40gb+1x2g.20gb+2x1g.10gb"
TWICE = {"replicas": 2}
PREDICTIONS: dict[str, tuple[dict[str, Any], str, dict[str, int]]] = {
    "whole GPUs": ({"mode": "Full"}, "1x full", {GPU: 2}),
    "shares under the name of a GPU": ({"mode": "TimeSlicing"}, "4x shared", {GPU: 8}),
    "shares under their own name": (
        {"mode": "TimeSlicing", "timeSlicing": RENAMED}, "3x shared", {"nvidia.com/gpu.shared": 6}),
    "own layouts, mixed": ({}, "2x3g.40gb", {THREE_G: 4}),
    "one profile, single": ({"mig": SINGLE}, "7x1g.10gb", {GPU: 14}),
    "a named configuration of three profiles": (
        {"mig": BALANCED}, BALANCED_TEXT, {THREE_G: 2, "nvidia.com/mig-2g.20gb": 2, ONE_G: 4}),
    "one GPU divided and one whole": (
        {"mig": HALVES_AND_WHOLE}, "2x3g.40gb (1 GPU), 1x full (1 GPU)", {THREE_G: 2, GPU: 1}),
    "clients of MPS": ({"mode": "MPS"}, "4x shared", {GPU: 8}),
    "clients of MPS under their own name": (
        {"mode": "MPS", "mps": RENAMED}, "3x shared", {"nvidia.com/gpu.shared": 6}),
    "shares of instances, mixed": ({"timeSlicing": TWICE}, "2x3g.40gb 2x shared", {THREE_G: 8}),
    "shares of instances, single": ({"mig": SINGLE, "timeSlicing": TWICE}, "7x1g.10gb 2x shared", {GPU: 28}),
    "shares of instances, single, under their own name": (
        {"mig": SINGLE, "timeSlicing": RENAMED}, "7x1g.10gb 3x shared", {"nvidia.com/gpu.shared": 42}),
    "shares of instances of a named configuration, each profile listed": (
        {"mig": BALANCED, "timeSlicing": RENAMED}, f"{BALANCED_TEXT} 3x shared",
        {f"{THREE_G}.shared": 6, "nvidia.com/mig-2g.20gb.shared": 6, f"{ONE_G}.shared": 12}),
    "shares of one GPU divided and of one whole": (
        {"mig": HALVES_AND_WHOLE, "timeSlicing": TWICE}, "2x3g.40gb 2x shared (1 GPU), 2x shared (1 GPU)",
        {THREE_G: 4, GPU: 2}),
    "a profile with media engines": (
        {"mig": {"layouts": [{"profiles": {"1g.10gb+me": 1}}]}}, "1x1g.10gb+me", {"nvidia.com/mig-1g.10gb.me": 2}),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "text", "resources"), PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_two_h100_become(fields: dict[str, Any], text: str, resources: dict[str, int]) -> None:
    found = reached(**fields)
    assert (found.text, dict(found.resources)) == (text, resources)


REFUSALS: dict[str, tuple[tuple[GpuView, ...], dict[str, Any], Reason, str]] = {
    "seven 1g.20gb on an H100 80 GB": (
        TWO, {"mig": {"layouts": [{"profiles": {"1g.20gb": 7}}]}}, Reason.LAYOUT_DOES_NOT_FIT,
        "nearest legal layout: 4x1g.20gb"),
    "1g.20gb on an H200": (
        (make_gpu(product=H200),), {"mig": {"layouts": [{"profiles": {"1g.20gb": 1}}]}},
        Reason.PROFILE_NOT_SUPPORTED, "nearest legal layout: 1x1g.18gb"),
    "MIG on a card without it": (
        (make_gpu(product=T4),), {}, Reason.NOT_MIG_CAPABLE, "use mode TimeSlicing or Full"),
    "MIG where one of two cards has none": (
        (make_gpu(0), make_gpu(1, product=T4)), {}, Reason.NOT_MIG_CAPABLE, "Tesla T4 does not support MIG"),
    "layouts for a GPU that is not there": (
        (make_gpu(0),), {"mig": HALVES_AND_WHOLE}, Reason.LAYOUT_TOO_MANY_GPUS, "gpu-07 has 1 GPU, but"),
    "layouts that leave out a GPU": (
        TWO, {"mig": {"layouts": [{"devices": [0], "profiles": {"3g.40gb": 2}}]}}, Reason.LAYOUT_INCOMPLETE,
        "add for example {devices: [1], profiles: {}}"),
    "single with different profiles": (
        (make_gpu(0), make_gpu(1, product=H200)), {"mig": {"strategy": "single", "config": "all-7g.80gb"}},
        Reason.CONFIG_UNKNOWN, "does not cover GPU 1"),
    "single with a balanced configuration": (
        TWO, {"mig": {"strategy": "single", "config": "all-balanced"}}, Reason.LAYOUT_NOT_UNIFORM, "use mixed"),
    "a name that the card does not have": (
        TWO, {"mig": {"config": "all-1g.5gb"}}, Reason.CONFIG_UNKNOWN,
        "all-1g.10gb, all-1g.10gb.me, all-1g.20gb"),
    "a card that spec.products does not list": (
        TWO, {"products": ["NVIDIA-H200"]}, Reason.PRODUCT_SKIPPED, "NVIDIA H100 80GB HBM3"),
    "one card of two that spec.products does not list": (
        (make_gpu(0), make_gpu(1, product=T4)), {"products": ["NVIDIA-H100-80GB-HBM3"]},
        Reason.PRODUCT_SKIPPED, "Tesla T4"),
}  # fmt: skip


@pytest.mark.parametrize(("gpus", "fields", "reason", "says"), REFUSALS.values(), ids=REFUSALS.keys())
def test_it_cannot_become(gpus: tuple[GpuView, ...], fields: dict[str, Any], reason: Reason, says: str) -> None:
    found = refused(*gpus, **fields)
    assert (found.reason, says in found.message) == (reason, True), found.message


def test_mig_on_without_instances_serves_nothing_and_is_refused() -> None:
    admin = "mig-configs: {empty: [{devices: all, mig-enabled: true, mig-devices: {}}]}"
    assert refused(stack=make_stack(admin_mig_file=admin), mig={"config": "empty"}).reason is Reason.LAYOUT_EMPTY


def test_a_card_of_which_nobody_knows_the_profiles_is_not_divided() -> None:
    unknown = replace(make_gpu(product=A30), profiles=())
    assert refused(unknown, mig={"layouts": [{"profiles": {"1g.6gb": 4}}]}).reason is Reason.HARDWARE_UNKNOWN


def test_profiles_that_an_old_device_plugin_cannot_tell_apart_are_refused_before_anything_is_touched() -> None:
    media = {"layouts": [{"profiles": {"1g.10gb+me": 1, "1g.10gb": 2}}]}

    def plugin(version: str) -> StackView:
        return make_stack(cluster_policy=make_cluster_policy(plugin_version=version))

    found = refused(stack=plugin("v0.19.3-ubi9"), mig=media)
    assert found.reason is Reason.PLUGIN_TOO_OLD
    assert "1g.10gb+me with device plugin v0.19.3-ubi9" in found.message
    for version in ("v0.20.0", "v1.0.0", "sha256:1f", ""):
        assert reached(stack=plugin(version), mig=media), version
    assert reached(stack=plugin("v0.19.3"), mig={"layouts": [{"profiles": {"1g.10gb": 2}}]})


def test_a_profile_that_an_old_mig_parted_mistakes_on_a_node_with_two_models_is_refused_by_name() -> None:
    def under(version: str, *gpus: GpuView, name: str = "1g.10gb") -> Target | Finding:
        stack = make_stack(cluster_policy=make_cluster_policy(mig_manager_version=version))
        return target(*gpus, stack=stack, mig={"layouts": [{"profiles": {name: 2}}]})

    # 1g.10gb is one eighth of an H100 80GB and one quarter of an A100 40GB: two profiles of one name.
    both = (make_gpu(0), make_gpu(1, product="NVIDIA A100-SXM4-40GB"))
    found = under("v0.13.1-ubuntu20.04", *both)
    assert isinstance(found, Finding)
    assert found.reason is Reason.MIG_MANAGER_TOO_OLD
    assert not lacks(found.message, "mig-manager v0.13.1-ubuntu20.04", "1g.10gb")
    assert "on GPU 1 (NVIDIA A100" in found.message
    for version in ("v0.15.0", "v1.0", "sha256:1f", ""):
        assert isinstance(under(version, *both), Target), version
    alike = (make_gpu(0), make_gpu(1, product="NVIDIA A100-SXM4-80GB"))
    assert isinstance(under("v0.13.1", *alike), Target), "the same profile of both cards"


def test_the_product_of_spec_products_is_nvmls_name_with_dashes() -> None:
    assert reached(products=["NVIDIA-H100-80GB-HBM3"])


def test_cards_without_mig_get_no_mig_configuration_nor_does_a_node_without_mig_manager() -> None:
    for mode in ("Full", "TimeSlicing", "MPS"):
        assert reached(make_gpu(product=T4), mode=mode).mig_config == ""
    assert reached(mode="Full").mig_config == "all-disabled"
    off = make_stack(cluster_policy=make_cluster_policy(switches=NO_MIG_MANAGER))
    assert reached(mode="Full", stack=off).mig_config == ""


@pytest.mark.parametrize(("mounted", "config"), [(True, "all-disabled"), (False, "")], ids=["ours", "another"])
def test_beside_nvidias_chart_mig_manager_is_used_only_if_it_reads_our_configmap(mounted: bool, config: str) -> None:
    beside = PlainStackView("nvdp", "nvdp", "nvidia-mig-manager", pausable=True)
    policy = replace(make_cluster_policy(mig_config_name="" if not mounted else SETTINGS.mig_config_map), plain=beside)
    assert reached(mode="Full", stack=make_stack(cluster_policy=policy)).mig_config == config


def test_one_policy_over_two_card_models_gives_each_node_its_own_layout() -> None:
    named = {"config": "all-balanced"}
    texts = [target(make_gpu(product=product), mig=named) for product in (H100, A30, H200)]
    assert [found.text for found in texts if isinstance(found, Target)] == [
        "1x3g.40gb+1x2g.20gb+2x1g.10gb",
        "1x2g.12gb+2x1g.6gb",
        "1x3g.71gb+1x2g.35gb+2x1g.18gb",
    ]


def test_two_card_models_in_one_node_are_each_divided_by_a_named_configuration() -> None:
    found = reached(make_gpu(0), make_gpu(1, product=A30), mig={"config": "all-balanced"})
    assert found.text == "1x3g.40gb+1x2g.20gb+2x1g.10gb (1 GPU), 1x2g.12gb+2x1g.6gb (1 GPU)"


GENERATED = make_stack(cluster_policy=NOT_OURS, generated_mig_files={"gpu-07": PARTED})
NAMES: dict[str, tuple[StackView, str, str]] = {
    "ours, before the file is written": (make_stack(mig_file=""), "all-7g.80gb", "1x7g.80gb"),
    "the admin's wins over the generated": (make_stack(admin_mig_file=PARTED), "all-balanced", "1x7g.80gb"),
    "what mig-manager generated on the node": (GENERATED, "all-balanced", "1x7g.80gb"),
    "mig-manager's list lacks the name": (GENERATED, "all-1g.10gb", "mig-manager on gpu-07 has only all-balanced"),
    "mig-manager has not published its list": (
        make_stack(cluster_policy=NOT_OURS),
        "all-balanced",
        "ConfigMap gpu-07-mig-config, where mig-manager lists its configurations, does not exist",
    ),
}


@pytest.mark.parametrize(("stack", "name", "expected"), NAMES.values(), ids=NAMES.keys())
def test_what_a_configuration_name_means(stack: StackView, name: str, expected: str) -> None:
    found = target(stack=stack, mig={"config": name})
    assert expected in (found.text if isinstance(found, Target) else found.message)


def test_a_wish_is_named_by_its_content_and_a_named_configuration_by_its_name() -> None:
    one, same = find_request("pool-b", make_spec()), find_request("pool-b", make_spec(priority=3))
    other = find_request("pool-b", make_spec(mig={"layouts": [{"profiles": {"1g.10gb": 7}}]}))
    assert one == same
    assert one.mig_config != other.mig_config
    assert find_request("pool-b", make_spec(mig={"config": "all-balanced"})).mig_config == "all-balanced"
    assert find_request("pool-b", make_spec("Full")).mig_config == "all-disabled"


MPS_LIMITS = {"V100": ("Tesla V100-SXM2-16GB", 16), "T4": (T4, 48), "H100": (H100, 48)}


@pytest.mark.parametrize(("product", "most"), MPS_LIMITS.values(), ids=MPS_LIMITS.keys())
def test_mps_takes_as_many_clients_as_the_compute_capability_allows_and_not_one_more(product: str, most: int) -> None:
    gpu = make_gpu(product=product)
    assert reached(gpu, mode="MPS", mps={"replicas": most})
    found = refused(gpu, mode="MPS", mps={"replicas": most + 1})
    assert found.reason is Reason.MPS_TOO_MANY_CLIENTS
    assert not lacks(found.message, product, f"at most {most}", "spec.mps.replicas", f"{most + 1}")


def test_time_slicing_has_no_such_limit() -> None:
    gpu = make_gpu(product="Tesla V100-SXM2-16GB")
    assert reached(gpu, mode="TimeSlicing", timeSlicing={"replicas": 100})


ROUTES: dict[str, dict[str, Any]] = {
    "full": {"mode": "Full"},
    "time-slicing": {"mode": "TimeSlicing"},
    "mps": {"mode": "MPS"},
    "mig": {"mode": "MIG"},
    "mig-time-slicing": {"mode": "MIG", "timeSlicing": {"replicas": 2}},
}


@pytest.mark.parametrize("label", ROUTES)
def test_the_routing_label_tells_the_kinds_of_sharing_apart(label: str) -> None:
    assert reached(**ROUTES[label]).routing == label


def test_the_stop_between_mps_and_mig_is_whole_gpus_without_sharing() -> None:
    policy = make_policy(mode="MPS")
    assert policy.spec is not None
    targets = PolicyTargets(policy, find_request("pool-b", policy.spec), make_stack(policy))
    stop, other = targets.stop(Hardware.of(TWO)), targets.stop(Hardware.of((make_gpu(product=T4),)))
    assert (stop.text, dict(stop.resources), stop.mig_config) == ("1x full", {GPU: 2}, "all-disabled")
    assert (dict(other.resources), other.mig_config) == ({GPU: 1}, "")
    assert stop.plugin_key in find_request("pool-b", policy.spec).plugins
    assert targets.stop(Hardware.of(TWO)) is stop


def test_nodes_with_equal_cards_share_a_target_unless_mig_manager_generated_another_file() -> None:
    policy = make_policy(mode="MIG", mig={"config": "all-balanced"})
    assert policy.spec is not None
    files = {"gpu-07": PARTED, "gpu-08": PARTED, "gpu-09": PARTED.replace("7g.80gb: 1", "1g.10gb: 7")}
    stack = make_stack(cluster_policy=NOT_OURS, generated_mig_files=files)
    targets = PolicyTargets(policy, find_request("pool-b", policy.spec), stack)
    idle, busy = Hardware.of(TWO), Hardware.of(tuple(replace(gpu, processes=("python",)) for gpu in TWO))
    first = targets.find("gpu-07", idle)
    assert targets.find("gpu-08", busy) is first
    other = targets.find("gpu-09", idle)
    assert [found.text for found in (first, other) if isinstance(found, Target)] == ["1x7g.80gb", "7x1g.10gb"]
    nameless = targets.find("gpu-10", idle)
    assert isinstance(nameless, Finding)
    assert "gpu-10" in nameless.message


def test_when_there_are_too_many_kinds_of_hardware_all_targets_are_computed_anew() -> None:
    policy = make_policy(mode="MPS")
    assert policy.spec is not None
    targets = PolicyTargets(policy, find_request("pool-b", policy.spec), make_stack(policy))
    first, other = Hardware.of(TWO), Hardware.of((make_gpu(product=T4),))
    found = targets.find("gpu-07", first)
    assert isinstance(found, Target)
    targets.known.update({((), str(number)): found for number in range(MOST_KINDS - 1)})
    assert targets.find("gpu-08", first) is found
    assert isinstance(targets.find("gpu-09", other), Target)
    assert targets.find("gpu-10", first) is not found
    assert targets.find("gpu-10", first) == found


def test_shares_of_instances_multiply_per_profile() -> None:
    plugin = make_shared(2, rename=True)
    assert predict_resources((None, None), plugin) == {"nvidia.com/gpu.shared": 4}
    assert predict_resources(((("3g.40gb", 2),),), plugin) == {THREE_G: 2}


def test_layouts_are_described_for_people() -> None:
    assert describe_layouts((None,)) == "1x full"
    assert describe_layouts((None, None), 4) == "4x shared"
    assert describe_layouts(((), None)) == "MIG empty (1 GPU), 1x full (1 GPU)"

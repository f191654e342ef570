"""What the DaemonSets of NVIDIA's device-plugin chart say in ClusterPolicy's place (the real ones: tests/nvidia)."""

import pytest
from tests.plainchart import TOLERATIONS, daemon_set, discovery, plugin

from gpusharing.kube.client import JSON
from gpusharing.kube.plainstack import daemon_set_view, plain_stack
from gpusharing.kube.startgate import tolerations_text
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, PlainStackView


def read(*sets: JSON) -> ClusterPolicyView | None:
    return plain_stack(map(daemon_set_view, sets))


def test_the_chart_with_our_configmap_is_a_stack_without_mig_manager() -> None:
    assert read(plugin(default="base"), discovery()) == ClusterPolicyView(
        plugin_config_name="gpusharing-device-plugin",
        mig_strategy="",
        mig_manager_enabled=False,
        mig_config_name="",
        plugin_default="base",
        plugin_version="v0.19.3",
        tolerates_gate=False,
        tolerations=tolerations_text(TOLERATIONS),
        mps_sees_host=False,
        plain=PlainStackView("nvdp-nvidia-device-plugin", "nvdp", discovers=True),
    )


def test_a_strategy_that_the_chart_fixes_is_seen() -> None:
    found = read(plugin(mig_strategy="single"), discovery())
    assert found is not None
    assert found.mig_strategy == "single"


@pytest.mark.parametrize("sees", [True, False])
def test_whether_the_mps_daemon_sees_the_hosts_processes_is_read_of_its_daemonset(sees: bool) -> None:
    daemon = daemon_set("mps-control-daemon", "mps-control-daemon-ctr", "gpusharing-device-plugin")
    daemon["spec"]["template"]["spec"]["hostPID"] = sees
    found = read(plugin(), discovery(), daemon)
    assert found is not None
    assert found.mps_sees_host is sees


@pytest.mark.parametrize(
    "sets", [(plugin(),), (plugin(), discovery("theirs"))], ids=["no GFD", "another GFD"]
)
def test_without_gfd_on_the_same_configmap_nothing_is_discovered(sets: tuple[JSON, ...]) -> None:
    found = read(*sets)
    assert found is not None
    assert found.plain is not None
    assert not found.plain.discovers


def test_without_a_configmap_it_reads_none() -> None:
    found = read(plugin(""), discovery(""))
    assert found is not None
    assert found.plugin_config_name == ""


GPU_OPERATORS = plugin()
GPU_OPERATORS["metadata"]["ownerReferences"] = [{"kind": "ClusterPolicy", "name": "cluster-policy"}]


@pytest.mark.parametrize(
    "sets",
    [(), (discovery(),), (daemon_set("other", "main", "gpusharing-device-plugin"),), (GPU_OPERATORS,)],
    ids=[
        "nothing",
        "GFD alone",
        "something else",
        "the GPU Operator's, whose ClusterPolicy is gone for a moment",
    ],
)
def test_anything_else_is_no_plain_stack(sets: tuple[JSON, ...]) -> None:
    assert read(*sets) is None


def test_a_damaged_daemonset_is_no_stack() -> None:
    for raw in ({}, {"metadata": None}, {"spec": {"template": {"spec": {"containers": "x"}}}}):
        assert plain_stack([daemon_set_view({"metadata": {}, **raw})]) is None

"""What the DaemonSets of NVIDIA's device-plugin chart say in ClusterPolicy's place (the real ones: tests/nvidia)."""

import pytest
from tests.build import NO_MIG_MANAGER, make_cluster_policy
from tests.plainchart import TOLERATIONS, VERSION, daemon_set, discovery, mig_manager, plugin

from gpusharing.kube.client import JSON
from gpusharing.kube.convert import cluster_policy_view, rows_text
from gpusharing.kube.daemonsets import daemon_set_view, lone_restarts, plain_stack, with_mps_daemon
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, DaemonSetState, MpsDaemonView, PlainStackView


def read(*sets: JSON) -> ClusterPolicyView | None:
    return plain_stack(map(daemon_set_view, sets))


def test_the_chart_with_our_configmap_is_a_stack_without_mig_manager() -> None:
    assert read(plugin(default="base"), discovery()) == ClusterPolicyView(
        plugin_config_name="gpusharing-device-plugin",
        mig_strategy="",
        mig_config_name="",
        switches=NO_MIG_MANAGER,
        plugin_default="base",
        plugin_version="v0.19.3",
        tolerates_gate=False,
        tolerations=rows_text(TOLERATIONS),
        plain=PlainStackView("nvdp-nvidia-device-plugin", "nvdp", version=VERSION),
    )
    assert not daemon_set_view(plugin()).with_reboot, "it does not run mig-manager"


def test_mig_manager_beside_the_chart_is_a_stack_with_mig() -> None:
    stack = read(plugin(client="true"), discovery(client="true"), mig_manager())
    assert stack is not None
    assert stack.switches == {}
    assert (stack.mig_config_name, stack.mig_manager_version) == ("gpusharing-mig-parted", "v0.15.1")
    assert stack.plain == PlainStackView("nvdp-nvidia-device-plugin", "nvdp", "nvidia-mig-manager", True, VERSION)
    assert stack.with_reboot is False


@pytest.mark.parametrize(
    "sets",
    [
        (plugin(client="true"), discovery(), mig_manager()),
        (plugin(client="false"), discovery(client="true"), mig_manager()),
        (plugin(client="true"), discovery(client="true"), mig_manager(version="v0.14.1")),
    ],
    ids=["GFD is not paused", "another value", "mig-manager is too old"],
)
def test_mig_manager_counts_as_off_if_the_chart_does_not_stop_for_it(sets: tuple[JSON, ...]) -> None:
    stack = read(*sets)
    assert stack is not None
    assert stack.switches == NO_MIG_MANAGER
    assert stack.plain is not None
    assert stack.plain.mig_manager == "nvidia-mig-manager"


REBOOTS = {
    ("true",): True,
    ("True",): True,
    ("TRUE",): True,
    ("1",): True,
    ("t",): True,
    ("T",): True,
    ("tRUE",): False,
    ("yes",): False,
    ("0",): False,
    ("",): False,
    ("false", "true"): True,
    ("true", "false"): False,
}
"""Whether mig-manager may reboot the node, by the values of WITH_REBOOT in the order of the list. It reads the flag with Go's strconv.ParseBool, and ends at a value such as `yes`."""


@pytest.mark.parametrize(("values", "reboots"), REBOOTS.items(), ids=[" then ".join(each) for each in REBOOTS])
def test_mig_manager_may_reboot_the_node_if_its_environment_says_so_in_a_word_that_it_understands(
    values: tuple[str, ...], reboots: bool
) -> None:
    env = [{"name": "WITH_REBOOT", "value": value} for value in values]
    manager = mig_manager()
    manager["spec"]["template"]["spec"]["containers"][0]["env"] = env
    stack = read(plugin(client="true"), discovery(client="true"), manager)
    assert stack is not None
    assert (stack.with_reboot, stack.mig_config_name) == (reboots, "")
    assert cluster_policy_view({"spec": {"migManager": {"env": env}}}).with_reboot is reboots


def test_a_strategy_that_the_chart_fixes_is_seen() -> None:
    found = read(plugin(mig_strategy="single"), discovery())
    assert found is not None
    assert found.mig_strategy == "single"


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("example.com/k8s-device-plugin:v0.19.3", "v0.19.3"),
        ("registry:5000/k8s-device-plugin:v0.20.0@sha256:0a19bc", "v0.20.0"),
        ("registry:5000/k8s-device-plugin@sha256:0a19bc", ""),
    ],
    ids=["a tag", "a tag and a digest", "a digest alone"],
)
def test_what_the_gpu_operators_mps_daemon_is_called_and_what_is_signalled_is_read_of_its_daemonset(
    image: str, version: str
) -> None:
    """As assets/state-mps-control-daemon/0400_daemonset.yaml of gpu-operator v26.7.0 has it."""
    name = "mps-control-daemon"
    containers = [
        {"name": f"{name}-ctr", "image": image, "command": [name]},
        {"name": "config-manager", "env": [{"name": "PROCESS_TO_SIGNAL", "value": f"/usr/bin/{name}"}]},
    ]
    raw = {
        "metadata": {
            "name": "theirs",
            "namespace": "nvidia",
            "ownerReferences": [{"kind": "ClusterPolicy", "name": "cluster-policy"}],
        },
        "spec": {"template": {"spec": {"hostPID": True, "containers": containers}}},
    }
    found = with_mps_daemon(make_cluster_policy(), map(daemon_set_view, (plugin(), raw)))
    daemon = MpsDaemonView(version, name, f"/usr/bin/{name}", True, "theirs", "nvidia")
    assert found.mps_daemon == daemon
    assert with_mps_daemon(found, ()).mps_daemon is None


ROW: JSON = {"name": "PROCESS_TO_SIGNAL"}
FIELD: JSON = {"fieldRef": {"fieldPath": "metadata.name"}}


@pytest.mark.parametrize(
    ("env", "value"),
    [([{**ROW, "value": "x"}], "x"), ([ROW], ""), ([], None), ([{**ROW, "valueFrom": FIELD}], None)],
    ids=["a value", "an empty value", "no variable", "a value from elsewhere"],
)
def test_what_config_manager_signals_is_read_only_from_a_plain_value(env: list[JSON], value: str | None) -> None:
    containers = [{"name": "mps-control-daemon-ctr"}, {"name": "config-manager", "env": env}]
    raw: JSON = {
        "metadata": {"ownerReferences": [{"kind": "ClusterPolicy"}]},
        "spec": {"template": {"spec": {"containers": containers}}},
    }
    daemon = daemon_set_view(raw).mps_daemon
    assert daemon is not None
    assert daemon.signalled == value
    del containers[1]
    assert daemon_set_view(raw).mps_daemon is None, "without config-manager no label is followed"


@pytest.mark.parametrize("sets", [(plugin(),), (plugin(), discovery("theirs"))], ids=["no GFD", "another GFD"])
def test_without_gfd_on_the_same_configmap_nothing_is_discovered(sets: tuple[JSON, ...]) -> None:
    found = read(*sets)
    assert found is not None
    assert found.switches == {**NO_MIG_MANAGER, "gfd.enabled": False}


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


def test_the_worker_of_node_feature_discovery_is_known_by_what_it_runs() -> None:
    """As templates/worker.yaml of its chart has it, which NVIDIA's charts include."""
    template = {"containers": [{"name": "worker", "command": ["nfd-worker"]}], "tolerations": TOLERATIONS}
    metadata = {"name": "nfd-worker", "labels": {"app.kubernetes.io/instance": "gpu-operator"}}
    view = daemon_set_view({"metadata": metadata, "spec": {"template": {"spec": template}}})
    kept = rows_text(TOLERATIONS)
    assert view.finder == DaemonSetState("nfd-worker", "gpu-operator", tolerates_gate=False, tolerations=kept)
    assert plain_stack([view]) is None
    assert daemon_set_view(plugin(default="base")).finder is None


def pod(manager: JSON | None, daemon: int = 0) -> JSON:
    """A pod of the MPS daemon, as its kubelet reports its containers."""
    rows: list[JSON] = [{"name": "mps-control-daemon-ctr", "restartCount": daemon}]
    return {"status": {"containerStatuses": [*rows, *([{"name": "config-manager", **manager}] if manager else ())]}}


ENDED: JSON = {"lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
RESTARTS: dict[str, tuple[JSON, tuple[int, str, bool]]] = {
    "none": (pod({"restartCount": 0}), (0, "", False)),
    "alone": (pod({"restartCount": 2, **ENDED}), (2, "OOMKilled, exit code 137", False)),
    "alone, without a reason": (
        pod({"restartCount": 1, "lastState": {"terminated": {"exitCode": 1}}}), (1, "exit code 1", False)),
    "alone, and nobody knows why": (pod({"restartCount": 1}), (1, "", False)),
    "both, as the node rebooted": (
        pod({"restartCount": 1, **ENDED}, daemon=1), (0, "OOMKilled, exit code 137", False)),
    "both, and config-manager is not running yet": (
        pod({"restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}, daemon=1), (-1, "", True)),
    "both, and config-manager has not been started anew": (
        pod({"restartCount": 0, "state": {"terminated": {"exitCode": 255}}}, daemon=1), (-1, "", True)),
    "alone, and is not running": (
        pod({"restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}), (2, "", True)),
    "once alone and once both": (
        pod({"restartCount": 2, **ENDED}, daemon=1), (1, "OOMKilled, exit code 137", False)),
    "the daemon alone": (pod({"restartCount": 0, "state": {"running": {}}}, daemon=3), (-3, "", False)),
    "no config-manager": (pod(None), (0, "", False)),
    "no status": ({}, (0, "", False)),
}  # fmt: skip


@pytest.mark.parametrize("what", RESTARTS)
def test_restarts_of_config_manager_alone_are_told_from_those_of_the_whole_pod(what: str) -> None:
    raw, found = RESTARTS[what]
    assert lone_restarts(raw) == found

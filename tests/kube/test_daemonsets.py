"""Which DaemonSets serve GPUs (kube/daemonsets.py), and what those of NVIDIA's device-plugin chart say in ClusterPolicy's place (the real ones: tests/nvidia).
And the agent's pods and the Warnings about them, as a real kubelet and DaemonSet controller write them."""

from datetime import UTC, datetime

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.build import NO_MIG_MANAGER, make_cluster_policy
from tests.plainchart import TOLERATIONS, VERSION, daemon_set, discovery, mig_manager, plugin

from gpusharing.kube.agentpods import agent_pod, agent_warning
from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, JSON, Resource
from gpusharing.kube.convert import cluster_policy_view, rows_text
from gpusharing.kube.daemonsets import (
    daemon_set_view,
    find_gpu_operator,
    gpu_server,
    lone_restarts,
    plain_stack,
    with_mps_daemon,
)
from gpusharing.kube.errors import Forbidden
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, DaemonSetState, MpsDaemonView, PlainStackView
from gpusharing.planning.stack.plugins import Role, tell_twins


def read(*sets: JSON) -> ClusterPolicyView | None:
    return plain_stack(map(daemon_set_view, sets))


def stack_of(*sets: JSON) -> ClusterPolicyView:
    found = read(*sets)
    assert found is not None
    return found


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
    stack = stack_of(plugin(client="true"), discovery(client="true"), mig_manager())
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
    stack = stack_of(*sets)
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
    stack = stack_of(plugin(client="true"), discovery(client="true"), manager)
    assert (stack.with_reboot, stack.mig_config_name) == (reboots, "")
    assert cluster_policy_view({"spec": {"migManager": {"env": env}}}).with_reboot is reboots


def test_a_strategy_that_the_chart_fixes_is_seen() -> None:
    assert stack_of(plugin(mig_strategy="single"), discovery()).mig_strategy == "single"


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
    assert stack_of(*sets).switches == {**NO_MIG_MANAGER, "gfd.enabled": False}


def test_without_a_configmap_it_reads_none() -> None:
    assert stack_of(plugin(""), discovery("")).plugin_config_name == ""


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


def gpu_set(name: str, *command: str, image: str = "") -> JSON:
    containers = [{"name": name, "image": image, "command": list(command)}]
    return {
        "metadata": {"namespace": "gpus", "name": "server"},
        "spec": {"template": {"spec": {"containers": containers}}},
    }


@pytest.mark.parametrize(
    ("raw", "role"),
    [
        pytest.param(gpu_set("nvidia-device-plugin"), Role.PLUGIN, id="the device plugin"),
        pytest.param(
            gpu_set("device-plugin", image="registry.example/projecthami/hami:v2.10.0"),
            Role.PLUGIN,
            id="HAMi's device plugin",
        ),
        pytest.param(gpu_set("gpus", "gpu-kubelet-plugin"), Role.DRIVER, id="the DRA driver"),
        pytest.param(gpu_set("nvidia-mig-manager"), Role.MIG_MANAGER, id="mig-manager"),
        pytest.param(gpu_set("gpus", "exporter"), None, id="another program in a container of that name"),
        pytest.param(gpu_set("device-plugin", image="registry.example/other/plugin:v1"), None, id="something else"),
    ],
)
def test_what_a_daemon_set_does_with_gpus_is_known_by_its_containers(raw: JSON, role: Role | None) -> None:
    server = gpu_server(raw)
    assert (None if server is None else server.role) is role


@pytest.mark.parametrize(("generation", "observed", "refused"), [(1, 1, True), (2, 1, False), (2, 2, True)], ids=str)
def test_a_daemon_set_whose_status_is_older_than_its_spec_is_no_twin(
    generation: int, observed: int, refused: bool
) -> None:
    one, other = gpu_set("nvidia-device-plugin"), gpu_set("nvidia-device-plugin-ctr")
    one["status"] = other["status"] = {"desiredNumberScheduled": 2, "observedGeneration": 1}
    other["metadata"] |= {"name": "other", "generation": generation}
    other["status"] = {**other["status"], "observedGeneration": observed}
    other["spec"]["template"]["spec"]["nodeSelector"] = {"none": "x"}
    servers = [server for raw in (one, other) if (server := gpu_server(raw)) is not None]
    assert bool(tell_twins(servers, "gpus")) is refused
    assert bool(tell_twins(reversed(servers), "gpus")) is refused


STATUS = {"status": {"namespace": "nvidia"}}
PLUGIN = gpu_set("nvidia-device-plugin")
OWNED = {**PLUGIN, "metadata": {**PLUGIN["metadata"], "ownerReferences": [{"kind": "ClusterPolicy"}]}}


@pytest.mark.parametrize(
    ("policies", "sets", "namespace"),
    [
        ([STATUS], [OWNED], "nvidia"),
        ([{"status": {"namespace": "old", "state": "ignored"}}, STATUS], [], "nvidia"),
        ([{}], [gpu_set("mesh"), OWNED], "gpus"),
        ([{}], [PLUGIN], "default"),
        ([], [], "default"),
    ],
    ids=[
        "ClusterPolicy says so",
        "one of two ClusterPolicies is ignored",
        "ClusterPolicy owns the device plugin there",
        "somebody else runs a device plugin",
        "there is nothing",
    ],
)
async def test_the_gpu_operator_is_where_its_objects_say(
    policies: list[JSON], sets: list[JSON], namespace: str
) -> None:
    cluster = FakeCluster()
    for number, raw in enumerate(policies):
        cluster.add(CLUSTER_POLICIES, {"metadata": {"name": f"policy-{number}"}, **raw})
    for number, raw in enumerate(sets):
        metadata = {**raw["metadata"], "name": f"server-{number}"}
        cluster.add(DAEMON_SETS, {**raw, "metadata": metadata})
    assert await find_gpu_operator(cluster.client("me"), "default") == namespace


@pytest.mark.parametrize("kind", [CLUSTER_POLICIES, DAEMON_SETS], ids=["ClusterPolicies", "DaemonSets"])
async def test_where_its_objects_may_not_be_read_nobody_knows_where_the_gpu_operator_is(kind: Resource) -> None:
    cluster = FakeCluster()
    cluster.add(CLUSTER_POLICIES, {"metadata": {"name": "cluster-policy"}})
    cluster.add(DAEMON_SETS, OWNED)
    cluster.faults.fail("list", kind, Forbidden("no"), times=EVER)
    assert await find_gpu_operator(cluster.client("me"), "default") == "default"
    cluster.uninstalled.add(kind)
    assert await find_gpu_operator(cluster.client("me"), "default") == "default"


NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gpu-1"]}]}]
        }
    }
}
UNPLACED = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}


def pod_of_agent(status: JSON, **spec: object) -> JSON:
    """A pod of the DaemonSet on gpu-1 with a sidecar in front of the agent."""
    containers = [{"name": "mesh", "image": "mesh:1"}, {"name": "agent", "image": "gpu-sharing-operator:0.1.0"}]
    return {
        "metadata": {
            "namespace": "gpusharing-agent",
            "name": "gpusharing-agent-x7k2p",
            "creationTimestamp": "2026-01-05T12:00:00Z",
        },
        "spec": {"nodeName": "gpu-1", "containers": containers, **spec},
        "status": status,
    }


def status(**fields: object) -> JSON:
    return {"phase": "Running", "containerStatuses": [{"name": "mesh", "state": {}}, {"name": "agent", **fields}]}


def test_of_a_ready_pod_only_its_place_is_kept() -> None:
    raw = pod_of_agent({**status(started=True), "conditions": [{"type": "Ready", "status": "True"}]})
    found = agent_pod(raw)
    assert (found.node, found.ready, found.image, found.created) == ("gpu-1", True, "", NOW)


def test_whether_its_pods_tolerate_the_start_up_taint_is_kept() -> None:
    ours = {"key": "gpusharing.dev/unproven", "operator": "Exists", "effect": "NoSchedule"}
    ready = {**status(started=True), "conditions": [{"type": "Ready", "status": "True"}]}
    assert agent_pod(pod_of_agent(ready, tolerations=[ours])).tolerates_gate
    assert not agent_pod(pod_of_agent(ready)).tolerates_gate
    assert not agent_pod(pod_of_agent(status())).tolerates_gate, "nor while it is not Ready"


def test_why_the_agents_container_waits_is_kept_and_not_its_neighbors() -> None:
    found = agent_pod(pod_of_agent(status(state={"waiting": {"reason": "ErrImagePull", "message": "not found"}})))
    assert (found.waiting, found.message) == ("ErrImagePull", "not found")
    assert found.image == "gpu-sharing-operator:0.1.0"
    leaving = pod_of_agent(status(state={"waiting": {"reason": "ErrImagePull", "message": "not found"}}))
    leaving["metadata"]["deletionTimestamp"] = "2026-01-05T12:00:00Z"
    assert agent_pod(leaving).waiting == "", "nothing is wrong with one that is being deleted"


@pytest.mark.parametrize("started", [False, None])
def test_how_the_container_ended_counts_until_it_has_come_up(started: bool | None) -> None:
    last = {"terminated": {"reason": "Error", "exitCode": 255, "message": "exec format error"}}
    found = agent_pod(pod_of_agent(status(state={"running": {}}, lastState=last, started=started)))
    assert (found.ended, found.last_words) == ("Error, exit code 255", "exec format error")
    assert agent_pod(pod_of_agent(status(state={"running": {}}, lastState=last, started=True))).ended == ""


def test_a_pod_that_is_not_bound_is_known_by_the_node_that_it_is_for() -> None:
    found = agent_pod(pod_of_agent(UNPLACED, nodeName="", affinity=AFFINITY))
    assert (found.node, found.scheduled) == ("gpu-1", False)


def pinned(values: object) -> JSON:
    row = {"key": "metadata.name", "operator": "In", "values": values}
    terms = [{"matchFields": [row]}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


@pytest.mark.parametrize("values", [["gpu-1", "gpu-2"], "gpu-1", None], ids=["two nodes", "a text", "nothing"])
def test_a_pod_that_is_for_no_single_node_is_on_none(values: object) -> None:
    assert agent_pod(pod_of_agent(UNPLACED, nodeName="", affinity=pinned(values))).node == ""


@pytest.mark.parametrize(
    "scheduled",
    [{"status": "True", "reason": "Unschedulable"}, {"status": "False", "reason": "SchedulingGated"}],
    ids=["it has been placed", "it is held back on purpose"],
)
def test_a_pod_that_no_scheduler_gave_up_counts_as_scheduled(scheduled: JSON) -> None:
    conditions = [{"type": "PodScheduled", **scheduled}]
    assert agent_pod(pod_of_agent({"phase": "Pending", "conditions": conditions})).scheduled


def test_a_pod_of_any_shape_is_read() -> None:
    assert agent_pod({"metadata": {}, "status": {"containerStatuses": [1]}}).node == ""


def warning(kind: str, name: str, reason: str, **times: object) -> JSON:
    return {
        "metadata": {"namespace": "gpusharing-agent", "creationTimestamp": "2026-01-05T11:00:00Z"},
        "regarding": {"kind": kind, "name": name},
        "reason": reason,
        "note": "words",
        **times,
    }


SEEN: dict[str, JSON] = {
    "an Event of client-go's older recorder": {"deprecatedLastTimestamp": "2026-01-05T12:00:00Z", "eventTime": None},
    "an Event of the newer one": {"eventTime": "2026-01-05T12:00:00.000000Z"},
    "an Event without any time of its own": {
        "metadata": {"namespace": "gpusharing-agent", "creationTimestamp": "2026-01-05T12:00:00Z"}
    },
    "an Event that was repeated": {
        "eventTime": "2026-01-05T11:00:00.000000Z",
        "series": {"lastObservedTime": "2026-01-05T12:00:00.000000Z"},
    },
}


@pytest.mark.parametrize("case", SEEN)
def test_a_refused_creation_is_known_with_the_time_when_it_was_last_seen(case: str) -> None:
    found = agent_warning(warning("DaemonSet", "gpusharing-agent", "FailedCreate", **SEEN[case]))
    assert found is not None
    assert (found.pod, found.message, found.at) == ("", "words", NOW)


def test_a_warning_about_a_pod_is_the_same_however_often_it_is_repeated() -> None:
    first, second = (
        agent_warning(warning("Pod", "gpusharing-agent-x7k2p", "FailedCreatePodSandBox", deprecatedLastTimestamp=time))
        for time in ("2026-01-05T11:00:00Z", "2026-01-05T12:00:00Z")
    )
    assert first is not None
    assert first.pod == "gpusharing-agent-x7k2p"
    assert first == second


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("DaemonSet", "another", "FailedCreate"),
        ("DaemonSet", "gpusharing-agent", "FailedDaemonPod"),
        ("Pod", "gpusharing-operator-1", "FailedMount"),
        ("Pod", "gpusharing-agent-x7k2p", "BackOff"),
    ],
    ids=["of another DaemonSet", "of a pod that ended", "of the operator's pod", "what the pod's status says as well"],
)
def test_other_warnings_are_left_out(kind: str, name: str, reason: str) -> None:
    assert agent_warning(warning(kind, name, reason)) is None

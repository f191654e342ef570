"""Bad input gets a clear answer and changes nothing: each case of issue 3 against a real API server."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hack.cluster.api import ApiError, Object
from hack.cluster.nodes import node_manifest
from tests import kubeletwords
from tests.integration.product import (
    CLUSTER_POLICY,
    FULL,
    H100,
    L40S,
    MIXED,
    NODES,
    POLICIES,
    SLICED,
    Pool,
    Product,
)

from hack import launch

pytestmark = pytest.mark.usefixtures("operator")


def layout(*entries: Object) -> Object:
    return {"mode": "MIG", "mig": {"strategy": "mixed", "layouts": list(entries)}}


def on_all(**profiles: int) -> Object:
    named = {name.replace("_", "."): count for name, count in profiles.items()}
    return layout({"devices": "all", "profiles": {key.removeprefix("p"): n for key, n in named.items()}})


REFUSED: dict[str, tuple[Object, tuple[str, ...]]] = {
    "an empty selector": ({**FULL, "nodeSelector": {}}, ("nodeSelector", "matchLabels")),
    "a selector on a label that the change rewrites": (
        {**FULL, "nodeSelector": {"matchLabels": {"nvidia.com/gpu.product": "NVIDIA-L40S"}}},
        ("nodeSelector", "rewrites"),
    ),
    "a mode without its block": ({"mode": "TimeSlicing"}, ("timeSlicing", "replicas")),
    "a block without its mode": ({**SLICED, "mode": "Full"}, ("timeSlicing", "mode")),
    "two blocks": ({**SLICED, "mps": {"replicas": 4}}, ("mps", "mode")),
    "MIG beside time-slicing": ({**SLICED, "mig": MIXED["mig"]}, ("mig", "mode")),
    "one replica": ({"mode": "TimeSlicing", "timeSlicing": {"replicas": 1}}, ("timeSlicing.replicas", "2")),
    "a percentage that is none": (
        {**FULL, "rollout": {"maxUnavailable": "1000a%"}},
        ("rollout.maxUnavailable", "25%"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_api_server_refuses(product: Product, case: str) -> None:
    spec, words = REFUSED[case]
    with product.pool() as pool:
        with pytest.raises(ApiError) as raised:
            product.api.create(POLICIES, pool.manifest(spec))
        assert raised.value.status == 422
        assert all(word in raised.value.message for word in words), raised.value.message
        assert not product.exists(pool.path)


UNSUITED: dict[str, tuple[str, Object, str, tuple[str, ...]]] = {
    "an unknown profile": (
        H100,
        on_all(p9g_90gb=1),
        "ProfileNotSupported",
        ("9g.90gb", "1g.10gb", "3g.40gb", "7g.80gb"),
    ),
    "a layout that does not fit": (
        H100,
        on_all(p1g_20gb=7),
        "LayoutDoesNotFit",
        ("7x1g.20gb", "4x1g.20gb"),
    ),
    "a profile of another card": ("NVIDIA H200", on_all(p1g_20gb=4), "ProfileNotSupported", ("1g.18gb",)),
    "a layout that leaves a GPU out": (
        H100,
        layout({"devices": [0], "profiles": {"3g.40gb": 2}}),
        "LayoutIncomplete",
        ("1", "devices"),
    ),
    "a card without MIG": (L40S, MIXED, "NotMigCapable", ("L40S", "MIG")),
    "an unknown named configuration": (
        H100,
        {"mode": "MIG", "mig": {"config": "all-nonsense"}},
        "ConfigUnknown",
        ("all-nonsense", "all-balanced"),
    ),
}


@pytest.mark.parametrize("case", UNSUITED)
def test_what_does_not_suit_the_card_is_refused_with_what_it_offers(product: Product, case: str) -> None:
    card, spec, reason, words = UNSUITED[case]
    with product.pool(card) as pool:
        pool.apply(spec)
        message = pool.wait_condition("Accepted", "False", reason)
        assert pool.nodes[0] in message
        assert all(word in message for word in words), message
        assert product.writes("nodes", pool.nodes[0]) == []
        assert pool.wait_phase("Skipped", reason)


def test_a_policy_that_shares_a_node_with_an_older_one_says_who_has_it(product: Product) -> None:
    with product.pool(L40S) as pool:
        node = pool.nodes[0]
        pool.apply(SLICED)
        pool.wait_synced()
        since = product.mark()
        rival = f"{pool.name}-rival"
        pool.apply(FULL, rival)
        message = pool.wait_condition("Ready", "False", "NoNodes", rival)
        assert "another policy" in message
        assert product.writes("nodes", node, since) == []
        assert pool.labels()["gpusharing.dev/policy"] == pool.name


def test_a_node_without_a_gpu_is_named(product: Product) -> None:
    with product.pool(L40S) as pool:
        bare: Object = node_manifest(f"{pool.name}-bare", pool=pool.name)
        bare["metadata"]["labels"] = {
            key: value
            for key, value in bare["metadata"]["labels"].items()
            if not key.startswith("nvidia.com/")
        }
        for resources in (bare["status"]["capacity"], bare["status"]["allocatable"]):
            del resources["nvidia.com/gpu"]
        product.api.create(NODES, bare)
        pool.nodes.append(f"{pool.name}-bare")
        pool.apply(FULL)
        message = pool.wait_condition("Ready", "False", "NoGPU")
        assert f"{pool.name}-bare" in message
        assert product.writes("nodes", f"{pool.name}-bare") == []


@contextmanager
def cluster_policy(product: Product, spec: Object, restored: Object) -> Iterator[None]:
    """ClusterPolicy as somebody left it."""
    product.api.merge_patch(CLUSTER_POLICY, {"spec": spec})
    try:
        yield
    finally:
        product.api.merge_patch(CLUSTER_POLICY, {"spec": restored})


OURS: Object = {"config": {"name": "gpusharing-device-plugin"}}
SETTINGS: dict[str, tuple[Object, Object, Object, str]] = {
    "devicePlugin.config.name is not set": (
        {"devicePlugin": {"config": None}},
        {"devicePlugin": OURS},
        SLICED,
        "PluginConfigNotOurs",
    ),
    "mig.strategy is set": ({"mig": {"strategy": "single"}}, {"mig": None}, MIXED, "MigStrategySet"),
    "migManager.config.name is not ours": (
        {"migManager": {"config": {"name": "theirs"}}},
        {"migManager": {"config": {"name": "gpusharing-mig-parted"}}},
        MIXED,
        "LayoutsNeedConfigMap",
    ),
    "migManager is disabled": (
        {"migManager": {"enabled": False}},
        {"migManager": {"enabled": True}},
        MIXED,
        "MigManagerDisabled",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_cluster_policy_that_would_override_us_is_told_with_the_command_that_mends_it(
    product: Product, case: str
) -> None:
    spec, restored, wanted, reason = SETTINGS[case]
    with product.pool() as pool:
        with cluster_policy(product, spec, restored):
            pool.apply(wanted)
            message = pool.wait_condition("Accepted", "False", reason)
            assert "kubectl patch clusterpolicy cluster-policy --type merge -p" in message
            pool.wait_phase("Blocked", reason)
            assert product.writes("nodes", pool.nodes[0]) == []
        pool.wait_condition("Accepted", "True", "Valid")


def test_on_the_dra_stack_we_keep_our_hands_off(product: Product) -> None:
    clusters = "/apis/nvidia.com/v1alpha1/gpuclusters"
    with product.pool(L40S) as pool:
        kind = {"apiVersion": "nvidia.com/v1alpha1", "kind": "GPUCluster"}
        pool.create(clusters, {**kind, "metadata": {"name": pool.name}, "spec": {}})
        pool.apply(SLICED)
        assert "GPUCluster" in pool.wait_condition("Accepted", "False", "UnsupportedStack")
        assert product.writes("nodes", pool.nodes[0]) == []


# --- agents that do not run --------------------------------------------------------------------------

SETS = f"/apis/apps/v1/namespaces/{launch.AGENT_NAMESPACE}/daemonsets/gpusharing-agent"
RUNTIME_CLASS = "/apis/node.k8s.io/v1/runtimeclasses/nvidia"


@contextmanager
def restricted(product: Product) -> Iterator[None]:
    """The agents' namespace enforces it; pods that run already stay."""
    path, key = f"/api/v1/namespaces/{launch.AGENT_NAMESPACE}", "pod-security.kubernetes.io/enforce"
    before = product.api.get(path)["metadata"]["labels"][key]
    product.api.merge_patch(path, {"metadata": {"labels": {key: "restricted"}}})
    try:
        yield
    finally:
        product.api.merge_patch(path, {"metadata": {"labels": {key: before}}})


@contextmanager
def no_runtime_class(product: Product) -> Iterator[None]:
    """Nobody brings the RuntimeClass of the agent's pods."""
    product.api.delete(RUNTIME_CLASS)
    try:
        yield
    finally:
        launch.runtime_class(product.api)


def retry_pods(product: Product) -> None:
    """Let the DaemonSet controller, which waits longer after every refusal, try at once."""
    product.api.merge_patch(SETS, {"metadata": {"annotations": {"tests/tried": uuid.uuid4().hex}}})


KEPT_OUT = {
    "PodSecurity forbids it": (
        restricted,
        (
            'violates PodSecurity "restricted:latest"',
            f"kubectl label --overwrite namespace {launch.AGENT_NAMESPACE} pod-security.kubernetes.io/enforce=",
        ),
    ),
    "there is no RuntimeClass": (
        no_runtime_class,
        ('RuntimeClass "nvidia" not found', "agent.runtimeClassName"),
    ),
}


@pytest.mark.parametrize("case", KEPT_OUT)
def test_an_agent_that_the_api_server_refuses_is_told_with_its_words(product: Product, case: str) -> None:
    kept_out, words = KEPT_OUT[case]
    with kept_out(product), product.pool(L40S) as pool:
        pool.apply(SLICED)
        pool.wait_phase("Blocked", "AgentRefused")
        # Until the refusal of this pod is known, that of an earlier one may stand there.
        pool.wait(
            lambda: all(word in pool.transition()["message"] for word in words), f"{words}", pool.transition
        )
        wait_stalled(pool, words)
        assert product.writes("nodes", pool.nodes[0]) == []
    retry_pods(product)
    with product.pool(L40S) as pool:
        pool.apply(SLICED)
        pool.wait_synced()


def wait_stalled(pool: Pool, words: tuple[str, ...]) -> None:
    """Until the policy says it as well: before that it may have said less."""
    pool.wait_condition("Stalled", "True", "Blocked")
    pool.wait(lambda: all(word in pool.condition("Stalled").get("message", "") for word in words), f"{words}")


IMAGE = "gpu-sharing-operator:0.1.0"
NOT_STARTED = {
    "no registry has its image": (
        {
            "reason": "ImagePullBackOff",
            "message": kubeletwords.back_off(IMAGE, kubeletwords.not_in_registry(IMAGE)),
        },
        {},
        ("cannot be pulled", "not found", "image.repository"),
    ),
    "its image is for another architecture": (
        {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"},
        {
            "terminated": {
                "reason": "Error",
                "exitCode": 1,
                "message": kubeletwords.bad_format("/usr/local/bin/gpusharing-agent"),
            }
        },
        ("is not for the architecture of this node (amd64)", "agent.nodeSelector"),
    ),
}
"""SIMULATED: what a kubelet writes into the status of the pod; its words are held to a real one on rung 4."""


@pytest.mark.parametrize("case", NOT_STARTED)
def test_an_agent_that_does_not_start_is_told_by_its_cause(product: Product, case: str) -> None:
    waiting, last, words = NOT_STARTED[case]
    with product.pool(L40S) as pool:
        path = agent_pod(pool)
        pool.wait(lambda: product.api.get(path)["status"]["phase"] == "Running", "it to run")
        status = {
            "name": "agent",
            "image": IMAGE,
            "imageID": "",
            "ready": False,
            "started": False,
            "restartCount": 0,
            "state": {"waiting": waiting},
            "lastState": last,
        }
        unready = {"conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [status]}
        product.api.merge_patch(f"{path}/status", {"status": unready})
        pool.apply(SLICED)
        message = pool.wait_phase("Blocked", "AgentNotStarted")
        assert all(word in message for word in words), message
        wait_stalled(pool, words)
        assert product.writes("nodes", pool.nodes[0]) == []


def agent_pod(pool: Pool) -> str:
    """Path of the agent's pod on the first node."""
    pods = f"/api/v1/namespaces/{launch.AGENT_NAMESPACE}/pods"
    selector = {"labelSelector": "app.kubernetes.io/name=gpusharing-agent"}
    own = {"fieldSelector": f"spec.nodeName={pool.nodes[0]}"}
    pool.wait(lambda: bool(pool.api.list(pods, **selector, **own)), "the agent's pod", dict)
    return f"{pods}/{pool.api.list(pods, **selector, **own)[0]['metadata']['name']}"


def test_where_the_agent_is_not_ready_nothing_starts(product: Product) -> None:
    with product.pool(L40S) as pool:
        pod = agent_pod(pool)
        pool.wait(lambda: product.api.get(pod)["status"]["phase"] == "Running", "it to run")
        unready = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
        product.api.merge_patch(f"{pod}/status", unready)
        pool.apply(SLICED)
        assert "gpusharing-agent" in pool.wait_phase("Blocked", "AgentNotReady")
        assert product.writes("nodes", pool.nodes[0]) == []
        ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        product.api.merge_patch(f"{pod}/status", ready)
        pool.wait_synced()


def test_a_node_on_which_no_agent_runs_at_all_is_told_too(product: Product) -> None:
    with product.pool(L40S) as pool:
        node = pool.nodes[0]
        sets = f"/apis/apps/v1/namespaces/{launch.AGENT_NAMESPACE}/daemonsets/gpusharing-agent"
        before = product.api.get(sets)["spec"]["template"]["spec"].get("nodeSelector") or {}
        nowhere = {"spec": {"template": {"spec": {"nodeSelector": {"gpusharing.dev/nowhere": "true"}}}}}
        product.api.merge_patch(sets, nowhere)
        try:
            pool.apply(SLICED)
            pool.wait_phase("Blocked", "AgentNotReady")
            assert product.writes("nodes", node) == []
        finally:
            back: Object = {"gpusharing.dev/nowhere": None, **before}
            product.api.merge_patch(sets, {"spec": {"template": {"spec": {"nodeSelector": back}}}})
        pool.wait_synced()

"""The DaemonSets whose pods the simulators watch, and the DRA driver's DeviceClasses, for a control plane with real
controllers and kwok."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, DEVICE_CLASSES, JSON, KubeClient
from gpusharing.kube.errors import AlreadyExists, NotFound
from gpusharing.kube.lists import list_of
from hack.sim.daemons import (
    AGENT,
    GPU_NODES,
    GPU_TAINT,
    LABEL_AGENT,
    LABEL_MIG_MANAGER,
    LABEL_MPS_DAEMON,
    MIG_MANAGER,
    MIG_MANAGER_SET,
    MPS_DAEMON,
    MPS_SELECTOR,
    TOLERATED,
)
from hack.sim.dra import DRA_SET, KUBELET_PLUGIN, LABEL_DRA, device_classes, driver_pod_spec
from hack.sim.gpuoperator import LABEL_DEPLOY_MIG_MANAGER
from hack.sim.mpsset import mps_pod_spec
from hack.sim.settings import SimSettings


def daemon_set(
    name: str,
    namespace: str,
    labels: dict[str, str],
    node_selector: Mapping[str, str],
    tolerated: Sequence[JSON] = (GPU_TAINT,),
) -> JSON:
    """Return the manifest of a DaemonSet whose pods do nothing; kwok reports them as running."""
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "nodeSelector": node_selector,
                    "tolerations": list(tolerated),
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "simulated", "image": "simulated"}],
                },
            },
        },
    }


def mps_daemon_set(settings: SimSettings, cluster_policy: JSON) -> JSON:
    """Return the GPU Operator's DaemonSet of MPS daemons, which this ClusterPolicy owns."""
    namespace = settings.gpu_operator_namespace
    body = daemon_set(MPS_DAEMON, namespace, {LABEL_MPS_DAEMON: MPS_DAEMON}, MPS_SELECTOR)
    owner = {key: cluster_policy["metadata"][key] for key in ("name", "uid")}
    body["metadata"]["ownerReferences"] = [{"apiVersion": "nvidia.com/v1", "kind": "ClusterPolicy", **owner}]
    body["spec"]["template"]["spec"] |= mps_pod_spec(settings)
    return body


def dra_daemon_set(settings: SimSettings) -> JSON:
    """Return the DaemonSet of the DRA driver's kubelet plugins, as its chart's release `dra` renders it."""
    labels = {LABEL_DRA: KUBELET_PLUGIN}
    body = daemon_set(DRA_SET, settings.gpu_operator_namespace, labels, GPU_NODES)
    body["metadata"]["labels"] = {"app.kubernetes.io/instance": "dra"}
    body["spec"]["template"]["spec"] = driver_pod_spec(GPU_NODES, (GPU_TAINT,))
    return body


async def install(client: KubeClient, settings: SimSettings) -> list[str]:
    """Create the DaemonSets that are missing, and the DRA driver's DeviceClasses."""
    gpu_operator_namespace, agent_namespace = settings.gpu_operator_namespace, settings.agent_namespace
    try:
        policies = await list_of(client, CLUSTER_POLICIES)
    except NotFound:
        policies = []
    wanted = (
        []
        if settings.plain_config
        else [
            daemon_set(
                MIG_MANAGER_SET,
                gpu_operator_namespace,
                {LABEL_MIG_MANAGER: MIG_MANAGER},
                {LABEL_DEPLOY_MIG_MANAGER: "true"},
            ),
            mps_daemon_set(settings, policies[0])
            if policies
            # It gets no owner: the garbage collector deletes an object whose owner does not exist.
            else daemon_set(MPS_DAEMON, gpu_operator_namespace, {LABEL_MPS_DAEMON: MPS_DAEMON}, MPS_SELECTOR),
        ]
    )
    if settings.dra:
        wanted.append(dra_daemon_set(settings))
        for body in device_classes():
            with suppress(AlreadyExists):
                await client.create(DEVICE_CLASSES, body)
    present = await list_of(client, DAEMON_SETS, namespace=agent_namespace) if settings.agents else []
    labels, templates = {LABEL_AGENT: AGENT}, [row["spec"]["template"]["metadata"] for row in present]
    if settings.agents and not any((one.get("labels") or {}).items() >= labels.items() for one in templates):
        wanted.append(daemon_set("simulated-agent", agent_namespace, labels, GPU_NODES, TOLERATED))
    created = []
    for body in wanted:
        try:
            await client.create(DAEMON_SETS, body, namespace=body["metadata"]["namespace"])
        except AlreadyExists:
            continue
        created.append(f"{body['metadata']['namespace']}/{body['metadata']['name']}")
    return created

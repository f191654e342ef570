"""NVIDIA's device-plugin chart as its templates render it, as far as the operator reads it."""

from gpusharing.api.names import LABEL_DEPLOY_CLIENT, LABEL_DEPLOY_PREFIX, LABEL_MPS_CAPABLE
from gpusharing.kube.client import JSON

NAMESPACE = "gpu-operator"
RELEASE = "nvdp"
VERSION = "0.19.3"
TOLERATIONS = [
    {"key": "CriticalAddonsOnly", "operator": "Exists"},
    {"effect": "NoSchedule", "key": "nvidia.com/gpu", "operator": "Exists"},
]
"""The chart's own defaults, in the order in which helm renders them."""


def daemon_set(
    name: str, container: str, config_map: str, *, default: str = "", mig_strategy: str = "", client: str = ""
) -> JSON:
    """One DaemonSet of the chart; without a ConfigMap it has no config-manager. `client` is the value of nvidia.com/gpu.deploy.client in the chart's nodeSelector."""
    volumes = [{"name": "available-configs", "configMap": {"name": config_map}}, {"name": "config", "emptyDir": {}}]
    init = [{"name": f"{container}-init", "env": [{"name": "DEFAULT_CONFIG", "value": default}]}]
    env = [{"name": "MIG_STRATEGY", "value": mig_strategy}] if mig_strategy else []
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": f"{RELEASE}-{name}",
            "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/instance": RELEASE, "helm.sh/chart": f"nvidia-device-plugin-{VERSION}"},
        },
        "spec": {
            "template": {
                "spec": {
                    "initContainers": init if config_map else [],
                    "containers": [{"name": container, "image": f"k8s-device-plugin:v{VERSION}", "env": env}],
                    "volumes": volumes if config_map else [],
                    "tolerations": TOLERATIONS,
                    **({"nodeSelector": {LABEL_DEPLOY_CLIENT: client}} if client else {}),
                }
            }
        },
    }


def running(raw: JSON, name: str = "", *, selector: JSON | None = None, wanted: int = 2) -> JSON:
    """The DaemonSet with a status by which its pods should run on so many nodes; `name` and `selector` replace its name and its nodeSelector."""
    metadata = {**raw["metadata"], **({"name": name} if name else {})}
    template = {**raw["spec"]["template"]["spec"], **({} if selector is None else {"nodeSelector": selector})}
    status = {"desiredNumberScheduled": wanted}
    return {**raw, "metadata": metadata, "spec": {"template": {"spec": template}}, "status": status}


def gpu_operators(name: str, container: str, operand: str) -> JSON:
    """A DaemonSet of the GPU Operator with this container, for the nodes with the deploy label of `operand`."""
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "ownerReferences": [{"kind": "ClusterPolicy", "name": "cluster-policy", "uid": "cp"}],
        },
        "spec": {
            "template": {
                "spec": {
                    "containers": [{"name": container, "image": f"{container}:v1"}],
                    "nodeSelector": {f"{LABEL_DEPLOY_PREFIX}{operand}": "true"},
                }
            }
        },
    }


def plugin(config_map: str = "gpusharing-device-plugin", **more: str) -> JSON:
    return daemon_set("nvidia-device-plugin", "nvidia-device-plugin-ctr", config_map, **more)


def discovery(config_map: str = "gpusharing-device-plugin", **more: str) -> JSON:
    name = "nvidia-device-plugin-gpu-feature-discovery"
    return daemon_set(name, "gpu-feature-discovery-ctr", config_map, **more)


def mps(config_map: str = "gpusharing-device-plugin", **more: str) -> JSON:
    """The DaemonSet of MPS daemons, which the chart always has; its pods start on nodes with nvidia.com/mps.capable."""
    raw = daemon_set("nvidia-device-plugin-mps-control-daemon", "mps-control-daemon-ctr", config_map, **more)
    spec = raw["spec"]["template"]["spec"]
    image = spec["containers"][0]["image"]
    sidecar = {
        "name": "mps-control-daemon-sidecar",
        "image": image,
        "command": ["config-manager"],
        "env": [{"name": "PROCESS_TO_SIGNAL", "value": "/usr/bin/mps-control-daemon"}],
    }
    spec["containers"] = [sidecar, {**spec["containers"][0], "command": ["mps-control-daemon"]}]
    spec["hostPID"] = True
    spec["nodeSelector"] = {LABEL_MPS_CAPABLE: "true", **spec.get("nodeSelector", {})}
    return raw


def mig_manager(config_map: str = "gpusharing-mig-parted", version: str = "v0.15.1") -> JSON:
    """mig-manager's DaemonSet beside the chart, as far as the operator reads mig-parted v0.15.1's deployments/container/nvidia-mig-manager-example.yaml."""
    container = {
        "name": "nvidia-mig-manager",
        "image": f"k8s-mig-manager:{version}",
        "env": [
            {"name": "CONFIG_FILE", "value": "/mig-parted-config/config.yaml"},
            {"name": "WITH_REBOOT", "value": "false"},
        ],
        "volumeMounts": [
            {"mountPath": "/host", "name": "host-root"},
            {"mountPath": "/mig-parted-config", "name": "mig-parted-config"},
        ],
    }
    volumes = [
        {"name": "host-root", "hostPath": {"path": "/"}},
        {"name": "mig-parted-config", "configMap": {"name": config_map}},
    ]
    template = {
        "nodeSelector": {"nvidia.com/gpu.deploy.mig-manager": "true"},
        "containers": [container],
        "volumes": volumes,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "nvidia-mig-manager", "namespace": NAMESPACE},
        "spec": {"template": {"spec": template}},
    }

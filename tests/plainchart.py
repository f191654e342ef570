"""NVIDIA's device-plugin chart as its templates render it, as far as the operator reads it."""

from gpusharing.kube.client import JSON

NAMESPACE = "gpu-operator"
RELEASE = "nvdp"
TOLERATIONS = [
    {"key": "CriticalAddonsOnly", "operator": "Exists"},
    {"effect": "NoSchedule", "key": "nvidia.com/gpu", "operator": "Exists"},
]
"""The chart's own defaults, in the order in which helm renders them."""


def daemon_set(
    name: str, container: str, config_map: str, *, default: str = "", mig_strategy: str = ""
) -> JSON:
    """One DaemonSet of the chart; without a ConfigMap it has no config-manager."""
    volumes = [
        {"name": "available-configs", "configMap": {"name": config_map}},
        {"name": "config", "emptyDir": {}},
    ]
    init = [{"name": f"{container}-init", "env": [{"name": "DEFAULT_CONFIG", "value": default}]}]
    env = [{"name": "MIG_STRATEGY", "value": mig_strategy}] if mig_strategy else []
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": f"{RELEASE}-{name}",
            "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/instance": RELEASE},
        },
        "spec": {
            "template": {
                "spec": {
                    "initContainers": init if config_map else [],
                    "containers": [{"name": container, "image": "k8s-device-plugin:v0.19.3", "env": env}],
                    "volumes": volumes if config_map else [],
                    "tolerations": TOLERATIONS,
                }
            }
        },
    }


def plugin(config_map: str = "gpusharing-device-plugin", **more: str) -> JSON:
    """The device plugin's DaemonSet."""
    return daemon_set("nvidia-device-plugin", "nvidia-device-plugin-ctr", config_map, **more)


def discovery(config_map: str = "gpusharing-device-plugin") -> JSON:
    """GPU Feature Discovery's."""
    return daemon_set("nvidia-device-plugin-gpu-feature-discovery", "gpu-feature-discovery-ctr", config_map)

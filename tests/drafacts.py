"""NVIDIA's DRA driver as its chart renders it and as it publishes devices, as far as the operator reads it (dra-driver-nvidia-gpu v0.5.0, deployments/helm and cmd/gpu-kubelet-plugin)."""

from collections.abc import Sequence

from gpusharing.kube.client import JSON

NAMESPACE = "gpu-operator"


def driver(*programs: str, gates: str = "", release: str = "dra") -> JSON:
    """The DaemonSet of the kubelet plugin with the containers `gpus` and `compute-domains`, or only those named. Its node selector matches no node, so that no pod is created."""
    containers = [
        {
            "name": name,
            "image": "dra-driver-nvidia-gpu:v0.5.0",
            "command": ["bash", "-c"],
            "args": [f"{program} -v $(LOG_VERBOSITY)"],
            "env": [{"name": "FEATURE_GATES", "value": gates}] if gates else [],
        }
        for name, program in (("compute-domains", "compute-domain-kubelet-plugin"), ("gpus", "gpu-kubelet-plugin"))
        if not programs or name in programs
    ]
    labels = {"dra-driver-nvidia-gpu-component": "kubelet-plugin"}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": "dra-driver-nvidia-gpu-kubelet-plugin",
            "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/instance": release},
        },
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": containers, "nodeSelector": {"tests/no-node": "true"}},
            },
        },
    }


def whole_gpu(index: int) -> JSON:
    return _device(f"gpu-{index}", {"type": "gpu", "uuid": f"GPU-{index}"})


def mig_device(index: int, profile: str, number: int) -> JSON:
    gpu, short = f"GPU-{index}", profile.replace(".", "").replace("+", "-")
    attributes = {"type": "mig", "profile": profile, "parentUUID": gpu, "uuid": f"MIG-{index}-{number}"}
    return _device(f"gpu-{index}-mig-{short}-{number}", attributes)


def _device(name: str, attributes: dict[str, str]) -> JSON:
    return {"name": name, "attributes": {key: {"string": value} for key, value in attributes.items()}}


def resource_slice(
    node: str,
    devices: Sequence[JSON],
    *,
    name: str = "",
    generation: int = 1,
    of: int = 1,
    driver_name: str = "gpu.nvidia.com",
) -> JSON:
    """One slice of the node's pool, which has `of` slices in this generation."""
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": name or f"{node}-{driver_name}-{generation}"},
        "spec": {
            "driver": driver_name,
            "nodeName": node,
            "pool": {"name": node, "generation": generation, "resourceSliceCount": of},
            "devices": list(devices),
        },
    }

"""NVIDIA's pods as the GPU Operator would create them, with its names, labels, selectors and rights.

SIMULATED: we create them instead of the GPU Operator, and their ServiceAccount has all rights.
"""

from collections.abc import Mapping, Sequence

from hack.cluster.api import Object
from hack.cluster.install import GPU_OPERATOR_NAMESPACE
from hack.nvidia.node import MIG_MAP, PLUGIN_MAP
from hack.nvidia.operands import GFD, GFD_SECONDS, MIG_MANAGER, MPS, PLUGIN, SELECTORS
from hack.realnode.nvidiaimage import IN_CONTAINERS, MPS_ROOT, NVIDIA_IMAGE

ACCOUNT = "nvidia-operands"
FEATURES = "/run/nfd"
"""The folder on the node in which GFD writes its labels for NFD."""
LABELS = f"{FEATURES}/gfd"
HOST_ROOT = "/run/host-root"
"""The folder on the node that mig-manager uses as the host's root, with a D-Bus. It runs `chroot … reboot` there."""
CONFIGS, CONFIG = "/available-configs", "/config/config.yaml"


def manifests(*, plugin: bool = True) -> list[Object]:
    """Return NVIDIA's DaemonSets and their account; without `plugin` only mig-manager and GFD."""
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": GPU_OPERATOR_NAMESPACE}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": ACCOUNT, "namespace": GPU_OPERATOR_NAMESPACE},
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": ACCOUNT},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [account],
        },
        *((_plugin(), _mps()) if plugin else ()),
        _gfd(),
        _mig_manager(),
    ]


def _plugin() -> Object:
    sockets = "/var/lib/kubelet/device-plugins"
    command = ["/usr/bin/nvidia-device-plugin", "--config-file", CONFIG, "--mps-root", MPS_ROOT]
    return _configured(PLUGIN, command, {"device-plugins": (sockets, sockets), "mps-root": (MPS_ROOT, IN_CONTAINERS)})


def _gfd() -> Object:
    output = ["--use-node-feature-api=false", "--output-file", LABELS, "--sleep-interval", GFD_SECONDS]
    command = ["/usr/bin/gpu-feature-discovery", "--config-file", CONFIG, *output]
    return _configured(GFD, command, {"features": (FEATURES, FEATURES)})


def _mps() -> Object:
    """Return the DaemonSet of the MPS daemon. Unlike NVIDIA's up to GPU Operator v26.7 (docs/design/nvidia.md#b5) it
    gets new configurations."""
    folders = {"mps-root": (MPS_ROOT, IN_CONTAINERS), "mps-shm": (f"{MPS_ROOT}/shm", "/dev/shm")}
    daemon = _configured(MPS, ["/usr/bin/mps-control-daemon", "--config-file", CONFIG], folders)
    mounts = _container("mps-control-daemon-mounts", ["/usr/bin/mps-control-daemon", "mount-shm"])
    mounts["volumeMounts"] = [{"name": "mps-root", "mountPath": IN_CONTAINERS, "mountPropagation": "Bidirectional"}]
    daemon["spec"]["template"]["spec"]["initContainers"].insert(0, mounts)
    return daemon


def _configured(name: str, command: Sequence[str], folders: Mapping[str, tuple[str, str]]) -> Object:
    config = [{"name": "available-configs", "mountPath": CONFIGS}, {"name": "config", "mountPath": "/config"}]
    main = _container(name, command)
    # config-manager creates links into /available-configs, so the program needs that volume, too.
    main["volumeMounts"] = config + [{"name": volume, "mountPath": inside} for volume, (_, inside) in folders.items()]
    environ = {
        "CONFIG_FILE_SRCDIR": CONFIGS,
        "CONFIG_FILE_DST": CONFIG,
        "FALLBACK_STRATEGIES": "empty",
        "PROCESS_TO_SIGNAL": command[0],
    }
    sidecar = _container("config-manager", ["/usr/bin/config-manager"], {**environ, "SEND_SIGNAL": "true"})
    init = _container(
        "config-manager-init", ["/usr/bin/config-manager"], {**environ, "ONESHOT": "true", "SEND_SIGNAL": "false"}
    )
    for container in (sidecar, init):
        container["volumeMounts"] = config
    volumes = [
        {"name": "available-configs", "configMap": {"name": PLUGIN_MAP}},
        {"name": "config", "emptyDir": {}},
        *(_host_folder(volume, path) for volume, (path, _) in folders.items()),
    ]
    spec = {"initContainers": [init], "containers": [main, sidecar], "volumes": volumes}
    return _daemon_set(name, {**spec, "shareProcessNamespace": True})


def _mig_manager() -> Object:
    """Return the DaemonSet of mig-manager, with HOST_ROOT as the host's root; it does not reboot the node."""
    environ = {
        "CONFIG_FILE": "/mig-parted-config/config.yaml",
        "HOST_ROOT_MOUNT": "/host",
        "DEFAULT_GPU_CLIENTS_NAMESPACE": GPU_OPERATOR_NAMESPACE,
        "NVIDIA_MIG_CONFIG_DEVICES": "all",
        "WITH_REBOOT": "false",
    }
    main = _container(MIG_MANAGER, ["/usr/bin/enter", "/usr/bin/nvidia-mig-manager"], environ)
    main["volumeMounts"] = [
        {"name": "mig-parted-config", "mountPath": "/mig-parted-config"},
        {"name": "host-root", "mountPath": "/host"},
    ]
    volumes = [{"name": "mig-parted-config", "configMap": {"name": MIG_MAP}}, _host_folder("host-root", HOST_ROOT)]
    return _daemon_set(MIG_MANAGER, {"containers": [main], "volumes": volumes, "hostPID": True})


def _host_folder(name: str, path: str) -> Object:
    return {"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}}


def _container(name: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> Object:
    driver = {
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "NVIDIA_MIG_MONITOR_DEVICES": "all",
    }
    env: list[Object] = [{"name": key, "value": value} for key, value in {**driver, **(environ or {})}.items()]
    env.append({"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}})
    return {
        "name": name,
        "image": NVIDIA_IMAGE,
        "command": list(command),
        "env": env,
        "securityContext": {"privileged": True},
    }


def _daemon_set(name: str, spec: Object) -> Object:
    labels = {"app": name}
    pod = {
        "nodeSelector": SELECTORS[name],
        "serviceAccountName": ACCOUNT,
        "runtimeClassName": "nvidia",
        "priorityClassName": "system-node-critical",
        "terminationGracePeriodSeconds": 5,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        **spec,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": GPU_OPERATOR_NAMESPACE, "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }

"""Configuration files of containerd, CNI and the kubelet of one node: values in, text out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
RUNTIME_CLASS = "nvidia"


@dataclass(frozen=True)
class NodeFiles:
    """Where the files of one node lie."""

    folder: Path

    @property
    def containerd_config(self) -> Path:
        """For `containerd --config`."""
        return self.folder / "containerd.toml"

    @property
    def cni(self) -> Path:
        """The folder with the one network."""
        return self.folder / "cni"

    @property
    def kubelet_config(self) -> Path:
        """For `kubelet --config`."""
        return self.folder / "kubelet.yaml"

    @property
    def ca(self) -> Path:
        """The authority that signs the clients of the kubelet."""
        return self.folder / "ca.crt"

    @property
    def kubeconfig(self) -> Path:
        """With which the kubelet logs in."""
        return self.folder / "kubeconfig"

    @property
    def images(self) -> Path:
        """Archives on their way to containerd."""
        return self.folder / "images"


def containerd(files: NodeFiles, cni_plugins: Path, pause_image: str, runtimes: Mapping[str, Path]) -> str:
    """containerd 1.6. `runtimes`: programs that are called in the place of runc, by the name of their handler."""
    quoted = json.dumps  # TOML's basic strings are JSON's
    cri = '[plugins."io.containerd.grpc.v1.cri"'
    handlers = [
        f"{cri}.containerd.runtimes.{name}]\n"
        'runtime_type = "io.containerd.runc.v2"\n'
        f"{cri}.containerd.runtimes.{name}.options]\n"
        f"BinaryName = {quoted(str(program))}\n"
        for name, program in {"runc": "", **runtimes}.items()
    ]
    return "\n".join(
        (
            "version = 2",
            f"root = {quoted(str(files.folder / 'containerd'))}",
            'state = "/run/containerd"',
            f"[grpc]\naddress = {quoted(CONTAINERD_SOCKET)}",
            f"{cri}]",
            f"sandbox_image = {quoted(pause_image)}",
            # A score below our own is refused where we do not run as the computer's first root.
            "restrict_oom_score_adj = true",
            "disable_apparmor = true",
            f"{cri}.cni]\nbin_dir = {quoted(str(cni_plugins))}\nconf_dir = {quoted(str(files.cni))}",
            *handlers,
        )
    )


def cni(files: NodeFiles, number: int) -> str:
    """A bridge inside the node; pods reach the API server with the node's address."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": f"10.244.{number}.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(files.folder / "cni-addresses"),
        },
    }
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}, indent=2)


def kubelet(address: str, ca: Path, cgroup: str) -> str:
    """As a kubelet is configured by default, but for what this computer cannot give."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(ca)},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup,
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": False,
            # The computer's disk is not the node's: how full it is must neither evict pods nor delete images.
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "resolvConf": "",
            "syncFrequency": "2s",
        }
    )

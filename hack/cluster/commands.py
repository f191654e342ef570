"""Command lines of the control plane's programs: pure functions from options to flags.

All programs listen on 127.0.0.1, except an API server that real kubelets must reach (`Layout.host`). Programs that do
not need a port have none (controller-manager, scheduler, kwok).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.certs import KUBELET_CLIENT, Pki
from hack.cluster.toolchain import Programs

HOST = "127.0.0.1"
SERVICE_ACCOUNT_ISSUER = "https://kubernetes.default.svc"
MANAGED_BY_KWOK = ("kwok.x-k8s.io/node", "fake")
"""The annotation of nodes whose kubelet kwok plays."""
NODE_GRACE = "87600h"
"""How long a node stays Ready without a heartbeat: ten years, because simulated nodes send none."""
STAGES = Path(__file__).resolve().parent / "manifests" / "kwok-stages.yaml"


@dataclass(frozen=True)
class Layout:
    directory: Path
    etcd_port: int
    etcd_peer_port: int
    apiserver_port: int
    host: str = HOST
    """The address that the API server listens on: loopback, or the address of a bridge if there are real kubelets."""

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.apiserver_port}"

    @property
    def etcd_url(self) -> str:
        return f"https://{HOST}:{self.etcd_port}"

    @property
    def pki(self) -> Pki:
        return Pki(self.directory / "pki")

    @property
    def audit_log(self) -> Path:
        """The path of the audit log, which has one line of JSON per request if auditing is on."""
        return self.directory / "audit.log"

    @property
    def audit_policy(self) -> Path:
        return self.directory / "audit-policy.yaml"

    def kubeconfig(self, user: str) -> Path:
        return self.directory / f"{user}.kubeconfig"


def etcd(programs: Programs, layout: Layout) -> list[str]:
    """Return the command line of etcd, which does not sync: its data is discarded with the cluster."""
    pki, peer = layout.pki, f"https://{HOST}:{layout.etcd_peer_port}"
    tls = [
        f"--{kind}{name}={file}"
        for kind in ("", "peer-")
        for name, file in (
            ("cert-file", pki.cert("serving")),
            ("key-file", pki.key("serving")),
            ("trusted-ca-file", pki.ca),
            ("client-cert-auth", "true"),
        )
    ]
    return [
        str(programs.etcd),
        f"--data-dir={layout.directory / 'etcd'}",
        f"--listen-client-urls={layout.etcd_url}",
        f"--advertise-client-urls={layout.etcd_url}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
        *tls,
    ]


def apiserver(programs: Programs, layout: Layout, *, audit: bool, extra: Sequence[str] = ()) -> list[str]:
    pki = layout.pki
    auditing = [
        f"--audit-policy-file={layout.audit_policy}",
        f"--audit-log-path={layout.audit_log}",
        "--audit-log-format=json",
    ]
    return [
        str(programs.kube_apiserver),
        f"--bind-address={layout.host}",
        f"--advertise-address={layout.host}",
        f"--secure-port={layout.apiserver_port}",
        # The Service `kubernetes` would refuse a loopback endpoint, and nothing here connects to it.
        "--endpoint-reconciler-type=none",
        "--service-cluster-ip-range=10.96.0.0/16",
        f"--etcd-servers={layout.etcd_url}",
        f"--etcd-cafile={pki.ca}",
        f"--etcd-certfile={pki.cert('etcd-client')}",
        f"--etcd-keyfile={pki.key('etcd-client')}",
        "--authorization-mode=Node,RBAC",
        f"--client-ca-file={pki.ca}",
        f"--tls-cert-file={pki.cert('serving')}",
        f"--tls-private-key-file={pki.key('serving')}",
        f"--service-account-issuer={SERVICE_ACCOUNT_ISSUER}",
        f"--service-account-key-file={pki.directory / 'service-account.pub'}",
        f"--service-account-signing-key-file={pki.key('service-account')}",
        "--allow-privileged=true",
        "--profiling=false",
        *(auditing if audit else []),
        *extra,
    ]


def kubelet_access(layout: Layout) -> list[str]:
    """Return the flags with which kube-apiserver reaches real kubelets, for `kubectl logs` and `exec`."""
    pki = layout.pki
    return [
        f"--kubelet-client-certificate={pki.cert(KUBELET_CLIENT)}",
        f"--kubelet-client-key={pki.key(KUBELET_CLIENT)}",
        "--kubelet-preferred-address-types=InternalIP",
    ]


QUIET = ("--leader-elect=false", "--secure-port=0", "--profiling=false")
BUSY = ("--kube-api-qps=500", "--kube-api-burst=1000")
"""With the default (20/s) a thousand new nodes would wait a minute until their first taint is removed."""


def controller_manager(programs: Programs, layout: Layout) -> list[str]:
    """Return the command line of kube-controller-manager with all default controllers."""
    return [
        str(programs.kube_controller_manager),
        f"--kubeconfig={layout.kubeconfig('controller-manager')}",
        *QUIET,
        *BUSY,
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={layout.pki.key('service-account')}",
        f"--root-ca-file={layout.pki.ca}",
        f"--node-monitor-grace-period={NODE_GRACE}",
    ]


def scheduler(programs: Programs, layout: Layout) -> list[str]:
    return [str(programs.kube_scheduler), f"--kubeconfig={layout.kubeconfig('scheduler')}", *QUIET, *BUSY]


def kwok(program: Path, kubeconfig: Path, lease_seconds: int = 0) -> list[str]:
    """Return kwok's command line. A usual controller-manager needs `lease_seconds` above 0."""
    return [
        str(program),
        f"--kubeconfig={kubeconfig}",
        f"--config={STAGES}",
        f"--manage-nodes-with-annotation-selector={'='.join(MANAGED_BY_KWOK)}",
        f"--node-lease-duration-seconds={lease_seconds}",
    ]

"""Every kind of pod that a drain meets, made from a manifest as the API server has it, and what is right for it.

`must_leave` and `may_be_evicted` are the tests' own opinion (docs/design/drain.md, rows P and G); nothing is asked of
holders.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from gpusharing.api import names
from gpusharing.kube.client import JSON
from gpusharing.kube.convert_pods import ResourceClaimUse, pod_view
from gpusharing.planning.snapshot.podviews import PodView

NAMESPACE, NVIDIA = "team-a", "gpu-operator"
CLIENT = {f"{names.LABEL_DEPLOY_PREFIX}client": "true"}


@dataclass(frozen=True)
class Kind:
    """What sets a pod apart."""

    owner: str = "ReplicaSet"
    """Kind of its controller; empty: none."""
    owner_gone: bool = False
    asks: Literal["container", "init container", "claim", "nothing"] = "container"
    """Where it asks for a GPU."""
    namespace: str = NAMESPACE
    phase: str = "Running"
    ready: bool = True
    mirror: bool = False
    leaving: bool = False
    """It was deleted already, and a finalizer keeps it."""
    selector: Mapping[str, str] | None = None


KINDS: Mapping[str, Kind] = {
    "a pod of a ReplicaSet": Kind(),
    "a pod of a Job": Kind("Job"),
    "a bare pod": Kind(""),
    "a pod whose ReplicaSet is gone": Kind(owner_gone=True),
    "a pod with an init container on a GPU": Kind(asks="init container"),
    "a pod that is not Ready": Kind(ready=False),
    "a pod that waits for its image": Kind(phase="Pending", ready=False),
    "a pod with a claim": Kind(asks="claim"),
    "a pod of a DaemonSet": Kind("DaemonSet"),
    "a pod of NVIDIA's": Kind("DaemonSet", namespace=NVIDIA),
    "a pod that mig-manager removes": Kind("DaemonSet", selector=CLIENT),
    "a static pod": Kind("Node", mirror=True),
    "a finished pod": Kind("Job", phase="Succeeded", ready=False),
    "a failed pod": Kind("", phase="Failed", ready=False),
    "a pod that is leaving": Kind(leaving=True),
    "a CPU pod": Kind(asks="nothing"),
    "a bare CPU pod": Kind("", asks="nothing"),
    "a CPU pod of a DaemonSet": Kind("DaemonSet", asks="nothing"),
    "a static CPU pod": Kind("Node", asks="nothing", mirror=True),
}
PINNED = frozenset(name for name, kind in KINDS.items() if kind.owner in ("DaemonSet", "Node"))
"""They come to a cordoned node all the same: DaemonSets tolerate the cordon, and the kubelet asks nobody."""
NOBODY_MOVES = frozenset(
    ("a pod with a claim", "a pod of a DaemonSet", "a static pod", "a bare pod", "a bare CPU pod")
)
"""They block a drain until a person acts (bare pods: by the policy's options)."""


def make(kind_name: str, name: str, app: str, resource: str, now: datetime) -> PodView:
    """A pod of this kind that asks for one device of a resource."""
    kind = KINDS[kind_name]
    view = pod_view(_manifest(kind, name, app, resource), _claims(kind, name))
    owner = replace(view.owner, exists=not kind.owner_gone) if view.owner is not None else None
    return replace(view, owner=owner, deleted_at=now if kind.leaving else None)


def _manifest(kind: Kind, name: str, app: str, resource: str) -> JSON:
    asking = {"name": "main", "resources": {"limits": {resource: "1"}}}
    plain: JSON = {"name": "plain", "resources": {}}
    api_version = {"Job": "batch/v1", "Node": "v1"}.get(kind.owner, "apps/v1")
    owner = {"apiVersion": api_version, "kind": kind.owner, "name": app, "controller": True}
    spec: JSON = {"containers": [asking if kind.asks == "container" else plain]}
    if kind.asks == "init container":
        spec["initContainers"] = [asking]
    if kind.asks == "claim":
        spec["resourceClaims"] = [{"name": "gpu", "resourceClaimName": f"claim-of-{name}"}]
    if kind.selector is not None:
        spec["nodeSelector"] = dict(kind.selector)
    return {
        "metadata": {
            "namespace": kind.namespace,
            "name": name,
            "uid": f"uid-{name}",
            "labels": {"app": app},
            "annotations": {"kubernetes.io/config.mirror": "yes"} if kind.mirror else {},
            "ownerReferences": [owner] if kind.owner else [],
            "finalizers": ["example.com/keep"] if kind.leaving else [],
        },
        "spec": spec,
        "status": {
            "phase": kind.phase,
            "conditions": [{"type": "Ready", "status": str(kind.ready)}],
        },
    }


def _claims(kind: Kind, name: str) -> Mapping[str, ResourceClaimUse]:
    return {f"{kind.namespace}/claim-of-{name}": "gpu"} if kind.asks == "claim" else {}


# --- what is right ----------------------------------------------------------------------------------------


def holds_gpu(pod: PodView) -> bool:
    """It asks for a GPU, by a container or by a claim."""
    asked = any(key.startswith(("nvidia.com/gpu", "nvidia.com/mig-")) for key in pod.resources)
    return asked or pod.dra != "none"


def must_leave(pod: PodView, *, reboot: bool) -> bool:
    """Whether a change may not begin while this pod is there: it holds a GPU, or the node will reboot under it."""
    if pod.phase in ("Succeeded", "Failed") or not (reboot or holds_gpu(pod)):
        return False
    if pod.mirror:
        return holds_gpu(pod)
    if _of_daemon_set(pod):
        # NVIDIA's own go with mig-manager, and so does what selects gpu.deploy.client (docs/design/nvidia.md#a3).
        return holds_gpu(pod) and pod.namespace != NVIDIA and not CLIENT.keys() & pod.node_selector.keys()
    return True


def may_be_evicted(pod: PodView, *, reboot: bool, unmanaged: bool) -> bool:
    """Whether an eviction makes sense and is allowed. `unmanaged`: pods that nobody starts again may go as well."""
    if not must_leave(pod, reboot=reboot) or pod.deleted_at is not None:
        return False
    managed = pod.owner is not None and pod.owner.exists is not False
    return not pod.mirror and not _of_daemon_set(pod) and pod.dra == "none" and (managed or unmanaged)


def _of_daemon_set(pod: PodView) -> bool:
    return pod.owner is not None and pod.owner.kind == "DaemonSet" and pod.owner.exists is not False

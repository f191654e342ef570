"""What a pod is to a drain, read from the object as the API server has it (docs/design/drain.md, rows P and G).

The guard's own opinion: nothing is asked of the planner or of kube/pods.py.
"""

from collections.abc import Iterable, Iterator, Mapping

from gpusharing.api import names
from gpusharing.kube.client import JSON

NVIDIA = "gpu-operator"
PROTECTED = "kube-system"
"""The chart's admission policy refuses evictions there by default; FakeCluster has no admission policies."""
DRA_DRIVER = "gpu.nvidia.com"
KAI_GROUP = "runai-gpu-group"
"""The label by which pods share a GPU through KAI-Scheduler; a pod with fractions of several has it with suffixes."""


def holds_gpu(pod: JSON, claims: Mapping[str, JSON]) -> bool:
    """Whether it holds a GPU while it lives: by a container of any kind, or by a ResourceClaim (`namespace/name`)."""
    if is_finished(pod):
        return False
    asked = {key for row in _containers(pod) for key in _asked(row)}
    if groups_of(pod) or any(key.startswith(("nvidia.com/gpu", "nvidia.com/mig-")) for key in asked):
        return True
    return any(_gives_gpu(claims.get(name)) for name in _claimed(pod))


def must_leave(pod: JSON, claims: Mapping[str, JSON], *, reboot: bool) -> bool:
    """Whether the point of no return may not come while it is there. `reboot`: no pod outlives it but pinned ones."""
    if is_finished(pod):
        return False
    gpu = holds_gpu(pod, claims)
    if is_mirror(pod):
        return gpu
    if is_of_daemon_set(pod):
        client = f"{names.LABEL_DEPLOY_PREFIX}client" in (pod["spec"].get("nodeSelector") or {})
        return gpu and pod["metadata"]["namespace"] != NVIDIA and not client
    return gpu or reboot


def wrong_in_eviction(pod: JSON, claims: Mapping[str, JSON], *, reboot: bool, dra: bool = False) -> Iterator[str]:
    """Why this pod may not be evicted at all. `dra`: NVIDIA's DRA driver serves the GPUs of the cluster."""
    if pod["metadata"]["namespace"] == PROTECTED:
        yield "nothing is evicted in its namespace"
    if is_mirror(pod):
        yield "it is a static pod"
    if is_of_daemon_set(pod):
        yield "a DaemonSet brings it back"
    if is_finished(pod):
        yield "it has finished"
    if "deletionTimestamp" in pod["metadata"]:
        yield "it is leaving"
    if not dra and any(_gives_gpu(claims.get(name)) for name in _claimed(pod)):
        yield "the DRA driver manages its GPU"
    if not must_leave(pod, claims, reboot=reboot):
        yield "it holds no GPU"


def groups_of(pod: JSON) -> set[str]:
    """The GPUs that it shares through KAI, or that it keeps for the pods that do."""
    labels = pod["metadata"].get("labels") or {}
    return {value for key, value in labels.items() if f"{key}/".startswith(f"{KAI_GROUP}/")}


def keeps_for(pod: JSON, others: Iterable[JSON]) -> list[str]:
    """The pods for which KAI keeps a GPU with this pod, so that it must not be evicted before them."""
    if not groups_of(pod) or not any(_asked(row) for row in _containers(pod)):
        return []
    own = pod["metadata"]["uid"]
    sharing = (one for one in others if groups_of(one) & groups_of(pod) and not is_finished(one))
    return [one["metadata"]["name"] for one in sharing if one["metadata"]["uid"] != own]


def is_finished(pod: JSON) -> bool:
    """Succeeded or Failed."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_mirror(pod: JSON) -> bool:
    """The picture of a static pod."""
    annotations = pod["metadata"].get("annotations") or {}
    return "kubernetes.io/config.mirror" in annotations or "Node" in _owners(pod)


def is_of_daemon_set(pod: JSON) -> bool:
    """By its controller; whether the DaemonSet still exists is not looked at."""
    return "DaemonSet" in _owners(pod)


def _owners(pod: JSON) -> set[str]:
    return {str(row.get("kind")) for row in pod["metadata"].get("ownerReferences") or ()}


def _containers(pod: JSON) -> Iterator[JSON]:
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        yield from pod["spec"].get(kind) or ()


def _asked(container: JSON) -> Iterable[str]:
    resources = container.get("resources") or {}
    return {*(resources.get("limits") or {}), *(resources.get("requests") or {})}


def _claimed(pod: JSON) -> Iterator[str]:
    """`namespace/name` of the claims that are generated or named, those of extended resources included."""
    status, namespace = pod.get("status") or {}, pod["metadata"]["namespace"]
    generated = {row["name"]: row.get("resourceClaimName") for row in status.get("resourceClaimStatuses") or ()}
    for row in pod["spec"].get("resourceClaims") or ():
        if name := row.get("resourceClaimName") or generated.get(row["name"]):
            yield f"{namespace}/{name}"
    if extended := (status.get("extendedResourceClaimStatus") or {}).get("resourceClaimName"):
        yield f"{namespace}/{extended}"


def _gives_gpu(claim: JSON | None) -> bool:
    allocation = ((claim or {}).get("status") or {}).get("allocation") or {}
    rows = (allocation.get("devices") or {}).get("results") or ()
    return any(row.get("driver") == DRA_DRIVER and row.get("adminAccess") is not True for row in rows)

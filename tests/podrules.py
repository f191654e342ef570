"""What a pod is to a drain (docs/design/drain.md, rows P and G): `leaves` for what is known of a pod, the others for the object as the API server has it. The tests' own opinion: nothing is asked of the planner or of kube/pods.py."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gpusharing.api import names
from gpusharing.kube.client import JSON

NVIDIA = "gpu-operator"
PROTECTED = "kube-system"
"""The chart's admission policy refuses evictions there by default; FakeCluster has no admission policies."""
DRA_DRIVER = "gpu.nvidia.com"
CLIENT = f"{names.LABEL_DEPLOY_PREFIX}client"
"""What selects it goes with mig-manager, as NVIDIA's own pods do (docs/design/nvidia.md#a3)."""
KAI_GROUP = "runai-gpu-group"
"""The label by which pods share a GPU through KAI-Scheduler; a pod with fractions of several has it with suffixes."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides whether a pod has to leave."""

    gpu: bool
    """It holds one, by a container, by a claim or through KAI."""
    namespace: str
    finished: bool
    mirror: bool
    daemon_set: bool
    client: bool


def leaves(pod: Facts, *, reboot: bool) -> bool:
    """Whether the point of no return may not come while it is there. `reboot`: no pod outlives it but pinned ones."""
    if pod.finished:
        return False
    if pod.mirror:
        return pod.gpu
    if pod.daemon_set:
        return pod.gpu and pod.namespace != NVIDIA and not pod.client
    return pod.gpu or reboot


def asks_gpu(resources: Iterable[str]) -> bool:
    return any(key.startswith(("nvidia.com/gpu", "nvidia.com/mig-")) for key in resources)


def groups_in(labels: Mapping[str, str]) -> set[str]:
    """The GPUs that a pod with these labels shares through KAI, or keeps for the pods that do."""
    return {value for key, value in labels.items() if f"{key}/".startswith(f"{KAI_GROUP}/")}


def holds_gpu(pod: JSON, claims: Mapping[str, JSON]) -> bool:
    """Whether it holds a GPU while it lives: by a container of any kind, or by a ResourceClaim (`namespace/name`)."""
    if is_finished(pod):
        return False
    asked = {key for row in _containers(pod) for key in _asked(row)}
    return bool(groups_of(pod)) or asks_gpu(asked) or any(_gives_gpu(claims.get(name)) for name in _claimed(pod))


def must_leave(pod: JSON, claims: Mapping[str, JSON], *, reboot: bool) -> bool:
    """`leaves`, for the object."""
    client = CLIENT in (pod["spec"].get("nodeSelector") or {})
    gpu, namespace = holds_gpu(pod, claims), pod["metadata"]["namespace"]
    facts = Facts(gpu, namespace, is_finished(pod), is_mirror(pod), is_of_daemon_set(pod), client)
    return leaves(facts, reboot=reboot)


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
    """`groups_in`, for the object."""
    return groups_in(pod["metadata"].get("labels") or {})


def keeps_for(pod: JSON, others: Iterable[JSON]) -> list[str]:
    """The pods for which KAI keeps a GPU with this pod, so that it must not be evicted before them."""
    if not groups_of(pod) or not any(_asked(row) for row in _containers(pod)):
        return []
    own = pod["metadata"]["uid"]
    sharing = (one for one in others if groups_of(one) & groups_of(pod) and not is_finished(one))
    return [one["metadata"]["name"] for one in sharing if one["metadata"]["uid"] != own]


def is_finished(pod: JSON) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_mirror(pod: JSON) -> bool:
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

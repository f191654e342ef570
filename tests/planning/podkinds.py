"""Every kind of pod that a drain meets, made from a manifest as the API server has it, and what is right for it.
`must_leave` (by podrules.py) and `may_be_evicted` are the tests' own opinion; nothing is asked of holders.py."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from tests import podrules
from tests.podrules import CLIENT, KAI_GROUP, NVIDIA

from gpusharing.api.policy import Drain, DrainRule
from gpusharing.api.times import to_rfc3339
from gpusharing.kube.client import JSON
from gpusharing.kube.pods import ClaimedDevices, pod_view
from gpusharing.planning.snapshot.podviews import PodView

NAMESPACE = "team-a"
DO_NOT_DISRUPT, JOBSET = "gpusharing.dev/do-not-disrupt", "jobset.sigs.k8s.io/jobset-name"


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
    ends: bool = False
    """It is not started anew when it ends (restartPolicy Never)."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    files: bool = False
    sticks: bool = False
    """A finalizer keeps its object when it was evicted."""
    system: bool = False
    gang: str = ""
    shares: bool = False
    """It has a fraction of a GPU through KAI-Scheduler."""


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
    "a pod that mig-manager removes": Kind("DaemonSet", selector={CLIENT: "true"}),
    "a static pod": Kind("Node", mirror=True),
    "a finished pod": Kind("Job", phase="Succeeded", ready=False),
    "a failed pod": Kind("", phase="Failed", ready=False),
    "a pod that is leaving": Kind(leaving=True),
    "a pod that sticks": Kind(sticks=True),
    "a pod of a Job that ends": Kind("Job", ends=True),
    "a protected pod": Kind(annotations={DO_NOT_DISRUPT: "true"}),
    "a pod that is protected for a while": Kind(annotations={DO_NOT_DISRUPT: "90s"}),
    "a pod with files on the node": Kind(files=True),
    "a pod of a system priority class": Kind(system=True),
    "a rank of a JobSet": Kind("Job", gang="train"),
    "a rank of another JobSet": Kind("Job", gang="tune"),
    "a rank without a GPU": Kind("Job", gang="train", asks="nothing"),
    "a pod that shares a GPU": Kind(asks="nothing", shares=True),
    "a CPU pod": Kind(asks="nothing"),
    "a bare CPU pod": Kind("", asks="nothing"),
    "a CPU pod of a DaemonSet": Kind("DaemonSet", asks="nothing"),
    "a static CPU pod": Kind("Node", asks="nothing", mirror=True),
}
PINNED = frozenset(name for name, kind in KINDS.items() if kind.owner in ("DaemonSet", "Node"))
"""They come to a cordoned node all the same: DaemonSets tolerate the cordon, and the kubelet asks nobody."""
NOBODY_MOVES = frozenset(
    (
        "a pod with a claim",
        "a pod of a DaemonSet",
        "a static pod",
        "a bare pod",
        "a bare CPU pod",
        "a protected pod",
        "a pod that sticks",
    )
)
"""They block a drain until a person acts (bare and protected pods: by the policy's options)."""


def make(kind_name: str, name: str, app: str, resource: str, now: datetime) -> PodView:
    """A pod of this kind that asks for one device of a resource."""
    kind = KINDS[kind_name]
    view = pod_view(_manifest(kind, name, app, resource, now), _claims(kind, name))
    owner = replace(view.owner, exists=not kind.owner_gone) if view.owner is not None else None
    return replace(view, owner=owner, deleted_at=now if kind.leaving else None)


def _manifest(kind: Kind, name: str, app: str, resource: str, now: datetime) -> JSON:
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
    if kind.ends:
        spec["restartPolicy"] = "Never"
    if kind.files:
        spec["volumes"] = [{"name": "scratch", "emptyDir": {}}]
    if kind.system:
        spec["priorityClassName"] = "system-cluster-critical"
    return {
        "metadata": {
            "namespace": kind.namespace,
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": to_rfc3339(now),
            "labels": {
                "app": app,
                **({JOBSET: kind.gang} if kind.gang else {}),
                **({KAI_GROUP: f"gpu-of-{name}"} if kind.shares else {}),
            },
            "annotations": {**kind.annotations, **({"kubernetes.io/config.mirror": "yes"} if kind.mirror else {})},
            "ownerReferences": [owner] if kind.owner else [],
            "finalizers": ["example.com/keep"] if kind.leaving or kind.sticks else [],
        },
        "spec": spec,
        "status": {
            "phase": kind.phase,
            "startTime": to_rfc3339(now),
            "conditions": [{"type": "Ready", "status": str(kind.ready)}],
        },
    }


def _claims(kind: Kind, name: str) -> Mapping[str, ClaimedDevices]:
    return {f"{kind.namespace}/claim-of-{name}": ("gpu-0",)} if kind.asks == "claim" else {}


# --- what is right ----------------------------------------------------------------------------------------


def holds_gpu(pod: PodView) -> bool:
    """It asks for a GPU, by a container or by a claim, or shares one through KAI."""
    return podrules.asks_gpu(pod.resources) or pod.dra != "none" or bool(podrules.groups_in(pod.labels))


def must_leave(pod: PodView, *, reboot: bool) -> bool:
    """Whether a change may not begin while this pod is there: it holds a GPU, or the node will reboot under it."""
    finished, client = pod.phase in ("Succeeded", "Failed"), CLIENT in pod.node_selector
    facts = podrules.Facts(holds_gpu(pod), pod.namespace, finished, pod.mirror, _of_daemon_set(pod), client)
    return podrules.leaves(facts, reboot=reboot)


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which a drain goes on: what the policy says, and since when the node is cordoned."""

    drain: Drain
    reboot: bool
    now: datetime
    cordoned: datetime | None = None
    by_dra: bool = False
    """NVIDIA's DRA driver serves the GPUs in place of the device plugin."""


def is_kept(pod: PodView, terms: Terms) -> bool:
    """Nobody may evict it, whatever the time: such a pod keeps the node from being cordoned. It has to leave."""
    if pod.deleted_at is not None:
        return False
    claims = pod.dra == "unresolved" or (pod.dra == "gpu" and not terms.by_dra)
    if pod.mirror or _of_daemon_set(pod) or claims or is_protected(pod, terms):
        return True
    rule = find_rule(pod, terms.drain)
    if rule is not None:
        return rule == "unknown" or rule.behavior == "Block"
    managed = pod.owner is not None and pod.owner.exists is not False
    if terms.drain.unmanaged_pods == "Block" and not managed:
        return True
    return terms.drain.local_storage == "Block" and pod.local_files


def is_protected(pod: PodView, terms: Terms) -> bool:
    """A mark on the pod asks for it, and the policy pays heed to marks."""
    value = dict(pod.marks).get(DO_NOT_DISRUPT)
    if value is None or terms.drain.protected_pods == "Ignore":
        return False
    if value == "true" or terms.drain.protected_pods == "Block":
        return True
    assert pod.started is not None, "pods of the world have started"
    return terms.now < pod.started + timedelta(seconds=int(value.removesuffix("s")))


def find_rule(pod: PodView, drain: Drain) -> DrainRule | Literal["unknown"] | None:
    """The first rule that matches, or may match. Rules of the world ask for equal labels only."""
    for rule in drain.rules:
        if not rule.pod_selector.match_labels.items() <= pod.labels.items():
            continue
        of_namespace = rule.namespace_selector.match_labels
        if of_namespace and pod.namespace_labels is None:
            return "unknown"
        if of_namespace.items() <= (pod.namespace_labels or {}).items():
            return rule
    return None


def turn_of(pod: PodView, drain: Drain) -> tuple[int, bool]:
    """Pods of a lower turn are gone before it is asked to go."""
    rule = find_rule(pod, drain)
    return (rule.order if isinstance(rule, DrainRule) else 0, pod.system)


def may_end_first(pod: PodView, terms: Terms) -> bool:
    rule = find_rule(pod, terms.drain)
    patience = terms.drain.jobs.timeout
    if isinstance(rule, DrainRule):
        if rule.behavior != "WaitCompleted":
            return False
        patience = rule.timeout or patience
    elif pod.restarts or pod.owner is None or pod.owner.kind != "Job":
        return False
    if terms.drain.jobs.on_timeout == "Abort" or terms.cordoned is None:
        return True
    return terms.now < terms.cordoned + timedelta(seconds=int(patience.removesuffix("s")))


def may_be_evicted(pod: PodView, others: Iterable[PodView], terms: Terms) -> bool:
    """Whether an eviction makes sense and is allowed now. `others`: the pods of its node."""
    if not must_leave(pod, reboot=terms.reboot) or pod.deleted_at is not None:
        return False
    if is_kept(pod, terms) or may_end_first(pod, terms):
        return False
    turns = (turn_of(one, terms.drain) for one in others if must_leave(one, reboot=terms.reboot))
    return turn_of(pod, terms.drain) == min(turns)


def _of_daemon_set(pod: PodView) -> bool:
    return pod.owner is not None and pod.owner.kind == "DaemonSet" and pod.owner.exists is not False

"""S1 to S9 of docs/design/faults.md as one fold over the log of a run: what is wrong, at which resourceVersion.
Each check knows its rule by itself and asks nothing of the planner. S8, the number of writes, is a comparison with runs that nothing disturbed (tests/faults/oracle.py); here is what one run wrote."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.embedded.oracle import published_resources, wanted_resources
from tests.faults.writelog import Leaders, LoggedCall, Objects, Step, WriteLog
from tests.nodewrites import (
    OUR_ANNOTATIONS,
    OUR_LABELS,
    annotations_of,
    begins_run,
    fence_of,
    is_cordoned,
    is_gated,
    labels_of,
    wrong_in_write,
)
from tests.podrules import must_leave
from tests.policyrules import is_meant, is_ready, limit_of, selects, turns_ready

from gpusharing.api import names
from gpusharing.kube.client import JSON

OPERATORS_OWN = {
    "gpunodes": {"spec", "metadata"},
    "gpunodes/status": {"status"},
    "gpusharingpolicies": {"metadata"},
    "gpusharingpolicies/status": {"status"},
}
"""Parts of an object that a write of ours may name, where it may not name all."""
WRITTEN = {
    *OPERATORS_OWN,
    "nodes",
    "events",
    "configmaps",
    "leases",
    "pods/eviction",
    "pods",
    "clusterpolicies",
    "daemonsets",
    "deviceclasses",
}
MPS_SET = "nvidia-device-plugin-mps-control-daemon"
"""The only DaemonSet that we may write."""
RESTARTED = ("nvidia-mig-manager", MPS_SET, "dra-driver-nvidia-gpu-kubelet-plugin")
"""Pods that we may delete: the actuators' own."""
OUR_CLASS = "gpusharing-mig-"
FLOOR = 3
"""Node writes of a transition in one step (docs/design/faults.md#floor)."""


@dataclass(frozen=True)
class RunFacts:
    """What the checks are told of a run besides the log."""

    leaders: Leaders
    cap: int = 100
    began: int = 0
    """Up to this version everything is the world before: whoever leads has read it."""


def find_wrong(log: WriteLog, *, cap: int = 100) -> list[str]:
    """Everything that broke an invariant, in the order in which it happened."""
    told = RunFacts(Leaders(log.states, log.calls), cap, log.began)
    wrong = [f"S5: {text}" for text in _written_without_lease(log, told)]
    wrong += [f"S6: {text}" for call in log.calls for text in _foreign_write(call)]
    evicted: Counter[str] = Counter()
    for world, call in log.sendings():
        wrong += [f"S7: {text}" for text in _wrong_eviction(world, call, evicted)]
    for world, step in log.steps():
        for row, check in CHECKS:
            wrong += [f"{row}: {text} at {step.version}" for text in check(world, step, told)]
    return wrong + [f"S9: {text}" for text in _broken_promises(log, told)]


def find_wrong_end(log: WriteLog) -> list[str]:
    """S9 at the end of a run in which everything has come to rest: no Node is so new that nobody need know it."""
    world = Objects()
    for state in log.states:
        world.put(state)
    policies = world.objects["gpusharingpolicies"].values()
    wrong = [text for one in policies if is_ready(one) for text in not_as_promised(one, world).values()]
    return [f"S9: {text} at the end" for text in wrong]


# --- at each change ------------------------------------------------------------------------------------------


def _over_budget(world: Objects, step: Step, told: RunFacts) -> Iterator[str]:
    """S1: a node was taken, and more are away than the policy, or the operator's cap, allows."""
    if step.kind != "nodes" or step.after is None or step.call is None:
        return
    fence = fence_of(step.after)
    if fence is None or (step.before is not None and fence_of(step.before) is not None):
        return
    fenced = {name: one for name, raw in world.objects["nodes"].items() if (one := fence_of(raw))}
    counted = {name: one for name, one in fenced.items() if not one.get("newcomer")}
    if len(counted) > told.cap:
        yield f"{step.name}: {sorted(counted)} are fenced, the operator's cap is {told.cap}"
    policy = world.objects["gpusharingpolicies"].get(fence["policy"])
    if policy is None or fence.get("newcomer"):
        return
    nodes = world.objects["nodes"].values()
    pool = [raw for raw in nodes if selects(policy, raw) and is_meant(policy, raw) and not is_gated(raw)]
    ours = sorted(name for name, one in counted.items() if one["policy"] == fence["policy"])
    if len(ours) > (limit := limit_of(policy, len(pool))):
        yield f"{step.name}: {ours} are fenced, the limit of {fence['policy']} is {limit}"


def _busy_at_pnr(world: Objects, step: Step, _: RunFacts) -> Iterator[str]:
    """S2: the point of no return was written, and a pod that counts is on the node."""
    if step.kind != "nodes" or step.after is None or (fence := fence_of(step.after)) is None:
        return
    was = fence_of(step.before) if step.before is not None else None
    if not begins_run(was, fence) or fence["disruption"] == "PluginRestart":
        return
    reboot, claims = fence["disruption"] == "Reboot", world.objects["resourceclaims"]
    pods = world.pods_on(step.name)
    left = [pod["metadata"]["name"] for pod in pods if must_leave(pod, claims, reboot=reboot)]
    if left:
        yield f"{step.name}: past the PNR with {', '.join(sorted(left))}"


def _foreign_cordon(_: Objects, step: Step, __: RunFacts) -> Iterator[str]:
    if step.kind != "nodes" or step.before is None or step.after is None or step.call is None:
        return
    if not is_cordoned(step.before) or is_cordoned(step.after):
        return
    fence = fence_of(step.before)
    if fence is None:
        yield f"{step.name}: uncordoned without a fence of ours"
    elif fence["priorUnschedulable"]:
        yield f"{step.name}: uncordoned, and it was so before us"
    elif fence["nodeUid"] != step.after["metadata"]["uid"]:
        yield f"{step.name}: uncordoned another node of that name"


def _other_owner(_: Objects, step: Step, __: RunFacts) -> Iterator[str]:
    """S4: the fence goes from one policy to another without having been lifted, and no run begins with that.

    A Failed node that another policy owns by now is repaired under its fence, by a run of the new owner.
    """
    if step.kind != "nodes" or step.before is None or step.after is None:
        return
    was, now = fence_of(step.before), fence_of(step.after)
    if was is not None and now is not None and was["policy"] != now["policy"] and not begins_run(was, now):
        yield f"{step.name}: the fence of {was['policy']} became that of {now['policy']}"


def _foreign_field(_: Objects, step: Step, __: RunFacts) -> Iterator[str]:
    """S6: a write of ours changed a field of a Node that is not ours, or one in a way that it may not."""
    if step.kind != "nodes" or step.before is None or step.after is None or step.call is None:
        return
    before, after = step.before, step.after
    for kind, known, own in (("labels", labels_of, OUR_LABELS), ("annotations", annotations_of, OUR_ANNOTATIONS)):
        was, now = known(before), known(after)
        if changed := {key for key in {*was, *now} if was.get(key) != now.get(key)} - own:
            yield f"{step.name}: changed {kind} {sorted(changed)}"
    spec = {key for key in {*before["spec"], *after["spec"]} if before["spec"].get(key) != after["spec"].get(key)}
    # The node controller answers a cordon with a taint of its own, in a write of its own.
    if foreign := spec - {"unschedulable", "taints"}:
        yield f"{step.name}: changed spec {sorted(foreign)}"
    for text in wrong_in_write(before, step.call.body):
        yield f"{step.name}: {text}"


def _future_generation(_: Objects, step: Step, __: RunFacts) -> Iterator[str]:
    if step.kind != "gpusharingpolicies" or step.after is None:
        return
    seen = (step.after.get("status") or {}).get("observedGeneration", 0)
    if seen > step.after["metadata"]["generation"]:
        yield f"{step.name}: observed generation {seen} of {step.after['metadata']['generation']}"


def _broken_promises(log: WriteLog, told: RunFacts) -> Iterator[str]:
    """S9: a write made a policy Ready, and that was wrong when it was sent, and still when the server took it.

    In between somebody else may have written, and nobody can know of that.
    """
    taken: dict[int, tuple[JSON, dict[str, str]]] = {}
    for world, step in log.steps():
        if step.kind != "gpusharingpolicies" or step.call is None or step.after is None:
            continue
        if turns_ready(step.before, step.after):
            taken[step.version] = step.after, not_as_promised(step.after, world, told.began)
    for world, call in log.sendings():
        if call.accepted and call.version in taken:
            policy, still = taken.pop(call.version)
            found = not_as_promised(policy, world, told.began)
            yield from (f"{found[node]} at {call.version}" for node in found if node in still)


def not_as_promised(policy: JSON, world: Objects, began: int | None = None) -> dict[str, str]:
    """S9: Ready=True while a node is on its way or offers something else: what is wrong, by the name of the Node.

    `began`: of Nodes that came later, only those are asked for that the operator has shown to know; None: of all.
    """
    name = policy["metadata"]["name"]
    wrong: dict[str, str] = {}
    for found, node in world.objects["nodes"].items():
        if not selects(policy, node) or labels_of(node).get(names.LABEL_POLICY, name) != name:
            continue
        if began is not None and world.came[found] > began and not is_known(world, found):
            continue
        published = published_resources(world.slices_of(found))
        difference = offers_other(policy["spec"], node, world.machines[found], published)
        if what := "is fenced" if fence_of(node) is not None else difference:
            wrong[found] = f"{name}: Ready while {found} {what}"
    return wrong


def is_known(world: Objects, name: str) -> bool:
    """The operator has published something about this very Node, or has marked it.

    How long a watch takes to tell of a new one is no matter of the product. What it has published of a Node was written in the round in which the policy was, or in an earlier one; so that round knew the Node.
    """
    node = world.objects["nodes"][name]
    if names.LABEL_POLICY in labels_of(node) or fence_of(node) is not None:
        return True
    shown = world.objects["gpunodes"].get(name) or {}
    owners = [row["uid"] for row in (shown.get("metadata") or {}).get("ownerReferences") or ()]
    return node["metadata"]["uid"] in owners and "transition" in (shown.get("status") or {})


def offers_other(spec: JSON, node: JSON, machine: tuple[str, str, int], published: Mapping[str, int]) -> str:
    """How what a Node offers differs from what the spec makes of it; empty when it does not. `published`: what a DRA driver offers there besides a device plugin, which leaves none of the two alone with the GPUs."""
    if not machine[1] or not machine[2]:
        return ""  # nobody knows what it has
    wanted = wanted_resources(spec, [machine[1]] * machine[2])
    offered = Counter(published)
    for key, value in node["status"].get("allocatable", {}).items():
        if key.startswith("nvidia.com/") and value != "0":
            offered[key] += int(value)
    return "" if offered == wanted else f"offers {dict(offered)}, wanted {wanted}"


Check = Callable[[Objects, Step, RunFacts], Iterator[str]]
CHECKS: tuple[tuple[str, Check], ...] = (
    ("S1", _over_budget),
    ("S2", _busy_at_pnr),
    ("S3", _foreign_cordon),
    ("S4", _other_owner),
    ("S6", _foreign_field),
    ("S9", _future_generation),
)


# --- at each write -------------------------------------------------------------------------------------------


def _written_without_lease(log: WriteLog, told: RunFacts) -> Iterator[str]:
    """S5: sent by a process that did not hold the Lease then. Asking for the Lease is everybody's right.

    One write of a process that was frozen between its last look at the clock and the system call leaves when it wakes, whatever a client does; it must be one that does no harm: a status, an Event, or one that the server may refuse.
    """
    excused = set(log.interrupted)
    for call in log.calls:
        if call.kind == "leases" or not call.accepted:
            continue
        holder, name = told.leaders.at(call.since), told.leaders.names.get(call.identity, "")
        if holder == name and name:
            continue
        if name and call.identity in excused and (call.conditional or call.kind.endswith(TELLING)):
            excused.discard(call.identity)
            continue
        yield f"{call.what}, who is {name or 'nobody'} there, while {holder or 'nobody'} held the Lease"


def _foreign_write(call: LoggedCall) -> Iterator[str]:
    """S6: a kind of object that we do not write, or a part of one that is not ours."""
    if not call.accepted:
        return
    if call.kind not in WRITTEN:
        yield f"{call.what}: we do not write {call.kind}"
    own = OPERATORS_OWN.get(call.kind)
    if own is not None and call.method == "PATCH" and (foreign := call.body.keys() - own - {"metadata"}):
        yield f"{call.what}: wrote {sorted(foreign)}"
    if call.kind == "gpusharingpolicies":
        written = call.body.get("metadata", {}).keys() - {"resourceVersion", "uid", "finalizers"}
        if written:
            yield f"{call.what}: wrote {sorted(written)} of a policy"
    name = call.name.split("/")[-1]
    if call.kind == "pods" and not name.startswith(RESTARTED):
        yield f"{call.what}: no pod of an actuator"
    if call.kind == "daemonsets" and name != MPS_SET:
        yield f"{call.what}: no DaemonSet that we may write"
    if call.kind == "deviceclasses" and not name.startswith(OUR_CLASS):
        yield f"{call.what}: no DeviceClass of ours"
    if call.kind in ("daemonsets", "deviceclasses") and call.method != "POST" and not call.conditional:
        yield f"{call.what}: unconditional"


def _wrong_eviction(world: Objects, call: LoggedCall, evicted: Counter[str]) -> Iterator[str]:
    """S7: without the pod's UID, evicted before, or from a node that is not fenced and cordoned."""
    if call.kind != "pods/eviction":
        return
    uid = uid_of(call)
    if not uid:
        yield f"{call.what}: without the pod's UID"
    if call.accepted:
        evicted[uid] += 1
        if evicted[uid] > 1:
            yield f"{call.what}: evicted before"
    pods = world.objects["pods"].values()
    where = next((pod["spec"].get("nodeName", "") for pod in pods if pod["metadata"]["uid"] == uid), "")
    node = world.objects["nodes"].get(where)
    if node is not None and (fence_of(node) is None or not is_cordoned(node)):
        yield f"{call.what}: {where} is not fenced and cordoned"


def uid_of(call: LoggedCall) -> str:
    """The pod that an eviction means; empty where it may be any of that name."""
    options = call.body.get("deleteOptions") or {}
    return str((options.get("preconditions") or {}).get("uid") or "")


# --- what it cost --------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """Accepted writes of one run (S8)."""

    acting: Counter[str] = field(default_factory=Counter)
    """By method and kind; statuses, Events and the Lease apart, from which nothing is decided."""
    evictions: int = 0
    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Node writes by node and operation: nodes that begin in one pass share the name of theirs."""


TELLING = ("/status", "events", "leases")


def cost_of(log: WriteLog) -> Cost:
    """What a run wrote. A write that changed nothing counts, too: the server had the work."""
    cost = Cost()
    for call in log.calls:
        if call.accepted and not call.kind.endswith(TELLING):
            cost.acting[f"{call.method} {call.kind}"] += 1
            cost.evictions += call.kind == "pods/eviction"
    for _, step in log.steps():
        if step.kind != "nodes" or step.call is None:
            continue
        fences = [fence_of(raw) for raw in (step.after, step.before) if raw is not None]
        fence = next((one for one in fences if one is not None), None)
        if fence is not None:
            cost.transitions[step.name, fence["op"]] += 1
    return cost

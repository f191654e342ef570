"""What people, tools, pods and hardware do to the nodes of a World, one small deed at a time.
A deed says whether it changed anything; only then it counts as done."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.build import H100
from tests.planning.dradeeds import DRA_DEEDS
from tests.planning.installations import machine_of
from tests.planning.leaders import second_leader
from tests.planning.machines import Temper, patched, unmaintained
from tests.planning.podkinds import KINDS
from tests.planning.recovery import request
from tests.planning.rules import NEEDS_IDLE
from tests.planning.shareddeeds import (
    CALLS,
    T4,
    Deed,
    card_left_out,
    clock_set,
    deafens,
    default_changes,
    guarded,
    other_policy,
    paused_and_resumed,
    policy_deleted,
    policy_edited,
    policy_forced,
    policy_reset,
    priced,
    reboots,
    right_to_delete,
    rollout_edited,
)
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.planning.gpus.health import HEALTHY, Vitals

FOREIGN_CONFIG = "all-disabled"


def change(world: World, name: str, **fields: Any) -> bool:
    before = world.nodes[name]
    world.nodes[name] = replace(before, **fields)
    return world.nodes[name] != before


# --- people -----------------------------------------------------------------------------------------------


def cordon(world: World, name: str) -> bool:
    """On a node that we cordoned nobody can see who did it again (docs/design/drain.md#c2); hold-cordon is for that."""
    node = world.nodes[name]
    if node.unschedulable:
        return False
    if node.fence is None or node.fence.disruption not in NEEDS_IDLE:
        world.human_cordons.add(name)
    return change(world, name, unschedulable=True)


def uncordon(world: World, name: str) -> bool:
    world.human_cordons.discard(name)
    return change(world, name, unschedulable=False)


def ask_for_retry(world: World, name: str) -> bool:
    world.serial += 1
    return change(world, name, retry=f"try-{world.serial}")


def clear_mig_manager(world: World, name: str) -> bool:
    machine = world.machines[name]
    machine.restart()
    return any(gpu.mig_capable for gpu in machine.gpus())


def hold_cordon(world: World, name: str) -> bool:
    """`gpusharing.dev/hold-cordon` comes, or goes."""
    return change(world, name, hold_cordon=not world.nodes[name].hold_cordon)


def to_pool(pool: str | None) -> Deed:
    def deed(world: World, name: str) -> bool:
        before = world.nodes[name]
        world.nodes[name] = patched(before, {"gpusharing.dev/pool": pool})
        return world.nodes[name] is not before

    return deed


def taint(world: World, name: str) -> bool:
    """`gpusharing.dev/unproven:NoSchedule`, as a node pool sets it, on a node that may be in service."""
    return change(world, name, gate="[]")


def ask_to_abort(world: World, name: str) -> bool:
    """`gpusharing.dev/abort` names the change in flight."""
    fence = world.nodes[name].fence
    return fence is not None and change(world, name, abort=fence.op)


def skip(world: World, name: str) -> bool:
    """`gpusharing.dev/skip` comes, or goes."""
    before = world.nodes[name]
    set_already = before.labels.get(names.LABEL_SKIP) == "true"
    world.nodes[name] = patched(before, {names.LABEL_SKIP: None if set_already else "true"})
    return True


def protect(world: World, name: str) -> bool:
    pods = world.pods[name]
    for uid, pod in pods.items():
        pods[uid] = replace(pod, marks=((names.ANNOTATION_DO_NOT_DISRUPT, "true"),))
    return bool(pods)


def delete_node(world: World, name: str) -> bool:
    return change(world, name, deleting=True)


def request_retry(world: World, name: str) -> bool:
    world.serial += 1
    return request(world, name, retry=f"try-{world.serial}")


def request_abort(world: World, name: str) -> bool:
    fence = world.nodes[name].fence
    return fence is not None and request(world, name, abort=fence.op)


def request_skip(world: World, name: str) -> bool:
    skipped = world.nodes[name].labels.get(names.LABEL_SKIP) == "true"
    return request(world, name, skip="false" if skipped else "true")


PEOPLE: Mapping[str, Deed] = {
    "a person cordons": cordon,
    "a person uncordons": uncordon,
    "a person holds the cordon, or no more": hold_cordon,
    "a person asks for a retry": ask_for_retry,
    "a person deletes mig-manager's pod": clear_mig_manager,
    "a person moves the node to pool b": to_pool("b"),
    "a person moves the node to pool c": to_pool("c"),
    "a person takes the node out of all pools": to_pool(None),
    "somebody sets the start-up taint": taint,
    "a person deletes the Node": delete_node,
    "a person asks to give the change up": ask_to_abort,
    "a person wants the node skipped, or no more": skip,
    "an editor asks on the GPUNode for a retry": request_retry,
    "an editor asks on the GPUNode to give the change up": request_abort,
    "an editor asks on the GPUNode that the node is skipped, or no more": request_skip,
    "a person protects the pods": protect,
}

# --- tools ------------------------------------------------------------------------------------------------


def marked(who: str) -> Deed:
    """A marker or NodeMaintenance of somebody else; empty: it goes."""

    def deed(world: World, name: str) -> bool:
        before = world.nodes[name]
        world.nodes[name] = replace(unmaintained(before), foreign=who)
        return world.nodes[name] != before

    return deed


def announced(world: World, name: str) -> bool:
    """A driver upgrade of every node, which waits for its turn here."""
    world.nodes[name] = unmaintained(world.nodes[name])
    return change(world, name, foreign="NVIDIA driver upgrade", foreign_waits=True, foreign_queued=True)


def neighbor(world: World, name: str) -> bool:
    """A neighbor sets a mark of its own that we would set as well."""
    mark = sorted(names.NEIGHBOR_ANNOTATIONS)[0]
    before = world.nodes[name].neighbor_marks
    return change(world, name, neighbor_marks=before | {mark})


def written(key: str, value: str | None) -> Deed:
    """One of NVIDIA's labels is overwritten or stripped."""

    def deed(world: World, name: str) -> bool:
        before = world.nodes[name]
        capable = any(gpu.mig_capable for gpu in world.machines[name].gpus())
        if key in (names.LABEL_MIG_CONFIG, names.LABEL_MIG_STATE) and not capable:
            return False
        world.nodes[name] = patched(before, {key: value})
        return world.nodes[name] is not before

    return deed


def ruled(world: World, name: str) -> bool:
    """A NodeFeatureRule takes mig.config of the node, or leaves it again."""
    taken = {} if world.nodes[name].label_owners else {names.LABEL_MIG_CONFIG: "a NodeFeatureRule sets it"}
    return change(world, name, label_owners=taken)


TOOLS: Mapping[str, Deed] = {
    "a tool marks the node as its own": marked("kured"),
    "a NodeMaintenance names the node": marked("medik8s NodeMaintenance upgrade"),
    "a driver upgrade waits for its turn": announced,
    "the foreign marker goes": marked(""),
    "a neighbor sets a mark that we set too": neighbor,
    "a tool cordons and marks the node": lambda world, name: cordon(world, name) and marked("kured")(world, name),
    "a NodeFeatureRule takes mig.config, or leaves it": ruled,
    "a tool overwrites mig.config": written(names.LABEL_MIG_CONFIG, FOREIGN_CONFIG),
    "a tool strips mig.config": written(names.LABEL_MIG_CONFIG, None),
    "a tool strips mig.config.state": written(names.LABEL_MIG_STATE, None),
    "a tool overwrites device-plugin.config": written(names.LABEL_PLUGIN_CONFIG, "gone"),
    "a tool strips device-plugin.config": written(names.LABEL_PLUGIN_CONFIG, None),
    "a tool strips GFD's product": written(names.LABEL_GPU_PRODUCT, None),
    "a tool strips our policy label": written(names.LABEL_POLICY, None),
    "a tool strips our mode label": written(names.LABEL_MODE, None),
}

# --- hardware and the programs on the node ----------------------------------------------------------------


def sick(vitals: Vitals) -> Deed:
    def deed(world: World, name: str) -> bool:
        machine = world.machines[name]
        before, machine.vitals = machine.vitals, vitals
        return before != vitals

    return deed


def node_not_ready(world: World, name: str) -> bool:
    return change(world, name, ready=not world.nodes[name].ready)


def agent_goes_or_comes(world: World, name: str) -> bool:
    world.agents_down ^= {name}
    return True


def instances_destroyed(world: World, name: str) -> bool:
    """nvidia-smi mig -dci, on a node that is nobody's business now."""
    machine = world.machines[name]
    if world.nodes[name].fence is not None or not any(machine.layouts):
        return False
    machine.layouts = [None if layout is None else () for layout in machine.layouts]
    return True


def mps_killed(world: World, name: str) -> bool:
    alive = world.machines[name].clients is not None
    world.machines[name].kill_mps()
    return alive


def tempered(temper: Temper) -> Deed:
    def deed(world: World, name: str) -> bool:
        machine = world.machines[name]
        before, machine.temper = machine.temper, temper
        return before != temper and any(gpu.mig_capable for gpu in machine.gpus())

    return deed


def stray(world: World, name: str) -> bool:
    """A process of no pod begins to compute, or ends. What begins once the agent is silent nobody can see in time."""
    machine, gpunode = world.machines[name], world.gpunodes.get(name)
    if not machine.stray and gpunode is not None and gpunode.observed is not None and gpunode.observed.quiet:
        return False
    machine.stray ^= True
    return True


def replaced(world: World, name: str) -> bool:
    """The machine is replaced by another one of the same name, with another card."""
    card = H100 if T4 in world.machines[name].products else T4
    other = machine_of(world.stack, name, (card,))
    world.remove_node(name)
    world.add_node(name, other)
    return True


def vanished(world: World, name: str) -> bool:
    """Every GPU falls off the bus: NFD sees none, the driver lists none, and GFD takes its labels away."""
    machine = world.machines[name]
    before, machine.products, machine.layouts = machine.products, (), []
    world.nodes[name] = patched(world.nodes[name], {names.LABEL_GPU_PRESENT: None})
    return bool(before)


HARDWARE: Mapping[str, Deed] = {
    "the GPUs fall off the bus": vanished,
    "a GPU becomes unhealthy": sick(Vitals(recovery="None", ecc_errors=True, xid=48)),
    "a GPU is lost": sick(Vitals(access="Lost")),
    "the GPU is healthy again": sick(HEALTHY),
    "mig-manager begins to fail": tempered("fails"),
    "mig-manager begins to hang": tempered("hangs"),
    "mig-manager begins to forget its operands": tempered("forgets"),
    "mig-manager works again": tempered("works"),
    "the kubelet goes or comes": node_not_ready,
    "the agent goes or comes": agent_goes_or_comes,
    "somebody destroys the instances": instances_destroyed,
    "the MPS daemon is killed": mps_killed,
    "a stray process begins or ends": stray,
    "the machine is replaced": replaced,
}


# --- pods -------------------------------------------------------------------------------------------------


def landing(kind: str) -> Deed:
    """A pod of this kind is bound to the node, cordoned or not: somebody tolerates the cordon, or wrote nodeName."""
    return lambda world, name: world.add_pod(name, kind, pinned=True)


def pod_ends(world: World, name: str) -> bool:
    pods = world.pods[name]
    if not pods:
        return False
    pods.pop(min(pods))
    return True


PODS: Mapping[str, Deed] = {"a pod ends by itself": pod_ends, **{f"{kind} lands": landing(kind) for kind in KINDS}}


# --- what concerns more than one node ---------------------------------------------------------------------

SHARED: Mapping[str, Deed] = {
    "the clock is set back": clock_set(-600),
    "the clock is set forward": clock_set(600),
    "the policy is edited to time-slicing": policy_edited(2),
    "the policy is edited to MIG": policy_edited(3),
    "the policy is edited to MPS": policy_edited(6),
    "the policy wants other MIG layouts": policy_edited(5),
    "the policy blocks unmanaged pods": policy_edited(1, unmanaged="Block"),
    "the policy leaves out the card of the node": card_left_out,
    "the policy is paused": rollout_edited(paused=True),
    "the policy is paused, and aborts": rollout_edited(paused=True, when_paused="Abort"),
    "the policy is paused and goes on": paused_and_resumed,
    "the policy gets another price": priced,
    "the policy may change all nodes at once": rollout_edited(max_unavailable="100%"),
    "the policy asks for approvals from now on": rollout_edited(approval="Manual"),
    "the policy is deleted": policy_deleted,
    "with Reset the policy is deleted": policy_reset,
    "the policy is deleted by force": policy_forced,
    "another policy of higher priority comes": other_policy(1),
    "another policy of equal priority comes": other_policy(0),
    "WITH_REBOOT changes": reboots,
    "MPS follows no label any more, or does again": deafens,
    "a second operator leads, or no more": second_leader,
    "ClusterPolicy's default shares GPUs, or no more": default_changes,
    "the operator may delete pods, or no more": right_to_delete,
    "budgets let nobody go": guarded,
}
DEEDS: Mapping[str, Deed] = {**PEOPLE, **TOOLS, **HARDWARE, **PODS, **CALLS, **SHARED, **DRA_DEEDS}


def where(world: World, name: str) -> str:
    """In which moment of a change a deed was done."""
    fence = world.nodes[name].fence
    return "" if fence is None else " before the PNR" if fence.stage == "fenced" else " after the PNR"

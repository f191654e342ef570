"""How often each thing happened in a World: what was never seen was never tested."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.planning.budgets import answer_to
from tests.planning.installations import INSTALLATIONS
from tests.planning.pooling import joining

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    ClearRequests,
    Evict,
    FenceNode,
    ForceDelete,
    LabelNode,
    Release,
    RestartOperand,
    UpdateFence,
    WriteClasses,
)
from gpusharing.planning.snapshot.nvidia import Program

if TYPE_CHECKING:
    from tests.planning.world import World

CHANGES = ("PluginRestart", "GPUPods", "Reset", "Reboot")
STAYING = frozenset(
    {
        "a CPU pod",
        "a CPU pod of a DaemonSet",
        "a bare CPU pod",
        "a failed pod",
        "a finished pod",
        "a pod of NVIDIA's",
        "a pod that mig-manager removes",
        "a rank without a GPU",
        "a static CPU pod",
    }
)
LEAVING = frozenset(
    {
        "a CPU pod",
        "a bare pod",
        "a pod of a Job",
        "a pod of a ReplicaSet",
        "a pod that is not Ready",
        "a pod that waits for its image",
        "a pod whose ReplicaSet is gone",
        "a pod that is protected for a while",
        "a pod that sticks",
        "a pod with an init container on a GPU",
        "a pod with files on the node",
        "a rank of a JobSet",
        "a rank without a GPU",
    }
)
BLOCKERS = (
    "CallFailed",
    "DRAClaim",
    "DoNotDisrupt",
    "GPUDaemonSet",
    "JobsRunning",
    "LocalStorage",
    "PDB",
    "PDBConflict",
    "PDBNeverAllows",
    "RuleBlocks",
    "StaticGPUPod",
    "TerminatingStuck",
    "Unmanaged",
)
GIVEN_UP = (
    "ApprovalNeeded",
    "JobsTimeout",
    "Paused",
    "Deleting",
    "DrainTimeout",
    "GPUUnhealthy",
    "Superseded",
    "UncordonedExternally",
)
EXPECTED = (
    *(f"fence: {disruption}" for disruption in CHANGES),
    *(f"PNR: {disruption}" for disruption in CHANGES),
    "PNR: second step",
    "PNR: another target",
    *(f"PNR beside {kind}" for kind in sorted(STAYING)),
    *(f"eviction of {kind}" for kind in sorted(LEAVING)),
    "eviction: Evicted",
    "eviction: PDB",
    *(f"blocker {why}" for why in BLOCKERS),
    *(f"given up: {why}" for why in GIVEN_UP),
    "given back: Synced",
    "given back: RolledBack",
    "a node turns back",
    "a pod is deleted by force",
    "a member elsewhere keeps its gang from being drained",
    "given back: CordonKept",
    "a node is in a change of another policy than its own",
    "given back: ForeignMaintenance",
    "cordon put back",
    "our cordon stays while somebody else works",
    *(f"{program} restarted" for program in Program),
    *(f"DeviceClasses: {what}" for what in ("create", "correct", "remove")),
    *(f"installed: {one}" for one in INSTALLATIONS),
    "told Blocked: UnsupportedStack",
    "told a person: UnsupportedStack",
    "cure",
    "retry",
    *(f"taken from the GPUNode: {key}" for key in names.REQUESTS),
    *(f"taken from the GPUNode, {stage}" for stage in ("rest", "fenced", "actuating")),
    "cleared on the GPUNode",
    "adopted",
    "let go",
    "forgotten",
    "fence: drift is put right",
    "told Blocked: DriftReturned",
    "fence: in a wave",
    "told Blocked: CanaryTooLarge",
    "told Blocked: Halted",
    "told Blocked: RolledBack",
    "told Draining: ListFailed",
    "told Failed: ActuatorFailed",
    "told Pending: ApprovalNeeded",
    "told Pending: CanarySoak",
    "told Pending: WindowClosed",
    "told Uncordoning: WaitsForWave",
    "told WaitingForJobs: JobsRunning",
    "told VerifyingIdle: GPUStillBusy",
    "told VerifyingIdle: NodeNotReady",
    "2 nodes in flight",
    "3 nodes in flight",
    "the start-up taint goes with the proof",
    "a plan is approved",
    "a halt meets an edit that asks for nothing new",
    "the operator is killed",
    "a fair end",
    "a gang runs on all nodes, and smaller ones come in its place",
    "habits of a kind together",
    "a second operator writes",
    "a second operator is refused",
    "told Blocked: MPSNotSwitchable",
    "told a person: MPSNotSwitchable",
)
"""What the fixed run of test_invariants.py must have seen, besides every deed."""

_TOLD = frozenset(
    {
        Phase.BLOCKED,
        Phase.CORDONED,
        Phase.DRAINING,
        Phase.FAILED,
        Phase.PENDING,
        Phase.UNCORDONING,
        Phase.VERIFYING_IDLE,
        Phase.WAITING_FOR_JOBS,
    }
)


def of_plan(world: "World", plan: RolloutPlan) -> Iterator[str]:
    fenced = sum(node.fence is not None for node in world.nodes.values())
    if fenced > 1:
        yield f"{fenced} nodes in flight"
    if any(joining(world, policy.name) for policy in world.policies):
        yield "a node is in a change of another policy than its own"
    for verdict in plan.verdicts.values():
        if verdict.phase in _TOLD:
            yield f"told {verdict.phase}: {verdict.reason}"
            yield from (f"blocker {blocker.reason}" for blocker in verdict.blockers)
        if verdict.phase is Phase.DRAINING and any("Runs on" in one.message for one in verdict.blockers):
            yield "a member elsewhere keeps its gang from being drained"
        for action in verdict.actions:
            if isinstance(action, Release):
                how = "given back" if verdict.phase is Phase.UNCORDONING else "given up"
                yield f"{how}: {verdict.reason}"


def of_action(world: "World", action: Action) -> Iterator[str]:
    if isinstance(action, Release | LabelNode) and action.verified and action.node.gate is not None:
        yield "the start-up taint goes with the proof"
    match action:
        case FenceNode():
            yield f"fence: {action.fence.disruption}"
            if action.fence.wave:
                yield "fence: in a wave"
            if action.fence.newcomer:
                yield "fence: a newcomer"
            if action.fence.drift:
                yield "fence: drift is put right"
        case Actuate():
            yield from _actuate(world, action)
        case Evict():
            pod = world.pods[action.node][action.uid]
            yield f"eviction: {answer_to(pod, world.budgets, world.everywhere())}"
            yield f"eviction of {world.kinds[action.uid]}"
        case ForceDelete():
            yield "a pod is deleted by force"
            yield f"deletion of {world.kinds[action.uid]}"
        case RestartOperand():
            pods = world.machines[action.node].operands
            yield from (f"{program} restarted" for program, pod in pods.items() if pod.uid == action.uid)
        case WriteClasses():
            yield from (f"DeviceClasses: {what}" for what in ("create", "correct", "remove") if getattr(action, what))
        case UpdateFence():
            fence, before = action.fence, action.node.fence
            if fence.rolls_back and before is not None and not before.rolls_back:
                yield "a node turns back"
            again = before is not None and fence.attempt != before.attempt
            if fence.stage == "yielded":
                yield "our cordon stays while somebody else works"
            else:
                yield ("cordon put back" if action.cordon else "cure" if again and fence.attempt > 1 else "retry")
        case LabelNode(requests=dict() as requests):
            yield from (f"taken from the GPUNode: {key}" for key in (*action.labels, *requests))
            yield f"taken from the GPUNode, {action.node.fence.stage if action.node.fence else 'rest'}"
        case ClearRequests():
            yield "cleared on the GPUNode"
        case LabelNode():
            yield "adopted" if action.verified else "forgotten" if action.forget else "let go"
        case _:
            pass


def _actuate(world: "World", action: Actuate) -> Iterator[str]:
    before = action.node.fence
    yield f"PNR: {action.fence.disruption}"
    if before is not None and before.stage == "actuating":
        yield "PNR: second step" if action.fence.step > before.step else "PNR: another target"
    for uid in world.pods[action.node.name]:
        yield f"PNR beside {world.kinds[uid]}"

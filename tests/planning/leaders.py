"""A second operator of a World that believes to lead, too: it plans on the same reading, and writes a moment later.

The server refuses what was decided from an old view (docs/design/drain.md#c11): a PATCH of a Node that has changed
since, a claim on a Lease that has changed since, and whatever is about an object that is gone.
"""

from typing import TYPE_CHECKING

from tests.planning import server
from tests.planning.processmemory import Memory

from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.actions import (
    Action,
    Evict,
    FenceNode,
    ForceDelete,
    LabelNode,
    RestartOperand,
    SetClaims,
    SetFinalizer,
    WriteConfig,
)

if TYPE_CHECKING:
    from tests.planning.world import World


def second_leader(world: "World", name: str) -> bool:
    """A second operator starts, or ends."""
    world.rival = Memory() if world.rival is None else None
    return True


def plan_beside(world: "World") -> RolloutPlan | None:
    """What the second operator decides from what there is now; None: there is none."""
    if world.rival is None:
        return None
    world.memory, world.rival = world.rival, world.memory
    plan = plan_rollout(world.snapshot(), world.now, world.memory.memo)
    world.memory, world.rival = world.rival, world.memory
    return plan


def carry_out_beside(world: "World", plan: RolloutPlan, seen: "World") -> None:
    """Carry out what the server accepts of its plan. `seen`: the objects when it decided."""
    assert world.rival is not None, "it has decided"
    world.memory, world.rival = world.rival, world.memory
    server.forget_answers(world)
    leads = all(_carry_out(world, action, seen) for action in plan.shared)
    for verdict in plan.verdicts.values():
        for action in verdict.actions:
            if (isinstance(action, FenceNode) and not leads) or not _carry_out(world, action, seen):
                break
    world.remember(plan)
    world.memory, world.rival = world.rival, world.memory


def _carry_out(world: "World", action: Action, seen: "World") -> bool:
    if _is_refused(world, action, seen):
        world.happened["a second operator is refused"] += 1
        return False
    world.happened["a second operator writes"] += 1
    world.carry_out(action)
    return True


def _is_refused(world: "World", action: Action, seen: "World") -> bool:
    match action:
        case SetClaims():
            return (world.claims, world.failed_nodes) != (seen.claims, seen.failed_nodes)
        case WriteConfig():
            return world.stack != seen.stack
        case SetFinalizer():
            return world.policies != seen.policies
        case Evict() | ForceDelete():
            pod = world.pods.get(action.node, {}).get(action.uid)
            return pod is None or pod.deleted_at is not None
        case RestartOperand():
            return world.machines[action.node] != seen.machines[action.node]
        case LabelNode() if not action.forget and action.node.gate is None:
            return world.nodes[action.node.name].uid != action.node.uid
        case _ if hasattr(action, "node") and not isinstance(action.node, str):
            return world.nodes.get(action.node.name) != action.node
        case _:
            return False

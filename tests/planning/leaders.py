"""A second operator of a World that believes to lead, too: it plans on what it read a pass ago, and writes a moment after the first one.
The server refuses what was decided from an old view (docs/design/drain.md#c11): a PATCH of a Node that has changed since, a claim on a Lease that has changed since, and whatever is about an object that is gone. What it accepts is held to the invariants by what the second operator had read: nobody can know what has happened since."""

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.planning import promises, rules, server, tally
from tests.planning.wires import Memory

from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.actions import (
    Action,
    EnsureGPUNode,
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
    world.rival = Memory() if world.rival is None else None
    return True


def plan_beside(world: "World") -> tuple[RolloutPlan, "World"] | None:
    """What the second operator decides, and what it had read: the objects after the pass before. None: there is no second operator, or it has read nothing yet."""
    if world.rival is None:
        return None
    seen, world.rival.reading = world.rival.reading, _read(world)
    if seen is None:
        return None
    seen.memory = world.rival
    plan = plan_rollout(seen.snapshot(), world.now, world.rival.memo)
    seen.memory, seen.now = Memory(), world.now
    return plan, seen


def _read(world: "World") -> "World":
    """The objects as they are now. What people did and agreed to stays the world's own."""
    return replace(world.copy(), ledger=world.ledger, human_cordons=world.human_cordons)


def carry_out_beside(world: "World", plan: RolloutPlan, seen: "World") -> None:
    """Carry out what the server accepts of its plan. `seen`: what it had read."""
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
    rules.check(seen, action)
    promises.check(seen, action)
    world.happened.update(tally.of_action(seen, action))
    world.done.append(action)
    server.carry_out(world, action)
    server.carry_out(seen, action)
    return True


def _is_refused(world: "World", action: Action, seen: "World") -> bool:
    match action:
        case SetClaims():
            return any(getattr(world, one) != getattr(seen, one) for one in ("claims", "failed_nodes", "consents"))
        case WriteConfig():
            return world.stack != seen.stack
        case SetFinalizer():
            return world.policies != seen.policies
        case Evict() | ForceDelete():
            pod = world.pods.get(action.node, {}).get(action.uid)
            return pod is None or pod.deleted_at is not None
        case RestartOperand():
            return world.machines.get(action.node) != seen.machines[action.node]
        case EnsureGPUNode():
            return action.node not in world.nodes
        case LabelNode() if not action.forget and action.node.gate is None:
            found = world.nodes.get(action.node.name)
            return found is None or found.uid != action.node.uid
        case _ if hasattr(action, "node") and not isinstance(action.node, str):
            return world.nodes.get(action.node.name) != action.node
        case _:
            return False

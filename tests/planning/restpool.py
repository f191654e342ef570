"""The small pool that the machine of random events begins with, and which of its nodes are in flight."""

from functools import lru_cache

from tests.planning.installations import Installation, stack_of
from tests.planning.recovery import carried_out, wanted
from tests.planning.world import World

from gpusharing.planning.snapshot.views import PlanSettings

NODES = ("gpu-0", "gpu-1", "gpu-2")
WAITS = PlanSettings(
    settle=1,
    idle=1,
    poll=2,
    config_propagation=3,
    drift_grace=10,
    wedge_pending=60,
    wedge_paused=5,
    restart_grace=4,
    force_delete=True,
)


@lru_cache
def at_rest(mode: int, budget: object, installation: Installation) -> World:
    """A pool that was proven in this mode, or with whole GPUs where the installation cannot carry the mode out. One pool serves many examples, each with a copy."""
    world = World(settings=WAITS, stack=stack_of(installation))
    for name in NODES:
        world.add_node(name)
    world.set_policy(carried_out(world, wanted("pool-b", mode, budget)))
    world.settle()
    return world


def in_flight(world: World) -> list[str]:
    return [name for name, node in sorted(world.nodes.items()) if node.fence is not None]


def stage_of(world: World, name: str) -> str:
    fence = world.nodes[name].fence
    return fence.stage if fence is not None else ""

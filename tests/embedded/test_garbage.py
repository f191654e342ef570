"""What a pass has read is freed when the next one has replaced it, and not at a full collection long afterwards."""

import gc

from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, RARELY, SLICED, at_once, nodes, open_scene
from tests.fakes.virtualtime import virtually


@virtually
async def test_no_object_of_a_pass_is_part_of_a_cycle() -> None:
    async with open_scene(*nodes(4), lease=RARELY, workloads=[SimWorkload("llm", 2)]) as scene:
        await scene.serve(FULL)
        await scene.running("llm", 2)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            scene.apply(SLICED, rollout=at_once(2))
            await scene.any_fenced()
            scene.e.cluster.expire()
            await scene.ready()
            gc.collect()
            found = {f"{type(one).__module__}.{type(one).__name__}" for one in gc.garbage}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert scene.evicted()
    assert not [name for name in found if name.startswith("gpusharing.")]

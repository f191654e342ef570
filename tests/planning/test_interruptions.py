"""A gang is interrupted once per change, and not once per node: counted while its controller starts it anew.
Where budget or canary cannot hold all of its nodes at once, it is once for each part (docs/design/drain.md#waves)."""

from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from tests.build import make_policy
from tests.planning.cases import FULL, pool_of
from tests.planning.world import World

from gpusharing.api.names import Phase

RANK = "a rank of a JobSet"


@dataclass
class Train:
    """A JobSet with a rank on each of some nodes. When one rank is evicted all end; then all start anew where they were before, as soon as there is room for all of them, as a scheduler has it that knows of gangs."""

    world: World
    homes: tuple[str, ...]
    begun: int = 0

    def turn(self) -> None:
        ranks = {name: self.ranks(name) for name in self.homes}
        nodes = [self.world.nodes[name] for name in self.homes]
        if any(ranks.values()) or any(node.unschedulable or not node.ready for node in nodes):
            return
        if all(self.world.add_pod(name, RANK) for name in self.homes):
            self.begun += 1
            return
        for name in self.homes:  # none of them starts without the others
            for uid in self.ranks(name):
                del self.world.pods[name][uid]

    def ranks(self, name: str) -> list[str]:
        return [uid for uid in self.world.pods[name] if self.world.kinds[uid] == RANK]


def changed(size: int, ranks: int, kills: Random | None, **rollout: Any) -> Train:
    """A pool of whole GPUs is brought to time-slicing. The gang runs on its last nodes, and one pod on each other one, so that all take as long: half a gang would be given back while nothing has begun on the other half.

    `kills`: the operator is killed now and then, after any number of its calls.
    """
    world = pool_of(size, FULL)
    train = Train(world, tuple(f"n{number}" for number in range(size - ranks, size)))
    train.turn()
    assert train.begun == 1
    assert all(world.add_pod(name) for name in world.nodes if name not in train.homes)
    world.set_policy(make_policy(mode="TimeSlicing", drain={"strandedPods": "Allow"}, rollout=rollout))
    for _ in range(1500):
        world.act_everywhere()
        train.turn()
        limit = kills.randrange(4) if kills is not None and kills.random() < 0.2 else None
        plan = world.step(limit=limit)
        world.now += timedelta(seconds=1)
        if limit is None and all(one.phase is Phase.SYNCED for one in plan.verdicts.values()):
            break
    assert {one.phase for one in world.plan().verdicts.values()} == {Phase.SYNCED}
    train.turn()
    assert all(train.ranks(name) for name in train.homes), "it runs again"
    return train


def interruptions(train: Train) -> int:
    return train.begun - 1


PARTS: dict[str, tuple[int, int, dict[str, Any], int]] = {
    "all nodes at once": (3, 3, {"maxUnavailable": 3}, 1),
    "as many as the gang has, and one other would go beside half of it": (5, 2, {"maxUnavailable": 2}, 1),
    "more than the gang has, and others would go beside a part of it": (6, 3, {"maxUnavailable": 4}, 1),
    "half of a pool that the gang fills": (4, 4, {"maxUnavailable": "50%"}, 2),
    "one node at a time": (3, 3, {"maxUnavailable": 1}, 3),
    "a canary that is smaller than the gang": (
        4, 4, {"maxUnavailable": 4, "canary": {"nodes": 1, "soak": "30s"}}, 2),
}  # fmt: skip
"""By budget: nodes of the pool and of the gang, spec.rollout, and how often the gang may be interrupted."""


@pytest.mark.parametrize("kills", [None, 1, 2, 3, 4, 5], ids=lambda given: f"kills-{given}")
@pytest.mark.parametrize(("size", "ranks", "rollout", "most"), PARTS.values(), ids=PARTS.keys())
def test_a_gang_is_interrupted_once_where_there_is_room_for_all_of_its_nodes_and_else_once_for_each_part(
    size: int, ranks: int, rollout: dict[str, Any], most: int, kills: int | None
) -> None:
    train = changed(size, ranks, Random(kills) if kills is not None else None, **rollout)
    assert 1 <= interruptions(train) <= most

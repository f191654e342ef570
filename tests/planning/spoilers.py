"""What a world is spoilt by so that a start that was right breaks a promise: failures and canaries beside it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from tests.planning import podkinds
from tests.planning.cases import NODE
from tests.planning.habits import with_habits
from tests.planning.recovery import lenient
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.planning.snapshot.records import Verified


def failed_again(world: World, action: Any) -> None:
    """A person has let the rollout go on once, and another node failed since."""
    world.add_node("gpu-99")
    both = {world.nodes[NODE].uid, world.nodes["gpu-99"].uid}
    world.ledger.failed[action.fence.version] = both
    world.policies = tuple(lenient(one, max_unavailable=2) for one in world.policies)
    world.ledger.seen[action.fence.version, ""] = frozenset({world.nodes[NODE].uid})


def canary_elsewhere(world: World, action: Any) -> None:
    """One canary of two nodes, and another one has begun."""
    world.add_node("gpu-99")
    world.nodes["gpu-99"] = replace(world.nodes["gpu-99"], fence=action.fence)
    world.policies = tuple(
        lenient(one, max_unavailable=2)
        for one in (with_habits(known, rollouts=["one canary"]) for known in world.policies)
    )


def canary_broken(world: World, action: Any) -> None:
    """The canary has served for long enough, and its kubelet is silent now."""
    world.add_node("gpu-99")
    fence, began = action.fence, world.now - timedelta(hours=2)
    proof = Verified("pool-b", "", "", layout="1x full", gpus=1, version=fence.version, changed_at=began)
    world.nodes["gpu-99"] = replace(world.nodes["gpu-99"], verified=proof, ready=False)
    world.policies = tuple(
        lenient(one, max_unavailable=3)
        for one in (with_habits(known, rollouts=["one canary"]) for known in world.policies)
    )


def mate_protected(world: World, action: Any) -> None:
    """The pod is a rank of a JobSet, and somebody protects another rank, on another node."""
    world.add_node("gpu-99")
    for node, name in ((NODE, "rank-0"), ("gpu-99", "rank-1")):
        pod = podkinds.make("a rank of a JobSet", name, "llm", "nvidia.com/gpu", world.now)
        pod = replace(pod, uid=action.uid) if node == NODE else pod
        world.pods[node][pod.uid], world.kinds[pod.uid] = pod, "a rank of a JobSet"
    mates = world.pods["gpu-99"]
    for uid, mate in mates.items():
        mates[uid] = replace(mate, marks=((names.ANNOTATION_DO_NOT_DISRUPT, "true"),))

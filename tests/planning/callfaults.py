"""Deeds of a network and of an API server that are not at their best: the operator's calls about one object fail."""

from collections.abc import Callable, Mapping

from tests.planning.wires import FOR_EVER, How
from tests.planning.world import World

from gpusharing.planning.snapshot.memory import CLAIMS, CONFIG_MAPS, DEVICE_CLASS, policy_subject
from gpusharing.planning.snapshot.views import PolicyView

Deed = Callable[[World, str], bool]


def driving(world: World, name: str) -> PolicyView | None:
    """The policy whose change is in flight on the node, else any."""
    fence = world.nodes[name].fence
    named = [known for known in world.policies if fence is None or known.name == fence.policy]
    return named[0] if named else None


def failing(how: How, times: int) -> Deed:
    """Calls of the operator about the node fail, so many times."""

    def deed(world: World, name: str) -> bool:
        before = world.wires.faults.get(name)
        world.wires.faults[name] = (how, times)
        return before != (how, times)

    return deed


def shared_failing(how: How, times: int) -> Deed:
    """The claims on the Lease, the ConfigMaps and the policy that drives the node cannot be written."""

    def deed(world: World, name: str) -> bool:
        policy = driving(world, name)
        subjects = [CLAIMS, CONFIG_MAPS, DEVICE_CLASS, *([policy_subject(policy.name)] if policy is not None else [])]
        world.wires.faults |= dict.fromkeys(subjects, (how, times))
        return True

    return deed


def calls_work(world: World, name: str) -> bool:
    failed = bool(world.wires.faults or world.unlisted)
    world.wires.faults.clear()
    world.unlisted.clear()
    return failed


def unlistable(world: World, name: str) -> bool:
    """The pods of the node cannot be listed, or can be again."""
    world.unlisted ^= {name}
    return True


def unreadable(world: World, name: str) -> bool:
    """The labels of the namespace cannot be read, or can be again."""
    world.namespace = None if world.namespace is not None else {"team": "a"}
    return True


CALLS: Mapping[str, Deed] = {
    "a call about the node is lost": failing("lost", 1),
    "the answer to a call about the node is lost": failing("unanswered", 1),
    "every call about the node is lost": failing("lost", FOR_EVER),
    "every answer to calls about the node is lost": failing("unanswered", FOR_EVER),
    "shared writes are lost": shared_failing("lost", 3),
    "the answers to shared writes are lost": shared_failing("unanswered", 3),
    "all calls work again": calls_work,
    "the pods on the node cannot be listed, or can be again": unlistable,
    "the namespace cannot be read, or can be again": unreadable,
}

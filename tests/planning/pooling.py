"""Which nodes the budget of a policy is about, and which of them are away: the tests' own opinion."""

from typing import TYPE_CHECKING

from gpusharing.planning.gpus.cards import bare_product
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.wanted.ownership import Owners, find_contenders

if TYPE_CHECKING:
    from tests.planning.world import World


def is_away(node: NodeView) -> bool:
    """Nobody can start a pod there, for whatever reason."""
    return not node.ready or node.unschedulable or node.deleting or node.fence is not None


def pool(world: "World", policy: str) -> list[NodeView]:
    """The nodes of a policy, those that still carry its fence included; none without a GPU or of another product."""
    owners = Owners(find_contenders(world.policies))
    by_name = {policy.name: policy for policy in world.policies}
    mine = []
    for node in world.nodes.values():
        owner = owners.owner(node)
        mine_by_name = (node.fence.policy if node.fence else owner) == policy
        if mine_by_name and (node.fence or _is_meant(world, node, by_name.get(owner))):
            mine.append(node)
    return mine


def joining(world: "World", policy: str) -> list[NodeView]:
    """The nodes in service that are this policy's by now and still in a change of another one."""
    owners = Owners(find_contenders(world.policies))
    changing = [node for node in world.nodes.values() if node.fence is not None and node.fence.policy != policy]
    return [node for node in changing if owners.owner(node) == policy and not is_newcomer(world, node)]


def _is_meant(world: "World", node: NodeView, owner: PolicyView | None) -> bool:
    products = {bare_product(product) for product in world.machines[node.name].products}
    wanted = set(owner.spec.products) if owner and owner.spec else set()
    return bool(products) and (not wanted or products <= wanted)


def is_newcomer(world: "World", node: NodeView) -> bool:
    """Nobody counts on it: it waits behind the start-up taint, was never proven, and nobody knows of a pod there. With the DRA driver nobody knows, because the agent does not see who holds a claim."""
    if node.fence is not None:
        return node.fence.newcomer
    if world.stack.by_dra:
        return False
    known = world.gpunodes.get(node.name)
    pods = known.observed.pods if known is not None and known.observed is not None else 0
    return node.gate is not None and node.verified is None and pods == 0

"""What a policy asks of its pool, read from the objects as the API server has them.
For the guard of rung 1 (tests/embedded/guard.py) and the invariants of rung 2 (tests/faults/invariants.py): their own opinion, nothing is asked of the planner."""

from tests.nodewrites import labels_of

from gpusharing.api import names
from gpusharing.kube.client import JSON
from gpusharing.planning.gpus.cards import bare_product


def selects(policy: JSON, node: JSON) -> bool:
    """By `matchLabels`, which is all that the tests' policies use."""
    wanted = policy["spec"]["nodeSelector"]["matchLabels"]
    return bool(wanted.items() <= labels_of(node).items())


def is_meant(policy: JSON, node: JSON) -> bool:
    """It has a GPU, and of a product that the policy is for: only such nodes are part of the budget."""
    labels, products = labels_of(node), policy["spec"].get("products")
    if labels.get(names.LABEL_GPU_PRESENT) != "true":
        return False
    return not products or bare_product(labels.get(names.LABEL_GPU_PRODUCT, "")) in products


def limit_of(policy: JSON, size: int) -> int:
    """How many nodes of a pool of this size may be unavailable at once; a percentage is rounded down."""
    written: int | str = policy["spec"].get("rollout", {}).get("maxUnavailable", 1)
    if isinstance(written, int):
        return written
    percent = int(written.removesuffix("%"))
    return max(1, size * percent // 100) if percent else 0


def is_ready(policy: JSON) -> bool:
    """Ready=True for the generation that the policy has now."""
    return any(
        row["type"] == "Ready"
        and row["status"] == "True"
        and row["observedGeneration"] == policy["metadata"]["generation"]
        for row in (policy.get("status") or {}).get("conditions") or ()
    )


def turns_ready(old: JSON | None, new: JSON) -> bool:
    """It was not Ready, or was so for an older generation, and is now."""
    return is_ready(new) and not (old is not None and is_ready(old))

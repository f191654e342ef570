"""How does a node go on whose NVIDIA driver upgrade failed (docs/design/nvidia.md#d4)?"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from gpusharing.api.names import LABEL_UPGRADE_SKIP, LABEL_UPGRADE_STATE, UPGRADE_FAILED, UPGRADE_REQUIRED
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.requirements import REQUIREMENTS
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Reason

DRIVER_PODS = "app.kubernetes.io/component=nvidia-driver"
"""The label of the GPU Operator's driver pods (GO v26.7.0 assets/state-driver, manifests/state-driver)."""


def explain_failed_upgrades(
    nodes: Iterable[NodeView], policy: ClusterPolicyView | None
) -> Iterator[tuple[str, Command]]:
    """Yield a message, whose last clause leads to a command, and that command, for nodes that go on alike."""
    alike = defaultdict[str, list[str]](list)
    for node in nodes:
        alike[_find_words(node, policy)].append(node.name)
    for words, where in alike.items():
        failed = f"NVIDIA's driver upgrade failed on {some(where)} ({LABEL_UPGRADE_STATE} is {UPGRADE_FAILED})"
        # What the upgrade takes from these nodes it was going to take when it failed; the text says so.
        command = Command.of(f"kubectl label node {' '.join(where)} {words}", effects=())
        if words == _REMOVE:
            yield f"{failed}, and no driver pod runs there that could end it; remove the label", command
            continue
        pods = Command.of(f"kubectl get pods -A -l {DRIVER_PODS} --field-selector spec.nodeName={where[0]}")
        yield (
            f"{failed}. It goes on by itself once the driver pod there is up to date and Ready; to see the pod, run:"
            f" {pods}. After the repair, start the upgrade again, which evicts the GPU pods there as the driver's upgradePolicy says",
            command,
        )


def explain_failed_upgrade(node: NodeView, policy: ClusterPolicyView | None) -> Finding:
    message, command = next(explain_failed_upgrades([node], policy))
    return Finding(Reason.DRIVER_UPGRADE_FAILED, f"{message}: {command}", commands=(command,))


_DRIVER = next(row for row in REQUIREMENTS if row.label == "driver")
_REMOVE = f"{LABEL_UPGRADE_STATE}-"


def _find_words(node: NodeView, policy: ClusterPolicyView | None) -> str:
    """Return how `kubectl label` lets the node go on.

    NVIDIA's upgrade controller follows only nodes with a driver pod, and starts none that is marked to be skipped
    (k8s-operator-libs pkg/upgrade/upgrade_state.go BuildState and upgrade_inplace.go at 11e747a).
    """
    unmanaged = policy is not None and (policy.plain is not None or _DRIVER.is_off(policy))
    if unmanaged or node.keeps_off("driver"):
        return _REMOVE
    skip = f" {LABEL_UPGRADE_SKIP}-" if node.labels.get(LABEL_UPGRADE_SKIP) == "true" else ""
    return f"--overwrite {LABEL_UPGRADE_STATE}={UPGRADE_REQUIRED}{skip}"

"""Whether the pods that are needed to prove a node tolerate the start-up taint (docs/design/transition.md#gate).

If they do not, a node that joins with the taint is never proven.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from gpusharing.api import names
from gpusharing.planning.snapshot.draviews import DraDriverView
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, FinderState, StackView
from gpusharing.planning.stack.commands import kubectl_patch, plain_upgrade
from gpusharing.planning.stack.installationviews import InstallationView, Symptom, Topic, error
from gpusharing.planning.vocabulary.lengths import some

TOLERATION: dict[str, Any] = {"key": names.TAINT_UNPROVEN, "operator": "Exists", "effect": "NoSchedule"}
"""The toleration that pods need if they help to prove a node."""

# Each function below returns a message, without its period, that pods do not tolerate the start-up taint, and the
# command that adds the toleration, which restarts these pods on every node. None if they do. They raise ValueError if
# the recorded tolerations are not valid JSON.


def find_untolerated(policy: ClusterPolicyView, namespace: str) -> tuple[str, str] | None:
    if policy.tolerates_gate:
        return None
    tolerations = with_toleration(policy.tolerations)
    if (plain := policy.plain) is not None:
        value = f"'tolerations={_dump(tolerations)}'"
        return (
            f"the tolerations in NVIDIA's device-plugin chart lack {names.TAINT_UNPROVEN}",
            plain_upgrade(plain, namespace, value, option="--set-json"),
        )
    return (
        f"ClusterPolicy daemonsets.tolerations lacks {names.TAINT_UNPROVEN}",
        kubectl_patch(policy.name, {"daemonsets": {"tolerations": tolerations}}),
    )


def find_untolerated_driver(driver: DraDriverView | None, namespace: str) -> tuple[str, str] | None:
    if driver is None or driver.tolerates_gate or not driver.serves_gpus:
        return None
    return (
        f"DaemonSet {driver.name} of NVIDIA's DRA driver does not tolerate {names.TAINT_UNPROVEN}",
        f"helm upgrade {driver.release or 'RELEASE'} CHART -n {namespace} --reset-then-reuse-values"
        f" --set-json 'kubeletPlugin.tolerations={_dump(with_toleration(driver.tolerations))}'",
    )


def find_untolerated_agents(stack: StackView) -> tuple[str, str] | None:
    if not stack.intolerant_agents:
        return None
    added = _dump([{"op": "add", "path": "/spec/template/spec/tolerations/-", "value": TOLERATION}])
    return (
        f"DaemonSet gpusharing-agent does not tolerate {names.TAINT_UNPROVEN}",
        f"kubectl -n {stack.intolerant_agents} patch daemonset gpusharing-agent --type json -p '{added}'",
    )


def find_untolerated_finder(
    finders: Iterable[FinderState], namespace: str, *, plain: bool
) -> tuple[str, str] | None:
    """Return how to correct the first worker of Node Feature Discovery, without which GPU Feature Discovery sets no labels.

    `plain` says whether NVIDIA's device-plugin chart installed it, and not that of the GPU Operator.
    """
    finder = next((one for one in finders if not one.tolerates_gate), None)
    if finder is None:
        return None
    chart, value = (
        ("nvdp/nvidia-device-plugin", "nfd") if plain else ("nvidia/gpu-operator", "node-feature-discovery")
    )
    return (
        f"DaemonSet {finder.name} of Node Feature Discovery does not tolerate {names.TAINT_UNPROVEN}",
        f"helm upgrade {finder.release or 'RELEASE'} {chart} -n {namespace} --reuse-values"
        f" --set-json '{value}.worker.tolerations={_dump(with_toleration(finder.tolerations))}'",
    )


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def with_toleration(tolerations: str) -> list[Any]:
    return [*json.loads(tolerations), TOLERATION]


def find_gate_symptoms(view: InstallationView) -> Iterator[Symptom]:
    """Yield an error for each object but our agent whose pods must tolerate the start-up taint and do not.

    Nothing is yielded if no node has the taint and the chart value for it is off.
    """
    gated = sorted(one.name for one in view.nodes if one.gate is not None)
    if not (gated or view.place.startup_gate):
        return
    namespace, plain = view.place.gpu_operator_namespace, view.plain is not None
    waiting = f"the taint stays on {some(gated)}" if gated else "the taint would stay on nodes that join"
    tail = f"{waiting}; the command restarts the affected pods on every node, so run it while the nodes are not in use"
    missing = [
        *(find_untolerated(stack, namespace) for stack in view.followed_stacks),
        find_untolerated_driver(view.dra.driver, namespace) if view.stack.by_dra else None,
        *(find_untolerated_finder([finder], namespace, plain=plain) for finder in view.finders),
    ]
    for message, command in filter(None, missing):
        yield error(Topic.CLUSTER_POLICY, "TaintNotTolerated", f"{message}: {tail}", command)

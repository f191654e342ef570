"""Checks whether the pods that are needed to prove a node tolerate the start-up taint
(docs/design/transition.md#gate). If they do not, a node that joins with the taint is never proven."""

import json
from collections.abc import Iterable
from typing import Any

from gpusharing.api import names
from gpusharing.planning.snapshot.draviews import DraDriverView
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, FinderState, StackView
from gpusharing.planning.stack.commands import kubectl_patch
from gpusharing.planning.stack.drastack import dra_stack_of
from gpusharing.planning.stack.installationviews import InstallationView, Symptoms, Topic, error
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value

TOLERATION: dict[str, Any] = {"key": names.TAINT_UNPROVEN, "operator": "Exists", "effect": "NoSchedule"}
"""The toleration that pods need if they help to prove a node."""
OPERANDS = "NVIDIA's pods"


@value
class Untolerated:
    """An object whose pods should tolerate the start-up taint but do not, and how to correct that."""

    message: str
    """Which object lacks the toleration, as a sentence without its period."""
    pods: str
    """The pods that therefore stay off the node, for messages."""
    command: str
    """The command that adds the toleration. It restarts these pods on every node."""


def find_untolerated(policy: ClusterPolicyView, namespace: str) -> Untolerated | None:
    """Return how to correct the ClusterPolicy, or NVIDIA's device-plugin chart in its place, if its pods do not
    tolerate the start-up taint. None if they do. `namespace` is that of these pods, which only the command for
    NVIDIA's chart names. Raises ValueError if the recorded tolerations are not valid JSON."""
    if policy.tolerates_gate:
        return None
    tolerations = with_toleration(policy.tolerations)
    if (plain := policy.plain) is not None:
        release, value = plain.release or "RELEASE", _dump(tolerations)
        return Untolerated(
            f"the tolerations in NVIDIA's device-plugin chart lack {names.TAINT_UNPROVEN}",
            OPERANDS,
            f"helm upgrade {release} nvdp/nvidia-device-plugin -n {namespace} --reuse-values"
            f" --set-json 'tolerations={value}'",
        )
    command = kubectl_patch(policy.name, {"daemonsets": {"tolerations": tolerations}})
    return Untolerated(
        f"ClusterPolicy daemonsets.tolerations lacks {names.TAINT_UNPROVEN}", OPERANDS, command
    )


def find_untolerated_driver(driver: DraDriverView | None, namespace: str) -> Untolerated | None:
    """Return how to correct NVIDIA's DRA driver if its pods do not tolerate the start-up taint. None if they do, or if
    there is no driver that serves GPUs. `namespace` is that of its Helm release. Raises ValueError if the recorded
    tolerations are not valid JSON."""
    if driver is None or driver.tolerates_gate or not driver.serves_gpus:
        return None
    return Untolerated(
        f"DaemonSet {driver.name} of NVIDIA's DRA driver does not tolerate {names.TAINT_UNPROVEN}",
        "its pods",
        f"helm upgrade {driver.release or 'RELEASE'} CHART -n {namespace} --reset-then-reuse-values"
        f" --set-json 'kubeletPlugin.tolerations={_dump(with_toleration(driver.tolerations))}'",
    )


def find_untolerated_agents(stack: StackView) -> Untolerated | None:
    """Return the command that adds the toleration for the start-up taint to our agent's DaemonSet, with its message, if
    the agent's pods lack it. None if they have it, as always with the chart, or if there are no agent pods."""
    if not stack.intolerant_agents:
        return None
    added = _dump([{"op": "add", "path": "/spec/template/spec/tolerations/-", "value": TOLERATION}])
    return Untolerated(
        f"DaemonSet gpusharing-agent does not tolerate {names.TAINT_UNPROVEN}",
        "its pods",
        f"kubectl -n {stack.intolerant_agents} patch daemonset gpusharing-agent --type json -p '{added}'",
    )


def find_untolerated_finder(
    finders: Iterable[FinderState], namespace: str, *, plain: bool
) -> Untolerated | None:
    """Return how to correct the first DaemonSet of Node Feature Discovery whose pods do not tolerate the start-up
    taint, or None if there is none. Without these pods, the labels of GPU Feature Discovery are missing too.
    `namespace` is that of the Helm release, and `plain` says whether its chart is NVIDIA's device-plugin chart and
    not that of the GPU Operator. Raises ValueError if the recorded tolerations are not valid JSON."""
    finder = next((one for one in finders if not one.tolerates_gate), None)
    if finder is None:
        return None
    chart, value = (
        ("nvdp/nvidia-device-plugin", "nfd") if plain else ("nvidia/gpu-operator", "node-feature-discovery")
    )
    return Untolerated(
        f"DaemonSet {finder.name} of Node Feature Discovery does not tolerate {names.TAINT_UNPROVEN}",
        "its pods",
        f"helm upgrade {finder.release or 'RELEASE'} {chart} -n {namespace} --reuse-values"
        f" --set-json '{value}.worker.tolerations={_dump(with_toleration(finder.tolerations))}'",
    )


def _dump(value: object) -> str:
    """Return the value as JSON without spaces, for a command line."""
    return json.dumps(value, separators=(",", ":"))


def with_toleration(tolerations: str) -> list[Any]:
    """Return these tolerations, given as a JSON list, as a list with the toleration of the start-up taint added at the
    end, even if they contain it already. Raises ValueError if the text is not valid JSON."""
    return [*json.loads(tolerations), TOLERATION]


def find_gate_symptoms(view: InstallationView) -> Symptoms:
    """Yield an error for each object whose pods are needed to prove a node but do not tolerate the start-up taint: a
    ClusterPolicy or NVIDIA's chart, the DRA driver where it serves the GPUs, and each worker of Node Feature Discovery.
    Our agent is not checked. Yields nothing if no node has the taint and the chart value for it is off. The message
    says on which nodes the taint stays, or that it would stay on nodes that join. Raises ValueError if recorded
    tolerations are not valid JSON."""
    gated = sorted(one.name for one in view.nodes if one.gate is not None)
    if not (gated or view.place.startup_gate):
        return
    namespace = view.place.gpu_operator_namespace
    waiting = f"the taint stays on {some(gated)}" if gated else "the taint would stay on nodes that join"
    tail = f"{waiting}; the command restarts the affected pods on every node, so run it while the nodes are not in use"
    plain = view.plain is not None
    for missing in (
        *(find_untolerated(stack, namespace) for stack in view.followed_stacks),
        find_untolerated_driver(view.dra.driver, namespace) if dra_stack_of(view).serves else None,
        *(find_untolerated_finder([finder], namespace, plain=plain) for finder in view.finders),
    ):
        if missing is not None:
            message = f"{missing.message}: {tail}"
            yield error(Topic.CLUSTER_POLICY, "TaintNotTolerated", message, missing.command)

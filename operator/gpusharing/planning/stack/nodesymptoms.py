"""What Node labels of NVIDIA's say that nobody has noticed: values that mean nothing, failures, pauses that do not end.

Of nodes that the operator changes just now nothing is said: what looks like this there is on its way.
"""

from collections.abc import Collection, Iterable, Mapping

from gpusharing.api import names
from gpusharing.planning.gpus.drivers import find_flaw
from gpusharing.planning.stack.symptoms import Symptom, Symptoms, Topic, error, warning
from gpusharing.planning.words.lengths import some
from gpusharing.planning.words.values import value

LABEL_DRIVER = "nvidia.com/cuda.driver-version.full"
"""Of GPU Feature Discovery (k8s-device-plugin, internal/lm/nvml.go)."""
_AT_WORK = ("pending", "rebooting")


@value
class NodeLabels:
    """One Node, as far as this is about it."""

    name: str
    labels: Mapping[str, str]
    fenced: bool = False
    """A change of ours is in flight."""


@value
class Given:
    """What the labels are held against."""

    namespace: str
    """The GPU Operator's."""
    plugin_map: str
    """The ConfigMap that ClusterPolicy points the device plugin at; empty: none."""
    plugin_keys: Collection[str] | None
    """What it holds; None: it could not be read, or is not there."""
    unsafe_drivers: tuple[str, ...] = ()
    refuse_unsafe_drivers: bool = True


def find_node_symptoms(nodes: Iterable[NodeLabels], given: Given) -> tuple[Symptom, ...]:
    """One for each thing that is wrong, however many nodes it is about."""
    known = sorted((one for one in nodes if not one.fenced), key=lambda one: one.name)
    return (
        *_unknown_configs(known, given),
        *_failed(known, given),
        *_paused(known, given),
        *_drivers(known, given),
    )


def _unknown_configs(nodes: list[NodeLabels], given: Given) -> Symptoms:
    """config-manager goes on with what it had when the label names no key (docs/design/nvidia.md#b4)."""
    if given.plugin_keys is None:
        return
    label = names.LABEL_PLUGIN_CONFIG
    odd = [one for one in nodes if one.labels.get(label) and one.labels[label] not in given.plugin_keys]
    if odd:
        first = odd[0]
        yield error(
            Topic.NODES,
            "PluginConfigUnknown",
            f"{label} of {some(sorted(one.name for one in odd))} names no key of ConfigMap {given.plugin_map}"
            f" ({first.name}: {first.labels[label]}), so the device plugin silently serves what it served before",
            f"kubectl label node {' '.join(one.name for one in odd)} {label}-",
        )


def _failed(nodes: list[NodeLabels], given: Given) -> Symptoms:
    failed = [one for one in nodes if one.labels.get(names.LABEL_MIG_STATE) == "failed"]
    if failed:
        told = f"{failed[0].name}: {failed[0].labels.get(names.LABEL_MIG_CONFIG, 'none')}"
        yield warning(
            Topic.NODES,
            "MigConfigFailed",
            f"mig-manager could not apply its configuration on {some(sorted(one.name for one in failed))} ({told})",
            f"kubectl -n {given.namespace} logs -l app=nvidia-mig-manager --prefix --tail 50",
        )


def _paused(nodes: list[NodeLabels], given: Given) -> Symptoms:
    """mig-manager pauses operands and starts them again; where it died in between, they stay off."""
    paused = [
        one for one in nodes if one.labels.get(names.LABEL_MIG_STATE) not in _AT_WORK and _is_paused(one)
    ]
    if paused:
        yield error(
            Topic.NODES,
            "OperandsPaused",
            f"operands of {some(sorted(one.name for one in paused))} are still paused for a MIG change that is over",
            f"kubectl -n {given.namespace} delete pod -l app=nvidia-mig-manager"
            f" --field-selector spec.nodeName={paused[0].name}",
        )


def _is_paused(node: NodeLabels) -> bool:
    switches = (names.LABEL_DEPLOY_PREFIX + operand for operand in names.DEPLOY_PAUSABLE)
    return any(node.labels.get(switch) == names.PAUSED_FOR_MIG for switch in switches)


def _drivers(nodes: list[NodeLabels], given: Given) -> Symptoms:
    flaws = {
        one.name: flaw
        for one in nodes
        if one.labels.get(names.LABEL_MIG_CAPABLE) == "true"
        and (
            flaw := find_flaw(
                one.labels.get(LABEL_DRIVER, ""),
                given.unsafe_drivers,
                refuse_affected=given.refuse_unsafe_drivers,
            )
        )
    }
    if flaws:
        first = min(flaws)
        yield warning(
            Topic.NODES,
            "UnsafeDriver",
            f"no GPU of {some(sorted(flaws))} is repartitioned ({first}: {flaws[first]})",
            f"kubectl get node {first} -o jsonpath='{{.metadata.labels.nvidia\\.com/cuda\\.driver-version\\.full}}'",
        )

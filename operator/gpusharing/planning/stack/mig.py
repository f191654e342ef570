"""Does MIG work beside NVIDIA's device-plugin chart, with mig-manager as a DaemonSet of its own?"""

from collections.abc import Iterator

from gpusharing.api import names
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, PlainStackView, StackView
from gpusharing.planning.snapshot.views import NodeView, PlanSettings
from gpusharing.planning.stack.drastack import renew_mig_manager
from gpusharing.planning.stack.effects import (
    FREE_STRATEGY,
    REQUIRE_CLIENT,
    START_MIG_MANAGER,
    effects_of,
    tell_strategy_users,
)
from gpusharing.planning.stack.installationviews import Installation, Symptom, Topic, plain_upgrade, warning
from gpusharing.planning.vocabulary.commands import Command, Effects, label_command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.target import is_readable, pauses_clients


def find_unusable_manager(plain: PlainStackView, version: str) -> Finding | None:
    if not plain.mig_manager:
        return Finding(
            Reason.MIG_MANAGER_MISSING,
            "mig-manager does not run in the namespace of NVIDIA's device-plugin chart, so nothing would partition"
            " the GPUs; set that namespace and your registry in deploy/mig-manager/kustomization.yaml first",
        )
    if not pauses_clients(version):
        return Finding(
            Reason.MIG_MANAGER_TOO_OLD,
            f"DaemonSet {plain.mig_manager} runs mig-manager {version}, which is older than v0.15 and does not use"
            f" the label {names.LABEL_DEPLOY_CLIENT} to pause the device plugin, so the plugin would keep the GPUs in"
            " use during a change",
        )
    if not plain.pausable:
        return Finding(
            Reason.PLUGIN_NOT_PAUSED,
            "mig-manager cannot pause the device plugin from NVIDIA's chart, which would keep the GPUs in use during a"
            f" change: the chart's nodeSelector lacks {names.LABEL_DEPLOY_CLIENT}",
        )
    return None


def find_mig_obstacle(
    spec: GPUSharingPolicySpec, policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> tuple[Finding, Command | None, Effects] | None:
    """Return why mode MIG cannot be carried out alongside NVIDIA's device-plugin chart, the remedy, and its effects.

    mig-manager can change the GPUs of a node only while no other program uses them. The GPU Operator's programs stop
    for it by their deploy labels. Those of the chart stop only if they require nvidia.com/gpu.deploy.client=true of
    their nodes, and mig-manager pauses that label since v0.15 (docs/design/nvidia.md#a1). The remedy is a command,
    None if it must not be run yet. None if nothing is in the way.
    """
    plain, namespace, ours = policy.plain, settings.gpu_operator_namespace, settings.mig_config_map
    if plain is None or spec.mig is None:
        return None
    found = find_unusable_manager(plain, policy.mig_manager_version)
    if found is not None and found.reason is Reason.PLUGIN_NOT_PAUSED:
        selector, effects = r"nodeSelector.nvidia\.com/gpu\.deploy\.client=true", effects_of(REQUIRE_CLIENT, stack)
        return found, plain_upgrade(plain, namespace, selector, option="--set-string", effects=effects), effects
    effects = effects_of(START_MIG_MANAGER, stack)  # each of these commands starts mig-manager
    if found is not None and found.reason is Reason.MIG_MANAGER_MISSING:
        command = Command.if_safe("kubectl apply -k deploy/mig-manager", effects=effects)
    elif found is not None:
        command = renew_mig_manager(namespace, plain.mig_manager, effects)
    elif policy.mig_strategy not in ("", spec.mig.strategy):
        effects = effects_of(FREE_STRATEGY, stack)
        users = tell_strategy_users(effects, policy.mig_strategy)
        message = (
            f"migStrategy in NVIDIA's device-plugin chart is {policy.mig_strategy} and overrides spec.mig.strategy"
            f" {spec.mig.strategy} on every node{users}"
        )
        command = None if users else plain_upgrade(plain, namespace, "migStrategy=null", effects=effects)
        return Finding(Reason.MIG_STRATEGY_SET, message), command, () if users else effects
    elif policy.mig_config_name != ours:
        message = (
            f"mode MIG has no effect unless DaemonSet {plain.mig_manager} mounts ConfigMap {ours} in"
            f" the directory of its CONFIG_FILE; it mounts {policy.mig_config_name or 'none'}"
        )
        found = Finding(Reason.LAYOUTS_NEED_CONFIG_MAP, message)
        command = Command.if_safe(f"kubectl -n {namespace} edit daemonset {plain.mig_manager}", effects=effects)
    else:
        return None
    return found, command, effects


def find_mig_obstacles(view: Installation) -> Iterator[Symptom]:
    place, dra, policy = view.place, view.stack.dra, view.stack.cluster_policy
    alone = policy is None or policy.plain is not None
    if dra.mig_manager and alone and not is_readable(dra.mig_manager_version):
        yield warning(
            Topic.CLUSTER_POLICY,
            "MigManagerVersionUnknown",
            f"the image of DaemonSet {dra.mig_manager} has no tag that is a version, so it is assumed to be v0.15 or"
            " newer. An older mig-manager does not pause the programs that keep the GPUs in use, and changes would"
            " fail after the drain. Check the image, and give it a tag",
            Command.of(
                f"kubectl -n {place.gpu_operator_namespace} get daemonset {dra.mig_manager} -o",
                "jsonpath={.spec.template.spec.containers[*].image}",
            ),
        )


def find_unselected(node: NodeView, policy: ClusterPolicyView | None) -> Finding | None:
    """Return the remedy if the node's deploy label keeps NVIDIA's chart off it."""
    plain, label = policy.plain if policy is not None else None, names.LABEL_DEPLOY_CLIENT
    value = node.labels.get(label, "")
    if plain is None or not plain.pausable or value == "true" or "paused-for-" in value:
        return None
    command = label_command([node.name], f"{label}=true")  # the chart has served nothing there
    state = f"label {label} of {node.name} is {value}" if value else f"{node.name} has no label {label}"
    message = f"{state}, so NVIDIA's device plugin does not run there; run: {command}"
    return Finding(Reason.OPERANDS_DISABLED, message, commands=(command,))

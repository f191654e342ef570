"""MIG without the GPU Operator: mig-manager as a DaemonSet of its own, beside NVIDIA's device-plugin chart.

mig-manager can change the GPUs of a node only while no other program uses them. The GPU Operator's programs stop for
it by their deploy labels. Those of the chart stop only if they require nvidia.com/gpu.deploy.client=true of their
nodes, and mig-manager pauses that label since v0.15 (docs/design/nvidia.md#a1).
"""

from collections.abc import Mapping

from gpusharing.api import names
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, PlainStackView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.commands import plain_upgrade
from gpusharing.planning.stack.installationviews import InstallationView, Symptoms, Topic, error, warning
from gpusharing.planning.stack.migstart import SHOW_LABELS, after_labels, start_changes_of, tell_changes
from gpusharing.planning.stack.migstrategy import strategy_users_of, tell_strategy_users
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.toolversions import is_readable, pauses_clients


@value
class MigObstacle:
    """Why policies of mode MIG cannot be carried out alongside NVIDIA's device-plugin chart."""

    reason: Reason
    """The reason with which such a policy is refused."""
    message: str
    """What is wrong, and what follows from it."""
    command: str
    """The command that corrects it. Words in CAPITALS are for a person to fill in. Empty if it must not be run yet."""
    starts: bool = False
    """Whether the command starts or restarts mig-manager."""


def find_unusable_manager(plain: PlainStackView, version: str) -> Finding | None:
    """Return why mig-manager cannot change GPUs alongside NVIDIA's device-plugin chart: it does not run there
    (MIG_MANAGER_MISSING), is older than v0.15 (MIG_MANAGER_TOO_OLD), or cannot pause the chart's pods
    (PLUGIN_NOT_PAUSED). None if it can change them. `version` is that of mig-manager's image; a version that cannot be
    parsed counts as new enough."""
    if not plain.mig_manager:
        return Finding(
            Reason.MIG_MANAGER_MISSING,
            "mig-manager does not run in the namespace of NVIDIA's device-plugin chart, so nothing would partition"
            " the GPUs",
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
    spec: GPUSharingPolicySpec,
    policy: ClusterPolicyView,
    mig_config_map: str,
    namespace: str,
    strategy_users: Mapping[str, str],
) -> MigObstacle | None:
    """Return the first reason why a GPUSharingPolicy with this spec cannot be carried out alongside NVIDIA's
    device-plugin chart: mig-manager is unusable (`find_unusable_manager`), the chart's MIG strategy overrides that
    of the policy, or mig-manager does not mount our ConfigMap. None if there is no such reason, if the spec has no
    `mig`, or if `policy` is a real ClusterPolicy. `mig_config_map` is our ConfigMap of mig-parted configurations,
    `namespace` is that of NVIDIA's chart, and `strategy_users` are the nodes that need the chart's strategy
    (`find_strategy_users`)."""
    plain = policy.plain
    if plain is None or spec.mig is None:
        return None
    if (unusable := find_unusable_manager(plain, policy.mig_manager_version)) is not None:
        commands = {
            Reason.MIG_MANAGER_MISSING: "kubectl apply -k deploy/mig-manager",
            Reason.MIG_MANAGER_TOO_OLD: f"kubectl -n {namespace} set image daemonset/{plain.mig_manager}"
            " nvidia-mig-manager=REPOSITORY/k8s-mig-manager:v0.15.1",
            Reason.PLUGIN_NOT_PAUSED: f"kubectl label nodes NODE... {names.LABEL_DEPLOY_CLIENT}=true && "
            + plain_upgrade(plain, namespace, _SELECTOR, option="--set-string"),
        }
        starts = unusable.reason is not Reason.PLUGIN_NOT_PAUSED
        return MigObstacle(unusable.reason, unusable.message, commands[unusable.reason], starts)
    if policy.mig_strategy not in ("", spec.mig.strategy):
        return MigObstacle(
            Reason.MIG_STRATEGY_SET,
            f"migStrategy in NVIDIA's device-plugin chart is {policy.mig_strategy} and overrides spec.mig.strategy"
            f" {spec.mig.strategy} on every node{tell_strategy_users(strategy_users, policy.mig_strategy)}",
            "" if strategy_users else plain_upgrade(plain, namespace, "migStrategy=null"),
        )
    if policy.mig_config_name != mig_config_map:
        return MigObstacle(
            Reason.LAYOUTS_NEED_CONFIG_MAP,
            f"mode MIG has no effect unless DaemonSet {plain.mig_manager} mounts ConfigMap {mig_config_map} in"
            f" the directory of its CONFIG_FILE; it mounts {policy.mig_config_name or 'none'}",
            f"kubectl -n {namespace} edit daemonset {plain.mig_manager}",
            starts=True,
        )
    return None


_SELECTOR = r"'nodeSelector.nvidia\.com/gpu\.deploy\.client=true'"
"""The chart's value that makes its DaemonSets require the label, as an argument for a shell."""


def find_mig_obstacles(view: InstallationView) -> Symptoms:
    """Yield a warning if the version of a mig-manager that runs without the GPU Operator cannot be read, and an error
    for the first obstacle of each policy, without repetition; one of the inspections of `installation.py`. There are no
    such errors unless NVIDIA's device-plugin chart takes the place of a ClusterPolicy."""
    place, dra = view.place, view.dra
    if dra.mig_manager and not view.cluster_policies and not is_readable(dra.mig_manager_version):
        yield warning(
            Topic.CLUSTER_POLICY,
            "MigManagerVersionUnknown",
            f"the image of DaemonSet {dra.mig_manager} has no tag that is a version, so it is assumed to be v0.15 or"
            " newer. An older mig-manager does not pause the programs that keep the GPUs in use, and changes would"
            " fail after the drain. Check the image, and give it a tag",
            f"kubectl -n {place.gpu_operator_namespace} get daemonset {dra.mig_manager} -o"
            " jsonpath='{.spec.template.spec.containers[*].image}'",
        )
    if (stack := view.plain) is None:
        return
    specs = (policy.spec for policy in view.policies if policy.spec is not None)
    ours, namespace = place.mig_config_map, place.gpu_operator_namespace
    users = strategy_users_of(view, stack)
    obstacles = (find_mig_obstacle(spec, stack, ours, namespace, users) for spec in specs)
    for obstacle in dict.fromkeys(obstacles):
        if obstacle is not None:
            changes = start_changes_of(view) if obstacle.starts else ()
            show = SHOW_LABELS if changes else f"kubectl get nodes -L {names.LABEL_PLUGIN_CONFIG}"
            command = after_labels(obstacle.command, changes) or show
            message = obstacle.message + tell_changes(changes)
            yield error(Topic.CLUSTER_POLICY, str(obstacle.reason), message, command)


def find_unselected(node: NodeView, policy: ClusterPolicyView | None) -> str:
    """Return a message with the remedy if NVIDIA's chart runs only on nodes with nvidia.com/gpu.deploy.client=true and
    this node does not have that value. Empty if it has it, if the label says that mig-manager or a driver upgrade
    pauses the chart, which ends by itself, if the chart does not require the label, or if it is not installed."""
    plain, label = policy.plain if policy is not None else None, names.LABEL_DEPLOY_CLIENT
    value = node.labels.get(label, "")
    if plain is None or not plain.pausable or value == "true" or "paused-for-" in value:
        return ""
    state = f"label {label} of {node.name} is {value}" if value else f"{node.name} has no label {label}"
    return (
        f"{state}, so NVIDIA's device plugin does not run there; run:"
        f" kubectl label node {node.name} --overwrite {label}=true"
    )

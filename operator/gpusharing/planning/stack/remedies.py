"""Commands that mend an installation, by how much of it there is: nothing, CRDs, a chart without operator, everything.

Before the installation there is only `helm install`. A pointer of ClusterPolicy moves last: NVIDIA's pods that mount a
ConfigMap which does not exist cannot start, and all GPUs of their nodes vanish.
"""

from gpusharing.api.names import LABEL_PLUGIN_CONFIG
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView
from gpusharing.planning.stack.commands import Fields, helm_install, kubectl_patch
from gpusharing.planning.stack.installationviews import InstallationView
from gpusharing.planning.stack.pointers import MIG_POINTER, UPSTREAM_MIG_CONFIG, Pointer, elsewhere
from gpusharing.planning.stack.symptoms import upgrade


def start(view: InstallationView) -> str:
    """Return the command that makes the operator run and write its ConfigMaps, or that shows why it does not. Before
    the installation, that is the one that installs the chart, with the values that fit this cluster."""
    place, stack = view.place, view.followed
    if not view.installed:
        maps = {"Plugin": stack.plugin_config_name, "Mig": stack.mig_config_name} if stack is not None else {}
        merged = [
            f"gpuOperator.admin{of}ConfigMap={name}" for of, name in maps.items() if _is_admins(view, name)
        ]
        return helm_install(place.release, place.namespace, place.gpu_operator_namespace, merged)
    if view.operator_replicas == 0:
        return upgrade(view, "operator.replicas=1")
    if "pods" not in view.unread and not any(pod.ready for pod in view.operator_pods):
        return f"kubectl -n {place.namespace} describe pods -l app.kubernetes.io/name=gpusharing-operator"
    return f"kubectl -n {place.namespace} rollout restart deployment/gpusharing-operator"


def _is_admins(view: InstallationView, name: str) -> bool:
    """Whether `name`, to which a pointer of ClusterPolicy is set, is a ConfigMap of the admin that may have entries."""
    place = view.place
    others = ("", place.plugin_config_map, place.mig_config_map, UPSTREAM_MIG_CONFIG)
    return name not in others and not view.is_void(name)


def point(view: InstallationView, stack: ClusterPolicyView, pointer: Pointer, last: str) -> str:
    """Return the next command on the way to a pointer that names our ConfigMap: one that first starts the operator,
    moves the ConfigMaps or merges entries, else `last`, which sets the pointer."""
    held = view.config_maps.get(pointer.ours)
    if not view.installed or held is None or not held.keys:
        return start(view)
    return move(view, stack) or _merge(view, pointer) or last


def move(view: InstallationView, stack: ClusterPolicyView) -> str:
    """Return the command that moves our ConfigMaps to the namespace of NVIDIA's pods; empty if they are there already,
    or if that namespace is unknown."""
    apart = elsewhere(stack, view.place.gpu_operator_namespace)
    return upgrade(view, f"gpuOperator.namespace={stack.namespace}") if apart else ""


def _merge(view: InstallationView, pointer: Pointer) -> str:
    """Return the command that merges the entries of the admin's ConfigMap into ours, or one that shows the Nodes if no
    ConfigMap has the entries that they name; empty if nothing has to be merged."""
    if pointer.field == MIG_POINTER:
        unmerged = pointer.now != view.place.admin_mig_config_map and _is_admins(view, pointer.now)
        return upgrade(view, f"gpuOperator.adminMigConfigMap={pointer.now}") if unmerged else ""
    if pointer.stops and not pointer.merges:
        return f"kubectl get nodes -L {LABEL_PLUGIN_CONFIG}"
    return upgrade(view, f"gpuOperator.adminPluginConfigMap={pointer.now}") if pointer.stops else ""


def correct(view: InstallationView, policy: ClusterPolicyView, patch: Fields, *, needed: bool) -> str:
    """Return the command that patches ClusterPolicy if a policy needs that (`needed`). If none does, return one that
    only shows ClusterPolicy, because the patch would change nothing but what nodes without a policy serve. Before the
    installation, return the command that installs the operator."""
    if not view.installed:
        return start(view)
    return kubectl_patch(policy.name, patch) if needed else f"kubectl get clusterpolicy {policy.name} -o yaml"

"""Decides, only from what was read of a cluster, whether an installation can work and which commands repair it.

`helm test` and `kubectl gpusharing doctor` report the same symptoms from here, each with the command that corrects it.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set

from gpusharing.api import names
from gpusharing.api.names import LABEL_MIG_CONFIG, LABEL_PLUGIN_CONFIG, Mode
from gpusharing.api.selectors import matches
from gpusharing.planning.snapshot.stackviews import MIG_MANAGER_SWITCH, ClusterPolicyView, find_active
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.commands import Fields, helm_install, kubectl_patch, plain_upgrade
from gpusharing.planning.stack.drastack import dra_stack_of, find_dra_symptoms, is_complete
from gpusharing.planning.stack.installationviews import (
    AGENT,
    ASKED_BY_PEOPLE,
    OPERATOR,
    AgentsState,
    InstallationView,
    Severity,
    Symptom,
    Symptoms,
    Topic,
    Unseen,
    error,
    upgrade,
    warning,
)
from gpusharing.planning.stack.migstart import SHOW_LABELS, after_labels, start_changes_of, tell_changes
from gpusharing.planning.stack.migstrategy import strategy_users_of, tell_strategy_users
from gpusharing.planning.stack.mpsdaemon import find_deaf_mps
from gpusharing.planning.stack.otherplugins import GKE, GKE_GPU, GKE_WITHOUT_PLUGIN
from gpusharing.planning.stack.plainmig import find_mig_obstacles
from gpusharing.planning.stack.pointers import (
    MIG_POINTER,
    UPSTREAM_MIG_CONFIG,
    Pointer,
    find_other_namespace,
    mig_pointer,
    plugin_pointer,
    why_not_set,
)
from gpusharing.planning.stack.requirements import (
    EVERY_MODE,
    NeededProgram,
    find_absent,
    find_off,
    has_driver,
    tell_off,
)
from gpusharing.planning.stack.startgate import find_gate_symptoms
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

# --- commands that repair an installation --------------------------------------------------------------------
# They depend on what is installed: nothing, CRDs, a chart without operator, or everything. If nothing is, the only
# command is `helm install`. A pointer of ClusterPolicy is set last: NVIDIA's pods that mount a missing ConfigMap cannot
# start, and all GPUs of their nodes vanish.


def start(view: InstallationView) -> str:
    """Return the command that installs the chart, with values that merge the admin's ConfigMaps that ClusterPolicy
    names now. If the chart is installed, return the command that scales the operator up if it has 0 replicas. Otherwise
    return the one that describes its pods if they were read and not all are Ready, else the one that restarts it."""
    place, stack = view.place, view.followed_policy
    if not view.installed:
        maps = {"Plugin": stack.plugin_config_name, "Mig": stack.mig_config_name} if stack is not None else {}
        merged = [
            f"gpuOperator.admin{of}ConfigMap={name}" for of, name in maps.items() if _is_admins(view, name)
        ]
        return helm_install(place.release, place.namespace, place.gpu_operator_namespace, merged)
    if view.operator_replicas == 0:
        return upgrade(view, "operator.replicas=2")
    if not view.operator_ready:
        return f"kubectl -n {place.namespace} describe pods -l app.kubernetes.io/name=gpusharing-operator"
    return f"kubectl -n {place.namespace} rollout restart deployment/gpusharing-operator"


def _is_admins(view: InstallationView, name: str) -> bool:
    """Whether `name`, which ClusterPolicy points at, may be the admin's own ConfigMap. False if it is empty, one of
    ours, the GPU Operator's default, or known to have no entries. A ConfigMap that was not read may be the admin's."""
    place = view.place
    others = ("", place.plugin_config_map, place.mig_config_map, UPSTREAM_MIG_CONFIG)
    return name not in others and not view.is_void(name)


def point(view: InstallationView, stack: ClusterPolicyView, pointer: Pointer, last: str) -> str:
    """Return the next command on the way to setting the field of ClusterPolicy in `pointer` to our ConfigMap. If the
    chart is not installed or our ConfigMap is not known to have entries, it is the command of `start`. Otherwise it is
    the first of these that is needed: to move our ConfigMaps to NVIDIA's namespace (`move`), to merge the ConfigMap
    that the field names now (`_merge`), or `last`, which sets the field."""
    config_map = view.config_maps.get(pointer.ours)
    if not view.installed or config_map is None or not config_map.keys:
        return start(view)
    return move(view, stack) or _merge(view, pointer) or last


def move(view: InstallationView, stack: ClusterPolicyView) -> str:
    """Return the command that moves our ConfigMaps to the namespace of NVIDIA's pods. Empty if they are there already,
    or if that namespace is unknown."""
    apart = find_other_namespace(stack, view.place.gpu_operator_namespace)
    return upgrade(view, f"gpuOperator.namespace={stack.namespace}") if apart else ""


def _merge(view: InstallationView, pointer: Pointer) -> str:
    """Return the command that merges the ConfigMap that the pointer names now into ours. For mig-manager, this is
    needed if it may be the admin's and is not merged yet, and for the device plugin, if ours lacks entries in use. If
    merging would not provide the entries in use, the command shows which entries Nodes name. Empty if there is nothing
    to merge."""
    mig = pointer.field == MIG_POINTER
    if mig and pointer.now != view.place.admin_mig_config_map and _is_admins(view, pointer.now):
        return upgrade(view, f"gpuOperator.adminMigConfigMap={pointer.now}")
    if pointer.stops and (mig or not pointer.merges):
        return f"kubectl get nodes -L {LABEL_MIG_CONFIG if mig else LABEL_PLUGIN_CONFIG}"
    return upgrade(view, f"gpuOperator.adminPluginConfigMap={pointer.now}") if pointer.stops else ""


def correct(view: InstallationView, policy: ClusterPolicyView, patch: Fields, *, needed: bool) -> str:
    """Return the command that applies `patch` to ClusterPolicy if a policy needs it (`needed`). If none does, return
    one that only shows ClusterPolicy, because the patch would only change what nodes without a policy serve. In
    either case, if the chart is not installed, return the command that installs it instead."""
    if not view.installed:
        return start(view)
    return kubectl_patch(policy.name, patch) if needed else f"kubectl get clusterpolicy {policy.name} -o yaml"


def find_agent_symptoms(view: InstallationView) -> Symptoms:
    """Yield a symptom for everything that keeps the agents from running or from reading GPUs, and for each device
    plugin that must not run on the agents' nodes. If the agents' node selector matches no Node, only that is reported,
    as a warning. If Nodes or pods could not be read, only a missing DaemonSet is reported. If DaemonSets could not be
    read, nothing is reported."""
    agents = view.agents
    if agents is None and "daemonsets.apps" not in view.unread:
        message = f"there is no DaemonSet gpusharing-agent in namespace {view.place.agent_namespace}"
        yield error(Topic.AGENTS, "AgentMissing", message, upgrade(view, "agent.createNamespace=true"))
    if agents is None or {"nodes", "pods"} & view.unread.keys():
        return
    if nodes := [one for one in view.nodes if matches(one.labels, agents.selector)]:
        yield from _agents_kept_out(agents, view)
        yield from _two_plugins(nodes, view.system_plugins)
        yield from _failing_agents(agents, nodes, view)
    else:
        wanted = [f"{key}={value}" for key, value in sorted(agents.selector.items())]
        yield warning(
            Topic.AGENTS,
            "NoGPUNodes",
            f"no Node has the labels in agent.nodeSelector ({', '.join(wanted)}), so no agent runs",
            f"kubectl label node NODE {' '.join(wanted)}",
        )


def _failing_agents(agents: AgentsState, nodes: Sequence[NodeView], view: InstallationView) -> Symptoms:
    """Yield a symptom about the nodes in `nodes` without a Ready agent: an error if none of them has one, else a
    warning. Its message quotes the first pod, in the order of `agents.pods`, that is not Ready and has a problem. Also
    yield an error (`_blind_agents`) about all other nodes, even outside `nodes`, whose agent reports that it cannot
    read the GPUs."""
    without = {one.name for one in nodes} - {pod.node for pod in agents.pods if pod.ready}
    if without:
        problem = next((f" ({pod.problem})" for pod in agents.pods if pod.problem and not pod.ready), "")
        yield (error if len(without) == len(nodes) else warning)(
            Topic.AGENTS,
            "AgentNotReady",
            f"the agent is not Ready on {len(without)} of {counted(len(nodes), 'GPU node')}, so the operator does not"
            f" change them: {some(sorted(without))}{problem}",
            f"kubectl -n {view.place.agent_namespace} describe pods -l app.kubernetes.io/name=gpusharing-agent",
        )
    troubled = {node: why for node, why in agents.reports.items() if why and node not in without}
    if troubled:
        yield _blind_agents(troubled, nodes, view)


def _blind_agents(troubled: Mapping[str, str], nodes: Sequence[NodeView], view: InstallationView) -> Symptom:
    """Return the error that agents cannot read the GPUs. If the first host by name lacks a program that ClusterPolicy
    keeps the GPU Operator from installing, the error says so, and its command has ClusterPolicy install the
    program. In all other cases, and also if any of `nodes` has a driver, the command only shows the first GPUNode.

    `troubled` maps the names of the nodes concerned to what their agents report. `nodes` are all nodes with agents.
    """
    first = min(troubled)
    message = f"the agent cannot read the GPUs on {some(sorted(troubled))}; {first}: {troubled[first]}"
    show = f"kubectl describe gpunode {first}"
    policy, _ = find_active(view.cluster_policies)
    with_driver = {one.name for one in nodes if has_driver(one.labels, one.resources)}
    absent = find_absent(troubled[first], policy) if first not in with_driver else None
    if policy is not None and absent is not None:
        # If other hosts bring their own driver, the GPU Operator must not install the program on all nodes.
        command = show if with_driver else kubectl_patch(policy.name, absent.patch)
        return error(Topic.AGENTS, str(absent.disabled), f"{message}. {tell_off(absent, policy)}", command)
    return error(Topic.AGENTS, "AgentCannotRead", message, show)


def _agents_kept_out(agents: AgentsState, view: InstallationView) -> Symptoms:
    """Yield an error for each cause that prevents agent pods from being created: their RuntimeClass is known not to
    exist, or their namespace enforces PodSecurity baseline or restricted. Both may be yielded."""
    place = view.place
    if agents.runtime_class and agents.runtime_class_exists is False:
        yield error(
            Topic.AGENTS,
            "RuntimeClassMissing",
            f"RuntimeClass {agents.runtime_class} (agent.runtimeClassName) does not exist, so no agent pod is created",
            upgrade(view, "agent.runtimeClassName="),
        )
    if agents.enforced in ("baseline", "restricted"):
        yield error(
            Topic.AGENTS,
            "PodSecurityForbids",
            f"namespace {place.agent_namespace} enforces PodSecurity {agents.enforced}, which rejects the agent's pods",
            f"kubectl label --overwrite namespace {place.agent_namespace}"
            " pod-security.kubernetes.io/enforce=privileged",
        )


def _two_plugins(nodes: Sequence[NodeView], system_plugins: Set[str]) -> Symptoms:
    """Yield an error about the nodes in `nodes` on which GKE runs its own device plugin, and a warning about those in
    `system_plugins`, on which Bottlerocket may run one."""
    if cloud := sorted(node.name for node in nodes if node.other_plugin == GKE):
        yield error(
            Topic.AGENTS,
            "TwoDevicePlugins",
            f"GKE runs its own device plugin on {some(cloud)}, and the kubelet there uses whichever of the two device"
            " plugins registered nvidia.com/gpu last; label the node pool as well as the nodes",
            f"kubectl label node -l {GKE_GPU} {GKE_WITHOUT_PLUGIN}=true",
        )
    if system := sorted(node.name for node in nodes if node.name in system_plugins):
        yield warning(
            Topic.AGENTS,
            "TwoDevicePlugins",
            f"Bottlerocket starts its own device plugin on {some(system)} unless its settings disable it,"
            " which the Kubernetes API does not show; if it runs alongside NVIDIA's, pods lose their GPUs. Disable it"
            " on each of these nodes, or in their user data (Bottlerocket 1.63.0 or newer)",
            "apiclient set settings.kubelet-device-plugins.nvidia.enabled=false",
        )


@value
class Inspection:
    """One check of an installation."""

    find: Callable[[InstallationView], Symptoms]
    """Yields a symptom for everything that is wrong."""
    topic: Topic
    """The topic of all symptoms that it yields."""
    of_chart: bool = False
    """Whether it checks what the chart installs. It is then skipped if the chart is not installed."""


def find_symptoms(view: InstallationView) -> tuple[Symptom, ...]:
    """Return everything that is wrong, sorted by topic, with errors first within a topic, and otherwise in the order of
    INSPECTIONS. The installation can work if there are no errors. If the chart is not installed, its own parts are not
    checked."""
    rows = (row for row in INSPECTIONS if view.installed or not row.of_chart)
    symptoms = [symptom for row in rows for symptom in row.find(view)]
    order = list(Topic)
    return tuple(
        sorted(symptoms, key=lambda each: (order.index(each.topic), each.severity is not Severity.ERROR))
    )


# --- API, rights, operator -----------------------------------------------------------------------------------


def _served(view: InstallationView) -> Symptoms:
    """Yield an error for each of our kinds that the API server does not serve, in alphabetical order."""
    for kind in sorted(view.not_served):
        yield error(
            Topic.API,
            "KindNotServed",
            f"the API server does not serve {kind}: its CRD is not installed",
            upgrade(view, "crds.install=true"),
        )


def _unread(view: InstallationView) -> Symptoms:
    """Yield a warning for each kind of object that could not be read, with the cause, in alphabetical order."""
    for what, why in sorted(view.unread.items()):
        yield warning(
            Topic.RIGHTS,
            "NotReadable",
            f"{what} could not be read, so they were not checked: {why}",
            f"kubectl auth can-i list {what}",
        )


def _rights(view: InstallationView) -> Symptoms:
    """Check the service accounts of the operator and of the agent. Yield an error for one that lacks rights, which
    names at most four of them, and a warning for one whose rights could not all be determined, with the cause of the
    first that is unknown. One account can get both."""
    for subject in (OPERATOR, AGENT):
        of_it = [state for state in view.rights if state.subject == subject]
        lacking = [state.text for state in of_it if state.allowed is False]
        unknown = [state for state in of_it if state.allowed is None]
        if lacking:
            yield error(
                Topic.RIGHTS,
                "RightsMissing",
                f"service account {view.place.account(subject)} is not allowed to {some(sorted(lacking), 4)}",
                upgrade(view, "rbac.create=true"),
            )
        if unknown:
            yield warning(
                Topic.RIGHTS,
                "RightsUnknown",
                f"could not check the rights of service account {view.place.account(subject)}: {unknown[0].why}",
                "kubectl auth can-i create subjectaccessreviews.authorization.k8s.io",
            )


def _operator(view: InstallationView) -> Symptoms:
    """Yield an error if the operator's Deployment does not exist, is scaled to 0 while no process outside of the
    cluster leads, or has no Ready pod. If only some of its pods are Ready, yield an error if none of these leads
    (`not_led`), else a warning. At most two pods are named, first the one that leads. Yields nothing if the Deployment
    could not be read, and does not check pods that could not be read. A missing Deployment is not reported if one of
    our kinds is not served either."""
    if view.operator_replicas is None:
        if not view.installed and not view.not_served:
            message = f"there is no Deployment gpusharing-operator in namespace {view.place.namespace}"
            yield error(Topic.OPERATOR, "OperatorMissing", message, start(view))
    elif view.operator_replicas == 0:
        if not view.leader:
            message = "the operator is scaled to 0 replicas, so policies have no effect"
            yield error(Topic.OPERATOR, "OperatorStopped", message, start(view))
    elif not view.operator_ready:
        severe = bool(view.not_led) or not any(pod.ready for pod in view.operator_pods)
        report = error if severe else warning
        yield report(Topic.OPERATOR, "OperatorNotReady", view.unready_pods, start(view))


_INSTALL_GPU_OPERATOR = "helm install gpu-operator nvidia/gpu-operator -n gpu-operator --create-namespace"


# --- NVIDIA's side --------------------------------------------------------------------------------------------


def _stack(view: InstallationView) -> Symptoms:
    """Yield an error if it is known that none of NVIDIA's stacks is there. Yield a symptom if there are several
    ClusterPolicies: an error if it is unknown which one counts (`find_active`), else a warning. Its command deletes the
    first one that is ignored; if none is, it has NAME for a person to fill in. If our chart is installed, also yield an
    error if NVIDIA's pods run in another namespace than the one that the chart names (`move`)."""
    policies = view.cluster_policies
    unknown = {"clusterpolicies.nvidia.com", "daemonsets.apps"} & view.unread.keys()
    if not policies and view.plain is None and not unknown and not dra_stack_of(view).serves:
        yield error(
            Topic.CLUSTER_POLICY,
            "ClusterPolicyMissing",
            "there is neither a ClusterPolicy nor a device plugin from NVIDIA's chart in namespace"
            f" {view.place.gpu_operator_namespace}",
            _INSTALL_GPU_OPERATOR,
        )
    if len(policies) > 1:
        active, rivals = find_active(policies)
        ignored = next((policy.name for policy in policies if policy.ignored), "NAME")
        heeded = (
            f", and it is unknown which: {', '.join(rivals)}"
            if rivals
            else f": {active.name if active else ''}"
        )
        yield (error if rivals else warning)(
            Topic.CLUSTER_POLICY,
            "SeveralClusterPolicies",
            f"there are {len(policies)} ClusterPolicies ({some(sorted(policy.name for policy in policies))}), but the"
            f" GPU Operator follows only one{heeded}",
            f"kubectl delete clusterpolicy {ignored}",
        )
    stack = view.followed_policy
    if stack is not None and view.installed and (command := move(view, stack)):
        apart = find_other_namespace(stack, view.place.gpu_operator_namespace)
        yield error(Topic.CLUSTER_POLICY, "GPUOperatorElsewhere", apart, command)


def _plain(view: InstallationView) -> Symptoms:
    """Yield an error if NVIDIA's device-plugin chart takes the place of a ClusterPolicy and does not read our
    ConfigMap. The command is the next step on the way there (`point`)."""
    stack = view.plain
    if stack is None or stack.plain is None:
        return
    place, pointer = view.place, _plugin_pointer_of(view, stack)
    if pointer.now != pointer.ours:
        command = plain_upgrade(stack.plain, place.gpu_operator_namespace, f"config.name={pointer.ours}")
        yield error(
            Topic.CLUSTER_POLICY,
            "PluginConfigNotOurs",
            f"{stack.plain.daemon_set}: config.name in NVIDIA's device-plugin chart is {pointer.now or 'not set'},"
            f" {_effect(view, pointer, 'policies have no effect on any node')}{_unmerged(view, pointer)}",
            point(view, stack, pointer, command),
        )


def _operands(view: InstallationView) -> Symptoms:
    """Yield a symptom for each of NVIDIA's programs that the GPU Operator or NVIDIA's chart should run and does not: an
    error if every mode or a policy's mode needs it, else a warning. With NVIDIA's chart, warnings are left out
    (`_operand`). Yields nothing with NVIDIA's DRA stack."""
    for stack in view.followed_stacks:
        for row in () if dra_stack_of(view).serves else find_off(stack):
            yield from _operand(row, stack, view)


def _operand(row: NeededProgram, stack: ClusterPolicyView, view: InstallationView) -> Symptoms:
    """Yield a symptom about the program of this row, which `stack` does not run: an error if every mode or the mode of
    a policy needs it, else a warning. While another device plugin serves some node, no command switches NVIDIA's on. If
    `stack` is NVIDIA's device-plugin chart, only the error is yielded, and only for a program that a value of that
    chart adds."""
    every = row.modes == EVERY_MODE
    needed = every or any(
        policy.spec is not None and policy.spec.mode in row.modes for policy in view.policies
    )
    if stack.plain is None:
        refused = "every policy is" if every else f"policies with mode {', '.join(sorted(row.modes))} are"
        message = f"{stack.name}: {tell_off(row, stack)}, and {refused} rejected"
        # Beside another device plugin, NVIDIA's would serve the same GPUs a second time.
        doubles = row.disabled is Reason.PLUGIN_DISABLED and any(node.other_plugin for node in view.nodes)
        command = correct(view, stack, row.patch, needed=needed and not doubles)
        if row.disabled is Reason.MIG_MANAGER_DISABLED and needed and view.installed:
            changes = start_changes_of(view)
            message, command = message + tell_changes(changes), after_labels(command, changes) or SHOW_LABELS
        yield (error if needed else warning)(Topic.CLUSTER_POLICY, str(row.disabled), message, command)
    elif row.helm_value and needed:
        command = plain_upgrade(stack.plain, view.place.gpu_operator_namespace, row.helm_value)
        yield error(Topic.CLUSTER_POLICY, str(row.missing), tell_off(row, stack), command)


def _pointers(view: InstallationView) -> Symptoms:
    """Yield a symptom for everything that is wrong with the fields `devicePlugin.config.name` and
    `migManager.config.name` of each ClusterPolicy that the GPU Operator does not ignore. With NVIDIA's DRA stack only
    the latter counts, and only once nothing else is missing."""
    dra = dra_stack_of(view)
    for policy in [one for one in view.cluster_policies if not one.ignored]:
        if not dra.serves:
            yield from _plugin_pointer(view, policy)
        if not dra.serves or is_complete(dra):
            yield from _mig_pointer(view, policy)


def _plugin_pointer(view: InstallationView, policy: ClusterPolicyView) -> Symptoms:
    """Yield an error if the device plugin does not read our ConfigMap, with the next command on the way there
    (`point`). If it does read it, yield an error if our ConfigMap lacks the entry that ClusterPolicy names as the
    default, with the command that removes that default."""
    place, pointer = view.place, _plugin_pointer_of(view, policy)
    if pointer.now != pointer.ours:
        yield error(
            Topic.CLUSTER_POLICY,
            "PluginConfigNotOurs",
            f"{policy.name}: {pointer.field} is {pointer.text},"
            f" {_effect(view, pointer, 'policies have no effect on any node')}"
            f"{why_not_set(pointer, policy, configure=place.configure_gpu_operator)}{_unmerged(view, pointer)}",
            point(view, policy, pointer, kubectl_patch(policy.name, pointer.patch)),
        )
    elif pointer.without_default:
        yield error(
            Topic.CLUSTER_POLICY,
            "PluginDefaultUnknown",
            f"{policy.name}: devicePlugin.config.default is {pointer.without_default}, which {pointer.ours} does not"
            " contain: device plugins of nodes without a policy cannot start",
            correct(view, policy, {"devicePlugin": {"config": {"default": None}}}, needed=True),
        )


def _plugin_pointer_of(view: InstallationView, policy: ClusterPolicyView) -> Pointer:
    """Return ClusterPolicy's `devicePlugin.config.name` as a Pointer, with the entries that Nodes name and our
    ConfigMap lacks. If our ConfigMap does not exist or could not be read, it is treated as if its only entry were
    ClusterPolicy's default."""
    ours = view.place.plugin_config_map
    config_map = view.config_maps.get(ours)
    our_keys = frozenset({policy.plugin_default}) if config_map is None else config_map.keys
    named = view.config_maps.get(policy.plugin_config_name)
    missing = tuple(sorted(view.named_entries - {"", *our_keys}))
    return plugin_pointer(policy, ours, our_keys, missing, None if named is None else named.keys)


def _effect(view: InstallationView, pointer: Pointer, otherwise: str) -> str:
    """Return the consequence of a field of ClusterPolicy (`pointer`) that does not name our ConfigMap, as the end of a
    sentence: "so" and `otherwise`, or a "which" clause if the ConfigMap that the field names is known to be empty or
    missing."""
    if not view.is_void(pointer.now):
        return f"so {otherwise}"
    where = view.place.gpu_operator_namespace
    return f"which does not exist in namespace {where} or is empty: NVIDIA's pods that mount it cannot start"


def _unmerged(view: InstallationView, pointer: Pointer) -> str:
    """Return, as the end of a sentence, what must be done before the field of ClusterPolicy in `pointer` may name our
    ConfigMap: `merge_first` if ours lacks entries, else to merge the one that it names now. Empty if ours lacks none
    and that one is empty, missing or not set."""
    if pointer.stops or not pointer.now or view.is_void(pointer.now):
        return pointer.merge_first
    return ". Its entries that Nodes name must be in ours first: see kubectl gpusharing import"


def _mig_pointer(view: InstallationView, policy: ClusterPolicyView) -> Symptoms:
    """Yield a symptom if mig-manager is not switched off and does not read our ConfigMap: an error if a MIG policy has
    layouts or the ConfigMap that mig-manager reads is known to be empty or missing, else a warning. Yield another if
    ClusterPolicy sets mig.strategy, which overrides that of every policy: an error if any MIG policy has another one,
    else a warning. With NVIDIA's DRA stack, the strategy is not checked."""
    wanted = [one.spec for one in view.policies if one.spec is not None and one.spec.mode is Mode.MIG]
    wants_layouts = any(spec.mig is not None and spec.mig.layouts is not None for spec in wanted)
    merged = view.place.admin_mig_config_map == policy.mig_config_name
    changes = start_changes_of(view) if view.installed else ()
    pointer = mig_pointer(
        policy, view.place.mig_config_map, view.missing_mig_entries, merged=merged, start_changes=changes
    )
    if pointer.now != pointer.ours and not policy.is_off(MIG_MANAGER_SWITCH):
        yield (error if wants_layouts or view.is_void(pointer.now) else warning)(
            Topic.CLUSTER_POLICY,
            "MigConfigNotOurs",
            f"{policy.name}: {pointer.field} is {pointer.text},"
            f" {_effect(view, pointer, 'spec.mig.layouts is rejected')}"
            f"{why_not_set(pointer, policy, configure=view.place.configure_gpu_operator)}{pointer.merge_first}"
            f"{tell_changes(changes)}",
            point(
                view,
                policy,
                pointer,
                after_labels(kubectl_patch(policy.name, pointer.patch), changes) or SHOW_LABELS,
            ),
        )
    fixed = "" if dra_stack_of(view).serves else policy.mig_strategy
    if fixed:
        other = any(spec.mig is not None and spec.mig.strategy != fixed for spec in wanted)
        users = strategy_users_of(view, policy)
        yield (error if other else warning)(
            Topic.CLUSTER_POLICY,
            "MigStrategySet",
            f"{policy.name}: mig.strategy is {fixed} and overrides spec.mig.strategy of every policy"
            f"{tell_strategy_users(users, fixed) if other else ''}",
            correct(view, policy, {"mig": {"strategy": None}}, needed=other and not users),
        )


def _config_maps(view: InstallationView) -> Symptoms:
    """Yield an error for each of our two ConfigMaps that has entries but is somebody else's, and a symptom for each
    that is empty or missing: an error if any ClusterPolicy or NVIDIA's chart names it, else a warning. Without our
    chart, only a ConfigMap that they name is checked. Yields nothing if ConfigMaps could not be read."""
    place = view.place
    if "configmaps" in view.unread:
        return
    stacks = [*view.cluster_policies, *filter(None, [view.plain])]
    pointed = {one.plugin_config_name for one in stacks} | {one.mig_config_name for one in stacks}
    ours = place.plugin_config_map, place.mig_config_map
    for name in [name for name in ours if view.installed or name in pointed]:
        config_map = view.config_maps.get(name)
        where = f"configmap {name} -n {place.gpu_operator_namespace}"
        if config_map is None or not config_map.keys:
            state = "does not exist" if config_map is None else "holds nothing"
            follows = ", and NVIDIA's pods that mount it cannot start" if name in pointed else ""
            yield (error if name in pointed else warning)(
                Topic.CONFIG_MAPS,
                "ConfigMapEmpty",
                f"{name} {state} in namespace {place.gpu_operator_namespace}: the operator has not written it{follows}",
                start(view),
            )
        elif not config_map.ours:
            label = f"kubectl label {where} --overwrite {names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
            yield error(
                Topic.CONFIG_MAPS,
                "ConfigMapTaken",
                f"someone else created {name} and it has entries, so the operator does not write to it",
                label if view.installed else start(view),
            )


INSPECTIONS = (
    Inspection(_served, Topic.API, of_chart=True),
    Inspection(_unread, Topic.RIGHTS),
    Inspection(_rights, Topic.RIGHTS, of_chart=True),
    Inspection(_operator, Topic.OPERATOR),
    Inspection(find_dra_symptoms, Topic.CLUSTER_POLICY),
    Inspection(_stack, Topic.CLUSTER_POLICY),
    Inspection(_plain, Topic.CLUSTER_POLICY),
    Inspection(find_mig_obstacles, Topic.CLUSTER_POLICY),
    Inspection(_operands, Topic.CLUSTER_POLICY),
    Inspection(_pointers, Topic.CLUSTER_POLICY),
    Inspection(find_gate_symptoms, Topic.CLUSTER_POLICY),
    # After all that edits ClusterPolicy, because such an edit can undo its command.
    Inspection(find_deaf_mps, Topic.CLUSTER_POLICY),
    Inspection(_config_maps, Topic.CONFIG_MAPS),
    Inspection(find_agent_symptoms, Topic.AGENTS, of_chart=True),
)
"""All checks, in the order of their topics."""


def report_topics(
    symptoms: Sequence[Symptom], unseen: Unseen, topics: Container[Topic]
) -> Iterator[tuple[str, str, str]]:
    """Yield three strings for each symptom, in the order of the topics: its severity, the topic with the message, and
    the command. Before the symptoms of a topic in `topics`, yield `UNKNOWN` with the cause if `unseen` has the topic,
    or `ok` if it has neither a cause nor symptoms; the command is then empty."""
    for topic in Topic:
        of_it = [symptom for symptom in symptoms if symptom.topic is topic]
        if topic in topics and topic in unseen:
            yield "UNKNOWN", f"{topic}: {unseen[topic]}", ""
        elif topic in topics and not of_it:
            yield "ok", str(topic), ""
        yield from ((symptom.severity, f"{topic}: {symptom.message}", symptom.command) for symptom in of_it)


def render(symptoms: Iterable[Symptom], unseen: Unseen) -> list[str]:
    """Return the report as lines: a line for each topic that is `ok` or `UNKNOWN`, each symptom with its command on a
    second line, an empty line, and a line with the conclusion and the counts. The topics in ASKED_BY_PEOPLE are listed
    only if they have symptoms. Any topic in `unseen`, even one of these, qualifies the conclusion."""
    listed = list(symptoms)
    lines = []
    for word, text, command in report_topics(listed, unseen, frozenset(Topic) - ASKED_BY_PEOPLE):
        lines += [f"{word:8} {text}", *([f"         -> {command}"] if command else [])]
    errors = sum(symptom.severity is Severity.ERROR for symptom in listed)
    state = conclude("installation", unseen=bool(unseen), errors=errors)
    return [*lines, "", f"{state}: errors {errors}, warnings {len(listed) - errors}."]


def conclude(what: str, *, unseen: bool, errors: int) -> str:
    """Return a sentence, without its period, that says whether the thing called `what`, such as `installation`, can
    work. It cannot if there are `errors`, a number that the sentence does not mention. Otherwise it can, but only
    as far as could be checked if a part of it could not be read (`unseen`)."""
    if errors:
        return f"This {what} cannot work as it is"
    return f"As far as could be checked, this {what} can work" if unseen else f"This {what} can work"

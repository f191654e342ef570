"""Can an installation work, and which commands repair it?

Only what was read of the cluster counts. `helm test` and `kubectl gpusharing doctor` report the same symptoms from
here, each with the command that corrects it.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace

from gpusharing.api.names import LABEL_MIG_CONFIG, LABEL_PLUGIN_CONFIG, Mode
from gpusharing.api.selectors import matches
from gpusharing.planning.snapshot.nvidia import MIG_MANAGER_SWITCH, PLUGIN_SWITCH, ClusterPolicyView
from gpusharing.planning.stack.acceptance import (
    explain_rivals,
    explain_taken,
    find_due_changes,
    find_wanted,
    tell_no_stack,
)
from gpusharing.planning.stack.drastack import find_dra_symptoms, is_complete
from gpusharing.planning.stack.effects import (
    HOST_PROGRAMS,
    MIG_POINTER,
    PLUGIN_POINTER,
    RESTART_PLUGIN,
    SHOW_LABELS,
    START_MIG_MANAGER,
    UPSTREAM_MIG_CONFIG,
    find_effects,
    has_driver,
    starts_mig_manager,
    tell_effects,
)
from gpusharing.planning.stack.installationviews import (
    AGENT,
    ASKED_BY_PEOPLE,
    OPERATOR,
    Installation,
    Symptom,
    Topic,
    Unseen,
    error,
    helm_install,
    kubectl_patch,
    warning,
)
from gpusharing.planning.stack.mps import VALUE
from gpusharing.planning.stack.plugins import GKE, GKE_WITHOUT_PLUGIN
from gpusharing.planning.stack.pointers import Pointer, find_other_namespace
from gpusharing.planning.stack.requirements import find_absent, find_gate_symptoms, find_mig_obstacles
from gpusharing.planning.stack.wrongfields import WrongField, find_due, find_wrong_fields, join
from gpusharing.planning.vocabulary.commands import Change, Command, Loss, allow_privileged, is_safe
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import has_gpu
from gpusharing.planning.wanted.target import SKIPS_THREADS, explain_deafness, find_remedy, needs_newer_plugin

# --- commands that repair an installation --------------------------------------------------------------------
# They depend on what is installed: nothing, CRDs, a chart without operator, or everything. If nothing is, the only
# command is `helm install`. A pointer of ClusterPolicy is set last: NVIDIA's pods that mount a missing ConfigMap cannot
# start, and all GPUs of their nodes vanish.


def start(view: Installation) -> Command:
    """Return the command that installs the chart or shows or restarts the installed operator."""
    place, stack = view.place, view.stack.cluster_policy
    if not view.installed:
        maps = {"Plugin": stack.plugin_config_name, "Mig": stack.mig_config_name} if stack is not None else {}
        merged = [f"gpuOperator.admin{of}ConfigMap={name}" for of, name in maps.items() if _is_admins(view, name)]
        return helm_install(place.release, place.namespace, place.gpu_operator_namespace, merged)
    if view.operator_replicas == 0:
        return view.upgrade("operator.replicaCount=2")
    if not view.operator_ready:
        return Command.of(f"kubectl -n {place.namespace} describe pods -l app.kubernetes.io/name=gpusharing-operator")
    # Nodes in the middle of a change go on with the next operator.
    return Command.of(f"kubectl -n {place.namespace} rollout restart deployment/gpusharing-operator", effects=())


def _is_admins(view: Installation, name: str) -> bool:
    """Whether a ConfigMap that ClusterPolicy names may be the admin's own; one that was not read may be."""
    place = view.place
    others = ("", place.plugin_config_map, place.mig_config_map, UPSTREAM_MIG_CONFIG)
    return name not in others and name not in view.void_maps


def _point(view: Installation, stack: ClusterPolicyView, pointer: Pointer, last: Command | None) -> Command:
    """Return the next command on the way to setting the pointer to our ConfigMap, which `last` does if it is safe."""
    mig = pointer.field == MIG_POINTER
    if not view.installed or not (view.stack.mig_file if mig else view.stack.plugin_configs):
        return start(view)
    if find_other_namespace(stack, view.place.gpu_operator_namespace):
        return view.upgrade(f"gpuOperator.namespace={stack.namespace}")
    if mig and pointer.now != view.place.admin_mig_config_map and _is_admins(view, pointer.now):
        return view.upgrade(f"gpuOperator.adminMigConfigMap={pointer.now}")
    if pointer.stops and (mig or not pointer.merges):
        return Command.of("kubectl get nodes -L", LABEL_MIG_CONFIG if mig else LABEL_PLUGIN_CONFIG)
    if pointer.stops:
        return view.upgrade(f"gpuOperator.adminPluginConfigMap={pointer.now}")
    return last or SHOW_LABELS


# --- the checks ----------------------------------------------------------------------------------------------


def find_symptoms(view: Installation) -> tuple[Symptom, ...]:
    """Return everything that is wrong, sorted by topic and severity.

    The installation can work if there are no errors.
    """
    symptoms = [
        *_find_api_symptoms(view),
        *_find_operator_symptoms(view),
        *find_dra_symptoms(view),
        *_find_stack_symptoms(view),
        *find_mig_obstacles(view),
        *_find_wrong_fields(view),
        *find_gate_symptoms(view),
        # After all that edits ClusterPolicy, because such an edit can undo its command.
        *find_deaf_mps(view),
        *_find_config_map_symptoms(view),
        *(_find_agent_symptoms(view) if view.installed else ()),
    ]
    order = list(Topic)
    symptoms.sort(key=lambda each: (order.index(each.topic), each.severity != "ERROR"))
    return tuple(symptoms)


def _find_api_symptoms(view: Installation) -> Iterator[Symptom]:
    for kind in sorted(view.not_served) if view.installed else ():
        message = f"the API server does not serve {kind}: its CRD is not installed"
        yield error(Topic.API, "KindNotServed", message, view.upgrade("crds.enabled=true"))
    for what, why in sorted(view.unread.items()):
        message = f"{what} could not be read, so they were not checked: {why}"
        yield warning(Topic.RIGHTS, "NotReadable", message, Command.of("kubectl auth can-i list", what))
    for subject in (OPERATOR, AGENT) if view.installed else ():
        rights = view.rights.get(subject, {})
        account = f"service account {view.place.account(subject)}"
        if missing := sorted(f"{right.text}{right.place}" for right, held in rights.items() if held is False):
            message = f"{account} is not allowed to {some(missing, 4)}"
            yield error(Topic.RIGHTS, "RightsMissing", message, view.upgrade("rbac.create=true"))
        if unknown := [held for held in rights.values() if isinstance(held, str)]:
            message = f"could not check the rights of {account}: {unknown[0]}"
            command = Command.of("kubectl auth can-i create subjectaccessreviews.authorization.k8s.io")
            yield warning(Topic.RIGHTS, "RightsUnknown", message, command)


def _find_operator_symptoms(view: Installation) -> Iterator[Symptom]:
    replicas, unready = view.operator_replicas, {name: why for name, why in view.operator_pods.items() if why}
    if not view.installed and not view.not_served:
        message = f"there is no Deployment gpusharing-operator in namespace {view.place.namespace}"
        yield error(Topic.OPERATOR, "OperatorMissing", message, start(view))
    elif replicas == 0 and not view.leader:  # a process outside of the cluster may lead
        message = "the operator is scaled to 0 replicas, so policies have no effect"
        yield error(Topic.OPERATOR, "OperatorStopped", message, start(view))
    elif replicas and not view.operator_ready:
        report, state = error, "no operator pod is Ready"
        if len(unready) < len(view.operator_pods):
            if view.leader == "":
                state = "by this machine's clock no operator pod leads, so policies have no effect"
            elif view.leader in unready:
                state = "the operator pod that leads is not Ready, so policies may have no effect"
            else:
                report, state = warning, "not every operator pod is Ready"
        shown = sorted(unready, key=lambda name: (name != view.leader, name))[:2]
        troubles = "; ".join(f"{name}: {unready[name]}" for name in shown)
        yield report(Topic.OPERATOR, "OperatorNotReady", f"{state}: {troubles or 'none was created'}", start(view))


def _find_stack_symptoms(view: Installation) -> Iterator[Symptom]:
    place, stack, policy = view.place, view.stack, view.stack.cluster_policy
    unknown = {"clusterpolicies.nvidia.com", "daemonsets.apps"} & view.unread.keys()
    if policy is None and not unknown and not stack.by_dra:
        install = "helm install gpu-operator nvidia/gpu-operator -n gpu-operator --create-namespace"
        starts, gpu_nodes = START_MIG_MANAGER, [*filter(has_gpu, view.snapshot.nodes.values())]
        if gpu_nodes and all(map(has_driver, gpu_nodes)):
            install += "".join(f" --set {path}=false" for path in HOST_PROGRAMS)
        else:
            starts = replace(starts, fields=(*starts.fields, *((path, True) for path in HOST_PROGRAMS)))
        effects = find_effects(replace(starts, fields=(*starts.fields, (PLUGIN_SWITCH, True))), view.snapshot)
        yield error(
            Topic.CLUSTER_POLICY,
            "ClusterPolicyMissing",
            f"{tell_no_stack(place)}{tell_effects(effects)}",
            Command.if_safe(install, effects=effects) or SHOW_LABELS,
        )
    if stack.rival_policies:
        yield error(Topic.CLUSTER_POLICY, "SeveralClusterPolicies", *explain_rivals(stack))
    elif policy is not None and (ignored := [name for name in view.ignored_policies if name != policy.name]):
        yield warning(
            Topic.CLUSTER_POLICY,
            "SeveralClusterPolicies",
            f"the GPU Operator follows only ClusterPolicy {policy.name}, and ignores {some(ignored)}",
            # The GPU Operator runs nothing for a ClusterPolicy that it ignores (docs/design/nvidia.md#d1).
            Command.of("kubectl delete clusterpolicy", ignored[0], effects=()),
        )
    apart = find_other_namespace(policy, place.gpu_operator_namespace) if policy is not None else ""
    if policy is not None and view.installed and apart:
        command = view.upgrade(f"gpuOperator.namespace={policy.namespace}")
        yield error(Topic.CLUSTER_POLICY, str(Reason.GPU_OPERATOR_ELSEWHERE), apart, command)


def _find_wrong_fields(view: Installation) -> Iterator[Symptom]:
    snapshot, place = view.snapshot, view.place
    stack, policy = snapshot.stack, snapshot.stack.cluster_policy
    if policy is None or (stack.by_dra and not is_complete(stack, place)):
        return
    due = find_due_changes([*map(find_wanted, snapshot.policies)], snapshot)
    known = {change: view.effects(change) for change in due}
    if not view.installed and policy.plain is None:  # `helm install` comes first, and no agent has read any GPU
        for change, found in known.items():
            pointed = PLUGIN_POINTER in dict(change.fields)
            kept = tuple(one for one in found if one.missing or not pointed)
            known[change] = () if starts_mig_manager(change) else kept
    stack = replace(stack, effects=known)
    rows = [*find_wrong_fields([one.spec for one in snapshot.policies if one.spec is not None], stack, place)]
    ready = [row for row in find_due(rows) if row.change is not None]
    first = ready[:1] if len(ready) > 1 and not is_safe(view.effects(join(ready))) else ready
    for row in rows:
        if row.reason is Reason.LAYOUTS_NEED_CONFIG_MAP and policy.is_off(MIG_MANAGER_SWITCH):
            continue  # mig-manager comes first
        void = row.pointer is not None and row.pointer.now in view.void_maps
        text = f"{row.text}{tell_effects(row.effects)}"
        if row.pointer is not None and void:
            text += (
                f"; ConfigMap {row.pointer.now} does not exist in namespace {place.gpu_operator_namespace} or is empty:"
                " NVIDIA's pods that mount it cannot start"
            )
        severe = error if row.needed or void else warning
        command = _correct(view, policy, row)
        if row in ready and row not in first:
            text, command = f"{text}; run doctor again once {first[0].reason} is corrected", _show(policy)
        yield severe(Topic.CLUSTER_POLICY, str(row.reason), text, command)
    pointed = policy.plain is None and policy.plugin_config_name == place.plugin_config_map and not stack.by_dra
    default = policy.plugin_default
    if pointed and stack.plugin_map_exists and default not in ("", *stack.plugin_configs):
        change = Change(fields=(("devicePlugin.config.default", None),))
        effects = view.effects(change)
        yield error(
            Topic.CLUSTER_POLICY,
            "PluginDefaultUnknown",
            f"{policy.name}: devicePlugin.config.default is {default}, which {policy.plugin_config_name} does not"
            f" contain: device plugins of nodes without a policy cannot start{tell_effects(effects)}",
            kubectl_patch(policy.name, change.fields, effects=effects) or _show(policy),
        )


def _correct(view: Installation, policy: ClusterPolicyView, row: WrongField) -> Command:
    """Return the command that corrects the row, or the one that has to come before, or one that shows what is wrong."""
    command = row.command
    if row.change is not None:
        command = kubectl_patch(policy.name, row.change.fields, effects=row.effects)
    if row.pointer is not None:
        return _point(view, policy, row.pointer, command)
    if not view.installed and row.change is not None:
        return start(view)
    if row.needed and not row.blocked and command is not None:
        return command
    return SHOW_LABELS if any(effect.loss is Loss.GPUS for effect in row.effects) else _show(policy)


def _show(policy: ClusterPolicyView) -> Command:
    if policy.plain is not None:
        return Command.of(f"kubectl get nodes -L {LABEL_PLUGIN_CONFIG},{LABEL_MIG_CONFIG}")
    return Command.of(f"kubectl get clusterpolicy {policy.name} -o yaml")


def find_deaf_mps(view: Installation) -> Iterator[Symptom]:
    """Yield an error if a policy has mode MPS and the GPU Operator's MPS daemon follows no label.

    See docs/design/nvidia.md#b5.
    """
    specs = {policy.name: policy.spec for policy in view.snapshot.policies}
    wanted = sorted(name for name, spec in specs.items() if spec is not None and spec.mode is Mode.MPS)
    stack = view.stack.cluster_policy
    daemon = stack.mps_daemon if stack is not None else None
    if not wanted or stack is None or daemon is None or (deaf := explain_deafness(daemon)) is None:
        return
    effects = view.effects(RESTART_PLUGIN)
    _, command = find_remedy(daemon)
    by_itself = f". The operator sets the name itself ({VALUE}): `kubectl get gpun -o wide` says what it waits for"
    if needs_newer_plugin(daemon):
        command = kubectl_patch(stack.name, [("devicePlugin.version", SKIPS_THREADS)], effects=effects)
    yield error(
        Topic.CLUSTER_POLICY,
        str(Reason.MPS_NOT_SWITCHABLE),
        f"policy {', '.join(wanted)}: {deaf.message}{by_itself if view.place.repair_mps else ''}{tell_effects(effects)}",
        command or SHOW_LABELS,
    )


def _find_config_map_symptoms(view: Installation) -> Iterator[Symptom]:
    place, stack, policy = view.place, view.stack, view.stack.cluster_policy
    if "configmaps" in view.unread:
        return
    pointed = {policy.plugin_config_name, policy.mig_config_name} if policy is not None else set()
    for name, held in {place.plugin_config_map: stack.plugin_configs, place.mig_config_map: stack.mig_file}.items():
        if not view.installed and name not in pointed:
            continue
        if name in stack.foreign_maps:
            message, label = explain_taken(name, place)
            if not view.installed:  # what hands it over is told afterwards
                message, label = message.partition(". Hand it over")[0], start(view)
            yield error(Topic.CONFIG_MAPS, "ConfigMapTaken", message, label)
        elif not held:
            follows = ", and NVIDIA's pods that mount it cannot start" if name in pointed else ""
            yield (error if name in pointed else warning)(
                Topic.CONFIG_MAPS,
                "ConfigMapEmpty",
                f"{name} does not exist in namespace {place.gpu_operator_namespace} or is empty: the operator has not"
                f" written it{follows}",
                start(view),
            )


def _find_agent_symptoms(view: Installation) -> Iterator[Symptom]:
    agents, where = view.agents, view.place.agent_namespace
    if agents is None and "daemonsets.apps" not in view.unread:
        message = f"there is no DaemonSet gpusharing-agent in namespace {where}"
        yield error(Topic.AGENTS, "AgentMissing", message, view.upgrade("agent.createNamespace=true"))
    if agents is None or {"nodes", "pods"} & view.unread.keys():
        return
    snapshot, policy = view.snapshot, view.stack.cluster_policy
    nodes = [one for one in snapshot.nodes.values() if matches(one.labels, agents.selector)]
    if not nodes:
        wanted = [f"{key}={value}" for key, value in sorted(agents.selector.items())]
        message = f"no Node has the labels in agent.nodeSelector ({', '.join(wanted)}), so no agent runs"
        # The label is our agent's; NVIDIA's programs find GPUs by Node Feature Discovery.
        yield warning(Topic.AGENTS, "NoGPUNodes", message, Command.of("kubectl label node NODE", *wanted, effects=()))
        return
    if agents.runtime_class and agents.runtime_class_exists is False:
        message = (
            f"RuntimeClass {agents.runtime_class} (agent.runtimeClassName) does not exist, so no agent pod is created"
        )
        yield error(Topic.AGENTS, "RuntimeClassMissing", message, view.upgrade("agent.runtimeClassName="))
    if agents.enforced in ("baseline", "restricted"):
        message = f"namespace {where} enforces PodSecurity {agents.enforced}, which rejects the agent's pods"
        yield error(Topic.AGENTS, "PodSecurityForbids", message, allow_privileged(where))
    theirs = policy is not None and not policy.is_off(PLUGIN_SWITCH)
    kept_off = {node.name for node in nodes if node.keeps_off("operands") or node.keeps_off("device-plugin")}
    # Where NVIDIA's plugin does not run, the label would leave the GPUs without any.
    if cloud := sorted(n.name for n in nodes if theirs and n.other_plugin == GKE and n.name not in kept_off):
        yield error(
            Topic.AGENTS,
            "TwoDevicePlugins",
            f"GKE runs its own device plugin on {some(cloud)}, and the kubelet there uses whichever of the two device"
            " plugins registered nvidia.com/gpu last; label the node pool as well as the nodes",
            # NVIDIA's plugin runs there too, so the GPUs stay served.
            Command.of("kubectl label node", *cloud, f"{GKE_WITHOUT_PLUGIN}=true", effects=()),
        )
    if system := sorted(node.name for node in nodes if node.name in view.system_plugins):
        yield warning(
            Topic.AGENTS,
            "TwoDevicePlugins",
            f"Bottlerocket starts its own device plugin on {some(system)} unless its settings disable it,"
            " which the Kubernetes API does not show; if it runs alongside NVIDIA's, pods lose their GPUs. Disable it"
            " on each of these nodes, or in their user data (Bottlerocket 1.63.0 or newer)",
            # It runs on one node, and the text says alongside what.
            Command.of("apiclient set settings.kubelet-device-plugins.nvidia.enabled=false", effects=()),
        )
    without = {one.name for one in nodes} - snapshot.agents
    if without:
        causes = ((name, snapshot.agent_troubles.get(name)) for name in sorted(without))
        problem = next((f"; {name}: {cause.message}" for name, cause in causes if cause is not None), "")
        yield (error if len(without) == len(nodes) else warning)(
            Topic.AGENTS,
            "AgentNotReady",
            f"the agent is not Ready on {len(without)} of {counted(len(nodes), 'GPU node')}, so the operator does not"
            f" change them: {some(sorted(without))}{problem}",
            Command.of(f"kubectl -n {where} describe pods -l app.kubernetes.io/name=gpusharing-agent"),
        )
    reports = {name: one.observed for name, one in snapshot.gpunodes.items() if name not in without}
    troubled = {name: one.error for name, one in reports.items() if one is not None and one.error}
    if troubled:
        first = min(troubled)
        message = f"the agent cannot read the GPUs on {some(sorted(troubled))}; {first}: {troubled[first]}"
        show = Command.of("kubectl describe gpunode", first)
        own = {one.name for one in nodes if has_driver(one)}
        absent = find_absent(troubled[first], policy) if first not in own else None
        if policy is not None and absent is not None:
            # If other hosts bring their own driver, the GPU Operator must not install the program on all nodes.
            command = kubectl_patch(policy.name, absent.change.fields, effects=view.effects(absent.change))
            message = f"{message}. {absent.off}"
            yield error(Topic.AGENTS, str(absent.disabled), message, command or show)
        else:
            yield error(Topic.AGENTS, "AgentCannotRead", message, show)


# --- the report ----------------------------------------------------------------------------------------------


def report_topics(
    symptoms: Sequence[Symptom], unseen: Unseen, topics: Container[Topic]
) -> Iterator[tuple[str, str, str]]:
    """Yield the severity, the topic with the message, and the command of each symptom, by topic.

    Each of `topics` begins with `UNKNOWN` and the cause if it is in `unseen`, or is `ok` if it has no symptoms either.
    """
    for topic in Topic:
        of_it = [symptom for symptom in symptoms if symptom.topic is topic]
        if topic in topics and topic in unseen:
            yield "UNKNOWN", f"{topic}: {unseen[topic]}", ""
        elif topic in topics and not of_it:
            yield "ok", str(topic), ""
        yield from ((symptom.severity, f"{topic}: {symptom.message}", str(symptom.command)) for symptom in of_it)


def render(symptoms: Iterable[Symptom], unseen: Unseen) -> list[str]:
    """Return the report as lines. Topics that only people ask about are listed only if they have symptoms."""
    listed = list(symptoms)
    lines = []
    for word, text, command in report_topics(listed, unseen, frozenset(Topic) - ASKED_BY_PEOPLE):
        lines += [f"{word:8} {text}", *([f"         -> {command}"] if command else [])]
    errors = sum(symptom.severity == "ERROR" for symptom in listed)
    state = conclude("installation", unseen=bool(unseen), errors=errors)
    return [*lines, "", f"{state}: errors {errors}, warnings {len(listed) - errors}."]


def conclude(what: str, *, unseen: bool, errors: int) -> str:
    if errors:
        return f"This {what} cannot work as it is"
    return f"As far as could be checked, this {what} can work" if unseen else f"This {what} can work"

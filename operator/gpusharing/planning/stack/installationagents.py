"""Can the agents work? A part of the question of installation.py."""

from gpusharing.planning.stack.active import find_active
from gpusharing.planning.stack.commands import kubectl_patch
from gpusharing.planning.stack.installationviews import AgentsState, InstallationView
from gpusharing.planning.stack.otherplugins import GKE_GPU, GKE_WITHOUT_PLUGIN
from gpusharing.planning.stack.requirements import find_absent, tell_off
from gpusharing.planning.stack.symptoms import (
    Severity,
    Symptom,
    Symptoms,
    Topic,
    error,
    upgrade,
    warning,
)
from gpusharing.planning.vocabulary.lengths import counted, some


def find_agent_symptoms(view: InstallationView) -> Symptoms:
    """Report what keeps the agents from running or from reading GPUs, and device plugins that must not run on their
    nodes. Yields nothing if that could not be read."""
    agents, place = view.agents, view.place
    if agents is None:
        if "daemonsets.apps" not in view.unread:
            message = f"there is no DaemonSet gpusharing-agent in namespace {place.agent_namespace}"
            yield error(Topic.AGENTS, "AgentMissing", message, upgrade(view, "agent.createNamespace=true"))
        return
    if {"nodes", "pods"} & view.unread.keys():
        return
    if not agents.nodes:
        yield warning(
            Topic.AGENTS,
            "NoGPUNodes",
            f"no Node has the labels of agent.nodeSelector ({agents.selector}): no agent runs anywhere",
            f"kubectl label node NODE {agents.selector.replace(', ', ' ')}",
        )
        return
    yield from _agents_kept_out(view)
    yield from _two_plugins(agents)
    without = agents.nodes - {pod.node for pod in agents.pods if pod.ready}
    if without:
        problem = next((f" ({pod.problem})" for pod in agents.pods if pod.problem and not pod.ready), "")
        show = f"kubectl -n {place.agent_namespace} describe pods -l app.kubernetes.io/name=gpusharing-agent"
        message = (
            f"no Ready agent on {len(without)} of {counted(len(agents.nodes), 'GPU node')}, so none of them changes:"
            f" {some(sorted(without))}{problem}"
        )
        severity = Severity.ERROR if without == agents.nodes else Severity.WARNING
        yield Symptom(Topic.AGENTS, severity, "AgentNotReady", message, show)
    troubled = {node: why for node, why in agents.reports.items() if why and node not in without}
    if troubled:
        first = min(troubled)
        message = f"the agent cannot read the GPUs of {some(sorted(troubled))}; {first}: {troubled[first]}"
        show = f"kubectl describe gpunode {first}"
        policy, _ = find_active(view.cluster_policies)
        absent = find_absent(troubled[first], policy) if first not in agents.with_driver else None
        if policy is not None and absent is not None:
            # Where other hosts bring the program, the GPU Operator must not begin to install it on all nodes.
            command = show if agents.with_driver else kubectl_patch(policy.name, absent.patch)
            yield error(Topic.AGENTS, str(absent.disabled), f"{message}. {tell_off(absent, policy)}", command)
            return
        yield error(Topic.AGENTS, "AgentCannotRead", message, show)


def _agents_kept_out(view: InstallationView) -> Symptoms:
    agents, place = view.agents, view.place
    assert agents is not None, "find_agent_symptoms asks first"
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
            f"namespace {place.agent_namespace} enforces PodSecurity {agents.enforced}, which refuses the agent",
            f"kubectl label --overwrite namespace {place.agent_namespace}"
            " pod-security.kubernetes.io/enforce=privileged",
        )


def _two_plugins(agents: AgentsState) -> Symptoms:
    if agents.cloud_plugins:
        yield error(
            Topic.AGENTS,
            "TwoDevicePlugins",
            f"GKE runs its own device plugin on {some(sorted(agents.cloud_plugins))}, and the kubelet there takes"
            " nvidia.com/gpu from whichever of the two registered last; label its node pool too",
            f"kubectl label node -l {GKE_GPU} {GKE_WITHOUT_PLUGIN}=true",
        )
    if agents.system_plugins:
        yield warning(
            Topic.AGENTS,
            "TwoDevicePlugins",
            f"Bottlerocket starts a device plugin of its own on {some(sorted(agents.system_plugins))} unless its"
            " settings disable it, which the API does not show; next to NVIDIA's, pods lose their GPUs. Disable it on"
            " each of them, or in their user data (Bottlerocket 1.63.0 or newer)",
            "apiclient set settings.kubelet-device-plugins.nvidia.enabled=false",
        )

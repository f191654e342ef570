"""Can the agents work? A part of the question of installation.py."""

from collections.abc import Sequence, Set

from gpusharing.api.selectors import matches
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.active import find_active
from gpusharing.planning.stack.commands import kubectl_patch
from gpusharing.planning.stack.installationviews import InstallationView
from gpusharing.planning.stack.otherplugins import GKE, GKE_GPU, GKE_WITHOUT_PLUGIN
from gpusharing.planning.stack.requirements import find_absent, has_driver, tell_off
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
    nodes = [one for one in view.nodes if matches(one.labels, agents.selector)]
    if not nodes:
        wanted = [f"{key}={value}" for key, value in sorted(agents.selector.items())]
        yield warning(
            Topic.AGENTS,
            "NoGPUNodes",
            f"no Node has the labels of agent.nodeSelector ({', '.join(wanted)}): no agent runs anywhere",
            f"kubectl label node NODE {' '.join(wanted)}",
        )
        return
    yield from _agents_kept_out(view)
    yield from _two_plugins(nodes, view.system_plugins)
    without = {one.name for one in nodes} - {pod.node for pod in agents.pods if pod.ready}
    if without:
        problem = next((f" ({pod.problem})" for pod in agents.pods if pod.problem and not pod.ready), "")
        show = f"kubectl -n {place.agent_namespace} describe pods -l app.kubernetes.io/name=gpusharing-agent"
        message = (
            f"no Ready agent on {len(without)} of {counted(len(nodes), 'GPU node')}, so none of them changes:"
            f" {some(sorted(without))}{problem}"
        )
        severity = Severity.ERROR if len(without) == len(nodes) else Severity.WARNING
        yield Symptom(Topic.AGENTS, severity, "AgentNotReady", message, show)
    troubled = {node: why for node, why in agents.reports.items() if why and node not in without}
    if troubled:
        first = min(troubled)
        message = f"the agent cannot read the GPUs of {some(sorted(troubled))}; {first}: {troubled[first]}"
        show = f"kubectl describe gpunode {first}"
        policy, _ = find_active(view.cluster_policies)
        with_driver = {one.name for one in nodes if has_driver(one.labels, one.resources)}
        absent = find_absent(troubled[first], policy) if first not in with_driver else None
        if policy is not None and absent is not None:
            # Where other hosts bring the program, the GPU Operator must not begin to install it on all nodes.
            command = show if with_driver else kubectl_patch(policy.name, absent.patch)
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


def _two_plugins(nodes: Sequence[NodeView], system_plugins: Set[str]) -> Symptoms:
    if cloud := sorted(one.name for one in nodes if one.other_plugin == GKE):
        yield error(
            Topic.AGENTS,
            "TwoDevicePlugins",
            f"GKE runs its own device plugin on {some(cloud)}, and the kubelet there takes"
            " nvidia.com/gpu from whichever of the two registered last; label its node pool too",
            f"kubectl label node -l {GKE_GPU} {GKE_WITHOUT_PLUGIN}=true",
        )
    if system := sorted(one.name for one in nodes if one.name in system_plugins):
        yield warning(
            Topic.AGENTS,
            "TwoDevicePlugins",
            f"Bottlerocket starts a device plugin of its own on {some(system)} unless its"
            " settings disable it, which the API does not show; next to NVIDIA's, pods lose their GPUs. Disable it on"
            " each of them, or in their user data (Bottlerocket 1.63.0 or newer)",
            "apiclient set settings.kubelet-device-plugins.nvidia.enabled=false",
        )

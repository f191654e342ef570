"""Why does no agent run on a node: are its pods refused, do they never start, or exit at once?"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime

from gpusharing.planning.vocabulary.commands import Command, allow_privileged
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

HEAD, TAIL = 140, 160
"""How many characters of a long message are shown: PodSecurity names the cause first, a runtime last."""
_CHANGING = (
    (re.compile(r"^\(combined from similar events\): "), ""),
    (re.compile(r"^Error creating: "), ""),
    (re.compile(r'^pods "[^"]*" is forbidden: '), ""),
    (re.compile(r'^Back-off pulling image "[^"]*": '), ""),
    (re.compile(r"^ErrImagePull: "), ""),
    (re.compile(r"rpc error: code = \w+ desc = "), ""),
    (re.compile(r"\b[0-9a-f]{64}\b"), "..."),
)
"""Patterns for parts of a message that differ between attempts or carry no information."""
ALL_OTHERS = ""
"""The key in `find_troubles` for every node that has no key of its own."""


@value
class AgentPod:
    """One pod of the agent's DaemonSet, as the kubelet reports it."""

    namespace: str
    name: str
    node: str
    """The node for which the DaemonSet controller made the pod, even before the pod is bound to that node."""
    ready: bool
    deleting: bool
    created: datetime | None = None
    scheduled: bool = True
    image: str = ""
    waiting: str = ""
    """Why its container is waiting, as the kubelet's reason, such as `ImagePullBackOff`."""
    message: str = ""
    """The kubelet's message for that reason."""
    ended: str = ""
    """How the container last exited, such as `Error, exit code 1`; empty if not, or if it has run since."""
    last_words: str = ""
    """The end of the log of the container that exited, as the kubelet reports it."""
    tolerates_gate: bool = True
    """Whether the pod, and therefore every pod of its DaemonSet, tolerates the start-up taint."""


@value
class AgentWarning:
    """A Kubernetes Warning event about the agent's DaemonSet or one of its pods."""

    namespace: str
    pod: str
    """Name of the pod. Empty if the event is about the DaemonSet."""
    message: str
    at: datetime | None
    """When an event about a pod was first seen, or one about the DaemonSet last."""


def find_troubles(
    pods: Collection[AgentPod], warnings: Iterable[AgentWarning | None], arch: Callable[[str], str]
) -> dict[str, Finding | None]:
    """Return why agents do not run, by the name of each node with an agent pod that is not Ready.

    None means that the pod may just be starting, or that the cause is unknown. The key ALL_OTHERS tells why the API
    server refuses further pods of the DaemonSet. `arch` returns a node's architecture, or an empty string.
    """
    unready = [pod for pod in pods if not pod.ready and pod.node and not pod.deleting]
    about: dict[str, list[AgentWarning]] = {}
    for event in warnings:
        if event is not None:
            about.setdefault(event.pod, []).append(event)
    if not unready and not about:
        return {}
    unready.sort(key=lambda pod: pod.name)
    found = {pod.node: _explain_pod(pod, about.get(pod.name, []), arch(pod.node)) for pod in unready}
    return {**found, ALL_OTHERS: _explain_refusal(pods, about.get("", []))}


def _explain_pod(pod: AgentPod, warnings: list[AgentWarning], arch: str) -> Finding | None:
    for why, remedy in _find_causes(pod, warnings, arch):
        if why:
            return Finding(Reason.AGENT_NOT_STARTED, f"its pod does not start: {why.rstrip('.')}. {remedy}")
    return None


def _find_causes(pod: AgentPod, warnings: list[AgentWarning], arch: str) -> Iterator[tuple[str, str]]:
    """Yield each cause that may keep the pod from starting, and its remedy; an empty cause does not apply.

    Causes come before consequences: an image for another architecture cannot be pulled, or its program exits at once.
    """
    chart = "Correct image.repository, image.tag or {0} in the chart values"
    describe = f"Run kubectl -n {pod.namespace} describe pod {pod.name}"
    said = steady(pod.message)
    yield "" if pod.scheduled else "it has not been scheduled", describe
    # containerd's message for an image without a manifest for the architecture, and Linux's (ENOEXEC) for a program.
    if "no match for platform" in said or "exec format error" in f"{said} {pod.last_words}":
        kind = f" ({arch})" if arch else ""
        yield (
            f"image {pod.image} is not built for this node's architecture{kind}",
            "Build the image for that platform as well, or keep the agent off such nodes with agent.nodeSelector",
        )
    details = f" ({said})" if said and said != f'Back-off pulling image "{pod.image}"' else ""
    if pod.waiting == "ErrImageNeverPull":
        yield f"image {pod.image} is not on this node{details}", chart.format("image.pullPolicy")
    if pod.waiting in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName"):
        yield f"image {pod.image} cannot be pulled{details}", chart.format("imagePullSecrets")
    # A container that the runtime cannot start has the message in its last state between two attempts.
    if pod.waiting == "RunContainerError":
        yield said, describe
    elif pod.ended.startswith(("StartError", "ContainerCannotRun")):
        yield steady(pod.last_words), describe
    if pod.waiting not in ("", "ContainerCreating", "PodInitializing", "CrashLoopBackOff"):
        yield f"{pod.waiting}{f': {said}' if said else ''}", describe
    if pod.ended:
        logs = f"Run kubectl -n {pod.namespace} logs {pod.name} --previous"
        yield f"its container exits at once ({pod.ended})", logs
    if warnings:  # a pod whose container is still being created, such as one without a sandbox, shows it nowhere else
        yield steady(_latest(warnings).message), describe


def _explain_refusal(pods: Iterable[AgentPod], warnings: list[AgentWarning]) -> Finding | None:
    if not warnings:
        return None
    last = _latest(warnings)
    if last.at is not None and any(pod.created is not None and pod.created > last.at for pod in pods):
        return None
    cause, commands = steady(last.message), tuple[Command, ...]()
    if "violates PodSecurity" in cause:
        commands = (allow_privileged(last.namespace),)
        remedy = f"Run {commands[0]}"
    elif "RuntimeClass" in cause:
        remedy = (
            "The GPU Operator normally creates that RuntimeClass. If it does not (because it uses the NRI plugin or a"
            " default runtime), set agent.runtimeClassName to the empty string"
        )
    else:
        remedy = f"Run kubectl -n {last.namespace} describe daemonset gpusharing-agent"
    return Finding(Reason.AGENT_REFUSED, f"its pod is rejected: {cause.rstrip('.')}. {remedy}", commands=commands)


def _latest(warnings: list[AgentWarning]) -> AgentWarning:
    return max(warnings, key=lambda warning: (warning.at.timestamp() if warning.at else 0.0, warning.message))


def steady(message: str) -> str:
    text = " ".join(message.split())
    for pattern, put in _CHANGING:
        text = pattern.sub(put, text)
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}...{text[-TAIL:]}"

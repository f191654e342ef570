"""Why no agent runs on a node: its pods are refused, never start, or exit at once. The texts stay the same while the
cause does."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import field
from datetime import datetime

from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

HEAD, TAIL = 140, 160
"""Characters that are shown from the beginning and from the end of a long message: PodSecurity names the cause at the
beginning, a runtime at the end."""
_NEVER_PULLED = "ErrImageNeverPull"
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName"})
_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
_ENDS = frozenset({"CrashLoopBackOff"})
_NEVER_RAN = ("StartError", "ContainerCannotRun")
_NO_PLATFORM = "no match for platform"
"""containerd's words for an image that has no manifest for the architecture of the node."""
_BAD_FORMAT = "exec format error"
"""Linux's words (ENOEXEC) for a program of another architecture."""
_CHANGING = (
    (re.compile(r"^\(combined from similar events\): "), ""),
    (re.compile(r"^Error creating: "), ""),
    (re.compile(r'^pods "[^"]*" is forbidden: '), ""),
    (re.compile(r'^Back-off pulling image "[^"]*": '), ""),
    (re.compile(r"^ErrImagePull: "), ""),
    (re.compile(r"rpc error: code = \w+ desc = "), ""),
    (re.compile(r"\b[0-9a-f]{64}\b"), "..."),
)
"""Parts of a message that differ from one attempt to the next, or carry no information, and what replaces them."""


@value
class AgentPod:
    """One pod of the agent's DaemonSet, as the kubelet reports it."""

    namespace: str
    """Namespace of the pod."""
    name: str
    """Name of the pod."""
    node: str
    """The node that the pod is for, even before it is bound to it."""
    ready: bool
    """Whether its condition Ready is True."""
    deleting: bool
    """Whether it is being deleted."""
    created: datetime | None = None
    """metadata.creationTimestamp, or None if it cannot be read."""
    scheduled: bool = True
    """Whether it is bound to its node."""
    image: str = ""
    """The image that its container is to run. Empty if it is unknown."""
    waiting: str = ""
    """Why its container waits, in the kubelet's word. Empty if it does not wait."""
    message: str = ""
    """The kubelet's message about why it waits. Empty if there is none."""
    ended: str = ""
    """How the container ended last, such as `Error, exit code 1`. Empty if it has been up since."""
    last_words: str = ""
    """The end of that container's log, as the kubelet reports it."""
    tolerates_gate: bool = True
    """Whether the pod, and so every pod of its DaemonSet, tolerates the start-up taint."""


@value
class AgentWarning:
    """A Kubernetes Warning event about the agent's DaemonSet or one of its pods."""

    namespace: str
    """Namespace of the DaemonSet or pod."""
    pod: str
    """Name of the pod. Empty if the event is about the DaemonSet."""
    message: str
    """The message of the event."""
    at: datetime | None
    """When the event was first seen, or, about the DaemonSet, when it was last seen. None if that cannot be read."""


@value
class AgentTroubles:
    """Why the agent does not run on nodes, as far as that is known."""

    pods: Mapping[str, Finding | None] = field(default_factory=dict)
    """For each node with a pod that is not Ready: why it does not start, or None if it may just be starting."""
    refused: Finding | None = None
    """Why the API server refuses further pods of the DaemonSet, or None if it does not."""

    def of(self, node: str) -> Finding | None:
        """Return why no agent runs on this node, or None if the cause is unknown. The node must have no Ready
        agent."""
        return self.pods.get(node, self.refused)


def find_troubles(
    pods: Collection[AgentPod], warnings: Iterable[AgentWarning | None], arch: Callable[[str], str]
) -> AgentTroubles:
    """Return why agents do not run, from their pods and from the Warning events about them; None among the events is
    ignored. `arch` returns the architecture of a node, or an empty string if it is unknown."""
    unready = [pod for pod in pods if not pod.ready and pod.node and not pod.deleting]
    events = [event for event in warnings if event is not None]
    if not unready and not events:
        return AgentTroubles()
    about: dict[str, list[AgentWarning]] = {}
    for event in events:
        about.setdefault(event.pod, []).append(event)
    unready.sort(key=lambda pod: pod.name)
    return AgentTroubles(
        {pod.node: _of_pod(pod, about.get(pod.name, []), arch(pod.node)) for pod in unready},
        _refused(pods, about.get("", [])),
    )


def _of_pod(pod: AgentPod, warnings: list[AgentWarning], arch: str) -> Finding | None:
    """Return why this pod, which is not Ready, does not start, with a remedy: the first of HINDRANCES that applies.
    None if no cause is known, because it may just be starting."""
    state = _PodState(pod, steady(pod.message), warnings, arch)
    for hindrance in HINDRANCES:
        if (why := hindrance.find(state)) is not None:
            remedy = hindrance.remedy.format(namespace=pod.namespace, name=pod.name)
            return Finding(Reason.AGENT_NOT_STARTED, f"its pod does not start: {why.rstrip('.')}. {remedy}")
    return None


@value
class _PodState:
    """What is known of an agent's pod that is not Ready."""

    pod: AgentPod
    kubelet_message: str
    """The kubelet's message, without the parts that differ from one attempt to the next."""
    warnings: list[AgentWarning]
    """The Warning events about this pod."""
    arch: str
    """Architecture of its node. Empty if it is unknown."""


@value
class Hindrance:
    """What keeps a pod of the agent from starting, and what a person does about it."""

    find: Callable[[_PodState], str | None]
    """Returns the cause, as people read it, or None if this hindrance does not apply."""
    remedy: str
    """What a person does. {namespace} and {name} are those of the pod."""


def _unplaced(state: _PodState) -> str | None:
    """Return that the scheduler does not place the pod, or None if it is bound to its node."""
    return None if state.pod.scheduled else "the scheduler does not place it"


def _other_architecture(state: _PodState) -> str | None:
    """Return that the image is for another architecture: it could not be pulled for this one, or its program does not
    run here. None if neither shows."""
    if (
        _NO_PLATFORM not in state.kubelet_message
        and _BAD_FORMAT not in f"{state.kubelet_message} {state.pod.last_words}"
    ):
        return None
    kind = f" ({state.arch})" if state.arch else ""
    return f"image {state.pod.image} is not for the architecture of this node{kind}"


def _never_pulled(state: _PodState) -> str | None:
    """Return that the image is not on the node and may not be pulled, or None."""
    return _no_image(state, "is not on this node") if state.pod.waiting == _NEVER_PULLED else None


def _not_pulled(state: _PodState) -> str | None:
    """Return that the image cannot be pulled, or None."""
    return _no_image(state, "cannot be pulled") if state.pod.waiting in _IMAGE else None


def _no_image(state: _PodState, what: str) -> str:
    """Return that the image `what`, with the kubelet's reason unless that only says that it backs off."""
    image, cause = state.pod.image, state.kubelet_message
    why = f" ({cause})" if cause and cause != f'Back-off pulling image "{image}"' else ""
    return f"image {image} {what}{why}"


def _start_error(state: _PodState) -> str | None:
    """Return the runtime's message about a container that it cannot start, or None. Between two attempts the message
    is in the container's last state."""
    pod = state.pod
    if pod.waiting == "RunContainerError":
        return state.kubelet_message or None
    return (steady(pod.last_words) or None) if pod.ended.startswith(_NEVER_RAN) else None


def _waiting(state: _PodState) -> str | None:
    """Return why the container waits, in the kubelet's words, unless it only starts or has exited before."""
    if state.pod.waiting in _STARTING | _ENDS:
        return None
    return f"{state.pod.waiting}{f': {state.kubelet_message}' if state.kubelet_message else ''}"


def _ends(state: _PodState) -> str | None:
    """Return how the container exits at once, or None if it has been up since."""
    return f"its container exits at once ({state.pod.ended})" if state.pod.ended else None


def _warned(state: _PodState) -> str | None:
    """Return the text of the latest Warning event about the pod, or None. A pod whose container is still being
    created, such as one without a sandbox, has no other sign."""
    return steady(_latest(state.warnings).message) if state.warnings else None


_CHART = "Correct image.repository, image.tag or {0} of the chart"
_DESCRIBE = "Run kubectl -n {namespace} describe pod {name}"
HINDRANCES: tuple[Hindrance, ...] = (
    Hindrance(_unplaced, _DESCRIBE),
    Hindrance(
        _other_architecture,
        "Build the image for that platform as well, or keep the agent off such nodes with agent.nodeSelector",
    ),
    Hindrance(_never_pulled, _CHART.format("image.pullPolicy")),
    Hindrance(_not_pulled, _CHART.format("imagePullSecrets")),
    Hindrance(_start_error, _DESCRIBE),
    Hindrance(_waiting, _DESCRIBE),
    Hindrance(_ends, "Run kubectl -n {namespace} logs {name} --previous"),
    Hindrance(_warned, _DESCRIBE),
)
"""The first match wins; a test pins the order. The cause that the kubelet names comes before its consequences: an
image for another architecture cannot be pulled, or its program exits at once."""


def _refused(pods: Iterable[AgentPod], warnings: list[AgentWarning]) -> Finding | None:
    """Return why the API server refuses the pods of the DaemonSet, with a remedy. None if there is no Warning event
    about it, or if a pod was created since."""
    if not warnings:
        return None
    last = _latest(warnings)
    if last.at is not None and any(pod.created is not None and pod.created > last.at for pod in pods):
        return None
    cause = steady(last.message)
    if "violates PodSecurity" in cause:
        label = "pod-security.kubernetes.io/enforce=privileged"
        remedy = f"Run kubectl label --overwrite namespace {last.namespace} {label}"
    elif "RuntimeClass" in cause:
        remedy = (
            "The GPU Operator creates that class. Where it does not (NRI plugin, or a default runtime), set"
            " agent.runtimeClassName to the empty string"
        )
    else:
        remedy = f"Run kubectl -n {last.namespace} describe daemonset gpusharing-agent"
    return Finding(Reason.AGENT_REFUSED, f"its pod is refused: {cause.rstrip('.')}. {remedy}")


def _latest(warnings: list[AgentWarning]) -> AgentWarning:
    """Return the latest of these Warning events; those without a time come first."""
    return max(warnings, key=lambda warning: (warning.at.timestamp() if warning.at else 0.0, warning.message))


def steady(message: str) -> str:
    """Return a message of Kubernetes without the parts that differ from one attempt to the next, and a long one
    without its middle."""
    text = " ".join(message.split())
    for pattern, put in _CHANGING:
        text = pattern.sub(put, text)
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}...{text[-TAIL:]}"

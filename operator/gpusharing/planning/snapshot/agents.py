"""Explains why no agent runs on a node: the agent's pods are refused, never start, or exit at once. The message stays
the same as long as the cause does."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import field
from datetime import datetime

from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

HEAD, TAIL = 140, 160
"""How many characters are shown from the beginning and from the end of a long message. PodSecurity names the cause at
the beginning, a container runtime at the end."""
_NEVER_PULLED = "ErrImageNeverPull"
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName"})
_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
_ENDS = frozenset({"CrashLoopBackOff"})
_NEVER_RAN = ("StartError", "ContainerCannotRun")
_NO_PLATFORM = "no match for platform"
"""containerd's message for an image that has no manifest for the architecture of the node."""
_BAD_FORMAT = "exec format error"
"""Linux's message (ENOEXEC) for a program that was built for another architecture."""
_CHANGING = (
    (re.compile(r"^\(combined from similar events\): "), ""),
    (re.compile(r"^Error creating: "), ""),
    (re.compile(r'^pods "[^"]*" is forbidden: '), ""),
    (re.compile(r'^Back-off pulling image "[^"]*": '), ""),
    (re.compile(r"^ErrImagePull: "), ""),
    (re.compile(r"rpc error: code = \w+ desc = "), ""),
    (re.compile(r"\b[0-9a-f]{64}\b"), "..."),
)
"""Patterns for the parts of a message that differ from one attempt to the next or carry no information, each with its
replacement."""


@value
class AgentPod:
    """One pod of the agent's DaemonSet, as the kubelet reports it."""

    namespace: str
    """Namespace of the pod."""
    name: str
    """Name of the pod."""
    node: str
    """The node for which the DaemonSet controller made the pod, even before the pod is bound to that node."""
    ready: bool
    """Whether its condition Ready is True."""
    deleting: bool
    """Whether it is being deleted."""
    created: datetime | None = None
    """metadata.creationTimestamp, or None if it cannot be read."""
    scheduled: bool = True
    """Whether it is bound to its node."""
    image: str = ""
    """The image that its container should run. Empty if it is unknown."""
    waiting: str = ""
    """Why its container is waiting, as the kubelet's reason, such as `ImagePullBackOff`. Empty if it is not
    waiting."""
    message: str = ""
    """The kubelet's message for that reason. Empty if there is none."""
    ended: str = ""
    """How the container last exited, such as `Error, exit code 1`. Empty if it has not exited, or has been running
    since."""
    last_words: str = ""
    """The end of the log of the container that exited, as the kubelet reports it."""
    tolerates_gate: bool = True
    """Whether the pod, and therefore every pod of its DaemonSet, tolerates the start-up taint."""


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
    """When an event about a pod was first seen, or when an event about the DaemonSet was last seen. None if that
    cannot be read."""


@value
class AgentTroubles:
    """Why some nodes run no agent, as far as the cause is known."""

    pods: Mapping[str, Finding | None] = field(default_factory=dict)
    """By the name of each node whose agent pod is not Ready: why the pod does not start, or None if it may just be
    starting."""
    refused: Finding | None = None
    """Why the API server refuses further pods of the DaemonSet, or None if it does not."""

    def of(self, node: str) -> Finding | None:
        """Return why no agent is Ready on `node`. None if the cause is unknown, or if the agent's pod may just be
        starting. A node without an agent pod, or with one that is being deleted, gets the reason why the API server
        refuses pods. Must not be called for a node with a Ready agent."""
        return self.pods.get(node, self.refused)


def find_troubles(
    pods: Collection[AgentPod], warnings: Iterable[AgentWarning | None], arch: Callable[[str], str]
) -> AgentTroubles:
    """Return why agents do not run. Of `pods`, those that are Ready, are being deleted or belong to no node only show
    that the API server no longer refuses pods. A pod that may just be starting gives None. If a node has several, the
    last by name counts. `warnings` are the Warning events about the pods and their DaemonSet; a None is ignored. `arch`
    returns a node's architecture, or an empty string."""
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
    """Return the AgentNotStarted Finding that says why the pod, which is not Ready, does not start, and what a person
    can do about it, from the first of HINDRANCES that applies. None if no hindrance applies, because the pod may just
    be starting. `warnings` are the events about this pod, and `arch` is the architecture of its node."""
    state = _PodState(pod, steady(pod.message), warnings, arch)
    for hindrance in HINDRANCES:
        if (why := hindrance.find(state)) is not None:
            remedy = hindrance.remedy.format(namespace=pod.namespace, name=pod.name)
            return Finding(Reason.AGENT_NOT_STARTED, f"its pod does not start: {why.rstrip('.')}. {remedy}")
    return None


@value
class _PodState:
    """What is known about an agent's pod that is not Ready."""

    pod: AgentPod
    kubelet_message: str
    """The kubelet's message, without the parts that differ from one attempt to the next."""
    warnings: list[AgentWarning]
    """The Warning events about this pod."""
    arch: str
    """Architecture of its node. Empty if it is unknown."""


@value
class Hindrance:
    """One thing that keeps an agent pod from starting, and its remedy."""

    find: Callable[[_PodState], str | None]
    """Returns the cause as a clause for people, or None if this hindrance does not apply."""
    remedy: str
    """What a person should do, as a sentence. {namespace} and {name} are replaced by the pod's namespace and name."""


def _unplaced(state: _PodState) -> str | None:
    """Return a clause that says that the scheduler has not bound the pod to its node, or None if it has."""
    return None if state.pod.scheduled else "it has not been scheduled"


def _other_architecture(state: _PodState) -> str | None:
    """Return a clause that says that the image is for another architecture, or None if nothing shows that. A failed
    pull (in the kubelet's message) or a program that cannot be executed (there, or in the container's log) shows it."""
    if (
        _NO_PLATFORM not in state.kubelet_message
        and _BAD_FORMAT not in f"{state.kubelet_message} {state.pod.last_words}"
    ):
        return None
    kind = f" ({state.arch})" if state.arch else ""
    return f"image {state.pod.image} is not built for this node's architecture{kind}"


def _never_pulled(state: _PodState) -> str | None:
    """Return a clause that says that the image is not on the node and the pull policy is Never, or None if that is not
    the cause."""
    return _no_image(state, "is not on this node") if state.pod.waiting == _NEVER_PULLED else None


def _not_pulled(state: _PodState) -> str | None:
    """Return a clause with the kubelet's reason if the image cannot be pulled, or None otherwise."""
    return _no_image(state, "cannot be pulled") if state.pod.waiting in _IMAGE else None


def _no_image(state: _PodState, what: str) -> str:
    """Return a clause about the image, such as `image X cannot be pulled (not found)`. `what` is the part after the
    image's name. The parentheses contain the kubelet's message. They are left out if there is none, or if it says only
    that the kubelet backs off."""
    image, cause = state.pod.image, state.kubelet_message
    why = f" ({cause})" if cause and cause != f'Back-off pulling image "{image}"' else ""
    return f"image {image} {what}{why}"


def _start_error(state: _PodState) -> str | None:
    """Return the container runtime's message if the runtime cannot start the container. While the container waits with
    RunContainerError, this is the kubelet's message; between two attempts, it is in the container's last state. None if
    the runtime can start the container, or if the message is empty."""
    pod = state.pod
    if pod.waiting == "RunContainerError":
        return state.kubelet_message or None
    return (steady(pod.last_words) or None) if pod.ended.startswith(_NEVER_RAN) else None


def _waiting(state: _PodState) -> str | None:
    """Return the kubelet's reason why the container is waiting, with its message if there is one. None if the
    container is not waiting, is being created, or is waiting only because it has exited before."""
    if state.pod.waiting in _STARTING | _ENDS:
        return None
    return f"{state.pod.waiting}{f': {state.kubelet_message}' if state.kubelet_message else ''}"


def _ends(state: _PodState) -> str | None:
    """Return a clause that says how the container exited, or None if it has not exited or has been running since."""
    return f"its container exits at once ({state.pod.ended})" if state.pod.ended else None


def _warned(state: _PodState) -> str | None:
    """Return the message of the latest Warning event about the pod, without the parts that change from one attempt to
    the next, or None if there is no event. A pod whose container is still being created, such as one without a
    sandbox, shows its problem nowhere else."""
    return steady(_latest(state.warnings).message) if state.warnings else None


_CHART = "Correct image.repository, image.tag or {0} in the chart values"
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
"""The first match wins. The cause that the kubelet names comes before its consequences: an
image for another architecture cannot be pulled, or its program exits at once."""


def _refused(pods: Iterable[AgentPod], warnings: list[AgentWarning]) -> Finding | None:
    """Return the AgentRefused Finding that says why the API server refuses further pods of the DaemonSet, and what a
    person can do about it. `warnings` are the events about the DaemonSet; only the latest counts. None if there are no
    such events, or if one of `pods` was created after the latest one."""
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
            "The GPU Operator normally creates that RuntimeClass. If it does not (because it uses the NRI plugin or a"
            " default runtime), set agent.runtimeClassName to the empty string"
        )
    else:
        remedy = f"Run kubectl -n {last.namespace} describe daemonset gpusharing-agent"
    return Finding(Reason.AGENT_REFUSED, f"its pod is rejected: {cause.rstrip('.')}. {remedy}")


def _latest(warnings: list[AgentWarning]) -> AgentWarning:
    """Return the event with the latest time. Events without a time count as the oldest, and the message breaks ties.
    Raises ValueError if there are no events."""
    return max(warnings, key=lambda warning: (warning.at.timestamp() if warning.at else 0.0, warning.message))


def steady(message: str) -> str:
    """Return a message from Kubernetes as one line, without the parts that differ from one attempt to the next
    (_CHANGING). If the result is longer than HEAD + TAIL characters, its middle is replaced by dots, and that many
    characters are left at its beginning and at its end."""
    text = " ".join(message.split())
    for pattern, put in _CHANGING:
        text = pattern.sub(put, text)
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}...{text[-TAIL:]}"

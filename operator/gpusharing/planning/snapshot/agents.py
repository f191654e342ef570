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
"""How many characters are shown from the beginning and from the end of a long message."""
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
"""Patterns for the parts of a message that differ from one attempt to the next or carry no information, each with its replacement."""


@value
class AgentPod:
    """One pod of the agent's DaemonSet, as the kubelet reports it."""

    namespace: str
    name: str
    node: str
    ready: bool
    deleting: bool
    created: datetime | None = None
    """metadata.creationTimestamp, or None if it cannot be read."""
    scheduled: bool = True
    image: str = ""
    """Empty if it is unknown."""
    waiting: str = ""
    """Why its container is waiting, as the kubelet's reason, such as `ImagePullBackOff`. Empty if it is not waiting."""
    message: str = ""
    """Empty if there is none."""
    ended: str = ""
    """How the container last exited, such as `Error, exit code 1`. Empty if it has not exited, or has been running since."""
    last_words: str = ""
    tolerates_gate: bool = True


@value
class AgentWarning:
    """A Kubernetes Warning event about the agent's DaemonSet or one of its pods."""

    namespace: str
    pod: str
    """Empty if the event is about the DaemonSet."""
    message: str
    at: datetime | None
    """None if that cannot be read."""


@value
class AgentTroubles:
    """Why some nodes run no agent, as far as the cause is known."""

    pods: Mapping[str, Finding | None] = field(default_factory=dict)
    """By the name of each node whose agent pod is not Ready: why the pod does not start, or None if it may just be starting."""
    refused: Finding | None = None
    """Why the API server refuses further pods of the DaemonSet, or None if it does not."""

    def of(self, node: str) -> Finding | None:
        """Return why no agent is Ready on `node`."""
        return self.pods.get(node, self.refused)


def find_troubles(
    pods: Collection[AgentPod], warnings: Iterable[AgentWarning | None], arch: Callable[[str], str]
) -> AgentTroubles:
    """Return why agents do not run."""
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
    warnings: list[AgentWarning]
    arch: str
    """Empty if it is unknown."""


@value
class Hindrance:
    """One thing that keeps an agent pod from starting, and its remedy."""

    find: Callable[[_PodState], str | None]
    """Returns the cause as a clause for people, or None if this hindrance does not apply."""
    remedy: str


def _unplaced(state: _PodState) -> str | None:
    return None if state.pod.scheduled else "it has not been scheduled"


def _other_architecture(state: _PodState) -> str | None:
    if (
        _NO_PLATFORM not in state.kubelet_message
        and _BAD_FORMAT not in f"{state.kubelet_message} {state.pod.last_words}"
    ):
        return None
    kind = f" ({state.arch})" if state.arch else ""
    return f"image {state.pod.image} is not built for this node's architecture{kind}"


def _never_pulled(state: _PodState) -> str | None:
    return _no_image(state, "is not on this node") if state.pod.waiting == _NEVER_PULLED else None


def _not_pulled(state: _PodState) -> str | None:
    return _no_image(state, "cannot be pulled") if state.pod.waiting in _IMAGE else None


def _no_image(state: _PodState, what: str) -> str:
    image, cause = state.pod.image, state.kubelet_message
    why = f" ({cause})" if cause and cause != f'Back-off pulling image "{image}"' else ""
    return f"image {image} {what}{why}"


def _start_error(state: _PodState) -> str | None:
    pod = state.pod
    if pod.waiting == "RunContainerError":
        return state.kubelet_message or None
    return (steady(pod.last_words) or None) if pod.ended.startswith(_NEVER_RAN) else None


def _waiting(state: _PodState) -> str | None:
    if state.pod.waiting in _STARTING | _ENDS:
        return None
    return f"{state.pod.waiting}{f': {state.kubelet_message}' if state.kubelet_message else ''}"


def _ends(state: _PodState) -> str | None:
    return f"its container exits at once ({state.pod.ended})" if state.pod.ended else None


def _warned(state: _PodState) -> str | None:
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
"""The first match wins."""


def _refused(pods: Iterable[AgentPod], warnings: list[AgentWarning]) -> Finding | None:
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
    return max(warnings, key=lambda warning: (warning.at.timestamp() if warning.at else 0.0, warning.message))


def steady(message: str) -> str:
    """Return a message from Kubernetes as one line, without the parts that differ from one attempt to the next (_CHANGING)."""
    text = " ".join(message.split())
    for pattern, put in _CHANGING:
        text = pattern.sub(put, text)
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}...{text[-TAIL:]}"

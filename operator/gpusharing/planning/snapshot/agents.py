"""Why no agent runs on a node: its pods are refused, never start, or exit at once. The words stay the same while it
lasts."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import field
from datetime import datetime

from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

HEAD, TAIL = 140, 160
"""Characters that are shown of a long sentence: PodSecurity has the cause at its beginning, a runtime at its end."""
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
"""Parts that differ from one try to the next, or that carry no information."""


@value
class AgentPod:
    """One pod of the agent's DaemonSet, as the kubelet reports it."""

    namespace: str
    """Namespace of the pod."""
    name: str
    """Name of the pod."""
    node: str
    """The node that it is for, even before it is bound."""
    ready: bool
    """Whether its condition Ready is True."""
    deleting: bool
    """Whether it is being deleted."""
    created: datetime | None = None
    """metadata.creationTimestamp; None: not readable."""
    scheduled: bool = True
    """Whether it is bound to its node."""
    image: str = ""
    """The image that its container is to run; empty: unknown."""
    waiting: str = ""
    """Why its container waits, as the kubelet calls it; empty while it does not."""
    message: str = ""
    """The kubelet's sentence about why it waits; empty: there is none."""
    ended: str = ""
    """How the container ended last, such as `Error, exit code 1`; empty where it has been up since."""
    last_words: str = ""
    """The end of that container's log."""
    tolerates_gate: bool = True
    """Whether it tolerates the start-up taint, as all pods of its DaemonSet do then."""


@value
class AgentWarning:
    """A Warning of Kubernetes about the agent's DaemonSet or one of its pods."""

    namespace: str
    """Namespace of the DaemonSet or pod."""
    pod: str
    """Name of the pod; empty: about the DaemonSet."""
    message: str
    """What Kubernetes says."""
    at: datetime | None
    """When it came first, for the DaemonSet when it came last; None: not readable."""


@value
class AgentTroubles:
    """Why no agent runs, as far as that is known."""

    pods: Mapping[str, Finding | None] = field(default_factory=dict)
    """By node that has a pod that is not Ready: why; None: it may just be starting."""
    refused: Finding | None = None
    """Why the API server refuses further pods of the DaemonSet; None: it does not."""

    def of(self, node: str) -> Finding | None:
        """Why no agent runs on this node, which has no Ready agent."""
        return self.pods.get(node, self.refused)


def find_troubles(
    pods: Collection[AgentPod], warnings: Iterable[AgentWarning | None], arch: Callable[[str], str]
) -> AgentTroubles:
    """What the agent's pods and the Warnings about them say. `arch`: architectures by node name; empty when unknown."""
    unready = [pod for pod in pods if not pod.ready and pod.node and not pod.deleting]
    told = [one for one in warnings if one is not None]
    if not unready and not told:
        return AgentTroubles()
    about: dict[str, list[AgentWarning]] = {}
    for one in told:
        about.setdefault(one.pod, []).append(one)
    unready.sort(key=lambda pod: pod.name)
    return AgentTroubles(
        {pod.node: _of_pod(pod, about.get(pod.name, []), arch(pod.node)) for pod in unready},
        _refused(pods, about.get("", [])),
    )


def _of_pod(pod: AgentPod, warnings: list[AgentWarning], arch: str) -> Finding | None:
    """The first of HINDRANCES; None: it may just be starting."""
    told = _Told(pod, steady(pod.message), warnings, arch)
    for hindrance in HINDRANCES:
        if (why := hindrance.find(told)) is not None:
            remedy = hindrance.remedy.format(namespace=pod.namespace, name=pod.name)
            return Finding(Reason.AGENT_NOT_STARTED, f"its pod does not start: {why}; {remedy}")
    return None


@value
class _Told:
    """What is known of a pod that is not Ready."""

    pod: AgentPod
    said: str
    """The kubelet's sentence, without what changes from one try to the next."""
    warnings: list[AgentWarning]
    """Those about this pod."""
    arch: str
    """Architecture of its node; empty: unknown."""


@value
class Hindrance:
    """What keeps a pod of the agent from starting, and what a person does about it."""

    find: Callable[[_Told], str | None]
    """How it shows, for people; None: it does not."""
    remedy: str
    """What to do. {namespace} and {name} are those of the pod."""


def _unplaced(told: _Told) -> str | None:
    return None if told.pod.scheduled else "the scheduler does not place it"


def _other_architecture(told: _Told) -> str | None:
    """The image was pulled in vain, or it was pulled and its program is none for this node."""
    if _NO_PLATFORM not in told.said and _BAD_FORMAT not in f"{told.said} {told.pod.last_words}":
        return None
    kind = f" ({told.arch})" if told.arch else ""
    return f"image {told.pod.image} is not for the architecture of this node{kind}"


def _never_pulled(told: _Told) -> str | None:
    return _no_image(told, "is not on this node") if told.pod.waiting == _NEVER_PULLED else None


def _not_pulled(told: _Told) -> str | None:
    return _no_image(told, "cannot be pulled") if told.pod.waiting in _IMAGE else None


def _no_image(told: _Told, what: str) -> str:
    image, said = told.pod.image, told.said
    why = f" ({said})" if said and said != f'Back-off pulling image "{image}"' else ""
    return f"image {image} {what}{why}"


def _start_error(told: _Told) -> str | None:
    """What the runtime says of a container that it cannot start; between two tries it is in the last state."""
    pod = told.pod
    if pod.waiting == "RunContainerError":
        return told.said or None
    return (steady(pod.last_words) or None) if pod.ended.startswith(_NEVER_RAN) else None


def _waiting(told: _Told) -> str | None:
    """For another reason, in the kubelet's words."""
    if told.pod.waiting in _STARTING | _ENDS:
        return None
    return f"{told.pod.waiting}{f': {told.said}' if told.said else ''}"


def _ends(told: _Told) -> str | None:
    return f"its container exits at once ({told.pod.ended})" if told.pod.ended else None


def _warned(told: _Told) -> str | None:
    """Of a pod whose container is only being created, such as one without a sandbox, the Warnings alone tell."""
    return steady(_latest(told.warnings).message) if told.warnings else None


_CHART = "correct image.repository, image.tag or {0} of the chart"
_DESCRIBE = "kubectl -n {namespace} describe pod {name}"
HINDRANCES: tuple[Hindrance, ...] = (
    Hindrance(_unplaced, _DESCRIBE),
    Hindrance(
        _other_architecture,
        "build it for that platform as well, or keep the agent off such nodes with agent.nodeSelector",
    ),
    Hindrance(_never_pulled, _CHART.format("image.pullPolicy")),
    Hindrance(_not_pulled, _CHART.format("imagePullSecrets")),
    Hindrance(_start_error, _DESCRIBE),
    Hindrance(_waiting, _DESCRIBE),
    Hindrance(_ends, "kubectl -n {namespace} logs {name} --previous"),
    Hindrance(_warned, _DESCRIBE),
)
"""The first match wins; a test pins the order. The cause that the kubelet names comes before its consequences: an
image for another architecture cannot be pulled, or its program exits at once."""


def _refused(pods: Iterable[AgentPod], warnings: list[AgentWarning]) -> Finding | None:
    """What keeps the DaemonSet from creating pods, unless it has created one since."""
    if not warnings:
        return None
    last = _latest(warnings)
    if last.at is not None and any(pod.created is not None and pod.created > last.at for pod in pods):
        return None
    said = steady(last.message)
    if "violates PodSecurity" in said:
        remedy = f"kubectl label --overwrite namespace {last.namespace} pod-security.kubernetes.io/enforce=privileged"
    elif "RuntimeClass" in said:
        remedy = (
            "the GPU Operator creates that class; where it does not (NRI plugin, or a default runtime), set"
            " agent.runtimeClassName to the empty string"
        )
    else:
        remedy = f"kubectl -n {last.namespace} describe daemonset gpusharing-agent"
    return Finding(Reason.AGENT_REFUSED, f"its pod is refused: {said}; {remedy}")


def _latest(warnings: list[AgentWarning]) -> AgentWarning:
    return max(warnings, key=lambda one: (one.at.timestamp() if one.at else 0.0, one.message))


def steady(message: str) -> str:
    """A sentence of Kubernetes without the parts that differ from one try to the next; a long one without its
    middle."""
    text = " ".join(message.split())
    for pattern, put in _CHANGING:
        text = pattern.sub(put, text)
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}...{text[-TAIL:]}"

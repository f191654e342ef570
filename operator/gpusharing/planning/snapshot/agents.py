"""Why no agent runs on a node: its pods are refused, never start, or exit at once. The words stay the same while it
lasts."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import field
from datetime import datetime

from gpusharing.planning.words.findings import Finding
from gpusharing.planning.words.reasons import Reason
from gpusharing.planning.words.values import value

HEAD, TAIL = 140, 160
"""Characters that are shown of a long sentence: PodSecurity has the cause at its beginning, a runtime at its end."""
_NEVER_PULLED = "ErrImageNeverPull"
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", _NEVER_PULLED})
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
    said = steady(pod.message)
    show = f"kubectl -n {pod.namespace} describe pod {pod.name}"
    if not pod.scheduled:
        return _not_started(f"the scheduler does not place it; {show}")
    if _NO_PLATFORM in said or _BAD_FORMAT in f"{said} {pod.last_words}":
        kind = f" ({arch})" if arch else ""
        return _not_started(
            f"image {pod.image} is not for the architecture of this node{kind}; build it for that platform as well,"
            " or keep the agent off such nodes with agent.nodeSelector"
        )
    if pod.waiting in _IMAGE:
        said = f" ({said})" if said and said != f'Back-off pulling image "{pod.image}"' else ""
        what, also = ("cannot be pulled", "imagePullSecrets")
        if pod.waiting == _NEVER_PULLED:
            what, also = ("is not on this node", "image.pullPolicy")
        return _not_started(
            f"image {pod.image} {what}{said}; correct image.repository, image.tag or {also} of the chart"
        )
    if words := _start_error(pod):
        return _not_started(f"{words}; {show}")
    if pod.waiting not in _STARTING | _ENDS:
        return _not_started(f"{pod.waiting}{f': {said}' if said else ''}; {show}")
    if pod.ended:
        return _not_started(
            f"its container exits at once ({pod.ended}); kubectl -n {pod.namespace} logs {pod.name} --previous"
        )
    if warnings:
        return _not_started(f"{steady(_latest(warnings).message)}; {show}")
    return None


def _start_error(pod: AgentPod) -> str:
    """What the runtime says of a container that it cannot start; between two tries it is in the last state."""
    if pod.waiting == "RunContainerError":
        return steady(pod.message)
    return steady(pod.last_words) if pod.ended.startswith(_NEVER_RAN) else ""


def _not_started(why: str) -> Finding:
    return Finding(Reason.AGENT_NOT_STARTED, f"its pod does not start: {why}")


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

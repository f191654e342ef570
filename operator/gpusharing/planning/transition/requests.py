"""The operator's requests to a node's agent, and which answers count.

Request ids:

new:<node uid>                       the first request of a new GPUNode
<op>:quiet:<event>:<when>            close NVML; sent again every poll while a process uses a GPU, and when it is old
<op>:quiet:after-<n>:<event>:<when>  the same before the next step, when step n is proven already
<op>:verify:<event>:<when>           read again, to prove the result of a run
<id>:close                           close NVML, because others work on driver or GPUs of a node that we do not change
<id>:resume                          read again, because NVML no longer has to stay closed

An answer counts if it echoes the current request. It proves something about the last event (`last_event`) if the
request names that event and so was written after it; the answer is then a `FreshReading`
(docs/design/transition.md#causality). The times only show how old a request is, never which event preceded it.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from gpusharing.api import names
from gpusharing.planning.gpus.health import REACHABLE
from gpusharing.planning.snapshot.actions import Action, ClearRequests, EnsureGPUNode, LabelNode
from gpusharing.planning.snapshot.views import NodeView, ObservedView
from gpusharing.planning.transition.attempts import PROOF
from gpusharing.planning.transition.quiet import find_quiet
from gpusharing.planning.transition.verdict import FencedCase, NodeCase, Verdict
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.assess import has_gpu
from gpusharing.planning.wanted.verify import MPS_DAEMONS

_RESUME, _CLOSE = ":resume", ":close"


def ask(case: NodeCase, request: str, *, quiet: bool) -> EnsureGPUNode:
    """Return the write that sends this request to the agent of the node. `quiet`: the agent must close NVML after its
    reading."""
    return EnsureGPUNode(case.node.name, case.node.uid, request, quiet)


def with_gpunode(verdict: Verdict, case: NodeCase) -> Verdict:
    """Return the verdict with a write to the node's GPUNode, if one is needed. The write comes after the verdict's
    other actions. It creates the GPUNode or, on a node that we do not change, has NVML closed or opened, as
    `find_quiet` says; for a candidate NVML may be open. The verdict also wakes when NVML no longer has to stay closed.
    No write is added to a verdict that has one already, for a Node that is being deleted, or for a node with neither a
    GPU nor a GPUNode. If a person has left requests on the GPUNode of a Node that is not being deleted, the only
    actions are those that move them to the Node (`_move`), and the node is no candidate."""
    gpunode, node = case.gpunode, case.node
    if gpunode is not None and gpunode.requests and not node.deleting:
        return replace(verdict, candidate=False).then(*_move(node, gpunode.requests))
    quiet = None if verdict.candidate else find_quiet(case)  # the gates of a candidate have checked this
    free = node.fence is None or node.fence.stage == "yielded"
    if quiet is not None and quiet.until is not None:
        verdict = replace(verdict, wake=min(verdict.wake or quiet.until, quiet.until))
    if any(isinstance(action, EnsureGPUNode) for action in verdict.actions) or node.deleting:
        return verdict
    if gpunode is None and not has_gpu(node):
        return verdict
    if gpunode is None:
        # In the middle of a change NVML stays closed, even for an agent that lost its request.
        changing = node.fence is not None and node.fence.stage == "actuating"
        request = ask(case, f"new:{node.uid}", quiet=changing or quiet is not None)
    elif free and gpunode.quiet != (quiet is not None):
        # The suffix of the last request is removed, so that the id does not grow forever.
        request_id = gpunode.request_id.removesuffix(_RESUME).removesuffix(_CLOSE)
        request = ask(case, request_id + (_CLOSE if quiet else _RESUME), quiet=quiet is not None)
    else:
        return verdict
    return replace(verdict, actions=(*verdict.actions, request))


def close_request(case: NodeCase) -> EnsureGPUNode | None:
    """Return the request to close NVML because others work on the GPUs, or None if the node has no GPUNode or its agent
    has been asked to already."""
    if case.gpunode is None or case.gpunode.quiet:
        return None
    # The suffix of the last request is removed, so that the id does not grow forever.
    request_id = case.gpunode.request_id.removesuffix(_RESUME).removesuffix(_CLOSE)
    return ask(case, request_id + _CLOSE, quiet=True)


def _move(node: NodeView, requests: Mapping[str, str]) -> tuple[Action, ...]:
    """Return the actions that write the requests of a GPUNode (to retry, to abort and to skip the node) to its Node,
    unless the Node has them, and then remove them from the GPUNode. A request to skip the node sets the skip label to
    `true`, unless the Node has a value that skips it already, and a request to end that removes it (`names.is_skip`).
    A crash between the actions loses nothing, and repeats nothing."""
    present = {names.ANNOTATION_RETRY: node.retry, names.ANNOTATION_ABORT: node.abort}
    annotations = {key: requests[key] for key in present if requests.get(key, present[key]) != present[key]}
    labels: dict[str, str | None] = {}
    skip, skipped = requests.get(names.LABEL_SKIP), names.is_skip(node.labels.get(names.LABEL_SKIP))
    if skip is not None and names.is_skip(skip) != skipped:
        labels = {names.LABEL_SKIP: "true" if names.is_skip(skip) else None}
    clear = ClearRequests(node.name, requests)
    return (LabelNode(node, labels, requests=annotations), clear) if labels or annotations else (clear,)


# --- silence -----------------------------------------------------------------------------------------------


QUIET_AGE = 60.0
"""The maximum age, in seconds, of the request whose answer proves idleness. A reading of eight GPUs without
persistence mode takes 24 seconds."""


def _quiet_prefix(case: FencedCase) -> str:
    """Return the prefix of the ids of all requests to close NVML in this change."""
    return f"{case.fence.op}:quiet:"


def _step_prefix(case: FencedCase) -> str:
    """Return the prefix of the ids of requests to close NVML that also record that the present step is proven."""
    return f"{_quiet_prefix(case)}after-{case.fence.step}:"


def prepares_next_step(case: FencedCase) -> bool:
    """Whether the current request is one to close NVML that records that the present step is proven, and no event has
    happened since it was written."""
    return _request(case).startswith(_step_prefix(case)) and _asked_at(case, "quiet") is not None


def answers_quiet(case: NodeCase) -> bool:
    """Whether the agent has closed NVML for the current request. False without a GPUNode or a reading."""
    gpunode = case.gpunode
    if gpunode is None or gpunode.observed is None:
        return False
    return gpunode.observed.quiet and gpunode.observed.request_id == gpunode.request_id


def last_busy(case: FencedCase) -> str:
    """Return why the GPUs were not proven idle when the agent last closed NVML for this change: the agent could not
    read them or, if it could, the first GPU in the report that does not respond or is used by processes, of which at
    most three are named. Empty if they were idle or the agent has not closed NVML yet. Processes of the MPS daemon do
    not count."""
    observed = case.gpunode.observed if case.gpunode else None
    if observed is None or not observed.quiet or not observed.request_id.startswith(_quiet_prefix(case)):
        return ""
    if observed.error:
        return f"the agent cannot read the GPUs: {observed.error}"
    for gpu in observed.gpus:
        if gpu.vitals.access != REACHABLE:
            return f"GPU {gpu.index} does not respond, so it is unknown whether a process uses it"
        if foreign := [name for name in gpu.processes if name not in MPS_DAEMONS]:
            shown = ", ".join(name or "an unidentified process" for name in foreign[:3])
            return f"no pod has a GPU, but GPU {gpu.index} is used by {shown}"
    return ""


def next_quiet_request(
    case: FencedCase, stood: str, *, any_event: bool, step_proven: bool
) -> EnsureGPUNode | None:
    """Return the next request to close NVML, or None if the current one is good. A new request is needed if the current
    one is of another kind, change or event, or is `stood`. Once the agent has answered, a new one is also needed if the
    request is older than QUIET_AGE, or at every poll while the GPUs are not idle (`last_busy`). A request that the
    agent has not answered yet is not replaced because of its age, because otherwise the agent might never get to answer
    one.

    `stood`: the id of a request that no longer counts, because the last pod may have left after it (`NodeWork.stood`).
    `any_event`: the request may be older than the last event. `step_proven`: the new request also records that the
    present step is proven.
    """
    asked_at, now = _asked_at(case, "quiet", any_event=any_event), _stamp(case.now)
    if asked_at is not None and _request(case) != stood:
        patience = case.settings.poll if last_busy(case) else QUIET_AGE
        if not answers_quiet(case) or now < asked_at + patience * 1000:
            return None
    if asked_at == now:  # our clock was set back to the very moment of the request that stands
        now -= 1
    kind = _step_prefix(case) if step_proven else _quiet_prefix(case)
    return ask(case, f"{kind}{last_event(case)}:{now}", quiet=True)


def _stamp(moment: datetime) -> int:
    """Return the moment as milliseconds since 1970."""
    return int(moment.timestamp() * 1000)


# --- proof -------------------------------------------------------------------------------------------------


def last_event(case: FencedCase) -> str:
    """Return a hash that changes with every event that makes earlier proofs worthless: our last run, and the events
    that the actuator names."""
    parts = (str(_stamp(case.fence.stage_since)), *case.actuator.find_events(case))
    return sha256(" ".join(parts).encode()).hexdigest()[:10]


def _request(case: FencedCase) -> str:
    """Return the id of the current request on the node's GPUNode, or an empty string without one."""
    return case.gpunode.request_id if case.gpunode is not None else ""


def _asked_at(case: FencedCase, kind: str, *, any_event: bool = False) -> int | None:
    """Return when the current request was written, in milliseconds since 1970, if it is of this kind (`quiet` or
    `verify`) and belongs to this change. None if a new request is needed: there is no such request, it is older than
    the last event (unless `any_event`), its id does not end in a time, or that time is ahead of our clock."""
    if case.gpunode is None or case.gpunode.quiet != (kind == "quiet"):
        return None
    if not _request(case).startswith(f"{case.fence.op}:{kind}:"):
        return None
    event, number = _request(case).split(":")[-2:]
    if not (any_event or event == last_event(case)) or not (number.isascii() and number.isdecimal()):
        return None
    return int(number) if int(number) <= _stamp(case.now) else None


@value
class FreshReading:
    """The agent's answer to a request that was written after the last event. Only such a reading of the GPUs proves
    the result of the event, so an observation counts as fresh only if it answers such a request."""

    observed: ObservedView
    """What the agent read."""

    @staticmethod
    def of(case: FencedCase, kind: str) -> "FreshReading | None":
        """Return the answer to the current request of this kind (`quiet` or `verify`), or None if there is none yet.
        None also if the request is of another kind or change, or older than the last event (`_asked_at`)."""
        gpunode = case.gpunode
        if gpunode is None or (observed := gpunode.observed) is None or _asked_at(case, kind) is None:
            return None
        echoes = (observed.request_id, observed.quiet) == (gpunode.request_id, gpunode.quiet)
        return FreshReading(observed) if echoes else None


def verify_request(case: FencedCase) -> EnsureGPUNode | None:
    """Return the request for the reading that proves the result of the last run, or None if that request has already
    been sent since the last event."""
    if _asked_at(case, "verify") is not None:
        return None
    return ask(case, f"{case.fence.op}:verify:{last_event(case)}:{_stamp(case.now)}", quiet=False)


def answer_due(case: FencedCase) -> datetime:
    """Return when the agent should have answered: PROOF seconds after the current request of this change was written.
    If there is none, or if it is older than the last event, return PROOF seconds from now."""
    asked_at = _asked_at(case, "verify") or _asked_at(case, "quiet")
    begun = case.now if asked_at is None else datetime.fromtimestamp(asked_at / 1000, UTC)
    return begun + timedelta(seconds=PROOF)

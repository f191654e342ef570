"""What does the operator ask of a node's agent, and which answers count?

An answer counts if it echoes the current request. It proves something about the last event (`last_event`) if the
request names that event and so was written after it (docs/design/transition.md#causality). The times in request ids
only show how old a request is, never which event preceded it.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Mode, Phase
from gpusharing.planning.gpus.health import REACHABLE
from gpusharing.planning.snapshot.actions import Action, ClearRequests, EnsureGPUNode, LabelNode
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, ObservedView
from gpusharing.planning.stack.installationviews import upgrade
from gpusharing.planning.transition.attempts import PROOF, find_quiet
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import has_gpu
from gpusharing.planning.wanted.verify import MPS_DAEMONS, name_gpus

_RESUME, _CLOSE = ":resume", ":close"


def with_gpunode(verdict: Verdict, case: NodeCase) -> Verdict:
    """Add the write that the node's GPUNode, or a person's request on it, needs."""
    gpunode, node = case.gpunode, case.node
    if case.unserved:
        return _without_kind(verdict, case)
    if gpunode is not None and gpunode.requests and not node.deleting:
        return replace(verdict, candidate=False).then(*_move(node, gpunode.requests))
    quiet = None if verdict.candidate else find_quiet(case)  # the gates of a candidate have checked this
    if any(isinstance(action, EnsureGPUNode) for action in verdict.actions) or node.deleting:
        return verdict
    if gpunode is None:
        if not has_gpu(node):
            return verdict
        # In the middle of a change NVML stays closed, even for an agent that lost its request.
        changing = node.fence is not None and node.fence.stage == "actuating"
        gpus = case.gpus if changing else ()
        request = _ask(case, f"new:{node.uid}", quiet=changing or quiet is not None, gpus=gpus)
    elif (node.fence is None or node.fence.stage == "yielded") and (
        gpunode.quiet,
        gpunode.holders,
        gpunode.quiet_gpus,
    ) != (quiet is not None, _wants_holders(case), ()):
        request = _ask_anew(case, gpunode, quiet=quiet is not None)
    else:
        return verdict
    return replace(verdict, actions=(*verdict.actions, request))


def _without_kind(verdict: Verdict, case: NodeCase) -> Verdict:
    """Write no GPUNode, and let what waits for one wait for the CRD, so that it goes on as soon as that is back."""
    verdict = verdict.then(*(one for one in verdict.actions if not isinstance(one, EnsureGPUNode | ClearRequests)))
    if verdict.reason is not Reason.OBSERVATION_PENDING:
        return verdict
    command = upgrade("RELEASE", case.settings.namespace, "crds.enabled=true")
    message = (
        f"the API server does not serve {case.unserved}, so the agent cannot report the GPUs of {case.node.name}. To"
        f" install the CRD again, run: {command}"
    )
    phase = Phase.BLOCKED if verdict.phase is Phase.PENDING else verdict.phase
    return replace(verdict, phase=phase, reason=Reason.KIND_NOT_SERVED, message=message, commands=(command,))


def close_request(case: NodeCase) -> EnsureGPUNode | None:
    if case.gpunode is None or (case.gpunode.quiet and not case.gpunode.quiet_gpus):
        return None
    return _ask_anew(case, case.gpunode, quiet=True)


def _ask(case: NodeCase, request: str, *, quiet: bool, gpus: tuple[int, ...] = ()) -> EnsureGPUNode:
    """Return the write of a request with this id; silence is about all GPUs, or about `gpus` alone.

    new:<node uid>                       the first request of a new GPUNode
    <op>:pods:<event>:<when>             report which pods hold which GPUs, of which only some are to be emptied
    <op>:quiet:<event>:<when>            close NVML, or leave alone the GPUs that change; sent again every poll while a
                                         process uses a GPU, and when it is old
    <op>:quiet:after-<n>:<event>:<when>  the same before the next step, when step n is proven already
    <op>:verify:<event>:<when>           read again, to prove the result of a run
    <id>:close                           close NVML, because others work on driver or GPUs of a node that we do not
                                         change
    <id>:resume                          read again, because NVML no longer has to stay closed
    """
    return EnsureGPUNode(case.node.name, case.node.uid, request, quiet, _wants_holders(case), gpus)


def _wants_holders(case: NodeCase) -> bool:
    """Whether a change of some GPUs is due or likely: where GPUs have different layouts."""
    fence, assessed, spec = case.node.fence, case.assessed, case.spec
    if fence is not None and fence.disruption is DisruptionClass.CHANGED_GPUS:
        return True
    if spec is None or spec.mode is not Mode.MIG or spec.time_slicing is not None or spec.drain.scope != "Changed":
        return False
    if assessed is None:  # for a moment, such as while the agent cannot read the GPUs
        return case.gpunode is not None and case.gpunode.holders
    return assessed.disruption is DisruptionClass.CHANGED_GPUS or len(set(assessed.target.layouts)) > 1


def _ask_anew(case: NodeCase, gpunode: GPUNodeView, *, quiet: bool) -> EnsureGPUNode:
    # The suffix of the last request is removed, so that the id does not grow forever.
    request_id = gpunode.request_id.removesuffix(_RESUME).removesuffix(_CLOSE)
    return _ask(case, request_id + (_CLOSE if quiet else _RESUME), quiet=quiet)


def _move(node: NodeView, requests: Mapping[str, str]) -> tuple[Action, ...]:
    """Write the requests to the Node, then remove them from the GPUNode; a crash in between loses nothing."""
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
"""The maximum age in seconds of the request that proves idleness.

A reading of eight GPUs without persistence mode takes 24 seconds.
"""


def _quiet_prefix(case: NodeCase, *, step_proven: bool = False) -> str:
    return f"{case.fence.op}:quiet:" + (f"after-{case.fence.step}:" if step_proven else "")


def prepares_next_step(case: NodeCase) -> bool:
    """Whether the current request closes NVML and records, after the last event, that the present step is proven."""
    recorded = _request(case).startswith(_quiet_prefix(case, step_proven=True))
    return recorded and _asked_at(case, "quiet") is not None


def answers_quiet(case: NodeCase) -> bool:
    return case.answer is not None and case.answer.quiet


def pods_request(case: NodeCase) -> EnsureGPUNode | None:
    """Return the next request to report who holds what, or None while the last one may still be answered."""
    quiet = case.fence.stage == "actuating" or (case.gpunode is not None and case.gpunode.quiet)
    kind = "quiet" if quiet else "pods"
    asked_at, now = _asked_at(case, kind, any_event=True), _stamp(case.now)
    # An agent that starts anew while NVML is closed knows no GPUs, and reads them only for a new request.
    if asked_at is not None and (case.answer is None or now < asked_at + case.settings.poll * 1000):
        return None
    return _ask(case, f"{case.fence.op}:{kind}:{last_event(case)}:{now}", quiet=quiet, gpus=case.gpus if quiet else ())


def tell_busy(case: NodeCase) -> str:
    """Return why the GPUs that change were not idle when the agent last closed NVML for this change, or nothing."""
    observed = case.observed
    if observed is None or not observed.quiet or not observed.request_id.startswith(_quiet_prefix(case)):
        return ""
    if observed.error:
        return f"the agent cannot read the GPUs: {observed.error}"
    part = case.scope.part
    for gpu in observed.gpus:
        if gpu.vitals.access != REACHABLE:
            return f"GPU {gpu.index} does not respond, so it is unknown whether a process uses it"
        # NVIDIA's plugin starts MPS only with MIG off; on a MIG device a person does (docs/design/transition.md#idle).
        foreign = [name for name in gpu.processes if gpu.mig_enabled or name not in MPS_DAEMONS]
        if foreign and (part is None or gpu.index in part.gpus):
            shown = ", ".join(name or "an unidentified process" for name in foreign[:3])
            held = "a GPU" if part is None else "one of the GPUs that change"
            why = "" if all(foreign[:3]) else " (docs/design/hardware.md#lists says on which cards)"
            return f"no pod has {held}, but GPU {gpu.index} is used by {shown}{why}"
    if part is None:
        return ""
    listed = {pod.uid for pod in case.work.pods} if case.work is not None else set()
    for holder in observed.holders or ():
        if holder.uid not in listed:
            where = name_gpus(holder.gpus) if holder.gpus else "a GPU"
            return f"pod {holder.ref} still holds {where} of the node, but the API server does not show it any more"
    return ""


def next_quiet_request(case: NodeCase, stood: str, *, any_event: bool, step_proven: bool) -> EnsureGPUNode | None:
    """Return the next request to close NVML, or None if the current one is good.

    `stood` is a request that no longer counts, because the last pod may have left after it.
    """
    asked_at, now = _asked_at(case, "quiet", any_event=any_event), _stamp(case.now)
    if asked_at is not None and _request(case) != stood:
        patience = case.settings.poll if tell_busy(case) else QUIET_AGE
        # A request without an answer is not replaced: the agent might never get to answer one.
        if not answers_quiet(case) or now < asked_at + patience * 1000:
            return None
    if asked_at == now:  # our clock was set back to the very moment of the request that stands
        now -= 1
    prefix = _quiet_prefix(case, step_proven=step_proven)
    return _ask(case, f"{prefix}{last_event(case)}:{now}", quiet=True, gpus=case.gpus)


def _stamp(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


# --- proof -------------------------------------------------------------------------------------------------


def last_event(case: NodeCase) -> str:
    """Return a hash of our last run and the actuator's events, each of which makes earlier proofs worthless."""
    parts = (str(_stamp(case.fence.stage_since)), *case.actuator.find_events(case))
    return sha256(" ".join(parts).encode()).hexdigest()[:10]


def _request(case: NodeCase) -> str:
    return case.gpunode.request_id if case.gpunode is not None else ""


def _asked_at(case: NodeCase, kind: str, *, any_event: bool = False) -> int | None:
    """Return when the current request was written, in milliseconds since 1970; None if one is needed."""
    if case.gpunode is None or case.gpunode.quiet != (kind == "quiet"):
        return None
    if case.gpunode.quiet_gpus not in ((), case.gpus):  # it reads GPUs that change too since the class grew
        return None
    if not _request(case).startswith(f"{case.fence.op}:{kind}:"):
        return None
    event, number = _request(case).split(":")[-2:]
    if not (any_event or event == last_event(case)) or not (number.isascii() and number.isdecimal()):
        return None
    return int(number) if int(number) <= _stamp(case.now) else None


def fresh_reading(case: NodeCase, kind: str) -> ObservedView | None:
    """Return the agent's answer to a request of this kind (`quiet` or `verify`) after the last event, as its proof."""
    gpunode, answer = case.gpunode, case.answer
    if gpunode is None or answer is None or answer.quiet != gpunode.quiet or _asked_at(case, kind) is None:
        return None
    return answer


def verify_request(case: NodeCase) -> EnsureGPUNode | None:
    if _asked_at(case, "verify") is not None:
        return None
    return _ask(case, f"{case.fence.op}:verify:{last_event(case)}:{_stamp(case.now)}", quiet=False)


def tell_silence(case: NodeCase) -> str:
    """Return a clause on the agent that does not answer the current request, for when it should have."""
    if not case.agent_ready:
        return case.no_agent("").message
    return f"the agent on {case.node.name} is Ready, but has not answered request {_request(case)} for more than {PROOF:.0f} s"


def answer_due(case: NodeCase) -> datetime:
    asked_at = _asked_at(case, "verify") or _asked_at(case, "quiet")
    begun = case.now if asked_at is None else datetime.fromtimestamp(asked_at / 1000, UTC)
    return begun + timedelta(seconds=PROOF)

"""What the operator asks a node's agent, and which answers count: request ids, silence (quiet) and echo.

    new:<node uid>                first request of a fresh GPUNode
    <op>:quiet:<when>             close NVML; asked anew every poll while somebody computes, and when it grew old
    <op>:quiet:after-<n>:<when>   the same, before the next step: step n is proven already
    <op>:verify:<since>           read again: only the answer to this very request proves anything
    <id>:close                    close NVML: somebody else works on driver or GPUs of a node that we do not change
    <id>:resume                   read again, now that no change is under way any more

An answer counts when it echoes the request that stands.
"""

from dataclasses import replace
from datetime import datetime

from gpusharing.planning.gpus.health import REACHABLE
from gpusharing.planning.snapshot.actions import EnsureGPUNode
from gpusharing.planning.wanted.assess import has_gpu
from gpusharing.planning.wanted.verify import MPS_DAEMONS
from gpusharing.planning.way.quiet import find_quiet
from gpusharing.planning.way.verdict import FencedCase, NodeCase, Verdict

_RESUME, _CLOSE = ":resume", ":close"


def ask(case: NodeCase, request: str, *, quiet: bool) -> EnsureGPUNode:
    """The write that asks the agent of this node."""
    return EnsureGPUNode(case.node.name, case.node.uid, request, quiet)


def with_gpunode(verdict: Verdict, case: NodeCase) -> Verdict:
    """Add the write that creates the GPUNode, closes NVML or opens it, unless the verdict has one of its own."""
    gpunode, node = case.gpunode, case.node
    quiet = None if verdict.candidate else find_quiet(case)  # a candidate's gates have asked
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
        asked = gpunode.request_id.removesuffix(_RESUME).removesuffix(_CLOSE)  # it must not grow for ever
        request = ask(case, asked + (_CLOSE if quiet else _RESUME), quiet=quiet is not None)
    else:
        return verdict
    return replace(verdict, actions=(*verdict.actions, request))


# --- silence -----------------------------------------------------------------------------------------------


QUIET_AGE = 60.0
"""Seconds; the greatest age of the request for a reading that proves idleness. Eight GPUs without persistence mode
take 24."""


def _quiet_prefix(case: FencedCase) -> str:
    """The prefix of every request for silence in this change."""
    return f"{case.fence.op}:quiet:"


def _step_prefix(case: FencedCase) -> str:
    """The prefix of requests which say that the present step is proven and the next one is being prepared."""
    return f"{_quiet_prefix(case)}after-{case.fence.step}:"


def prepares_next_step(case: FencedCase) -> bool:
    """The operator asked for silence after this step, so the step is proven already."""
    return case.gpunode is not None and case.gpunode.request_id.startswith(_step_prefix(case))


def answers_quiet(case: NodeCase) -> bool:
    """The agent has closed NVML for the current request."""
    gpunode = case.gpunode
    if gpunode is None or gpunode.observed is None:
        return False
    return gpunode.observed.quiet and gpunode.observed.request_id == gpunode.request_id


def last_busy(case: FencedCase) -> str:
    """Why the GPUs were not idle, as far as the agent knew, when it last closed NVML for this change.

    Empty: no process computed, or it has not closed NVML yet.
    """
    observed = case.gpunode.observed if case.gpunode else None
    if observed is None or not observed.quiet or not observed.request_id.startswith(_quiet_prefix(case)):
        return ""
    if observed.error:
        return f"the agent cannot read the GPUs: {observed.error}"
    for gpu in observed.gpus:
        if gpu.vitals.access != REACHABLE:
            return f"GPU {gpu.index} does not answer: nobody knows whether a process uses it"
        if foreign := [name for name in gpu.processes if name not in MPS_DAEMONS]:
            shown = ", ".join(name or "an unidentified process" for name in foreign[:3])
            return f"no pod holds a GPU, yet GPU {gpu.index} is used by {shown}"
    return ""


def next_quiet_request(case: FencedCase, since: datetime, *, step_proven: bool) -> EnsureGPUNode | None:
    """Ask for silence: once after `since`, again at every poll while a process computes, and when the answer is too
    old.

    A request that the agent has not answered yet is not replaced by another one, or it might never answer.
    """
    asked, now = _asked_at(case), _stamp(case.now)
    if asked is not None and _stamp(since) <= asked <= now:
        patience = case.settings.poll * 1000 if last_busy(case) else QUIET_AGE * 1000
        if not answers_quiet(case) or now < asked + patience:
            return None
    kind = _step_prefix(case) if step_proven else _quiet_prefix(case)
    return ask(case, f"{kind}{now}", quiet=True)


def _stamp(moment: datetime) -> int:
    """Milliseconds since 1970."""
    return int(moment.timestamp() * 1000)


def _asked_at(case: FencedCase) -> int | None:
    """When this operation last asked for silence, as a stamp; None: it has not yet, or that is unknown."""
    gpunode = case.gpunode
    if gpunode is None or not gpunode.quiet or not gpunode.request_id.startswith(_quiet_prefix(case)):
        return None
    number = gpunode.request_id.rpartition(":")[2]
    return int(number) if number.isascii() and number.isdecimal() else None


# --- proof -------------------------------------------------------------------------------------------------


def verify_id(case: FencedCase) -> str:
    """The request whose answer proves the result of the last run of the actuators."""
    return f"{case.fence.op}:verify:{case.fence.stage_since.timestamp():.3f}"


def verify_request(case: FencedCase) -> EnsureGPUNode | None:
    """Ask for the reading that proves; None: it was requested already."""
    gpunode = case.gpunode
    if gpunode is not None and gpunode.request_id == verify_id(case) and not gpunode.quiet:
        return None
    return ask(case, verify_id(case), quiet=False)

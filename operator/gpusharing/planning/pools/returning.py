"""Nodes that started as one wave return to service together, so that no other pod takes the GPUs of half a
gang.

Specification: docs/design/drain.md#waves. The fences of a wave's nodes record its id, so it survives a restart.

Terms: docs/design/glossary.md#wave, docs/design/glossary.md#gang, docs/design/glossary.md#fence.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from gpusharing.api.names import Phase
from gpusharing.api.validation import parse_duration
from gpusharing.planning.snapshot.actions import Release, UpdateFence
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Reason


def hold_together(
    verdicts: Mapping[str, Verdict],
    fences: Mapping[str, Fence],
    nodes: Mapping[str, NodeView],
    policies: Iterable[PolicyView],
    now: datetime,
) -> dict[str, Verdict]:
    """Return the new verdicts of proven nodes that wait for the others of their wave, by name. Unchanged verdicts are
    left out.

    The nodes wait until all nodes of the wave are proven, but no longer than `timeouts.verification` after the first
    proof. They stop waiting once one of the others has failed or is being rolled back, because then the gang could not
    come back whole. If that time-out is unknown, they do not wait.
    """
    waves: dict[str, list[str]] = {}
    for name, fence in fences.items():  # a Node that was deleted and created again is in no wave any more
        if fence.wave and fence.stage != "yielded" and name in verdicts and fence.node_uid == nodes[name].uid:
            waves.setdefault(fence.wave, []).append(name)
    if not waves:
        return {}
    by_name = {policy.name: policy for policy in policies}
    waiting: dict[str, Verdict] = {}
    for names in waves.values():
        proven = [name for name in names if returns_proven(verdicts[name])]
        others = _find_awaited(names, verdicts, fences)
        until = _until(proven, fences, by_name, now) if others else now
        for name in proven if until > now else ():
            waiting[name] = _await_wave(
                verdicts[name], nodes[name], fences[name], others=others, until=until, now=now
            )
    return waiting


def _find_awaited(
    names: Iterable[str], verdicts: Mapping[str, Verdict], fences: Mapping[str, Fence]
) -> list[str]:
    """Return the nodes of a wave that this pass does not release, proven or not, sorted by name. Empty once the change
    of such a node has failed, so that the node stays cordoned or is rolled back."""
    others = []
    for name in sorted(names):
        verdict = verdicts[name]
        if any(isinstance(action, Release) for action in verdict.actions):
            continue
        if verdict.phase is Phase.FAILED or fences[name].rolls_back:
            return []
        others.append(name)
    return others


def returns_proven(verdict: Verdict) -> bool:
    """Whether this pass releases the node with its new layout proven, even if a cordon stays because somebody else
    works on the node. False if it was rolled back."""
    given = (action.verified for action in verdict.actions if isinstance(action, Release))
    return any(record is not None and not record.rolled_back for record in given)


def _until(
    proven: Iterable[str], fences: Mapping[str, Fence], policies: Mapping[str, PolicyView], now: datetime
) -> datetime:
    """Return when the first of the proven nodes has waited for timeouts.verification, or `now` if that time is
    unknown. The time-out is read from the policy of the first of these nodes whose policy exists. A node whose fence
    does not record a proof yet was proven now."""
    first = min((moment for name in proven if (moment := fences[name].proven) is not None), default=now)
    spec = next((p.spec for name in proven if (p := policies.get(fences[name].policy)) is not None), None)
    return now if spec is None else first + parse_duration(spec.rollout.timeouts.verification)


def _await_wave(
    verdict: Verdict, node: NodeView, fence: Fence, *, others: Sequence[str], until: datetime, now: datetime
) -> Verdict:
    """Return the verdict of a proven node that waits for `others` until `until`, with the reason WaitsForWave: it is
    not released, and its fence records when it was first proven. `others` must not be empty; the first of them is shown
    as the keeper."""
    actions = tuple(action for action in verdict.actions if not isinstance(action, Release))
    if fence.proven is None:
        actions = (*actions, UpdateFence(node, replace(fence, proven=now)))
    message = f"{verdict.message}; the node returns to service together with {some(others)}, which ran the same gang"
    waits = replace(verdict, reason=Reason.WAITS_FOR_WAVE, message=message, actions=actions)
    return replace(waits, wake=until, deadline=until, keeper=f"node/{others[0]}")

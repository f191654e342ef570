"""A policy's whole status, recomputed from snapshot and plan. Equal worlds give equal status, so nothing is rewritten.

Conditions use the terms of kstatus. Messages are sorted, bounded and free of times, so that they do not flap.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from gpusharing.api.names import ConditionType, Mode, Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.times import to_rfc3339
from gpusharing.planning.drain.force import find_note as find_force_note
from gpusharing.planning.pools.canary import find_note
from gpusharing.planning.pools.hours import ALWAYS, Hours
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.told.counts import count_pending, count_used
from gpusharing.planning.told.upcoming import MAX_LISTED, tell_plan
from gpusharing.planning.wanted.ownership import selects_node
from gpusharing.planning.way.verdict import Verdict
from gpusharing.planning.words.findings import Finding
from gpusharing.planning.words.lengths import MAX_TEXT, cut, some
from gpusharing.planning.words.reasonkinds import Passes
from gpusharing.planning.words.reasons import Reason, priority
from gpusharing.planning.words.values import value

_LEFTOVERS = frozenset({Reason.COMPUTE_MODE, Reason.GPU_MISSING, Reason.MIG_MODE_PENDING})
"""Reasons about the state of a node, not about what its card can do: the policy is still accepted."""
_NOT_HERE = frozenset({Reason.CONFIG_UNKNOWN, Reason.PLUGIN_TOO_OLD, Reason.MIG_MANAGER_TOO_OLD})
_UNSUPPORTED = _NOT_HERE | frozenset(
    reason for reason in Reason if reason.group == "Hardware" and reason not in _LEFTOVERS
)


@value
class Members:
    """The nodes of one policy with their verdicts, without those left alone on purpose (spec.products)."""

    policy: PolicyView
    verdicts: tuple[Verdict, ...]
    nodes: tuple[NodeView, ...]
    skipped: tuple[Verdict, ...]
    lost: tuple[str, ...] = ()
    """Nodes that the policy selects and another policy owns; only filled in when it has no node at all."""
    coming: tuple[str, ...] = ()
    """Nodes of the policy that a change of another policy keeps until it ends."""


def members(policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot) -> Members:
    """Collect what a policy's status is about."""
    mine = [plan.verdicts[name] for name in sorted(plan.pools[policy.name].names)]
    counted = tuple(verdict for verdict in mine if verdict.reason is not Reason.PRODUCT_SKIPPED)
    skipped = tuple(verdict for verdict in mine if verdict.reason is Reason.PRODUCT_SKIPPED)
    nodes = tuple(snapshot.nodes[verdict.node] for verdict in counted)
    coming = plan.coming.get(policy.name, ())
    lost = () if mine or coming else _lost(policy, plan, snapshot)
    return Members(policy, counted, nodes, skipped, lost, coming)


def _lost(policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot) -> tuple[str, ...]:
    if policy.spec is None:
        return ()
    selector, verdicts = policy.spec.node_selector, plan.verdicts
    owned = (name for name in sorted(verdicts) if verdicts[name].policy not in ("", policy.name))
    return tuple(name for name in owned if selects_node(selector, snapshot.nodes[name].labels))


def policy_status(
    policy: PolicyView,
    plan: RolloutPlan,
    snapshot: ClusterSnapshot,
    previous: Mapping[str, Any],
    now: datetime,
) -> dict[str, Any]:
    """The body of `status`, every key present; None removes. `previous` gives the times of unchanged conditions."""
    pool = members(policy, plan, snapshot)
    pooled = plan.pools[policy.name].pooled(now)
    hours, note = (pooled.hours, find_note(pooled)) if pooled is not None else (ALWAYS, "")
    conditions = {
        ConditionType.ACCEPTED: _accepted(pool, plan, snapshot, note),
        ConditionType.READY: _ready(pool, plan),
        ConditionType.RECONCILING: _reconciling(pool, plan),
        ConditionType.STALLED: _stalled(pool, plan),
    }
    return {
        "observedGeneration": policy.generation,
        "summary": _summary(pool, plan, snapshot, hours),
        "plan": tell_plan(policy, pool.verdicts, plan, snapshot, hours),
        "failures": [
            {"node": verdict.node, "reason": str(verdict.reason), "message": cut(verdict.message, MAX_TEXT)}
            for verdict in _failures(pool)
        ][:MAX_LISTED],
        "conditions": [
            condition(kind, answer, policy.generation, previous, now) for kind, answer in conditions.items()
        ],
    }


def bearing(verdict: Verdict, *, ready: bool) -> tuple[bool, ...]:
    """Everything about one node that decides the statuses of the conditions; `ready`: of its Node. Texts need more."""
    return (
        verdict.reason is Reason.PRODUCT_SKIPPED,
        verdict.reason in _UNSUPPORTED,
        verdict.phase is Phase.SYNCED and ready and not verdict.actions,
        verdict.phase is Phase.FAILED,
        verdict.phase.in_flight,
        verdict.reason in _STALLING,
        _moves(verdict),
        _waits(verdict),
        _needs_person(verdict),
    )


# --- conditions --------------------------------------------------------------------------------------------

Answer = tuple[bool, Reason, str]


def condition(
    kind: ConditionType, answer: Answer, generation: int, previous: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """One condition: status, reason and message, with the time since when it has this status."""
    holds, reason, message = answer
    status = "True" if holds else "False"
    rows: list[dict[str, Any]] = list(previous.get("conditions") or ())
    earlier: dict[str, Any] = next((row for row in rows if row.get("type") == str(kind)), {})
    since = earlier.get("lastTransitionTime") if earlier.get("status") == status else None
    return {
        "type": str(kind),
        "status": status,
        "reason": str(reason),
        "message": cut(message, MAX_TEXT),
        "observedGeneration": generation,
        "lastTransitionTime": since or to_rfc3339(now),
    }


def _accepted(pool: Members, plan: RolloutPlan, snapshot: ClusterSnapshot, note: str) -> Answer:
    objection = plan.objections.get(pool.policy.name)
    if objection is not None:
        return False, objection.reason, objection.message
    refused = [verdict for verdict in pool.verdicts if verdict.reason in _UNSUPPORTED]
    if refused and len(refused) == len(pool.verdicts):
        return False, min(refused, key=_urgency).reason, _first(refused)
    if not pool.verdicts and pool.skipped:
        return False, Reason.PRODUCT_SKIPPED, _first(pool.skipped)
    if refused:
        return (
            True,
            Reason.VALID,
            f"{len(refused)} of {len(pool.verdicts)} nodes cannot serve it: {_first(refused)}",
        )
    doubts = [found for found in (_force(pool, snapshot), _doubt(pool, snapshot)) if found is not None]
    told = [_legal(pool), *(found.message for found in doubts), note]
    return True, doubts[0].reason if doubts else Reason.VALID, "; ".join(filter(None, told))


def _force(pool: Members, snapshot: ClusterSnapshot) -> Finding | None:
    """What the policy asks for at the end of a drain although the operator may not do it."""
    spec, settings = pool.policy.spec, snapshot.settings
    if spec is None:
        return None
    return find_force_note(spec.drain, granted=settings.force_delete, namespace=settings.namespace)


def _doubt(pool: Members, snapshot: ClusterSnapshot) -> Finding | None:
    """What is uncertain about the MIG profiles of the pool's cards; irrelevant if nobody wants MIG."""
    if pool.policy.spec is None or pool.policy.spec.mode is not Mode.MIG:
        return None
    return next(
        (gpu.doubt for v in pool.verdicts for gpu in _gpus(v, snapshot) if gpu.doubt is not None), None
    )


def _legal(pool: Members) -> str:
    if not pool.verdicts:
        return "the spec is valid; no node is selected yet"
    layouts = sorted({verdict.wanted for verdict in pool.verdicts if verdict.wanted})
    return f"{', '.join(layouts) or 'the policy'} can be served by {_nodes(len(pool.verdicts))}"


def _ready(pool: Members, plan: RolloutPlan) -> Answer:
    if pool.policy.deleting:
        return False, Reason.DELETING, "the policy is being deleted"
    if pool.policy.resetting:
        return False, Reason.DELETING, _resetting(pool)
    if pool.policy.name in plan.objections:
        return False, Reason.NOT_ACCEPTED, plan.objections[pool.policy.name].message
    if not pool.verdicts and not pool.coming:
        return False, Reason.NO_NODES, _no_nodes(pool)
    done = sum(_is_done(verdict, node) for verdict, node in zip(pool.verdicts, pool.nodes, strict=True))
    if done == len(pool.verdicts):
        if pool.coming:
            return False, Reason.ROLLOUT_IN_PROGRESS, f"{_nodes(done)} proven; {_coming(pool)}"
        return True, Reason.SYNCED, f"{_nodes(done)} proven"
    count = f"{done} of {_nodes(len(pool.verdicts))} proven"
    if (away := _away(pool)) and all(verdict.phase is Phase.SYNCED for verdict in pool.verdicts):
        return False, Reason.NODE_NOT_READY, f"{count} and Ready; {away} is not Ready"
    urgent = _most_urgent(pool)
    reason = urgent.reason if urgent.reason in _UNSUPPORTED else Reason.ROLLOUT_IN_PROGRESS
    return False, reason, f"{count}; {_first([urgent])}"


def _resetting(pool: Members) -> str:
    """The progress of a policy that brings its nodes to whole GPUs before it is deleted."""
    text = "the policy is being deleted, and spec.deletionPolicy is Reset"
    left = [verdict for verdict in pool.verdicts if verdict.phase is not Phase.SYNCED]
    return f"{text}: {_nodes(len(left))} to become whole GPUs first; {_first(left)}" if left else text


def _no_nodes(pool: Members) -> str:
    """Why a policy has no node to work on."""
    if pool.skipped:
        return _first(pool.skipped)
    if pool.lost:
        return (
            f"another policy owns every node that spec.nodeSelector selects: {some(pool.lost, 1)}."
            " Narrow one of the selectors, or give this policy a strictly higher spec.priority"
        )
    return "spec.nodeSelector selects no node with GPUs; label the nodes of the pool"


def _coming(pool: Members) -> str:
    """Which nodes another policy's change keeps."""
    return f"{some(pool.coming, 1)} to come: a change that another policy began has to end first"


def _is_done(verdict: Verdict, node: NodeView) -> bool:
    return verdict.phase is Phase.SYNCED and node.ready and not verdict.actions


def _away(pool: Members) -> str:
    """The first proven node whose kubelet does not say Ready; empty when there is none."""
    pairs = zip(pool.verdicts, pool.nodes, strict=True)
    return next((node.name for v, node in pairs if v.phase is Phase.SYNCED and not node.ready), "")


def _reconciling(pool: Members, plan: RolloutPlan) -> Answer:
    moving = [verdict for verdict in pool.verdicts if _moves(verdict)]
    waiting = [verdict for verdict in pool.verdicts if _waits(verdict)]
    if moving:
        return True, Reason.ROLLOUT_IN_PROGRESS, _phases(moving)
    if waiting:
        urgent = min(waiting, key=_urgency)
        return True, urgent.reason, f"{_nodes(len(waiting))} still to change; {_first([urgent])}"
    ready, why, _ = _ready(pool, plan)
    stalled, stuck, _ = _stalled(pool, plan)
    if pool.coming and not stalled:
        return True, Reason.ROLLOUT_IN_PROGRESS, _coming(pool)
    return False, stuck if stalled and not ready else why, "nothing is under way"


def _moves(verdict: Verdict) -> bool:
    """In flight, or proven and waiting only for a write of ours."""
    if verdict.phase is Phase.SYNCED:
        return bool(verdict.actions)
    return verdict.phase.in_flight and verdict.phase is not Phase.FAILED


def _waits(verdict: Verdict) -> bool:
    """Not begun, and no person has to begin it."""
    if verdict.phase is Phase.BLOCKED:
        return verdict.reason.passes is not Passes.BY_A_PERSON
    return verdict.phase in (Phase.PENDING, Phase.PREFLIGHT)


_STALLING = (Reason.ROLLED_BACK, Reason.DRIFT_RETURNED, Reason.DRAIN_HELD)
"""Reasons on one node that a person has to end, whatever the other nodes do; the first wins."""


def _stalled(pool: Members, plan: RolloutPlan) -> Answer:
    if pool.policy.name in plan.objections:
        objection = plan.objections[pool.policy.name]
        return True, objection.reason, objection.message
    failed = [verdict for verdict in pool.verdicts if verdict.phase is Phase.FAILED]
    if failed:
        return True, Reason.NODES_FAILED, f"{_nodes(len(failed))} failed; {_first(failed)}"
    for reason in _STALLING:
        if found := [verdict for verdict in pool.verdicts if verdict.reason is reason]:
            return True, reason, _first(found)
    stuck = [verdict for verdict in pool.verdicts if _needs_person(verdict)]
    going_on = any(verdict.phase.in_flight or _waits(verdict) for verdict in pool.verdicts)
    if stuck and not going_on and not pool.coming:
        return True, Reason.BLOCKED, f"{_nodes(len(stuck))} blocked; {_first(stuck)}"
    return False, Reason.PROGRESSING, "nothing needs a person"


def _failures(pool: Members) -> list[Verdict]:
    """Of the nodes that failed past the point of no return in this generation: they are held, go back, or went back.

    The verdict of a node that goes back names whatever it waits for now, so its fence says that it goes back.
    """
    return [
        verdict
        for verdict, node in zip(pool.verdicts, pool.nodes, strict=True)
        if verdict.phase is Phase.FAILED
        or verdict.reason in (Reason.ROLLING_BACK, Reason.ROLLED_BACK)
        or (node.fence is not None and node.fence.rolls_back)
    ]


def _needs_person(verdict: Verdict) -> bool:
    return verdict.phase in (Phase.BLOCKED, Phase.SKIPPED) and verdict.reason.passes is Passes.BY_A_PERSON


# --- columns -----------------------------------------------------------------------------------------------


def _summary(pool: Members, plan: RolloutPlan, snapshot: ClusterSnapshot, hours: Hours) -> dict[str, Any]:
    spec = pool.policy.spec
    gpus = [gpu for verdict in pool.verdicts for gpu in _gpus(verdict, snapshot)]
    layouts = Counter(verdict.wanted for verdict in pool.verdicts if verdict.wanted)
    usable = sum(
        _is_done(verdict, node) and not node.unschedulable
        for verdict, node in zip(pool.verdicts, pool.nodes, strict=True)
    )
    word, message = _word(pool, plan)
    return {
        "mode": _mode(spec) if spec else "",
        "layout": cut(", ".join(text for text, _ in layouts.most_common(2)), MAX_TEXT),
        "nodes": f"{usable}/{len(pool.verdicts) + len(pool.coming)}",
        "gpus": len(gpus),
        "used": count_used(pool.nodes, snapshot),
        "pendingPods": count_pending(pool.nodes, spec, plan.targets, snapshot),
        "strategy": spec.mig.strategy if spec and spec.mode is Mode.MIG and spec.mig else "",
        "product": ", ".join(sorted({gpu.product.replace(" ", "-") for gpu in gpus}))[:253],
        "nextWindow": hours.next_window,
        "status": word,
        "message": cut(message, MAX_TEXT),
    }


def _mode(spec: GPUSharingPolicySpec) -> str:
    """The value of the MODE column."""
    return "MIG+TS" if spec.mode is Mode.MIG and spec.time_slicing else str(spec.mode)


def _gpus(verdict: Verdict, snapshot: ClusterSnapshot) -> Sequence[Any]:
    gpunode = snapshot.gpunodes.get(verdict.node)
    return gpunode.observed.gpus if gpunode and gpunode.observed else ()


def _word(pool: Members, plan: RolloutPlan) -> tuple[str, str]:
    """One word and one sentence for the pool: what needs a person first, then what moves."""
    if pool.policy.deleting:
        return "Deleting", "nodes in flight are brought to a safe end first"
    if pool.policy.resetting:
        return "Deleting", _resetting(pool)
    if pool.policy.name in plan.objections:
        objection = plan.objections[pool.policy.name]
        return str(objection.reason), objection.message
    if not pool.verdicts and not pool.coming:
        return str(Reason.NO_NODES), _no_nodes(pool)
    failed = _failures(pool)
    moving = [verdict for verdict in pool.verdicts if verdict.phase.in_flight]
    rest = [v for v in pool.verdicts if v.phase is not Phase.SYNCED]
    if not rest and pool.coming:
        return str(Phase.PENDING), _coming(pool)
    if not rest and (away := _away(pool)):
        return str(Reason.NODE_NOT_READY), f"{away} is proven but not Ready"
    shown = min(failed or moving or rest or pool.verdicts, key=_urgency)
    drifted = {Reason.DRIFTED, Reason.DRIFT_RETURNED, Reason.ROLLED_BACK}
    word = str(shown.reason) if shown.reason in drifted else str(shown.phase)
    if shown.phase in (Phase.PENDING, Phase.SKIPPED) and shown.reason is not Reason.PROGRESSING:
        word = str(shown.reason)
    return (
        word,
        _first([shown]) if shown.phase is not Phase.SYNCED else f"{shown.wanted} proven",
    )


def _most_urgent(pool: Members) -> Verdict:
    open_ones = [verdict for verdict in pool.verdicts if verdict.phase is not Phase.SYNCED]
    return min(open_ones or pool.verdicts, key=_urgency)


def _urgency(verdict: Verdict) -> tuple[tuple[int, int], str]:
    return priority(verdict.reason), verdict.node


# --- text --------------------------------------------------------------------------------------------------


def _phases(verdicts: Iterable[Verdict]) -> str:
    by_phase = Counter(str(verdict.phase) for verdict in verdicts)
    return ", ".join(f"{_nodes(count)} {phase}" for phase, count in sorted(by_phase.items()))


def _first(verdicts: Sequence[Verdict]) -> str:
    shown = min(verdicts, key=_urgency)
    prefix = "" if shown.message.startswith(shown.node) else f"{shown.node}: "
    return f"{prefix}{shown.message}"


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"

"""Computes the whole status of a policy from the snapshot and the plan. Equal inputs give equal statuses, so an
unchanged status is not written again.

Conditions use the terms of kstatus. Messages are sorted, bounded and free of times, so that they do not flap.

Terms: docs/design/glossary.md#gang, docs/design/glossary.md#class.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from gpusharing.api.names import ConditionType, DisruptionClass, Mode, Phase
from gpusharing.api.times import to_rfc3339
from gpusharing.planning.drain.force import find_force_note
from gpusharing.planning.pools.approval import plan_hash
from gpusharing.planning.pools.canary import find_note
from gpusharing.planning.pools.choice import MOST_VAIN
from gpusharing.planning.pools.hours import Hours
from gpusharing.planning.report.counts import count_devices, count_pending, count_used
from gpusharing.planning.report.headline import Headline, find_headline, tell_coming
from gpusharing.planning.report.members import (
    Members,
    is_done,
    is_product_skipped,
    members,
    tell_first,
    urgency,
)
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.looks import Preview
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.transition.guard import of_policy
from gpusharing.planning.transition.members import is_begun
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import explain_blockers
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, counted, cut, some
from gpusharing.planning.vocabulary.reasonkinds import Mark, Passes
from gpusharing.planning.vocabulary.reasons import Reason, most_urgent
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.draobjects import find_doubtful
from gpusharing.planning.wanted.verify import tell_guest_reset

MAX_LISTED = 20
"""The largest number of entries in each list of a status, such as the nodes, pods, budgets and shortages of the plan,
and the failures."""
MAX_GANGS = 10
"""The largest number of gangs that the plan lists."""


def tell_status(
    policy: PolicyView,
    plan: RolloutPlan,
    snapshot: ClusterSnapshot,
    previous: Mapping[str, Any],
    now: datetime,
) -> dict[str, Any]:
    """Return the status of a policy (see `policy_status`). If computing it raises any exception, return `previous`
    with new conditions and the present generation, because the other policies must still get their status. Stalled
    is then True, and Accepted, Ready and Reconciling are False. Their message is that of the plan's objection to
    the policy or, if there is none, names the exception."""
    try:
        return policy_status(policy, plan, snapshot, previous, now)
    except Exception as error:  # noqa: BLE001 - one bad policy must not keep the others from being reported (guard.py)
        objection = plan.objections.get(policy.name) or of_policy(policy.name, error)
    answers = {
        ConditionType.ACCEPTED: (False, objection.reason, objection.message),
        ConditionType.READY: (False, Reason.NOT_ACCEPTED, objection.message),
        ConditionType.RECONCILING: (False, objection.reason, objection.message),
        ConditionType.STALLED: (True, objection.reason, objection.message),
    }
    conditions = [
        _condition(kind, answer, policy.generation, previous, now) for kind, answer in answers.items()
    ]
    return {**previous, "observedGeneration": policy.generation, "conditions": conditions}


def policy_status(
    policy: PolicyView,
    plan: RolloutPlan,
    snapshot: ClusterSnapshot,
    previous: Mapping[str, Any],
    now: datetime,
) -> dict[str, Any]:
    """Return the body of `status`. Every key is present; `plan` is None if there is no plan, which tells the writer to
    remove the key. `previous` is the stored status: conditions whose status is unchanged keep their lastTransitionTime
    from there."""
    pool = members(policy, plan, snapshot)
    own = plan.pools[policy.name]
    note = find_note(own) if policy.spec is not None else ""
    reason, headline = find_headline(pool, plan)
    ready = reason is Reason.SYNCED, reason, headline.ready
    stalled = _first(STALLS, pool, plan) or (False, Reason.PROGRESSING, "no action is needed")
    conditions = {
        ConditionType.ACCEPTED: _accepted(pool, plan, snapshot, note),
        ConditionType.READY: ready,
        ConditionType.RECONCILING: _reconciling(pool, ready, stalled),
        ConditionType.STALLED: stalled,
    }
    return {
        "observedGeneration": policy.generation,
        "revision": policy.version.revision,
        "summary": _summary(pool, plan, snapshot, own.hours, headline),
        "plan": _plan(policy, pool.verdicts, plan, snapshot),
        "failures": [
            {"node": verdict.node, "reason": str(verdict.reason), "message": cut(verdict.message, MAX_TEXT)}
            for verdict in pool.failures
        ][:MAX_LISTED],
        "conditions": [
            _condition(kind, answer, policy.generation, previous, now) for kind, answer in conditions.items()
        ],
    }


def find_grounds(policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot) -> tuple[object, ...]:
    """Return a tuple of everything that decides which of the policy's conditions are True. If the tuple equals that of
    an earlier pass, no condition has changed its status. Computing it is much cheaper than computing the whole
    status."""
    own = [(plan.verdicts[name], snapshot.nodes[name]) for name in plan.pools[policy.name].names]
    kinds = {
        (v.phase, v.reason, bool(v.actions), node.ready, v.stands, is_begun(node)): (v, node)
        for v, node in own
    }
    bearings = {bearing(verdict, node) for verdict, node in kinds.values()}
    vain = plan.memory.vain_passes.get(policy.name, 0)
    of_others = plan.objections.get(policy.name), plan.coming.get(policy.name)
    return policy.uid, policy.generation, policy.going, *of_others, vain >= MOST_VAIN, bearings


def bearing(verdict: Verdict, node: NodeView) -> tuple[bool, ...]:
    """Return every fact about one node that decides which of the policy's conditions are True. The messages of the
    conditions depend on more."""
    return (
        is_product_skipped(verdict, node),
        Mark.UNSUPPORTED in verdict.reason.marks,
        is_done(verdict, node),
        verdict.phase is Phase.FAILED,
        verdict.phase.in_flight,
        Mark.STALLS in verdict.reason.marks,
        _moves(verdict),
        _waits(verdict),
        _needs_person(verdict),
    )


# --- conditions --------------------------------------------------------------------------------------------

Answer = tuple[bool, Reason, str]
"""The status, reason and message of a condition."""


def _condition(
    kind: ConditionType, answer: Answer, generation: int, previous: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """Return the condition `kind` as it is stored, with the status, reason and message of `answer`, the message cut to
    MAX_TEXT characters. Its lastTransitionTime is that in `previous` if its status is the same there, else `now`."""
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


@value
class Circumstance:
    """A state that a pool may be in, and the status of the condition that reports it."""

    find: Callable[[Members, RolloutPlan], Finding | None]
    """Returns the reason and message of the condition, or None if the pool is not in this state."""
    status: bool
    """Whether the condition is True in this state."""


def _first(ladder: Sequence[Circumstance], pool: Members, plan: RolloutPlan) -> Answer | None:
    """Return the status, the reason and the message of a condition, as the first matching row of `ladder` gives them,
    or None if the pool is in none of these states."""
    for row in ladder:
        if (found := row.find(pool, plan)) is not None:
            return row.status, found.reason, found.message
    return None


def _accepted(pool: Members, plan: RolloutPlan, snapshot: ClusterSnapshot, note: str) -> Answer:
    """Return the condition Accepted, from the first of ACCEPTANCES that applies. If none does, the policy is accepted,
    with the reason of the first doubt about the drain or the cards, or else Valid. The message then names the
    layouts, these doubts, the nodes whose MIG mode may stay pending, why DeviceTaintRules are not used, the
    DeviceClasses of somebody else that may select other devices, and `note` (about the canary) if it is not empty."""
    if (answer := _first(ACCEPTANCES, pool, plan)) is not None:
        return answer
    spec, granted, force = pool.policy.spec, snapshot.settings.force_delete, None
    if spec is not None:
        force = find_force_note(spec.drain, granted=granted, namespace=snapshot.settings.namespace)
    doubts = [found for found in (force, _doubt(pool, snapshot)) if found is not None]
    untaintable = snapshot.stack.dra.taints.error if snapshot.stack.by_dra else ""
    taints = f"dra.deviceTaints is on, but nodes are cordoned while they change, because {untaintable}"
    parts = [
        _legal(pool),
        *(found.message for found in doubts),
        _guest(pool, snapshot),
        taints if untaintable else "",
        *_doubtful_classes(pool, plan, snapshot.stack),
        note,
    ]
    return True, doubts[0].reason if doubts else Reason.VALID, "; ".join(filter(None, parts))


def _objected(pool: Members, plan: RolloutPlan) -> Finding | None:
    """Return the objection to the policy, or None if it is accepted. This is checked before the verdicts on single
    nodes, because an objection keeps all nodes from starting."""
    return plan.objections.get(pool.policy.name)


def _unserved(pool: Members, plan: RolloutPlan) -> Finding | None:
    """Return a Finding that says why no node of the pool can serve the policy, with the reason of the most urgent node.
    None if the pool has no nodes, or if at least one of them can. `plan` is ignored."""
    refused = _refused(pool)
    if not refused or len(refused) < len(pool.verdicts):
        return None
    return Finding(min(refused, key=urgency).reason, tell_first(refused))


def _all_skipped(pool: Members, plan: RolloutPlan) -> Finding | None:
    """Return a Finding (ProductSkipped) that spec.products leaves out every node that the policy selects. None if it
    leaves some node in, or if no node is selected. `plan` is ignored."""
    if pool.verdicts or not pool.skipped:
        return None
    return Finding(Reason.PRODUCT_SKIPPED, tell_first(pool.skipped))


def _partly_served(pool: Members, plan: RolloutPlan) -> Finding | None:
    """Return a Finding with the reason Valid that says how many nodes cannot serve the policy, or None if all can.
    Because `_unserved` comes first, some other node can, and the policy is accepted. The message takes the place of any
    doubts. `plan` is ignored."""
    refused = _refused(pool)
    if not refused:
        return None
    message = f"{len(refused)} of {counted(len(pool.verdicts), 'node')} cannot serve the policy: {tell_first(refused)}"
    return Finding(Reason.VALID, message)


def _refused(pool: Members) -> list[Verdict]:
    """Return the verdicts of the nodes that cannot serve the policy as they are, which are those whose reason has the
    mark UNSUPPORTED."""
    return [verdict for verdict in pool.verdicts if Mark.UNSUPPORTED in verdict.reason.marks]


ACCEPTANCES: tuple[Circumstance, ...] = (
    Circumstance(_objected, status=False),
    Circumstance(_unserved, status=False),
    Circumstance(_all_skipped, status=False),
    Circumstance(_partly_served, status=True),
)


def _doubt(pool: Members, snapshot: ClusterSnapshot) -> Finding | None:
    """Return the first doubt about the MIG profiles of a card in the pool. None if there is none, if the policy is not
    in mode MIG, or if its spec cannot be read."""
    if pool.policy.spec is None or pool.policy.spec.mode is not Mode.MIG:
        return None
    return next(
        (gpu.doubt for v in pool.verdicts for gpu in _gpus(v, snapshot) if gpu.doubt is not None), None
    )


def _doubtful_classes(pool: Members, plan: RolloutPlan, stack: StackView) -> Iterator[str]:
    """Yield a clause, with the command that shows the class, for each DeviceClass of somebody else that may not give
    pods the MIG profiles that nodes of the pool will have (`find_doubtful`). Yields nothing if NVIDIA's DRA driver does
    not serve the GPUs."""
    if not stack.by_dra or not stack.dra.classes:
        return
    resources = {name for verdict in pool.verdicts for name in plan.targets.get(verdict.node, ())}
    for name, why in find_doubtful(stack.dra.classes, resources).items():
        yield f"{why} (kubectl get deviceclass {name} -o yaml)"


def _guest(pool: Members, snapshot: ClusterSnapshot) -> str:
    """Return a clause that names the nodes whose change of class Reset may leave a MIG mode pending, because their
    virtual machines may be unable to reset the GPUs. Empty if there are none."""
    nodes = [v.node for v in pool.verdicts if v.disruption is DisruptionClass.RESET]
    reports = {name: snapshot.gpunodes[name].observed for name in nodes if name in snapshot.gpunodes}
    notes = {name: why for name, seen in reports.items() if (why := tell_guest_reset(seen, snapshot.stack))}
    return f"a MIG mode change on {some(sorted(notes))} may stay pending{notes[min(notes)]}" if notes else ""


def _legal(pool: Members) -> str:
    """Return a clause that says how many nodes the pool has and which layouts they can serve, each once and sorted, or
    that the policy selects no node yet."""
    if not pool.verdicts:
        return "the spec is valid; no node is selected yet"
    layouts = sorted({verdict.wanted for verdict in pool.verdicts if verdict.wanted})
    return f"{counted(len(pool.verdicts), 'node')} can serve {', '.join(layouts) or 'the policy'}"


def _reconciling(pool: Members, ready: Answer, stalled: Answer) -> Answer:
    """Return the condition Reconciling. It is True while nodes are changing (`_moves`), or wait for a change that needs
    no person to begin (`_waits`). It is also True while nodes are still in a change that another policy began, unless
    the policy is stalled. The first of these three gives the message and the reason, which for waiting nodes is that of
    the most urgent one and otherwise RolloutInProgress. If it is False, its reason is that of Stalled if the policy is
    stalled and not Ready, else that of Ready."""
    moving = [verdict for verdict in pool.verdicts if _moves(verdict)]
    waiting = [verdict for verdict in pool.verdicts if _waits(verdict)]
    if moving:
        # Such as `2 nodes are Draining, 1 node is Verifying`.
        rows = sorted(Counter(str(verdict.phase) for verdict in moving).items())
        phases = (f"{counted(count, 'node is', 'nodes are')} {phase}" for phase, count in rows)
        return True, Reason.ROLLOUT_IN_PROGRESS, ", ".join(phases)
    if waiting:
        urgent, nodes = min(waiting, key=urgency), counted(len(waiting), "node has", "nodes have")
        return True, urgent.reason, f"{nodes} yet to change; {tell_first([urgent])}"
    is_ready, why, _ = ready
    is_stalled, stuck, _ = stalled
    if pool.coming and not is_stalled:
        return True, Reason.ROLLOUT_IN_PROGRESS, tell_coming(pool)
    return False, stuck if is_stalled and not is_ready else why, "no change is in progress"


def _moves(verdict: Verdict) -> bool:
    """Whether our change of the node has begun and is neither over nor failed (one that is being aborted counts), or
    the node is Synced with a write of ours still to be made."""
    if verdict.phase is Phase.SYNCED:
        return bool(verdict.actions)
    return verdict.phase.in_flight and verdict.phase is not Phase.FAILED


def _waits(verdict: Verdict) -> bool:
    """Whether the change of the node has not begun but will begin without the help of a person: the node is Pending or
    in Preflight, or is Blocked for a reason that ends by itself. False if its verdict has `stands`."""
    if verdict.stands:
        return False
    if verdict.phase is Phase.BLOCKED:
        return verdict.reason.passes is not Passes.BY_A_PERSON
    return verdict.phase in (Phase.PENDING, Phase.PREFLIGHT)


def _failed(pool: Members, plan: RolloutPlan) -> Finding | None:
    """Return a Finding (NodesFailed) with the number of nodes in phase Failed and the message of the most urgent one,
    or None if no node is in that phase. `plan` is ignored."""
    failed = [verdict for verdict in pool.verdicts if verdict.phase is Phase.FAILED]
    if not failed:
        return None
    return Finding(Reason.NODES_FAILED, f"{counted(len(failed), 'node')} failed; {tell_first(failed)}")


def _left_to_a_person(pool: Members, plan: RolloutPlan) -> Finding | None:
    """Return a Finding about the nodes whose reason stalls the policy even while other nodes go on (`Mark.STALLS`). It
    has the most urgent such reason and the message of a node with that reason. None if there are no such nodes. `plan`
    is ignored."""
    stalling = [verdict for verdict in pool.verdicts if Mark.STALLS in verdict.reason.marks]
    if not stalling:
        return None
    reason = most_urgent(verdict.reason for verdict in stalling)
    return Finding(reason, tell_first([verdict for verdict in stalling if verdict.reason is reason]))


def _stuck(pool: Members, plan: RolloutPlan) -> Finding | None:
    """Return a Finding with the reason Blocked about the nodes whose change only a person can make begin
    (`_needs_person`). None if there are none. Such nodes come last in a rollout, so the result is also None as long as
    the others go on: a node of the pool is in flight, even Failed, or waits without needing a person, or another node
    is about to join the pool. `plan` is ignored."""
    stuck = [verdict for verdict in pool.verdicts if _needs_person(verdict)]
    going_on = any(verdict.phase.in_flight or _waits(verdict) for verdict in pool.verdicts)
    if not stuck or going_on or pool.coming:
        return None
    return Finding(
        Reason.BLOCKED, f"{counted(len(stuck), 'node is', 'nodes are')} blocked; {tell_first(stuck)}"
    )


def _in_vain(pool: Members, plan: RolloutPlan) -> Finding | None:
    """Return a Finding with the reason NoProgress if the planner made no progress for MOST_VAIN passes in a row, else
    None.

    Only a bug in this operator can cause that, so the message asks the reader to report it.
    """
    if plan.memory.vain_passes.get(pool.policy.name, 0) < MOST_VAIN:
        return None
    fact = (
        f"for {MOST_VAIN} passes in a row the planner listed the pods on nodes that could start a change, but did not"
        " start a change on any of them"
    )
    return Finding(Reason.NO_PROGRESS, f"{fact}. This is a bug in this operator; please report it")


def _unapproved(pool: Members, plan: RolloutPlan) -> Finding | None:
    """Return a Finding with the reason Progressing that the rollout waits for a person to approve the plan, or None if
    no node waits for that (ApprovalNeeded). Waiting for approval does not stall the policy. `plan` is ignored."""
    if all(verdict.reason is not Reason.APPROVAL_NEEDED for verdict in pool.verdicts):
        return None
    command = f"kubectl gpusharing approve {pool.policy.name}"
    return Finding(Reason.PROGRESSING, f"the rollout is waiting for someone to approve the plan: {command}")


STALLS: tuple[Circumstance, ...] = (
    Circumstance(_objected, status=True),
    Circumstance(_failed, status=True),
    Circumstance(_left_to_a_person, status=True),
    Circumstance(_stuck, status=True),
    Circumstance(_in_vain, status=True),
    Circumstance(_unapproved, status=False),
)


def _needs_person(verdict: Verdict) -> bool:
    """Whether only a person can make the change of the node begin: its verdict has `stands`, or it is Blocked or
    Skipped for a reason that ends only when a person acts. False for a Failed node, whose change has begun, unless
    its verdict has `stands`."""
    return verdict.stands or (
        verdict.phase in (Phase.BLOCKED, Phase.SKIPPED) and verdict.reason.passes is Passes.BY_A_PERSON
    )


# --- columns -----------------------------------------------------------------------------------------------


def _summary(
    pool: Members, plan: RolloutPlan, snapshot: ClusterSnapshot, hours: Hours, headline: Headline
) -> dict[str, Any]:
    """Return `status.summary`, whose values kubectl shows in the columns of a policy. Among them are the GPU products,
    each once and sorted (at most 253 characters), the two most common layouts, the present ones if no node has a
    target, and `nodes`: how many are done and not cordoned, out of all. Nodes that are still in another policy's change
    are among these, but their GPUs and devices are not counted."""
    spec = pool.policy.spec
    mode = str(spec.mode) if spec is not None else ""
    if spec is not None and spec.mode is Mode.MIG and spec.time_slicing:
        mode = "MIG+TS"
    gpus = [gpu for verdict in pool.verdicts for gpu in _gpus(verdict, snapshot)]
    layouts = Counter(one.wanted for one in pool.verdicts if one.wanted)
    # A policy that is not accepted has no target, so only the present layout of the GPUs can be shown.
    layouts = layouts or Counter(one.observed for one in pool.verdicts if one.observed)
    usable = sum(
        is_done(verdict, node) and not node.unschedulable
        for verdict, node in zip(pool.verdicts, pool.nodes, strict=True)
    )
    return {
        "mode": mode,
        "layout": cut(", ".join(text for text, _ in layouts.most_common(2)), MAX_TEXT),
        "nodes": f"{usable}/{len(pool.verdicts) + len(pool.coming)}",
        "gpus": len(gpus),
        "used": count_used(pool.nodes, snapshot),
        "pendingPods": count_pending(pool.nodes, spec, plan.targets, snapshot),
        "strategy": spec.mig.strategy if spec and spec.mode is Mode.MIG and spec.mig else "",
        "product": ", ".join(sorted({gpu.product.replace(" ", "-") for gpu in gpus}))[:253],
        "nextWindow": hours.next_window,
        "status": headline.word,
        "message": cut(headline.message, MAX_TEXT),
    }


def _gpus(verdict: Verdict, snapshot: ClusterSnapshot) -> Sequence[Any]:
    """Return the GPUs in the last report of the node's agent. Empty if there is no report."""
    gpunode = snapshot.gpunodes.get(verdict.node)
    return gpunode.observed.gpus if gpunode and gpunode.observed else ()


# --- the plan --------------------------------------------------------------------------------------------


def _plan(
    policy: PolicyView,
    verdicts: Sequence[Verdict],
    plan: RolloutPlan,
    snapshot: ClusterSnapshot,
) -> dict[str, Any] | None:
    """Return `status.plan`, or None if no node changes. A node changes if it is not Synced and the class of its change
    is not None; blocked and skipped nodes that differ from their target count too. The plan has its hash, these nodes
    (all counted, the first MAX_LISTED named), the worst class of disruption, the pods, budgets and gangs concerned, the
    shortages, the next windows, and the devices of the whole pool before and after. Devices and shortages are sorted by
    resource name; a shortage is listed only if pods would wait for devices that the pool loses."""
    changing = [
        verdict
        for verdict in verdicts
        if verdict.disruption is not DisruptionClass.NONE and verdict.phase is not Phase.SYNCED
    ]
    if not changing:
        return None
    before, after = count_devices((snapshot.nodes[verdict.node] for verdict in verdicts), plan.targets)
    lost = [name for name in sorted(before) if after[name] < before[name]]
    demands = {name: plan.afterwards.find_demand(name) for name in lost}
    worst = max((verdict.disruption for verdict in changing), key=lambda disruption: disruption.severity)
    nodes, previews = [verdict.node for verdict in changing], plan.memory.previews
    return {
        "hash": plan_hash(policy, plan.pools[policy.name].members),
        "disruption": str(worst),
        "nodes": nodes[:MAX_LISTED],
        "nodeCount": len(nodes),
        "pods": sum(_pods_on(verdict, snapshot) for verdict in changing),
        **_disturbed([previews[name] for name in nodes if name in previews]),
        "shortages": [f"{name}: {demand.text}" for name, demand in demands.items() if demand.waiting][
            :MAX_LISTED
        ],
        "windows": plan.pools[policy.name].hours.listed,
        "capacityBefore": dict(sorted(before.items())),
        "capacityAfter": dict(sorted(after.items())),
    }


def _disturbed(previews: Sequence[Preview]) -> dict[str, list[str]]:
    """Return the keys podNames, budgets, gangs and blockers of `status.plan`, merged from all previews. All four are
    present, bounded and without duplicates. The first three are sorted; the blockers are the lines of
    `explain_blockers`. Equal previews give an equal status."""
    pods = sorted({name for one in previews for name in one.pods})
    budgets = sorted({name for one in previews for name in one.budgets})
    gangs = sorted({text for one in previews for text in one.gangs})
    lines = explain_blockers(blocker for one in previews for blocker in one.blockers)
    return {
        "podNames": pods[:MAX_LISTED],
        "budgets": budgets[:MAX_LISTED],
        "gangs": [cut(text, MAX_TEXT) for text in gangs[:MAX_GANGS]],
        "blockers": [cut(line, MAX_TEXT) for line in lines],
    }


def _pods_on(verdict: Verdict, snapshot: ClusterSnapshot) -> int:
    """Return the number of GPU pods on the node: those of the verdict or, if that has none, those that the agent
    reports. 0 if neither is known."""
    gpunode = snapshot.gpunodes.get(verdict.node)
    return verdict.pods or (gpunode.observed.pods if gpunode and gpunode.observed else None) or 0

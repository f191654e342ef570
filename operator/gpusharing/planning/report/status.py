"""What does the status of a policy say: conditions, counts, and the headline?

The condition Ready and the columns STATUS and MESSAGE show the same headline, each in its own words.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from gpusharing.api.names import ConditionType, DisruptionClass, Mode, Phase
from gpusharing.planning.drain.plan import find_force_note
from gpusharing.planning.pools.afterwards import find_obstacle
from gpusharing.planning.pools.choice import MOST_VAIN
from gpusharing.planning.pools.holds import find_halt, find_note, propose
from gpusharing.planning.report.counts import count_devices, count_pending, count_used
from gpusharing.planning.report.transition import condition
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.memory import COMMON, CallFailure, policy_subject
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.transition.cases import RETRIED, is_begun, of_policy
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import explain_blockers
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, counted, cut, some
from gpusharing.planning.vocabulary.reasons import Mark, Passes, Reason, most_urgent
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.objects import find_doubtful
from gpusharing.planning.wanted.ownership import selects_node
from gpusharing.planning.wanted.verify import tell_guest_reset


@value
class Members:
    """The nodes of one policy with their verdicts, sorted by name, without those in `skipped`."""

    policy: PolicyView
    verdicts: tuple[Verdict, ...]
    nodes: tuple[NodeView, ...]
    """The Nodes, in the order of `verdicts`."""
    skipped: tuple[Verdict, ...]
    lost: tuple[str, ...]
    """Nodes that the policy selects but another policy owns. Only filled in if the policy has no nodes of its own."""
    coming: tuple[str, ...]
    """Nodes that the policy owns but that are still in a change which another policy began."""
    failures: tuple[Verdict, ...]
    """The verdicts of the nodes that are Failed, are being rolled back, or were rolled back."""


def members(policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot) -> Members:
    """Return the nodes of a policy. The plan must have been made from this snapshot, with this policy."""
    rows = [(plan.verdicts[name], snapshot.nodes[name]) for name in sorted(plan.pools[policy.name].names)]
    pairs = [(verdict, node) for verdict, node in rows if not is_product_skipped(verdict, node)]
    coming = plan.coming.get(policy.name, ())
    lost: tuple[str, ...] = ()
    if not rows and not coming and policy.spec is not None:
        selector, others = policy.spec.node_selector, sorted(plan.verdicts.items())
        owned = (name for name, verdict in others if verdict.policy not in ("", policy.name))
        lost = tuple(name for name in owned if selects_node(selector, snapshot.nodes[name].labels))
    return Members(
        policy,
        tuple(verdict for verdict, _ in pairs),
        tuple(node for _, node in pairs),
        skipped=tuple(verdict for verdict, node in rows if is_product_skipped(verdict, node)),
        lost=lost,
        coming=coming,
        failures=tuple(
            verdict
            for verdict, node in pairs
            if verdict.phase is Phase.FAILED
            or verdict.reason in (Reason.ROLLING_BACK, Reason.ROLLED_BACK)
            # The reason of a node that is being rolled back may name whatever it waits for.
            or (node.fence is not None and node.fence.rolls_back)
        ),
    )


def is_product_skipped(verdict: Verdict, node: NodeView) -> bool:
    return verdict.reason is Reason.PRODUCT_SKIPPED and not is_begun(node)


def is_done(verdict: Verdict, node: NodeView) -> bool:
    return verdict.phase is Phase.SYNCED and node.ready and not verdict.actions


def urgency(verdict: Verdict) -> tuple[tuple[int, int], str]:
    """Return a sort key that puts in front the verdict that a person should read first."""
    return verdict.reason.urgency, verdict.node


def tell_first(verdicts: Sequence[Verdict]) -> str:
    """Return the message of the most urgent verdict, after the name of its node. Raises ValueError without verdicts."""
    shown = min(verdicts, key=urgency)
    prefix = "" if shown.message.startswith(shown.node) else f"{shown.node}: "
    return f"{prefix}{shown.message}"


Answer = tuple[bool, Reason, str]
"""The status, reason and message of a condition."""
Headline = tuple[Answer, str, str]
"""The state of one pool: the condition Ready, and the values of the columns STATUS and MESSAGE."""


def find_headline(pool: Members, plan: RolloutPlan) -> Headline:
    """Return the headline of the pool. States that a person has to end come before those that only take time."""
    policy, left = pool.policy, [verdict for verdict in pool.verdicts if verdict.phase is not Phase.SYNCED]
    if policy.deleting:
        message = "changes in flight are first finished or rolled back"
        if stalling := _stalling(left):
            message = f"{message}; {tell_first(stalling)}"
        return (False, Reason.DELETING, "the policy is being deleted"), "Deleting", message
    if policy.resetting:
        text = "the policy is being deleted, and spec.deletionPolicy is Reset"
        if left:
            nodes = counted(len(left), "node has", "nodes have")
            text = f"{text}: {nodes} yet to be returned to whole GPUs; {tell_first(left)}"
        return (False, Reason.DELETING, text), "Deleting", text
    if (objection := plan.objections.get(policy.name)) is not None:
        text = objection.message
        return (False, Reason.NOT_ACCEPTED, text), str(objection.reason), text
    if not pool.verdicts and not pool.coming:
        text = "spec.nodeSelector matches no node with GPUs; label the nodes of the pool"
        if pool.skipped:
            text = tell_first(pool.skipped)
        elif pool.lost:
            owned = f"another policy owns every node that spec.nodeSelector selects: {some(pool.lost, 1)}"
            text = f"{owned}. Narrow one of the selectors, or give this policy a strictly higher spec.priority"
        return (False, Reason.NO_NODES, text), str(Reason.NO_NODES), text
    done, total = sum(map(is_done, pool.verdicts, pool.nodes)), len(pool.verdicts)
    progress = f"{done} of {counted(total, 'node')} {'is' if done == 1 else 'are'} proven"
    proven = f"{counted(done, 'node is', 'nodes are')} proven"
    if not left and (away := next((node.name for node in pool.nodes if not node.ready), "")):
        ready = False, Reason.NODE_NOT_READY, f"{progress} and Ready; {away} is not Ready"
        return ready, str(Reason.NODE_NOT_READY), f"{away} is proven but not Ready"
    if not left and pool.coming:
        coming = tell_coming(pool)
        return (False, Reason.ROLLOUT_IN_PROGRESS, f"{proven}; {coming}"), str(Phase.PENDING), coming
    moving = [verdict for verdict in pool.verdicts if verdict.phase.in_flight]
    shown = min(pool.failures or moving or left or pool.verdicts, key=urgency)
    waits = shown.phase in (Phase.PENDING, Phase.SKIPPED) and shown.reason is not Reason.PROGRESSING
    word = str(shown.reason if waits or Mark.STATUS in shown.reason.marks else shown.phase)
    message = tell_first([shown]) if shown.phase is not Phase.SYNCED else f"{shown.wanted} proven"
    if done == total:
        return (True, Reason.SYNCED, proven), word, message
    urgent = min(left or pool.verdicts, key=urgency)
    reason = urgent.reason if Mark.UNSUPPORTED in urgent.reason.marks else Reason.ROLLOUT_IN_PROGRESS
    return (False, reason, f"{progress}; {tell_first([urgent])}"), word, message


def tell_coming(pool: Members) -> str:
    return f"waiting for {some(pool.coming, 1)}: a change that another policy began there must end first"


MAX_LISTED = 20
"""The most entries in each list of a status, such as nodes, pods, budgets, shortages and failures."""
MAX_GANGS = 10


def tell_status(
    policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot, previous: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """Return the status of a policy, or `previous` with conditions that say that it cannot be computed."""
    try:
        return policy_status(policy, plan, snapshot, previous, now)
    except Exception as error:  # noqa: BLE001 - one bad policy must not keep the others from being reported
        objection = plan.objections.get(policy.name) or of_policy(policy.name, error)
    answers = {
        ConditionType.ACCEPTED: (False, objection.reason, objection.message),
        ConditionType.READY: (False, Reason.NOT_ACCEPTED, objection.message),
        ConditionType.RECONCILING: (False, objection.reason, objection.message),
        ConditionType.STALLED: (True, objection.reason, objection.message),
    }
    return {
        **previous,
        "observedGeneration": policy.generation,
        "conditions": _conditions(policy, answers, previous, now),
    }


def policy_status(
    policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot, previous: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """Return the body of `status`.

    Every key is present; a `plan` of None tells the writer to remove the key. Equal inputs give equal statuses:
    messages are sorted, bounded and free of times, so that an unchanged status is not written again. Conditions use the
    terms of kstatus.
    """
    pool = members(policy, plan, snapshot)
    halt = find_halt(plan.pools[policy.name]) if policy.spec is not None else None
    ready, word, message = find_headline(pool, plan)
    stalled = _stalled(pool, plan, snapshot)
    answers = {
        ConditionType.ACCEPTED: _accepted(pool, plan, snapshot),
        ConditionType.READY: ready,
        ConditionType.RECONCILING: _reconciling(pool, ready, stalled),
        ConditionType.STALLED: stalled,
    }
    return {
        "observedGeneration": policy.generation,
        "revision": policy.version.revision,
        "halt": halt[0] if halt is not None and halt[0] != policy.resumed else "",
        "summary": {**_summary(pool, plan, snapshot), "status": word, "message": cut(message, MAX_TEXT)},
        "plan": _plan(policy, pool.verdicts, plan, snapshot),
        "failures": [
            {"node": verdict.node, "reason": str(verdict.reason), "message": cut(verdict.message, MAX_TEXT)}
            for verdict in pool.failures
        ][:MAX_LISTED],
        "conditions": _conditions(policy, answers, previous, now),
    }


def find_grounds(policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot) -> tuple[object, ...]:
    """Return everything that decides which of the policy's conditions are True, much cheaper than the whole status."""
    own = [(plan.verdicts[name], snapshot.nodes[name]) for name in plan.pools[policy.name].names]
    kinds = {
        (v.phase, v.reason, bool(v.actions), node.ready, needs_person(v), v.stands, is_begun(node)): (v, node)
        for v, node in own
    }
    bearings = {bearing(verdict, node) for verdict, node in kinds.values()}
    vain = plan.memory.vain_passes.get(policy.name, 0)
    of_others = plan.objections.get(policy.name), plan.coming.get(policy.name)
    failure = _find_failure(policy, snapshot)
    fails = failure is not None, failure is not None and (failure.refused or failure.stuck)
    return policy.uid, policy.generation, policy.going, *of_others, vain >= MOST_VAIN, fails, bearings


def bearing(verdict: Verdict, node: NodeView) -> tuple[bool, ...]:
    return (
        is_product_skipped(verdict, node),
        Mark.UNSUPPORTED in verdict.reason.marks,
        is_done(verdict, node),
        verdict.phase is Phase.FAILED,
        verdict.phase.in_flight,
        Mark.STALLS in verdict.reason.marks,
        _moves(verdict),
        _waits(verdict),
        needs_person(verdict),
        verdict.reason in _BY_OTHERS,
    )


# --- conditions --------------------------------------------------------------------------------------------


def _conditions(
    policy: PolicyView, answers: Mapping[ConditionType, Answer], previous: Mapping[str, Any], now: datetime
) -> list[dict[str, Any]]:
    earlier, generation = previous.get("conditions") or (), policy.generation
    return [
        {**condition(str(kind), *answer, previous=earlier, now=now), "observedGeneration": generation}
        for kind, answer in answers.items()
    ]


def _accepted(pool: Members, plan: RolloutPlan, snapshot: ClusterSnapshot) -> Answer:
    total, spec, stack = len(pool.verdicts), pool.policy.spec, snapshot.stack
    if (objection := plan.objections.get(pool.policy.name)) is not None:
        return False, objection.reason, objection.message
    refused = [verdict for verdict in pool.verdicts if Mark.UNSUPPORTED in verdict.reason.marks]
    if refused and len(refused) == total:
        return False, min(refused, key=urgency).reason, tell_first(refused)
    if pool.skipped and not total:
        return False, Reason.PRODUCT_SKIPPED, tell_first(pool.skipped)
    if refused:
        message = f"{len(refused)} of {counted(total, 'node')} cannot serve the policy: {tell_first(refused)}"
        return True, Reason.VALID, message
    layouts = ", ".join(sorted({verdict.wanted for verdict in pool.verdicts if verdict.wanted}))
    legal = f"{counted(total, 'node')} can serve {layouts or 'the policy'}"
    force = doubt = None
    note = ""
    if spec is not None:
        granted, namespace = snapshot.settings.force_delete, snapshot.settings.namespace
        force = find_force_note(spec.drain, granted=granted, namespace=namespace)
        note = find_note(plan.pools[pool.policy.name])
    if spec is not None and spec.mode is Mode.MIG:
        reports = (snapshot.observed(verdict.node) for verdict in pool.verdicts)
        gpus = (gpu for seen in reports if seen for gpu in seen.gpus)
        doubt = next((gpu.doubt for gpu in gpus if gpu.doubt is not None), None)
    resets = (verdict for verdict in pool.verdicts if verdict.disruption is DisruptionClass.RESET)
    guests = {one.node: why for one in resets if (why := tell_guest_reset(snapshot.observed(one.node), stack))}
    pending = f"a MIG mode change on {some(sorted(guests))} may stay pending"
    doubts = [found for found in (force, doubt) if found is not None]
    untaintable = stack.dra.taint_error if stack.by_dra else ""
    taints = f"dra.deviceTaints is on, but nodes are cordoned while they change, because {untaintable}"
    resources = {name for verdict in pool.verdicts for name in plan.targets.get(verdict.node, ())}
    classes = find_doubtful(stack.dra.classes, resources) if stack.by_dra and stack.dra.classes else {}
    parts = [
        legal if total else f"the spec is valid; {_tell_none(pool.policy)}",
        *(found.message for found in doubts),
        f"{pending}{guests[min(guests)]}" if guests else "",
        taints if untaintable else "",
        *(f"{why} (kubectl get deviceclass {name} -o yaml)" for name, why in classes.items()),
        note,
        f"{pool.policy.pause}, so no node starts a change" if pool.policy.pause else "",
    ]
    return True, doubts[0].reason if doubts else Reason.VALID, "; ".join(filter(None, parts))


def _tell_none(policy: PolicyView) -> str:
    return "the policy is being deleted and selects no node any more" if policy.deleting else "no node is selected yet"


def _reconciling(pool: Members, ready: Answer, stalled: Answer) -> Answer:
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
    if verdict.phase is Phase.SYNCED:
        return bool(verdict.actions)
    return verdict.phase.in_flight and verdict.phase is not Phase.FAILED and not verdict.stands


def _waits(verdict: Verdict) -> bool:
    if verdict.stands:
        return False
    if verdict.phase is Phase.BLOCKED:
        return verdict.reason.passes is not Passes.BY_A_PERSON
    return verdict.phase in (Phase.PENDING, Phase.PREFLIGHT)


def _stalled(pool: Members, plan: RolloutPlan, snapshot: ClusterSnapshot) -> Answer:
    verdicts = pool.verdicts
    if (objection := plan.objections.get(pool.policy.name)) is not None:
        return True, objection.reason, objection.message
    if failed := [verdict for verdict in verdicts if verdict.phase is Phase.FAILED]:
        return True, Reason.NODES_FAILED, f"{counted(len(failed), 'node')} failed; {tell_first(failed)}"
    if stalling := _stalling(verdicts):
        reason = most_urgent(verdict.reason for verdict in stalling)
        return True, reason, tell_first([verdict for verdict in stalling if verdict.reason is reason])
    if plan.memory.vain_passes.get(pool.policy.name, 0) >= MOST_VAIN:
        message = (
            f"for {MOST_VAIN} passes in a row the planner listed the pods on nodes that could start a change, but did"
            " not start a change on any of them. This is a bug in this operator; please report it"
        )
        return True, Reason.NO_PROGRESS, message
    goes_on = pool.coming or any(_moves(verdict) or _waits(verdict) for verdict in verdicts)
    stuck = [one for one in verdicts if needs_person(one) and not (goes_on and one.reason in _BY_OTHERS)]
    if stuck:
        nodes = counted(len(stuck), "node is", "nodes are")
        return True, Reason.BLOCKED, f"{nodes} blocked; {tell_first(stuck)}"
    if (failure := _find_failure(pool.policy, snapshot)) is not None:
        message = f"{failure.message}{RETRIED}"
        return failure.refused or failure.stuck, Reason.CALL_FAILED, message
    message = "no action is needed"
    if any(verdict.reason is Reason.APPROVAL_NEEDED for verdict in verdicts):
        command = f"kubectl gpusharing approve {pool.policy.name}"
        message = f"the rollout is waiting for someone to approve the plan: {command}"
    return False, Reason.PROGRESSING, message


def _find_failure(policy: PolicyView, snapshot: ClusterSnapshot) -> CallFailure | None:
    """Return the worst lasting failure of a call about the policy itself, or about what all policies need."""
    subjects = (policy_subject(policy.name), *COMMON)
    lasting = [one for name in subjects if (one := snapshot.call_failures.get(name)) is not None and one.lasts]
    return max(lasting, key=lambda one: one.refused or one.stuck, default=None)


def _stalling(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if Mark.STALLS in verdict.reason.marks]


_BY_OTHERS = frozenset(
    {Reason.FOREIGN_MAINTENANCE, Reason.ALREADY_CORDONED, Reason.AGENT_NOT_READY, Reason.ACTUATOR_MISSING}
)
"""Whoever maintains a node, and a pod that restarts, mostly end these. They stall a pool in which nothing else goes on."""


_IN_A_DRAIN = frozenset({Reason.TERMINATING_STUCK, Reason.FORBIDDEN})
"""Of the blockers by which a drain that has begun may hang, those that neither another program nor a deletion by force
ends. Its end comes without a person, but not its success."""


def needs_person(verdict: Verdict) -> bool:
    """Return whether only a person can end what keeps the node from its change."""
    if verdict.reason is Reason.STRANDED_PODS and verdict.deadline is not None:
        return False  # such as until the window of another policy opens
    if verdict.stands or any(one.reason in _IN_A_DRAIN for one in verdict.blockers if verdict.phase.in_flight):
        return True
    return verdict.phase in (Phase.BLOCKED, Phase.SKIPPED) and verdict.reason.passes is Passes.BY_A_PERSON


# --- columns and plan --------------------------------------------------------------------------------------


def _summary(pool: Members, plan: RolloutPlan, snapshot: ClusterSnapshot) -> dict[str, Any]:
    spec = pool.policy.spec
    mode = str(spec.mode) if spec is not None else ""
    if spec is not None and spec.mode is Mode.MIG and spec.time_slicing:
        mode = "MIG+TS"
    reports = (snapshot.observed(verdict.node) for verdict in pool.verdicts)
    gpus = [gpu for seen in reports if seen for gpu in seen.gpus]
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
        "product": ", ".join(sorted({gpu.product.replace(" ", "-") for gpu in gpus}))[:253],
        "nextWindow": plan.pools[pool.policy.name].hours.next_window,
        "pausedBy": cut(pool.policy.pause, MAX_TEXT),
    }


def _plan(
    policy: PolicyView, verdicts: Sequence[Verdict], plan: RolloutPlan, snapshot: ClusterSnapshot
) -> dict[str, Any] | None:
    changing = [
        verdict
        for verdict in verdicts
        if verdict.disruption is not DisruptionClass.NONE and verdict.phase is not Phase.SYNCED
    ]
    if not changing:
        return None
    pool, nodes, previews = plan.pools[policy.name], [verdict.node for verdict in changing], plan.memory.previews
    in_all = count_devices((snapshot.nodes[verdict.node] for verdict in verdicts), plan.targets)
    lost = [name for name, count in sorted(in_all[0].items()) if in_all[1][name] < count]
    demands = {name: plan.afterwards.once(policy.name).find_demand(name) for name in lost}
    shortages = [f"{name}: {demand.text}" for name, demand in demands.items() if demand.waiting]
    worst = max((verdict.disruption for verdict in changing), key=lambda disruption: disruption.severity)
    candidates = {case.node.name for case in pool.candidates}
    obstacles = {
        one.node: find_obstacle(one, previews.get(one.node), snapshot.nodes[one.node], candidate=one.node in candidates)
        for one in verdicts
    }
    targets = {name: target for name, target in plan.targets.items() if obstacles.get(name) is None}
    before, after = count_devices((snapshot.nodes[verdict.node] for verdict in verdicts), targets)
    disturbed = [previews[name] for name in nodes if name in previews]
    blockers = explain_blockers(blocker for one in disturbed for blocker in one.blockers)
    gangs = sorted({text for one in disturbed for text in one.gangs})
    return {
        "hash": propose(pool).hash,
        "disruption": str(worst),
        "nodes": nodes[:MAX_LISTED],
        "nodeCount": len(nodes),
        "pods": _count_pods(changing, snapshot),
        "podNames": sorted({name for one in disturbed for name in one.pods})[:MAX_LISTED],
        "budgets": sorted({name for one in disturbed for name in one.budgets})[:MAX_LISTED],
        "gangs": [cut(text, MAX_TEXT) for text in gangs[:MAX_GANGS]],
        "blockers": [cut(line, MAX_TEXT) for line in blockers],
        "shortages": shortages[:MAX_LISTED],
        "windows": pool.hours.listed,
        "capacityBefore": dict(sorted(before.items())),
        "capacityAfter": dict(sorted(after.items())),
    }


def _count_pods(changing: Sequence[Verdict], snapshot: ClusterSnapshot) -> int | None:
    total = 0
    for verdict in changing:
        seen = snapshot.observed(verdict.node)
        pods = verdict.pods or (seen.pods if seen is not None else None)
        if pods is None and verdict.phase.part != "changing":
            return None
        total += pods or 0
    return total

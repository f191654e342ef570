"""What is written for all nodes together: configuration, finalizers, claims, and the end of a reset?"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    LabelNode,
    SetClaims,
    SetFinalizer,
    WriteClasses,
    WriteConfig,
)
from gpusharing.planning.snapshot.records import Claim, Consent, FailedNode, Fence
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.stack.mps import plan_repair
from gpusharing.planning.stack.pointers import plan_pointers
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators import Actuator, find_actuator
from gpusharing.planning.wanted.objects import plan_rules

CLOCKS = timedelta(seconds=1.5)
"""How far the clocks of two processes may differ. Each was set from a Date header with whole seconds (kube.clock)."""


def share(
    snapshot: ClusterSnapshot,
    config: WriteConfig | None,
    unfenced: Mapping[str, Claim],
    pools: Mapping[str, Pool],
    verdicts: Mapping[str, Verdict],
    *,
    failed_nodes: Mapping[str, FailedNode],
    consents: Mapping[str, Consent],
    classes: WriteClasses | None,
) -> tuple[Action, ...]:
    """Return the writes that concern all nodes, in the order in which they must be made."""
    actions: list[Action] = [] if config is None else [config]
    nodes, fences = snapshot.nodes, snapshot.fences
    claims = {
        name: _claim(nodes[name].uid, fence, verdicts.get(name), snapshot.claims.get(name), pools.get(fence.policy))
        for name, fence in fences.items()
    }
    claims |= unfenced
    actions += plan_finalizers(pools, claims.values(), [nodes[name] for name in fences], verdicts)
    recorded = (dict(snapshot.claims), dict(snapshot.failed_nodes), dict(snapshot.consents))
    if (claims, failed_nodes, consents) != recorded:
        actions.append(SetClaims(claims, failed_nodes, consents))
    # A change that has Failed waits for the pointers itself, if the GPU Operator was installed anew meanwhile.
    find_work = find_actuator(snapshot.stack).find_work
    failed = {name for name, one in verdicts.items() if one.phase is Phase.FAILED and not find_work(nodes[name])}
    quiet = config is None and claims.keys() <= failed
    # The GPU Operator rewrites its DaemonSets when ClusterPolicy changes, so a repair waits for the next pass.
    if (pointers := plan_pointers(snapshot.stack, snapshot.settings, quiet=quiet)) is not None:
        actions.append(pointers)
    elif not snapshot.old_views and (repair := plan_repair(snapshot.stack, snapshot.settings)) is not None:
        actions.append(repair)  # stale views may show no MPS client where there is one
    if not snapshot.old_views and classes is not None:  # or a profile that is in use
        actions.append(classes)
    busy = {name for name, verdict in verdicts.items() if verdict.actions}
    if not snapshot.old_views and (rules := plan_rules(snapshot, busy)) is not None:
        actions.append(rules)
    return tuple(actions)


def _claim(node_uid: str, fence: Fence, verdict: Verdict | None, before: Claim | None, pool: Pool | None) -> Claim:
    actions = verdict.actions if verdict is not None else ()
    coming = next((action.fence for action in actions if isinstance(action, Actuate)), fence)
    claim = Claim.of(node_uid, coming)
    if before is None or pool is None or fence.proven is not None:
        return claim
    # An operator that stopped between the two writes left a claim for the present version before the fence has it.
    return before if before == replace(claim, version=pool.policy.version) else claim


def find_resumed(
    claims: Mapping[str, Claim], nodes: Mapping[str, NodeView], verdicts: Mapping[str, Verdict], now: datetime
) -> dict[str, Claim]:
    """Return, by node, the claims that are kept although their nodes have no readable fence.

    A newer operator may have written the fence, or an operator ended between the claim and the fence and the change
    will begin in a moment; removing claim and finalizer until then would make four needless writes.
    """
    resumed = {}
    for name, claim in claims.items():
        node, verdict = nodes.get(name), verdicts.get(name)
        if node is None or verdict is None or node.fence is not None or node.uid != claim.node_uid:
            continue
        # Only the process that saw a node drift knows since when, so a new process waits for the whole period again.
        soon = verdict.wake is not None and (verdict.reason is Reason.DRIFTED or verdict.wake - now <= CLOCKS)
        if node.fence_error or (verdict.policy == claim.policy and soon):
            resumed[name] = claim
    return resumed


def plan_finalizers(
    pools: Mapping[str, Pool], claims: Collection[Claim], fenced: Collection[NodeView], verdicts: Mapping[str, Verdict]
) -> list[SetFinalizer]:
    """Return the actions that add our finalizer to policies or remove it. `claims` are all claims after this pass."""
    actions = []
    claiming = {claim.policy for claim in claims}
    for name, pool in sorted(pools.items()):
        policy = pool.policy
        if policy.deleting:
            # A Failed node does not count: its change may never end, and another policy may take the node over.
            wanted = any(
                (fence := node.fence) is not None
                and fence.policy == name
                and fence.stage != "yielded"
                and verdicts[node.name].phase is not Phase.FAILED
                for node in fenced
            )
        elif name in claiming:
            wanted = True
        elif policy.resetting:
            wanted = bool(pool.names)
        elif policy.spec is None:  # the spec may have asked for a reset
            wanted = policy.finalizer
        else:  # none can be added once the policy is being deleted
            resets = policy.spec.deletion_policy == "Reset"
            wanted = resets or (policy.finalizer and bool(pool.candidates))
        if wanted != policy.finalizer and not (wanted and policy.going):
            actions.append(SetFinalizer(name, wanted, policy.uid))
    return actions


def find_forgotten(
    pools: Mapping[str, Pool], verdicts: Mapping[str, Verdict], nodes: Mapping[str, NodeView], actuator: Actuator
) -> dict[str, Verdict]:
    """Return the new verdicts of the nodes from which our labels and records are removed now, by name.

    This ends a policy with deletionPolicy Reset (docs/design/transition.md#reset). A rollout keeps its state on its
    nodes, so they are forgotten all together when the last one is proven.
    """
    forgotten: dict[str, Verdict] = {}
    for pool in pools.values():
        members = [one.node.name for one in pool.members] if pool.policy.resetting else []
        if any(verdicts[name].phase is not Phase.SYNCED for name in members):
            continue
        for name in members:
            verdict, node = verdicts[name], nodes[name]
            message = (
                f"{verdict.message}, and the policy is being deleted, so the operator removes its labels"
                f"{actuator.tell_left(node)}"
            )
            labels = dict.fromkeys(key for key in (names.LABEL_POLICY, names.LABEL_MODE) if key in node.labels)
            verdict = replace(verdict, reason=Reason.DELETING, message=message)
            forgotten[name] = verdict.then(LabelNode(node, labels, forget=True))
    return forgotten

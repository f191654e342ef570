"""What is written for all nodes together: configuration, finalizers, claims, and the end of a reset?"""

import json
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
from gpusharing.planning.snapshot.records import Claim, Consent, FailedNode, Fence, SpecVersion
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.stack.mps import plan_repair
from gpusharing.planning.stack.pointers import plan_pointers
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators import Actuator, find_actuator
from gpusharing.planning.wanted.objects import plan_rules

CLOCKS = timedelta(seconds=1.5)
"""How far the clocks of two processes may differ. Each was set from a Date header with whole seconds (kube.clock)."""


_FRAME = '{"v":1,"claims":{},"failedNodes":{},"consents":{}}'
_CLAIM = '"":{"nodeUid":"","policy":"","op":"","wave":"","version":{"uid":"","revision":""}},'
_FAILURE = '"":{"node":"","version":{"uid":"","revision":""},"gone":true},'
_CONSENT = '"":{"revision":"","approved":"","changes":[],"resumed":"","seen":""},'
_CHANGE = '{"disruption":"","target":,"nodes":""},'
"""The parts of the record on the Lease (`kube.fence.claims_text`) without their values, to tell its size."""


def size_of(
    claims: Mapping[str, Claim], failed_nodes: Mapping[str, FailedNode], consents: Mapping[str, Consent]
) -> int:
    """Return how many characters the record on the Lease has at most. Keys of a newer operator are not counted."""
    size = len(_FRAME) + sum(claim_size(name, claim) for name, claim in claims.items())
    for uid, failed in failed_nodes.items():
        size += len(_FAILURE) + len(uid) + len(failed.node) + _length(failed.version)
    for uid, one in consents.items():
        size += len(_CONSENT) + sum(map(len, (uid, one.revision, one.approved, one.resumed, one.seen)))
        for change in one.changes:
            size += len(_CHANGE) + sum(map(len, (change.disruption, json.dumps(change.target), change.nodes)))
    return size


def claim_size(node: str, claim: Claim) -> int:
    return (
        len(_CLAIM) + sum(map(len, (node, claim.node_uid, claim.policy, claim.op, claim.wave))) + _length(claim.version)
    )


def _length(version: SpecVersion | None) -> int:
    return len(version.uid) + len(version.revision) if version is not None else 0


def find_space(
    snapshot: ClusterSnapshot,
    kept: Mapping[str, Claim],
    failed_nodes: Mapping[str, FailedNode],
    consents: Mapping[str, Consent],
) -> int:
    """Return how many characters are left on the Lease for claims of nodes that start now.

    Claims of nodes in flight count as long as they become past the point of no return.
    """
    claims = {
        name: replace(Claim.of(snapshot.nodes[name].uid, fence), version=fence.version)
        for name, fence in snapshot.fences.items()
    }
    return snapshot.lease_room - size_of({**kept, **claims}, failed_nodes, consents)


def fit(claims: Mapping[str, Claim], fences: Collection[str], excess: int) -> dict[str, Claim]:
    """Return the claims without as many of nodes with a fence, which holds the slot too, as have `excess` characters.

    Those past the point of no return go last: a Node that is deleted then no longer counts as failed.
    """
    left = dict(claims)
    for name in sorted(claims.keys() & fences, key=lambda name: (claims[name].version is not None, name)):
        if excess <= 0:
            break
        excess -= claim_size(name, left.pop(name))
    return left


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
    every = claims
    if (excess := size_of(claims, failed_nodes, consents) - snapshot.lease_room) > 0:
        claims = fit(claims, fences, excess)
    actions += plan_finalizers(pools, every.values(), [nodes[name] for name in fences], verdicts)
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

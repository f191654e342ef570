"""What is promised of the last means of a change, asked of every call: the invariants (t) and (u) of rollout.py.
(t) is about pods that are deleted by force at the end of a drain (ADR 32), (u) about nodes that go back to what was proven on them last (ADR 36). The tests' own opinion: nothing is asked of force.py or wayback.py."""

from datetime import timedelta
from typing import TYPE_CHECKING

from tests.planning import podkinds
from tests.planning.broken import hold

from gpusharing.api.names import DisruptionClass
from gpusharing.api.times import parse_duration
from gpusharing.planning.snapshot.actions import Actuate, ForceDelete, Release, UpdateFence
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.wanted.ownership import Owners, find_contenders

if TYPE_CHECKING:
    from tests.planning.world import World

EARLY = timedelta(seconds=10)
"""What a deletion comes earlier than the grace period alone would have it; a quarter of a short drain."""
LATE = timedelta(seconds=60)
"""How much longer than its time a drain lasts for pods that are leaving."""


# --- (t) deleted by force ---------------------------------------------------------------------------------------


def deleted(world: "World", action: ForceDelete) -> None:
    node, pod = world.nodes[action.node], world.pods[action.node].get(action.uid)
    fence, policy = node.fence, _policy_of(world, node.fence)
    hold(world.settings.force_delete, "(t) deletes a pod, and the chart does not allow it")
    hold(pod is not None and pod.deleted_at is None, "(t) deletes a pod that is gone, or is leaving already")
    hold(fence is not None and fence.stage == "fenced", "(t) deletes on a node that is not being drained")
    hold(
        node.unschedulable and node.ready and not node.foreign_works, "(t) deletes on a node that is not ours to drain"
    )
    hold(policy is not None and policy.spec is not None, "(t) deletes for a policy that is gone")
    assert pod is not None, "just held"
    assert fence is not None, "just held"
    assert policy is not None, "just held"
    assert policy.spec is not None, "just held"
    drain, grace = policy.spec.drain, timedelta(seconds=pod.grace)
    hold(drain.on_timeout == "ForceDelete", "(t) deletes a pod, and the policy does not ask for it")
    early = min(EARLY, parse_duration(drain.timeout) / 4)
    hold(not fence.jobs, "(t) deletes a pod while jobs have their time")
    hold(world.now + grace + early >= fence.deadline, f"(t) deletes a pod at {world.now}, before its moment")
    hold(world.now + grace <= fence.deadline + LATE, "(t) deletes a pod that would outlive the drain")
    hold(action.grace is None or action.grace > pod.grace, "(t) cuts a grace period")
    hold(bool(pod.grace) or action.grace == 1, "(t) leaves no time to end at all")
    reboot = fence.disruption is DisruptionClass.REBOOT
    terms = podkinds.Terms(drain, reboot, world.now, fence.since, world.stack.by_dra)
    _may_go(world, action, world.readable(pod), terms)


def _may_go(world: "World", action: ForceDelete, pod: PodView, terms: podkinds.Terms) -> None:
    fine = podkinds.may_be_evicted(pod, [pod], terms)  # whose turn it is does not count any more
    hold(fine, f"(t) deletes {world.kinds[pod.uid]}, which nobody may evict")
    guards = [budget for budget in world.budgets if budget.selects(pod)]
    hold(pod.uid in world.refused or len(guards) > 1, "(t) deletes a pod whose eviction nobody refused")
    others = [world.readable(one) for one in world.pods[action.node].values()]
    stays = [
        world.kinds[one.uid]
        for one in others
        if podkinds.must_leave(one, reboot=terms.reboot) and podkinds.is_kept(one, terms)
    ]
    hold(not stays, f"(t) deletes a pod of a node that would not be empty: {stays}")


# --- (u) going back -----------------------------------------------------------------------------------------------


def went_on(world: "World", action: Actuate | UpdateFence) -> None:
    """Whether a node turns back as it may, to what was proven, and does not turn round by itself."""
    node, before, after = action.node, action.node.fence, action.fence
    if before is None or before.stage != "actuating":
        return
    if before.rolls_back and not after.rolls_back:
        hold(_is_wanted_anew(world, action, before), f"(u) {node.name} turns round though nobody asked for it")
    if not after.rolls_back:
        return
    proof = node.verified
    hold(proof is not None, f"(u) {node.name} goes back, and nothing was proven there")
    assert proof is not None, "just held"
    pair = (proof.mig_config, proof.plugin_config)
    if not before.rolls_back:
        _turn(world, action)
        owed = f"{proof.mig_config} {proof.plugin_config} {proof.layout}".strip()
        hold(after.owed == owed, f"(u) {node.name} goes back to {after.owed}, and {owed} was proven there last")
    elif isinstance(action, Actuate) and after.step == after.steps:  # else it is a stop on the way
        led = (after.target_mig_config, after.target_plugin_config)
        hold(led == pair, f"(u) {node.name} goes back to {led}, and {pair} was proven there last")


def _turn(world: "World", action: Actuate | UpdateFence) -> None:
    node, fence = action.node, action.fence
    policy = next((one for one in world.policies if one.uid == fence.version.uid), None)
    spec = policy.spec if policy is not None else None
    hold(
        spec is not None and spec.rollout.on_failure == "Rollback",
        f"(u) {node.name} goes back, and its policy does not want that",
    )
    turn = (node.uid, fence.version, node.retry)
    hold(turn not in world.ledger.turns, f"(u) {node.name} goes back a second time")
    world.ledger.turns.add(turn)
    hold(fence.failed_version is not None, f"(u) {node.name} goes back, and nothing is known to have failed")
    assert fence.failed_version is not None, "just held"
    world.ledger.failed.setdefault(fence.failed_version, set()).add(node.uid)
    world.ledger.retries.setdefault(node.uid, node.retry)


def _is_wanted_anew(world: "World", action: Actuate | UpdateFence, before: Fence) -> bool:
    """A person asked for another try, edited the policy, or gave the node to another one."""
    if action.node.retry != before.retry:
        return True
    policy = _policy_of(world, before)
    if policy is None or before.version != policy.version:
        return True
    return Owners(find_contenders(world.policies)).owner(action.node) != before.policy


def given_back(action: Release) -> None:
    """Whether what a node went back to is what was proven there before, and is remembered as that."""
    record, fence, before = action.verified, action.node.fence, action.node.verified
    if record is None or fence is None:
        return
    if record.rolled_back:
        hold(fence.rolls_back and before is not None, "(u) calls a change a way back that is none")
        assert before is not None, "just held"
        same = (record.mig_config, record.plugin_config) == (before.mig_config, before.plugin_config)
        hold(same, "(u) goes back to what was not proven there last")
        hold(bool(record.failed_version), "(u) forgets that the change had failed")


def _policy_of(world: "World", fence: Fence | None) -> PolicyView | None:
    return next((one for one in world.policies if fence is not None and one.name == fence.policy), None)

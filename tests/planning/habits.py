"""How the policies of the random world may let pods go and nodes start, and what people set on them meanwhile."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING, Any

from tests.planning.promises import approve, resume

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.pools.holds import find_halt, propose
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.vocabulary.reasons import Reason

if TYPE_CHECKING:
    from tests.planning.world import World

_FREE = {"podSelector": {"matchLabels": {"app": "free"}}}
_LLM = {"podSelector": {"matchLabels": {"app": "llm"}}}
_TEAM = {"namespaceSelector": {"matchLabels": {"team": "a"}}}
_OTHERS = {"namespaceSelector": {"matchLabels": {"team": "b"}}}
DRAINS: Mapping[str, dict[str, Any]] = {
    "a rule blocks": {"rules": [{**_FREE, "behavior": "Block"}]},
    "a rule waits": {"rules": [{**_FREE, "behavior": "WaitCompleted", "timeout": "40s"}]},
    "a rule evicts what nobody manages": {"unmanagedPods": "Block", "rules": [{**_FREE, "behavior": "Evict"}]},
    "a rule asks for a namespace": {"rules": [{**_TEAM, **_FREE, "behavior": "Block"}]},
    "a rule asks for another namespace": {"rules": [{**_OTHERS, "behavior": "Block"}]},
    "rules have an order": {
        "rules": [{**_LLM, "behavior": "Evict", "order": 5}, {**_FREE, "behavior": "Evict", "order": -1}]
    },
    "jobs are evicted late": {"jobs": {"timeout": "50s", "onTimeout": "Evict"}},
    "jobs are never evicted": {"jobs": {"timeout": "50s"}},
    "marks block": {"protectedPods": "Block"},
    "marks are ignored": {"protectedPods": "Ignore", "localStorage": "Block"},
    "the drain is held": {"onTimeout": "Hold"},
    "what stays is deleted": {"onTimeout": "ForceDelete"},
    "what stays is deleted, but for what a rule keeps": {
        "onTimeout": "ForceDelete",
        "rules": [{**_FREE, "behavior": "Block"}],
    },
}
"""By name: fields of spec.drain."""
_MORNING = {"schedule": "0 9 * * *", "duration": "3h"}
_NIGHT = {"schedule": "0 22 * * *", "duration": "6h"}
ROLLOUTS: Mapping[str, dict[str, Any]] = {
    "at night": {"windows": [_NIGHT]},
    "in the morning, less a blackout": {
        "windows": [_MORNING],
        "blackouts": [{"schedule": "30 10 * * *", "duration": "20m"}],
    },
    "by approval": {"approval": "Manual"},
    "one canary": {"canary": {"nodes": 1, "soak": "3m"}, "maxUnavailable": "100%"},
    "two canaries by approval": {"canary": {"nodes": 2, "soak": "1m"}, "approval": "Manual"},
    "more canaries than nodes": {"canary": {"nodes": 4, "soak": "1m"}, "maxUnavailable": "100%"},
    "patient with failures": {"maxFailures": 3},
    "goes back": {"onFailure": "Rollback", "maxFailures": 2},
    "holds when paused": {"whenPaused": "Hold"},
    "aborts when paused": {"whenPaused": "Abort"},
}
"""By name: fields of spec.rollout."""


def combined(habits: Mapping[str, object]) -> list[tuple[str, ...]]:
    """No habit, each by itself and each two together: a third of each, for a random choice. One choice instead of many leaves hypothesis room for other things in an example."""
    both = list(permutations(sorted(habits), 2))
    alone = [(name,) for name in sorted(habits)]
    return [*[()] * len(both), *alone * (len(both) // len(alone)), *both]


def with_habits(policy: PolicyView, drains: Sequence[str] = (), rollouts: Sequence[str] = ()) -> PolicyView:
    """The policy with the fields of these habits besides those that it has. Rules of several habits come in this order; of any other field the last habit decides."""
    assert policy.spec is not None, "made from a good spec"
    wire = policy.spec.model_dump(by_alias=True, exclude_unset=True)
    drain, rollout = dict(wire.get("drain", {})), dict(wire.get("rollout", {}))
    for name in drains:
        rules = [*drain.get("rules", []), *DRAINS[name].get("rules", [])]
        drain |= {**DRAINS[name], "rules": rules}
    for name in rollouts:
        rollout |= ROLLOUTS[name]
    wire |= {"drain": drain, "rollout": rollout}
    return replace(policy, spec=GPUSharingPolicySpec.model_validate(wire))


def person_approves(world: "World", name: str, plan: RolloutPlan) -> bool:
    """The annotation gets the hash that the policy shows. False: that is what it has."""
    policy = next((one for one in world.policies if one.name == name), None)
    if policy is None or policy.spec is None or policy.spec.rollout.approval != "Manual":
        return False
    if propose(plan.pools[name]).hash == policy.approved:
        return False
    approve(world, policy, plan)
    return True


def person_resumes(world: "World", name: str, plan: RolloutPlan) -> bool:
    """The annotation gets the hash of the halt that the policy shows. False: that is what it has, or it is not halted."""
    policy = next((one for one in world.policies if one.name == name), None)
    halt = find_halt(plan.pools[name]) if policy is not None and policy.spec is not None else None
    if policy is None or halt is None or policy.resumed == halt[0]:
        return False
    resume(world, policy, halt[0])
    return True


def people_let_it_go_on(world: "World", plan: RolloutPlan) -> None:
    """A person approves whatever waits for it, lets go on what failures have halted, and takes a canary away that is larger than its pool."""
    for policy in world.policies:
        person_approves(world, policy.name, plan)
        told = {one.reason for one in plan.verdicts.values() if one.policy == policy.name}
        if Reason.HALTED in told:
            person_resumes(world, policy.name, plan)
        if Reason.CANARY_TOO_LARGE in told:
            person_corrects_the_canary(world, policy.name)


def person_corrects_the_canary(world: "World", name: str) -> None:
    """The policy has a canary that its pool cannot have, and loses it."""
    policy = next((one for one in world.policies if one.name == name), None)
    if policy is not None and policy.spec is not None:
        rollout = policy.spec.rollout.model_copy(update={"canary": None})
        world.set_policy(replace(policy, spec=policy.spec.model_copy(update={"rollout": rollout})))

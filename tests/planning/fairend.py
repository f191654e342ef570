"""A fair end of the random world: faults are cured, and people do only what the messages tell them.
Nobody empties the nodes and nobody edits a policy unless a message asks for that. After it everything is Synced or left out on purpose, and nothing of ours is left: no fence, no claim, no cordon and no mark."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tests.build import H100
from tests.planning import habits
from tests.planning.broken import hold
from tests.planning.machines import unmaintained
from tests.planning.promises import approve, resume
from tests.planning.recovery import carried_out, lenient, mend_machines, mend_software, request
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.gpus.cards import bare_product
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.reasons import Passes, Reason

PATIENCE = timedelta(minutes=15)
"""So long somebody waits for what should end by itself."""
AGAIN = timedelta(minutes=10)
"""After this time somebody who has done what a message says does it once more, if it still says so."""
MOST = 12
"""So often somebody does what one message says about one node, and then calls it wrong."""


def cure(world: World) -> None:
    """What was broken works again, and whoever was at work on a node has finished there and lifts the own cordon."""
    world.rival = None
    world.agents_down.clear()
    world.wires.faults.clear()
    world.unlisted.clear()
    world.refusing, world.namespace = False, {"team": "a"}
    for name in [name for name, node in world.nodes.items() if node.deleting]:
        world.remove_node(name)
        world.add_node(name)
    mend_machines(world)
    for name, known in world.nodes.items():
        node, theirs = unmaintained(known), name in world.human_cordons
        labels = {**node.labels, names.LABEL_GPU_PRESENT: "true"}
        world.nodes[name] = replace(
            node, ready=True, hold_cordon=False, unschedulable=node.unschedulable and not theirs, labels=labels
        )
    world.human_cordons.clear()


# --- what messages ask for ------------------------------------------------------------------------------------------

Remedy = Callable[[World, Verdict, RolloutPlan], None]


UNPLAYED = ("helm", "patch clusterpolicy", "set daemonset", "apply", "delete", "edit", "label namespace")
"""What nobody does in this world, by program or by verb and kind: its installation changes otherwise."""


def _is_played(command: Command) -> bool:
    what = command.words[0], command.verb, f"{command.verb} {command.kind}"
    return not {*what}.intersection(UNPLAYED)


def _type(world: World, told: Verdict) -> None:
    for command in (part for one in told.commands for part in one.parts):
        if command.verb == "uncordon":
            _uncordon(world, *command.names)
        elif command.kind == "gpunode":
            asked = {key.removeprefix(names.PREFIX): value or "" for key, value in command.pairs.items()}
            request(world, *command.names, **asked)
        elif command.kind == "gsp":
            (name,), ((key, value),) = command.names, command.pairs.items()
            policy = next(one for one in world.policies if one.name == name)
            hold(key in (names.ANNOTATION_APPROVE, names.ANNOTATION_RESUME), f"nobody knows what {command} does")
            if key == names.ANNOTATION_APPROVE:
                approve(world, policy, world.plan(), value or "")
            else:
                resume(world, policy, value or "")
        else:
            hold(command.kind == "node", f"nobody knows what {command} does")
            for name in command.names:
                _mark(world, world.nodes[name], command.pairs)


def _uncordon(world: World, name: str) -> None:
    """Unless the message before this one asked for it; what is nobody's cordon was forgotten by the operator."""
    node = world.nodes[name]
    if not node.unschedulable:
        return
    hold(node.fence is not None or name in world.human_cordons, f"an orphan cordon on {name}")
    world.human_cordons.discard(name)
    world.nodes[name] = replace(node, unschedulable=False)


def _mark(world: World, node: NodeView, pairs: Mapping[str, str | None]) -> None:
    if names.ANNOTATION_FENCE in pairs and node.unschedulable:
        world.human_cordons.add(node.name)  # whoever unfences it is answerable for its cordon
    fence = None if names.ANNOTATION_FENCE in pairs else node.fence
    verified = None if names.ANNOTATION_VERIFIED in pairs else node.verified
    kept = {key: value for key, value in node.labels.items() if key not in pairs}
    labels = kept | {key: value for key, value in pairs.items() if value is not None}
    marks = node.neighbor_marks - pairs.keys()
    world.nodes[node.name] = replace(node, fence=fence, verified=verified, labels=labels, neighbor_marks=marks)


def _take_pods_away(world: World, told: Verdict, plan: RolloutPlan) -> None:
    """The pods that the blockers name end, wherever they run; where none is named, all pods of the node."""
    named = {ref for blocker in told.blockers for ref in blocker.pods}
    for node, pods in world.pods.items():
        for uid, pod in list(pods.items()):
            if pod.ref in named or (not named and node == told.node):
                del pods[uid]


def _attend(world: World, told: Verdict, plan: RolloutPlan) -> None:
    world.budgets = ()
    _take_pods_away(world, replace(told, blockers=()), plan)


def _remove_budgets(world: World, told: Verdict, plan: RolloutPlan) -> None:
    world.budgets = ()


def _of(world: World, told: Verdict) -> PolicyView | None:
    return next((policy for policy in world.policies if policy.name == told.policy), None)


def _rollout(**fields: object) -> Remedy:
    def remedy(world: World, told: Verdict, plan: RolloutPlan) -> None:
        policy = _of(world, told)
        if policy is not None and not policy.going:
            world.set_policy(lenient(policy, **fields))

    return remedy


def _spec(change: Callable[[GPUSharingPolicySpec], GPUSharingPolicySpec]) -> Remedy:
    def remedy(world: World, told: Verdict, plan: RolloutPlan) -> None:
        policy = _of(world, told)
        if policy is not None and policy.spec is not None and not policy.going:
            world.set_policy(replace(policy, spec=change(policy.spec)))

    return remedy


_TAKE_IN = _spec(lambda spec: spec.model_copy(update={"products": ()}))
_LEAVE_OUT = _spec(lambda spec: spec.model_copy(update={"products": (bare_product(H100),)}))
_RAISE = _spec(lambda spec: spec.model_copy(update={"priority": spec.priority + 1}))


def _choose_another_operator(world: World, told: Verdict, plan: RolloutPlan) -> None:
    mend_software(world)


def _choose_another_mode(world: World, told: Verdict, plan: RolloutPlan) -> None:
    """The policy is edited to a mode that NVIDIA's installation can carry out."""
    policy = _of(world, told)
    if policy is not None and not policy.going:
        world.set_policy(carried_out(world, policy))


def _drop_rule(world: World, told: Verdict, plan: RolloutPlan) -> None:
    world.nodes[told.node] = replace(world.nodes[told.node], label_owners={})


def _correct_canary(world: World, told: Verdict, plan: RolloutPlan) -> None:
    habits.person_corrects_the_canary(world, told.policy)


def _wait(world: World, told: Verdict, plan: RolloutPlan) -> None:
    """The fault is cured, and what is left ends by itself."""


REMEDIES: Mapping[Reason, Remedy] = {
    **dict.fromkeys((Reason.PDB_CONFLICT, Reason.PDB_NEVER_ALLOWS, Reason.PDB), _remove_budgets),
    **dict.fromkeys(
        (
            Reason.UNMANAGED,
            Reason.GPU_DAEMON_SET,
            Reason.STATIC_GPU_POD,
            Reason.DRA_CLAIM,
            Reason.RULE_BLOCKS,
            Reason.LOCAL_STORAGE,
            Reason.STRANDED_PODS,
            Reason.DO_NOT_DISRUPT,
            Reason.TOLERATES_CORDON,
            Reason.DRAIN_HELD,
            Reason.TERMINATING_STUCK,
        ),
        _take_pods_away,
    ),
    **dict.fromkeys(
        (Reason.NOT_MIG_CAPABLE, Reason.PROFILE_NOT_SUPPORTED, Reason.LAYOUT_DOES_NOT_FIT, Reason.CONFIG_UNKNOWN),
        _LEAVE_OUT,
    ),
    **dict.fromkeys((Reason.GPU_UNHEALTHY, Reason.CANARY_NOT_SERVING, Reason.EVICTION_ERROR), _wait),
    **dict.fromkeys((Reason.LIST_FAILED, Reason.NAMESPACE_UNREADABLE, Reason.AGENT_NOT_READY, Reason.SETTLING), _wait),
    **dict.fromkeys((Reason.GPU_MISSING, Reason.NO_GPU, Reason.FORCE_DELETE_FAILED), _wait),
    Reason.COMPUTE_MODE: _wait,  # an MPS daemon that is about to end sets it back
    Reason.PRODUCT_SKIPPED: _TAKE_IN,
    Reason.UNSUPPORTED_STACK: _choose_another_mode,
    Reason.NEEDS_ATTENTION: _attend,
    Reason.MPS_NOT_SWITCHABLE: _choose_another_operator,
    Reason.LABEL_OWNED_ELSEWHERE: _drop_rule,
    Reason.PAUSED: _rollout(paused=False),
    Reason.FROZEN: _rollout(max_unavailable=1),
    Reason.WINDOW_TOO_SHORT: _rollout(windows=(), blackouts=()),
    Reason.CANARY_TOO_LARGE: _correct_canary,
    Reason.SUPERSEDED: _RAISE,
}
"""By reason, what its remedy says in words (planning/vocabulary/reasons.py). Commands are typed whatever the reason."""


@dataclass
class People:
    """Those who read what the operator shows, and do what it says."""

    acted: dict[tuple[str, Reason], list[datetime]] = field(default_factory=dict)
    """By node and reason: the times at which somebody did what was said."""
    kept: set[str] = field(default_factory=set)
    """The nodes whose cordon stays for people to lift, as the last plan says."""
    waited: dict[tuple[str, Reason], datetime] = field(default_factory=dict)
    """Since when somebody has waited for what should end by itself."""

    def obey(self, world: World, plan: RolloutPlan) -> bool:
        """Do what the messages of this plan ask of people. Whether anybody did anything."""
        acts, known = self._uncordon(world), self.waited
        self.waited = {}
        kept = (one.node for one in plan.verdicts.values() if one.reason is Reason.CORDON_KEPT)
        self.kept.update(kept)
        for told in plan.verdicts.values():
            for reason in _asked(told):
                key = told.node, reason
                before, since = self.acted.setdefault(key, []), known.get(key, world.now)
                self.waited[key] = since
                goes_on = told.phase is not Phase.FAILED or reason is Reason.CALL_FAILED  # calls are retried
                patient = reason.passes is not Passes.BY_A_PERSON and goes_on
                if (patient and world.now - since < PATIENCE) or (before and world.now - before[-1] < AGAIN):
                    continue
                typed = reason is told.reason and bool(told.commands) and all(map(_is_played, told.commands))
                blocks = any(blocker.reason is reason for blocker in told.blockers)
                in_words = reason in REMEDIES and (blocks or not (typed and told.phase is Phase.FAILED))
                hold(typed or in_words, f"nobody knows what to do about {reason}: {told.message}")
                hold(len(before) < MOST, f"{told.node} says {reason} again and again: {told.message}")
                before.append(world.now)
                if in_words:
                    REMEDIES[reason](world, told, plan)
                if typed:
                    _type(world, told)
                acts = True
                world.happened[f"told a person: {reason}"] += 1
        return acts

    def _uncordon(self, world: World) -> bool:
        """Lift the cordons that the last message about a node left to people. Whether there was one."""
        lifted = sorted(name for name in self.kept & world.human_cordons if name in world.nodes)
        for name in lifted:
            world.nodes[name] = replace(world.nodes[name], unschedulable=False)
            world.human_cordons.discard(name)
        self.kept.clear()
        return bool(lifted)


def _asked(told: Verdict) -> list[Reason]:
    """What the node needs a person for, by its reason or by what keeps its pods."""
    blockers = [blocker.reason for blocker in told.blockers]
    if told.phase is Phase.FAILED:
        blockers = [one for one in blockers if one in _LASTING or one.passes is Passes.BY_A_PERSON]
        return list(dict.fromkeys([told.reason, *blockers]))
    if told.actions or told.phase is Phase.SYNCED:
        return []
    lasting = [one for one in blockers if one.passes is Passes.BY_A_PERSON or one in _LASTING]
    own = [told.reason] if told.commands or told.reason in _LASTING or told.reason.passes is Passes.BY_A_PERSON else []
    return list(dict.fromkeys([*own, *lasting]))


_LASTING = (Reason.PDB, Reason.DO_NOT_DISRUPT)
"""They may end by themselves or last for ever."""


def _is_fine(verdict: Verdict) -> bool:
    return verdict.phase in (Phase.SYNCED, Phase.SKIPPED) or not verdict.policy


LONGEST = timedelta(days=14)
"""After so long without news nothing more is waited for: jobs that never end take five tries before somebody looks, one in each night where the policy has windows, and that for one node after the other."""


def end_fairly(world: World) -> RolloutPlan:
    """Cure what is broken, and let people obey until nothing moves; the last plan."""
    cure(world)
    people, wait = People(), timedelta(minutes=5)
    plan = world.settle(4000, people=people.obey)
    while (open_ones := [one for one in plan.verdicts.values() if not _is_fine(one)]) and wait < LONGEST:
        wait *= 2
        world.now += wait
        plan = world.settle(4000, people=people.obey)
    told = [f"{one.node} {one.phase} {one.reason}: {one.message}" for one in open_ones]
    hold(not told, f"a fair end is none for {told}")
    hold(not world.claims, f"claims are left: {world.claims}")
    for policy in world.policies:
        hold(not (policy.finalizer or policy.going), f"policy {policy.name} is not let go")
    for node in world.nodes.values():
        hold(node.fence is None, f"the fence of {node.name} is left")
        hold(not node.unschedulable, f"the cordon of {node.name} is left")
        ours = names.NEIGHBOR_LABELS.keys() & node.labels.keys()
        ours |= node.neighbor_marks - set(sorted(names.NEIGHBOR_ANNOTATIONS)[:1])  # which a neighbor may set
        hold(not ours, f"marks are left on {node.name}: {sorted(ours)}")
    return plan

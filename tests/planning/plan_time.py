"""How long a plan takes for 5,000 nodes of 8 GPUs under 50 policies: python -m tests.planning.plan_time

Aims (issue 3, point 14): 250 ms from nothing, 20 ms after one change. Prints one flat JSON object; SIMULATED nodes.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import process_time
from typing import Any

from tests.build import H100, NOW, make_policy
from tests.planning.cases import world_of

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.configmaps import plan_config
from gpusharing.planning.migfile import parse as parse_mig_file
from gpusharing.planning.rollout import Memo, RolloutPlan, plan_rollout
from gpusharing.planning.views import ClusterSnapshot, GPUNodeView, NodeView, PolicyView

NODES, POLICIES, GPUS = 5000, 50, 8
ROUNDS = 7
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Full", {}),
    ("TimeSlicing", {}),
    ("MIG", {}),
    ("MIG", {"mig": {"strategy": "single", "config": "all-1g.10gb"}}),
)


def policy(number: int, kind: int) -> PolicyView:
    """One policy over its own hundredth of the cluster."""
    mode, fields = KINDS[kind % len(KINDS)]
    selector = {"matchLabels": {"gpusharing.dev/pool": f"p{number}"}}
    return make_policy(f"policy-{number:02}", mode, **{**fields, "nodeSelector": selector})


def cluster() -> ClusterSnapshot:
    """Every node at rest under its policy."""
    policies = tuple(policy(number, number) for number in range(POLICIES))
    nodes: dict[str, NodeView] = {}
    gpunodes: dict[str, GPUNodeView] = {}
    world = None
    for number, owner in enumerate(policies):
        world = world_of(replace(owner, spec=_anywhere(owner)), (H100,) * GPUS)
        labels = {**world.nodes["gpu-07"].labels, "gpusharing.dev/pool": f"p{number}"}
        for index in range(NODES // POLICIES):
            name = f"gpu-{number:02}-{index:03}"
            node = world.nodes["gpu-07"]
            nodes[name] = replace(node, name=name, uid=f"uid-{name}", labels=dict(labels))
            gpunodes[name] = replace(world.gpunodes["gpu-07"], name=name)
    assert world is not None, "there are policies"
    models = {H100: world.machines["gpu-07"].gpus()[0]}
    change, _ = plan_config(policies, nodes.values(), models, {}, world.stack)
    assert change is not None, "fifty policies need their entries"
    written = dict.fromkeys([*change.plugin_configs, *parse_mig_file(change.mig_file)], NOW)
    stack = replace(
        world.stack, plugin_configs=change.plugin_configs, mig_file=change.mig_file, written=written
    )
    return replace(
        world.snapshot(),
        nodes=nodes,
        gpunodes=gpunodes,
        policies=policies,
        stack=stack,
        agents=frozenset(nodes),
    )


def _anywhere(owner: PolicyView) -> GPUSharingPolicySpec:
    """The spec over pool b, where the one node of a world is."""
    assert owner.spec is not None, "made from a good spec"
    selector = make_policy().spec
    assert selector is not None, "made from a good spec"
    return owner.spec.model_copy(update={"node_selector": selector.node_selector})


def milliseconds(run: Callable[[], RolloutPlan]) -> tuple[float, RolloutPlan]:
    """How long it takes, and what comes out."""
    begun = process_time()
    plan = run()
    return (process_time() - begun) * 1000, plan


def measure() -> dict[str, float]:
    """Medians in milliseconds of CPU time: other work on the machine does not count."""
    snapshot = cluster()
    times: dict[str, list[float]] = {"full": [], "idle": [], "one_node": [], "one_policy": []}
    for round_ in range(ROUNDS):
        memo = Memo()
        spent, plan = milliseconds(lambda memo=memo: plan_rollout(snapshot, NOW, memo))  # type: ignore[misc]  # bound on purpose
        assert plan.settled, (
            next(v for v in plan.verdicts.values() if v.actions) if not plan.shared else plan.shared
        )
        times["full"].append(spent)
        for kind, changed in {
            "idle": replace(snapshot, nodes=dict(snapshot.nodes)),
            "one_node": _one_node(snapshot, round_),
            "one_policy": _one_policy(snapshot, round_),
        }.items():
            spent, _ = milliseconds(lambda changed=changed, memo=memo: plan_rollout(changed, NOW, memo))  # type: ignore[misc]  # bound on purpose
            times[kind].append(spent)
    return {f"plan_{NODES}_nodes_{kind}_ms": round(median(found), 1) for kind, found in times.items()}


def _one_node(snapshot: ClusterSnapshot, number: int) -> ClusterSnapshot:
    name = f"gpu-{number:02}-007"
    changed = replace(snapshot.nodes[name], resources={})
    return replace(snapshot, nodes={**snapshot.nodes, name: changed})


def _one_policy(snapshot: ClusterSnapshot, number: int) -> ClusterSnapshot:
    edited = replace(policy(number, number + 1), generation=2)
    policies = tuple(edited if known.name == edited.name else known for known in snapshot.policies)
    return replace(snapshot, policies=policies)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

"""`plan` counts only the pods that a change of some GPUs takes from them (`drain.scope: Changed`)."""

from tests.planning.budgets import Budget
from tests.planning.gpuworld import HALVES, SEVENTHS, THIRDS, GpuWorld, gpu_world, layouts
from tests.planning.test_changed_gpus import NODE, classes
from tests.planning.test_foretold import foretell

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.report.proposal import Proposal
from gpusharing.planning.snapshot.actions import Evict
from gpusharing.planning.vocabulary.reasons import Reason


def halves(*nodes: str) -> GpuWorld:
    """Nodes with two pods `llm` on GPU 0 and two pods `free` on GPU 1, as agents report them."""
    world = gpu_world(layouts(HALVES, HALVES, SEVENTHS, SEVENTHS), *nodes)
    for node in nodes:
        for gpu, app in ((0, "llm"), (0, "llm"), (1, "free"), (1, "free")):
            assert world.add_pod(node, gpu=gpu, app=app)
    world.settle()
    return world


def told(world: GpuWorld, stranded: str = "Allow") -> Proposal:
    world.set_policy(layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, away="1", strandedPods=stranded))
    for name in world.nodes:
        world.agent(name)
    (proposal,) = foretell(world).values()
    assert {step.verdict.disruption for step in proposal.steps} == {DisruptionClass.CHANGED_GPUS}
    return proposal


def test_a_budget_of_pods_that_stay_raises_no_doubt() -> None:
    world = halves(NODE)
    world.budgets = (Budget("keep", "llm", 1),)
    proposal, done = told(world), len(world.done)
    assert [step.doubt for step in proposal.going] == [None]
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert classes(world, done) == [DisruptionClass.CHANGED_GPUS]
    evicted = sorted(f"{one.namespace}/{one.name}" for one in world.done[done:] if isinstance(one, Evict))
    assert evicted == sorted(proposal.evicted)


def test_only_pods_that_leave_count_as_users_of_what_becomes_less() -> None:
    (lost,) = told(halves(NODE)).vanishing
    assert (lost.resource, len(lost.pods)) == ("nvidia.com/mig-3g.40gb", 2)


def test_pods_that_stay_start_nowhere_else_and_are_not_evicted_again() -> None:
    world = halves("gpu-1", "gpu-2")
    for node, pods in world.pods.items():  # GPU 1 is empty everywhere, and there is room for the pods of GPU 0
        world.pods[node] = {uid: pod for uid, pod in pods.items() if pod.labels["app"] == "llm"}
        world.kubelet(node)
    proposal = told(world, "Hold")
    assert [step.doubt for step in proposal.steps] == [None, None]
    assert not proposal.evicts_again
    assert proposal.evicted == ()


def test_pods_that_leave_still_count() -> None:
    world = halves(NODE)
    world.budgets = (Budget("keep", "free", 1),)
    assert [one.doubt for one in told(world).steps] == [Reason.PDB]

"""What several looks at a node in work add up to: planning/drain/sightings.py."""

from dataclasses import replace

from tests.build import at, make_fence, make_node, make_work

from gpusharing.planning.drain.holders import Scope
from gpusharing.planning.drain.sightings import looked

GPU_PODS = Scope("gpu-operator")
ALL_PODS = replace(GPU_PODS, all_pods=True)
NODE = make_node("gpu-07", fence=make_fence(since=at(-60)))


def test_lists_without_a_holder_add_up() -> None:
    first = looked(None, make_work(listed_at=at(0)), NODE, ALL_PODS)
    second = looked(first, make_work(listed_at=at(5)), NODE, ALL_PODS)
    assert (second.empty_since, second.empty_lists, second.all_pods) == (at(0), (at(0), at(5)), True)


def test_a_list_that_looked_for_gpu_pods_only_is_none_of_those_that_prove_a_node_empty_of_all_pods() -> None:
    """The class rose to a reboot between the two: a pod without a GPU may have been there at the first."""
    first = looked(None, make_work(listed_at=at(0)), NODE, GPU_PODS)
    second = looked(first, make_work(listed_at=at(5)), NODE, ALL_PODS)
    assert (second.empty_since, second.empty_lists, second.all_pods) == (at(5), (at(5),), True)

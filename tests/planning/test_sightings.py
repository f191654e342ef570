"""What several looks at a node in work add up to: planning/drain/sightings.py."""

from dataclasses import replace

from tests.build import at, make_gpunode, make_pod, make_work

from gpusharing.planning.drain.holders import Scope
from gpusharing.planning.drain.sightings import looked

GPU_PODS = Scope("gpu-operator")
ALL_PODS = replace(GPU_PODS, all_pods=True)
AGENT = make_gpunode("gpu-07")


def test_lists_without_a_holder_add_up() -> None:
    first = looked(None, make_work(listed_at=at(0)), AGENT, ALL_PODS)
    second = looked(first, make_work(listed_at=at(5)), AGENT, ALL_PODS)
    assert (second.empty_since, second.empty_lists, second.all_pods) == (at(0), (at(0), at(5)), True)


def test_a_list_that_looked_for_gpu_pods_only_is_none_of_those_that_prove_a_node_empty_of_all_pods() -> None:
    """The class rose to a reboot between the two: a pod without a GPU may have been there at the first."""
    first = looked(None, make_work(listed_at=at(0)), AGENT, GPU_PODS)
    second = looked(first, make_work(listed_at=at(5)), AGENT, ALL_PODS)
    assert (second.empty_since, second.empty_lists, second.all_pods) == (at(5), (at(5),), True)


def test_lists_of_another_cordon_do_not_count_whatever_the_clock_says() -> None:
    """The clock of the operator that cordoned was an hour ahead of ours, which started after it."""
    cordoned = replace(GPU_PODS, cordoned_at=at(3600))
    before = looked(None, make_work(listed_at=at(0)), AGENT, GPU_PODS)
    first = looked(before, make_work(listed_at=at(5)), AGENT, cordoned)
    second = looked(first, make_work(listed_at=at(10)), AGENT, cordoned)
    assert (second.empty_since, second.empty_lists) == (at(5), (at(5), at(10)))


def test_the_request_that_stood_when_the_node_was_found_empty_stays_known_as_long_as_it_is() -> None:
    later = replace(AGENT, request_id="later")
    first = looked(None, make_work(listed_at=at(0)), replace(AGENT, request_id="stood"), GPU_PODS)
    second = looked(first, make_work(listed_at=at(5)), later, GPU_PODS)
    assert (first.stood, second.stood) == ("stood", "stood")
    held = looked(second, make_work(make_pod(), listed_at=at(10)), later, GPU_PODS)
    assert looked(held, make_work(listed_at=at(15)), later, GPU_PODS).stood == "later"

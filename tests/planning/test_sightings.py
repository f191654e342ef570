"""What several looks at a node in work add up to: planning/drain/pods.py."""

from dataclasses import replace

from tests.build import at, make_gpunode, make_pod, make_work

from gpusharing.planning.drain.pods import looked
from gpusharing.planning.snapshot.podviews import Scope

GPU_PODS = Scope("gpu-operator")
ALL_PODS = replace(GPU_PODS, all_pods=True)
AGENT = make_gpunode("gpu-07")


def test_lists_without_a_holder_add_up() -> None:
    first = looked(None, make_work(listed_at=at(0), scope=ALL_PODS), AGENT)
    second = looked(first, make_work(listed_at=at(5), scope=ALL_PODS), AGENT)
    assert (second.empty_lists, second.scope) == ((at(0), at(5)), ALL_PODS)


def test_a_list_that_looked_for_gpu_pods_only_is_none_of_those_that_prove_a_node_empty_of_all_pods() -> None:
    first = looked(None, make_work(listed_at=at(0), scope=GPU_PODS), AGENT)
    second = looked(first, make_work(listed_at=at(5), scope=ALL_PODS), AGENT)
    assert (second.empty_lists, second.scope) == ((at(5),), ALL_PODS)


def test_lists_of_another_cordon_do_not_count_whatever_the_clock_says() -> None:
    cordoned = replace(GPU_PODS, cordoned_at=at(3600))
    before = looked(None, make_work(listed_at=at(0), scope=GPU_PODS), AGENT)
    first = looked(before, make_work(listed_at=at(5), scope=cordoned), AGENT)
    second = looked(first, make_work(listed_at=at(10), scope=cordoned), AGENT)
    assert second.empty_lists == (at(5), at(10))


def test_the_request_that_stood_when_the_node_was_found_empty_stays_known_as_long_as_it_is() -> None:
    later = replace(AGENT, request_id="later")
    first = looked(None, make_work(listed_at=at(0), scope=GPU_PODS), replace(AGENT, request_id="stood"))
    second = looked(first, make_work(listed_at=at(5), scope=GPU_PODS), later)
    assert (first.stood, second.stood) == ("stood", "stood")
    held = looked(second, make_work(make_pod(), listed_at=at(10), scope=GPU_PODS), later)
    assert looked(held, make_work(listed_at=at(15), scope=GPU_PODS), later).stood == "later"

"""Which layout a pool should have, and that no other would take fewer GPUs; with kubectl_gpusharing/usage/packing.py."""

from array import array
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planning.histories import BY_KEY, H100, WHOLE, history, need, pool
from tests.wording import lacks

from gpusharing.api.names import Mode
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.validation import validate_policy
from gpusharing.planning.gpus.cards import TURNS, Card, memory_of, plain_profiles, usable_memory
from gpusharing.planning.gpus.geometry import find_misfit, maximal_layouts
from kubectl_gpusharing.usage.needs import GIB, Doubt, Goal, Holding, Need, Workload, find_need
from kubectl_gpusharing.usage.packing import Outcome, fewest_nodes
from kubectl_gpusharing.usage.recommend import shared_of
from kubectl_gpusharing.usage.recommendation import ModelPool, Recommendation, Shared, find_shared, recommend

FLEET = (
    need("llm-7b", 18.1, 0.11, pods=12),
    need("embedder", 5.0, 0.06, pods=10),
    need("llm-13b", 33.5, 0.24, pods=6),
)


def profiles(found: Recommendation) -> dict[str, str]:
    return {one.need.workload.name: one.profile or f"{one.gpus} GPU" for one in found.placed}


# --- by example -------------------------------------------------------------------------------------------------


def test_28_pods_need_8_gpus() -> None:
    found = recommend(pool((8,), used=7), FLEET, goal=Goal.COST)
    assert profiles(found) == {"llm-7b": "1g.20gb", "embedder": "1g.10gb", "llm-13b": "3g.40gb"}
    assert (found.pods, found.gpus, found.nodes, found.pool.used) == (28, 8, 1, 7)
    assert [(portion.layout, portion.gpus) for portion in found.portions] == [
        ((("3g.40gb", 2),), 3), ((("1g.20gb", 4),), 3), ((("1g.10gb", 7),), 2)
    ]  # fmt: skip
    assert {one.need.workload.name: one.why for one in found.placed} == {
        "llm-7b": Outcome.MEMORY, "embedder": Outcome.SMALLEST, "llm-13b": Outcome.MEMORY
    }  # fmt: skip


def test_on_nodes_of_one_gpu_all_gpus_are_alike_and_a_larger_profile_saves_gpus() -> None:
    """With 1g.10gb for the embedder it would be 12 GPUs: each has one 3g.40gb and one 1g.20gb at most besides."""
    found = recommend(pool((1,) * 12), FLEET, goal=Goal.COST)
    assert profiles(found)["embedder"] == "1g.20gb"
    assert (found.gpus, found.nodes, len(found.template)) == (11, 11, 1)
    assert {one.need.workload.name: one.why for one in found.placed}["embedder"] is Outcome.LAYOUT


def test_for_performance_workloads_get_the_room_that_the_pool_has() -> None:
    small = [need("a", 5.0, 0.05, pods=2)]
    cost, performance = (recommend(pool((1, 1)), small, goal=goal) for goal in Goal)
    assert (profiles(cost), cost.gpus) == ({"a": "1g.10gb"}, 1)
    assert (profiles(performance), performance.gpus) == ({"a": "1 GPU"}, 2)
    assert (performance.mode, performance.placed[0].why) == (Mode.FULL, Outcome.LAYOUT)
    three = recommend(pool((1, 1)), [need("a", 5.0, 0.05, pods=3)], goal=Goal.PERFORMANCE)
    assert (profiles(three), three.gpus) == ({"a": "3g.40gb"}, 2), "a whole GPU for each would be one too many"


def test_for_performance_whole_gpus_and_instances_stand_side_by_side_where_nodes_have_several() -> None:
    needs = [need("few", 38.0, 0.1, pods=2), need("many", 5.0, 0.05, pods=14)]
    found = recommend(pool((4,)), needs, goal=Goal.PERFORMANCE)
    assert profiles(found) == {"few": "1 GPU", "many": "1g.10gb"}
    assert found.template == ((("1g.10gb", 7),), (("1g.10gb", 7),), None, None)


def test_where_a_divided_gpu_on_each_node_takes_more_than_whole_ones_they_stay_whole() -> None:
    found = recommend(pool((2, 2)), [need("big", 70.0, pods=2), need("small", 0.5)], goal=Goal.COST)
    assert (profiles(found), found.gpus, found.mode) == ({"big": "1 GPU", "small": "1 GPU"}, 3, Mode.FULL)


SEVENTH = array("f", [1 / 7])[0]
"""A little more than a seventh, because of single precision."""
PROFILES: dict[str, tuple[float, float | None, str, Outcome]] = {
    "a full instance needs no larger one for what single precision adds": (5.0, SEVENTH, "1g.10gb", Outcome.SMALLEST),
    "compute makes a profile larger than memory would": (15.0, 0.2, "2g.20gb", Outcome.COMPUTE),
    "activity that nobody measured does not count": (15.0, None, "1g.20gb", Outcome.MEMORY),
}


@pytest.mark.parametrize(("gib", "active", "profile", "why"), PROFILES.values(), ids=PROFILES)
def test_by_memory_and_compute(gib: float, active: float | None, profile: str, why: Outcome) -> None:
    found = recommend(pool(), [need("a", gib, active)], goal=Goal.COST)
    assert (profiles(found), found.placed[0].why) == ({"a": profile}, why)


def test_who_needs_more_than_an_instance_gets_whole_gpus_beside_the_divided_ones() -> None:
    found = recommend(pool((4,)), [need("big", 70.0, pods=2), need("small", 5.0, pods=3)], goal=Goal.COST)
    assert profiles(found) == {"big": "1 GPU", "small": "1g.10gb"}
    assert found.gpus == 3
    assert found.template == ((("1g.10gb", 7),), None, None, None)
    assert found.block()["mig"]["layouts"] == [
        {"devices": [0], "profiles": {"1g.10gb": 7}},
        {"devices": [1, 2, 3], "profiles": {}},
    ]


def test_whole_gpus_and_instances_do_not_mix_where_a_node_has_one() -> None:
    needs = [need("big", 70.0), need("small", 5.0, pods=2)]
    found = recommend(pool((1, 1, 1)), needs, goal=Goal.COST)
    assert profiles(found) == {"small": "1g.10gb"}, "and one GPU elsewhere, which are fewer than three"
    assert [(one.need.workload.name, one.why, one.gpus) for one in found.unplaced] == [("big", Outcome.APART, 1)]


def test_on_nodes_of_one_gpu_all_stay_whole_if_that_takes_no_more_or_is_to_be_as_roomy_as_can_be() -> None:
    one, two = ([need("big", 70.0), need("small", 5.0, pods=pods)] for pods in (1, 2))
    for needs, goal in ((one, Goal.COST), (two, Goal.PERFORMANCE)):
        found = recommend(pool((1, 1, 1)), needs, goal=goal)
        assert (profiles(found), found.unplaced) == ({"big": "1 GPU", "small": "1 GPU"}, ())
        assert [place.why for place in found.placed] == [Outcome.WHOLE, Outcome.LAYOUT]
    assert recommend(pool((1, 1)), two, goal=Goal.PERFORMANCE).unplaced, "the pool is too small for that"


def test_a_pool_of_whole_gpus_alone_is_not_divided() -> None:
    found = recommend(pool((4, 4)), [need("big", 70.0, pods=5)], goal=Goal.COST)
    assert (found.mode, found.block(), found.gpus) == (Mode.FULL, {"mode": "Full"}, 5)
    assert found.nodes == 2
    assert found.stranded == (0, 0)


def test_what_its_owner_says_may_take_several_gpus_and_more_than_a_node_has() -> None:
    found = recommend(pool((2,)), [need("two", 140.0), need("three", 230.0)], goal=Goal.COST)
    assert profiles(found) == {"two": "2 GPU"}
    assert [(one.why, one.gpus) for one in found.unplaced] == [(Outcome.SEVERAL, 3)]


def test_headroom_alone_takes_no_second_gpu() -> None:
    full = find_need(history(gib=78, activity=0.9, holds=WHOLE), H100, Goal.COST)
    assert full.memory is not None
    assert full.memory > 80 * GIB
    assert profiles(recommend(pool(), [full], goal=Goal.COST)) == {"a": "1 GPU"}


def test_a_pod_with_several_gpus_keeps_them_and_one_with_several_shares_is_left_alone() -> None:
    def held(holds: Holding) -> Recommendation:
        return recommend(pool(), [find_need(history(holds=holds), H100, Goal.COST)], goal=Goal.COST)

    assert profiles(held(Holding("nvidia.com/gpu", 4))) == {"a": "4 GPU"}
    shares = held(Holding("nvidia.com/gpu.shared", 2, Fraction(1, 4)))
    assert [one.why for one in shares.unplaced] == [Outcome.DEVICES]


def test_pods_of_all_gpus_of_a_node_need_a_pool_of_their_own_beside_instances() -> None:
    training = find_need(history("training", holds=Holding("nvidia.com/gpu", 4)), H100, Goal.COST)
    found = recommend(pool((4, 4)), [training, need("small", 5.0, pods=5)], goal=Goal.COST)
    assert profiles(found) == {"small": "1g.10gb"}
    assert [one.why for one in found.unplaced] == [Outcome.APART]
    alone = recommend(pool((4, 4)), [training], goal=Goal.COST)
    assert (profiles(alone), alone.gpus) == ({"training": "4 GPU"}, 4)


@pytest.mark.parametrize("goal", Goal)
@pytest.mark.parametrize("busy", [0.02, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("profile", ["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", ""])
def test_a_server_that_reserves_its_memory_keeps_its_size_however_busy_it_is(
    profile: str, busy: float, goal: Goal
) -> None:
    size = next((each for each in H100.profiles if each.name == profile), None)
    memory, part = (memory_of(H100), 1.0) if size is None else (usable_memory(H100, size), size.slices / 7)
    share = Fraction(1) if size is None else Fraction(size.memory_gb, 80)
    resource = f"nvidia.com/mig-{profile}" if profile else "nvidia.com/gpu"
    holds = Holding(resource, 1, share, Fraction(1) if size is None else Fraction(size.slices, 7))
    server = find_need(history("vllm", 0.9 * memory, busy * part, holds=holds, wave=0.0, pods=4), H100, goal)
    assert server.doubts[0] is Doubt.PREALLOCATED
    found = recommend(pool((8, 8)), [server, need("small", 5.0, pods=3, goal=goal)], goal=goal)
    assert profiles(found)["vllm"] == ("1 GPU" if profile in ("", "7g.80gb") else profile)
    assert {place.need.workload.name: place.why for place in found.placed}["vllm"] is Outcome.KEPT
    assert find_shared(found) is None, "on a whole GPU it would reserve more"


def test_who_is_not_known_is_named_and_takes_no_place() -> None:
    shared = Holding("nvidia.com/gpu", 1, None)
    unknown = find_need(history("vllm", 72, 0.38, holds=shared, wave=0.0), H100, Goal.COST)
    found = recommend(pool(), [unknown], goal=Goal.COST)
    assert (found.placed, found.gpus, found.nodes, found.mode) == ((), 0, 0, Mode.FULL)
    assert [one.why for one in found.unplaced] == [Outcome.UNKNOWN]


def test_nodes_that_differ_get_one_layout_for_all_gpus_and_are_counted_the_largest_first() -> None:
    found = recommend(pool((2, 8, 4)), FLEET, goal=Goal.COST)
    assert len(found.template) == 1
    assert (found.gpus, found.nodes) == (11, 2)
    assert found.block()["mig"]["layouts"] == [{"profiles": {"3g.40gb": 1, "1g.20gb": 2}}]
    more = recommend(pool((1, 2)), FLEET, goal=Goal.COST)
    assert (more.gpus, more.nodes) == (11, 6), "8 GPUs more than there are, on nodes like the largest"


def test_what_is_needed_beyond_the_pool_shows() -> None:
    found = recommend(pool((1, 1)), [need("a", 30.0, pods=9)], goal=Goal.COST)
    assert (found.gpus, found.pool.gpus) == (5, 2)


def test_a_card_without_mig_stays_whole() -> None:
    l4 = BY_KEY["l4"]
    found = recommend(pool((2,), card=l4), [need("a", 5.0, pods=2, card=l4)], goal=Goal.COST)
    assert (found.mode, found.gpus) == (Mode.FULL, 2)


def test_what_is_stranded_and_what_is_idle_is_counted() -> None:
    found = recommend(pool((1,) * 3), [need("a", 30.0, pods=5)], goal=Goal.COST)
    assert found.template == ((("3g.40gb", 2),),)
    assert (found.stranded, found.idle) == ((3, 0), (("3g.40gb", 1),))


def test_the_worst_neighbors_of_today_are_found() -> None:
    def seen(name: str, gib: float) -> Need:
        return find_need(history(name, gib), H100, Goal.COST)

    needs = [seen("llm-13b", 27.9), seen("llm-7b", 15.1)]
    big, small = (one.workload for one in needs)
    shared = {"GPU-1": {small: 4}, "GPU-2": {small: 1, big: 3}, "GPU-3": {}}
    found = recommend(replace(pool(), occupied=shared), needs, goal=Goal.COST)
    assert found.worst_bytes == pytest.approx(98.8 * GIB)
    assert found.worst == ((3, needs[0].highest), (1, needs[1].highest))
    stranger = {"GPU-4": {Workload("x", "deploy", "x"): 9}}
    assert recommend(replace(pool(), occupied=stranger), needs, goal=Goal.COST).worst == ()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (ModelPool("p", H100, (), 0), "the pool of p has no GPU"),
        (ModelPool("p", H100, (4, 0), 0), "the pool of p has no GPU"),
        (ModelPool("p", BY_KEY["thor-igpu"], (1,), 0), "what fits on p is not known"),
    ],
    ids=["no node", "a node without GPUs", "memory of the CPU"],
)
def test_a_pool_that_cannot_be_advised_is_refused(wrong: ModelPool, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recommend(wrong, [], goal=Goal.COST)


# --- whatever the workloads are ---------------------------------------------------------------------------------

asked = st.tuples(
    st.sampled_from([0.5, 4.0, 9.0, 15.0, 19.0, 30.0, 39.0, 60.0, 170.0]),
    st.sampled_from([None, 0.01, 0.13, 0.2, 0.4, 0.5, 0.9]),
    st.integers(1, 9),
)
fleets = st.lists(asked, max_size=6).map(
    lambda rows: [need(f"w{at}", gib, part, pods=pods) for at, (gib, part, pods) in enumerate(rows)]
)
shapes = st.sampled_from([(1, 1, 1), (2, 2), (8,), (4, 4, 4), (16, 16), (1, 4)])


@given(fleets, shapes, st.sampled_from(Goal))
@settings(max_examples=50)
def test_every_workload_has_a_place_that_holds_it_or_is_named_and_the_layout_is_legal(
    needs: list[Need], shape: tuple[int, ...], goal: Goal
) -> None:
    found = recommend(pool(shape), needs, goal=goal)
    named = [one.need.workload for one in found.placed]
    named += [one.need.workload for one in found.unplaced]
    assert sorted(named) == sorted(one.workload for one in needs)
    sizes = {one.name: one for one in plain_profiles(H100)}
    there: Counter[str] = Counter()
    for portion in found.portions:
        there.update({name: count * portion.gpus for name, count in portion.layout or ()})
    whole = sum(one.gpus for one in found.portions if one.layout is None)
    for one in found.placed:
        if one.profile:
            there[one.profile] -= one.pods
            assert usable_memory(H100, sizes[one.profile]) * GIB >= (one.need.memory or 0)
            assert sizes[one.profile].slices / 7 >= (one.need.compute or 0)
        else:
            whole -= one.gpus * one.pods
    assert min(there.values(), default=0) >= 0
    assert whole >= 0
    assert {name: count for name, count in there.items() if count} == dict(found.idle)
    for layout in found.template:
        assert layout is None or not find_misfit(layout, H100.profiles)
    assert recommend(pool(shape), needs[::-1], goal=goal) == found


@given(fleets, shapes)
@settings(max_examples=50)
def test_for_performance_the_pool_is_enough_where_it_is_for_cost(needs: list[Need], shape: tuple[int, ...]) -> None:
    cost, performance = (recommend(pool(shape), needs, goal=goal) for goal in Goal)
    assert performance.gpus >= cost.gpus
    if cost.nodes <= len(shape):
        assert performance.nodes <= len(shape)


@given(fleets, shapes, st.sampled_from(Goal))
@settings(max_examples=50)
def test_what_is_recommended_is_a_valid_policy(needs: list[Need], shape: tuple[int, ...], goal: Goal) -> None:
    policy = {
        "apiVersion": "gpusharing.dev/v1alpha1",
        "kind": "GPUSharingPolicy",
        "metadata": {"name": "p"},
        "spec": {
            "nodeSelector": {"matchLabels": {"pool": "p"}},
            **recommend(pool(shape), needs, goal=goal).block(),
        },
    }
    assert isinstance(validate_policy(policy), GPUSharingPolicySpec)


small_fleets = st.lists(
    st.tuples(st.sampled_from([4.0, 15.0, 30.0]), st.sampled_from([None, 0.2, 0.5]), st.integers(1, 7)),
    min_size=1,
    max_size=4,
).map(lambda rows: [need(f"w{at}", gib, part, pods=pods) for at, (gib, part, pods) in enumerate(rows)])
PLAIN = plain_profiles(H100)
FULL: list[dict[str, int]] = [
    dict(layout)
    for layout in maximal_layouts(H100.profiles)
    if {name for name, _ in layout} <= {one.name for one in PLAIN}
]


@given(small_fleets, st.sampled_from([1, 2]), st.integers(1, 9))
@settings(max_examples=40)
def test_no_template_of_any_layouts_takes_fewer_gpus(needs: list[Need], per_node: int, nodes: int) -> None:
    found = recommend(pool((per_node,) * nodes), needs, goal=Goal.COST)
    assert not found.unplaced
    assert (max(found.nodes - nodes, 0), found.gpus) == by_force(needs, [], per_node, nodes)[:2]


training = st.lists(st.tuples(st.integers(2, 3), st.integers(1, 6)), min_size=1, max_size=3)
"""Workloads whose pods hold several whole GPUs: GPUs of each, and pods."""


@given(small_fleets, training, st.integers(1, 9))
@settings(max_examples=40)
def test_no_template_takes_fewer_nodes_or_gpus_beside_pods_of_several_gpus(
    needs: list[Need], training: list[tuple[int, int]], nodes: int
) -> None:
    held = [
        find_need(history(f"t{at}", pods=pods, holds=Holding("nvidia.com/gpu", gpus)), H100, Goal.COST)
        for at, (gpus, pods) in enumerate(training)
    ]
    found = recommend(pool((4,) * nodes), [*needs, *held], goal=Goal.COST)
    assert not found.unplaced
    several = [gpus for gpus, pods in training for _ in range(pods)]
    assert (max(found.nodes - nodes, 0), found.gpus, found.nodes) == by_force(needs, several, 4, nodes)


def by_force(needs: list[Need], several: list[int], per_node: int, nodes: int) -> tuple[int, int, int]:
    """Nodes beyond those of the pool, GPUs, and nodes: the least over all templates, all profiles or a whole GPU for each class, and all ways to put the pods of several GPUs on nodes."""
    classes: Counter[int] = Counter()
    for one in needs:
        fits = (
            at
            for at, size in enumerate(PLAIN)
            if usable_memory(H100, size) * GIB >= (one.memory or 0) and size.slices / 7 >= (one.compute or 0)
        )
        classes[next(fits)] += one.history.pods
    best = (10**9, 0, 0)
    for given_to in product(*(range(one, len(PLAIN) + 1) for one in classes)):
        wanted: Counter[str] = Counter()
        whole = [*several]
        for index, pods in zip(given_to, classes.values(), strict=True):
            if index == len(PLAIN):
                whole += [1] * pods
            else:
                wanted[PLAIN[index].name] += pods
        for size in range(1, per_node + (not whole)) if wanted else [0]:
            taken = 10**9
            for chosen in combinations_with_replacement(FULL, size):
                there = {name: sum(layout.get(name, 0) for layout in chosen) for name in wanted}
                if all(there.values()):
                    taken = min(taken, max((-(-pods // there[name]) for name, pods in wanted.items()), default=1))
            if taken < 10**9 and max(whole, default=0) <= per_node - size:
                while not is_possible(tuple(sorted(whole, reverse=True)), (per_node - size,) * taken):
                    taken += 1
                best = min(best, (max(taken - nodes, 0), taken * size + sum(whole), taken))
    return best


@cache
def is_possible(pods: tuple[int, ...], free: tuple[int, ...]) -> bool:
    """Whether nodes with so many free GPUs, the most first, hold these pods, by trying each pod on each node."""
    if sum(pods) > sum(free):
        return False
    return not pods or any(
        is_possible(pods[1:], tuple(sorted((*free[:at], room - pods[0], *free[at + 1 :]), reverse=True)))
        for at, room in enumerate(free)
        if room >= pods[0] and room not in free[:at]
    )


@given(st.lists(st.integers(1, 8), max_size=10), st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_pods_of_several_gpus_take_as_few_nodes_as_there_can_be(pods: list[int], rooms: list[int]) -> None:
    largest = tuple(sorted(rooms, reverse=True))
    asked = tuple(sorted(pods, reverse=True))
    if pods and max(pods) > largest[0]:
        assert fewest_nodes(asked, largest) is None
        return
    there = (*largest, *(largest[0],) * len(pods))
    least = next(
        count for count in range(len(there) + 1) if is_possible(asked, tuple(sorted(there[:count], reverse=True)))
    )
    assert fewest_nodes(asked, largest) == least


def test_first_fit_would_take_three_nodes() -> None:
    assert fewest_nodes((4, 3, 3, 2, 2, 2), (8,)) == 2


def test_nodes_of_a_pool_that_differ_hold_whole_pods() -> None:
    held = find_need(history("train", pods=3, holds=Holding("nvidia.com/gpu", 4)), H100, Goal.COST)
    found = recommend(pool((2, 2, 2, 8)), [held], goal=Goal.COST)
    assert (found.gpus, found.nodes) == (12, 4 + 1), "one more than there are"
    enough = recommend(pool((8, 4, 2)), [held], goal=Goal.COST)
    assert (enough.gpus, enough.nodes) == (12, 2)


# --- sharing of whole GPUs instead -------------------------------------------------------------------------------------

L4 = BY_KEY["l4"]


def shared(*needs: Need, card: Card = H100, goal: Goal = Goal.COST) -> Shared | None:
    return find_shared(recommend(pool((8,), card=card), needs, goal=goal))


def test_who_uses_too_little_for_the_smallest_instance_is_on_fewer_gpus_with_mps() -> None:
    found = shared(need("tiny", 2.0, 0.02, pods=20))
    assert found is not None
    assert (found.mode, found.replicas, found.gpus, found.instead) == (Mode.MPS, 20, 1, 3)
    assert found.needed == 2 * GIB
    assert found.there == pytest.approx(memory_of(H100) * GIB / 20)
    text = shared_of(found)
    assert not lacks(text, "fewer GPUs", "MPS", "20 clients", "20 pods", "1 GPU", "3", "2.0Gi of 4.0Gi", "2%")
    assert not lacks(text, "nothing isolates them", "fatal fault")
    assert "kubectl gpusharing advise" in text


def test_a_client_has_no_more_compute_than_its_part() -> None:
    """By memory one GPU would do."""
    found = shared(need("busy", 2.0, 0.1, pods=20))
    assert found is not None
    assert (found.mode, found.replicas, found.gpus) == (Mode.MPS, 10, 2)


def test_pods_of_very_different_sizes_take_turns_where_no_layout_holds_them_as_densely() -> None:
    found = shared(need("large", 36.0, 0.3), need("small", 13.0, 0.1, pods=3))
    assert found is not None
    assert (found.mode, found.replicas, found.gpus, found.instead) == (Mode.TIME_SLICING, 4, 1, 2)
    assert found.needed == 75 * GIB
    assert found.busy == pytest.approx(0.6, rel=0.06)
    text = shared_of(found)
    assert "with time-slicing and 4 replicas on each" in text
    assert "4 pods would use 75.0Gi of 79." in text
    assert "Gi and 60% of the compute)" in text
    assert not lacks(text, "too much memory", "others fail")


def test_where_activity_is_not_known_only_memory_counts_and_that_is_told() -> None:
    found = shared(need("tiny", 2.0, None, pods=20))
    assert found is not None
    assert (found.gpus, found.busy) == (1, None)
    assert "; the compute is unknown)" in shared_of(found)


@pytest.mark.parametrize(
    "needs",
    [
        (need("one", 9.0, 0.1),),
        (need("full", 9.0, 0.14, pods=7),),
        (need("whole", 75.0, 0.5, pods=3),),
        (need("busy", 13.0, 0.9), need("also", 13.0, 0.9)),
    ],
    ids=["one pod", "a layout that is full", "whole GPUs", "more compute than there is"],
)
def test_where_the_layout_is_as_good_nothing_is_said(needs: tuple[Need, ...]) -> None:
    assert shared(*needs) is None


def test_who_asks_for_room_is_not_told_to_share() -> None:
    assert shared(need("tiny", 2.0, 0.02, pods=20, goal=Goal.PERFORMANCE), goal=Goal.PERFORMANCE) is None


def test_a_card_without_mig_can_still_be_shared() -> None:
    found = shared(need("tiny", 4.0, 0.1, pods=5, card=L4), card=L4)
    assert found is not None
    assert (found.mode, found.replicas, found.gpus, found.instead) == (Mode.MPS, 5, 1, 5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 78.0), st.floats(0.01, 1.0), st.integers(1, 9)), min_size=1, max_size=4))
def test_whoever_shares_fits_in_the_worst_case_and_takes_fewer_gpus(wanted: list[tuple[float, float, int]]) -> None:
    needs = [need(f"w{index}", gib, active, pods=pods) for index, (gib, active, pods) in enumerate(wanted)]
    result = recommend(pool((8,) * 4), needs, goal=Goal.COST)
    found = find_shared(result)
    if found is None:
        return
    assert 0 < found.gpus < found.instead <= result.gpus
    assert found.gpus * found.replicas >= found.pods
    assert found.needed <= found.there
    assert found.busy is not None
    pods = [one.need for one in result.placed if one.profile for _ in range(one.pods)]
    memory = sorted((float(one.memory or 0) for one in pods), reverse=True)
    if found.mode is Mode.MPS:
        assert memory[0] <= memory_of(H100) * GIB / found.replicas
        assert found.busy <= 1 / found.replicas + 1e-6
    else:
        assert 2 <= found.replicas <= TURNS
        assert sum(memory[: found.replicas]) <= memory_of(H100) * GIB


def test_old_cards_take_fewer_clients() -> None:
    old = replace(L4, compute_capability=(7, 0), device_ids="27B8", family=())
    found = shared(need("tiny", 0.5, 0.01, pods=40, card=old), card=old)
    assert found is None or found.replicas <= old.mps_max_clients

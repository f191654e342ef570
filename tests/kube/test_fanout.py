"""One failed call is one failed call; only several about different objects make a server that is away. And workers: none holds up the others."""

import asyncio

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER, SILENCE
from tests.fakes.virtualtime import virtually
from tests.kube.objects import node, pod

from gpusharing.kube.client import ACCESS_REVIEWS, GPUNODES, NODES, PODS, POLICIES, KubeClient
from gpusharing.kube.errors import (
    EvictionBlocked,
    Forbidden,
    HeldBack,
    KubeError,
    NotFound,
    ServerAway,
    Throttled,
    Unavailable,
)
from gpusharing.kube.fanout import Fanout, PublishingClient, Workers
from gpusharing.kube.lists import pages_of


def stage(**options: int) -> tuple[FakeCluster, Fanout]:
    cluster = FakeCluster()
    for name in ("gpu-1", "gpu-2", "gpu-3"):
        cluster.add(NODES, node(name))
        cluster.add(GPUNODES, {"metadata": {"name": name}})
    cluster.add(PODS, pod())
    return cluster, Fanout(cluster.client("operator"), **options)


async def refused(fanout: KubeClient, verb: str, name: str) -> KubeError:
    with pytest.raises(KubeError) as caught:
        await (fanout.get(NODES, name) if verb == "get" else fanout.patch(GPUNODES, name, {}))
    return caught.value


async def test_one_object_that_fails_for_ever_never_means_that_the_server_is_away() -> None:
    cluster, fanout = stage()
    cluster.faults.fail("get", NODES, Unavailable("502"), name="gpu-1", times=EVER)
    cluster.faults.fail("patch", GPUNODES, Unavailable("502"), name="gpu-1", times=EVER)
    for _ in range(50):
        assert type(await refused(fanout, "get", "gpu-1")) is Unavailable
        assert type(await refused(fanout, "patch", "gpu-1")) is Unavailable


async def test_three_objects_in_a_row_without_a_success_mean_that_it_is_away() -> None:
    cluster, fanout = stage()
    cluster.faults.fail("get", NODES, Unavailable("refused"), times=EVER)
    sick = cluster.faults.fail("patch", GPUNODES, Unavailable("refused"), times=EVER)
    assert type(await refused(fanout, "get", "gpu-1")) is Unavailable
    assert type(await refused(fanout, "get", "gpu-2")) is Unavailable
    assert isinstance(await refused(fanout, "patch", "gpu-3"), ServerAway)
    assert isinstance(await refused(fanout, "get", "gpu-1"), ServerAway), "and all others after it"
    sick.lift()
    await fanout.patch(GPUNODES, "gpu-1", {})
    assert type(await refused(fanout, "get", "gpu-1")) is Unavailable, "one answer is enough"


async def test_lists_of_everything_are_as_many_objects_as_there_are_kinds() -> None:
    cluster, fanout = stage()
    cluster.faults.fail("list", None, Unavailable("refused"), times=EVER)
    for resource, error in ((NODES, Unavailable), (PODS, Unavailable), (GPUNODES, ServerAway)):
        with pytest.raises(KubeError) as caught:
            await fanout.list_page(resource)
        assert type(caught.value) is error


async def test_a_success_in_between_makes_it_single_failures() -> None:
    cluster, fanout = stage()
    cluster.faults.fail("get", NODES, Unavailable("502"), times=EVER)
    cluster.faults.fail("patch", GPUNODES, Unavailable("502"), name="gpu-2", times=EVER)
    for _ in range(9):
        assert type(await refused(fanout, "get", "gpu-1")) is Unavailable
        assert type(await refused(fanout, "patch", "gpu-2")) is Unavailable
        await fanout.patch(GPUNODES, "gpu-3", {})
        assert type(await refused(fanout, "get", "gpu-3")) is Unavailable
        await fanout.patch(GPUNODES, "gpu-3", {})


async def test_one_node_that_fails_in_everything_is_still_one_node() -> None:
    cluster, fanout = stage()
    for resource in (NODES, GPUNODES):
        for verb in ("get", "patch"):
            cluster.faults.fail(verb, resource, Unavailable("502"), name="gpu-1", times=EVER)
    cluster.faults.fail("list", PODS, Unavailable("502"), selector="spec.nodeName=gpu-1", times=EVER)
    for _ in range(9):
        assert type(await refused(fanout, "get", "gpu-1")) is Unavailable
        assert type(await refused(fanout, "patch", "gpu-1")) is Unavailable
        with pytest.raises(Unavailable):
            await fanout.list_page(PODS, field_selector="spec.nodeName=gpu-1")


async def test_a_webhook_that_refuses_every_eviction_is_no_server_that_is_away() -> None:
    cluster, fanout = stage()
    cluster.faults.fail("evict", PODS, Unavailable("504"), times=EVER)
    for number in range(20):
        with pytest.raises(Unavailable):
            await fanout.evict("team-a", f"llm-{number}", "uid")


async def test_a_refusal_is_an_answer() -> None:
    cluster, fanout = stage()
    cluster.faults.fail("get", NODES, Unavailable("502"), times=EVER)
    cluster.faults.fail("evict", PODS, EvictionBlocked("needs 2"), times=EVER)
    cluster.faults.fail("get", POLICIES, NotFound("gone"), times=EVER)
    for name in ("gpu-1", "gpu-2", "gpu-3"):
        assert type(await refused(fanout, "get", name)) is Unavailable
        with pytest.raises(EvictionBlocked):
            await fanout.evict("team-a", "llm-0", "uid")
    cluster.faults.fail("patch", GPUNODES, Unavailable("502"), times=EVER)
    assert type(await refused(fanout, "patch", "gpu-1")) is Unavailable


@virtually
async def test_calls_that_hang_while_others_are_answered_say_nothing_about_the_server() -> None:
    cluster, fanout = stage()
    for name in ("gpu-1", "gpu-2"):
        cluster.faults.fail("get", NODES, SILENCE, name=name)
    cluster.faults.fail("patch", GPUNODES, SILENCE, name="gpu-1")
    async with asyncio.TaskGroup() as group:
        hanging = [
            group.create_task(refused(fanout, *call))
            for call in (("get", "gpu-1"), ("get", "gpu-2"), ("patch", "gpu-1"))
        ]
        await asyncio.sleep(5)
        await fanout.get(NODES, "gpu-3")
    assert {type(task.result()) for task in hanging} == {Unavailable}


@pytest.mark.parametrize(("options", "slots"), [({"parallel": 2}, 2), ({}, 16)], ids=["2", "not told"])
@virtually
async def test_no_more_calls_are_under_way_than_there_are_slots(options: dict[str, int], slots: int) -> None:
    cluster, fanout = stage(**options)
    sick = cluster.faults.fail("get", NODES, SILENCE, times=EVER)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(refused(fanout, "get", f"gpu-{number % 3}")) for number in range(3 * slots)]
        await asyncio.sleep(1)
        assert sick.hits == slots
        await asyncio.sleep(30)
        assert all(task.done() for task in tasks)


async def refuse_all(fanout: KubeClient, verb: str) -> list[type[KubeError]]:
    return [type(await refused(fanout, verb, name)) for name in ("gpu-1", "gpu-2", "gpu-3")]


@virtually
async def test_a_429_about_three_objects_holds_back_that_verb_of_that_kind_only_until_its_time() -> None:
    cluster, fanout = stage()
    busy = cluster.faults.fail("get", NODES, Throttled("slow down", 30.0), times=EVER)
    assert await refuse_all(fanout, "get") == [Throttled] * 3
    cluster.add(NODES, node("gpu-4"))
    for _ in range(29):
        error = await refused(fanout, "get", "gpu-4")
        assert isinstance(error, HeldBack)
        assert error.retry_after is not None
        await fanout.patch(NODES, "gpu-4", {})
        await fanout.patch(GPUNODES, "gpu-1", {})
        await asyncio.sleep(1)
    assert busy.hits == 3
    busy.lift()
    await asyncio.sleep(1)
    await fanout.get(NODES, "gpu-4")


@virtually
async def test_every_call_is_held_back_while_nodes_and_something_else_are_refused() -> None:
    cluster, fanout = stage()
    nodes = cluster.faults.fail("get", NODES, Throttled("slow down", 30.0), times=EVER)
    others = cluster.faults.fail("patch", GPUNODES, Throttled("slow down", 20.0), times=EVER)
    assert await refuse_all(fanout, "patch") == [Throttled] * 3
    await fanout.get(PODS, "llm-0", namespace="team-a")
    assert await refuse_all(fanout, "get") == [Throttled] * 3
    for client in (fanout, PublishingClient(fanout)):
        with pytest.raises(HeldBack):
            await client.get(PODS, "llm-0", namespace="team-a")
    assert fanout.hold_left() == 20.0, "as long as both are refused"
    nodes.lift()
    others.lift()
    await asyncio.sleep(20)
    await fanout.get(PODS, "llm-0", namespace="team-a")


@virtually
async def test_a_refusal_of_what_is_published_holds_back_nothing_that_is_decided() -> None:
    cluster, fanout = stage()
    published = PublishingClient(fanout)
    busy = cluster.faults.fail("patch", GPUNODES, Throttled("slow down", 30.0), times=3)
    assert await refuse_all(published, "patch") == [Throttled] * 3
    assert await refuse_all(published, "patch") == [HeldBack] * 3
    for name in ("gpu-1", "gpu-2", "gpu-3"):
        await fanout.patch(GPUNODES, name, {})
    assert await refuse_all(published, "patch") == [HeldBack] * 3, "the answer was to another flow"
    assert busy.hits == 3
    cluster.faults.fail("get", NODES, Throttled("slow down", 30.0), times=3)
    assert await refuse_all(fanout, "get") == [Throttled] * 3
    await fanout.get(PODS, "llm-0", namespace="team-a")


async def test_what_cannot_be_published_makes_no_server_that_is_away() -> None:
    cluster, fanout = stage()
    published = PublishingClient(fanout)
    cluster.faults.fail("patch", GPUNODES, Unavailable("503"), times=EVER)
    cluster.faults.fail("get", NODES, Unavailable("503"), times=EVER)
    assert await refuse_all(published, "patch") == [Unavailable] * 3
    assert type(await refused(fanout, "get", "gpu-1")) is Unavailable
    assert isinstance(await refused(published, "get", "gpu-1"), ServerAway), "but it stops the publishing"


@virtually
async def test_an_answer_in_between_makes_it_single_refusals() -> None:
    cluster, fanout = stage()
    cluster.faults.fail("get", NODES, Throttled("slow down", 30.0), name="gpu-1")
    cluster.faults.fail("get", NODES, Throttled("slow down", 30.0), name="gpu-2")
    cluster.add(NODES, node("gpu-4"))
    await refused(fanout, "get", "gpu-1")
    await refused(fanout, "get", "gpu-2")
    await fanout.get(NODES, "gpu-3")
    cluster.faults.fail("get", NODES, Throttled("slow down", 30.0), name="gpu-3")
    await refused(fanout, "get", "gpu-3")
    await fanout.get(NODES, "gpu-4")


@virtually
async def test_a_429_about_one_object_alone_holds_back_that_object_only() -> None:
    cluster, fanout = stage()
    sick = cluster.faults.fail("get", NODES, Throttled("slow down", 10.0), name="gpu-1", times=EVER)
    for _ in range(100):
        assert isinstance(await refused(fanout, "get", "gpu-1"), Throttled)
        await fanout.get(NODES, "gpu-2")
        await asyncio.sleep(1)
    assert sick.hits == 10
    assert fanout.hold_left() < 0


@virtually
async def test_a_429_about_the_pods_of_one_node_holds_back_no_other_list_of_pods() -> None:
    cluster, fanout = stage()
    cluster.faults.fail("list", PODS, Throttled("slow down", 10.0), selector="spec.nodeName=gpu-1")
    for error in (Throttled, HeldBack):
        with pytest.raises(error):
            await fanout.list_page(PODS, field_selector="spec.nodeName=gpu-1")
    await fanout.list_page(PODS, field_selector="spec.nodeName=gpu-2")


@virtually
async def test_a_refused_object_that_nobody_asks_for_again_is_forgotten() -> None:
    cluster, fanout = stage()
    cluster.faults.fail("get", NODES, Throttled("slow down", 1.0), times=2)
    await refused(fanout, "get", "gpu-1")
    await asyncio.sleep(1000)
    await refused(fanout, "get", "gpu-2")
    assert [target.name for target in fanout.objects] == ["gpu-2"]
    assert [target.name for target in fanout.pauses] == ["gpu-2"]


@virtually
async def test_objects_of_a_door_that_never_answers_are_forgotten_one_by_one() -> None:
    """Their number would grow for ever, and refusals of long ago would close the door."""
    cluster, fanout = stage()
    cluster.faults.fail("get", NODES, Throttled("slow down", 1.0), times=EVER)
    for name in ("gpu-1", "gpu-2", "gpu-3"):
        await refused(fanout, "get", name)
        await asyncio.sleep(1000)
    assert [[target.name for target in door] for door in fanout.refused.values()] == [["gpu-3"]]
    assert fanout.doors == {}


@virtually
async def test_nobody_is_held_back_for_more_than_a_minute() -> None:
    cluster, fanout = stage()
    cluster.faults.fail("get", NODES, Throttled("slow down", 86400.0), times=3)
    await refuse_all(fanout, "get")
    await asyncio.sleep(59)
    assert await refuse_all(fanout, "get") == [HeldBack] * 3
    await asyncio.sleep(1)
    await fanout.get(NODES, "gpu-1")


@virtually
async def test_without_a_time_to_wait_the_waits_double() -> None:
    cluster, fanout = stage()
    sick = cluster.faults.fail("get", NODES, Throttled("slow down"), name="gpu-1", times=EVER)
    for _ in range(62):
        await refused(fanout, "get", "gpu-1")
        await fanout.get(NODES, "gpu-2")
        await asyncio.sleep(1)
    assert sick.hits == 6, "at 0, 1, 3, 7, 15 and 31 s"


@virtually
async def test_refusals_of_long_ago_do_not_lengthen_a_wait() -> None:
    cluster, fanout = stage()
    sick = cluster.faults.fail("get", NODES, Throttled("slow down"), name="gpu-1", times=EVER)
    for pause in (1, 2, 1000, 1):
        await refused(fanout, "get", "gpu-1")
        await asyncio.sleep(pause)
    await refused(fanout, "get", "gpu-1")
    assert sick.hits == 5, "at 0, 1, 3, 1003 and 1004 s"


async def test_a_list_whose_last_page_has_come_is_whole_although_a_hold_begins() -> None:
    cluster, fanout = stage()
    sick = cluster.faults.fail("list", NODES, Throttled("slow down", 30.0), times=0)
    names = []
    async for page in pages_of(fanout, NODES, 2):
        names += [raw["metadata"]["name"] for raw in page.items]
        if len(names) == 3:
            sick.times = EVER
            for selector in "abc":
                with pytest.raises(Throttled):
                    await fanout.list_page(NODES, label_selector=selector)
    assert names == ["gpu-1", "gpu-2", "gpu-3"]


async def test_an_object_without_metadata_is_passed_on_as_it_is() -> None:
    cluster, fanout = stage()
    cluster.faults.fail("create", ACCESS_REVIEWS, Forbidden("no right"))
    with pytest.raises(Forbidden, match="no right"):
        await fanout.create(ACCESS_REVIEWS, {"spec": {}})


async def test_every_key_is_worked_on_in_order_and_no_more_at_once_than_allowed() -> None:
    begun: list[str] = []
    at_once, most = 0, 0

    async def work(key: str) -> None:
        nonlocal at_once, most
        begun.append(key)
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1

    await Workers(3).each("abcdefgh", work)
    assert (begun, most) == (list("abcdefgh"), 3)


@virtually
async def test_a_round_that_begins_as_soon_as_another_has_ended_has_all_its_workers() -> None:
    begun: list[str] = []

    async def work(key: str) -> None:
        begun.append(key)
        await asyncio.sleep(0.01)

    workers = Workers(2)
    await workers.each("ab", work)
    await workers.each(["next"], work)
    assert begun == ["a", "b", "next"]


async def test_nothing_to_do_is_done() -> None:
    async def work(key: str) -> None:
        raise AssertionError(key)

    await Workers(16).each([], work)


@virtually
async def test_what_takes_long_goes_on_and_is_left_out_of_later_rounds_until_it_is_done() -> None:
    late: list[str] = []
    begun: list[str] = []

    async def work(key: str) -> None:
        begun.append(key)
        if key == "slow":
            await asyncio.sleep(9)

    workers = Workers(4, lambda: late.append("done"))
    clock = asyncio.get_running_loop().time
    before = clock()
    await workers.each(["slow", "a", "b"], work)
    assert clock() - before == 1.0
    assert workers.busy == {"slow"}
    await workers.each(["slow", "c"], work)
    assert clock() - before == 1.0, "nobody waits for it a second time"
    assert begun == ["slow", "a", "b", "c"]
    await asyncio.sleep(10)
    assert (late, workers.busy) == (["done"], set())
    await workers.each(["slow"], work)
    assert begun[-1] == "slow"
    await workers.close()


@virtually
async def test_a_slow_server_is_waited_for_while_it_answers_but_not_for_ever() -> None:
    done: list[str] = []

    async def work(key: str) -> None:
        await asyncio.sleep(0.5)
        done.append(key)

    workers = Workers(2)
    await workers.each(map(str, range(16)), work)
    assert len(done) == 16
    await workers.close()
    workers = Workers(2)
    await workers.each(map(str, range(100)), work)
    assert len(done) - 16 == 2 * 10.0 / 0.5
    await workers.close()


@pytest.mark.parametrize("failing", range(4))
async def test_the_first_error_ends_all_work_and_no_task_is_left(failing: int) -> None:
    ended: list[str] = []

    async def work(key: str) -> None:
        if key == str(failing):
            raise ValueError(key)
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(key)

    workers, before = Workers(4), asyncio.all_tasks()
    with pytest.raises(ExceptionGroup) as caught:
        await workers.each(["0", "1", "2", "3"], work)
    assert [str(error) for error in caught.value.exceptions] == [str(failing)]
    assert asyncio.all_tasks() == before
    assert workers.busy == set()


@virtually
async def test_the_first_error_is_raised_at_once_and_not_when_the_others_are_no_longer_waited_for() -> None:
    async def work(key: str) -> None:
        await asyncio.sleep(3600 if key == "slow" else 0)
        raise ValueError(key)

    begun = asyncio.get_running_loop().time()
    with pytest.raises(ExceptionGroup):
        await Workers(4).each(["slow", "broken"], work)
    assert asyncio.get_running_loop().time() == begun


@virtually
async def test_an_error_for_which_nobody_waited_is_raised_by_the_next_round() -> None:
    async def work(key: str) -> None:
        if key == "slow":
            await asyncio.sleep(5)
            raise ValueError(key)

    workers = Workers(4)
    await workers.each(["slow"], work)
    await asyncio.sleep(5)
    with pytest.raises(ExceptionGroup):
        await workers.each(["a"], work)
    await workers.each(["a"], work)


@virtually
async def test_who_is_cancelled_ends_its_work_first() -> None:
    async def work(key: str) -> None:
        await asyncio.sleep(3600)

    workers, before = Workers(4), asyncio.all_tasks()
    task = asyncio.create_task(workers.each(["a", "b"], work))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait({task})
    assert asyncio.all_tasks() == before

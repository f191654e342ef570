"""Work side by side, none of which holds up the others, and no task of which outlives it."""

import asyncio

import pytest
from tests.fakes.virtualtime import virtually

from gpusharing.kube.fanout import Workers


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

"""Some calls at once, however many there are to make."""

import asyncio

import pytest

from gpusharing.controller.parallel import each


async def test_every_item_is_worked_on_in_order_and_no_more_at_once_than_allowed() -> None:
    begun: list[int] = []
    at_once, most = 0, 0

    async def work(item: int) -> None:
        nonlocal at_once, most
        begun.append(item)
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1

    await each(range(10), work, 3)
    assert (begun, most) == (list(range(10)), 3)


async def test_the_first_error_ends_the_others_and_is_raised() -> None:
    ended: list[str] = []

    async def work(item: str) -> None:
        if item == "bad":
            raise ValueError(item)
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(item)

    with pytest.raises(ExceptionGroup) as caught:
        await each(["slow", "bad", "never"], work, 2)
    assert [str(error) for error in caught.value.exceptions] == ["bad"]
    assert ended == ["slow"]


async def test_nothing_to_do_is_done() -> None:
    async def work(item: str) -> None:
        raise AssertionError(item)

    await each([], work, 16)

"""Does the tests' web server close what arrives while it closes?"""

import asyncio
import socket

import pytest
from aiohttp import web
from tests.fakes.serving import serving
from yarl import URL


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_arrives_just_before_the_end_is_closed(turns: int) -> None:
    async with serving(web.Application()) as url:
        client = socket.create_connection(("127.0.0.1", URL(url).port or 0), timeout=10)
        for _ in range(turns):
            await asyncio.sleep(0)
    with client:
        assert client.recv(1) == b""

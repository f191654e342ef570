"""How long HttpClient waits for a server that is silent, in virtual time."""

import socket

import pytest
from tests.fakes.login import AnonymousLogin
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.kube.client import NODES
from gpusharing.kube.errors import Unavailable
from gpusharing.kube.http import HttpClient


@pytest.mark.parametrize(
    ("waiting", "least", "most"),
    [(0, 10.0, 11.0), (2, 3.0, 3.1)],
    ids=["it accepts the connection and says nothing", "it does not accept the connection"],
)
@virtually
async def test_a_silent_server_is_given_up_after_three_seconds_or_once_connected_after_ten(
    waiting: int, least: float, most: float
) -> None:
    """The kernel accepts one connection for a server with a backlog of 0, and lets the others wait."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        before = [socket.socket() for _ in range(waiting)]
        for one in before:
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        async with HttpClient(AnonymousLogin(f"http://127.0.0.1:{server.getsockname()[1]}")) as client:
            begun = virtual_now()
            with pytest.raises(Unavailable):
                await client.get(NODES, "n")
            assert least <= (virtual_now() - begun).total_seconds() <= most
        for one in before:
            one.close()

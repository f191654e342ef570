"""A call of the agent that was given up while its thread waited for a name server, which nothing can interrupt."""

import socket

import pytest

from gpusharing.agent.rest import _Exchange
from gpusharing.kube.client import GPUNODES, ApiRequest
from gpusharing.kube.login import Access


def test_a_write_that_was_given_up_before_it_had_a_connection_is_never_sent() -> None:
    """A newer one may have been made meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        access = Access(f"http://{host}:{port}", None)
        request = ApiRequest("patch", GPUNODES, "status", name="gpu-01", body={})
        exchange = _Exchange(request, access, None)
        exchange.shut()
        with pytest.raises(ConnectionAbortedError):
            exchange.answer()
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100) == b""

"""A call of the agent that was given up before its request was sent: while its thread waited for a name server, which nothing can interrupt, or for the server's part of the TLS handshake."""

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpusharing.agent.rest import _Exchange
from gpusharing.kube.client import GPUNODES, ApiRequest
from gpusharing.kube.login import Access

REQUEST = ApiRequest("patch", GPUNODES, "status", name="gpu-01", body={})
SECONDS = 5.0
"""The longest wait. The agent itself waits for 15 seconds at each step."""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_write_that_was_given_up_before_it_had_a_connection_is_never_sent(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        tls = ssl.create_default_context() if scheme == "https" else None
        exchange = _Exchange(REQUEST, Access(f"{scheme}://{host}:{port}", tls), None)
        exchange.shut()
        with pytest.raises(ConnectionAbortedError):
            exchange.answer()
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100) == b""


def test_a_write_that_was_given_up_during_the_tls_handshake_is_never_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as threads:
        host, port = server.getsockname()
        tls = ssl.create_default_context()
        exchange = _Exchange(REQUEST, Access(f"https://{host}:{port}", tls), None)
        call = threads.submit(exchange.answer)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(SECONDS)
            assert connection.recv(1), "the handshake began"
            exchange.shut()
            while connection.recv(4096):
                pass  # the rest of the first message, and then the end
            assert isinstance(call.exception(SECONDS), OSError)

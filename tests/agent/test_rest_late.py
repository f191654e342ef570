"""A call of the agent that was given up while its thread waited for a name server, which nothing can interrupt."""

import socket

import pytest

from gpusharing.agent.rest import _exchange, _Named, _Sent, _shut
from gpusharing.kube.client import GPUNODES, ApiRequest
from gpusharing.kube.login import Access


def test_a_write_that_was_given_up_before_it_had_a_connection_is_never_sent() -> None:
    """A newer one may have been made meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        access = Access(f"http://{host}:{port}", None)
        request = ApiRequest("patch", GPUNODES, "status", name="gpu-01", body={})
        sent = _Sent(request, access, _Named(host, port, access), None)
        _shut(sent)
        with pytest.raises(ConnectionAbortedError):
            _exchange(sent)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100) == b""

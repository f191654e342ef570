"""SIMULATED: the kubelet's log endpoint, so that the API server can answer `pods/log` of a kwok node.

The API server asks the address and the port in the Node's status, over TLS whose certificate it does not check
(no --kubelet-certificate-authority here).
"""

import ssl
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hack.cluster.certs import create_pki

HOST = "127.0.0.1"


class _Server(ThreadingHTTPServer):
    """The demo shows our standard error."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of who hangs up before the answer is there."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class LogServer:
    """Serves `/containerLogs/NAMESPACE/POD/CONTAINER`. `find` gives the file of a pod by name, or None."""

    def __init__(self, folder: Path, find: Callable[[str], Path | None]) -> None:
        """`folder` is for a certificate of its own."""
        pki = create_pki(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.cert("serving"), pki.key("serving"))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # http.server's name
                _answer(self, find)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing: the API server's audit log has it."""

        self._server = _Server((HOST, 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,))

    def status(self) -> dict[str, Any]:
        """What the Node's status must say."""
        port = self._server.server_address[1]
        addresses = [{"type": "InternalIP", "address": HOST}]
        return {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End, also before it was started."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _answer(request: BaseHTTPRequestHandler, find: Callable[[str], Path | None]) -> None:
    parts = urlsplit(request.path)
    folders = parts.path.strip("/").split("/")
    file = find(folders[2]) if folders[0] == "containerLogs" and len(folders) == 4 else None
    if file is None or not file.exists():
        request.send_error(HTTPStatus.NOT_FOUND)
        return
    lines = file.read_bytes().splitlines(keepends=True)
    asked = parse_qs(parts.query).get("tailLines")
    body = b"".join(lines[-int(asked[0]) :] if asked else lines)
    request.send_response(HTTPStatus.OK)
    request.send_header("Content-Type", "text/plain")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)

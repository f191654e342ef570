"""A web server for tests, on loopback."""

import ssl
import sys
from http.server import ThreadingHTTPServer
from typing import Any


class WebServer(ThreadingHTTPServer):
    """Writes nothing to standard error when somebody hangs up: what the program under test says there is compared."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who has an answer, or does not trust us, may go at any time; any other failure is the test's own."""
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)

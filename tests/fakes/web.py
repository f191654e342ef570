"""A web server for tests, on loopback."""

import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any


class WebServer(ThreadingHTTPServer):
    """Writes nothing to standard error when somebody hangs up: what the program under test says there is compared."""

    daemon_threads = True
    request_queue_size = 128

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve in a thread until the block ends. The thread looks every 10 ms whether it has ended."""
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        with self:
            thread.start()
            try:
                yield
            finally:
                self.shutdown()
                thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who has an answer, or does not trust us, may go at any time; any other failure is the test's own."""
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)

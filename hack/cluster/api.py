"""A small synchronous client of the API server for the development tools: raw JSON over kept-alive connections.

The shipped operator has its own client (`gpusharing.kube.client`). Tools and tests read the cluster with this one, so
that an error in the shipped client cannot hide itself.
"""

import http.client
import json
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
TIMEOUT_SECONDS = 30.0

IDLE_SECONDS = 30.0
"""Seconds after which an idle connection is reopened, because the server closes idle ones without notice."""

Object = dict[str, Any]
T = TypeVar("T")
R = TypeVar("R")


class ApiError(Exception):
    """The API server refused a request."""

    def __init__(self, method: str, path: str, status: int, body: str) -> None:
        """Record the HTTP status and the body of the answer, which is usually a Status object as JSON. The text of the
        error has the method, the path, the status and the server's `message`."""
        self.status = status
        self.body = body
        super().__init__(f"{method} {path}: {status} {self.message}")

    @property
    def message(self) -> str:
        """The server's message: the one in its Status object or, if the body is not such an object, the whole body."""
        try:
            return str(json.loads(self.body)["message"])
        except (ValueError, KeyError, TypeError):
            return self.body.strip()


@dataclass(frozen=True)
class Credentials:
    """Our credentials for the API server: a client certificate with its key, or a bearer token, or none."""

    cert: Path | None = None
    key: Path | None = None
    token: str | None = None


class Api:
    """A client of one API server that acts as one user. Safe to use from several threads."""

    def __init__(self, url: str, ca_pem: str, credentials: Credentials) -> None:
        """Prepare a client without connecting. `url` is the server's address as in a kubeconfig, and `ca_pem` the
        certificate of the authority to trust. A certificate is used if its key is there too, and a token is sent in
        each request. The files in `credentials` are read now; OSError is raised if that fails."""
        parts = urllib.parse.urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self.url, self.ca_pem = url, ca_pem
        self._context = ssl.create_default_context(cadata=ca_pem)
        self._headers = {"Accept": JSON}
        if credentials.cert and credentials.key:
            self._context.load_cert_chain(credentials.cert, credentials.key)
        if credentials.token:
            self._headers["Authorization"] = f"Bearer {credentials.token}"
        self._idle: list[tuple[float, http.client.HTTPSConnection]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Return this client; connections are opened when they are needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the idle connections of this client."""
        self.close()

    def close(self) -> None:
        """Close the idle connections. The client can still be used, and opens new ones."""
        with self._lock:
            for _, connection in self._idle:
                connection.close()
            self._idle.clear()

    def as_token(self, token: str) -> "Api":
        """Return a client for the same server that authenticates with the bearer token `token`."""
        return Api(self.url, self.ca_pem, Credentials(token=token))

    def as_nobody(self) -> "Api":
        """Return a client for the same server that sends no credentials."""
        return Api(self.url, self.ca_pem, Credentials())

    def request(self, method: str, path: str, body: object = None, content_type: str = JSON, **query: str) -> Any:
        """Send one request and return the decoded JSON, or the body as a string if its content type is not JSON. A
        `body` is sent as JSON with `content_type`; None sends none. `query` are the query parameters. The request is
        sent once, and is not repeated after an error.

        Raises ApiError if the server answered with status 400 or above, and OSError if it gave no complete answer,
        among them TimeoutError if it sent nothing for TIMEOUT_SECONDS.
        """
        target = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers if data is None else {**self._headers, "Content-Type": content_type}
        with self._connection() as connection:
            connection.request(method, target, data, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        if answer.status >= 400:
            raise ApiError(method, target, answer.status, text)
        return json.loads(text) if answer.headers.get_content_type() == JSON else text

    def get(self, path: str, **query: str) -> Any:
        """GET an object or a list, or a plain string from paths such as /readyz. `query` are the query parameters.
        Raises ApiError for status 400 or above, and OSError if the server gives no complete answer."""
        return self.request("GET", path, **query)

    def list(self, path: str, **query: str) -> list[Object]:
        """GET a collection in a single request and return its items: all of them, unless `query` has a limit. Raises
        ApiError for status 400 or above, and OSError if the server gives no complete answer."""
        items: list[Object] = self.get(path, **query)["items"]
        return items

    def create(self, path: str, manifest: Object) -> Object:
        """POST an object to a collection or a subresource, and return it as the server stored it. Raises ApiError, with
        status 409 if an object of this name exists, and OSError if the server gives no complete answer."""
        created: Object = self.request("POST", path, manifest)
        return created

    def ensure(self, path: str, manifest: Object) -> None:
        """POST an object to a collection. If the server answers 409, because an object of the same name exists, that
        object is left unchanged. Other ApiErrors are raised, and so is OSError."""
        try:
            self.create(path, manifest)
        except ApiError as error:
            if error.status != 409:
                raise

    def merge_patch(self, path: str, patch: Object) -> Object:
        """PATCH an object with a JSON merge patch, in which null removes a key, and return the object as stored. Raises
        ApiError, with status 404 if there is no such object, and OSError if the server gives no complete answer."""
        patched: Object = self.request("PATCH", path, patch, MERGE_PATCH)
        return patched

    def apply(self, path: str, manifest: Object, manager: str = "gpusharing-dev") -> Object:
        """Create or change the object at `path`, its own path, by server-side apply, with conflicts forced. Return the
        object as stored. Fields that are not in `manifest` stay as they are, unless only `manager` had applied them:
        then they are removed. Raises ApiError and OSError, as `request` does."""
        applied: Object = self.request("PATCH", path, manifest, APPLY_PATCH, fieldManager=manager, force="true")
        return applied

    def delete(self, path: str, options: Object | None = None) -> Any:
        """DELETE an object or a collection, with `options` (DeleteOptions) as the body, and return the answer. Raises
        ApiError, with status 404 if there is no such object, and OSError if the server gives no complete answer."""
        return self.request("DELETE", path, options)

    def changes(self, path: str, version: str, seconds: int = 5, **query: str) -> Generator[Object, None, None]:
        """Watch a collection for `seconds`. For each write after the resourceVersion `version`, yield the object as
        that write left it; a deleted object is yielded in its last state. Unlike repeated GETs, a watch does not miss a
        state that lasts only for a moment.

        Raises ApiError if the server refuses, with status 410 if it no longer has the changes since `version`, and
        OSError if it sends nothing for TIMEOUT_SECONDS.
        """
        parameters = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(seconds), **query}
        target = f"{path}?{urllib.parse.urlencode(parameters)}"
        with closing(self._new_connection()) as connection:
            connection.request("GET", target, headers=self._headers)
            answer = connection.getresponse()
            if answer.status >= 400:
                raise ApiError("GET", target, answer.status, answer.read().decode())
            while line := answer.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError("GET", target, int(event["object"]["code"]), json.dumps(event["object"]))
                yield event["object"]

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPSConnection]:
        """Yield a connection for one request, and keep it for later requests. An idle one is used if there is one; it
        is reopened if it has been idle for more than IDLE_SECONDS. After any error the connection is closed and not
        kept, because the rest of a response may still be in it. An HTTPException of the block, such as that of an
        answer cut short, is raised as ConnectionError, an OSError."""
        with self._lock:
            used, connection = self._idle.pop() if self._idle else (0.0, self._new_connection())
        if time.monotonic() - used > IDLE_SECONDS:
            connection.close()  # http.client opens it again by itself
        try:
            yield connection
        except BaseException as error:
            connection.close()
            if isinstance(error, http.client.HTTPException):
                raise ConnectionError(f"{self.url} gave no complete answer: {error!r}") from error
            raise
        with self._lock:
            self._idle.append((time.monotonic(), connection))

    def _new_connection(self) -> http.client.HTTPSConnection:
        """Return a connection that opens when it is first used."""
        return http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_SECONDS, context=self._context)


def in_parallel(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Call `work` for every item, in eight threads, and return the results in the order of the items. If calls fail,
    calls that have not begun are canceled, and once the running ones have ended, the error of the first item that
    failed is raised."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, items))


def selector(labels: Mapping[str, str]) -> str:
    """Return labels, sorted by key, as the value of a labelSelector query parameter; empty without labels."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))

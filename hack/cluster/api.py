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
    def __init__(self, method: str, path: str, status: int, body: str) -> None:
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
    """A client of one API server that acts as one user."""

    def __init__(self, url: str, ca_pem: str, credentials: Credentials) -> None:
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
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
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
        """Send a request once. Raises ApiError for status 400 or above, and OSError without a complete answer."""
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
        """GET an object or a list, or a plain string from paths such as /readyz."""
        return self.request("GET", path, **query)

    def list(self, path: str, **query: str) -> list[Object]:
        """GET a collection in a single request and return its items: all of them, unless `query` has a limit."""
        items: list[Object] = self.get(path, **query)["items"]
        return items

    def create(self, path: str, manifest: Object) -> Object:
        """POST an object to a collection or a subresource, and return it as the server stored it."""
        created: Object = self.request("POST", path, manifest)
        return created

    def ensure(self, path: str, manifest: Object) -> None:
        """Create an object unless one of this name exists, which is left unchanged."""
        try:
            self.create(path, manifest)
        except ApiError as error:
            if error.status != 409:
                raise

    def merge_patch(self, path: str, patch: Object) -> Object:
        """PATCH an object with a JSON merge patch, in which null removes a key, and return the object as stored."""
        patched: Object = self.request("PATCH", path, patch, MERGE_PATCH)
        return patched

    def apply(self, path: str, manifest: Object, manager: str = "gpusharing-dev") -> Object:
        """Create or change an object by server-side apply, with force."""
        applied: Object = self.request("PATCH", path, manifest, APPLY_PATCH, fieldManager=manager, force="true")
        return applied

    def delete(self, path: str, options: Object | None = None) -> Any:
        return self.request("DELETE", path, options)

    def changes(self, path: str, version: str, seconds: int = 5, **query: str) -> Generator[Object, None, None]:
        """Yield each object as a write after `version` left it. Unlike repeated GETs, this misses no state."""
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
        """Yield a connection for one request. An error closes it: the rest of a response may be in it."""
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
        return http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_SECONDS, context=self._context)


def in_parallel(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Call `work` for every item in eight threads; raises the error of the first item that failed."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, items))


def selector(labels: Mapping[str, str]) -> str:
    """Return labels, sorted by key, as the value of a labelSelector query parameter; empty without labels."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def is_true(obj: Object, condition: str) -> bool:
    """Whether a condition is True, and for the present generation if it names one, as `kubectl wait` checks it."""
    present = obj.get("metadata", {}).get("generation")
    rows = [row for row in (obj.get("status") or {}).get("conditions") or () if row["type"] == condition]
    return any(row["status"] == "True" and row.get("observedGeneration", present) == present for row in rows)

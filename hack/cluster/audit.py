"""The API server's audit log as Python values: who requested what, and how often, for RBAC checks and the
benchmark."""

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hack.cluster.api import Api
from hack.cluster.process import wait_until

LOGGED_SECONDS = 60.0
READS = frozenset({"get", "list", "watch"})
POD = "authentication.kubernetes.io/pod-name"


@dataclass(frozen=True, slots=True)
class AuditedRequest:
    """One request that the API server has answered, as recorded in the audit log."""

    user: str
    verb: str
    group: str
    resource: str
    """The resource with its subresource, as in RBAC: `pods/eviction`. Empty for paths such as /version."""
    namespace: str
    name: str
    status: int
    at: datetime
    """When the server received the request."""
    user_agent: str
    path: str
    pod: str = ""
    """The pod to which the user's token is bound; empty if it is not bound to a pod."""

    @property
    def is_write(self) -> bool:
        """Whether the verb is any other than get, list and watch."""
        return self.verb not in READS


def lines_since(log: Path, start: int = 0) -> Iterator[bytes]:
    """Yield the complete lines of the log that begin at or after byte `start`, which is the size of the log at an
    earlier moment. Raises FileNotFoundError if there is no log.

    The server does not write a line in one piece. If only a part of a line had been written at that moment, the line
    is skipped, and so is a last line that is still incomplete.
    """
    with log.open("rb") as lines:
        if start:
            lines.seek(start - 1)
            lines.readline()
        for line in lines:
            if not line.endswith(b"\n"):
                return
            yield line


def read_requests(log: Path, user: str | None = None, *, start: int = 0) -> Iterator[AuditedRequest]:
    """Yield the requests in an audit log, in the order in which they ended; only those of `user`, unless it is None.
    Raises FileNotFoundError if there is no log.

    `start` is the size of the log in bytes at an earlier moment, and only what was logged later is read. A watch is
    logged when it starts and when it ends; it is yielded for its start, so that an open watch is included. Any other
    request is yielded once, for its end.
    """
    mark = f'"username":"{user}"'.encode() if user is not None else b""
    for line in lines_since(log, start):
        if mark not in line:
            continue  # skipping it is cheaper than parsing it
        event = json.loads(line)
        if user is not None and event["user"].get("username") != user:
            continue
        if event["verb"] == "watch" and event["stage"] != "ResponseStarted":
            continue
        if event["verb"] != "watch" and event["stage"] == "ResponseStarted":
            continue
        yield _request(event)


def wait_logged(log: Path, api: Api) -> None:
    """Wait until the log contains every request that the server has answered, because the server writes the line after
    it has sent the answer.

    Sends a request with a unique mark, and waits for its line. The lines of earlier requests come before it, unless one
    of them is delayed for longer than a whole request takes. Raises TimeoutError after LOGGED_SECONDS,
    FileNotFoundError if there is no log, and ApiError or OSError if the request fails.
    """
    mark, start = uuid.uuid4().hex, log.stat().st_size
    api.get("/version", mark=mark)

    def logged() -> bool:
        """Whether the log has a line with the mark."""
        return any(mark.encode() in line for line in lines_since(log, start))

    wait_until(logged, LOGGED_SECONDS, "the audit log to show a request", poll=0.002)


def count_verbs(requests: Iterable[AuditedRequest]) -> Counter[tuple[str, str, str]]:
    """Return how often each (API group, resource, verb) was requested. The keys are what a Role must allow."""
    return Counter((request.group, request.resource, request.verb) for request in requests)


def _request(event: dict[str, object]) -> AuditedRequest:
    """Parse an event of the audit log. The resource is followed by a slash and the subresource if there is one. The
    status is 0 unless the event has an HTTP code, and the pod is the first of the names in the user's extra field POD.
    Fields that the event lacks become empty or 0. Only the verb and the time must be there: without them KeyError is
    raised, and for a bad time ValueError."""
    user = _mapping(event.get("user"))
    pods = _mapping(user.get("extra")).get(POD)
    reference = _mapping(event.get("objectRef"))
    resource = str(reference.get("resource", ""))
    if sub := reference.get("subresource"):
        resource = f"{resource}/{sub}"
    code = _mapping(event.get("responseStatus")).get("code", 0)
    return AuditedRequest(
        user=str(user.get("username", "")),
        verb=str(event["verb"]),
        group=str(reference.get("apiGroup", "")),
        resource=resource,
        namespace=str(reference.get("namespace", "")),
        name=str(reference.get("name", "")),
        status=code if isinstance(code, int) else 0,
        at=datetime.fromisoformat(str(event["requestReceivedTimestamp"])),
        user_agent=str(event.get("userAgent", "")),
        path=str(event.get("requestURI", "")),
        pod=str(pods[0]) if isinstance(pods, list) and pods else "",
    )


def _mapping(value: object) -> dict[str, object]:
    """Return `value` if it is a mapping, otherwise an empty mapping."""
    return value if isinstance(value, dict) else {}

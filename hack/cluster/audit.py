"""The API server's audit log as Python values: who requested what, and how often, for RBAC checks and the
benchmark."""

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gpusharing.kube.raw import part, strings, text, whole
from hack.cluster.api import Api
from hack.cluster.process import wait_until

LOGGED_SECONDS = 60.0
READS = frozenset({"get", "list", "watch"})
POD = "authentication.kubernetes.io/pod-name"
PROBE = "asks-whether-admission-counts"
"""The Lease that the harness asks for in the operator's name until admission refuses it."""


@dataclass(frozen=True, slots=True)
class AuditedRequest:
    """One request that the API server has answered, as recorded in the audit log."""

    user: str
    verb: str
    group: str
    resource: str
    """The resource with its subresource, as in RBAC: `pods/eviction`."""
    namespace: str
    name: str
    status: int
    at: datetime
    user_agent: str
    path: str
    pod: str = ""
    """The pod to which the user's token is bound; empty if it is not bound to a pod."""

    @property
    def is_write(self) -> bool:
        """Whether the verb is any other than get, list and watch."""
        return self.verb not in READS


def lines_since(log: Path, start: int = 0) -> Iterator[bytes]:
    """Yield the complete lines that were logged after `start` bytes. The server does not write a line in one piece."""
    with log.open("rb") as lines:
        if start:
            lines.seek(start - 1)
            lines.readline()
        for line in lines:
            if not line.endswith(b"\n"):
                return
            yield line


def read_requests(log: Path, user: str | None = None, *, start: int = 0) -> Iterator[AuditedRequest]:
    """Yield the requests of `user` (None: of all) since `start`, a size of the log, but for PROBE; a watch when it starts."""
    mark = f'"username":"{user}"'.encode() if user is not None else b""
    for line in lines_since(log, start):
        if mark not in line or PROBE.encode() in line:
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
    """Wait until all earlier requests are logged: send one with a unique mark, and wait for its line."""
    mark, start = uuid.uuid4().hex, log.stat().st_size
    api.get("/version", mark=mark)

    def logged() -> bool:
        return any(mark.encode() in line for line in lines_since(log, start))

    wait_until(logged, LOGGED_SECONDS, "the audit log to show a request", poll=0.002)


def _request(event: Mapping[str, object]) -> AuditedRequest:
    subresource = text(event, "objectRef", "subresource")
    return AuditedRequest(
        user=text(event, "user", "username"),
        verb=text(event, "verb"),
        group=text(event, "objectRef", "apiGroup"),
        resource="/".join(filter(None, (text(event, "objectRef", "resource"), subresource))),
        namespace=text(event, "objectRef", "namespace"),
        name=text(event, "objectRef", "name"),
        status=whole(event, "responseStatus", "code"),
        at=datetime.fromisoformat(text(event, "requestReceivedTimestamp")),
        user_agent=text(event, "userAgent"),
        path=text(event, "requestURI"),
        pod=next(iter(strings(part(event, "user", "extra", POD))), ""),
    )

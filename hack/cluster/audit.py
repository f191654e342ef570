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
    """Yield the requests of `user` (None: of all) since `start`, a size of the log; a watch when it starts."""
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
    """Wait until all earlier requests are logged: send one with a unique mark, and wait for its line."""
    mark, start = uuid.uuid4().hex, log.stat().st_size
    api.get("/version", mark=mark)

    def logged() -> bool:
        return any(mark.encode() in line for line in lines_since(log, start))

    wait_until(logged, LOGGED_SECONDS, "the audit log to show a request", poll=0.002)


def count_verbs(requests: Iterable[AuditedRequest]) -> Counter[tuple[str, str, str]]:
    """Return how often each (API group, resource, verb) was requested."""
    return Counter((request.group, request.resource, request.verb) for request in requests)


def _request(event: dict[str, object]) -> AuditedRequest:
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
    return value if isinstance(value, dict) else {}

"""The API server's audit log as values: who did what how often, for RBAC checks and the benchmark."""

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
    """One finished request."""

    user: str
    verb: str
    group: str
    resource: str
    """With its subresource, as RBAC writes it: `pods/eviction`. Empty for paths such as /version."""
    namespace: str
    name: str
    status: int
    at: datetime
    """When the server received it."""
    user_agent: str
    path: str
    pod: str = ""
    """That the token was made for; empty for another login."""

    @property
    def is_write(self) -> bool:
        """Whether the verb may change an object."""
        return self.verb not in READS


def lines_since(log: Path, start: int = 0) -> Iterator[bytes]:
    """The whole lines that were begun since some moment, of which `start` is the size of the log (bytes).

    That may be in the middle of a line: the server does not write one at a stroke. The last one may be half there.
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
    """The requests in an audit log, in the order in which they ended; only those of `user` when given.

    `start`: size of the log (bytes) at some moment; only what was logged since then.
    A watch is logged twice (started, ended); only its start counts, so an open watch is seen as well.
    """
    mark = f'"username":"{user}"'.encode() if user is not None else b""
    for line in lines_since(log, start):
        if mark not in line:
            continue  # cheaper than parsing what is not asked for
        event = json.loads(line)
        if user is not None and event["user"].get("username") != user:
            continue
        if event["verb"] == "watch" and event["stage"] != "ResponseStarted":
            continue
        if event["verb"] != "watch" and event["stage"] == "ResponseStarted":
            continue
        yield _request(event)


def wait_logged(log: Path, api: Api) -> None:
    """Wait until the log shows what the server has answered: it writes a line after the answer has left.

    The line of a request that is asked now comes later than theirs, but for one that is held up for longer than a
    whole request takes.
    """
    mark, start = uuid.uuid4().hex, log.stat().st_size
    api.get("/version", asked=mark)

    def logged() -> bool:
        return any(mark.encode() in line for line in lines_since(log, start))

    wait_until(logged, LOGGED_SECONDS, "the audit log to show a request", poll=0.002)


def count_verbs(requests: Iterable[AuditedRequest]) -> Counter[tuple[str, str, str]]:
    """How often each (group, resource, verb) was used: what a Role must allow, and no more."""
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

"""Values for what passes through the proxy: calls, writes with their answers, and answers that the proxy invents."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from aiohttp import web

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
BLOCKED = 429
"""The status of an eviction that a PodDisruptionBudget refuses. It counts as a write, although it is refused."""
SUBRESOURCES = frozenset({"status", "eviction", "binding", "scale"})
Aim = Callable[[str, str, bytes], bool]
"""A predicate that says whether a write counts for traps and faults, given its method, path and body."""
PROTOBUF = b"k8s\x00"
"""The first bytes of a body in the encoding that Go clients may use instead of JSON."""
VERSION = re.compile(rb'"resourceVersion":\s*"(\d+)"')


@dataclass(eq=False, slots=True)
class Aimed:
    """A count of the writes that `FaultProxy.aim` selected, since its last call."""

    accepts: Aim
    arrived: int = 0
    """Number of selected writes that have arrived, except for those that the server refused."""
    taken: int = 0
    """Number of selected writes that the server has accepted."""


@dataclass(frozen=True, slots=True)
class Incoming:
    method: str
    path: str
    query: str
    """The query of the URL, decoded."""
    body: bytes
    door: str
    """The name of the address that the client uses (`FaultProxy.open_door`); empty for the main one."""
    agent: str
    """The client's User-Agent."""
    number: int
    """The number that this write gets if the server accepts it; 0 if the call is not a write or does not count."""
    since: int
    """The newest resourceVersion that the server had sent through this proxy when the call arrived."""
    mark: int = 0
    """The write's number for traps and faults: `number`, or after `FaultProxy.aim` that among the selected ones."""
    aimed: Aimed | None = None
    """The count of selected writes to which this write belongs, or None if it is not selected or every write counts."""

    @property
    def is_write(self) -> bool:
        return self.method in WRITES

    @property
    def is_watch(self) -> bool:
        return "watch=true" in self.query or "watch=1" in self.query

    @property
    def decoded(self) -> Any:
        """The body as JSON, or None without one and for protobuf, in which helm writes its Secrets."""
        return json.loads(self.body) if self.body and not self.body.startswith(PROTOBUF) else None


@dataclass(frozen=True, eq=False, slots=True)
class OpenWatch:
    path: str
    opened: float


@dataclass(frozen=True, slots=True)
class ProxiedAnswer:
    """A complete answer, either from the server or invented by the proxy."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def response(self) -> web.Response:
        return web.Response(status=self.status, headers=self.headers, body=self.body)

    @property
    def version(self) -> int:
        """The resourceVersion of the object or list in the body, or 0."""
        head = self.body.find(b'"metadata"')
        match = VERSION.search(self.body, head) if head >= 0 else None
        return int(match[1]) if match else 0


@dataclass(frozen=True, slots=True)
class ProxiedWrite:
    number: int
    """The number of the write, from 1 since `reset`; 0 if it does not count: renewals of a Lease and refused writes."""
    method: str
    path: str
    status: int
    user_agent: str
    body: Any
    """The body as JSON, or None if there is none or if it is protobuf."""
    door: str = ""
    since: int = 0
    """As in `Incoming`: the newest resourceVersion that had been sent when the call arrived."""
    version: int = 0
    """The resourceVersion in the answer, or 0 if it has none."""

    @property
    def what(self) -> str:
        """The method and the object without API group and namespace: `PATCH nodes/gpu-1`."""
        parts = self.path.split("/")
        start = 3 if parts[1] == "api" else 4
        rest = parts[start:]
        if rest[0] == "namespaces" and len(rest) > 2:
            rest = rest[2:]
        return f"{self.method} {'/'.join(rest)}"


@dataclass(frozen=True, slots=True)
class PlayedRefusal:
    """A refusal that the proxy invents: an HTTP status and a Status object, as an API server sends them."""

    status: int
    message: str = "the fault proxy says no"
    reason: str = ""
    retry_after: int | None = None
    """Seconds to wait, in the header and in the body, or None."""
    causes: Mapping[str, str] = field(default_factory=dict)
    """The message of each cause, by its reason, such as DisruptionBudget."""

    @property
    def object(self) -> dict[str, Any]:
        details: dict[str, Any] = {
            "causes": [{"reason": reason, "message": message} for reason, message in self.causes.items()]
        }
        if self.retry_after is not None:
            details["retryAfterSeconds"] = self.retry_after
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "details": details,
            "message": self.message,
            "reason": self.reason,
            "code": self.status,
        }

    def answer(self) -> ProxiedAnswer:
        headers = {"Content-Type": "application/json"}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return ProxiedAnswer(self.status, headers, json.dumps(self.object).encode())


@dataclass(slots=True)
class Sick:
    """A fault of one path: calls that match are refused, or get no answer."""

    method: str
    path: str
    answer: PlayedRefusal | None
    """The refusal, or None for no answer at all."""
    query: str
    """A string that the decoded query must contain; an empty one matches every query."""
    times: float = math.inf
    hits: int = 0

    def lift(self) -> None:
        self.times = 0

    def strikes(self, call: Incoming) -> bool:
        """Count and return whether this call is hit; watches never are."""
        if call.is_watch or self.times <= 0 or (call.method, call.path) != (self.method, self.path):
            return False
        if self.query not in unquote_plus(call.query):
            return False
        self.times -= 1
        self.hits += 1
        return True


def is_renewal(path: str, body: bytes) -> bool:
    """Whether a write acquires, renews or releases a Lease: the body has no annotations."""
    if "/leases" not in path:
        return False
    content = json.loads(body) if body else {}
    if isinstance(content, list):
        return not any(str(row.get("path", "")).startswith("/metadata/annotations") for row in content)
    return not (content.get("metadata") or {}).get("annotations")


def object_of(path: str) -> str:
    front, _, last = path.rpartition("/")
    return front if last in SUBRESOURCES and front.count("/") > 3 else path


def collection_of(path: str) -> str:
    """Return the plural in the path of a collection, an object or a subresource, such as `nodes` or `pods`."""
    parts = path.split("/")[3 if path.startswith("/api/") else 4 :]
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    return parts[0]

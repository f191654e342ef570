"""What passes through the proxy, as values: calls, writes with their answers, and answers that it makes up."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from aiohttp import web

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
BLOCKED = 429
"""A PodDisruptionBudget's refusal of an eviction is a point worth dying at, too."""
SUBRESOURCES = frozenset({"status", "eviction", "binding", "scale"})
VERSION = re.compile(rb'"resourceVersion":\s*"(\d+)"')


@dataclass(frozen=True, slots=True)
class Incoming:
    """A call as it came."""

    method: str
    path: str
    query: str
    """Decoded."""
    body: bytes
    door: str
    """Which client: the name under which its door was opened; empty for the front door."""
    agent: str
    number: int
    """What number it gets among the writes if the server takes it; 0 when it is none or does not count."""
    since: int
    """The newest resourceVersion that the server had told through this proxy when it came."""
    mark: int = 0
    """What traps and faults go by: `number`, unless some writes are aimed at: then it counts these, by when they came
    until the server has answered, and by when it answered from then on; 0 for all others."""

    @property
    def is_write(self) -> bool:
        """It may change something."""
        return self.method in WRITES

    @property
    def is_watch(self) -> bool:
        """A stream of events."""
        return "watch=true" in self.query or "watch=1" in self.query

    @property
    def decoded(self) -> Any:
        """The body; None without one."""
        return json.loads(self.body) if self.body else None


@dataclass(frozen=True, eq=False, slots=True)
class OpenWatch:
    """A watch that is open."""

    path: str
    opened: float
    """Loop time."""


@dataclass(frozen=True, slots=True)
class ProxiedAnswer:
    """A whole answer, the server's or a made-up one."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def response(self) -> web.Response:
        """As bytes on the wire."""
        return web.Response(status=self.status, headers=self.headers, body=self.body)

    @property
    def version(self) -> int:
        """resourceVersion of the object or list in it; 0 without one."""
        head = self.body.find(b'"metadata"')
        found = VERSION.search(self.body, head) if head >= 0 else None
        return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class ProxiedWrite:
    """One write that the server answered."""

    number: int
    """Counted from 1 since `reset`; 0 for what does not count: renewals of a Lease and refused writes."""
    method: str
    path: str
    status: int
    user_agent: str
    body: Any
    """Decoded JSON; None without one."""
    door: str = ""
    since: int = 0
    """As of `Incoming`."""
    version: int = 0
    """resourceVersion in the answer; 0 where it has none."""

    @property
    def what(self) -> str:
        """For people: `PATCH nodes/gpu-1`."""
        parts = self.path.split("/")
        start = 3 if parts[1] == "api" else 4
        rest = parts[start:]
        if rest[0] == "namespaces" and len(rest) > 2:
            rest = rest[2:]
        return f"{self.method} {'/'.join(rest)}"


@dataclass(frozen=True, slots=True)
class PlayedRefusal:
    """What the server is made to say: an HTTP status, and a Status object as an API server words it."""

    status: int
    message: str = "the fault proxy says no"
    reason: str = ""
    retry_after: int | None = None
    """Seconds, as header and in the body."""
    causes: Mapping[str, str] = field(default_factory=dict)
    """reason -> message, for example DisruptionBudget."""

    @property
    def object(self) -> dict[str, Any]:
        """The Status object."""
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
        """The whole answer."""
        headers = {"Content-Type": "application/json"}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return ProxiedAnswer(self.status, headers, json.dumps(self.object).encode())


@dataclass(slots=True)
class Sick:
    """Calls to one path that get a refusal, or no answer, instead of being forwarded. Watches do not."""

    method: str
    path: str
    answer: PlayedRefusal | None
    query: str
    times: float = math.inf
    hits: int = 0
    """Calls that got it."""

    def lift(self) -> None:
        """From now on calls are forwarded again."""
        self.times = 0

    def takes(self, call: Incoming) -> bool:
        """Whether this call gets it; counts it then."""
        if call.is_watch or self.times <= 0 or (call.method, call.path) != (self.method, self.path):
            return False
        if self.query not in unquote_plus(call.query):
            return False
        self.times -= 1
        self.hits += 1
        return True


def is_renewal(path: str, body: bytes) -> bool:
    """A write to a Lease that says nothing but who leads: taking it, renewing it, releasing it."""
    if "/leases" not in path:
        return False
    metadata = json.loads(body).get("metadata", {}) if body else {}
    return not metadata.get("annotations")


def object_of(path: str) -> str:
    """The object that a path is about, without its subresource; a collection is itself."""
    front, _, last = path.rpartition("/")
    return front if last in SUBRESOURCES and front.count("/") > 3 else path


def collection_of(path: str) -> str:
    """The plural in a path: `nodes`, `pods`."""
    parts = path.split("/")[3 if path.startswith("/api/") else 4 :]
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    return parts[0]

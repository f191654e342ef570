"""Requests and answers of the Kubernetes API as JSON, and the error that an answer means.

Both transports write and read through this module: `HttpClient` and the agent's `RestClient`. Which error an answer
means is decided by its machine-readable parts alone (code, reason, details.causes), and prose is passed on
(docs/design/drain.md#e11).
"""

import json
import random
import re
from dataclasses import replace

from gpusharing.kube.client import EVICTION, JSON, TEXTS, ApiRequest, WatchEvent
from gpusharing.kube.errors import (
    AlreadyExists,
    Conflict,
    EvictionBlocked,
    EvictionFailed,
    Expired,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
    Throttled,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from gpusharing.kube.raw import entries, part, text, whole

JSON_TYPE = "application/json"
METHODS = {"get": "GET", "list": "GET", "watch": "GET", "create": "POST", "patch": "PATCH", "delete": "DELETE"}
"""The HTTP method for each verb."""
INACTIVITY = 75.0
"""Seconds without a byte until a watch counts as dead; the server sends a bookmark every 60 s."""
WATCH_SECONDS = 300.0
"""Seconds after which a watch ends at the latest; each asks for 80 to 100 %, so that they do not end together."""


MOST_BYTES = 16 * 1024 * 1024
"""The most bytes of an object in a list, of a line of a watch, and of an answer that is read as a whole. etcd refuses
objects above 1.5 MiB by default (--max-request-bytes); as JSON, a pod may have several times its size in etcd."""
MOST_BYTES_AGENT = 4 * 1024 * 1024
"""The same for the agent, which reads its GPUNode only. Custom resources are JSON in etcd, too."""
_NAMES = tuple((key, re.compile(rf'"{key}":\s*"([^"]{{1,253}})"')) for key in ("namespace", "name"))


def too_large(request: ApiRequest, start: str | bytes = "") -> TooLarge:
    """Return the error for an answer above MOST_BYTES; `start` is the beginning of an object in it, if it has several."""
    shown = start.decode(errors="replace") if isinstance(start, bytes) else start
    names = [f"{key} {found[1]}" for key, pattern in _NAMES if (found := pattern.search(shown))]
    what = f"an object ({', '.join(names)})" if names else "the response"
    return TooLarge(f"cannot {request.what}, because {what} is too large to be read; delete it or make it smaller")


def encode_body(request: ApiRequest) -> tuple[bytes | None, dict[str, str]]:
    if request.body is None:
        return None, {}
    kind = "application/merge-patch+json" if request.verb == "patch" else JSON_TYPE
    return json.dumps(request.body, separators=(",", ":")).encode(), {"Content-Type": kind}


def lasting(request: ApiRequest, most: float = WATCH_SECONDS, inactivity: float = INACTIVITY) -> ApiRequest:
    """Return a request as that of a watch with bookmarks, which ends after 80 to 100 % of `most` seconds.

    A kind without bookmarks cannot show that its watch is alive, so it ends before `inactivity` seconds.
    """
    seconds = most if request.resource.bookmarks else min(most, 0.8 * inactivity)
    terms = {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": str(max(1, int(seconds * random.uniform(0.8, 1.0)))),
    }
    return replace(request, query={**request.query, **terms})


def answer_of(request: ApiRequest, raw: bytes) -> JSON:
    if request.subresource in TEXTS:
        return {str(request.subresource): raw.decode(errors="replace")}
    return parse_object(request, raw)


def event_of(request: ApiRequest, line: bytes) -> WatchEvent:
    """Return the event in one line of a watch. Raises the error that an ERROR event holds, such as Expired."""
    event = parse_object(request, line)
    kind, metadata = event.get("type"), part(event, "object", "metadata")
    # A tuple and not a set, because a server may send a type that cannot be hashed.
    if kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK") or not isinstance(metadata, dict):
        raise error_of_event(request, event.get("object"))
    return WatchEvent(kind, event["object"])


def parse_object(request: ApiRequest, raw: bytes) -> JSON:
    """Return the JSON object in a successful answer. Raises Unavailable if there is none, which no API server sends."""
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"cannot {request.what}, because the response is not JSON: {raw[:80]!r}") from error
    if not isinstance(answer, dict):
        raise Unavailable(f"cannot {request.what}, because the response is not a JSON object: {raw[:80]!r}")
    return answer


MOST_SECONDS = 86400.0
"""The longest wait in seconds that is accepted from an answer; a longer one is cut to this."""
HINT = "the chart grants this right if rbac.create is true"
"""How the operator gets a right that it lacks; see `Forbidden.hint`."""


def error_of_response(request: ApiRequest, status: int, raw: bytes, retry_after: str | None) -> KubeError:
    """Return the error for an answer with an HTTP status of 300 or above. Its body may be the plain text of a proxy."""
    try:
        answer: object = json.loads(raw)
    except (ValueError, RecursionError):
        answer = {"message": raw[:200].decode(errors="replace").strip()}
    return error_of(request, status, answer, retry_after)


def error_of(request: ApiRequest, status: int, answer: object, retry_after: str | None = None) -> KubeError:
    """Return the error for an answer that is no success, from its parsed body and Retry-After header."""
    message = text(answer, "message") or f"HTTP {status}"
    causes = {text(cause, "reason"): text(cause, "message") for cause in entries(answer, "details", "causes")}
    seconds, evicts = _seconds(answer, retry_after), request.subresource == EVICTION
    match status:
        case 401:
            return Unauthorized(f"cannot {request.what}, because the API server rejected the credentials: {message}")
        case 403 if "NamespaceTerminating" in causes:
            return Forbidden(message, namespace_terminating=True)
        case 403:
            # The refusal by a ValidatingAdmissionPolicy is no lack of a right, and only its message names the policy.
            hint = "" if "ValidatingAdmissionPolicy" in message else HINT
            return Forbidden(f"not allowed to {request.what}: {message}", hint=hint, group=request.resource.group)
        case 404 if text(answer, "kind") != "Status":  # plain text: there is no such path
            return NotFound(f"the API server does not serve {request.resource.full_name}: {message}")
        case 404:
            return NotFound(message)
        case 409 if request.verb == "create" and text(answer, "reason") == "AlreadyExists":
            return AlreadyExists(message)
        case 409:
            return Conflict(message)
        case 410:
            return Expired(message, text(answer, "metadata", "continue"))
        case 429 if "DisruptionBudget" in causes:
            return EvictionBlocked(causes["DisruptionBudget"] or message, seconds)
        # A request to all clients to slow down names a time to wait, or is plain text (apiserver v0.36.3
        # pkg/server/filters, maxinflight.go and priority-and-fairness.go). A Status without a time is an answer about
        # this pod (docs/design/drain.md#e11): KubeVirt's webhook refuses this way while it moves a machine.
        case 429 if evicts and seconds is None and text(answer, "kind") == "Status":
            return EvictionFailed(message)
        case 429:
            return Throttled(message, seconds)
        # The server lost a race over the budget (docs/design/drain.md#e14) if it names a time to wait: NewTimeoutError
        # of apimachinery is 504, reason Timeout, retryAfterSeconds 10 (kubernetes v1.36.3
        # pkg/registry/core/pod/storage/eviction.go).
        case 500 if evicts:
            return EvictionFailed(message) if seconds is None else EvictionBlocked(message, seconds)
        case 504 if evicts and seconds is not None and text(answer, "reason") == "Timeout":
            return EvictionBlocked(message, seconds)
        case _ if 400 <= status < 500 and status != 408:
            return Invalid(message)
    return Unavailable(f"the API server cannot {request.what}: {message}")


def error_of_event(request: ApiRequest, status_object: object) -> KubeError:
    code = part(status_object, "code")
    return error_of(request, code if isinstance(code, int) else 500, status_object)


def _seconds(answer: object, retry_after: str | None) -> float | None:
    if retry_after and retry_after.isdecimal():  # not a date
        return min(float(retry_after), MOST_SECONDS)
    seconds = whole(answer, "details", "retryAfterSeconds")
    return float(min(seconds, MOST_SECONDS)) if seconds > 0 else None

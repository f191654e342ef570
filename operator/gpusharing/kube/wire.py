"""How requests are written and answers are read, for both transports: aiohttp's (http.py) and the agent's."""

import json
import random
from dataclasses import replace

from gpusharing.kube.answers import error_of, error_of_event
from gpusharing.kube.client import JSON, TEXTS, ApiRequest, WatchEvent
from gpusharing.kube.errors import KubeError, Unavailable
from gpusharing.kube.raw import part

JSON_TYPE = "application/json"
INACTIVITY = 75.0
"""Seconds without a byte, after which a watch counts as dead: the server sends a bookmark every 60 s, or ends the watch earlier."""
WATCH_SECONDS = 300.0
"""Seconds after which the server ends a watch at the latest. Each watch asks for 80 to 100 % of this, so that they do not end together."""
METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "patch": "PATCH",
    "delete": "DELETE",
}
"""The HTTP method for each verb."""


def content(request: ApiRequest) -> tuple[bytes | None, dict[str, str]]:
    if request.body is None:
        return None, {}
    kind = "application/merge-patch+json" if request.verb == "patch" else JSON_TYPE
    return json.dumps(request.body, separators=(",", ":")).encode(), {"Content-Type": kind}


def lasting(request: ApiRequest, most: float = WATCH_SECONDS, inactivity: float = INACTIVITY) -> ApiRequest:
    """Return a copy of a request with the parameters of a watch with bookmarks that ends after 80 to 100 % of `most` seconds.

    A kind without bookmarks cannot show that its watch is alive, so its watch ends before it could have been silent for `inactivity` seconds.
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
    return parsed(request, raw)


def event_of(request: ApiRequest, line: bytes) -> WatchEvent:
    """Return the event in one line of a watch. Raises the error that an ERROR event holds, such as Expired."""
    event = parsed(request, line)
    kind = event.get("type")
    # A tuple and not a set, because a server may send a type that cannot be hashed.
    if kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK") or not isinstance(
        part(event, "object", "metadata"), dict
    ):
        raise error_of_event(request, event.get("object"))
    return WatchEvent(kind, event["object"])


def parsed(request: ApiRequest, raw: bytes) -> JSON:
    """Return the JSON object in the body of a successful answer. Raises Unavailable if it has none, which no API server sends."""
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"cannot {request.what}, because the response is not JSON: {raw[:80]!r}") from error
    if not isinstance(answer, dict):
        raise Unavailable(f"cannot {request.what}, because the response is not a JSON object: {raw[:80]!r}")
    return answer


def refusal(request: ApiRequest, status: int, raw: bytes, retry_after: str | None) -> KubeError:
    """Return the error for an answer with an HTTP status of 300 or above; its body may be the plain text of a proxy."""
    try:
        answer: object = json.loads(raw)
    except (ValueError, RecursionError):
        answer = {"message": raw[:200].decode(errors="replace").strip()}
    return error_of(request, status, answer, retry_after)

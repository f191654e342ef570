"""What goes over the wire and how it is read, for both transports: aiohttp's (http.py) and the agent's."""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from typing import Unpack

from gpusharing.kube.answers import ApiRequest, error_of, error_of_event
from gpusharing.kube.client import JSON, Filters, Listing, Page, Resource, WatchEvent
from gpusharing.kube.errors import KubeError, NotFound, Unavailable
from gpusharing.kube.raw import entries, part, text

JSON_TYPE = "application/json"
MERGE_PATCH = "application/merge-patch+json"
INACTIVITY = 75.0
"""Seconds. A watch without a byte for longer is dead: the server sends a bookmark every 60 s, or ends it before."""
WATCH_SECONDS = 300.0
"""The server ends a watch after this long; each asks for 80 to 100 % of it, so that they do not end together."""
_EVENT_TYPES = ("ADDED", "MODIFIED", "DELETED", "BOOKMARK")
"""No set: in place of a name a server may send something that cannot be hashed."""

Query = dict[str, str]


def watch_seconds(resource: Resource, most: float, inactivity: float) -> float:
    """The duration to request for a watch: without bookmarks to show that it lives, less than it may be silent."""
    return most if resource.bookmarks else min(most, 0.8 * inactivity)


def selectors(filters: Filters) -> Query:
    """The selectors that are given."""
    given = {"labelSelector": filters.get("label_selector"), "fieldSelector": filters.get("field_selector")}
    return {key: value for key, value in given.items() if value}


def watch_query(resource_version: str, selected: Query, seconds: float = WATCH_SECONDS) -> Query:
    """The query of a watch with bookmarks that ends after 80 to 100 % of `seconds`."""
    return {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": resource_version,
        "timeoutSeconds": str(max(1, int(seconds * random.uniform(0.8, 1.0)))),
        **selected,
    }


class WireCalls(ABC):
    """What both transports read and write in the same way, each over its own calls."""

    @abstractmethod
    async def _call(
        self,
        request: ApiRequest,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: JSON | None = None,
    ) -> JSON:
        """The object that the server answers."""

    async def pages(self, resource: Resource, **listing: Unpack[Listing]) -> AsyncIterator[Page]:
        """See Followable. Raises Expired when the list took longer than the server keeps its moment."""
        request, path = ApiRequest("list", resource), resource.path(listing.get("namespace"))
        limit, after = listing.get("limit", 500), listing.get("after", "")
        query = selectors(listing) | ({"limit": str(limit)} if limit else {})
        while True:
            listed = await self._call(request, "GET", path, {**query, "continue": after} if after else query)
            after = text(listed, "metadata", "continue")
            yield Page(listed.get("items") or [], text(listed, "metadata", "resourceVersion"), after)
            if not after:
                return

    async def served(self, resource: Resource) -> bool:
        """See Followable."""
        group = Resource(resource.group, resource.version, "")
        try:
            listed = await self._call(ApiRequest("get", group), "GET", group.path())
        except NotFound:
            return False
        return any(part(kind, "name") == resource.plural for kind in entries(listed, "resources"))

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: JSON,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> JSON:
        """Send a JSON merge patch and return the object that the server answers with; see NodeAPI."""
        path = resource.path(namespace, name, subresource)
        return await self._call(ApiRequest("patch", resource, subresource), "PATCH", path, body=body)


def event_of(request: ApiRequest, line: bytes) -> WatchEvent:
    """One line of a watch. Raises the error of an ERROR event."""
    event = parsed(request, line)
    kind = event.get("type")
    if kind not in _EVENT_TYPES or not isinstance(part(event, "object", "metadata"), dict):
        raise error_of_event(request, event.get("object"))
    return WatchEvent(kind, event["object"])


def parsed(request: ApiRequest, raw: bytes) -> JSON:
    """The JSON object of a success. Raises Unavailable for anything else: that did not come from an API server."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"the answer to {request.what} is not JSON: {raw[:80]!r}") from error
    if not isinstance(found, dict):
        raise Unavailable(f"the answer to {request.what} is not a JSON object: {raw[:80]!r}")
    return found


def refusal(request: ApiRequest, status: int, raw: bytes, retry_after: str | None) -> KubeError:
    """The error for an answer of 300 or above."""
    return error_of(request, status, _status_of(raw), retry_after)


def _status_of(raw: bytes) -> object:
    """The Status object of a refusal, or its text if proxies or filters sent plain words."""
    try:
        found: object = json.loads(raw)
    except (ValueError, RecursionError):
        return {"message": raw[:200].decode(errors="replace").strip()}
    return found

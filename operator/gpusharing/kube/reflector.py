"""Reflector: a cache of small projections of all objects of one kind, kept up to date by list and watch.

Our own because what exists loses deletions: kopf 1.45 keeps objects that vanished in a 410 gap for ever, and the
informer of the official client keys by name without UID (reliability-performance.md D2, D3, 3.10).

What holds at any time after `synced`:
- an object that the server no longer has disappears at the next list at the latest (every `relist_after`);
- a view never goes back: of one kind, the object with the higher resourceVersion is the newer one. These are
  etcd revisions, one counter for the store; a server that writes something else is believed as it comes;
- `items` keeps the identity of a view whose projection did not change, so callers may memoise on it.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from gpusharing.kube.client import JSON, KubeClient, Resource
from gpusharing.kube.errors import Expired, Forbidden, Invalid, KubeError, NotFound
from gpusharing.kube.streams import closing

View = TypeVar("View")

BACKOFF_FIRST = 0.5
BACKOFF_MOST = 30.0
REMEMBERED_DELETIONS = 1024


@dataclass(slots=True)
class _Known:
    """What is kept of an object besides its view."""

    uid: str
    version: str


def _ignore(_: str) -> None:
    """Nobody wants to know about changes."""


class Reflector(Generic[View]):
    """Cache of one kind. Run `run()` as a task; read from any other task of the same loop."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        project: Callable[[JSON], View],
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        on_change: Callable[[str], None] = _ignore,
        page_size: int = 25,
        relist_after: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change` is told the name of an object that came, went or changed in its projection.

        Objects are stored by name; those of a namespaced kind over all namespaces by `namespace/name`. Pages of
        25 keep the peak of memory low: the raw objects of one page are all that is held besides the views.
        """
        self.items: Mapping[str, View]
        """The views by name; a live read-only mapping, copy it for a snapshot."""
        self.synced = asyncio.Event()
        """The first list is complete."""
        self.error: KubeError | None = None
        """Why the cache is not following the server now; None while it is."""
        self.last_contact = float("-inf")
        """When (by `clock`) the server last said anything; bookmarks make that at least once a minute."""
        self._client = client
        self._resource = resource
        self._project = project
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._on_change = on_change
        self._page_size = page_size
        self._relist_after = relist_after
        self._clock = clock
        self._views: dict[str, View] = {}
        self.items = MappingProxyType(self._views)
        self._known: dict[str, _Known] = {}
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._long_names = resource.namespaced and namespace is None
        self._version = ""
        self._listed_at = float("-inf")
        self._watched = False

    def resource_version(self, name: str) -> str:
        """The newest version seen of an object, also when its projection did not change; empty when unknown."""
        known = self._known.get(name)
        return known.version if known else ""

    def accept(self, obj: JSON) -> None:
        """Take over the object that the server answered to our write, without waiting for the watch.

        What is older than the cache, or was deleted since, is ignored.
        """
        self._apply(obj)

    async def run(self) -> None:
        """List, watch, and list again, until cancelled. Errors of the server are waited out, never raised."""
        fruitless = 0
        while True:
            self._watched = False
            try:
                await self._follow()
            except Expired:
                self._version = ""  # the list that follows heals the gap
            except (Forbidden, NotFound, Invalid) as error:
                # Not a passing trouble: start over with a list, in case the kind was installed meanwhile.
                self.error, self._version = error, ""
            except KubeError as error:
                self.error = error
            # Only an event or bookmark is progress: a server that expires or closes every watch is not pestered.
            fruitless = 0 if self._watched else fruitless + 1
            if self.error or fruitless > 1:
                await asyncio.sleep(_backoff(max(1, fruitless)))

    async def _follow(self) -> None:
        """One list, if it is due, and one watch."""
        if not self._version or self._clock() - self._listed_at >= self._relist_after:
            await self._list()
        left = self._relist_after - (self._clock() - self._listed_at)
        try:
            async with asyncio.timeout(max(0.0, left)):
                await self._watch()
        except TimeoutError:
            self._version = ""  # time for the next list

    async def _list(self) -> None:
        """List everything and drop what is no longer there."""
        seen: set[str] = set()
        version = ""
        pages = self._client.pages(
            self._resource,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            limit=self._page_size,
        )
        async with closing(pages):
            async for page in pages:
                version = page.resource_version
                for obj in page.items:
                    seen.add(self._name(obj))
                    self._apply(obj)
                self._contacted()
        for name in [name for name in self._known if name not in seen]:
            # What our own write created after the moment of the list is not missing from it.
            if not newer(self._known[name].version, version):
                self._forget(name, version)
        self._version = version
        self._listed_at = self._clock()
        self.synced.set()

    async def _watch(self) -> None:
        events = self._client.watch(
            self._resource,
            self._version,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        async with closing(events):
            async for event in events:
                obj = event.object
                if event.type == "DELETED":
                    self._deleted(obj)
                elif event.type != "BOOKMARK":
                    self._apply(obj)
                self._version = obj["metadata"]["resourceVersion"]
                self._watched = True
                self._contacted()

    def _contacted(self) -> None:
        self.last_contact = self._clock()
        self.error = None

    def _name(self, obj: JSON) -> str:
        metadata = obj["metadata"]
        name: str = metadata["name"]
        return f"{metadata['namespace']}/{name}" if self._long_names else name

    def _apply(self, obj: JSON) -> None:
        metadata = obj["metadata"]
        uid, version = metadata["uid"], metadata["resourceVersion"]
        if uid in self._gone and not newer(version, self._gone[uid]):
            return  # a late answer to a write must not bring a deleted object back
        name = self._name(obj)
        known = self._known.get(name)
        if known is None:
            self._known[name] = _Known(uid, version)
        elif known.version == version or newer(known.version, version):
            return
        else:
            known.uid, known.version = uid, version
        view = self._project(obj)
        if name in self._views and self._views[name] == view:
            return
        self._views[name] = view
        self._on_change(name)

    def _deleted(self, obj: JSON) -> None:
        """Drop the object, unless another one of that name is there already."""
        uid, name = obj["metadata"]["uid"], self._name(obj)
        known = self._known.get(name)
        if known and known.uid == uid:
            self._forget(name, obj["metadata"]["resourceVersion"])

    def _forget(self, name: str, version: str) -> None:
        """Drop an object that was gone, or out of the selection, at `version`."""
        self._gone[self._known.pop(name).uid] = version
        if len(self._gone) > REMEMBERED_DELETIONS:
            self._gone.popitem(last=False)
        del self._views[name]
        self._on_change(name)


def newer(a: str, b: str) -> bool:
    """Whether version a is newer than b; False when they cannot be compared (see the module's text)."""
    try:
        return int(a) > int(b)
    except ValueError:
        return False


def _backoff(failures: int) -> float:
    """Seconds: 0.5, 1, 2 ... 30, each ± 50 %, so that many caches do not come back together."""
    return min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** min(failures - 1, 10)) * random.uniform(0.5, 1.5)

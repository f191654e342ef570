"""Reflector: a cache of small projections of all objects of one kind, kept up to date by list and watch.

Our own because existing ones lose deletions: kopf 1.45 keeps objects that vanished in a 410 gap for ever, and the
informer of the official client keys by name without UID (docs/design/faults.md#d2, D3).

What holds at any time after `synced`:
- an object that the server no longer has disappears at the next list at the latest (`relist_after`, and up to a fifth
  later, so that caches that began together do not list together);
- a kind that is uninstalled leaves nothing behind: the cache empties when the server's discovery has not listed the
  kind for GONE_AFTER. A 404 alone is not believed: a server that has just started answers so too;
- a view never goes back: of one kind, the object with the higher resourceVersion is the newer one. These are
  etcd revisions, one counter for the store; a server that writes something else is believed as it comes;
- `items` keeps the identity of a view whose projection did not change, so callers may memoise on it.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypedDict, TypeVar

from gpusharing.kube.backoff import Backoff
from gpusharing.kube.client import JSON, Followable, Resource
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import Expired, Forbidden, Invalid, KubeError, NotFound
from gpusharing.kube.streams import closing

View = TypeVar("View")

BACKOFF_FIRST = 0.5
BACKOFF_MOST = 30.0
REMEMBERED_DELETIONS = 1024
BRIEF = 1.0
"""Seconds. A watch that ends sooner is not progress, whatever it brought: the next one waits."""
GONE_AFTER = 30.0
"""Seconds without the kind in discovery after which its objects count as gone."""


@dataclass(slots=True)
class _Known:
    """What is kept about an object besides its view."""

    uid: str
    version: str


class _Where(TypedDict):
    """The selection of objects of the kind."""

    namespace: str | None
    label_selector: str
    field_selector: str


def _ignore(_: str) -> None:
    """The default callback: do nothing."""


class Reflector(Generic[View]):
    """Cache of one kind. Run `run()` as a task; read from any other task of the same loop."""

    items: Mapping[str, View]
    """The views by name; a live read-only mapping, copy it for a snapshot."""
    synced: asyncio.Event
    """The first list is complete."""
    error: KubeError | None
    """Why the cache is not following the server now; None while it is."""
    last_contact: float
    """When (by `clock`) the server last said anything; bookmarks make that at least once a minute."""

    def __init__(
        self,
        client: Followable,
        resource: Resource,
        project: Callable[[JSON], View],
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        on_change: Callable[[str], None] = _ignore,
        on_error: Callable[[str], None] = _ignore,
        page_size: int = 25,
        relist_after: float = 600.0,
        remembered: int = REMEMBERED_DELETIONS,
        clock: Callable[[], float] = loop_time,
    ) -> None:
        """`on_change` is told the name of an object that came, went or changed in its projection;
        `on_error` why the server cannot be followed, when that changes, and the empty text when it can (again).

        Objects are stored by name; those of a namespaced kind over all namespaces by `namespace/name`. Pages of
        25 keep the peak of memory low: the raw objects of one page are all that is held besides the views.
        """
        self.synced, self.error, self.last_contact = asyncio.Event(), None, float("-inf")
        self._client, self._resource, self._project = client, resource, project
        self._where = _Where(
            namespace=namespace, label_selector=label_selector, field_selector=field_selector
        )
        self._on_change, self._on_error = on_change, on_error
        self._told: str | None = None
        self._page_size, self._relist_after, self._remembered = page_size, relist_after, remembered
        self._clock = clock
        self._views: dict[str, View] = {}
        self.items = MappingProxyType(self._views)
        self._known: dict[str, _Known] = {}
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._long_names = resource.namespaced and namespace is None
        self._version, self._relist_at, self._watched = "", float("-inf"), False
        self._backoff = Backoff(BACKOFF_FIRST, BACKOFF_MOST)
        self._absent_since: float | None = None
        """Since when discovery has not listed the kind."""

    def resource_version(self, name: str) -> str:
        """The newest version seen of an object, even if its projection did not change; empty when unknown."""
        known = self._known.get(name)
        return known.version if known else ""

    def accept(self, obj: JSON) -> None:
        """Take over the object that the server returned for our write, without waiting for the watch.

        An object that is older than the cache, or was deleted since, is ignored.
        """
        self._apply(obj)

    def drop(self, name: str) -> None:
        """The server answered that it has no object of this name; the watch may not have shown that yet."""
        if name in self._known:
            self._forget(name, self._known[name].version)

    async def run(self) -> None:
        """List, watch, and list again, until cancelled. Errors of the server are waited out, never raised."""
        while True:
            self._watched, began = False, self._clock()
            self.error, expired = await self._until_it_ends()
            if self.error is not None:
                self._tell(str(self.error) or repr(self.error))
            lasted = self._clock() - began
            # Only a watch that lasts for a while is progress: a server that expires, breaks or closes every watch,
            # even after sending something, is not pestered. Nothing may have happened during a long watch.
            lived = lasted >= (BRIEF if self._watched else BACKOFF_MOST)
            if lived and self.error is None and not expired:
                self._backoff.success()
            else:
                await asyncio.sleep(self._backoff.after_failure())

    async def _until_it_ends(self) -> tuple[KubeError | None, bool]:
        """One `_follow`; returns the remaining error, and whether the server had forgotten our place."""
        try:
            await self._follow()
        except Expired:
            self._version = ""  # the list that follows heals the gap
            return self.error, True
        except (Forbidden, NotFound, Invalid) as error:
            # Not a temporary error: start over with a list, in case the kind was installed meanwhile.
            self._version = ""
            if isinstance(error, NotFound):
                await self._look_for_kind()
            return error, False
        except KubeError as error:
            return error, False
        return self.error, False

    async def _look_for_kind(self) -> None:
        """Empty the cache when the kind has been gone for long enough."""
        try:
            served = await self._client.served(self._resource)
        except KubeError:
            served = True  # unknown
        if served:
            self._absent_since = None
        elif self._absent_since is None:
            self._absent_since = self._clock()
        elif self._clock() - self._absent_since >= GONE_AFTER:
            for name in list(self._known):
                self.drop(name)

    async def _follow(self) -> None:
        """One list, if it is due, and one watch."""
        if not self._version or self._clock() >= self._relist_at:
            await self._list()
        try:
            async with asyncio.timeout(max(0.0, self._relist_at - self._clock())):
                await self._watch()
        except TimeoutError:
            self._version = ""  # time for the next list

    async def _list(self) -> None:
        """List everything and drop what no longer exists."""
        seen: set[str] = set()
        version = ""
        pages = self._client.pages(
            self._resource,
            **self._where,
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
        self._relist_at = self._clock() + self._relist_after * random.uniform(1.0, 1.2)
        self._absent_since = None
        self.synced.set()

    async def _watch(self) -> None:
        events = self._client.watch(
            self._resource,
            self._version,
            **self._where,
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
        self._tell("")

    def _tell(self, error: str) -> None:
        if error != self._told:
            self._told = error
            self._on_error(error)

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
        if len(self._gone) > self._remembered:
            self._gone.popitem(last=False)
        del self._views[name]
        self._on_change(name)


def newer(a: str, b: str) -> bool:
    """Whether version a is newer than b; False when they cannot be compared (see the module's text)."""
    try:
        return int(a) > int(b)
    except ValueError:
        return False

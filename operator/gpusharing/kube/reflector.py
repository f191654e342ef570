"""Cached objects of one kind: listed, watched, and converted once for each version.

It is our own code because existing caches lose deletions: kopf 1.45 keeps objects that vanished in a 410 gap forever,
and the informer of the official client keys by name without UID (docs/design/faults.md#d2, D3).
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing, suppress
from types import MappingProxyType
from typing import Generic, TypeVar, Unpack

from gpusharing.kube.client import JSON, Filters, KubeClient, Page, Resource, WatchEvent
from gpusharing.kube.clock import Backoff, loop_time
from gpusharing.kube.errors import Expired, Forbidden, Invalid, KubeError, NotFound, one_error
from gpusharing.kube.lists import BACKOFF_FIRST, BACKOFF_MOST, Unreadable, check_identity, converted, whole_list
from gpusharing.kube.raw import newer, text

View = TypeVar("View")

OLDEST = "1"
"""The version with which etcd begins; the server rejects a write that is conditional on it."""


class Views(Generic[View]):
    """The views of one kind, each with the version of the object that it was made from."""

    def __init__(
        self, project: Callable[[JSON], View], on_change: Callable[[str], None], *, long_names: bool, remembered: int
    ) -> None:
        """`project` may raise Unreadable; with `long_names`, objects are called `namespace/name`."""
        self._project, self._on_change = project, on_change
        self._long_names, self._remembered = long_names, remembered
        self._views: dict[str, View] = {}
        self.items: Mapping[str, View] = MappingProxyType(self._views)
        """The views by name: a live, read-only mapping, to be copied for a snapshot."""
        self.unreadable: dict[str, str] = {}
        """Why objects cannot be converted, by name. An object's view, if it has one, is of an earlier version."""
        self._known: dict[str, tuple[str, str]] = {}
        """UID and version of each object, by name."""
        self._gone: OrderedDict[str, str] = OrderedDict()
        """The remembered deletions, oldest first: the version at which the object was gone, by its UID."""
        self.newest = ""
        """The highest version that the server has shown."""
        self.listing = False
        """Whether a list is being read; all deletions are remembered, as a later page may still have the object."""

    def name(self, obj: JSON) -> str:
        metadata = obj["metadata"]
        name: str = metadata["name"]
        return f"{text(metadata, 'namespace')}/{name}" if self._long_names else name

    def version(self, name: str) -> str:
        """Return an object's last seen version; empty if unknown, and OLDEST after `go_back` until it is listed."""
        return self._known.get(name, ("", ""))[1]

    def reached(self, version: str) -> None:
        if not self.newest or newer(version, self.newest):
            self.newest = version

    def apply(self, obj: JSON, moment: str = "") -> None:
        """Store the view of a raw object, unless the cache knows this version or a newer one, or its deletion.

        `moment` is the version of the list that has it, if any. It then replaces a cached one older than the list, even
        if its own version is lower, as after a restore under a higher version (etcdutl --bump-revision).
        """
        metadata = obj["metadata"]
        uid, version = text(metadata, "uid"), metadata["resourceVersion"]
        moment = moment or version
        if uid in self._gone and not newer(moment, self._gone[uid]):
            return  # a late answer to a write must not bring a deleted object back
        self.reached(version)
        name = self.name(obj)
        known = self.version(name)
        if known == version or newer(known, moment):
            return
        self._known[name] = uid, version
        before = self.unreadable.pop(name, "")
        try:
            view = self._project(obj)
        except Unreadable as error:
            self.unreadable[name] = str(error)
            changed = before != str(error)
        else:
            changed = bool(before) or name not in self._views or self._views[name] != view
            if changed:
                self._views[name] = view
        if changed:
            self._on_change(name)

    def deleted(self, obj: JSON) -> None:
        uid, name, version = obj["metadata"]["uid"], self.name(obj), obj["metadata"]["resourceVersion"]
        known = self._known.get(name, ("", ""))
        if known[0] != uid:
            self._remember_gone(uid, version)
        elif not newer(known[1], version):
            self._forget(name, version)

    def drop(self, name: str) -> None:
        if name in self._known:
            self._forget(name, self.version(name))

    def keep_only(self, names: Collection[str], version: str) -> None:
        """Drop all objects but `names`, those of a complete list of this version, and those that are newer."""
        for name in [name for name in self._known if name not in names]:
            if not newer(self.version(name), version):
                self._forget(name, version)

    def go_back(self, version: str) -> None:
        """Let every later object count as newer: the store was restored from a backup, and is at `version`."""
        self._gone.clear()
        self._known = {name: (uid, OLDEST) for name, (uid, _) in self._known.items()}
        self.newest = version

    def _forget(self, name: str, version: str) -> None:
        self._remember_gone(self._known.pop(name)[0], version)
        self._views.pop(name, None)
        self.unreadable.pop(name, None)
        self._on_change(name)

    def _remember_gone(self, uid: str, version: str) -> None:
        self._gone[uid] = version
        while len(self._gone) > self._remembered and not self.listing:
            self._gone.popitem(last=False)


SHORT_WATCH = 1.0
"""Seconds that a watch must last to count as progress; after a shorter one, the next is delayed."""
GONE_AFTER = 30.0
"""Seconds for which discovery must not list the kind before its objects count as gone."""
RECHECK_AFTER = 30.0
"""Seconds until the kind is listed again, after a list that was older than the cache."""
STALE_AFTER = 120.0
"""Seconds after which a view that may be old is listed again, before the planner reports OLD_VIEW.

After the store was restored from a backup, a watch is silent and nothing fails; the bookmarks of a quiet kind may lag
behind its lists."""


class Reflector(Views[View]):
    """A cache of one kind. Run `run()` as a task; read from any other task of the same loop.

    A watch starts from the version of the first list as soon as its first page has arrived, and continues alongside
    every later list. So a list need not show one moment (`whole_list`), and one that fails takes nothing away.

    What holds at any time after `synced`:

    - an object that the server no longer has disappears at the next list at the latest (`relist_after`, and up to a
      fifth later, so that caches that began together do not list together);
    - a kind that is uninstalled leaves nothing behind: the cache empties when the server's discovery has not listed the
      kind for GONE_AFTER. A 404 alone is not believed: a server that has just started answers so too;
    - a view never goes back: of one kind, the object with the higher resourceVersion is the newer one. These are etcd
      revisions, one counter for the store; a server that writes something else is believed as it comes. Only a store
      that was restored from a backup turns the cache back: when two complete lists in a row are older than the cache,
      and a write has proven that versions went back (docs/adr/0061-lists-that-survive-their-pages.md);
    - `items` keeps the identity of a view whose projection did not change, so callers may memoize on it;
    - no object ends the cache. One that cannot be converted keeps its last view and is in `unreadable`. One without
      name, UID or version could be any, so the cache counts as incomplete until a list has none.
    """

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        project: Callable[[JSON], View],
        *,
        on_change: Callable[[str], None] = lambda _: None,
        on_error: Callable[[str], None] = lambda _: None,
        page_size: int = 25,
        relist_after: float = 600.0,
        remembered: int = 1024,
        clock: Callable[[], float] = loop_time,
        restores: Callable[[], int] = int,
        **where: Unpack[Filters],
    ) -> None:
        """Prepare the cache of the objects that `where` selects; in all namespaces, by `namespace/name`.

        `project` converts a raw object to its view; if it raises, the object becomes `unreadable`. `on_change` gets the
        name of an object that was added, removed, or changed in its view. `on_error` gets the reason why the server
        cannot be followed whenever that changes, and an empty string once it can be followed.

        A list has `page_size` objects a page, which are all that is held besides the views, and is read again after
        `relist_after` seconds even if nothing failed. `remembered` deleted objects are remembered, so that late events
        about them are ignored. `restores` returns how often a write has proven that the store was restored from a
        backup (LeaderLease).
        """
        self.synced = asyncio.Event()
        """Set when the first list is complete."""
        self.error: KubeError | None = None
        """Why the cache does not follow the server at present, or None if it does, even if its last list failed."""
        self.doubted = False
        """Whether the last complete list was older than the cache: the server lags, or was restored."""
        self.last_contact = self._current_at = float("-inf")
        """When, by `clock`, the server last answered or sent an event, and last matched the cache.

        Bookmarks come at least once a minute."""
        self._client, self._resource = client, resource
        self._where = where
        self._on_error = on_error
        self._error_text: str | None = None
        self._page_size, self._relist_after = page_size, relist_after
        self._clock, self._restores = clock, restores
        long_names = resource.namespaced and where.get("namespace") is None
        super().__init__(
            lambda raw: converted(resource, raw, project), on_change, long_names=long_names, remembered=remembered
        )
        self._fault: Unreadable | None = None
        """Why the last list, or an event since, has an object that could be any; None if it has none."""
        self._place, self._placed = "", asyncio.Event()
        """The version from which to watch; empty until a list has given one."""
        self._whole = self._refused = False
        """Whether the cache has missed nothing before its place; and whether the last watch was refused."""
        self._list_due, self._relist_at = asyncio.Event(), float("-inf")
        self._watched = False
        """Whether the present watch has delivered anything."""
        self._list_request = float("-inf"), ""
        """When the first page of the last list was requested, and the highest version that was known then."""
        self._restores_seen = restores()
        """`restores` as of the last complete list that was not older than the cache."""
        self._following: asyncio.Timeout | None = None
        """The timer that can end the open watch, or None while there is none."""
        self._absent_since: float | None = None
        """Since when discovery has not listed the kind, or None if it lists it."""
        self.gone = False
        """Whether the kind counts as uninstalled, so that there is no object of it."""

    @property
    def age(self) -> float:
        """Return the seconds since the cache matched the server; infinite before the first list or after a restore."""
        return self._clock() - self._current_at

    def accept(self, obj: JSON) -> None:
        """Store the object that the server returned for our write, unless it is known to be out of date."""
        if self._identifies(obj):
            self.apply(obj)

    async def run(self) -> None:
        """List, watch, and list again, until canceled. KubeErrors are never raised, other errors not in a group."""
        with one_error():
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_listed())
                group.create_task(self._keep_watched())

    # --- the list ------------------------------------------------------------------------------------------

    async def _keep_listed(self) -> None:
        pause = Backoff(BACKOFF_FIRST, BACKOFF_MOST)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._relist_at - self._clock())):
                    await self._list_due.wait()
            self.listing = True
            try:
                await self._list()
                pause.success()
            except KubeError as error:
                self._list_failed(error)
                if isinstance(error, NotFound):
                    await self._look_for_kind()
                await asyncio.sleep(pause.after_failure())
                self._list_due.set()
            finally:
                self.listing = False

    async def _look_for_kind(self) -> None:
        try:
            served = await self._client.served(self._resource)
        except KubeError:
            served = True  # unknown
        if served:
            self._absent_since = None
        elif self._absent_since is None:
            self._absent_since = self._clock()
        elif self._clock() - self._absent_since >= GONE_AFTER:
            self.gone = True
            for name in list(self.items):
                self.drop(name)

    async def _list(self) -> None:
        version, older, names = "", False, set[str]()
        fault = self._fault
        pages = whole_list(self._page, self._page_size, self._clock, self._list_failed)
        async with aclosing(pages):
            async for page in pages:
                if not version:
                    version = page.resource_version
                    older = self._begin(version)
                elif not self._place:
                    raise Expired("the watch expired while the list was being read")
                for obj in page.items:
                    if self._identifies(obj):
                        names.add(self.name(obj))
                        self.apply(obj, page.resource_version)
                # The error of a refused watch is cleared by this answer only while another watch is open.
                self._contacted(follows=self._following is not None if self._refused else not self._whole)
        if self._fault is not None and self._fault is not fault:
            raise self._fault  # also for an event that came while the list was being read
        self.keep_only(names, version)
        self._end(older=older)

    async def _page(self, limit: int, after: str) -> Page:
        if not after:
            self._list_request = self._clock(), self.newest
        return await self._client.list_page(self._resource, limit=limit, after=after, **self._where)

    def _begin(self, version: str) -> bool:
        """Start the watch from this list if it has no place, and return whether the list is older than the cache."""
        older = newer(self._list_request[1], version)
        if older and self.doubted and self._restores() > self._restores_seen:
            self.go_back(version)
            self._whole, self._current_at, older = False, float("-inf"), False
            self._move(version)
        self.reached(version)
        if not self._place:
            self._move(version)
        return older

    def _end(self, *, older: bool) -> None:
        self.doubted, self._whole, self._absent_since, self.gone = older, True, None, False
        if self._fault is not None:
            self._fault = None
            self._clear(follows=True)
        if not older:
            self._restores_seen = self._restores()
            self._current_at = max(self._current_at, self._list_request[0])
        wait = min(RECHECK_AFTER, self._relist_after) if older else self._relist_after
        self._relist_at = self._clock() + wait * random.uniform(1.0, 1.2)
        self.synced.set()
        self._list_due.clear()
        if self._restores() > self._restores_seen:
            self._list_due.set()

    def _list_failed(self, error: KubeError) -> None:
        # Otherwise the watch keeps the cache up to date.
        if not self._whole:
            self._note(error)

    # --- the watch -----------------------------------------------------------------------------------------

    async def _keep_watched(self) -> None:
        pause = Backoff(BACKOFF_FIRST, BACKOFF_MOST)
        while True:
            await self._placed.wait()
            self._watched, began = False, self._clock()
            error: KubeError | None = None
            try:
                await self._watch()
            except KubeError as caught:
                error = caught
                if not isinstance(caught, Expired):
                    self._note(caught)
            # The next list closes the gap that these errors leave; it also finds a kind that was installed, or a right
            # that was granted, in the meantime.
            lost = isinstance(error, Expired | Forbidden | NotFound | Invalid)
            self._refused = isinstance(error, Forbidden)
            self._whole = self._whole and not lost
            # A refused watch never began, so a list that is under way may keep its place.
            if lost and not self._refused:
                self._move("")
            lasted = self._clock() - began
            # Only a watch that lasts for a while counts as progress, so that a server that expires, breaks or closes
            # every watch soon, even after sending something, is called less and less often. A long watch counts even
            # without any event.
            if error is None and lasted >= (SHORT_WATCH if self._watched else BACKOFF_MOST):
                pause.success()
                self._clear(follows=self._whole)
            else:
                await asyncio.sleep(pause.after_failure())
            if lost:
                self._list_due.set()
            self.check_restored()

    async def _watch(self) -> None:
        events = self._client.watch(self._resource, self._place, **self._where)
        try:
            async with asyncio.timeout(None) as self._following, aclosing(events):
                async for event in events:
                    self._take(event)
        except TimeoutError:
            return  # `_move` has ended this watch
        finally:
            self._following = None

    def _take(self, event: WatchEvent) -> None:
        obj = event.object
        if not self._identifies(obj, bookmark=event.type == "BOOKMARK"):
            return
        version = obj["metadata"]["resourceVersion"]
        if event.type == "DELETED":
            self.deleted(obj)
        elif event.type != "BOOKMARK":
            self.apply(obj)
        self._watched = True
        if not newer(self._place, version):  # an older version is not progress
            self._place = version
            self._contacted(follows=self._whole)
            if self._whole and not newer(self.newest, version):
                self._current_at = self.last_contact
        self.reached(version)
        self.check_restored()

    def _move(self, place: str) -> None:
        """Make the watch continue from another version, or wait for a list if `place` is empty."""
        self._place = place
        if place:
            self._placed.set()
        else:
            self._placed.clear()
        if self._following is not None:
            self._following.reschedule(loop_time())

    def check_restored(self) -> bool:
        """Whether the store was restored since the last list. Requests a list then, or if the cache is old."""
        restored = self._restores() > self._restores_seen
        silent = self._resource.bookmarks and not self.doubted and self.age > STALE_AFTER
        if restored or silent:
            self._list_due.set()
        return restored

    # --- shared by list and watch -----------------------------------------------------------------------------------

    def _contacted(self, *, follows: bool) -> None:
        """Record an answer; `follows` says whether the cache is up to date with it, as far as we know."""
        self.last_contact = self._clock()
        self._clear(follows=follows)

    def _identifies(self, obj: JSON, *, bookmark: bool = False) -> bool:
        """Whether the server says which object this is; if not, the cache has missed a change of some object."""
        keys = ("resourceVersion",) if bookmark else ("name", "uid", "resourceVersion")
        try:
            check_identity(self._resource, obj, *keys)
        except Unreadable as error:
            self._fault, self._whole = error, False
            self._note(error)
            self._list_due.set()
            return False
        return True

    def _clear(self, *, follows: bool) -> None:
        if follows and self._fault is None:
            self._note(None)

    def _note(self, error: KubeError | None) -> None:
        self.error, text = error, "" if error is None else str(error) or repr(error)
        if text != self._error_text:
            self._error_text = text
            self._on_error(text)

"""FakeCluster: the part of a Kubernetes API server that our code talks to, in memory and SIMULATED.

`tests/kube/contract.py` checks it and a real API server against the same contract. It has no schemas, CEL, defaulting,
admission, RBAC or managedFields, no patch but the merge patch, and no subresource but status, scale, eviction and log.
Garbage collection of owned objects and the numbers of PodDisruptionBudgets are immediate, not eventual.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from datetime import datetime

from gpusharing.kube import client as kinds
from gpusharing.kube.client import JSON, ApiRequest, KubeClient, Resource, WatchEvent
from gpusharing.kube.clock import loop_time, wall_time
from gpusharing.kube.errors import Forbidden, Invalid, NotFound
from gpusharing.kube.raw import text
from hack.sim.fakefaults import Call, Faults, Hook, Write
from hack.sim.fakelists import Lists
from hack.sim.fakepods import Later, Pods
from hack.sim.fakestore import Backup, Key, Store, StoredChange, copied
from hack.sim.selectors import Matcher, find_unsupported, matcher

RESOLUTION = 1e-6
"""Seconds by which the event loop may wake a watch too early for its bookmark."""


class FakeCluster:
    """The server side, for tests and simulators to prepare and inspect objects."""

    def __init__(
        self,
        *,
        now: Callable[[], datetime] = wall_time,
        grace: float = 30.0,
        later: Later | None = None,
        bookmark_every: float = 60.0,
        on_write: Hook | None = None,
    ) -> None:
        """Deleted pods vanish after `grace` seconds, timed by `later`, or with `finish_terminations()`."""
        self.store = Store(now)
        self.lists = Lists(loop_time)
        self.pods = Pods(self.store, grace, later)
        self.faults = Faults(on_write)
        self.terminating_namespaces: set[str] = set()
        """Namespaces that are being deleted, in which nothing can be created."""
        self.uninstalled: set[Resource] = set()
        """Kinds whose CRD is not installed: calls for them get 404."""
        self.version = "v1.36.3"
        self.logs: dict[tuple[str, str], str] = {}
        """The log of each pod, by namespace and name; other pods have an empty log."""
        self.bookmark_every = bookmark_every
        """Seconds between two bookmarks of a watch."""
        self.bookmarks = 0
        self.closings = 0

    @property
    def writes(self) -> list[Write]:
        """All writes of clients that reached the server, including refused ones, in order."""
        return self.faults.writes

    @property
    def calls(self) -> Counter[tuple[str, str, str]]:
        return self.faults.calls

    def client(self, identity: str) -> "FakeClient":
        """Return a KubeClient whose calls are counted and logged under `identity`."""
        return FakeClient(self, identity)

    def add(self, resource: Resource, obj: JSON) -> JSON:
        """Create an object with the status that it has in `obj`, and return a copy as stored."""
        return copied(self.store.create(resource, obj, None, with_status=True))

    def get(self, resource: Resource, name: str, namespace: str = "") -> JSON:
        """Return a copy of an object; without `namespace`, a namespaced object is in `default`."""
        return copied(self.store.get(resource, self._key(resource, namespace, name)))

    def objects(
        self, resource: Resource, *, namespace: str | None = None, label_selector: str = "", field_selector: str = ""
    ) -> list[JSON]:
        """Return copies of all objects of a kind that match, sorted by namespace and name."""
        match = matcher(label_selector, field_selector)
        return [copied(obj) for obj in self.store.all(resource, namespace) if match(obj)]

    def patch(
        self, resource: Resource, name: str, body: JSON, namespace: str = "", subresource: str | None = None
    ) -> JSON:
        """Merge a patch, as a person or another controller would, and return a copy of the result."""
        key = self._key(resource, namespace, name)
        return copied(self.store.patch(resource, key, body, subresource))

    def delete(self, resource: Resource, name: str, namespace: str = "") -> None:
        self.delete_key(resource, self._key(resource, namespace, name), None)

    def delete_key(self, resource: Resource, key: Key, uid: str | None, *, at_once: bool = False) -> None:
        if resource == kinds.PODS:
            pod = self.store.get(resource, key)
            self.store.check_uid(pod, uid)
            self.pods.delete(pod, at_once=at_once)
        else:
            self.store.delete(resource, key, uid)

    def finish_terminations(self, node: str | None = None) -> list[str]:
        """End the grace period of all terminating pods, or of those on `node`."""
        return self.pods.finish(node=node)

    def expire(self) -> None:
        """Compact the history, so that open watches, older versions and unfinished lists get 410."""
        self.store.compact()
        self.lists.compact()

    def backup(self) -> Backup:
        return self.store.backup()

    def restore(self, backup: Backup, *, bump: int = 0) -> None:
        """Restore a backup and restart; versions follow the backup's plus `bump` (etcdutl --bump-revision)."""
        self.store.restore(backup, bump)
        self.lists.compact()
        self.close_watches()

    async def changed(self) -> None:
        """Wait for the next change of any object, by any client."""
        wake = asyncio.Event()
        self.store.waiting.add(wake)
        try:
            await wake.wait()
        finally:
            self.store.waiting.discard(wake)

    def close_watches(self) -> None:
        """End every open watch without an error event, as the server does after its timeout."""
        self.closings += 1
        self.store.wake()

    def uninstall(self, resource: Resource) -> None:
        for obj in self.objects(resource):
            self.store.swallow[resource] = self.store.swallow.get(resource, 0) + 1
            metadata = obj["metadata"]
            self.store.remove(resource, self._key(resource, metadata.get("namespace", ""), metadata["name"]))
        self.uninstalled.add(resource)
        self.close_watches()

    def send_bookmarks(self) -> None:
        """Make every open watch whose kind has bookmarks send one as soon as it runs."""
        self.bookmarks += 1
        self.store.wake()

    def swallow(self, resource: Resource, events: int) -> None:
        """Withhold the next `events` changes of a kind from all watches, so that only a new list shows their effect."""
        self.store.swallow[resource] = events

    @staticmethod
    def _key(resource: Resource, namespace: str, name: str) -> Key:
        return (namespace or "default", name) if resource.namespaced else ("", name)


class FakeClient(KubeClient):
    def __init__(self, cluster: FakeCluster, identity: str) -> None:
        self.cluster = cluster
        self.identity = identity

    async def call(self, request: ApiRequest) -> JSON:
        call = _call(self.identity, request)
        if request.verb in ("get", "list"):
            await self._enter(call)
            return self._read(request)
        await asyncio.sleep(0)
        request.before_send()
        self._refuse_uninstalled(call.resource)
        result = await self.cluster.faults.write(call, lambda: self._apply(request))
        return copied(result) if result is not None else {}

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """Watch until the server ends it, at the latest after `bookmark_every` for a kind without bookmarks."""
        await self._enter(_call(self.identity, request))
        cluster, resource, wake = self.cluster, request.resource, asyncio.Event()
        match, version = _matcher(request), int(request.query.get("resourceVersion", "0"))
        closings, bookmarks = cluster.closings, cluster.bookmarks
        loop, watching = asyncio.get_running_loop(), cluster.store.watching[resource]
        bookmark_at = loop.time() + cluster.bookmark_every
        alarm = loop.call_at(bookmark_at, wake.set)  # comes on time even if only other objects change
        watching.add(wake)
        try:
            while cluster.closings == closings:
                wake.clear()
                for change in cluster.store.since(resource, version):
                    version = change.version
                    event = _event(change, request.namespace, match)
                    if event:
                        yield event
                if wake.is_set():
                    continue  # a bookmark must not skip changes that arrived in the meantime
                # asyncio may end a wait early by its clock's resolution, and a float of a day's seconds is inexact too.
                due = loop.time() + RESOLUTION >= bookmark_at
                if not resource.bookmarks and due:
                    return  # the server ends a watch at its timeout; without bookmarks this one would only stay silent
                if resource.bookmarks and (due or cluster.bookmarks != bookmarks):
                    bookmarks, version = cluster.bookmarks, cluster.store.version
                    alarm.cancel()
                    bookmark_at = loop.time() + cluster.bookmark_every
                    alarm = loop.call_at(bookmark_at, wake.set)
                    yield WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})
                await wake.wait()
        finally:
            alarm.cancel()
            watching.discard(wake)

    def _read(self, request: ApiRequest) -> JSON:
        cluster, namespace, name = self.cluster, request.namespace, request.name
        if request.verb == "list":
            match, query = _matcher(request), request.query
            matching = (obj for obj in cluster.store.all(request.resource, namespace) if match(obj))
            limit = int(query.get("limit", 0))
            return cluster.lists.page(matching, cluster.store.version, limit, query.get("continue", ""))
        if request.resource == kinds.VERSION:
            return {"gitVersion": cluster.version}
        if not request.resource.plural:
            group = request.resource
            gone = {(kind.group, kind.version, kind.plural) for kind in cluster.uninstalled}
            return {"resources": [] if (group.group, group.version, name) in gone else [{"name": name}]}
        obj = cluster.get(request.resource, name, namespace or "")
        if request.subresource != kinds.LOG:
            return obj
        lines = cluster.logs.get((namespace or "", name), "").splitlines(keepends=True)
        return {kinds.LOG: "".join(lines[max(0, len(lines) - int(request.query["tailLines"])) :])}

    def _apply(self, request: ApiRequest) -> JSON | None:
        cluster, resource, namespace = self.cluster, request.resource, request.namespace
        body = request.body or {}
        if request.verb == "patch":
            return cluster.patch(resource, request.name, body, namespace or "", request.subresource)
        if request.verb == "delete":
            key = (namespace or "default", request.name) if resource.namespaced else ("", request.name)
            # A deleted pod gets the cluster's grace period, not the request's; only a requested 0 counts.
            at_once = body.get("gracePeriodSeconds") == 0
            cluster.delete_key(resource, key, body["preconditions"]["uid"], at_once=at_once)
            return None
        if resource.namespaced and namespace in cluster.terminating_namespaces:
            raise Forbidden(
                f"unable to create new content in namespace {namespace} because it is being terminated",
                namespace_terminating=True,
            )
        if request.subresource == kinds.EVICTION:
            uid = body["deleteOptions"]["preconditions"]["uid"]
            cluster.pods.evict(namespace or "", request.name, uid)
            return None
        return cluster.store.create(resource, body, namespace, with_status=False)

    async def _enter(self, call: Call) -> None:
        await asyncio.sleep(0)
        self._refuse_uninstalled(call.resource)
        await self.cluster.faults.read(call)

    def _refuse_uninstalled(self, resource: Resource) -> None:
        if resource in self.cluster.uninstalled:
            raise NotFound(f"the API server does not serve {resource.full_name}: 404 page not found")


def _call(identity: str, request: ApiRequest) -> Call:
    verb = {kinds.EVICTION: "evict", kinds.LOG: "log"}.get(request.subresource or "", request.verb)
    return Call(
        identity,
        verb,
        request.resource,
        request.namespace,
        request.name or text(request.body, "metadata", "name"),
        request.subresource,
        request.body,
        request.selectors,
    )


def _matcher(request: ApiRequest) -> Matcher:
    fields = request.query.get("fieldSelector", "")
    if path := find_unsupported(request.resource.full_name, fields):
        raise Invalid(f"field label not supported: {path}")
    try:
        return matcher(request.query.get("labelSelector", ""), fields)
    except ValueError as error:
        raise Invalid(f"unable to parse requirement: {error}") from error


def _event(change: StoredChange, namespace: str | None, match: Matcher) -> WatchEvent | None:
    def selected(obj: JSON | None) -> bool:
        if obj is None or namespace not in (None, obj["metadata"].get("namespace")):
            return False
        return match(obj)

    before, after = selected(change.old), selected(change.new)
    if not before and not after:
        return None
    obj = copied(change.last)
    if after:
        return WatchEvent("MODIFIED" if before else "ADDED", obj)
    return WatchEvent("DELETED", obj)

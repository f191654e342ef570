"""FakeCluster: the part of a Kubernetes API server that our code talks to, in memory, for tests and the demo.

SIMULATED. It keeps objects with resourceVersions, merge patches, status subresources, finalizers, uid
preconditions, paged lists, watches with bookmarks and 410, label and field selectors, evictions with
PodDisruptionBudgets and graceful deletion. `tests/kube/contract.py` holds it against a real API server.

It has no schemas, no CEL, no defaulting, no admission, no RBAC, no other patch than the merge patch, no
managedFields, no other subresource than status, eviction and log (text that a test gives): what depends on these is
tested on a real one.
Garbage collection of owned objects and the numbers of PodDisruptionBudgets are immediate, not eventual.

    cluster = FakeCluster()
    cluster.add(NODES, {"metadata": {"name": "gpu-07"}})
    client = cluster.client("operator")        # a KubeClient; its writes are logged under this name
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
from hack.sim.selectors import Matcher, matcher

RESOLUTION = 1e-6
"""Seconds."""


class FakeCluster:
    """The server side: what tests and simulators see and arrange. Nothing here is logged as a write."""

    def __init__(
        self,
        *,
        now: Callable[[], datetime] = wall_time,
        grace: float = 30.0,
        later: Later | None = None,
        bookmark_every: float = 60.0,
        on_write: Hook | None = None,
    ) -> None:
        """`grace` (s) ends by `later` (e.g. `loop.call_later`), else by `finish_terminations()`."""
        self.store = Store(now)
        self.lists = Lists(loop_time)
        self.pods = Pods(self.store, grace, later)
        self.faults = Faults(on_write)
        self.terminating_namespaces: set[str] = set()
        self.uninstalled: set[Resource] = set()
        """Kinds whose CRD is not there."""
        self.version = "v1.36.3"
        self.logs: dict[tuple[str, str], str] = {}
        """What a pod has written, by namespace and name; nothing for all others."""
        self.bookmark_every = bookmark_every
        self.bookmarks = 0
        self.closings = 0

    @property
    def writes(self) -> list[Write]:
        """Every write that reached the server, refused ones included, in order."""
        return self.faults.writes

    @property
    def calls(self) -> Counter[tuple[str, str, str]]:
        """How often (identity, verb, plural) was called."""
        return self.faults.calls

    def client(self, identity: str) -> "FakeClient":
        """A KubeClient whose calls are counted and logged under `identity`."""
        return FakeClient(self, identity)

    def add(self, resource: Resource, obj: JSON) -> JSON:
        """Put an object with its status; returns it as stored."""
        return copied(self.store.create(resource, obj, None, with_status=True))

    def get(self, resource: Resource, name: str, namespace: str = "") -> JSON:
        """A copy of an object. Raises NotFound."""
        return copied(self.store.get(resource, self._key(resource, namespace, name)))

    def objects(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
    ) -> list[JSON]:
        """Copies of the matching objects in name order."""
        match = matcher(label_selector, field_selector)
        return [copied(obj) for obj in self.store.all(resource, namespace) if match(obj)]

    def patch(
        self, resource: Resource, name: str, body: JSON, namespace: str = "", subresource: str | None = None
    ) -> JSON:
        """Change an object, as a person or another controller would."""
        key = self._key(resource, namespace, name)
        return copied(self.store.patch(resource, key, body, subresource))

    def delete(self, resource: Resource, name: str, namespace: str = "") -> None:
        """Delete an object the normal way: pods gracefully, what has finalizers when they are gone."""
        self.delete_key(resource, self._key(resource, namespace, name), None)

    def delete_key(self, resource: Resource, key: Key, uid: str | None, *, at_once: bool = False) -> None:
        """Delete with an optional uid precondition. `at_once`: a pod vanishes without waiting for its kubelet."""
        if resource == kinds.PODS:
            pod = self.store.get(resource, key)
            self.store.check_uid(pod, uid)
            self.pods.delete(pod, at_once=at_once)
        else:
            self.store.delete(resource, key, uid)

    def finish_terminations(self, node: str | None = None) -> list[str]:
        """End the grace period of terminating pods (of one node); returns those that are gone."""
        return self.pods.finish(node=node)

    def expire(self) -> None:
        """Compact: every open watch gets 410, and so does one from an older resourceVersion, or the page of a list."""
        self.store.compact()
        self.lists.compact()

    def backup(self) -> Backup:
        """A backup of the store."""
        return self.store.backup()

    def restore(self, backup: Backup, *, bump: int = 0) -> None:
        """Restore the store and start the API server again: what happened since the backup has never happened, and
        resourceVersions go on from those of the backup, raised by `bump` (etcdutl --bump-revision)."""
        self.store.restore(backup, bump)
        self.lists.compact()
        self.close_watches()

    async def changed(self) -> None:
        """Wait for the next write of anybody."""
        wake = asyncio.Event()
        self.store.waiting.add(wake)
        try:
            await wake.wait()
        finally:
            self.store.waiting.discard(wake)

    def close_watches(self) -> None:
        """End every open watch quietly, as the server does after its timeout."""
        self.closings += 1
        self.store.wake()

    def uninstall(self, resource: Resource) -> None:
        """The CRD of a kind goes, and with it its objects, in a moment in which no watch tells of it."""
        for obj in self.objects(resource):
            self.store.swallow[resource] = self.store.swallow.get(resource, 0) + 1
            metadata = obj["metadata"]
            self.store.remove(resource, self._key(resource, metadata.get("namespace", ""), metadata["name"]))
        self.uninstalled.add(resource)
        self.close_watches()

    def send_bookmarks(self) -> None:
        """Send a bookmark to every open watch now."""
        self.bookmarks += 1
        self.store.wake()

    def swallow(self, resource: Resource, events: int) -> None:
        """Keep the next events of a kind from all watches: what a re-list must heal."""
        self.store.swallow[resource] = events

    @staticmethod
    def _key(resource: Resource, namespace: str, name: str) -> Key:
        return (namespace or "default", name) if resource.namespaced else ("", name)


class FakeClient(KubeClient):
    """A KubeClient on a FakeCluster. Every call gives other tasks a turn first, as a real one does."""

    def __init__(self, cluster: FakeCluster, identity: str) -> None:
        """See `FakeCluster.client`."""
        self.cluster = cluster
        self.identity = identity

    async def call(self, request: ApiRequest) -> JSON:
        """See KubeClient. A pod that is deleted has the grace period of the cluster, whatever was asked for, but for 0,
        with which it vanishes at once."""
        call = _call(self.identity, request)
        if request.verb in ("get", "list"):
            await self._enter(call)
            return self._read(request)
        await asyncio.sleep(0)
        self._refuse_uninstalled(call.resource)
        result = await self.cluster.faults.write(call, lambda: self._apply(request))
        return copied(result) if result is not None else {}

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """See KubeClient."""
        await self._enter(_call(self.identity, request))
        cluster, resource, wake = self.cluster, request.resource, asyncio.Event()
        match, version = _matcher(request), int(request.query.get("resourceVersion", "0"))
        closings, bookmarks = cluster.closings, cluster.bookmarks
        loop, watching = asyncio.get_running_loop(), cluster.store.watching[resource]
        bookmark_at = loop.time() + cluster.bookmark_every
        alarm = loop.call_at(bookmark_at, wake.set)  # however much happens that this watch does not tell of
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
                    continue  # a bookmark must not pass over what came meanwhile
                # asyncio ends a wait up to its clock's resolution early, and a day of floats is that inexact.
                due = loop.time() + RESOLUTION >= bookmark_at
                if not resource.bookmarks and due:
                    return  # its time is up: nobody asks for more of a watch that would only be silent
                if resource.bookmarks and (due or cluster.bookmarks != bookmarks):
                    bookmarks, version = cluster.bookmarks, cluster.store.version
                    alarm.cancel()
                    bookmark_at = loop.time() + cluster.bookmark_every
                    alarm = loop.call_at(bookmark_at, wake.set)
                    yield _bookmark(version)
                await wake.wait()
        finally:
            alarm.cancel()
            watching.discard(wake)

    def _read(self, request: ApiRequest) -> JSON:
        cluster, namespace, name = self.cluster, request.namespace, request.name
        if request.verb == "list":
            match, query = _matcher(request), request.query
            found = (obj for obj in cluster.store.all(request.resource, namespace) if match(obj))
            limit = int(query.get("limit", 0))
            return cluster.lists.page(found, cluster.store.version, limit, query.get("continue", ""))
        if request.resource == kinds.VERSION:
            return {"gitVersion": cluster.version}
        if not request.resource.plural:
            return {"resources": [] if self._is_uninstalled(request.resource, name) else [{"name": name}]}
        obj = cluster.get(request.resource, name, namespace or "")
        if request.subresource != kinds.LOG:
            return obj
        lines = cluster.logs.get((namespace or "", name), "").splitlines(keepends=True)
        return {kinds.LOG: "".join(lines[-int(request.query["tailLines"]) :])}

    def _apply(self, request: ApiRequest) -> JSON | None:
        cluster, resource, namespace = self.cluster, request.resource, request.namespace
        body = request.body or {}
        if request.verb == "patch":
            return cluster.patch(resource, request.name, body, namespace or "", request.subresource)
        if request.verb == "delete":
            key = (namespace or "default", request.name) if resource.namespaced else ("", request.name)
            at_once = body.get("gracePeriodSeconds") == 0
            cluster.delete_key(resource, key, body["preconditions"]["uid"], at_once=at_once)
            return None
        self._refuse_terminating(resource, namespace)
        if request.subresource == kinds.EVICTION:
            uid = body["deleteOptions"]["preconditions"]["uid"]
            cluster.pods.evict(namespace or "", request.name, uid)
            return None
        return cluster.store.create(resource, body, namespace, with_status=False)

    async def _enter(self, call: Call) -> None:
        await asyncio.sleep(0)
        self._refuse_uninstalled(call.resource)
        await self.cluster.faults.read(call)

    def _is_uninstalled(self, group: Resource, plural: str) -> bool:
        name = (group.group, group.version, plural)
        return any((kind.group, kind.version, kind.plural) == name for kind in self.cluster.uninstalled)

    def _refuse_uninstalled(self, resource: Resource) -> None:
        if resource in self.cluster.uninstalled:
            raise NotFound("the server could not find the requested resource")

    def _refuse_terminating(self, resource: Resource, namespace: str | None) -> None:
        if resource.namespaced and namespace in self.cluster.terminating_namespaces:
            raise Forbidden(
                f"unable to create new content in namespace {namespace} because it is being terminated",
                namespace_terminating=True,
            )


def _call(identity: str, request: ApiRequest) -> Call:
    """How a request is logged, and which faults it meets."""
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
    try:
        return matcher(request.query.get("labelSelector", ""), request.query.get("fieldSelector", ""))
    except ValueError as error:
        raise Invalid(f"unable to parse requirement: {error}") from error


def _event(change: StoredChange, namespace: str | None, match: Matcher) -> WatchEvent | None:
    """The change as a watch with a selector sees it: leaving the selection is a deletion, entering an addition."""

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


def _bookmark(version: int) -> WatchEvent:
    return WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})

"""FakeCluster: the part of a Kubernetes API server that our code talks to, in memory, for tests and the demo.

SIMULATED. It keeps objects with resourceVersions, merge patches, status subresources, finalizers, uid preconditions,
paged lists, watches with bookmarks and 410, label and field selectors, evictions with PodDisruptionBudgets and
graceful deletion. `tests/kube/contract.py` checks it and a real API server against the same contract.

It has no schemas, no CEL, no defaulting, no admission, no RBAC, no patch other than the merge patch, no managedFields,
and no subresource other than status, eviction and log (whose text a test provides). Code that depends on these is
tested on a real API server. Garbage collection of owned objects and the numbers of PodDisruptionBudgets are immediate,
not eventual.

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
from hack.sim.selectors import Matcher, find_unsupported, matcher

RESOLUTION = 1e-6
"""Seconds by which the event loop may wake a watch too early for its bookmark."""


class FakeCluster:
    """The server side, through which tests and simulators prepare and inspect objects. Changes that are made through
    it are not logged as writes."""

    def __init__(
        self,
        *,
        now: Callable[[], datetime] = wall_time,
        grace: float = 30.0,
        later: Later | None = None,
        bookmark_every: float = 60.0,
        on_write: Hook | None = None,
    ) -> None:
        """Create an empty cluster. `now` returns the time for creationTimestamps and deletionTimestamps. A deleted pod
        vanishes after a grace period of `grace` seconds, which `later` (such as `loop.call_later`) times; without
        `later` it lasts until `finish_terminations()`. `bookmark_every` is the number of seconds between two bookmarks
        of a watch. `on_write` is called before each write of a client, and after it if it succeeded."""
        self.store = Store(now)
        self.lists = Lists(loop_time)
        self.pods = Pods(self.store, grace, later)
        self.faults = Faults(on_write)
        self.terminating_namespaces: set[str] = set()
        """Namespaces that are being deleted, in which nothing can be created."""
        self.uninstalled: set[Resource] = set()
        """Kinds whose CRD is not installed: calls for them get 404."""
        self.version = "v1.36.3"
        """The version that the server reports."""
        self.logs: dict[tuple[str, str], str] = {}
        """The log of each pod, by namespace and name; other pods have an empty log."""
        self.bookmark_every = bookmark_every
        """Seconds between two bookmarks of a watch."""
        self.bookmarks = 0
        """Number of calls of `send_bookmarks`. Open watches notice when it changes."""
        self.closings = 0
        """Number of times that all watches were closed. Open watches notice when it changes."""

    @property
    def writes(self) -> list[Write]:
        """All writes of clients that reached the server, including refused ones, in order. Writes of uninstalled kinds
        are left out."""
        return self.faults.writes

    @property
    def calls(self) -> Counter[tuple[str, str, str]]:
        """Number of calls by identity, verb and plural. Calls for uninstalled kinds are not counted."""
        return self.faults.calls

    def client(self, identity: str) -> "FakeClient":
        """Return a KubeClient whose calls are counted and logged under `identity`."""
        return FakeClient(self, identity)

    def add(self, resource: Resource, obj: JSON) -> JSON:
        """Create an object with the status that it has in `obj`, and return a copy as stored. Raises AlreadyExists if
        the name is taken, Invalid if it has no name, and TypeError for a value that JSON cannot hold."""
        return copied(self.store.create(resource, obj, None, with_status=True))

    def get(self, resource: Resource, name: str, namespace: str = "") -> JSON:
        """Return a copy of an object; without `namespace`, a namespaced object is in `default`. Raises NotFound."""
        return copied(self.store.get(resource, self._key(resource, namespace, name)))

    def objects(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
    ) -> list[JSON]:
        """Return copies of all objects of a kind that match, sorted by namespace and name. Raises ValueError for a
        selector that cannot be parsed."""
        match = matcher(label_selector, field_selector)
        return [copied(obj) for obj in self.store.all(resource, namespace) if match(obj)]

    def patch(
        self, resource: Resource, name: str, body: JSON, namespace: str = "", subresource: str | None = None
    ) -> JSON:
        """Merge a patch into an object, as a person or another controller would, and return a copy of the result. The
        status of a kind with the subresource `status` changes only if `subresource` is that. A patch that changes
        nothing makes no new version; one that removes the last finalizer of a deleted object removes it, unless it is a
        pod. Raises NotFound, Conflict if the patch names another resourceVersion, TypeError for a value that JSON
        cannot hold, and Invalid for a new uid, name or namespace and for a subresource other than `status` (and `scale`
        of a ReplicaSet)."""
        key = self._key(resource, namespace, name)
        return copied(self.store.patch(resource, key, body, subresource))

    def delete(self, resource: Resource, name: str, namespace: str = "") -> None:
        """Delete an object as kubectl does, together with the objects that it owns. A pod that runs on a node vanishes
        after its grace period, and another object with finalizers once they are removed; until then both are only
        marked as deleted. Raises NotFound."""
        self.delete_key(resource, self._key(resource, namespace, name), None)

    def delete_key(self, resource: Resource, key: Key, uid: str | None, *, at_once: bool = False) -> None:
        """Delete an object as `delete` does. Raises NotFound, or Conflict if `uid` is not None and not the object's.
        With `at_once` a pod without finalizers vanishes without waiting for its kubelet; for other kinds it makes no
        difference."""
        if resource == kinds.PODS:
            pod = self.store.get(resource, key)
            self.store.check_uid(pod, uid)
            self.pods.delete(pod, at_once=at_once)
        else:
            self.store.delete(resource, key, uid)

    def finish_terminations(self, node: str | None = None) -> list[str]:
        """End the grace period of all terminating pods, or of those on `node`, at once. Returns the pods that have
        vanished, as namespace/name, sorted by these; pods with finalizers stay and are left out."""
        return self.pods.finish(node=node)

    def expire(self) -> None:
        """Compact the history. Every open watch gets 410, and so do a later watch from an older resourceVersion and
        the next page of a list that is being read."""
        self.store.compact()
        self.lists.compact()

    def backup(self) -> Backup:
        """Return a backup of the store, for `restore`. Later writes do not change it."""
        return self.store.backup()

    def restore(self, backup: Backup, *, bump: int = 0) -> None:
        """Restore the store from a backup and restart the API server, so that all watches end and the tokens of
        unfinished lists expire. Changes since the backup are lost. The next resourceVersions follow the sum of the
        backup's and `bump` (as with etcdutl --bump-revision)."""
        self.store.restore(backup, bump)
        self.lists.compact()
        self.close_watches()

    async def changed(self) -> None:
        """Wait for the next change of any object, by any client. Changes that `swallow` withholds do not end the wait.
        A bookmark that is sent, or a watch that is closed, may end it without a change."""
        wake = asyncio.Event()
        self.store.waiting.add(wake)
        try:
            await wake.wait()
        finally:
            self.store.waiting.discard(wake)

    def close_watches(self) -> None:
        """End every open watch without an error event, as the server does after its timeout. Their clients may watch
        again at once."""
        self.closings += 1
        self.store.wake()

    def uninstall(self, resource: Resource) -> None:
        """Remove the CRD of a kind and all its objects, with what they own, and end the open watches of all kinds. No
        watch delivers the deletions of this kind. Later calls of clients for the kind get NotFound."""
        for obj in self.objects(resource):
            self.store.swallow[resource] = self.store.swallow.get(resource, 0) + 1
            metadata = obj["metadata"]
            self.store.remove(resource, self._key(resource, metadata.get("namespace", ""), metadata["name"]))
        self.uninstalled.add(resource)
        self.close_watches()

    def send_bookmarks(self) -> None:
        """Make every open watch whose kind has bookmarks send one as soon as it runs, without waiting for the interval.
        A watch that does not run between two calls sends only one."""
        self.bookmarks += 1
        self.store.wake()

    def swallow(self, resource: Resource, events: int) -> None:
        """Withhold the next `events` changes of a kind, whoever makes them, from all watches, so that only a new list
        shows their effect. Replaces a number that was set before; 0 ends it."""
        self.store.swallow[resource] = events

    @staticmethod
    def _key(resource: Resource, namespace: str, name: str) -> Key:
        """Return the store's key of an object, (namespace, name). A namespaced object without a namespace is in
        `default`; the namespace of a cluster-scoped object is empty."""
        return (namespace or "default", name) if resource.namespaced else ("", name)


class FakeClient(KubeClient):
    """A KubeClient for a FakeCluster. Every call lets other tasks run first, as a real one does."""

    def __init__(self, cluster: FakeCluster, identity: str) -> None:
        """Create the client; use `FakeCluster.client`."""
        self.cluster = cluster
        self.identity = identity

    async def call(self, request: ApiRequest) -> JSON:
        """Make a call as KubeClient does; the answer to a deletion or an eviction is an empty object. A deleted pod
        gets the cluster's grace period and not the one in the request, except that a requested 0 removes it at once if
        it has no finalizers. Raises the error of a scripted fault that hits the call, even if that is not a KubeError,
        and what the hook `on_write` or the request's `before_send` raises."""
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
        """Watch as KubeClient does, from the request's resourceVersion on, until the server closes all watches. A watch
        of a kind with bookmarks gets one every `bookmark_every` seconds; a watch of another kind ends after that time.
        At the start it raises NotFound for an uninstalled kind, Invalid for a bad selector, or the error of a scripted
        fault. Raises Expired whenever the history no longer reaches back to its version."""
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
                    yield _bookmark(version)
                await wake.wait()
        finally:
            alarm.cancel()
            watching.discard(wake)

    def _read(self, request: ApiRequest) -> JSON:
        """Return the answer to a list, which is a page of objects, or to a get. A get returns one object, the server's
        version, or the discovery of a kind, which is empty if the kind is uninstalled. A get of an existing pod's log
        returns its last `tailLines` lines under the key `log`. Raises NotFound, Invalid or Expired."""
        cluster, namespace, name = self.cluster, request.namespace, request.name
        if request.verb == "list":
            match, query = _matcher(request), request.query
            matching = (obj for obj in cluster.store.all(request.resource, namespace) if match(obj))
            limit = int(query.get("limit", 0))
            return cluster.lists.page(matching, cluster.store.version, limit, query.get("continue", ""))
        if request.resource == kinds.VERSION:
            return {"gitVersion": cluster.version}
        if not request.resource.plural:
            return {"resources": [] if self._is_uninstalled(request.resource, name) else [{"name": name}]}
        obj = cluster.get(request.resource, name, namespace or "")
        if request.subresource != kinds.LOG:
            return obj
        lines = cluster.logs.get((namespace or "", name), "").splitlines(keepends=True)
        return {kinds.LOG: "".join(lines[max(0, len(lines) - int(request.query["tailLines"])) :])}

    def _apply(self, request: ApiRequest) -> JSON | None:
        """Carry out a create, patch, delete or eviction. Returns the stored object, or None after a deletion or an
        eviction. A deletion and an eviction must name a uid, which may be None, in their preconditions. A create or an
        eviction in a namespace that is being deleted raises Forbidden. Otherwise raises the error that the server would
        answer with."""
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
        """Let other tasks run, then raise NotFound for an uninstalled kind, or else count the read and raise the fault
        that is scripted for it, if any."""
        await asyncio.sleep(0)
        self._refuse_uninstalled(call.resource)
        await self.cluster.faults.read(call)

    def _is_uninstalled(self, group: Resource, plural: str) -> bool:
        """Whether a kind with this plural, in the API group and version of `group`, is among the cluster's
        `uninstalled` kinds. A kind that the cluster never had counts as installed."""
        name = (group.group, group.version, plural)
        return any((kind.group, kind.version, kind.plural) == name for kind in self.cluster.uninstalled)

    def _refuse_uninstalled(self, resource: Resource) -> None:
        """Raise NotFound, with kube-apiserver's message, for a kind whose CRD is not installed."""
        if resource in self.cluster.uninstalled:
            raise NotFound("the server could not find the requested resource")

    def _refuse_terminating(self, resource: Resource, namespace: str | None) -> None:
        """Raise Forbidden for a namespaced kind if the namespace is in the cluster's `terminating_namespaces`, in
        which nothing can be created and no pod evicted. The Namespace object is not read."""
        if resource.namespaced and namespace in self.cluster.terminating_namespaces:
            raise Forbidden(
                f"unable to create new content in namespace {namespace} because it is being terminated",
                namespace_terminating=True,
            )


def _call(identity: str, request: ApiRequest) -> Call:
    """Return the request in the form in which it is logged and matched against faults. The verb is `evict` or `log` for
    the subresources eviction and log. The name of a new object comes from its body, and is empty if the body has none.
    `identity` is the client's."""
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
    """Return a predicate for the request's label and field selectors. Raises Invalid for a selector that cannot be
    parsed, and for a field by which an API server does not select objects of this kind."""
    fields = request.query.get("fieldSelector", "")
    if path := find_unsupported(request.resource.plural, fields):
        raise Invalid(f"field label not supported: {path}")
    try:
        return matcher(request.query.get("labelSelector", ""), fields)
    except ValueError as error:
        raise Invalid(f"unable to parse requirement: {error}") from error


def _event(change: StoredChange, namespace: str | None, match: Matcher) -> WatchEvent | None:
    """Return the event that a watch of this namespace (None for all) and selector gets for a change, or None if it
    gets none. An object that no longer matches is DELETED, and one that begins to match is ADDED."""

    def selected(obj: JSON | None) -> bool:
        """Whether the object exists, is in the namespace and matches the selectors."""
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
    """Return the bookmark event for this resourceVersion."""
    return WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})

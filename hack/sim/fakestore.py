"""The objects of FakeCluster: versions, history for watches, merge patches, finalizers, garbage collection.

Stored objects are never changed in place: a write replaces them, so that the history can keep both states.
"""

import asyncio
import json
import marshal
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gpusharing.kube import client as kinds
from gpusharing.kube.client import JSON, Resource
from gpusharing.kube.errors import AlreadyExists, Conflict, Expired, Invalid, NotFound

Key = tuple[str, str]
"""Namespace and name; the namespace is empty for cluster-scoped objects."""

WITH_STATUS = frozenset({kinds.NODES, kinds.PODS, kinds.PDBS, kinds.POLICIES, kinds.GPUNODES, kinds.DAEMON_SETS})
"""Kinds with a status subresource: a patch of the object does not change its status, and vice versa."""
WITH_GENERATION = frozenset({kinds.PDBS, kinds.POLICIES, kinds.GPUNODES, kinds.DAEMON_SETS})
SERVER_FIELDS = ("uid", "name", "namespace", "creationTimestamp", "deletionTimestamp", "generation")
MAX_NOTE = 1024
"""The most bytes of an Event's note, in UTF-8 (kubernetes v1.36.3 pkg/apis/core/validation/events.go)."""
HISTORY = 10_000
"""Number of events kept for each kind. A watch from an older version gets 410, as after etcd's compaction."""


def received(obj: JSON) -> JSON:
    """Return a copy of an object as it arrives over the wire: tuples become lists."""
    arrived: JSON = json.loads(json.dumps(obj))
    return arrived


def copied(obj: JSON) -> JSON:
    """Return a deep copy of a stored object, by marshal, which takes a third of the time of json."""
    copy: JSON = marshal.loads(marshal.dumps(obj))
    return copy


def merged(target: Any, patch: Any) -> Any:
    """Return `target` with the patch merged into it (RFC 7386). Parts that the merge leaves alone are the same objects."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def as_core_event(event: JSON) -> JSON:
    """Return an Event of events.k8s.io as the API server shows it in the core group."""
    older = {"regarding": "involvedObject", "note": "message", "reportingController": "reportingComponent"}
    return {older.get(key, key): value for key, value in event.items()} | {"apiVersion": "v1"}


class Waiters(dict[asyncio.Event, None]):
    """A set of events in order of insertion: the order of a plain set would depend on memory addresses."""

    def add(self, event: asyncio.Event) -> None:
        self[event] = None

    def discard(self, event: asyncio.Event) -> None:
        self.pop(event, None)


@dataclass(frozen=True)
class StoredChange:
    """One committed change. `old` is None for a creation, `new` for a deletion; `last` is the object's last state."""

    version: int
    old: JSON | None
    new: JSON | None
    last: JSON


@dataclass(frozen=True)
class Backup:
    objects: dict[Resource, dict[Key, JSON]]
    version: int


class Store:
    """The objects of all kinds, with one resourceVersion for the whole store."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self.version = 1
        self._oldest: dict[Resource, int] = {}
        self._oldest_of_all = 0
        self.waiting = Waiters()
        self.watching: dict[Resource, Waiters] = defaultdict(Waiters)
        self.swallow: dict[Resource, int] = {}
        """How many of the next events of a kind no watch gets, by kind."""
        self.on_commit: list[Callable[[Resource, StoredChange], None]] = []
        self._objects: dict[Resource, dict[Key, JSON]] = {}
        self._history: dict[Resource, list[StoredChange]] = {}
        self._uids = 0

    def get(self, resource: Resource, key: Key) -> JSON:
        """Return the stored object itself, which the caller must not change."""
        obj = self._objects.get(resource, {}).get(key)
        if obj is None:
            raise NotFound(f'{resource.plural} "{key[1]}" not found')
        return obj

    def all(self, resource: Resource, namespace: str | None = None) -> Iterator[JSON]:
        if resource == kinds.CORE_EVENTS:
            yield from map(as_core_event, self.all(kinds.EVENTS, namespace))
        for key, obj in sorted(self._objects.get(resource, {}).items()):
            if namespace is None or key[0] == namespace:
                yield obj

    def create(self, resource: Resource, body: JSON, namespace: str | None, *, with_status: bool) -> JSON:
        """Store a copy of `body` as the API server does. Without `with_status`, kinds in WITH_STATUS lose their status."""
        metadata = body.get("metadata") or {}
        name = metadata.get("name")
        if not name:
            raise Invalid("metadata.name: Required value: name or generateName is required")
        if resource == kinds.EVENTS and len(body.get("note", "").encode()) > MAX_NOTE:
            raise Invalid(f"note: Invalid value: can have at most {MAX_NOTE} bytes")
        where = (namespace or metadata.get("namespace") or "default") if resource.namespaced else ""
        key = (where, name)
        if key in self._objects.get(resource, {}):
            raise AlreadyExists(f'{resource.plural} "{name}" already exists')
        self._uids += 1
        obj = received(body)
        if resource in WITH_STATUS and not with_status:
            obj.pop("status", None)
            if resource == kinds.PODS:
                obj["status"] = {"phase": "Pending"}
        obj["metadata"] = {
            **obj["metadata"],
            **({"namespace": where} if where else {}),
            "uid": f"00000000-0000-4000-8000-{self._uids:012d}",
            "creationTimestamp": self.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            **({"generation": 1} if resource in WITH_GENERATION else {}),
        }
        return self.commit(resource, key, None, obj)

    def patch(self, resource: Resource, key: Key, body: JSON, subresource: str | None) -> JSON:
        """Merge a patch. The last finalizer of a deleted object, unless it is a pod, removes the object."""
        old = self.get(resource, key)
        self._check_preconditions(resource, old, body.get("metadata") or {})
        if subresource == "status":
            new = {**old, "status": merged(old.get("status"), received(body.get("status") or {}))}
        elif subresource == "scale" and resource == kinds.REPLICA_SETS:
            replicas = (body.get("spec") or {}).get("replicas", old["spec"].get("replicas"))
            new = {**old, "spec": {**old["spec"], "replicas": replicas}}
        elif subresource is None:
            new = self._patched(resource, old, received(body))
        else:
            raise Invalid(f"FakeCluster has no subresource {subresource}")
        if new == old:
            return old
        done = new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers")
        if done and resource != kinds.PODS:  # a pod still has its grace period
            return self.remove(resource, key)
        return self.commit(resource, key, old, new)

    def delete(self, resource: Resource, key: Key, uid: str | None) -> None:
        """Delete an object and what it owns; one with finalizers is only marked as deleted."""
        old = self.get(resource, key)
        self.check_uid(old, uid)
        if not old["metadata"].get("finalizers"):
            self.remove(resource, key)
        else:
            self.mark_deleted(resource, key, seconds=0)

    def mark_deleted(self, resource: Resource, key: Key, seconds: float) -> None:
        """Set the deletionTimestamp to the end of the grace period of `seconds`."""
        old = self.get(resource, key)
        if old["metadata"].get("deletionTimestamp"):
            return
        ends = datetime.fromtimestamp(self.now().timestamp() + seconds, UTC)
        metadata = {
            **old["metadata"],
            "deletionTimestamp": ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "deletionGracePeriodSeconds": int(seconds),
        }
        if resource in WITH_GENERATION:  # as the API server does, though nobody edited anything
            metadata["generation"] = metadata.get("generation", 0) + 1
        self.commit(resource, key, old, {**old, "metadata": metadata})

    def remove(self, resource: Resource, key: Key) -> JSON:
        """Remove an object, even one with finalizers, and delete what it owns."""
        old = self.get(resource, key)
        gone = self.commit(resource, key, old, None)
        uid = old["metadata"]["uid"]
        for kind, objects in self._objects.items():
            for owned, obj in list(objects.items()):
                if any(owner.get("uid") == uid for owner in obj["metadata"].get("ownerReferences") or ()):
                    self.delete(kind, owned, None)
        return gone

    def commit(self, resource: Resource, key: Key, old: JSON | None, new: JSON | None) -> JSON:
        """Store `new` under the next version, or remove the object if it is None."""
        self.version += 1
        latest = new if new is not None else old
        if latest is None:
            raise ValueError("a change needs an object")
        last = {**latest, "metadata": {**latest["metadata"], "resourceVersion": str(self.version)}}
        objects = self._objects.setdefault(resource, {})
        if new is None:
            del objects[key]
        else:
            objects[key] = last
        change = StoredChange(self.version, old, None if new is None else last, last)
        self._remember(resource, change)
        for listener in self.on_commit:
            listener(resource, change)
        return last

    def since(self, resource: Resource, version: int) -> list[StoredChange]:
        oldest = max(self._oldest_of_all, self._oldest.get(resource, 0))
        if version < oldest:
            raise Expired(f"too old resource version: {version} ({oldest})")
        history = self._history.get(resource, [])
        return history[bisect_right(history, version, key=lambda change: change.version) :]

    def compact(self) -> None:
        """Forget the history, so that every watch from an earlier version gets 410."""
        self.version += 1
        self._oldest_of_all = self.version
        self._history.clear()
        self.wake()

    def backup(self) -> Backup:
        return Backup({kind: dict(objects) for kind, objects in self._objects.items()}, self.version)

    def restore(self, backup: Backup, bump: int) -> None:
        """Replace everything with the backup and forget the history. The next versions follow the backup's plus `bump`."""
        self._objects = {kind: dict(objects) for kind, objects in backup.objects.items()}
        self.version = self._oldest_of_all = backup.version + bump
        self._oldest.clear()
        self._history.clear()

    def wake(self) -> None:
        """Wake all watches, and callers that wait for a change of any kind."""
        for resource in self.watching:
            self._wake(resource)

    def _wake(self, resource: Resource) -> None:
        for event in (*self.waiting, *self.watching[resource]):
            event.set()

    def check_uid(self, obj: JSON, uid: str | None) -> None:
        if uid is not None and obj["metadata"]["uid"] != uid:
            raise Conflict(
                f"the UID in the precondition ({uid}) does not match the UID in record "
                f"({obj['metadata']['uid']}). The object might have been deleted and then recreated"
            )

    def _remember(self, resource: Resource, change: StoredChange) -> None:
        if self.swallow.get(resource, 0) > 0:
            self.swallow[resource] -= 1
            return
        history = self._history.setdefault(resource, [])
        history.append(change)
        if len(history) > HISTORY:
            self._oldest[resource] = history[HISTORY // 2].version
            del history[: HISTORY // 2 + 1]
        self._wake(resource)

    def _check_preconditions(self, resource: Resource, old: JSON, metadata: JSON) -> None:
        version = metadata.get("resourceVersion")
        if version and version != old["metadata"]["resourceVersion"]:
            raise Conflict(
                f'Operation cannot be fulfilled on {resource.plural} "{old["metadata"]["name"]}": the object '
                "has been modified; please apply your changes to the latest version and try again"
            )
        for field in ("uid", "name", "namespace"):
            if field in metadata and metadata[field] != old["metadata"].get(field):
                raise Invalid(f"metadata.{field}: Invalid value: {metadata[field]!r}: field is immutable")

    def _patched(self, resource: Resource, old: JSON, body: JSON) -> JSON:
        new: JSON = merged(old, body)
        new["metadata"] = {**new["metadata"]}  # of the old object, if the patch has no metadata
        for field in SERVER_FIELDS:
            if field in old["metadata"]:
                new["metadata"][field] = old["metadata"][field]
            else:
                new["metadata"].pop(field, None)
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        for empty in ("labels", "annotations", "finalizers"):
            if not new["metadata"].get(empty, True):
                del new["metadata"][empty]
        if resource in WITH_STATUS:
            new.pop("status", None)
            if "status" in old:
                new["status"] = old["status"]
        if resource in WITH_GENERATION and _content(new) != _content(old):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        return new


def _content(obj: JSON) -> JSON:
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}

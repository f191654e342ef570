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
"""(namespace, name); the namespace is empty for cluster-scoped objects."""

WITH_STATUS = frozenset(
    {kinds.NODES, kinds.PODS, kinds.PDBS, kinds.POLICIES, kinds.GPUNODES, kinds.DAEMON_SETS}
)
"""Kinds with a status subresource: a patch of the object leaves the status alone, and the other way round."""
WITH_GENERATION = frozenset({kinds.PDBS, kinds.POLICIES, kinds.GPUNODES, kinds.DAEMON_SETS})
SERVER_FIELDS = ("uid", "name", "namespace", "creationTimestamp", "deletionTimestamp", "generation")
HISTORY = 10_000
"""Events kept per kind; a watch from before them gets 410, like after etcd's compaction."""


def received(obj: JSON) -> JSON:
    """What arrives of an object that somebody sends: TypeError for what is no JSON, tuples become lists."""
    arrived: JSON = json.loads(json.dumps(obj))
    return arrived


def copied(obj: JSON) -> JSON:
    """A deep copy of what is stored; marshal takes a third of json's time, and is as deep for plain JSON."""
    copy: JSON = marshal.loads(marshal.dumps(obj))
    return copy


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386. Neither argument is changed."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


class Waiters(dict[asyncio.Event, None]):
    """A set that keeps its order: the one of a set hangs on addresses, and a run would not be the same twice."""

    def add(self, event: asyncio.Event) -> None:
        """Also the one that is there keeps its place."""
        self[event] = None

    def discard(self, event: asyncio.Event) -> None:
        """Nothing when it is not there."""
        self.pop(event, None)


@dataclass(frozen=True)
class StoredChange:
    """One committed change; `old` is None for a creation, `new` for a deletion (`last` is its final state)."""

    version: int
    old: JSON | None
    new: JSON | None
    last: JSON


@dataclass(frozen=True)
class Backup:
    """What a Store held at one moment."""

    objects: dict[Resource, dict[Key, JSON]]
    version: int


class Store:
    """Objects by kind with one global resourceVersion."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self.version = 1
        self._oldest: dict[Resource, int] = {}
        self._oldest_of_all = 0
        self.waiting = Waiters()
        """Set at every change."""
        self.watching: dict[Resource, Waiters] = defaultdict(Waiters)
        """Set at every change of their kind."""
        self.swallow: dict[Resource, int] = {}
        self.on_commit: list[Callable[[Resource, StoredChange], None]] = []
        self._objects: dict[Resource, dict[Key, JSON]] = {}
        self._history: dict[Resource, list[StoredChange]] = {}
        self._uids = 0

    def get(self, resource: Resource, key: Key) -> JSON:
        """The stored object itself: read, never change it."""
        found = self._objects.get(resource, {}).get(key)
        if found is None:
            raise NotFound(f'{resource.plural} "{key[1]}" not found')
        return found

    def all(self, resource: Resource, namespace: str | None = None) -> Iterator[JSON]:
        """The stored objects in name order: read, never change them."""
        for key, obj in sorted(self._objects.get(resource, {}).items()):
            if namespace is None or key[0] == namespace:
                yield obj

    def create(self, resource: Resource, body: JSON, namespace: str | None, *, with_status: bool) -> JSON:
        """Add an object; the server sets uid, versions and creationTimestamp."""
        metadata = body.get("metadata") or {}
        name = metadata.get("name")
        if not name:
            raise Invalid("metadata.name: Required value: name or generateName is required")
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
        """Merge patch of the object or of its status; a patch that changes nothing makes no new version."""
        old = self.get(resource, key)
        self._check_preconditions(resource, old, body.get("metadata") or {})
        if subresource == "status":
            new = {**old, "status": merged(old.get("status"), received(body.get("status") or {}))}
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
        """Delete at once, or mark for deletion while there are finalizers."""
        old = self.get(resource, key)
        self.check_uid(old, uid)
        if not old["metadata"].get("finalizers"):
            self.remove(resource, key)
        else:
            self.mark_deleted(resource, key, seconds=0)

    def mark_deleted(self, resource: Resource, key: Key, seconds: float) -> None:
        """Set the deletionTimestamp to the end of the grace period; a second call changes nothing."""
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
        """Take an object away, and what it owned."""
        old = self.get(resource, key)
        gone = self.commit(resource, key, old, None)
        uid = old["metadata"]["uid"]
        for kind, objects in self._objects.items():
            for owned in [k for k, obj in objects.items() if _owned_by(obj, uid)]:
                self.delete(kind, owned, None)
        return gone

    def commit(self, resource: Resource, key: Key, old: JSON | None, new: JSON | None) -> JSON:
        """Store `new` under the next version and tell the watches."""
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
        for told in self.on_commit:
            told(resource, change)
        return last

    def since(self, resource: Resource, version: int) -> list[StoredChange]:
        """Changes after `version`. Raises Expired when they are no longer known."""
        oldest = max(self._oldest_of_all, self._oldest.get(resource, 0))
        if version < oldest:
            raise Expired(f"too old resource version: {version} ({oldest})")
        history = self._history.get(resource, [])
        return history[bisect_right(history, version, key=lambda change: change.version) :]

    def compact(self) -> None:
        """Forget the history: every watch that is not restarted gets 410."""
        self.version += 1
        self._oldest_of_all = self.version
        self._history.clear()
        self.wake()

    def backup(self) -> Backup:
        """What is stored now."""
        return Backup({kind: dict(objects) for kind, objects in self._objects.items()}, self.version)

    def restore(self, backup: Backup, bump: int) -> None:
        """Hold what was stored then, under its versions; the next ones are higher by `bump`. Who watches from a later
        version hears nothing until that comes."""
        self._objects = {kind: dict(objects) for kind, objects in backup.objects.items()}
        self.version = self._oldest_of_all = backup.version + bump
        self._oldest.clear()
        self._history.clear()

    def wake(self) -> None:
        """Let everybody look again."""
        for resource in self.watching:
            self._wake(resource)

    def _wake(self, resource: Resource) -> None:
        for event in (*self.waiting, *self.watching[resource]):
            event.set()

    def check_uid(self, obj: JSON, uid: str | None) -> None:
        """Raises Conflict when the object is another one than the caller thinks."""
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


def _owned_by(obj: JSON, uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in obj["metadata"].get("ownerReferences") or ())

"""The objects of one kind as a Reflector knows them: small projections by name. The newest version of an object wins."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

from gpusharing.kube.client import JSON
from gpusharing.kube.raw import newer, text
from gpusharing.kube.unreadable import Unreadable

View = TypeVar("View")

OLDEST = "1"
"""The version with which etcd begins, so every other version counts as newer. The server rejects a write that is conditional on it."""


class Views(Generic[View]):
    """The views of one kind, each with the version of the object that it was made from."""

    def __init__(
        self,
        project: Callable[[JSON], View],
        on_change: Callable[[str], None],
        *,
        long_names: bool,
        remembered: int,
    ) -> None:
        """`project` may raise Unreadable. With `long_names`, objects are called `namespace/name`. `remembered`: see Reflector."""
        self._project, self._on_change = project, on_change
        self._long_names, self._remembered = long_names, remembered
        self._views: dict[str, View] = {}
        self.items: Mapping[str, View] = MappingProxyType(self._views)
        self.unreadable: dict[str, str] = {}
        """Why objects cannot be converted, by name. An object's view, if it has one, is of an earlier version."""
        self._known: dict[str, tuple[str, str]] = {}
        """UID and version of each object, by name."""
        self._gone: OrderedDict[str, str] = OrderedDict()
        """The remembered deletions, oldest first: the version at which the object was gone, by its UID."""
        self.newest = ""
        """The highest version that the server has shown."""
        self.listing = False
        """Whether a list is being read. All deletions are remembered meanwhile, because a later page may still contain the object."""

    def name(self, obj: JSON) -> str:
        metadata = obj["metadata"]
        name: str = metadata["name"]
        return f"{text(metadata, 'namespace')}/{name}" if self._long_names else name

    def version(self, name: str) -> str:
        """Return the version of an object as it was last seen; empty if none is stored, and OLDEST after `go_back`."""
        return self._known.get(name, ("", ""))[1]

    def reached(self, version: str) -> None:
        if not self.newest or newer(version, self.newest):
            self.newest = version

    def apply(self, obj: JSON, moment: str = "") -> None:
        """Store the view of a raw object, unless the cache knows this version or a newer one, or its deletion.

        `moment` is the version of the list that contains the object, if any. Such an object replaces a cached one that is older than the list, even if its own version is lower: a store that was restored under a higher version (etcdutl --bump-revision) holds objects older than the cached ones.
        """
        metadata = obj["metadata"]
        uid, version = metadata["uid"], metadata["resourceVersion"]
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
        """Drop all objects but `names`, those in a complete list of this version, and those that are newer than the list."""
        for name in [name for name in self._known if name not in names]:
            if not newer(self.version(name), version):
                self._forget(name, version)

    def go_back(self, version: str) -> None:
        """Let every object that comes from now on count as newer, because the store was restored from a backup and is at `version`."""
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

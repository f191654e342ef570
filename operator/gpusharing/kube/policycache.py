"""The policies as last listed, without a Reflector: a list decides what they are, and an event only asks for one."""

from collections.abc import Callable, Mapping
from typing import Any

from gpusharing.kube.client import JSON, POLICIES, KubeClient
from gpusharing.kube.convert import policy_view, unknown_policy
from gpusharing.kube.errors import Unavailable
from gpusharing.kube.lists import or_unknown, pages_of
from gpusharing.kube.raw import newer, part, section, strings, text
from gpusharing.planning.snapshot.views import PolicyView

_view = or_unknown(POLICIES, policy_view, unknown_policy)


class PolicyCache:
    """The policies as last listed. An event only says that something may have changed; the list decides.

    There are few, so they are always listed as a whole. A view, and the tuple of all views, stays the same object while
    nothing has changed.

    Like a Reflector, the cache never goes back unless the store was restored from a backup: a list that is older than
    what the server has already shown is rejected. A deleted policy in such a list would own nodes again, and would stay
    for good, because no watch continues from that list.
    """

    def __init__(self, client: KubeClient, restores: Callable[[], int] = int, paused: str = "false") -> None:
        """`paused` applies to every view (PlanSettings); `restores` is that of `Reflector`."""
        self._client, self._paused = client, paused
        self._restores, self._restores_seen, self._doubted = restores, restores(), False
        """`restores` as of the last list that was accepted, and whether one has been refused since."""
        self._raw: dict[str, JSON] = {}
        self.views: tuple[PolicyView, ...] = ()
        """The policies as last listed, sorted by name."""
        self._dirty = True
        self._listing = False
        self._newest = ""
        """The highest resourceVersion of policies that the server has shown in a list, an event or an answer."""
        self.listed = False

    @property
    def stale(self) -> bool:
        """Whether the next pass must list (`dirty`), or a list is under way."""
        return self.dirty or self._listing

    @property
    def dirty(self) -> bool:
        return self._dirty or self._restores() > self._restores_seen

    def touch(self, name: str = "", resource_version: str = "") -> bool:
        """Record that the policies must be listed again, and return True.

        False means that the cache has this version, as after our own write. Without `name` and `resource_version`,
        which come from an event, any policy may have changed.
        """
        if name and resource_version and _version(self._raw.get(name, {})) == resource_version:
            return False
        self._reached(resource_version)
        self._dirty = True
        return True

    async def refresh(self) -> tuple[PolicyView, ...]:
        """Return the views of all policies by name; they are listed again only if the cache is `dirty`.

        Raises a KubeError if they cannot be listed, and Unavailable if the server answers with an older state than it
        has shown already. The policies known before stay, and the next call lists again.
        """
        if self.dirty:
            self._dirty, self._listing = False, True
            try:
                self._raw = await self._list()
            except BaseException:
                self._dirty = True
                raise
            finally:
                self._listing = False
            self.listed = True
            self._rebuild()
        return self.views

    async def _list(self) -> dict[str, JSON]:
        listed: dict[str, JSON] = {}
        at_least, version = self._newest, ""
        async for page in pages_of(self._client, POLICIES):
            listed |= {raw["metadata"]["name"]: raw for raw in page.items}
            version = page.resource_version
        if newer(at_least, version):
            # A second one, after a write has proven that the store was restored from a backup, is accepted.
            if not (self._doubted and self._restores() > self._restores_seen):
                self._doubted = True
                raise Unavailable(
                    f"the API server returned an older state (resourceVersion {version}) than before ({at_least})"
                )
            self._newest = ""
        self._doubted, self._restores_seen = False, self._restores()
        self._reached(version)
        return listed

    def accept(self, raw: JSON) -> None:
        """Store the policy that the server returned for our write, unless it is unknown or out of date.

        Statuses are written alongside the passes: an edit can be listed before the answer to an older write arrives.
        """
        name = text(raw, "metadata", "name")
        self._reached(_version(raw))
        if name in self._raw and not newer(_version(self._raw[name]), _version(raw)):
            self._raw[name] = raw
            self._rebuild()

    def _reached(self, version: str) -> None:
        if not self._newest or newer(version, self._newest):
            self._newest = version

    def _rebuild(self) -> None:
        before = {view.name: view for view in self.views}
        views = []
        for name in sorted(self._raw):
            view = _view(self._raw[name]).paused_by(self._paused)
            views.append(before[name] if before.get(name) == view else view)
        if tuple(views) != self.views:
            self.views = tuple(views)

    def finalizers(self, policy: str) -> tuple[str, tuple[str, ...]]:
        raw = self._raw.get(policy, {})
        return _version(raw), strings(part(raw, "metadata", "finalizers"))

    def status(self, policy: str) -> Mapping[str, Any]:
        return section(self._raw.get(policy, {}), "status")


def _version(raw: JSON) -> str:
    return text(raw, "metadata", "resourceVersion")

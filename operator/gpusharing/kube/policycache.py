"""The policies as last listed: a Reflector's store of views without its watch, which is kopf's (docs/adr/0001)."""

from collections.abc import Callable, Mapping
from typing import Any

from gpusharing.kube.client import JSON, POLICIES, KubeClient
from gpusharing.kube.convert import policy_view, unknown_policy
from gpusharing.kube.errors import Unavailable
from gpusharing.kube.lists import check_identity, or_unknown, pages_of
from gpusharing.kube.raw import newer, part, section, strings, text
from gpusharing.kube.reflector import Views
from gpusharing.planning.snapshot.views import PolicyView

_view = or_unknown(POLICIES, policy_view, unknown_policy)


class PolicyCache(Views[PolicyView]):
    """The policies as last listed, always as a whole. An event only says that something may have changed.

    Views stay the same objects while nothing has changed. A list older than what the server has shown is rejected,
    unless the store was restored: a deleted policy in it would own nodes again, and no watch would take it away.
    """

    def __init__(
        self,
        client: KubeClient,
        restores: Callable[[], int] = int,
        paused: str = "false",
        stop: Callable[[], str] = str,
    ) -> None:
        """`paused` (PlanSettings) and `stop` (LeaderLease) apply to every view; `restores` is that of `Reflector`."""
        super().__init__(self._convert, self._changed, long_names=False, remembered=100)
        self._client, self._pause, self._stop = client, paused, stop
        self._restores, self._restores_seen, self._doubted = restores, restores(), False
        """`restores` as of the last list that was accepted, and whether one has been refused since."""
        self._written: dict[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {}
        """The finalizers and the status of each policy, by name: parts that the next write needs, and no plan."""
        self._paused: dict[str, PolicyView] = {}
        """The views, paused by whatever pauses all policies, and what stopped the operator when they were made."""
        self._stopped = ""
        self._sorted: tuple[PolicyView, ...] = ()
        self._dirty, self.listed = True, False

    @property
    def views(self) -> tuple[PolicyView, ...]:
        """The policies as last listed, sorted by name, and paused by whatever pauses all of them."""
        if (stop := self._stop()) != self._stopped:
            self._stopped = stop
            self._paused = {name: self._paused_view(name) for name in self._paused}
            self._sorted = ()
        if not self._sorted:
            self._sorted = tuple(view for _, view in sorted(self._paused.items()))
        return self._sorted

    @property
    def stale(self) -> bool:
        """Whether the next pass must list (`dirty`), or a list is under way."""
        return self.dirty or self.listing

    @property
    def dirty(self) -> bool:
        return self._dirty or self._restores() > self._restores_seen

    def touch(self, name: str = "", resource_version: str = "") -> bool:
        """Record that the policies, or this one, must be listed again; False if the cache has this version already."""
        if name and resource_version and self.version(name) == resource_version:
            return False
        self.reached(resource_version)
        self._dirty = True
        return True

    async def refresh(self) -> tuple[PolicyView, ...]:
        """Return all policies by name, listed again if `dirty`. After a KubeError those known before stay."""
        if self.dirty:
            self._dirty, self.listing = False, True
            try:
                await self._list()
            except BaseException:
                self._dirty = True
                raise
            finally:
                self.listing = False
            self.listed = True
        return self.views

    async def _list(self) -> None:
        at_least = self.newest
        pages = [page async for page in pages_of(self._client, POLICIES)]
        version = pages[-1].resource_version
        listed = {raw["metadata"]["name"]: raw for page in pages for raw in page.items}
        for raw in listed.values():
            check_identity(POLICIES, raw, "resourceVersion")
        if newer(at_least, version):
            # A second one, after a write has proven that the store was restored from a backup, is accepted.
            if not (self._doubted and self._restores() > self._restores_seen):
                self._doubted = True
                raise Unavailable(
                    f"the API server returned an older state (resourceVersion {version}) than before ({at_least})"
                )
            self.go_back(version)
        self._doubted, self._restores_seen = False, self._restores()
        self.reached(version)
        for raw in listed.values():
            self.apply(raw, version)
        self.keep_only(listed, version)

    def accept(self, raw: JSON) -> None:
        """Store the answer to our write, unless the policy is unknown or was listed in a newer version."""
        if text(raw, "metadata", "name") in self._written and text(raw, "metadata", "resourceVersion"):
            self.apply(raw)

    def _convert(self, raw: JSON) -> PolicyView:
        written = strings(part(raw, "metadata", "finalizers")), section(raw, "status")
        self._written[raw["metadata"]["name"]] = written
        return _view(raw)

    def _changed(self, name: str) -> None:
        if name in self.items:
            self._paused[name] = self._paused_view(name)
        else:
            del self._written[name], self._paused[name]
        self._sorted = ()

    def _paused_view(self, name: str) -> PolicyView:
        return self.items[name].paused_by(self._pause, self._stopped)

    def finalizers(self, policy: str) -> tuple[str, tuple[str, ...]]:
        return self.version(policy), self._written[policy][0] if policy in self._written else ()

    def status(self, policy: str) -> Mapping[str, Any]:
        return self._written[policy][1] if policy in self._written else {}

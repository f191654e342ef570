"""Policies and GPUNodes, and Events about policies if they are wanted, kept up to date by list and watch."""

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from operator import attrgetter

from gpusharing.cli.shell.manifests import KIND
from gpusharing.cli.shell.session import Session
from gpusharing.kube.client import EVENTS, GPUNODES, JSON, POLICIES, Filters, Resource
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import KubeError, first_of
from gpusharing.kube.paging import PAGE
from gpusharing.kube.reflector import CacheSettings, Reflector

ABOUT_POLICIES: Filters = {"namespace": "default", "field_selector": f"regarding.kind={KIND}"}
"""Where Events about policies are."""
KINDS: tuple[tuple[Resource, Filters], ...] = ((POLICIES, {}), (GPUNODES, {}), (EVENTS, ABOUT_POLICIES))


@dataclass(slots=True)
class Followed:
    """The objects that are followed, and whether the cluster can be followed now."""

    reflectors: Sequence[Reflector[JSON]]
    """The cache of each kind."""
    first: Sequence[Sequence[JSON]]
    """The objects of each kind that were read before."""
    begin: float = field(default_factory=loop_time)
    """When `first` was complete, by the clock of the event loop."""

    def known(self) -> Sequence[Sequence[JSON]]:
        """Return the newest objects of each kind, sorted by name; `first` until all kinds have been listed again."""
        if not all(one.synced.is_set() for one in self.reflectors):
            return self.first
        return [[raw for _, raw in sorted(one.items.items())] for one in self.reflectors]

    @property
    def error(self) -> KubeError | None:
        """Why the cluster cannot be followed now, or None if it can."""
        return next(filter(None, map(attrgetter("error"), self.reflectors)), None)

    @property
    def silence(self) -> timedelta:
        """The longest time since the server answered about one of the kinds that cannot be followed now; 0 if all
        can."""
        contacts = (max(one.last_contact, self.begin) for one in self.reflectors if one.error is not None)
        return timedelta(seconds=max((loop_time() - contact for contact in contacts), default=0.0))


@asynccontextmanager
async def followed(session: Session, first: Sequence[Sequence[JSON]]) -> AsyncIterator[Followed]:
    """Yield the kinds that `first` has, and keep them up to date while the context is open. `first` has the policies,
    the GPUNodes and, if they are wanted, the Events. Turns garbage collection on. KubeErrors are retried, and any
    other error ends the context."""
    gc.enable()  # the context may be open for days
    settings = CacheSettings(page_size=PAGE)
    reflectors = [
        Reflector(session.client, kind, lambda raw: raw, settings=settings, **where)
        for (kind, where), _ in zip(KINDS, first, strict=False)
    ]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one.run()) for one in reflectors]
            try:
                yield Followed(reflectors, first)
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as errors:
        raise first_of(errors) from None

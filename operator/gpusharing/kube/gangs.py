"""Where the other pods of a gang are: one LIST in its namespace, by its label, when one of its nodes is looked at.

A gang whose key is no label is listed by the scheduler that its pods name, and picked out here. Nothing is watched,
and no call is made if no pod belongs to a gang.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from gpusharing.kube.client import JSON, PODS, KubeClient
from gpusharing.kube.convert_pods import pod_view
from gpusharing.kube.errors import HeldBack, KubeError, ServerAway, Unauthorized
from gpusharing.kube.gangkeys import gang_of
from gpusharing.kube.raw import text
from gpusharing.planning.drain.holders import holds_gpu
from gpusharing.planning.snapshot.podviews import Gang, GangMember, GangView, PodView

MAX_GANGS = 16
"""The most gangs of one node that are looked up; a node with more has no room for a large one."""
MAX_PODS = 5000
"""The most pods read from the LIST of one gang."""
KEPT = timedelta(seconds=3)
"""A LIST serves all nodes that are looked at meanwhile."""
KEPT_IN_DRAIN = timedelta(seconds=30)
"""And all nodes that are being drained for so long: they only wait for members that may end by themselves."""
FORGOTTEN = timedelta(minutes=2)
"""The time from the last request for a gang."""
_FINISHED = ("Succeeded", "Failed")


@dataclass(slots=True)
class _Known:
    view: GangView
    listed: datetime
    used: datetime


@dataclass(slots=True)
class Gangs:
    """Lists gangs on request, each at most once at a time."""

    client: KubeClient
    _known: dict[Gang, _Known] = field(default_factory=dict)
    _locks: defaultdict[Gang, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def find(self, pods: Iterable[PodView], now: datetime, *, anew: bool) -> tuple[GangView, ...]:
        """The gangs of those pods that hold a GPU. `anew`: list them now; else the last list serves for longer and
        remains where a new one fails.

        Raises:
            ServerAway, Unauthorized, HeldBack: nothing can be said.
        """
        wanted = {p.gang for p in pods if p.gang is not None and p.phase not in _FINISHED and holds_gpu(p)}
        views = []
        for gang in sorted(wanted, key=lambda one: (one.ref, one.labels))[:MAX_GANGS]:
            async with self._locks[gang]:
                known = self._known.get(gang)
                kept = KEPT if anew or known is None or known.view.error else KEPT_IN_DRAIN
                if known is None or now - known.listed >= kept:
                    view = await self._list(gang)
                    if known is not None and view.error and not anew:
                        view = known.view
                    known = self._known[gang] = _Known(view, now, now)
                known.used = now
                views.append(known.view)
        self._forget(now)
        return tuple(views)

    async def _list(self, gang: Gang) -> GangView:
        members: list[GangMember] = []
        read = 0
        try:
            async for page in self.client.pages(
                PODS, namespace=gang.namespace, label_selector=gang.labels, field_selector=gang.fields
            ):
                for raw in page.items:
                    if gang_of(raw) == gang and text(raw, "status", "phase") not in _FINISHED:
                        members.append(_member(raw))
                read += len(page.items)
                if read >= MAX_PODS:
                    break
        except (Unauthorized, ServerAway, HeldBack):
            raise
        except KubeError as error:
            return GangView(gang, error=str(error))
        ordered = sorted(members, key=lambda member: (member.node, member.pod.ref))
        return GangView(gang, tuple(ordered), partial=read >= MAX_PODS)

    def _forget(self, now: datetime) -> None:
        for gang in [gang for gang, known in self._known.items() if now - known.used > FORGOTTEN]:
            del self._known[gang]
            self._locks.pop(gang, None)


def _member(raw: JSON) -> GangMember:
    """The use of a ResourceClaim says who manages a GPU there, and nothing about the gang: none is read."""
    return GangMember(text(raw, "spec", "nodeName"), replace(pod_view(raw, {}), dra="none"))

"""Where the other pods of a gang are: one LIST in its namespace, by its label, when one of its nodes is looked at.

Where no label tells one gang from another, one LIST serves all such gangs of the namespace, which are picked out here:
by the label that all of them have, or else by the scheduler that their pods name. So it is where the pods of a node
belong to many gangs. Nothing is watched, and no call is made if no pod belongs to a gang.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from gpusharing.kube.client import JSON, PODS, KubeClient
from gpusharing.kube.convert_pods import pod_view
from gpusharing.kube.errors import HeldBack, KubeError, ServerAway, Unauthorized
from gpusharing.kube.gangkeys import gang_of
from gpusharing.kube.paging import pages_of
from gpusharing.kube.raw import text
from gpusharing.planning.drain.holders import Scope, must_leave
from gpusharing.planning.snapshot.podviews import Gang, GangMember, GangView, PodView

MAX_LISTS = 16
"""The most gangs of one node that are listed each by its own label. With more, a LIST serves all of a namespace that
have the same keys: the slices of a node may belong to as many jobs."""
MAX_PODS = 5000
"""The most pods read from the LIST of one gang."""
MAX_SHARED = 20_000
"""The most pods read from a LIST that serves several gangs: where there are more, nothing is known about these."""
KEPT = timedelta(seconds=3)
"""A LIST serves all nodes that are looked at meanwhile."""
KEPT_IN_DRAIN = timedelta(seconds=30)
"""And all nodes that are being drained for so long: they only wait for members that may end by themselves."""
FORGOTTEN = timedelta(minutes=2)
"""The time from the last request for a gang."""
_FINISHED = ("Succeeded", "Failed")
_RUNNING = ",".join(f"status.phase!={phase}" for phase in _FINISHED)


@dataclass(frozen=True, slots=True, order=True)
class _Query:
    """One LIST."""

    namespace: str
    labels: str
    fields: str

    @property
    def shared(self) -> bool:
        """Whether it lists pods of other gangs too."""
        return "=" not in self.labels


@dataclass(slots=True)
class _Known:
    """What a LIST found."""

    members: Mapping[Gang, list[GangMember]]
    partial: bool
    error: str
    listed: datetime
    used: datetime

    def serves(self, gangs: Iterable[Gang]) -> bool:
        """Whether it can be as new as these gangs: a LIST for others may be older than all of their pods."""
        return bool(self.error) or all(gang in self.members for gang in gangs)

    def view(self, gang: Gang, labels: Mapping[str, str] | None) -> GangView:
        """One of its gangs. `labels`: those of its namespace."""
        if self.error:
            return GangView(gang, error=self.error)
        members = self.members.get(gang, ())
        if labels is not None:
            members = [replace(one, pod=replace(one.pod, namespace_labels=labels)) for one in members]
        ordered = sorted(members, key=lambda member: (member.node, member.pod.ref))
        return GangView(gang, tuple(ordered), partial=self.partial)


@dataclass(slots=True)
class Gangs:
    """Lists gangs on request, each at most once at a time."""

    client: KubeClient
    most: int = MAX_SHARED
    """Pods read from a LIST that serves several gangs."""
    _known: dict[_Query, _Known] = field(default_factory=dict)
    _locks: defaultdict[_Query, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def find(
        self, pods: Sequence[PodView], scope: Scope, now: datetime, *, anew: bool
    ) -> tuple[GangView, ...]:
        """The gangs of those pods that must leave, their members with the labels of their namespace as these pods have
        them. `anew`: list them now; else the last list serves for longer and remains where a new one fails.

        Raises:
            ServerAway, Unauthorized, HeldBack: nothing can be said.
        """
        wanted = {pod.gang for pod in pods if pod.gang is not None and must_leave(pod, scope)}
        labels = {pod.namespace: pod.namespace_labels for pod in pods}
        views = []
        for query, gangs in sorted(_queries(wanted).items()):
            async with self._locks[query]:
                known = self._known[query] = await self._current(query, gangs, now, anew=anew)
                known.used = now
                views += [known.view(gang, labels[gang.namespace]) for gang in gangs]
        for query in [query for query, known in self._known.items() if now - known.used > FORGOTTEN]:
            del self._known[query]
            self._locks.pop(query, None)
        return tuple(sorted(views, key=lambda view: (view.gang.ref, view.gang.labels)))

    async def _current(self, query: _Query, gangs: Sequence[Gang], now: datetime, *, anew: bool) -> _Known:
        """The last LIST, if it is new enough for these gangs, else a new one. See `find`."""
        known = self._known.get(query)
        kept = KEPT if anew or known is None or known.error else KEPT_IN_DRAIN
        if known is not None and now - known.listed < kept and known.serves(gangs):
            return known
        found = await self._list(query, now)
        if known is not None and found.error and not anew and known.serves(gangs):
            return replace(known, listed=now)
        return found

    async def _list(self, query: _Query, now: datetime) -> _Known:
        members: defaultdict[Gang, list[GangMember]] = defaultdict(list)
        read, most = 0, self.most if query.shared else MAX_PODS
        fields = ",".join(filter(None, (query.fields, _RUNNING)))
        try:
            async for page in pages_of(
                self.client,
                PODS,
                namespace=query.namespace,
                label_selector=query.labels,
                field_selector=fields,
            ):
                for raw in page.items:
                    gang = gang_of(raw)
                    if gang is not None:
                        members[gang].append(_member(raw))
                read += len(page.items)
                if read >= most:
                    break
        except (Unauthorized, ServerAway, HeldBack):
            raise
        except KubeError as error:
            return _Known({}, False, str(error), now, now)
        cut_off = _too_many(query, most) if read >= most and query.shared else ""
        return _Known(members, read >= most, cut_off, now, now)


def _queries(gangs: Iterable[Gang]) -> dict[_Query, list[Gang]]:
    """The LISTs that find these gangs, each with those that it serves."""
    found: dict[_Query, list[Gang]] = {}
    for gang in gangs:
        found.setdefault(_Query(gang.namespace, gang.labels, gang.fields), []).append(gang)
    if len(found) <= MAX_LISTS:
        return found
    wider: dict[_Query, list[Gang]] = {}
    for query, served in found.items():
        keys = ",".join(requirement.partition("=")[0] for requirement in query.labels.split(","))
        wider.setdefault(replace(query, labels=keys), []).extend(served)
    return wider


def _too_many(query: _Query, most: int) -> str:
    return (
        f"{most:,} pods of the namespace {query.namespace} or more would have to be looked through, because no"
        " label selects the gang; remove pods that are no longer needed"
    )


def _member(raw: JSON) -> GangMember:
    """The use of a ResourceClaim says who manages a GPU there, and nothing about the gang: none is read."""
    return GangMember(text(raw, "spec", "nodeName"), replace(pod_view(raw, {}), dra="none"))

"""List the pods of gangs on all nodes: one LIST for many nodes, reused for a few seconds."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from gpusharing.kube.client import JSON, PODS, KubeClient
from gpusharing.kube.errors import CallFailed, HeldBack
from gpusharing.kube.gangkeys import gang_of
from gpusharing.kube.lists import pages_of
from gpusharing.kube.pods import pod_view
from gpusharing.kube.raw import text
from gpusharing.planning.drain.pods import find_leaving
from gpusharing.planning.snapshot.podviews import Gang, GangMember, GangView, PodView, Scope

MAX_LISTS = 16
"""The most gangs of one node that get a LIST of their own; each slice may belong to another job."""
MAX_PODS = 5000
"""The most pods read from the LIST of one gang."""
MAX_SHARED = 20_000
"""The most pods read from a LIST that serves several gangs. If there are more, these gangs count as unknown."""
LIST_VALID = timedelta(seconds=3)
"""How long the result of a LIST is reused for all nodes whose pods are read in the meantime."""
LIST_VALID_IN_DRAIN = timedelta(seconds=30)
"""How long that result is reused for nodes in a drain. They only wait for members that may end by themselves."""
FORGET_AFTER = timedelta(minutes=2)
"""The result of a LIST is forgotten this long after its gangs were last requested."""


_Query = tuple[str, str, str]
"""One LIST of pods, by its namespace, label selector and field selector."""


@dataclass(slots=True)
class _Known:
    """The result of the last LIST of a query."""

    members: Mapping[Gang, list[GangMember]]
    partial: bool
    """Whether the LIST was cut off before all pods were read."""
    error: str
    """Why nothing is known about the gangs; empty if the LIST succeeded."""
    listed: datetime
    used: datetime
    """When one of its gangs was last requested."""

    def serves(self, gangs: Iterable[Gang]) -> bool:
        """Whether this result answers a request for these gangs. A gang that it lacks may be younger than this LIST."""
        return bool(self.error) or all(gang in self.members for gang in gangs)

    def view(self, gang: Gang, labels: Mapping[str, str] | None) -> GangView:
        if self.error:
            return GangView(gang, error=self.error)
        members = self.members.get(gang, ())
        if labels is not None:
            members = [replace(member, pod=replace(member.pod, namespace_labels=labels)) for member in members]
        ordered = sorted(members, key=lambda member: (member.node, member.pod.ref))
        return GangView(gang, tuple(ordered), partial=self.partial)


@dataclass(slots=True)
class Gangs:
    """Lists gangs on request. Concurrent calls for the same LIST run one after the other.

    Where no label tells one gang from another, one LIST serves all such gangs of the namespace: it selects by the label
    that all of them have, or else by the scheduler that they name.
    """

    client: KubeClient
    most: int = MAX_SHARED
    """The most pods read from a LIST that serves several gangs."""
    _known: dict[_Query, _Known] = field(default_factory=dict)
    _locks: defaultdict[_Query, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def find(self, pods: Sequence[PodView], scope: Scope, now: datetime, *, anew: bool) -> tuple[GangView, ...]:
        """Return the gangs of `pods` that must leave their node, with their unfinished pods on all nodes.

        A LIST is reused for LIST_VALID, or without `anew` for LIST_VALID_IN_DRAIN. One that fails gives gangs with its
        error, apart from ServerAway, Unauthorized and HeldBack, which are raised.
        """
        wanted = {pod.gang for pod in find_leaving(pods, scope) if pod.gang is not None}
        labels = {pod.namespace: pod.namespace_labels for pod in pods}
        views = []
        for query, gangs in sorted(_queries(wanted).items()):
            async with self._locks[query]:
                known = self._known[query] = await self._current(query, gangs, now, anew=anew)
                known.used = now
                views += [known.view(gang, labels[gang.namespace]) for gang in gangs]
        for query in [query for query, known in self._known.items() if now - known.used > FORGET_AFTER]:
            del self._known[query]
            self._locks.pop(query, None)
        return tuple(sorted(views, key=lambda view: (view.gang.ref, view.gang.labels)))

    async def _current(self, query: _Query, gangs: Sequence[Gang], now: datetime, *, anew: bool) -> _Known:
        known = self._known.get(query)
        valid = LIST_VALID if anew or known is None or known.error else LIST_VALID_IN_DRAIN
        if known is not None and now - known.listed < valid and known.serves(gangs):
            return known
        fresh = await self._list(query, now)
        if known is not None and fresh.error and not anew and known.serves(gangs):
            return replace(known, listed=now)
        return fresh

    async def _list(self, query: _Query, now: datetime) -> _Known:
        members: defaultdict[Gang, list[GangMember]] = defaultdict(list)
        namespace, labels, fields = query
        shared = "=" not in labels  # a selector without a value finds several gangs
        read, most = 0, self.most if shared else MAX_PODS
        running = "status.phase!=Succeeded,status.phase!=Failed"
        try:
            async for page in pages_of(
                self.client,
                PODS,
                keep=_gang_and_member,
                namespace=namespace,
                label_selector=labels,
                field_selector=",".join(filter(None, (fields, running))),
            ):
                for gang, member in filter(None, page.items):
                    members[gang].append(member)
                read += len(page.items)
                if read >= most:
                    break
        except HeldBack:
            raise
        except CallFailed as error:
            return _Known({}, False, str(error), now, now)
        too_many = (
            f"finding the gang would require reading {most:,} or more pods in namespace {namespace}, because its"
            " pods share no label to select them by; delete pods that are no longer needed"
        )
        cut_off = read >= most
        return _Known(members, cut_off, too_many if cut_off and shared else "", now, now)


def _queries(gangs: Iterable[Gang]) -> dict[_Query, list[Gang]]:
    """Return the LISTs that find these gangs; if there were more than MAX_LISTS, those with equal keys share one."""
    queries: dict[_Query, list[Gang]] = {}
    for gang in gangs:
        queries.setdefault((gang.namespace, gang.labels, gang.fields), []).append(gang)
    if len(queries) <= MAX_LISTS:
        return queries
    wider: dict[_Query, list[Gang]] = {}
    for (namespace, labels, fields), served in queries.items():
        keys = ",".join(requirement.partition("=")[0] for requirement in labels.split(","))
        wider.setdefault((namespace, keys, fields), []).extend(served)
    return wider


def _gang_and_member(raw: JSON) -> tuple[Gang, GangMember] | None:
    gang = gang_of(raw)
    return None if gang is None else (gang, _member(raw))


def _member(raw: JSON) -> GangMember:
    # ResourceClaims are not read, because they matter only for the pod's own node.
    return GangMember(text(raw, "spec", "nodeName"), replace(pod_view(raw, {}), dra="none"))

"""List the pods of the nodes that a pass asks about, with their gangs, budgets and controllers, the most urgent node first.

Each node has one LIST, made as often as its drain needs it.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import DAEMON_SETS, JSON, NAMESPACES, PDBS, PODS, RESOURCE_CLAIMS, KubeClient, Resource
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import CallFailed, Forbidden, HeldBack, NotFound, ServerAway, Throttled, Unauthorized
from gpusharing.kube.fanout import Workers
from gpusharing.kube.gangs import Gangs
from gpusharing.kube.lists import converted, list_of
from gpusharing.kube.pods import ClaimedDevices, UnclaimedPod, claimed_devices, pdb_view, unclaimed_pod
from gpusharing.kube.raw import interned, part, text
from gpusharing.kube.sources import Sources
from gpusharing.kube.stackreader import StackReader
from gpusharing.planning.drain.pods import asks_for_namespaces, heard, holds_gpu, looked, scope_of
from gpusharing.planning.drain.stranded import with_guard
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.podviews import NodeWork, PdbView, PodView, Scope

BUDGETS_VALID = 15.0
"""Seconds for which a list is valid. The API server checks the present budget at each eviction anyway."""
LIST_VALID_THROTTLED = timedelta(minutes=2)
"""How long a list of budgets, or of a node's pods, is valid while the API server answers 429."""
PATIENCE = 30.0
"""Seconds to wait for a first answer. An error is also reported for this long while the next answer is awaited."""


@dataclass(slots=True)
class Budgets:
    """Lists all PodDisruptionBudgets on request, one LIST at a time. All moments are by the loop's clock."""

    client: KubeClient
    workers: Workers
    _pdbs: tuple[PdbView, ...] = ()
    _listed: float = float("-inf")
    _valid: float = BUDGETS_VALID
    """Seconds for which the last list is valid."""
    _error: str = ""
    """Why the last LIST failed; empty if it succeeded."""
    _failed: float = float("-inf")
    """When the last failure, that of `_error`, arrived."""
    _waits_since: float | None = None
    """Since when we have been waiting for an answer; None while no LIST is awaited."""

    async def find(self) -> tuple[PdbView, ...] | str | None:
        """Return all PodDisruptionBudgets, or a message if they cannot be listed.

        None means that the server has not answered yet: nodes whose drain depends on budgets wait, and that is no
        error. Raises a group with Unauthorized or ServerAway.
        """
        now = loop_time()
        if self._waits_since is None:
            self._waits_since = now
        await self.workers.each(["/budgets"], self._read)  # a key that no node has
        if now - self._listed <= self._valid:
            return self._pdbs
        if self._error and now - self._failed <= PATIENCE:
            return f"the PodDisruptionBudgets cannot be listed: {self._error}"
        if self._waits_since is None or now - self._waits_since <= PATIENCE:
            return None
        return f"the PodDisruptionBudgets cannot be listed: no response within {PATIENCE:.0f} s"

    async def _read(self, _: str) -> None:
        try:
            pdbs = tuple(await list_of(self.client, PDBS, keep=pdb_view))
        except HeldBack:  # not sent: the wait goes on, and the server's last answer stays valid
            self._valid = LIST_VALID_THROTTLED.total_seconds()
            self._failed = loop_time() if self._error else self._failed
        except (Unauthorized, ServerAway):
            self._waits_since = None
            raise
        except CallFailed as error:
            self._valid = LIST_VALID_THROTTLED.total_seconds() if isinstance(error, Throttled) else BUDGETS_VALID
            self._error, self._failed, self._waits_since = str(error), loop_time(), None
        else:
            self._pdbs, self._listed = pdbs, loop_time()
            self._valid, self._error, self._waits_since = BUDGETS_VALID, "", None


OWNER_VALID = timedelta(seconds=30)
"""How long a DaemonSet is not read again after it was read. A namespace is read anew with each LIST, as its pods are."""


@dataclass(slots=True)
class PodLookups:
    """Reads the ResourceClaims, DaemonSets and namespaces of the pods of a node, one object at a time."""

    client: KubeClient
    owners: dict[tuple[str, str, str], tuple[datetime, bool | None]] = field(default_factory=dict)
    """DaemonSets by namespace, name and UID: when each was read, and whether it existed (None: unreadable)."""

    async def views(
        self, listed: Iterable[UnclaimedPod], scope: Scope, now: datetime, *, namespaces: bool
    ) -> tuple[PodView, ...]:
        """Complete the pods of one node. Raises KubeError if an object that one needs cannot be read."""
        pods = [pod.with_claims(await self._resource_claims(pod)) for pod in listed]
        concerned = {pod.uid for pod in pods if scope.all_pods or holds_gpu(pod)}
        # All pods of such a namespace get its labels, because a rank without a GPU is judged with its gang (T13).
        wanted = sorted({pod.namespace for pod in pods if namespaces and pod.uid in concerned})
        labels = {name: await self._labels(name) for name in wanted}
        if labels:
            pods = [replace(pod, namespace_labels=labels.get(pod.namespace)) for pod in pods]
        return tuple([await self._with_owner(pod, now) if pod.uid in concerned else pod for pod in pods])

    async def _resource_claims(self, pod: UnclaimedPod) -> dict[str, ClaimedDevices]:
        """Return the devices of each ResourceClaim of a pod; None counts as a GPU (docs/design/drain.md#g5)."""
        namespace = pod.view.namespace
        claims: dict[str, ClaimedDevices] = {}
        for name in (*pod.own, *pod.extended):
            if name is not None:
                claim = await self._get(RESOURCE_CLAIMS, name, namespace)
                read = converted(RESOURCE_CLAIMS, claim, claimed_devices) if claim else None
                claims[f"{namespace}/{name}"] = read
        return claims

    async def _with_owner(self, pod: PodView, now: datetime) -> PodView:
        """Return the pod with `owner.exists` set if a DaemonSet controls it (docs/design/drain.md#p3, P5)."""
        owner = pod.owner
        if owner is None or owner.kind != "DaemonSet" or not owner.api_version.startswith("apps/"):
            return pod
        key = pod.namespace, owner.name, owner.uid
        if key not in self.owners or now - self.owners[key][0] > OWNER_VALID:
            exists = await self._exists(*key)
            for old in [old for old, (read_at, _) in self.owners.items() if now - read_at > OWNER_VALID]:
                del self.owners[old]
            self.owners[key] = now, exists
        return replace(pod, owner=replace(owner, exists=self.owners[key][1]))

    async def _labels(self, namespace: str) -> Mapping[str, str] | None:
        raw = await self._get(NAMESPACES, namespace, None)
        return None if raw is None else interned(part(raw, "metadata", "labels"))

    async def _exists(self, namespace: str, name: str, uid: str) -> bool | None:
        try:
            daemon_set = await self.client.get(DAEMON_SETS, name, namespace=namespace)
        except NotFound:
            return False
        except Forbidden:
            return None
        found = text(daemon_set, "metadata", "uid")
        return found == uid if found else None

    async def _get(self, resource: Resource, name: str, namespace: str | None) -> JSON | None:
        try:
            return await self.client.get(resource, name, namespace=namespace)
        except (NotFound, Forbidden):
            return None


@dataclass(slots=True)
class NodePods:
    """Lists the pods of nodes. While a LIST is under way, the result of the last one stays in `work`."""

    client: KubeClient
    sources: Sources
    calls: CallMemory
    workers: Workers
    budgets: Budgets
    stack: StackReader
    work: dict[str, NodeWork] = field(default_factory=dict)
    """The last LIST of each node, with what was learned since, by node name."""
    gangs: Gangs = field(init=False)
    _lookups: PodLookups = field(init=False)
    _lists: dict[str, NodeWork] = field(default_factory=dict)
    """The LISTs that have ended since they were last stored in `work`, by node."""

    def __post_init__(self) -> None:
        self.gangs, self._lookups = Gangs(self.client), PodLookups(self.client)

    async def look(self, wanted: frozenset[str], proving: frozenset[str], now: datetime, began: float) -> None:
        """List the pods of each wanted node that is due, update `work`, and forget the other nodes.

        A LIST that ends late is used by the next call. If one was not sent, or was refused with 429, `work` keeps the
        last one with its age. `now` is the time at the moment `began`. Raises a group with Unauthorized or ServerAway.
        """
        self._hear(now, began)
        for name in self.work.keys() - wanted:
            del self.work[name]
        due = [name for name in wanted if name not in self._lists and self._is_due(name, now)]
        stack = self.stack.read(now) if due else None

        async def read(node: str) -> None:
            mark = self.calls.unsure & {node}
            self.calls.unsure -= mark  # now, because a mark that comes while the LIST is under way stays
            try:
                with suppress(Throttled):  # not sent, or refused: the last LIST stays valid, with its age
                    # This read may have waited for others, so its LIST is dated with the time at which it begins.
                    self._lists[node] = await self._read(node, stack, _later(now, began))
                    mark = set()
            finally:
                self.calls.unsure |= mark

        await self.workers.each(sorted(due, key=lambda name: self._urgency(name, proving)), read)
        if self._lists:
            came, self._lists = self._lists, {}
            await self._take({node: came[node] for node in sorted(came) if node in wanted})
        for node, work in self.work.items():
            memories = self.calls.evictions.get(node, {})
            if work.evictions != memories:
                self.work[node] = replace(work, evictions=dict(memories))
        # An agent may have answered while LISTs were under way; these do not count as made after its answer.
        self._hear(now, began)

    def _hear(self, now: datetime, began: float) -> None:
        answers = self.sources.gpunodes.items
        for name, work in self.work.items():
            self.work[name] = heard(work, answers.get(name), _later(now, began))

    def forget(self) -> None:
        """Forget the pods of all nodes, because an answer was lost. Only a new LIST shows whether a pod was evicted."""
        self.work.clear()
        self._lists.clear()

    async def _take(self, lists: Mapping[str, NodeWork]) -> None:
        """Store finished LISTs; those with guarded pods wait until the PodDisruptionBudgets have been listed."""
        guarded = {
            node
            for node, work in lists.items()
            if work.pods and (work.scope.all_pods or any(map(holds_gpu, work.pods)))
        }
        budgets = await self.budgets.find() if guarded else ()
        pdbs, trouble = ((), budgets) if isinstance(budgets, str) else (budgets or (), "")
        for node, work in lists.items():
            if budgets is None and node in guarded:
                self._lists.setdefault(node, work)
                continue
            error = work.error or (trouble if node in guarded else "")
            now = replace(work, pdbs=pdbs, error=error)
            self.work[node] = looked(self.work.get(node), now, self.sources.gpunodes.items.get(node))

    async def _read(self, node: str, stack: StackView | None, at: datetime) -> NodeWork:
        assert stack is not None, "read before nodes are listed"
        view = self.sources.nodes.items.get(node)
        if view is not None and view.fence is not None and view.fence.tainted:
            view = self.sources.seen_node(node)  # with its DeviceTaintRule
        scope = scope_of(view, self.sources.settings, stack, gpunode=self.sources.gpunodes.items.get(node))
        pods, error = await self._pods_of(node, scope, at)
        gangs = await self.gangs.find(pods, scope, at, anew=view is None or view.fence is None)
        return NodeWork(pods, (), at, error=error, gangs=gangs, scope=scope)

    def _is_due(self, name: str, now: datetime) -> bool:
        settings, work = self.sources.settings, self.work.get(name)
        age = timedelta(seconds=min(settings.poll, settings.idle))
        if work is None or name in self.calls.unsure or now - work.listed_at >= age:
            return True
        # The first of the two LISTs that prove a node idle is made as soon as the agent has answered.
        return work.quiet_since is not None and work.listed_at < work.quiet_since

    def _urgency(self, name: str, proving: frozenset[str]) -> tuple[bool, float, str]:
        """Return the sort key of a node: proving fenced ones first, by the age of the fence, then the oldest LIST."""
        node, work = self.sources.nodes.items.get(name), self.work.get(name)
        if name in proving and node is not None and node.fence is not None:
            return False, node.fence.since.timestamp(), name
        return True, work.listed_at.timestamp() if work is not None else 0.0, name

    async def _pods_of(self, node: str, scope: Scope, now: datetime) -> tuple[tuple[PodView, ...], str]:
        """Return the pods of the node, or why they cannot be listed; Throttled while the last LIST is valid."""
        try:
            listed = await list_of(self.client, PODS, keep=unclaimed_pod, field_selector=f"spec.nodeName={node}")
            guard = self.sources.settings.guard
            namespaces = any(
                policy.spec is not None and asks_for_namespaces(policy.spec.drain)
                for policy in self.sources.policies.views
            )
            pods = await self._lookups.views(listed, scope, now, namespaces=guard != "false" or namespaces)
            if guard == "false":
                return pods, ""
            return tuple(with_guard(pod, adds=guard == "mutating") for pod in pods), ""
        except HeldBack:
            raise
        except CallFailed as error:
            before = self.work.get(node)
            if isinstance(error, Throttled) and before and now - before.listed_at < LIST_VALID_THROTTLED:
                raise
            return (), f"the pods on the node cannot be listed: {error}"


def _later(now: datetime, began: float) -> datetime:
    return now + timedelta(seconds=loop_time() - began)

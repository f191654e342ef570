"""List the pods of the nodes that a pass asks about, the most urgent node first.

Each node has one LIST, made as often as its drain needs it.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import PODS, KubeClient
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import HeldBack, KubeError, ServerAway, Throttled, Unauthorized
from gpusharing.kube.fanout import Workers
from gpusharing.kube.lists import list_of
from gpusharing.kube.podlists import LIST_VALID_THROTTLED, Budgets, Gangs, PodLookups
from gpusharing.kube.sources import Sources
from gpusharing.kube.stackreader import StackReader
from gpusharing.planning.drain.pods import asks_for_namespaces, heard, holds_gpu, looked, scope_of
from gpusharing.planning.drain.stranded import with_guard
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.podviews import NodeWork, PodView, Scope


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
        """List the pods of each wanted node that is due, and update `work`.

        Nodes that are not wanted are forgotten. A LIST that ends late is used by the next call. If one was not sent, or
        was refused with 429, `work` keeps the last one with its age. `now` is the time of day at the moment `began` of
        the loop's clock. Raises an ExceptionGroup with Unauthorized or ServerAway.
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
        scope = scope_of(view, self.sources.settings.plan, stack, gpunode=self.sources.gpunodes.items.get(node))
        pods, error = await self._pods_of(node, scope, at)
        gangs = await self.gangs.find(pods, scope, at, anew=view is None or view.fence is None)
        return NodeWork(pods, (), at, error=error, gangs=gangs, scope=scope)

    def _is_due(self, name: str, now: datetime) -> bool:
        settings, work = self.sources.settings.plan, self.work.get(name)
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
            raws = await list_of(self.client, PODS, field_selector=f"spec.nodeName={node}")
            guard = self.sources.settings.plan.guard
            namespaces = any(
                policy.spec is not None and asks_for_namespaces(policy.spec.drain)
                for policy in self.sources.policies.views
            )
            pods = await self._lookups.views(raws, scope, now, namespaces=guard != "false" or namespaces)
            if guard == "false":
                return pods, ""
            return tuple(with_guard(pod, adds=guard == "mutating") for pod in pods), ""
        except (Unauthorized, ServerAway, HeldBack):
            raise
        except KubeError as error:
            before = self.work.get(node)
            if isinstance(error, Throttled) and before and now - before.listed_at < LIST_VALID_THROTTLED:
                raise
            return (), f"the pods on the node cannot be listed: {error}"


def _later(now: datetime, began: float) -> datetime:
    return now + timedelta(seconds=loop_time() - began)

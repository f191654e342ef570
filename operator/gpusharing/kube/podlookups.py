"""What else decides about a pod: its ResourceClaims, whether its DaemonSet exists, the labels of its namespace."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from gpusharing.kube.client import DAEMON_SETS, JSON, NAMESPACES, RESOURCE_CLAIMS, KubeClient, Resource
from gpusharing.kube.convert_pods import ResourceClaimUse, pod_view, resource_claim_names, resource_claim_use
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.raw import interned, part
from gpusharing.planning.drain.holders import Scope, holds_gpu
from gpusharing.planning.snapshot.podviews import PodView

Key = TypeVar("Key")
Answer = TypeVar("Answer")

KEPT = timedelta(seconds=30)
"""For which a DaemonSet or a namespace is not read again."""


@dataclass(slots=True)
class PodLookups:
    """Reads single objects for the pods of nodes in work, and only for those that matter to a drain."""

    client: KubeClient
    owners: dict[tuple[str, str], tuple[datetime, bool | None]] = field(default_factory=dict)
    """By namespace and name of a DaemonSet: when it was read, and whether it existed."""
    namespaces: dict[str, tuple[datetime, Mapping[str, str] | None]] = field(default_factory=dict)
    """By name: when it was read, and its labels."""

    async def views(
        self, raws: Iterable[JSON], scope: Scope, now: datetime, *, namespaces: bool
    ) -> tuple[PodView, ...]:
        """The pods of one node with what other objects say about them. `namespaces`: labels of namespaces matter.

        A namespace is read where one of its pods concerns the drain, and its labels are given to all of its pods: a
        rank without a GPU is asked about with its gang (docs/design/drain.md#t13), and None says there that they cannot
        be read.

        Raises:
            KubeError: an object could not be read for another reason than that it is gone, or not ours to read.
        """
        pods = [pod_view(raw, await self._resource_claims(raw)) for raw in raws]
        concerned = {pod.uid for pod in pods if scope.all_pods or holds_gpu(pod)}
        wanted = sorted({pod.namespace for pod in pods if namespaces and pod.uid in concerned})
        labels = {
            name: await _ask(self.namespaces, name, now, partial(self._labels, name)) for name in wanted
        }
        if labels:
            pods = [replace(pod, namespace_labels=labels.get(pod.namespace)) for pod in pods]
        return tuple([await self._with_owner(pod, now) if pod.uid in concerned else pod for pod in pods])

    async def _resource_claims(self, raw: JSON) -> dict[str, ResourceClaimUse]:
        """What the ResourceClaims of a pod are used for; one that cannot be read counts as a GPU
        (docs/design/drain.md#g5)."""
        namespace = raw["metadata"]["namespace"]
        uses: dict[str, ResourceClaimUse] = {}
        for name in resource_claim_names(raw):
            if name is not None:
                found = await self._get(RESOURCE_CLAIMS, name, namespace)
                uses[f"{namespace}/{name}"] = resource_claim_use(found) if found else "unresolved"
        return uses

    async def _with_owner(self, pod: PodView, now: datetime) -> PodView:
        """Look up whether the DaemonSet of a pod that has to leave still exists (docs/design/drain.md#p3, P5)."""
        owner = pod.owner
        if owner is None or owner.kind != "DaemonSet" or not owner.api_version.startswith("apps/"):
            return pod
        read = partial(self._exists, DAEMON_SETS, owner.name, pod.namespace)
        exists = await _ask(self.owners, (pod.namespace, owner.name), now, read)
        return replace(pod, owner=replace(owner, exists=exists))

    async def _labels(self, namespace: str) -> Mapping[str, str] | None:
        """Labels of a namespace (docs/design/drain.md#p19); None if it cannot be read."""
        found = await self._get(NAMESPACES, namespace, None)
        return None if found is None else interned(part(found, "metadata", "labels"))

    async def _exists(self, resource: Resource, name: str, namespace: str) -> bool | None:
        try:
            await self.client.get(resource, name, namespace=namespace)
        except NotFound:
            return False
        except Forbidden:
            return None
        return True

    async def _get(self, resource: Resource, name: str, namespace: str | None) -> JSON | None:
        try:
            return await self.client.get(resource, name, namespace=namespace)
        except (NotFound, Forbidden):
            return None


async def _ask(
    known: dict[Key, tuple[datetime, Answer]], key: Key, now: datetime, read: Callable[[], Awaitable[Answer]]
) -> Answer:
    """Return what is known, or `read` it if that is too old. Other old answers are forgotten then: namespaces come and
    go as long as the operator runs."""
    if key not in known or now - known[key][0] > KEPT:
        answer = await read()
        for old in [old for old, (read_at, _) in known.items() if now - read_at > KEPT]:
            del known[old]
        known[key] = now, answer
    return known[key][1]

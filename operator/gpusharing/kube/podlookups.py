"""Other objects that affect how a pod is drained: its ResourceClaims, its DaemonSet, and its namespace."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from gpusharing.kube.client import DAEMON_SETS, JSON, NAMESPACES, PODS, RESOURCE_CLAIMS, KubeClient, Resource
from gpusharing.kube.convert_pods import ClaimedDevices, claimed_devices, pod_view, resource_claim_names
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.raw import interned, part, text
from gpusharing.kube.unreadable import converted
from gpusharing.planning.drain.holders import holds_gpu
from gpusharing.planning.snapshot.podviews import PodView, Scope

Key = TypeVar("Key")
Answer = TypeVar("Answer")

ANSWER_VALID = timedelta(seconds=30)
"""How long a DaemonSet or a namespace is not read again after it was read."""


@dataclass(slots=True)
class PodLookups:
    """Reads the ResourceClaims, DaemonSets and namespaces of the pods of a node, one object at a time."""

    client: KubeClient
    owners: dict[tuple[str, str, str], tuple[datetime, bool | None]] = field(default_factory=dict)
    """DaemonSets by namespace, name and UID: when each was read, and whether it existed; None if we may not read it."""
    namespaces: dict[str, tuple[datetime, Mapping[str, str] | None]] = field(default_factory=dict)
    """Namespaces by name: when each was read, and its labels, or None if they cannot be read."""

    async def views(
        self, raws: Iterable[JSON], scope: Scope, now: datetime, *, namespaces: bool
    ) -> tuple[PodView, ...]:
        """Convert the raw pods of one node. Raises KubeError if one, or an object that it needs, cannot be read."""
        pods = []
        for raw in raws:
            claims = await self._resource_claims(raw)
            pods.append(converted(PODS, raw, partial(pod_view, resource_claims=claims)))
        concerned = {pod.uid for pod in pods if scope.all_pods or holds_gpu(pod)}
        # All pods of such a namespace get its labels, because a rank without a GPU is judged with its gang (T13).
        wanted = sorted({pod.namespace for pod in pods if namespaces and pod.uid in concerned})
        labels = {
            name: await _ask(self.namespaces, name, now, partial(self._labels, name)) for name in wanted
        }
        if labels:
            pods = [replace(pod, namespace_labels=labels.get(pod.namespace)) for pod in pods]
        return tuple([await self._with_owner(pod, now) if pod.uid in concerned else pod for pod in pods])

    async def _resource_claims(self, raw: JSON) -> dict[str, ClaimedDevices]:
        """Return the devices of each ResourceClaim of a raw pod, by `namespace/name`; None, which counts as a GPU, for one that is gone or that cannot be read (docs/design/drain.md#g5)."""
        namespace = text(raw, "metadata", "namespace")
        claims: dict[str, ClaimedDevices] = {}
        for name in converted(PODS, raw, resource_claim_names):
            if name is not None:
                claim = await self._get(RESOURCE_CLAIMS, name, namespace)
                read = converted(RESOURCE_CLAIMS, claim, claimed_devices) if claim else None
                claims[f"{namespace}/{name}"] = read
        return claims

    async def _with_owner(self, pod: PodView, now: datetime) -> PodView:
        """Return the pod with `owner.exists` set if a DaemonSet controls it (docs/design/drain.md#p3, P5).

        The UID is part of the key, so that what was read before never decides about a DaemonSet that was created again.
        """
        owner = pod.owner
        if owner is None or owner.kind != "DaemonSet" or not owner.api_version.startswith("apps/"):
            return pod
        key = pod.namespace, owner.name, owner.uid
        exists = await _ask(self.owners, key, now, partial(self._exists, *key))
        return replace(pod, owner=replace(owner, exists=exists))

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


async def _ask(
    known: dict[Key, tuple[datetime, Answer]], key: Key, now: datetime, read: Callable[[], Awaitable[Answer]]
) -> Answer:
    """Return the answer for `key`, read again after ANSWER_VALID. Old answers are dropped, because namespaces come and go."""
    if key not in known or now - known[key][0] > ANSWER_VALID:
        answer = await read()
        for old in [old for old, (read_at, _) in known.items() if now - read_at > ANSWER_VALID]:
            del known[old]
        known[key] = now, answer
    return known[key][1]

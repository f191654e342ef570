"""Writes that are made once for all nodes: configuration, finalizers, claims. Fences wait for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from gpusharing.api import names
from gpusharing.controller.configwrites import mig_patch, plugin_patch
from gpusharing.kube.client import CLUSTER_POLICIES, CONFIG_MAPS, JSON, POLICIES, KubeClient
from gpusharing.kube.errors import Conflict, NotFound
from gpusharing.kube.written import MIG_KEY
from gpusharing.planning.snapshot import callfailures
from gpusharing.planning.snapshot.actions import Action, SetClaims, SetFinalizer, SetPointers, WriteConfig
from gpusharing.planning.snapshot.callfailures import CLAIMS, CLUSTER_POLICY, policy_subject
from gpusharing.planning.snapshot.records import Claim, FailedNode
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView
from gpusharing.planning.snapshot.views import ClusterSnapshot

log = structlog.get_logger()

TRIES = 3
"""Attempts at a conditional write; after each 409 it is decided again."""


class ReflectorCache(Protocol):
    """The part of a reflector that is fed with answers."""

    def resource_version(self, name: str) -> str:
        """The newest one known."""
        ...

    def accept(self, raw: JSON) -> None:
        """Take an object that the server answered."""
        ...


class ClusterPolicies(ReflectorCache, Protocol):
    """What is known of ClusterPolicies."""

    @property
    def items(self) -> Mapping[str, ClusterPolicyView]:
        """By name."""
        ...


class Claims(Protocol):
    """The leader Lease."""

    async def set_claims(self, claims: Mapping[str, Claim], failed_nodes: Mapping[str, FailedNode]) -> None:
        """Compare-and-swap; raises LeaseLost when we no longer lead."""
        ...


class PolicyStore(Protocol):
    """The source of a policy's finalizers."""

    def finalizers(self, policy: str) -> tuple[str, tuple[str, ...]]:
        """(resourceVersion, finalizers) as last read."""
        ...

    def accept(self, raw: JSON) -> None:
        """Take an object that the server answered."""
        ...


def subject_of(action: Action) -> str:
    """What a shared write is about, for people."""
    match action:
        case SetFinalizer():
            return policy_subject(action.policy)
        case SetClaims():
            return CLAIMS
        case SetPointers():
            return CLUSTER_POLICY
        case _:
            return callfailures.CONFIG_MAPS


@dataclass(slots=True)
class SharedWrites:
    """Carries out shared writes; every method raises KubeError, `perform` of claims also LeaseLost."""

    client: KubeClient
    policies: PolicyStore
    claims: Claims
    now: Callable[[], datetime]
    config_maps: ReflectorCache | None = None
    cluster_policies: ClusterPolicies | None = None
    writing: str = ""
    """The ConfigMap that is being written, or was written last: `namespace/name`."""

    async def perform(self, action: Action, snapshot: ClusterSnapshot) -> None:
        """Carry out one shared write."""
        match action:
            case WriteConfig():
                await self._write_config(action, snapshot)
            case SetFinalizer():
                await self._set_finalizer(action)
            case SetClaims():
                await self.claims.set_claims(action.claims, action.failed_nodes)
            case SetPointers():
                await self._set_pointers(action)
            case _:
                raise TypeError(f"{type(action).__name__} belongs to a node")

    async def _write_config(self, action: WriteConfig, snapshot: ClusterSnapshot) -> None:
        settings, stack = snapshot.settings, snapshot.stack
        namespace = settings.gpu_operator_namespace
        if (body := plugin_patch(action, stack, self.now())) is not None:
            await self._apply(settings.plugin_config_map, body, action.plugin_configs, namespace)
        if (body := mig_patch(action, stack, self.now())) is not None:
            await self._apply(settings.mig_config_map, body, {MIG_KEY: action.mig_file}, namespace)

    async def _apply(self, name: str, body: JSON, data: Mapping[str, str], namespace: str) -> None:
        """Patch what differs; a ConfigMap that does not exist, or no longer exists, is created with all of its `data`.

        One that somebody created a moment ago may have their entries: it is not patched before it has been read.
        """
        self.writing = f"{namespace}/{name}"
        metadata = body["metadata"] | {"name": name, "namespace": namespace}
        whole = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}
        if self.config_maps is not None and not self.config_maps.resource_version(name):
            raw = await self.client.create(CONFIG_MAPS, whole, namespace=namespace)
        else:
            try:
                raw = await self.client.patch(CONFIG_MAPS, name, body, namespace=namespace)
            except NotFound:
                raw = await self.client.create(CONFIG_MAPS, whole, namespace=namespace)
        log.info("configuration written", configmap=name, keys=sorted(body["data"]))
        if self.config_maps is not None:
            self.config_maps.accept(raw)

    async def _set_pointers(self, action: SetPointers) -> None:
        """One patch, refused when the ClusterPolicy has changed since the decision; the next pass decides again."""
        name, cache = action.policy.name, self.cluster_policies
        if cache is None or cache.items.get(name) != action.policy:
            raise Conflict(f"ClusterPolicy {name} changed meanwhile")
        marks = {names.ANNOTATION_CONFIGURED: ",".join(sorted({*action.policy.configured, *action.wanted}))}
        body: JSON = {
            "metadata": {"annotations": marks, "resourceVersion": cache.resource_version(name)},
            "spec": {},
        }
        for field_name, config_map in action.wanted.items():
            block, config, key = field_name.split(".")
            body["spec"][block] = {config: {key: config_map}}
        cache.accept(await self.client.patch(CLUSTER_POLICIES, name, body))
        log.info("ClusterPolicy pointed at our ConfigMaps", clusterpolicy=name, fields=sorted(action.wanted))

    async def _set_finalizer(self, action: SetFinalizer) -> None:
        """If the policy has changed meanwhile, our finalizer is still added, because that hinders nobody. It is not
        removed: the change may be the very deletionPolicy that needs it, so the next pass decides.

        Raises Conflict where it cannot be added because that policy is gone, or is another one under its name: no node
        may be fenced for it.
        """
        version, present = self.policies.finalizers(action.policy)
        for _ in range(TRIES):
            others = [name for name in present if name != names.FINALIZER]
            wanted = [*others, names.FINALIZER] if action.present else others
            if list(present) == wanted:
                return
            metadata: JSON = {"finalizers": wanted, "resourceVersion": version}
            if action.uid:
                metadata["uid"] = action.uid
            try:
                self.policies.accept(await self.client.patch(POLICIES, action.policy, {"metadata": metadata}))
            except NotFound:
                self._lost(action)
                return
            except Conflict:
                raw = await self._reread(action.policy)
                if raw is None or not action.present or action.uid not in ("", raw["metadata"]["uid"]):
                    self._lost(action)
                    return
                version = str(raw["metadata"]["resourceVersion"])
                present = tuple(raw["metadata"].get("finalizers") or ())
            else:
                return
        raise Conflict(f"policy {action.policy} changed {TRIES} times while we wrote to it")

    def _lost(self, action: SetFinalizer) -> None:
        """What the finalizer was for is no longer there. That holds up nothing but a start."""
        if action.present:
            raise Conflict(f"policy {action.policy} was deleted meanwhile")

    async def _reread(self, policy: str) -> JSON | None:
        """The policy as it is now, which the next pass decides on; None: it is gone."""
        try:
            raw = await self.client.get(POLICIES, policy)
        except NotFound:
            return None
        self.policies.accept(raw)
        return raw

"""Carry out a plan: one API call per action, preconditions on every check-then-act write.

A surprise ends the actions of that node for this pass; the next pass looks again. Only a lost Lease, lost
credentials or a lost API server end the pass itself. The cache takes what the server answered, never what we
meant to write (reliability-performance.md D12).
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, assert_never

import structlog

from gpusharing.api import names
from gpusharing.controller.configwrites import mig_patch, plugin_patch
from gpusharing.controller.parallel import each
from gpusharing.kube.client import CONFIG_MAPS, GPUNODES, JSON, NODES, PODS, POLICIES, KubeClient
from gpusharing.kube.convert import node_view
from gpusharing.kube.errors import (
    AlreadyExists,
    Conflict,
    EvictionBlocked,
    EvictionFailed,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
    Throttled,
    Unauthorized,
    Unavailable,
)
from gpusharing.kube.fence import NodePatch, patch_for
from gpusharing.kube.lease import LeaseLost
from gpusharing.kube.written import MIG_KEY
from gpusharing.planning.actions import (
    Action,
    Actuate,
    EnsureGPUNode,
    Evict,
    FenceNode,
    LabelNode,
    Release,
    RestartOperand,
    SetClaims,
    SetFinalizer,
    UpdateFence,
    WriteConfig,
)
from gpusharing.planning.evictions import FIRST_WAIT, remember
from gpusharing.planning.reasons import Reason
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.verdict import Verdict
from gpusharing.planning.views import Claim, ClusterSnapshot, EvictionMemory, NodeView

log = structlog.get_logger()

FATAL = (Unauthorized, Unavailable, LeaseLost)
TRIES = 3
"""How often a conditional write is decided again after a 409."""


class Cache(Protocol):
    """The part of a reflector that the executor feeds."""

    def resource_version(self, name: str) -> str:
        """The newest one known."""
        ...

    def accept(self, raw: JSON) -> None:
        """Take an object that the server answered."""
        ...


class Claims(Protocol):
    """The leader Lease."""

    async def set_claims(self, claims: Mapping[str, Claim]) -> None:
        """Compare-and-swap; raises LeaseLost when we do not lead any more."""
        ...


class PolicyStore(Protocol):
    """Where the finalizers of a policy are known from."""

    def finalizers(self, policy: str) -> tuple[str, tuple[str, ...]]:
        """(resourceVersion, finalizers) as last read."""
        ...

    def accept(self, raw: JSON) -> None:
        """Take an object that the server answered."""
        ...


@dataclass(slots=True)
class Outcome:
    """What a pass did."""

    done: int = 0
    """Writes that the server accepted."""
    surprises: dict[str, str] = field(default_factory=dict)
    """By node or subject: what did not work, for log and next pass."""


@dataclass(slots=True)
class Executor:
    """Matches on the Action union; a new action without a branch fails type checking."""

    client: KubeClient
    nodes: Cache
    gpunodes: Cache
    policies: PolicyStore
    claims: Claims
    now: Callable[[], datetime]
    jitter: Callable[[], float] = random.random
    parallel: int = 16
    eviction_wait: float = FIRST_WAIT
    """Seconds after the first refusal."""
    config_maps: Cache | None = None
    evictions: dict[str, dict[str, EvictionMemory]] = field(default_factory=dict)
    """By node and pod UID; in memory only."""
    write_error: str = ""
    """Why the last write of our ConfigMaps was refused; empty when it was not."""
    deleted: set[str] = field(default_factory=set)
    """UIDs of mig-manager pods whose deletion the server accepted; a few in a process's life."""
    on_action: Callable[[Action, str], None] = lambda action, result: None
    """Told after each action: for metrics."""
    view: Callable[[JSON], NodeView] = node_view
    """A Node as the plan sees it."""

    async def execute(self, plan: RolloutPlan, snapshot: ClusterSnapshot) -> Outcome:
        """Shared writes first; then every node's actions, nodes side by side, one node's in order."""
        outcome = Outcome()
        self._forget_refusals(snapshot)
        blocked = await self._shared(plan.shared, snapshot, outcome)

        async def node(verdict: Verdict) -> None:
            await self._node(verdict.node, verdict.actions, blocked, outcome)

        await each([verdict for verdict in plan.verdicts.values() if verdict.actions], node, self.parallel)
        return outcome

    def _forget_refusals(self, snapshot: ClusterSnapshot) -> None:
        """A refusal speaks about one drain only: before the next one, the budgets as they are then decide."""
        for name in list(self.evictions):
            node = snapshot.nodes.get(name)
            if node is None or node.fence is None:
                del self.evictions[name]

    async def _shared(
        self, actions: Iterable[Action], snapshot: ClusterSnapshot, outcome: Outcome
    ) -> set[str]:
        """Returns the policies whose fences must wait; `*` stands for all."""
        blocked: set[str] = set()
        self.write_error = ""
        for action in actions:
            try:
                await self._perform_shared(action, snapshot)
            except FATAL:
                raise
            except KubeError as error:
                subject = action.policy if isinstance(action, SetFinalizer) else "*"
                blocked.add(subject)
                if isinstance(action, WriteConfig) and isinstance(error, Forbidden | Invalid):
                    self.write_error = str(error)
                self._surprise(type(action).__name__, action, error, outcome)
            else:
                outcome.done += 1
                self.on_action(action, "done")
        return blocked

    async def _perform_shared(self, action: Action, snapshot: ClusterSnapshot) -> None:
        match action:
            case WriteConfig():
                await self._write_config(action, snapshot)
            case SetFinalizer():
                await self._set_finalizer(action)
            case SetClaims():
                await self.claims.set_claims(action.claims)
            case _:
                raise TypeError(f"{type(action).__name__} belongs to a node")

    async def _node(self, node: str, actions: Iterable[Action], blocked: set[str], outcome: Outcome) -> None:
        for action in actions:
            if isinstance(action, FenceNode) and blocked & {"*", action.fence.policy}:
                return
            try:
                if await self._perform(action):
                    outcome.done += 1
                    self.on_action(action, "done")
            except FATAL:
                raise
            except KubeError as error:
                self._surprise(node, action, error, outcome)
                return

    def _surprise(self, subject: str, action: Action, error: KubeError, outcome: Outcome) -> None:
        outcome.surprises[subject] = f"{type(action).__name__}: {type(error).__name__}: {error}"
        self.on_action(action, type(error).__name__)
        log.warning(
            "action failed", node=subject, action=type(action).__name__, error=str(error) or repr(error)
        )

    async def _perform(self, action: Action) -> bool:
        """True when the server changed something."""
        match action:
            case EnsureGPUNode():
                await self._ensure_gpunode(action)
            case FenceNode() | Actuate() | UpdateFence() | Release() | LabelNode():
                return await self._patch_node(action)
            case Evict():
                return await self._evict(action)
            case RestartOperand():
                return await self._restart(action)
            case WriteConfig() | SetClaims() | SetFinalizer():
                raise TypeError(f"{type(action).__name__} belongs to no node")
            case _:
                assert_never(action)
        return True

    # --- nodes -------------------------------------------------------------------------------------------

    async def _patch_node(self, action: NodePatch) -> bool:
        """Patch with the newest resourceVersion; after a 409 go on only if the node is still what we decided on."""
        name, version = action.node.name, self.nodes.resource_version(action.node.name)
        for _ in range(TRIES):
            try:
                self.nodes.accept(await self.client.patch(NODES, name, patch_for(action, version)))
            except Conflict:
                raw = await self.client.get(NODES, name)
                self.nodes.accept(raw)
                if not same_node(self.view(raw), action.node):
                    log.info(
                        "node changed meanwhile, deciding again", node=name, action=type(action).__name__
                    )
                    return False
                version = str(raw["metadata"]["resourceVersion"])
            else:
                return True
        raise Conflict(f"node {name} changed {TRIES} times while we wrote to it")

    async def _ensure_gpunode(self, action: EnsureGPUNode) -> None:
        spec = {"request": {"id": action.request_id, "quiet": action.quiet}}
        try:
            if self.gpunodes.resource_version(action.node):
                raw = await self.client.patch(GPUNODES, action.node, {"spec": spec})
            else:
                raw = await self.client.create(GPUNODES, _new_gpunode(action, spec))
        except AlreadyExists:
            raw = await self.client.patch(GPUNODES, action.node, {"spec": spec})
        except NotFound:
            raw = await self.client.create(GPUNODES, _new_gpunode(action, spec))
        self.gpunodes.accept(raw)

    async def _restart(self, action: RestartOperand) -> bool:
        """A pod that the server took on for deletion is not deleted again: the watch may not have told of it yet."""
        if action.uid in self.deleted:
            return False
        try:
            await self.client.delete(PODS, action.name, namespace=action.namespace, uid=action.uid)
        except (NotFound, Conflict):
            return False
        self.deleted.add(action.uid)
        return True

    # --- evictions (drain.md 1.3) ------------------------------------------------------------------------

    async def _evict(self, action: Evict) -> bool:
        retry_after: float | None = None
        try:
            await self.client.evict(action.namespace, action.name, action.uid)
        except (NotFound, Conflict):
            return False  # E2, E3: that pod is gone or replaced; the next LIST tells
        except EvictionBlocked as error:
            answer, message, retry_after = Reason.PDB, str(error), error.retry_after
        except Throttled as error:
            answer, message, retry_after = Reason.THROTTLED, str(error), error.retry_after
        except EvictionFailed as error:
            answer, message = Reason.EVICTION_ERROR, str(error)
        except Forbidden as error:
            terminating = error.namespace_terminating
            answer, message = Reason.NAMESPACE_TERMINATING if terminating else Reason.FORBIDDEN, str(error)
        except Invalid as error:
            answer, message = Reason.INTERNAL_ERROR, str(error)
        else:
            answer, message = Reason.EVICTED, ""
        memories = self.evictions.setdefault(action.node, {})
        memory = remember(
            answer,
            message,
            memories.get(action.uid),
            self.now(),
            self.jitter(),
            retry_after=retry_after,
            first_wait=self.eviction_wait,
        )
        memories[action.uid] = memory
        if answer is Reason.EVICTED:
            return True
        self.on_action(action, memory.reason)
        pod = f"{action.namespace}/{action.name}"
        log.info("eviction refused", node=action.node, pod=pod, reason=memory.reason)
        return False

    # --- shared ------------------------------------------------------------------------------------------

    async def _write_config(self, action: WriteConfig, snapshot: ClusterSnapshot) -> None:
        settings, stack = snapshot.settings, snapshot.stack
        namespace = settings.gpu_operator_namespace
        if (body := plugin_patch(action, stack, self.now())) is not None:
            await self._apply(settings.plugin_config_map, body, action.plugin_configs, namespace)
        if (body := mig_patch(action, stack, self.now())) is not None:
            await self._apply(settings.mig_config_map, body, {MIG_KEY: action.mig_file}, namespace)

    async def _apply(self, name: str, body: JSON, data: Mapping[str, str], namespace: str) -> None:
        """Patch what differs; a ConfigMap that is not there, or not any more, is created with all of its `data`.

        One that somebody made a moment ago may hold what is theirs: it is not patched before it was read.
        """
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

    async def _set_finalizer(self, action: SetFinalizer) -> None:
        version, present = self.policies.finalizers(action.policy)
        for _ in range(TRIES):
            others = [name for name in present if name != names.FINALIZER]
            wanted = [*others, names.FINALIZER] if action.present else others
            if list(present) == wanted:
                return
            metadata = {"finalizers": wanted, "resourceVersion": version}
            try:
                self.policies.accept(await self.client.patch(POLICIES, action.policy, {"metadata": metadata}))
            except NotFound:
                return
            except Conflict:
                raw = await self.client.get(POLICIES, action.policy)
                version = str(raw["metadata"]["resourceVersion"])
                present = tuple(raw["metadata"].get("finalizers") or ())
            else:
                return
        raise Conflict(f"policy {action.policy} changed {TRIES} times while we wrote to it")


def same_node(now: NodeView, then: NodeView) -> bool:
    """Whether what we decided on still holds: everything that a plan reads of a Node."""
    return now == then


def _new_gpunode(action: EnsureGPUNode, spec: JSON) -> JSON:
    owner = {"apiVersion": "v1", "kind": "Node", "name": action.node, "uid": action.node_uid}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "GPUNode",
        "metadata": {"name": action.node, "ownerReferences": [owner]},
        "spec": spec,
    }

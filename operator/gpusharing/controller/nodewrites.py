"""Writes about single nodes, besides evictions: to the Node, its GPUNode and the pods of NVIDIA's programs on it."""

from collections import Counter
from dataclasses import dataclass, field

import structlog

from gpusharing.api import names
from gpusharing.api.gpunode import Request
from gpusharing.api.records import to_wire
from gpusharing.controller.sharedwrites import TRIES
from gpusharing.kube.client import DEVICE_TAINT_RULES, GPUNODES, JSON, NODES, PODS, KubeClient
from gpusharing.kube.dra import taint_rule_view
from gpusharing.kube.errors import AlreadyExists, Conflict, NotFound
from gpusharing.kube.fence import NodePatch, patch_for
from gpusharing.kube.lists import check_identity
from gpusharing.kube.sources import Sources
from gpusharing.planning.drain.evictions import ODD_AFTER
from gpusharing.planning.snapshot.actions import Actuate, ClearRequests, EnsureGPUNode, RestartOperand
from gpusharing.planning.snapshot.nvidia import RULE_PREFIX

log = structlog.get_logger()


@dataclass(slots=True)
class NodeWrites:
    """Carries out the actions of single nodes, except evictions. Every call may raise a KubeError."""

    client: KubeClient
    sources: Sources
    created: dict[str, str] = field(default_factory=dict)
    """UID of the Node for which a GPUNode was last created, by node name. The executor removes Nodes that are gone."""
    _deleted: set[str] = field(default_factory=set)
    """UIDs of pods to restart whose deletion the server accepted; a process has only a few."""
    _missed: Counter[str] = field(default_factory=Counter)
    """How often the server said that a pod to restart is gone or was replaced."""

    async def patch(self, action: NodePatch) -> bool:
        """Patch the Node at its newest known resourceVersion; False if it has changed since the action was decided.

        A node that a DeviceTaintRule fences passes the point of no return only if the server still has that rule.
        """
        name, version = action.node.name, self.sources.nodes.version(action.node.name)
        if isinstance(action, Actuate) and action.fence.tainted and not await self._is_closed(action):
            log.info("the DeviceTaintRule of the node has changed; the next pass will evaluate it again", node=name)
            return False
        for _ in range(TRIES):
            try:
                self.sources.nodes.accept(await self.client.patch(NODES, name, patch_for(action, version)))
            except Conflict:
                raw = await self._node(name)
                self.sources.nodes.accept(raw)
                if self.sources.node_view(raw) != action.node:
                    log.info(
                        "the node has changed since this pass read it; the next pass will evaluate it again",
                        node=name,
                        action=type(action).__name__,
                    )
                    return False
                version = str(raw["metadata"]["resourceVersion"])
            else:
                return True
        raise Conflict(f"could not write to node {name}: someone else changed it during each of {TRIES} attempts")

    async def _is_closed(self, action: Actuate) -> bool:
        name = RULE_PREFIX + action.node.name
        try:
            raw = await self.client.get(DEVICE_TAINT_RULES, name)
        except NotFound:
            self.sources.taint_rules.drop(name)
            return False
        self.sources.taint_rules.accept(raw)
        return taint_rule_view(raw).since == action.node.rule_since

    async def ensure_gpunode(self, action: EnsureGPUNode) -> None:
        """Write the request to the agent into the node's GPUNode; NotFound if the Node is gone or replaced."""
        request = Request(action.request_id, action.quiet, action.holders, action.quiet_gpus)
        spec = {"request": to_wire(request)}
        try:
            if self.sources.gpunodes.version(action.node):
                raw = await self.client.patch(GPUNODES, action.node, {"spec": spec})
            else:
                raw = await self._new_gpunode(action, spec)
        except AlreadyExists:
            raw = await self.client.patch(GPUNODES, action.node, {"spec": spec})
        except NotFound:
            raw = await self._new_gpunode(action, spec)
        self.sources.gpunodes.accept(raw)

    async def _node(self, name: str) -> JSON:
        raw = await self.client.get(NODES, name)
        check_identity(NODES, raw, "uid", "resourceVersion")
        return raw

    async def _new_gpunode(self, action: EnsureGPUNode, spec: JSON) -> JSON:
        name, uid = action.node, action.node_uid
        # A slow watch may not have shown yet that the Node is gone; Kubernetes would then delete the object at once,
        # and we would create it again and again.
        if self.created.get(name) == uid and (await self._node(name))["metadata"]["uid"] != uid:
            raise NotFound(f"the Node {name} was deleted and created again")
        self.created[name] = uid
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}
        metadata = {"name": name, "ownerReferences": [owner]}
        manifest = {"apiVersion": names.API_VERSION, "kind": "GPUNode", "metadata": metadata, "spec": spec}
        return await self.client.create(GPUNODES, manifest)

    async def clear_requests(self, action: ClearRequests) -> bool:
        """Remove the requests from the GPUNode; False if it has others, Conflict if it has changed in another way."""
        name, gpunodes = action.node, self.sources.gpunodes
        if name not in gpunodes.items or gpunodes.items[name].requests != action.requests:
            return False
        version, removed = gpunodes.version(name), dict.fromkeys(action.requests)
        body: JSON = {"metadata": {"resourceVersion": version, "annotations": removed}}
        gpunodes.accept(await self.client.patch(GPUNODES, name, body))
        return True

    async def restart(self, action: RestartOperand) -> bool:
        """Delete a pod of NVIDIA's; False if that is done, an error if it is said to be gone and the watch shows it."""
        if action.uid in self._deleted:
            return False
        try:
            await self.client.delete(PODS, action.name, namespace=action.namespace, uid=action.uid)
        except (NotFound, Conflict):
            self._missed[action.uid] += 1
            if self._missed[action.uid] >= ODD_AFTER:
                raise  # the watch still shows the pod, so it is neither gone nor replaced
            return False
        self._deleted.add(action.uid)
        return True

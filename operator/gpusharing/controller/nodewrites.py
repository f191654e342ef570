"""Writes about one node: to the Node itself, to its GPUNode, and the restart of one of NVIDIA's programs there.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#point-of-no-return.
"""

from collections import Counter
from dataclasses import dataclass, field

import structlog

from gpusharing.api import names
from gpusharing.controller.sharedwrites import TRIES
from gpusharing.kube.client import DEVICE_TAINT_RULES, GPUNODES, JSON, NODES, PODS, KubeClient
from gpusharing.kube.dra import taint_rule_view
from gpusharing.kube.errors import AlreadyExists, Conflict, NotFound
from gpusharing.kube.fence import NodePatch, patch_for
from gpusharing.kube.sources import Sources
from gpusharing.kube.unreadable import check_identity
from gpusharing.planning.drain.evictions import ODD_AFTER
from gpusharing.planning.snapshot.actions import Actuate, ClearRequests, EnsureGPUNode, RestartOperand
from gpusharing.planning.snapshot.draviews import RULE_PREFIX

log = structlog.get_logger()


@dataclass(slots=True)
class NodeWrites:
    """Carries out the actions of single nodes, except evictions. Every call may raise a KubeError."""

    client: KubeClient
    sources: Sources
    """The cache that holds the versions which writes are conditional on, and takes the server's answers."""
    created: dict[str, str] = field(default_factory=dict)
    """UID of the Node for which a GPUNode was last created, by node name. The executor removes Nodes that are gone."""
    _deleted: set[str] = field(default_factory=set)
    """UIDs of pods to restart whose deletion the server accepted; there are only a few in the life of a process."""
    _missed: Counter[str] = field(default_factory=Counter)
    """How often the server said that a pod to restart is gone or was replaced, by UID of the pod."""

    async def patch(self, action: NodePatch) -> bool:
        """Patch the Node on condition that it still has its newest known resourceVersion, and return True. After a 409
        the Node is read, and patched again only if it is still as it was when the action was decided; otherwise
        that is logged, nothing is written, and False is returned. All answers are stored in the cache.

        A node that a DeviceTaintRule fences passes the point of no return only if the server still has that rule, which
        is read immediately before; otherwise nothing is written, and False is returned.

        The executor has compared the node with the one in the snapshot immediately before. Raises Conflict after TRIES
        attempts.
        """
        name, version = action.node.name, self.sources.nodes.resource_version(action.node.name)
        if isinstance(action, Actuate) and action.fence.tainted and not await self._is_closed(action):
            log.info(
                "the DeviceTaintRule of the node has changed; the next pass will evaluate it again", node=name
            )
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
        raise Conflict(
            f"could not write to node {name}: someone else changed it during each of {TRIES} attempts"
        )

    async def _is_closed(self, action: Actuate) -> bool:
        """Whether the DeviceTaintRule of the node is on the server as it was when the action was decided. The rule is
        stored in the cache, or dropped from it if it is gone. Raises every KubeError except NotFound."""
        name = RULE_PREFIX + action.node.name
        try:
            raw = await self.client.get(DEVICE_TAINT_RULES, name)
        except NotFound:
            self.sources.taint_rules.drop(name)
            return False
        self.sources.taint_rules.accept(raw)
        return taint_rule_view(raw).since == action.node.rule_since

    async def ensure_gpunode(self, action: EnsureGPUNode) -> None:
        """Write the request to the agent into the node's GPUNode, whatever its version is, and create the GPUNode if
        it does not exist. The cache decides which of the two is tried first; if the server says that the GPUNode is
        gone, or exists already, the other one is tried. The server's answer is stored in the cache. Raises NotFound
        if the Node is found to be gone or replaced (`_new_gpunode`)."""
        spec = {"request": {"id": action.request_id, "quiet": action.quiet}}
        try:
            if self.sources.gpunodes.resource_version(action.node):
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
        """Create a GPUNode that the Node owns, and return it. The attempt is recorded in `created`, even if it fails.
        If there was one for this Node before, the Node is read first. A slow watch may not have shown yet that the Node
        is gone; Kubernetes would then delete the object at once, and we would create it again and again.

        Raises NotFound if that Node is gone or was replaced by another one of its name, and AlreadyExists if somebody
        has created the GPUNode meanwhile.
        """
        name, uid = action.node, action.node_uid
        if self.created.get(name) == uid and (await self._node(name))["metadata"]["uid"] != uid:
            raise NotFound(f"the Node {name} was deleted and created again")
        self.created[name] = uid
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}
        metadata = {"name": name, "ownerReferences": [owner]}
        manifest = {"apiVersion": names.API_VERSION, "kind": "GPUNode", "metadata": metadata, "spec": spec}
        return await self.client.create(GPUNODES, manifest)

    async def clear_requests(self, action: ClearRequests) -> bool:
        """Remove the requests from the GPUNode, store the answer in the cache, and return True. If the cache has no
        GPUNode of this name, or one with other requests than the action names, nothing is written and False is
        returned. Raises Conflict, without another attempt, if the GPUNode has changed since its newest known
        resourceVersion."""
        name, gpunodes = action.node, self.sources.gpunodes
        if name not in gpunodes.items or gpunodes.items[name].requests != action.requests:
            return False
        version, removed = gpunodes.resource_version(name), dict.fromkeys(action.requests)
        body: JSON = {"metadata": {"resourceVersion": version, "annotations": removed}}
        gpunodes.accept(await self.client.patch(GPUNODES, name, body))
        return True

    async def restart(self, action: RestartOperand) -> bool:
        """Delete a pod of one of NVIDIA's programs, such as mig-manager, so that a new one starts. Return True if the
        server accepted the deletion now, and False if it says that the pod is gone or was replaced. If it has
        accepted the deletion before, nothing is sent and False is returned, because the watch may not have shown
        yet that the pod is being deleted. Raises NotFound or Conflict once the server has said ODD_AFTER times that
        the pod is gone or was replaced, although the watch still shows it."""
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

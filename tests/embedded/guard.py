"""What must hold at every single write of a run, whoever writes (docs/design/transition.md).
The guard sees every committed change of the FakeCluster and every write of the operator, and collects what is wrong. It knows the rules by itself and asks nothing of the planner."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal

import yaml
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import Write
from hack.sim.fakestore import StoredChange
from hack.sim.nodesoftware import NodeSoftware
from tests.embedded.oracle import difference, published_resources
from tests.fakes.virtualtime import virtual_now
from tests.nodewrites import (
    annotations_of,
    begins_run,
    fence_of,
    foreign_marks,
    is_cordoned,
    is_gated,
    labels_of,
    requested_in,
    wrong_in_change,
    wrong_in_write,
)
from tests.podrules import keeps_for, must_leave, wrong_in_eviction
from tests.policyrules import is_meant, is_ready, limit_of, selects, turns_ready

from gpusharing.api import names
from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DEVICE_CLASSES,
    DEVICE_TAINT_RULES,
    GPUNODES,
    JSON,
    NODES,
    PODS,
    POLICIES,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    Resource,
)
from gpusharing.kube.errors import NotFound
from gpusharing.planning.snapshot.nvidia import RULE_PREFIX, TAINT_TEST

RESTARTED = ("nvidia-mig-manager", "nvidia-device-plugin-mps-control-daemon", "dra-driver-nvidia-gpu-kubelet-plugin")
"""Pods that we may delete: the actuators' own."""
OUR_CLASS, OUR_RESOURCE = "gpusharing-mig-", "nvidia.com/mig-"
OUR_MAPS = ("gpusharing-device-plugin", "gpusharing-mig-parted")
UPSTREAM = {"migManager": "default-mig-parted-config"}
"""What NVIDIA's CRD made of an empty name (docs/design/nvidia.md#d6)."""
OTHER_WRITES = {
    ("create", "gpunodes", ""),
    ("patch", "gpunodes", ""),
    ("patch", "gpunodes", "status"),
    ("patch", "gpusharingpolicies", ""),
    ("patch", "gpusharingpolicies", "status"),
    ("create", "events", ""),
    ("create", "configmaps", ""),
    ("patch", "configmaps", ""),
    ("create", "leases", ""),
    ("patch", "leases", ""),
    ("evict", "pods", "eviction"),
    ("delete", "pods", ""),
}


class PromiseGuard:
    """Hangs itself on a cluster; `check` tells what went wrong since."""

    def __init__(
        self,
        cluster: FakeCluster,
        software: NodeSoftware,
        *,
        configures: bool = False,
        repairs: bool = False,
        forces: bool = False,
    ) -> None:
        """`configures`: the operator was asked to set ClusterPolicy's pointers. `repairs`: it was asked to repair the MPS DaemonSet. `forces`: it may delete pods."""
        self.cluster = cluster
        self.configures = configures
        self.repairs = repairs
        self.forces = forces
        self.software = software
        self.wrong: list[str] = []
        self.largest: Counter[str] = Counter()
        """By policy: most nodes that were unavailable at once when we took one."""
        self._evicted: set[str] = set()
        self._pointed: set[tuple[str, str]] = set()
        """UID of a ClusterPolicy and block whose name was set."""
        cluster.store.on_commit.append(self._committed)
        cluster.faults.on_write = self._wrote

    def check(self) -> None:
        """Raises AssertionError with everything that was wrong."""
        assert not self.wrong, "\n".join(self.wrong)

    def _expect(self, holds: object, what: str) -> None:
        if not holds:
            self.wrong.append(what)

    # --- writes of the operator --------------------------------------------------------------------

    def _wrote(self, write: Write, when: Literal["before", "after"]) -> None:
        call = write.call
        if call.identity != "operator" or when == "after":
            return
        kind = (call.verb, call.resource.plural, call.subresource or "")
        if kind == ("patch", "nodes", ""):
            self._node_write(call.name, call.body or {})
        elif kind == ("evict", "pods", "eviction"):
            options = (call.body or {}).get("deleteOptions") or {}
            self._expect(options.keys() == {"preconditions"}, f"evicted {call.name} with {options}")
            self._eviction(options)
        elif kind == ("patch", "clusterpolicies", "") and self.configures:
            self._pointers(call.name, call.body or {})
        elif kind == ("patch", "daemonsets", "") and self.repairs:
            self._repair(call.name, call.body or {})
        elif kind[1] == "devicetaintrules" and self.software.settings.dra:
            self._taint_rule(call.verb, call.name, call.body or {})
        elif kind == ("patch", "replicasets", "scale") and self.software.settings.dra:
            self._expect(call.name == TAINT_TEST, f"scaled {call.name}")
        elif kind[1] == "deviceclasses" and self.software.settings.dra:
            self._device_class(call.verb, call.name, call.body or {})
        else:
            self._expect(kind in OTHER_WRITES, f"the operator may not {kind}")
        if kind == ("delete", "pods", ""):
            if call.name.startswith(RESTARTED):
                self._restart(call.namespace or "", call.name)
            else:
                self._expect(self.forces, f"deleted pod {call.name}")
                self._forced(call.body or {})
        if kind[1] == "configmaps":
            name = call.name or (call.body or {})["metadata"]["name"]
            self._expect(name in OUR_MAPS, f"wrote ConfigMap {name}")
        if kind == ("patch", "gpusharingpolicies", ""):
            self._finalizer(call.body or {})
        if kind == ("patch", "gpunodes", "status"):
            parts = (call.body or {})["status"].keys()
            self._expect(parts == {"transition", "conditions"}, f"wrote {', '.join(parts)} of a GPUNode")

    def _pointers(self, name: str, body: JSON) -> None:
        """Conditional, nothing but the two names and our mark, and no operand restarts under a change.

        What arrives sets each name once, and only one that nobody has said.
        """
        fenced = [raw["metadata"]["name"] for raw in self.cluster.objects(NODES) if fence_of(raw) is not None]
        self._expect(not fenced, f"ClusterPolicy was changed while {fenced} were fenced")
        metadata, spec = body["metadata"], body["spec"]
        self._expect(metadata.get("resourceVersion"), "an unconditional patch of ClusterPolicy")
        self._expect(set(metadata.get("annotations", {})) == {names.ANNOTATION_CONFIGURED}, "no mark of ours")
        named = {block: config["config"]["name"] for block, config in spec.items()}
        wanted = dict(zip(("devicePlugin", "migManager"), OUR_MAPS, strict=True))
        self._expect(named and named.items() <= wanted.items(), f"pointed ClusterPolicy at {named}")
        self._expect(spec == {block: {"config": {"name": given}} for block, given in named.items()}, f"wrote {spec}")
        found = self.cluster.store.get(CLUSTER_POLICIES, ("", name))
        if metadata.get("resourceVersion") != found["metadata"]["resourceVersion"]:
            return  # the server refuses it
        for block in named:
            said = ((found["spec"].get(block) or {}).get("config") or {}).get("name", "")
            self._expect(said in ("", UPSTREAM.get(block, "")), f"{block} pointed away from {said}")
            once = (found["metadata"]["uid"], block)
            self._expect(once not in self._pointed, f"{block} pointed twice")
            self._pointed.add(once)

    def _repair(self, name: str, body: JSON) -> None:
        """Conditional, one value of the MPS DaemonSet, and no MPS client ends."""
        serving = [
            node.name
            for node in self.software.nodes.values()
            if any(gpu.processes for gpu in node.gpus.look()) and not is_cordoned(self.cluster.get(NODES, node.name))
        ]
        self._expect(not serving, f"the MPS DaemonSet was changed while {serving} served MPS")
        self._expect(name == RESTARTED[1], f"patched DaemonSet {name}")
        self._expect(set(body["metadata"]) == {"resourceVersion"}, f"wrote {body['metadata']}")
        self._expect(body["spec"].keys() == {"template"}, f"wrote {body['spec']}")

    def _device_class(self, verb: str, name: str, body: JSON) -> None:
        """Only a class of ours, for one MIG profile, and nothing that configures a device."""
        self._expect(name.startswith(OUR_CLASS), f"wrote DeviceClass {name}")
        if verb != "create":
            rows = (raw for raw in self.cluster.store.all(DEVICE_CLASSES) if raw["metadata"]["name"] == name)
            for raw in rows:
                managed = raw["metadata"].get("labels", {}).get(names.LABEL_MANAGED_BY)
                self._expect(managed == names.MANAGED_BY, f"{verb} of DeviceClass {name} of somebody else")
                right = name.replace(OUR_CLASS, OUR_RESOURCE)
                resource = raw["spec"].get("extendedResourceName", right)
                self._expect(verb == "patch" or resource == right, f"{verb} of {name}, which serves {resource}")
        if verb != "delete":
            spec = {key: value for key, value in body["spec"].items() if value is not None}
            self._expect(spec.keys() <= {"selectors", "extendedResourceName"}, f"DeviceClass {name}: {spec}")
            resource = spec.get("extendedResourceName", OUR_RESOURCE)
            self._expect(resource.startswith(OUR_RESOURCE), f"DeviceClass {name} serves {resource}")

    def _taint_rule(self, verb: str, name: str, body: JSON) -> None:
        """Only rules of its own, which close the devices of one node to new pods and end none."""
        self._expect(verb in ("create", "delete"), f"may not {verb} DeviceTaintRules")
        name = name or body["metadata"]["name"]
        self._expect(name.startswith((RULE_PREFIX, TAINT_TEST)), f"wrote DeviceTaintRule {name}")
        if verb == "create":
            self._expect(body["spec"]["taint"]["effect"] == "NoSchedule", f"{name}: {body['spec']}")

    def _is_closed(self, node: JSON) -> bool:
        """Whether the node is cordoned, or its fence is a DeviceTaintRule that is in place."""
        name = node["metadata"]["name"]
        pools = [raw["spec"]["deviceSelector"].get("pool") for raw in self.cluster.store.all(DEVICE_TAINT_RULES)]
        tainted = (fence_of(node) or {}).get("tainted")
        return name in pools if tainted else is_cordoned(node)

    def _published(self, node: str) -> dict[str, int] | None:
        """What the DRA driver's devices of a node stand for; None where the device plugin serves."""
        if not self.software.settings.dra:
            return None
        slices = self.cluster.store.all(RESOURCE_SLICES)
        return published_resources(raw for raw in slices if raw["spec"]["nodeName"] == node)

    def _finalizer(self, body: JSON) -> None:
        self._expect(set(body) == {"metadata"}, f"wrote {', '.join(body)} of a policy")
        written = set(body.get("metadata", {})) - {"resourceVersion", "uid"}
        self._expect(written == {"finalizers"}, f"wrote {sorted(written)} of a policy's metadata")

    def _node_write(self, name: str, body: JSON) -> None:
        self.wrong += [f"{name}: {what}" for what in wrong_in_write(self._node(name), body)]
        if moved := requested_in(body):
            asked = self.cluster.store.get(GPUNODES, ("", name))["metadata"].get("annotations", {})
            nobody = {key for key, value in moved.items() if asked.get(key) != (value or "false")}
            self._expect(not nobody, f"{name}: nobody has requested {moved}, but {asked}")

    def _forced(self, body: JSON) -> None:
        """What a deletion by force must be beside what every eviction must: asked for, late, and with its grace."""
        pod = self._eviction(body)
        if pod is None:
            return
        name, node = pod["metadata"]["name"], self._node(pod["spec"]["nodeName"])
        fence, grace = fence_of(node), pod["spec"].get("terminationGracePeriodSeconds", 30)
        self._expect(body.get("gracePeriodSeconds", grace) >= max(1, grace), f"{name}: its grace period was cut")
        if fence is None:
            return
        policy = self._policy(fence["policy"])
        drain = (policy or {"spec": {}})["spec"].get("drain", {})
        self._expect(drain.get("onTimeout") == "ForceDelete", f"deleted {name}, and nobody asked for it")
        self._expect(fence["stage"] == "fenced", f"deleted {name} after the point of no return")
        end = datetime.fromisoformat(fence["deadline"])
        late = virtual_now() >= end - timedelta(seconds=grace + 11)
        self._expect(late and not fence.get("jobs"), f"deleted {name} long before the end of the drain")

    def _eviction(self, options: JSON) -> JSON | None:
        uid = (options.get("preconditions") or {}).get("uid")
        self._expect(uid, "an eviction without uid")
        pod = next((pod for pod in self.cluster.store.all(PODS) if pod["metadata"]["uid"] == uid), None)
        if pod is None:
            return None
        self._expect(uid not in self._evicted, f"evicted twice: {pod['metadata']['name']}")
        self._expect("deletionTimestamp" not in pod["metadata"], f"evicted while leaving: {pod['metadata']['name']}")
        name, node = pod["metadata"]["name"], self._node(pod["spec"]["nodeName"])
        fence = fence_of(node)
        self._expect(fence, f"evicted {name} from a node without our fence")
        self._expect(self._is_closed(node), f"evicted {name} from a schedulable node")
        if fence is not None and fence["stage"] == "fenced":
            self._expect(not foreign_marks(node), f"evicted {name} while {foreign_marks(node)} work on the node")
        reboot = fence is not None and fence["disruption"] == "Reboot"
        dra = self.software.settings.dra
        for why in wrong_in_eviction(pod, self._claims(), reboot=reboot, dra=dra):
            self._expect(False, f"evicted {name}, but {why}")
        if fence is not None:
            self._expect(self._is_touched(pod, fence), f"evicted {name} from a GPU that does not change")
        sharing = keeps_for(pod, self.cluster.store.all(PODS))
        self._expect(not sharing, f"evicted {name}, with which KAI keeps the GPU of {sharing}")
        return pod

    def _restart(self, namespace: str, name: str) -> None:
        """A fresh actuator runs at once, so its node must be as idle as at the point of no return."""
        pods = self.cluster.store.all(PODS)
        pod = next((p for p in pods if _key(p) == (namespace, name)), None)
        node = self._node(pod["spec"]["nodeName"]) if pod is not None else None
        fence = fence_of(node) if node is not None else None
        if node is None:
            return
        self._expect(fence, f"restarted {name} on a node without our fence")
        if fence is not None and fence["disruption"] != "PluginRestart":
            self._expect(self._is_closed(node), f"restarted {name} on a schedulable node")
            self._idle(node["metadata"]["name"], fence, f"{name} restarted")
            self._quiet(node["metadata"]["name"], f"{name} restarted")

    # --- changes of the cluster --------------------------------------------------------------------

    def _committed(self, resource: Resource, change: StoredChange) -> None:
        if resource == NODES and change.new is not None and change.old is not None:
            self._node_changed(change.old, change.new)
        elif resource == PODS and change.new is not None:
            if "deletionTimestamp" in change.new["metadata"]:
                self._evicted.add(change.new["metadata"]["uid"])
        elif resource == POLICIES and change.new is not None and turns_ready(change.old, change.new):
            self._turned_ready(change.new)

    def _node_changed(self, old: JSON, new: JSON) -> None:
        name, before, after = new["metadata"]["name"], fence_of(old), fence_of(new)
        if after is not None and before is None:
            self._took(name, after)
        if after is not None and begins_run(before, after):
            self._passed_pnr(name, after)
        self.wrong += [f"{name}: {what}" for what in wrong_in_change(old, new)]

    def _took(self, name: str, fence: JSON) -> None:
        """A node was fenced: within the budget, and nobody still believes that the pool is Ready."""
        policy = self._policy(fence["policy"])
        if policy is None:
            return
        if fence.get("newcomer"):
            self._expect(self._is_newcomer(self._node(name)), f"{name}: took no slot and is no newcomer")
            return
        pool = [
            raw
            for raw in self.cluster.store.all(NODES)
            if selects(policy, raw) and is_meant(policy, raw) and not self._is_newcomer(raw)
        ]
        away = [raw["metadata"]["name"] for raw in pool if _away(raw)]
        limit = limit_of(policy, len(pool))
        self.largest[fence["policy"]] = max(self.largest[fence["policy"]], len(away))
        self._expect(len(away) <= limit, f"{name}: {away} away, the limit is {limit}")
        self._expect(not is_ready(policy), f"{name}: fenced while {fence['policy']} says Ready")

    def _is_newcomer(self, node: JSON) -> bool:
        """Nobody counts on it yet: it waits behind the start-up taint, was never proven and has no pod of value."""
        fence = fence_of(node)
        if fence is not None and not fence.get("newcomer"):
            return False
        if not is_gated(node) or names.ANNOTATION_VERIFIED in annotations_of(node):
            return False
        claims, name = self._claims(), node["metadata"]["name"]
        pods = [pod for pod in self.cluster.store.all(PODS) if pod["spec"].get("nodeName") == name]
        return not any(must_leave(pod, claims, reboot=False) for pod in pods)

    def _passed_pnr(self, name: str, fence: JSON) -> None:
        if fence["disruption"] != "PluginRestart":
            self._idle(name, fence, "past the PNR")
            self._quiet(name, "past the PNR")

    def _quiet(self, name: str, what: str) -> None:
        try:
            gpunode = self.cluster.store.get(GPUNODES, ("", name))
        except NotFound:
            self.wrong.append(f"{name}: {what}, and no agent was asked to close NVML")
            return
        asked = gpunode["spec"]["request"]
        observed = (gpunode.get("status") or {}).get("observed") or {}
        quiet = asked["quiet"] and observed.get("quiet") and observed.get("requestID") == asked["id"]
        self._expect(quiet, f"{name}: {what}, asked {asked}, the agent says {observed}")

    def _idle(self, name: str, fence: JSON, what: str) -> None:
        """No pod is left that must be gone before: holders of every kind, and every pod before a reboot."""
        claims, reboot = self._claims(), fence["disruption"] == "Reboot"
        left = [
            pod["metadata"]["name"]
            for pod in self.cluster.store.all(PODS)
            if pod["spec"].get("nodeName") == name
            and must_leave(pod, claims, reboot=reboot)
            and self._is_touched(pod, fence)
        ]
        self._expect(not left, f"{name}: {what} with {left}")

    def _is_touched(self, pod: JSON, fence: JSON) -> bool:
        """Whether the change concerns a GPU of the pod, which only a kubelet knows that hands out devices."""
        if fence["disruption"] != "ChangedGPUs":
            return True
        return not self.software.gpus_of(pod["spec"]["nodeName"], pod["metadata"]["uid"]).isdisjoint(fence["gpus"])

    def _claims(self) -> dict[str, JSON]:
        """ResourceClaims by `namespace/name`."""
        return {"/".join(_key(raw)): raw for raw in self.cluster.store.all(RESOURCE_CLAIMS)}

    def _turned_ready(self, policy: JSON) -> None:
        """Ready came True: hardware, Node and marks of every node are as the spec wants them."""
        policy_name = policy["metadata"]["name"]
        for raw in self.cluster.store.all(NODES):
            name = raw["metadata"]["name"]
            if labels_of(raw).get(names.LABEL_POLICY) != policy_name or not selects(policy, raw):
                continue
            self._expect(fence_of(raw) is None, f"{policy_name} Ready while {name} is fenced")
            machine, published = self.software.nodes[name], self._published(name)
            different = difference(policy["spec"], raw, machine, self._site(), published)
            self._expect(not different, f"{policy_name} Ready while {name}: {different}")

    def _site(self) -> dict[str, dict[str, int]]:
        """What the entries of admins' own ConfigMaps mean now; the tests write them for all GPUs alike."""
        nodes = {f"{raw['metadata']['name']}-mig-config" for raw in self.cluster.store.all(NODES)}
        found: dict[str, dict[str, int]] = {}
        for raw in self.cluster.store.all(CONFIG_MAPS):
            if raw["metadata"]["name"] in (*OUR_MAPS, *nodes):
                continue
            try:
                document = yaml.safe_load((raw.get("data") or {}).get("config.yaml", ""))
            except yaml.YAMLError:
                continue
            rows = (document or {}).get("mig-configs") or {}
            lists = {name: row for name, row in rows.items() if isinstance(row, list) and row}
            found |= {name: row[0].get("mig-devices", {}) for name, row in lists.items()}
        return found

    def _node(self, name: str) -> JSON:
        try:
            return self.cluster.store.get(NODES, ("", name))
        except NotFound:
            return {"metadata": {"name": name}, "spec": {}}

    def _policy(self, name: str) -> JSON | None:
        return next((raw for raw in self.cluster.store.all(POLICIES) if raw["metadata"]["name"] == name), None)


def _away(node: JSON) -> bool:
    rows: Iterable[JSON] = node["status"].get("conditions") or ()
    ready = any(row["type"] == "Ready" and row["status"] == "True" for row in rows)
    return not ready or is_cordoned(node) or fence_of(node) is not None


def _key(raw: JSON) -> tuple[str, str]:
    return raw["metadata"].get("namespace", ""), raw["metadata"]["name"]

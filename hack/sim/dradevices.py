"""The devices that DRA drivers publish and claims hold, as the SIMULATED scheduler of workloads.py sees them.

It grants what the real scheduler would (Kubernetes v1.36.3, pkg/scheduler/framework/plugins/dynamicresources): a free
device of the node's pool that every selector of the DeviceClass matches, and that no DeviceTaintRule taints. Selectors
are compared by `&&` and `==` only, and no claim has a toleration but that of the operator's test."""

import re
from collections.abc import Callable, Mapping

from gpusharing.kube.client import (
    DEVICE_CLASSES,
    DEVICE_TAINT_RULES,
    JSON,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    Resource,
)
from gpusharing.kube.raw import part
from gpusharing.planning.snapshot.nvidia import TAINT_TEST

SPECIAL_CLAIM = "resource.kubernetes.io/extended-resource-claim"
"""The annotation of a claim that the scheduler makes for the extended resources of a pod."""
WATCHED = (RESOURCE_SLICES, DEVICE_CLASSES, DEVICE_TAINT_RULES, RESOURCE_CLAIMS)
_TERM = re.compile(r"device\.(?:driver|attributes\['([^']+)'\]\.(\w+)) == (?:'([^']*)'|(\d+))")


def matches(expression: str, driver: str, device: JSON) -> bool:
    for words in expression.split("&&"):
        term = _TERM.fullmatch(words.strip())
        if term is None:
            raise ValueError(f"the simulated scheduler cannot evaluate {words.strip()!r}")
        of, attribute, string, number = term.groups()
        value: object = driver
        if attribute:
            found = (device.get("attributes") or {}).get(attribute, {}) if of == driver else {}
            value = found.get("string", found.get("int"))
        if value != (int(number) if number else string):
            return False
    return True


class DraDevices:
    """What watches show of DRA. Without `taints` the rules are ignored, as without the feature gate."""

    def __init__(self, on_change: Callable[[], None], *, taints: bool = False) -> None:
        self._on_change = on_change
        self._obeys = taints
        self._known: dict[Resource, dict[str, JSON]] = {kind: {} for kind in WATCHED}

    def take(self, resource: Resource, raw: JSON, gone: bool) -> None:
        known, uid = self._known[resource], raw["metadata"]["uid"]
        if gone:
            known.pop(uid, None)
        else:
            known[uid] = raw
        self._on_change()

    def is_tainted(self, driver: str, pool: str) -> bool:
        """Whether a rule with effect NoSchedule names exactly this driver and pool."""
        specs = [
            raw["spec"]
            for raw in self._known[DEVICE_TAINT_RULES].values()
            if raw["spec"]["taint"]["effect"] == "NoSchedule"
        ]
        return self._obeys and any(one["deviceSelector"] == {"driver": driver, "pool": pool} for one in specs)

    def grant_test(self) -> str:
        """Return the request that is granted to the claim of the operator's taint test."""
        return f"device/{'tolerant' if self.is_tainted('test.gpusharing.dev', TAINT_TEST) else 'plain'}"

    def class_for(self, resource: str) -> str:
        """Return the DeviceClass of an extended resource: the newest, then the first by name; else empty."""
        rows = [
            raw for raw in self._known[DEVICE_CLASSES].values() if raw["spec"].get("extendedResourceName") == resource
        ]
        newest = max((raw["metadata"]["creationTimestamp"] for raw in rows), default="")
        return min(
            (raw["metadata"]["name"] for raw in rows if raw["metadata"]["creationTimestamp"] == newest), default=""
        )

    def allocate(self, node: str, wanted: Mapping[str, int]) -> list[JSON] | None:
        """Return free devices of a node for these numbers by DeviceClass; None if there are too few."""
        taken = {
            (one["driver"], one["pool"], one["device"])
            for raw in self._known[RESOURCE_CLAIMS].values()
            for one in part(raw, "status", "allocation", "devices", "results") or ()
        }
        results: list[JSON] = []
        for name, number in sorted(wanted.items()):
            free = [one for one in self._devices(name, node) if one not in taken][:number]
            if len(free) < number:
                return None
            taken.update(free)
            results += [
                {"request": name, "driver": driver, "pool": pool, "device": device} for driver, pool, device in free
            ]
        return results

    def _devices(self, class_name: str, node: str) -> list[tuple[str, str, str]]:
        found = [raw for raw in self._known[DEVICE_CLASSES].values() if raw["metadata"]["name"] == class_name]
        if not found:
            return []
        selectors = [one["cel"]["expression"] for one in found[0]["spec"].get("selectors", ())]
        return [
            (spec["driver"], spec["pool"]["name"], device["name"])
            for spec in (raw["spec"] for raw in self._known[RESOURCE_SLICES].values())
            if spec.get("nodeName") == node and not self.is_tainted(spec["driver"], spec["pool"]["name"])
            for device in spec.get("devices", ())
            if all(matches(expression, spec["driver"], device) for expression in selectors)
        ]


def claim_for(pod: JSON, results: list[JSON]) -> JSON:
    """Return a pod's ResourceClaim; without `resourceClaims` it is one for extended resources."""
    metadata = pod["metadata"]
    owner = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    special = {} if pod["spec"].get("resourceClaims") else {"annotations": {SPECIAL_CLAIM: "true"}}
    return {
        "apiVersion": RESOURCE_CLAIMS.api_version,
        "kind": "ResourceClaim",
        "metadata": {
            "name": f"{metadata['name']}-devices",
            "namespace": metadata["namespace"],
            "ownerReferences": [{**owner, "controller": True}],
            **special,
        },
        "status": {"allocation": {"devices": {"results": results}}},
    }


def claim_status(pod: JSON, claim: JSON) -> JSON:
    name = claim["metadata"]["name"]
    if entries := pod["spec"].get("resourceClaims"):
        return {"resourceClaimStatuses": [{"name": row["name"], "resourceClaimName": name} for row in entries]}
    return {"extendedResourceClaimStatus": {"resourceClaimName": name}}

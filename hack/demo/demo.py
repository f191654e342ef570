"""What the steps of the demo share: reading the cluster, waiting for a state, and showing it. Terms:
docs/design/glossary.md#fence"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpusharing.api.names import ANNOTATION_FENCE, ConditionType
from gpusharing.controller.settings import Settings
from gpusharing.kube.client import GPUNODES, JSON, LEASES, NODES, PODS, POLICIES
from gpusharing.kube.lists import list_of
from hack.demo.columns import POOLS, KubectlView, find, places
from hack.demo.screen import DemoFailed, Screen
from hack.demo.stage import Stage, Written

Status = dict[str, Any]


@dataclass
class Demo:
    """A stage and a screen, with the operations by which the story reads the stage and prints on the screen."""

    stage: Stage
    screen: Screen
    record_to: Path | None = None
    """The file for the states that pictures are drawn from (hack/demo/record.py), or None to record nothing."""

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]], seconds: float = 15.0) -> None:
        """Wait until `condition` holds, `seconds` times the stage's patience at most. Raises DemoFailed."""
        limit = seconds * self.stage.patience
        try:
            async with asyncio.timeout(limit):
                while not await condition():
                    await self.stage.changed()
        except TimeoutError:
            where = f"{await self.stage.show(POOLS)}\n{await self.stage.show(places())}"
            raise DemoFailed(f"this did not happen within {limit:.0f} s: {what}\n{where}") from None

    async def show(self, view: KubectlView) -> None:
        self.screen.command(view.command)
        self.screen.output(await self.stage.show(view))

    async def apply(self, manifest: JSON, how: str) -> None:
        self.screen.command(how)
        self.screen.output(await self.stage.apply(manifest))

    async def policy(self, name: str) -> tuple[JSON, Status]:
        raw = await self.stage.client.get(POLICIES, name)
        status: Status = raw.get("status") or {}
        return raw, status if status.get("observedGeneration") == raw["metadata"]["generation"] else {}

    async def condition(self, name: str, kind: ConditionType) -> JSON:
        """Return a condition of a policy, or an empty object if the present generation does not have it yet."""
        _, status = await self.policy(name)
        rows: list[JSON] = status.get("conditions") or []
        return next((row for row in rows if row["type"] == kind), {})

    async def ready(self, *names: str, seconds: float = 30.0) -> None:
        async def condition() -> bool:
            rows = [await self.condition(name, ConditionType.READY) for name in names]
            return all(row.get("status") == "True" for row in rows)

        await self.until(f"{', '.join(names)} Ready", condition, seconds)

    async def used(self, name: str, text: str) -> None:
        async def shown() -> bool:
            return bool(find((await self.policy(name))[1], ".summary.used") == text)

        await self.until(f"USED {text} of {name}", shown)

    async def pods(self, workload: str) -> list[JSON]:
        """Return the pods whose label `app` names this workload, in all namespaces, without terminating ones."""
        pods = await list_of(self.stage.client, PODS)
        return [
            pod
            for pod in pods
            if pod["metadata"].get("labels", {}).get("app") == workload and "deletionTimestamp" not in pod["metadata"]
        ]

    async def place(self, node: str) -> JSON:
        """Return `status.transition` of a GPUNode, or an empty object if it has none."""
        raw = await self.stage.client.get(GPUNODES, node)
        transition: JSON = (raw.get("status") or {}).get("transition") or {}
        return transition

    async def leader(self) -> str:
        """Return the holder of the operator's Lease, or an empty string if it has none."""
        lease = await self.stage.client.get(LEASES, Settings().lease_name, namespace=Settings().namespace)
        return str((lease.get("spec") or {}).get("holderIdentity") or "")

    async def fence(self, node: str) -> JSON:
        """Return the fence of a Node, the record of its change in flight, or an empty object if there is none."""
        raw = await self.stage.client.get(NODES, node)
        text = (raw["metadata"].get("annotations") or {}).get(ANNOTATION_FENCE)
        record: JSON = json.loads(text) if text else {}
        return record

    async def served(self, pool: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for node in await list_of(self.stage.client, NODES):
            if node["metadata"]["labels"].get("gpusharing.dev/pool") == pool:
                allocatable = (node.get("status") or {}).get("allocatable") or {}
                total.update({name: int(allocatable[name]) for name in allocatable if name.startswith("nvidia.com/")})
        return +total

    async def writes(self, resource: str, since: int = 0) -> list[Written]:
        """Return the operator's writes to one resource after its first `since` writes."""
        return [write for write in (await self.stage.writes())[since:] if write.resource == resource]

    async def nodes_done(self, policy: str) -> tuple[int, int]:
        """Return how many nodes of a policy are verified and schedulable, and how many it has."""
        done, _, total = (find((await self.policy(policy))[1], ".summary.nodes") or "0/0").partition("/")
        return int(done), int(total)

    async def running(self, workload: str, count: int) -> None:
        """Wait until exactly `count` pods of a workload are ready; terminating pods do not count."""

        async def ready() -> bool:
            return sum(is_ready(pod) for pod in await self.pods(workload)) == count

        await self.until(f"{count} pods of {workload} ready", ready)


def is_ready(pod: JSON) -> bool:
    rows = (pod.get("status") or {}).get("conditions") or ()
    return any(row["type"] == "Ready" and row["status"] == "True" for row in rows)


def is_cordoned(node: JSON) -> bool:
    return bool((node.get("spec") or {}).get("unschedulable"))


def holds_gpu_of(pod: JSON, node: str) -> bool:
    """Whether the pod is bound to the node and its containers mention a resource of NVIDIA."""
    requests_gpu = "nvidia.com/" in json.dumps(pod["spec"].get("containers") or [])
    return bool(pod["spec"].get("nodeName") == node and requests_gpu)

"""What the steps of the story share: how they look at the stage, wait for it, and show it."""

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
from gpusharing.kube.paging import list_of
from hack.demo.columns import POOLS, KubectlView, find, places
from hack.demo.screen import DemoFailed, Screen
from hack.demo.stage import Stage, Written

Status = dict[str, Any]


@dataclass
class Demo:
    """A stage and a screen, and how the story looks at the one and writes on the other."""

    stage: Stage
    screen: Screen
    record_to: Path | None = None
    """Where to write down what stands in the middle of the story; None: nowhere."""

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]], seconds: float = 15.0) -> None:
        """Wait for something. Raises DemoFailed with where everything stands."""
        limit = seconds * self.stage.patience
        try:
            async with asyncio.timeout(limit):
                while not await condition():
                    await self.stage.changed()
        except TimeoutError:
            where = f"{await self.stage.show(POOLS)}\n{await self.stage.show(places())}"
            raise DemoFailed(f"within {limit:.0f} s: {what}\n{where}") from None

    async def show(self, view: KubectlView) -> None:
        """A `kubectl get` and its answer."""
        self.screen.command(view.command)
        self.screen.output(await self.stage.show(view))

    async def apply(self, manifest: JSON, how: str) -> None:
        """A `kubectl apply` and its answer."""
        self.screen.command(how)
        self.screen.output(await self.stage.apply(manifest))

    async def policy(self, name: str) -> tuple[JSON, Status]:
        """A policy, and its status as far as it speaks about the present generation, else empty."""
        raw = await self.stage.client.get(POLICIES, name)
        status: Status = raw.get("status") or {}
        return raw, status if status.get("observedGeneration") == raw["metadata"]["generation"] else {}

    async def condition(self, name: str, kind: ConditionType) -> JSON:
        """A condition of the present generation; empty while there is none."""
        _, status = await self.policy(name)
        rows: list[JSON] = status.get("conditions") or []
        return next((row for row in rows if row["type"] == kind), {})

    async def ready(self, *names: str, seconds: float = 30.0) -> None:
        """`kubectl wait --for=condition=Ready`."""

        async def condition() -> bool:
            rows = [await self.condition(name, ConditionType.READY) for name in names]
            return all(row.get("status") == "True" for row in rows)

        await self.until(f"{', '.join(names)} Ready", condition, seconds)

    async def used(self, name: str, text: str) -> None:
        """Wait until the agents have reported how many devices pods hold."""

        async def told() -> bool:
            return bool(find((await self.policy(name))[1], ".summary.used") == text)

        await self.until(f"USED {text} of {name}", told)

    async def pods(self, workload: str) -> list[JSON]:
        """The pods of a workload that are not on their way out."""
        found = await list_of(self.stage.client, PODS)
        return [
            pod
            for pod in found
            if pod["metadata"].get("labels", {}).get("app") == workload
            and "deletionTimestamp" not in pod["metadata"]
        ]

    async def place(self, node: str) -> JSON:
        """`status.transition` of a GPUNode."""
        raw = await self.stage.client.get(GPUNODES, node)
        found: JSON = (raw.get("status") or {}).get("transition") or {}
        return found

    async def leader(self) -> str:
        """Holder of the operator's Lease; empty while there is none."""
        lease = await self.stage.client.get(
            LEASES, Settings().lease_name, namespace=Settings().plan.namespace
        )
        return str((lease.get("spec") or {}).get("holderIdentity") or "")

    async def fence(self, node: str) -> JSON:
        """The record of the change in flight on a Node; empty without one."""
        raw = await self.stage.client.get(NODES, node)
        text = (raw["metadata"].get("annotations") or {}).get(ANNOTATION_FENCE)
        record: JSON = json.loads(text) if text else {}
        return record

    async def served(self, pool: str) -> Counter[str]:
        """Allocatable GPU resources of a pool, without zeros."""
        total: Counter[str] = Counter()
        for node in await list_of(self.stage.client, NODES):
            if node["metadata"]["labels"].get("gpusharing.dev/pool") == pool:
                offered = (node.get("status") or {}).get("allocatable") or {}
                total.update({name: int(offered[name]) for name in offered if name.startswith("nvidia.com/")})
        return +total

    async def writes(self, resource: str, since: int = 0) -> list[Written]:
        """The operator's writes of one kind after the first `since`."""
        return [write for write in (await self.stage.writes())[since:] if write.resource == resource]

    async def nodes_done(self, policy: str) -> tuple[int, int]:
        """Nodes that are verified and schedulable, and all nodes, as the policy counts them."""
        done, _, total = (find((await self.policy(policy))[1], ".summary.nodes") or "0/0").partition("/")
        return int(done), int(total)

    async def running(self, workload: str, count: int) -> None:
        """Wait until so many pods of a workload are ready."""

        async def ready() -> bool:
            return sum(is_ready(pod) for pod in await self.pods(workload)) == count

        await self.until(f"{count} pods of {workload} ready", ready)


def is_ready(pod: JSON) -> bool:
    """The condition Ready of a pod."""
    rows = (pod.get("status") or {}).get("conditions") or ()
    return any(row["type"] == "Ready" and row["status"] == "True" for row in rows)


def is_cordoned(node: JSON) -> bool:
    """By anybody."""
    return bool((node.get("spec") or {}).get("unschedulable"))


def holds_gpu_of(pod: JSON, node: str) -> bool:
    """Whether the pod is on the node and asks for a GPU."""
    asks = "nvidia.com/" in json.dumps(pod["spec"].get("containers") or [])
    return bool(pod["spec"].get("nodeName") == node and asks)

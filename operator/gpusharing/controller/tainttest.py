"""Does the scheduler obey DeviceTaintRules (docs/adr/0079-a-device-taint-rule-for-a-cordon.md)?

It silently ignores them without the feature gate DRADeviceTaintRules (Kubernetes v1.36). So the chart installs a
ReplicaSet with no replicas, and a ResourceSlice with one device of a driver that does not exist. A rule taints the
device, and a pod claims it: first without a toleration and, if that fails, with one. Which of the two requests the
scheduler grants is the answer. No container can start, because no kubelet knows the driver.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import structlog

from gpusharing.kube.client import DEVICE_TAINT_RULES, JSON, PODS, REPLICA_SETS, RESOURCE_CLAIMS, KubeClient
from gpusharing.kube.clock import loop_time
from gpusharing.kube.dra import taint_rule
from gpusharing.kube.errors import AlreadyExists, KubeError, NotFound, Unavailable
from gpusharing.kube.lists import check_identity, list_of
from gpusharing.kube.raw import entries, text
from gpusharing.planning.snapshot.nvidia import TAINT_TEST

log = structlog.get_logger()

DRIVER = "test.gpusharing.dev"
"""The driver of the device. Its pool has the name of the other objects, and so has the label `app` of the pods."""
PERIOD = 600.0
"""Seconds between two checks of the API server's version, or between failed tests."""
VALID = 6 * 3600.0
"""Seconds for which a proof counts."""
IGNORED = "kube-scheduler ignores DeviceTaintRules; enable its feature gate DRADeviceTaintRules"
"""What is wrong if the request without a toleration is granted."""
TRIES = 3
"""How often the scheduler must ignore the rule, because it may not have seen a new rule yet."""
PATIENCE, POLL = 30.0, 0.5
"""Seconds to wait for the controllers and the scheduler, and between two reads of the pod."""


@dataclass(slots=True)
class TaintTest:
    """Tests the scheduler, and remembers the proof in memory."""

    client: KubeClient
    namespace: str
    _proof: tuple[bool, str] = (False, "")
    _version: str = ""
    """Version of the API server at the last test."""
    _tested_at: float = 0.0

    async def repeat(self) -> tuple[bool, str]:
        """Return whether the scheduler obeys DeviceTaintRules, and if not, why; a recent proof is not repeated."""
        proof = self._proof
        try:
            version = await self.client.version()
            fresh = version == self._version and loop_time() - self._tested_at < VALID
            if not (proof[0] and fresh):
                proof = await self._test()
                self._version, self._tested_at = version, loop_time()
        except KubeError as error:
            proof = False, f"the scheduler could not be tested: {error}"
        if proof != self._proof:
            log.info("the scheduler was tested for DeviceTaintRules", works=proof[0], why=proof[1])
        self._proof = proof
        return proof

    async def _test(self) -> tuple[bool, str]:
        rule = taint_rule(TAINT_TEST, {"driver": DRIVER, "pool": TAINT_TEST})
        with suppress(AlreadyExists):  # of a test that was interrupted
            await self.client.create(DEVICE_TAINT_RULES, rule)
        try:
            for _ in range(TRIES):
                await self._scale(0)
                # The pod of an earlier test may have been scheduled before the scheduler saw the rule.
                for _ in range(round(PATIENCE / POLL)):
                    if await self._pod() is None:
                        break
                    await asyncio.sleep(POLL)
                else:
                    raise Unavailable(f"the pod of ReplicaSet {self.namespace}/{TAINT_TEST} does not go")
                await self._scale(1)
                if (proof := await self._read())[0]:
                    break
            return proof
        finally:
            with suppress(NotFound):
                raw = await self.client.get(DEVICE_TAINT_RULES, TAINT_TEST)
                check_identity(DEVICE_TAINT_RULES, raw, "uid")
                await self.client.delete(DEVICE_TAINT_RULES, TAINT_TEST, uid=raw["metadata"]["uid"])
            await self._scale(0)

    async def _scale(self, replicas: int) -> None:
        body = {"spec": {"replicas": replicas}}
        await self.client.patch(REPLICA_SETS, TAINT_TEST, body, namespace=self.namespace, subresource="scale")

    async def _pod(self) -> JSON | None:
        where = {"namespace": self.namespace, "label_selector": f"app={TAINT_TEST}"}
        return next(iter(await list_of(self.client, PODS, **where)), None)

    async def _read(self) -> tuple[bool, str]:
        words = "there is no pod"
        for _ in range(round(PATIENCE / POLL)):
            pod = await self._pod()
            for status in entries(pod, "status", "resourceClaimStatuses"):
                name = text(status, "resourceClaimName")
                claim = await self.client.get(RESOURCE_CLAIMS, name, namespace=self.namespace)
                for result in entries(claim, "status", "allocation", "devices", "results"):
                    works = text(result, "request").endswith("/tolerant")
                    return works, "" if works else IGNORED
            rows = entries(pod, "status", "conditions")
            words = next(filter(None, (text(row, "message") for row in rows)), words)
            await asyncio.sleep(POLL)
        return False, f"ReplicaSet {self.namespace}/{TAINT_TEST} got no device: {words}"

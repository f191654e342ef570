"""The agent's loop: read the GPUs and report what changed.

It is level-triggered: no decision depends on what it remembers. An error that nothing expects does not end the loop: it
is logged with its traceback, counted, and reported, and what it concerns counts as unknown
(docs/adr/0021-unseen-is-unknown.md).
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from gpusharing.agent.allotment import NONE_ALLOCATABLE, Allotment, allotment_of, last_allocatable
from gpusharing.agent.gpunode import Observation, OwnNode, request_of
from gpusharing.agent.library import GPU, Library, LibraryError, Reading, Use, bug_text, in_background
from gpusharing.agent.meter import LAG, HourPeaks, Meter
from gpusharing.agent.podresources import Holdings, PodResources, PodResourcesUnavailable, find_holders
from gpusharing.api.gpunode import Request
from gpusharing.api.names import Phase
from gpusharing.kube.background import Background, in_daemon_thread
from gpusharing.kube.client import GPUNODES, JSON, KubeClient
from gpusharing.kube.clock import Backoff
from gpusharing.kube.errors import KubeError, NotFound
from gpusharing.kube.raw import text

log = logging.getLogger(__name__)

CHANGING = frozenset(phase.value for phase in Phase if phase.in_flight)
"""Phases in which no new pod is scheduled to the node."""
PARTS = ("gpu", "reading", "pods", "meter", "turn")
"""The parts of a turn that go on without each other: a GPU, library, kubelet, meter, and the rest."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Times of the agent's loop, in seconds unless stated otherwise."""

    interval: float = 30.0
    jitter: float = 0.1
    """Fraction by which each wait is varied at random, so that 5,000 agents do not run in step."""
    hung_after: float = 40.0
    """Without persistence mode, the driver takes 1 to 3 s to wake each GPU, and a node has 8 of them."""
    retry_first: float = 1.0
    retry_last: float = 30.0
    meter_lag: float = LAG


class RestartNeeded(Exception):
    """Only a new container can read the GPUs again. The error has been reported, so the process should end."""


class AgentLoop:
    """The agent of one node. Several may run in one event loop.

    What it promises about `GPUNode.spec.request` {id, quiet}:

    - the id is echoed only by a reading that began after the request was seen;
    - `quiet: true` is reported only when the library is closed, and it stays closed until another request arrives;
      with `quietGPUs` it opens again for readings that leave these GPUs alone, which only the metrics show;
    - a report with an error echoes nothing new: it keeps the last known GPUs and the request that they answered.
    """

    def __init__(
        self,
        node_name: str,
        api: KubeClient,
        library: Library,
        pods: PodResources,
        settings: LoopSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        background: Background = in_daemon_thread,
        why_not_alone: Callable[[], str] = lambda: "",
        pod_uids: Callable[[], Mapping[tuple[str, str], str]] = dict,
    ) -> None:
        self.settings = settings or LoopSettings()
        # Counters since the start of the process, for the metrics.
        self.readings_by_outcome = {"ok": 0, "failed": 0, "hung": 0}
        self.reading_seconds = 0.0
        self.writes_by_outcome = {"ok": 0, "failed": 0}
        self.faults_by_part = dict.fromkeys(PARTS, 0)
        self.observed: Observation | None = None
        """The last observation, whether it was written to the server or not; None before the first turn."""
        self.reading: Reading | None = None
        """The last successful reading of this process, or None before it."""
        self.use: tuple[Use, Holdings | None] | None = None
        """The use of the GPUs and who held them then; None if the last turn did not read the GPUs, as while quiet."""
        self.gpus: tuple[GPU, ...] = ()
        """The GPUs as last read, for the metrics; `reading` stands still while only some may be read."""
        self.meter = Meter(self.settings.meter_lag)
        self.peaks = HourPeaks()
        self._allotment: tuple[tuple[Reading, Holdings, str, bool], Allotment] | None = None
        """The last allotment, preceded by the reading, the holdings, the policy and `changing` that it was made from."""
        self._allocatable = NONE_ALLOCATABLE
        self._shown = "", ""
        """Policy and phase of the GPUNode, at the last turn at which it existed."""
        self._api = api
        self._pods = pods
        self._simulated = library.simulated
        self._clock = clock
        self._wake = asyncio.Event()
        self._published: tuple[JSON, Observation] | None = None
        """An observation, preceded by the version of the GPUNode that is known to contain it."""
        self._own = OwnNode(node_name, api, self._wake.set)
        self._read_for = in_background(library, self.settings.hung_after, clock, self._wake.set, background)
        self._backoff = Backoff(self.settings.retry_first, self.settings.retry_last)
        self._write_error = ""
        self._pods_error = ""
        self._read_error = ""
        self._why_not_alone = why_not_alone
        self._pod_uids = pod_uids
        self._other = ""
        """That another agent runs on the node; empty if none does."""
        self._faults: dict[str, str] = {}
        """The last unexpected error of each part, so that one that repeats is logged once."""
        self._turn_error = ""
        self._hopeless = 0
        """How many readings in a row have failed with an error that a new process might not have."""
        self._patience = 0
        """How many such readings the last error allows; 0 if any number."""
        self._last_turn = clock()

    async def run(self) -> None:
        """Follow the GPUNode and report until canceled. Raises RestartNeeded."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._own.follow())
                tasks.create_task(self._turns())
        except ExceptionGroup as group:
            ended, rest = group.split(RestartNeeded)
            if ended is None or rest is not None:
                raise
            raise RestartNeeded(str(ended.exceptions[0])) from None

    def why_not_ready(self) -> str:
        """Return why this agent cannot answer the operator now; empty if it can, also while it is asked for quiet."""
        if error := self._other or self._turn_error or self._own.error or self._write_error:
            return error
        if self._own.node is None:
            return f"GPUNode {self._own.name} does not exist; the agent is waiting for the operator to create it"
        if self.observed is None:
            return "the GPUs have not been read yet"
        return self.observed.error

    def why_not_alive(self) -> str:
        """Return why the process should be restarted, or an empty string. A hung library does not stop the loop."""
        silence = self._clock() - self._last_turn
        limit = 3 * self.settings.interval + self.settings.hung_after
        return "" if silence <= limit else f"the main loop has made no progress for {silence:.0f} s"

    async def cycle(self) -> None:
        """Take one turn: read pods and GPUs, update the meter, and report what changed. Raises RestartNeeded."""
        other, self._other = self._other, self._why_not_alone()
        if self._other != other:
            log.warning(self._other or "no other agent runs on this node any more")
            self._backoff.success()
        if self._other:  # the other one reads, reports and meters
            self.use = self.reading = self.observed = None
            self.gpus = ()
            self._write_error = ""
            return
        node = self._own.node
        if node is None:  # no request and nowhere to report; in the middle of a change NVML must stay closed
            self.use, self._write_error = None, ""
            if self.reading is not None:  # the kubelet still reports who holds what
                self._meter_turn(await self._read_holdings())
            return
        self._shown = text(node, "status", "transition", "policy"), text(node, "status", "transition", "phase")
        request = request_of(node)
        last = self.observed or Observation.of(node)
        holdings = await self._read_holdings()
        used: Use | None = None
        if not last.keeps_closed(request):
            last, used = await self._read(request, last)
        elif request.quiet_gpus:
            used = await self._read_others(request)
        self.use = None if used is None else (used, holdings)
        holders = None
        if request.holders and holdings is not None and self.reading is not None:
            holders = find_holders(holdings, self.reading.gpus, self._pod_uids())
        self.observed = last.held_by(holdings, holders)
        self._meter_turn(holdings)
        await self._publish(self.observed)
        reported = self._own.node is not None and not self._write_error  # else it would be lost with the process
        if self._patience and self._hopeless >= self._patience and reported:
            raise RestartNeeded(self.observed.error)
        current = self._own.node
        if not self.observed.error and self.observed.request_id != (request_of(current).id if current else ""):
            self._wake.set()  # a newer request came while we read

    async def _turns(self) -> None:
        while True:
            self._last_turn = self._clock()
            self._wake.clear()
            try:
                await self.cycle()
                if self._turn_error:
                    self._turn_error = ""
                    self._backoff.success()
            except RestartNeeded:
                raise
            except Exception as bug:  # noqa: BLE001 -- reported, and the next turn begins anew
                await self._report_bug(bug)
            delay = self.settings.interval * random.uniform(1 - self.settings.jitter, 1 + self.settings.jitter)
            if self._write_error or self._turn_error or self._other:
                delay = self._backoff.after_failure()
            with suppress(TimeoutError):
                # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
                async with asyncio.timeout(delay):
                    await self._wake.wait()

    async def _report_bug(self, bug: Exception) -> None:
        # What the turn has read is forgotten, because it may be half done.
        self._turn_error = self._fault("turn", bug)
        self.use = self.reading = None
        self.gpus = ()
        if (node := self._own.node) is None:
            return
        try:
            last = self.observed or Observation.of(node)
            if not last.keeps_closed(request_of(node)):
                self.observed = last.failing(self._turn_error, simulated=self._simulated)
                await self._publish(self.observed)
        except Exception as again:  # noqa: BLE001 -- the probe still says that this agent is not ready
            self._fault("turn", again)

    def _fault(self, part: str, bug: Exception) -> str:
        words = bug_text(bug)
        self.faults_by_part[part] += 1
        if self._faults.get(part) != words:
            log.error("unexpected error", extra={"part": part, "error": words}, exc_info=bug)
        self._faults[part] = words
        return words

    def _meter_turn(self, holdings: Holdings | None) -> None:
        # The meter only counts for people, so a mistake in it must not hold up the report.
        try:
            self.meter.turn(self._clock(), self._current_allotment(holdings))
            if self.reading is not None and holdings is not None:
                self.peaks.turn(self.reading, holdings)
        except Exception as bug:  # noqa: BLE001 -- it is counted and logged, and the report goes on
            self._fault("meter", bug)

    async def _read(self, request: Request, last: Observation) -> tuple[Observation, Use | None]:
        request, result = await self._attempt(request)
        self._patience = result.patience if isinstance(result, LibraryError) else 0
        self._hopeless = self._hopeless + 1 if self._patience else 0
        if not isinstance(result, Reading):
            return last.failing(self._read_error, simulated=self._simulated), None
        self.gpus = result.gpus
        if result == self.reading:
            return last.again(request), result.use
        after = Observation.after(request, result, simulated=self._simulated, last=last)
        self.reading = result
        return after, result.use

    async def _read_others(self, request: Request) -> Use | None:
        """Read the GPUs that may be read while the others change. Nothing is reported: it would prove nothing."""
        _, result = await self._attempt(request, request.quiet_gpus)
        if not isinstance(result, Reading):
            return None
        left = [gpu for gpu in self.gpus if gpu.index in request.quiet_gpus]
        others = [gpu for gpu in result.gpus if gpu.index not in request.quiet_gpus]
        self.gpus = tuple(sorted([*left, *others], key=lambda gpu: gpu.index))
        return result.use

    async def _attempt(self, request: Request, leave: tuple[int, ...] = ()) -> tuple[Request, Reading | Exception]:
        """Read, count and log it; returns the request that the reading is for."""
        request, result, seconds = await self._read_for(request, leave)
        outcome, error = "failed", ""
        if isinstance(result, Reading):
            outcome = "ok"
            self.reading_seconds += seconds
            for bug in result.bugs:
                self._fault("gpu", bug)
        elif isinstance(result, LibraryError):
            outcome = "hung" if result.reason == "NVMLHung" else "failed"
            error = f"{result.reason}: {result}"
        else:
            error = self._fault("reading", result)
        self.readings_by_outcome[outcome] += 1
        if error != self._read_error:
            log.log(
                logging.WARNING if error else logging.INFO,
                "cannot read the GPUs" if error else "the GPUs can be read again",
                extra={"error": error},
            )
        self._read_error = error
        return request, result

    def _current_allotment(self, holdings: Holdings | None) -> Allotment | None:
        if self.reading is None or holdings is None:
            return None
        policy, phase = self._shown
        changing = phase in CHANGING or (self.observed is not None and self.observed.quiet)
        source = (self.reading, holdings, policy, changing)
        if self._allotment is not None:
            last, allotment = self._allotment
            if holdings.allocatable is None and last[1].allocatable is not None:
                # Without the allocatable devices, a pod that holds one replica would be billed for the whole GPU.
                return None
            if last == source:
                return allotment
        self._allocatable = last_allocatable(self.reading, holdings, self._allocatable)
        allotment = allotment_of(self.reading, holdings, policy, changing=changing, known=self._allocatable)
        self._allotment = source, allotment
        return allotment

    async def _read_holdings(self) -> Holdings | None:
        holdings: Holdings | None = None
        try:
            holdings, error = await self._pods.read(), ""
        except PodResourcesUnavailable as unavailable:
            error = str(unavailable)
        except Exception as bug:  # noqa: BLE001 -- which pods hold devices is unknown then
            error = self._fault("pods", bug)
        if error != self._pods_error:
            log.warning(
                "cannot determine which pods use devices"
                if error
                else "the kubelet is again reporting which pods use devices",
                extra={"error": error},
            )
        self._pods_error = error
        return holdings

    async def _publish(self, observed: Observation) -> None:
        node, doubted = self._own.node, self._own.doubted
        # Exactly this version of the GPUNode, as an object in memory, may be known to contain an equal observation.
        version, known = self._published or (None, None)
        if node is None or (not doubted and version is node and known == observed):
            self._write_error = ""
            return
        if (patch := observed.patch({} if doubted else node)) is None:
            self._published, self._write_error = (node, observed), ""
            return
        try:
            written = await self._api.patch(GPUNODES, self._own.name, patch, subresource="status")
        except NotFound:
            self._own.take(None, node)
        except KubeError as error:
            self.writes_by_outcome["failed"] += 1
            if str(error) != self._write_error:
                log.warning("cannot report to the API server", extra={"error": str(error)})
            self._write_error = str(error)
        else:
            self.writes_by_outcome["ok"] += 1
            self._write_error = ""
            self._backoff.success()
            self._own.take(written, node)

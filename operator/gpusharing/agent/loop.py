"""The agent's loop: read the GPUs and report what changed. Level-triggered: no decision depends on what it remembers.

What the agent promises about `GPUNode.spec.request` {id, quiet}:

- the id is echoed only by a reading that began after the request was seen;
- `quiet: true` is reported only when the library is closed, and it stays closed until another request arrives;
- a report with an error echoes nothing new: it keeps the last known GPUs and the request that they answered.

An error that nothing expects does not end the loop: it is logged with its traceback, counted, and reported, and what
it concerns counts as unknown (docs/adr/0021-unseen-is-unknown.md).
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from gpusharing.agent.library import Library, Reading, Use, bug_text
from gpusharing.agent.meter import LAG, NONE_ALLOCATABLE, Allotment, Meter, allotment_of, last_allocatable
from gpusharing.agent.observation import Observation, request_of
from gpusharing.agent.own import OwnNode
from gpusharing.agent.podresources import Holdings, PodResources, PodResourcesUnavailable
from gpusharing.agent.reader import Outcome, Reader
from gpusharing.api.gpunode import Request
from gpusharing.api.names import Phase
from gpusharing.kube.background import Background, in_daemon_thread
from gpusharing.kube.backoff import Backoff
from gpusharing.kube.client import GPUNODES, JSON, KubeClient
from gpusharing.kube.errors import KubeError, NotFound
from gpusharing.kube.raw import text

log = logging.getLogger(__name__)

CHANGING = frozenset(phase.value for phase in Phase if phase.in_flight)
"""Phases in which no new pod is scheduled to the node."""
PARTS = ("gpu", "reading", "pods", "meter", "turn")
"""The parts of a turn that go on without each other: one GPU, the library, the kubelet, the meter, and the rest."""
JITTER = 0.1
"""Default of `LoopSettings.jitter`."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Times of the agent's loop, in seconds unless stated otherwise."""

    interval: float = 30.0
    """Time between two turns if there is no event, on average."""
    jitter: float = JITTER
    """Fraction of the interval by which each wait is shortened or lengthened at random, so that 5,000 agents do not
    run in step."""
    hung_after: float = 40.0
    """A reading that takes longer is reported as hung. Without persistence mode, the driver takes 1 to 3 s to wake
    each GPU, and a node has 8 of them."""
    retry_first: float = 1.0
    """Wait after the first report that the API server did not accept; doubled after each further one."""
    retry_last: float = 30.0
    """The longest such wait."""
    meter_lag: float = LAG
    """How long a new counter of the meter is exported as 0."""


class RestartNeeded(Exception):
    """Only a new container can read the GPUs again. The error has been reported, so the process should end."""


@dataclass(slots=True)
class Stats:
    """Counters since the start of the process, for the metrics."""

    readings: dict[Outcome, int] = field(default_factory=lambda: {"ok": 0, "failed": 0, "hung": 0})
    """Attempts to read the library, by outcome."""
    reading_seconds: float = 0.0
    """Time spent in successful readings."""
    writes: int = 0
    """Patches that the API server accepted."""
    failed_writes: int = 0
    """Patches that it did not accept."""
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    """Unexpected errors, by the part of the agent (PARTS)."""


class AgentLoop:
    """The agent of one node. Several may run in one event loop, each with its own api, library and pods."""

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
    ) -> None:
        """Read the GPUs from `library`, which is called through `background`, and the pods that hold them from `pods`.
        Report to the GPUNode `node_name` through `api`. `settings` are the default ones if None. `clock` returns
        monotonic seconds. Nothing is read or sent before `run`."""
        self.settings = settings or LoopSettings()
        self.stats = Stats()
        self.observed: Observation | None = None
        """The last observation, whether it was written to the server or not; None before the first turn."""
        self.reading: Reading | None = None
        """The last successful reading of this process, or None before it."""
        self.use: tuple[Use, Holdings | None] | None = None
        """What the GPUs are used for, and which pods held them at that time. None if the last turn did not read the
        GPUs, as while quiet."""
        self.meter = Meter(self.settings.meter_lag)
        """Counts how much of the GPUs each tenant has had since this process began."""
        self._last_allotment: tuple[Reading, Holdings, str, bool, Allotment] | None = None
        """The last allotment, preceded by the reading, the holdings, the policy and the value of `changing` that it
        was made from."""
        self._allocatable = NONE_ALLOCATABLE
        """The slices of each device as of the last turn; see `last_allocatable`."""
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
        self._reader = Reader(library, self.settings.hung_after, clock, self._wake.set, background)
        self._backoff = Backoff(self.settings.retry_first, self.settings.retry_last)
        self._write_error = ""
        self._pods_error = ""
        self._faults: dict[str, str] = {}
        """The last unexpected error of each part, so that one that repeats is logged once."""
        self._turn_error = ""
        """The unexpected error that ended the last turn; empty if it was complete."""
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
        """Return the first reason why this agent cannot answer the operator now: its last turn ended with an unexpected
        error, it cannot follow the API server, its last report was not accepted, its GPUNode does not exist, or the
        GPUs have not been read yet or cannot be read. Empty if none of these holds, even if the GPUs are not being read
        because the operator asked for quiet."""
        if error := self._turn_error or self._own.error or self._write_error:
            return error
        if self._own.node is None:
            return (
                f"GPUNode {self._own.name} does not exist; the agent is waiting for the operator to create it"
            )
        if self.observed is None:
            return "the GPUs have not been read yet"
        return self.observed.error

    def why_not_alive(self) -> str:
        """Return the reason why the process should be restarted, or an empty string if a turn began within the last
        three intervals plus `hung_after`. A hung library does not stop the loop."""
        silence = self._clock() - self._last_turn
        limit = 3 * self.settings.interval + self.settings.hung_after
        return "" if silence <= limit else f"the main loop has made no progress for {silence:.0f} s"

    async def cycle(self) -> None:
        """Take one turn: read which pods hold devices, read the GPUs for the current request unless the library has to
        stay closed (`Observation.keeps_closed`), set `observed` and `use`, update the meter, and report if something
        changed (`_publish`). While the library stays closed, only the pods' holdings in `observed` are new, and `use`
        is None. If a newer request came meanwhile and the GPUs can be read, `_turns` is woken, so that the next turn
        follows at once. Raises RestartNeeded (`_end_when_hopeless`).

        While the GPUNode does not exist, nothing is read or reported: `use` becomes None, the error of the last report
        is cleared, and the meter is updated with what pods hold if this process has read the GPUs before.
        """
        node = self._own.node
        if node is None:  # no request and nowhere to report; in the middle of a change NVML must stay closed
            self.use, self._write_error = None, ""
            if self.reading is not None:  # the kubelet still reports who holds what
                self._meter_turn(await self._read_holdings())
            return
        self._shown = (
            text(node, "status", "transition", "policy"),
            text(node, "status", "transition", "phase"),
        )
        request = request_of(node)
        last = self.observed or Observation.of(node)
        holdings = await self._read_holdings()
        used: Use | None = None
        if not last.keeps_closed(request):
            last, used = await self._read(request, last)
        self.use = None if used is None else (used, holdings)
        self.observed = last.held_by(holdings)
        self._meter_turn(holdings)
        await self._publish(self.observed)
        self._end_when_hopeless(self.observed.error)
        current = self._own.node
        if not self.observed.error and self.observed.request_id != (
            request_of(current).id if current else ""
        ):
            self._wake.set()  # a newer request came while we read

    async def _turns(self) -> None:
        """Take turns forever. The next turn follows at an event or after a wait: the interval with its jitter, or a
        growing back-off while reports are not accepted or turns fail. Events during a turn make the next one follow at
        once. Raises RestartNeeded."""
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
            delay = self.settings.interval * random.uniform(
                1 - self.settings.jitter, 1 + self.settings.jitter
            )
            if self._write_error or self._turn_error:
                delay = self._backoff.after_failure()
            with suppress(TimeoutError):
                # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
                async with asyncio.timeout(delay):
                    await self._wake.wait()

    async def _report_bug(self, bug: Exception) -> None:
        """Report an unexpected error that ended a turn. What that turn has read is forgotten, because it may be half
        done. A library that has to stay closed stays closed, so the report is then left as it is."""
        self._turn_error = self._fault("turn", bug)
        self.use = self.reading = None
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
        """Count an unexpected error, log it with its traceback unless this part had the same one last, and return the
        words for it."""
        words = bug_text(bug)
        self.stats.faults[part] += 1
        if self._faults.get(part) != words:
            log.error("unexpected error", extra={"part": part, "error": words}, exc_info=bug)
        self._faults[part] = words
        return words

    def _meter_turn(self, holdings: Holdings | None) -> None:
        # The meter only counts for people, so a mistake in it must not hold up the report.
        try:
            self.meter.turn(self._clock(), self._current_allotment(holdings))
        except Exception as bug:  # noqa: BLE001 -- it is counted and logged, and the report goes on
            self._fault("meter", bug)

    async def _read(self, request: Request, last: Observation) -> tuple[Observation, Use | None]:
        """Read the GPUs, and return the new observation and their use. The observation answers `request`, or an earlier
        one if its reading was under way. If the reading failed or hangs, return `last` with the error, and None.
        Updates `stats` and `reading`, and logs when the error changes. `_hopeless` grows if a new process might not
        have the error, else becomes 0."""
        answer = await self._reader.read(request)
        self.stats.readings[answer.outcome] += 1
        if answer.bug is not None:
            self._fault("reading", answer.bug)
        for bug in answer.reading.bugs if answer.reading is not None else ():
            self._fault("gpu", bug)
        if answer.outcome == "ok":
            self.stats.reading_seconds += answer.seconds
        if answer.error != last.error:
            log.log(
                logging.WARNING if answer.error else logging.INFO,
                "cannot read the GPUs" if answer.error else "the GPUs can be read again",
                extra={"error": answer.error},
            )
        self._hopeless = self._hopeless + 1 if answer.patience else 0
        self._patience = answer.patience
        if answer.reading is None:
            return last.failing(answer.error, simulated=self._simulated), None
        used = answer.reading.use
        if answer.reading == self.reading:
            return last.again(answer.request), used
        after = Observation.after(answer.request, answer.reading, simulated=self._simulated, last=last)
        self.reading = answer.reading
        return after, used

    def _end_when_hopeless(self, error: str) -> None:
        """Raise RestartNeeded if the last readings in a row failed with errors that a new process might not have, and
        there are as many of them as the last error allows (`LibraryError.patience`). Do nothing while the report has
        not been accepted or there is no GPUNode, because the report would be lost with the process. `error` becomes the
        message."""
        reported = self._own.node is not None and not self._write_error
        if self._patience and self._hopeless >= self._patience and reported:
            raise RestartNeeded(error)

    def _current_allotment(self, holdings: Holdings | None) -> Allotment | None:
        """Return who has how much of the GPUs now, or the remembered allotment if nothing has changed. None if
        `holdings` is None, nothing was read yet, or the kubelet no longer reports allocatable devices as it did for the
        remembered one. Policy and phase are those that the GPUNode last had. The node counts as changing in a phase of
        CHANGING and while quiet."""
        if self.reading is None or holdings is None:
            return None
        policy, phase = self._shown
        changing = phase in CHANGING or (self.observed is not None and self.observed.quiet)
        last = self._last_allotment
        if holdings.allocatable is None and last is not None and last[1].allocatable is not None:
            # Without the allocatable devices, a pod that holds one replica would be billed for the whole GPU.
            return None
        if last is not None and last[0] is self.reading and last[1:4] == (holdings, policy, changing):
            return last[4]
        self._allocatable = last_allocatable(self.reading, holdings, self._allocatable)
        allotment = allotment_of(self.reading, holdings, policy, changing=changing, known=self._allocatable)
        self._last_allotment = (self.reading, holdings, policy, changing, allotment)
        return allotment

    async def _read_holdings(self) -> Holdings | None:
        """Return which pods hold devices, or None if the kubelet cannot be reached, does not answer in time, gives no
        valid list, or one that cannot be read. Logs when that error begins, changes or ends."""
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
        """Patch the GPUNode's status unless there is no GPUNode or the server already has this observation, and store
        the server's answer in the cache; an accepted patch is counted and ends the back-off. While the cached version
        is in doubt, all of the observation is sent. A GPUNode that no longer exists is dropped from the cache. Any
        other KubeError is counted, logged if it is new, and stored in `_write_error`, which is cleared once a patch
        succeeds or none is needed."""
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
            self.stats.failed_writes += 1
            if str(error) != self._write_error:
                log.warning("cannot report to the API server", extra={"error": str(error)})
            self._write_error = str(error)
        else:
            self.stats.writes += 1
            self._write_error = ""
            self._backoff.success()
            self._own.take(written, node)

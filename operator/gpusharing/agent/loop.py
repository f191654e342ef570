"""The agent's loop: read the GPUs, report what changed. Level-triggered; nothing is remembered that matters.

Of `GPUNode.spec.request` {id, quiet} the agent promises:

- the id is echoed only by a reading that began after the request was seen;
- `quiet: true` is reported only when the library is closed, and it stays closed until another request comes;
- an error echoes nothing: it keeps the last known GPUs and the request that they answered.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from gpusharing.agent.background import Background, in_daemon_thread
from gpusharing.agent.library import Library, Reading, Use
from gpusharing.agent.meter import LAG, NO_OFFERS, Allotment, Meter, last_offers, standing
from gpusharing.agent.observation import Observation, requested
from gpusharing.agent.own import OwnNode
from gpusharing.agent.podresources import Holdings, PodResources, PodResourcesUnavailable
from gpusharing.agent.reader import Outcome, Reader
from gpusharing.api.gpunode import Request
from gpusharing.api.names import Phase
from gpusharing.kube.backoff import Backoff
from gpusharing.kube.client import GPUNODES, JSON, KubeClient
from gpusharing.kube.errors import KubeError, NotFound
from gpusharing.kube.raw import text

log = logging.getLogger(__name__)

CHANGING = frozenset(phase.value for phase in Phase if phase.in_flight)
"""Phases in which no new pod comes to the node."""
JITTER = 0.1
"""Part of the interval by which a turn may be earlier or later."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Times in seconds."""

    interval: float = 30.0
    """Between two turns without an event, more or less JITTER so that 5,000 agents do not beat in step."""
    hung_after: float = 40.0
    """A reading that takes longer is reported as hung. Without persistence mode, the driver takes 1 to 3 s to wake
    each GPU, and there are 8 of them."""
    retry_first: float = 1.0
    """Wait after the first report that the API server did not accept; doubled after each further one."""
    retry_last: float = 30.0
    """Longest such wait."""
    meter_lag: float = LAG
    """Seconds for which a new counter of the meter is reported as 0."""


class RestartNeeded(Exception):
    """Only a new container can read the GPUs again. The error has been reported; end the process."""


@dataclass(slots=True)
class Stats:
    """Counters since the start of the process, for the metrics."""

    readings: dict[Outcome, int] = field(default_factory=lambda: {"ok": 0, "failed": 0, "hung": 0})
    """Answers of the library, by outcome."""
    reading_seconds: float = 0.0
    """Time spent in successful readings."""
    writes: int = 0
    """Patches that the API server accepted."""
    failed_writes: int = 0
    """Patches that it did not accept."""


def _shown_by(node: JSON) -> tuple[str, str]:
    """Policy and phase."""
    return text(node, "status", "transition", "policy"), text(node, "status", "transition", "phase")


def _jitter() -> float:
    return random.uniform(1 - JITTER, 1 + JITTER)


class AgentLoop:
    """The agent of one node. Many may run in one event loop, each with its own api, library and pods."""

    def __init__(
        self,
        node_name: str,
        api: KubeClient,
        library: Library,
        pods: PodResources,
        settings: LoopSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = _jitter,
        background: Background = in_daemon_thread,
    ) -> None:
        """`background`: where the library is called."""
        self.settings = settings or LoopSettings()
        self.stats = Stats()
        self.observed: Observation | None = None
        """The last observation, whether the server has it or not."""
        self.reading: Reading | None = None
        """The last reading of this process."""
        self.use: tuple[Use, Holdings | None] | None = None
        """What the GPUs are used for, and which pods held them then; None: the last turn read nothing, as while
        quiet."""
        self.meter = Meter(self.settings.meter_lag)
        """How much of the GPUs each tenant has had since this process began."""
        self._stood: tuple[Reading, Holdings, str, bool, Allotment] | None = None
        """The state at the last turn, and what it was made from."""
        self._offers = NO_OFFERS
        """See last_offers."""
        self._shown = "", ""
        """Policy and phase of the GPUNode, as it was last seen."""
        self._api = api
        self._pods = pods
        self._simulated = library.simulated
        self._clock = clock
        self._jitter = jitter
        self._wake = asyncio.Event()
        self._standing: tuple[JSON, Observation] | None = None
        """An observation, and the version of the GPUNode that was found to contain it."""
        self._own = OwnNode(node_name, api, self._wake.set)
        self._reader = Reader(library, self.settings.hung_after, clock, self._wake.set, background)
        self._backoff = Backoff(self.settings.retry_first, self.settings.retry_last)
        self._write_error = ""
        self._pods_error = ""
        self._hopeless = 0
        """Consecutive readings that a new process might have done better."""
        self._patience = 0
        """How many of them the last error allows; 0: any number."""
        self._last_turn = clock()

    async def run(self) -> None:
        """Follow the GPUNode and report until cancelled; raises RestartNeeded, any other end is a bug."""
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
        """Empty when this agent can answer the operator: it reads or is quiet, and reaches the API server."""
        if self._own.error or self._write_error:
            return self._own.error or self._write_error
        if self._own.node is None:
            return f"GPUNode {self._own.name} does not exist; the operator creates it"
        if self.observed is None:
            return "the GPUs have not been read yet"
        return self.observed.error

    def why_not_alive(self) -> str:
        """Empty while the loop turns; a hung library does not stop it."""
        silence = self._clock() - self._last_turn
        limit = 3 * self.settings.interval + self.settings.hung_after
        return "" if silence <= limit else f"the loop has not turned for {silence:.0f} s"

    async def cycle(self) -> None:
        """One turn: read for the request known now, report when something changed."""
        node = self._own.node
        if node is None:  # nothing asked, nowhere to report: in the middle of a change NVML must stay closed
            self.use = None  # nor does anybody know any more who uses what
            if self.reading is not None:  # who holds what the kubelet tells all the same
                self.meter.turn(self._clock(), self._how_it_stands(await self._read_holdings()))
            return
        self._shown = _shown_by(node)
        request = requested(node)
        last = self.observed or Observation.of(node)
        holdings = await self._read_holdings()
        used: Use | None = None
        if not last.keeps_closed(request):
            last, used = await self._read(request, last)
        self.use = None if used is None else (used, holdings)
        self.observed = last.held_by(holdings)
        self.meter.turn(self._clock(), self._how_it_stands(holdings))
        await self._publish(self.observed)
        self._end_when_hopeless(self.observed.error)
        if not self.observed.error and self.observed.request_id != self._asked():
            self._wake.set()  # a newer request came while we read

    async def _turns(self) -> None:
        while True:
            self._last_turn = self._clock()
            self._wake.clear()
            await self.cycle()
            failed = bool(self._write_error)
            delay = self._backoff.after_failure() if failed else self.settings.interval * self._jitter()
            with suppress(TimeoutError):
                # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
                async with asyncio.timeout(delay):
                    await self._wake.wait()

    async def _read(self, request: Request, last: Observation) -> tuple[Observation, Use | None]:
        answer = await self._reader.read(request)
        self.stats.readings[answer.outcome] += 1
        if answer.outcome == "ok":
            self.stats.reading_seconds += answer.seconds
        if answer.error != last.error:
            log.log(
                logging.WARNING if answer.error else logging.INFO,
                "cannot read the GPUs" if answer.error else "reading the GPUs again",
                extra={"error": answer.error},
            )
        self._hopeless = self._hopeless + 1 if answer.patience else 0
        self._patience = answer.patience
        if answer.reading is None:
            return last.failing(answer.error, simulated=self._simulated), None
        used = answer.reading.use
        if answer.reading == self.reading:
            return last.again(answer.request), used
        self.reading = answer.reading
        after = Observation.after(answer.request, answer.reading, simulated=self._simulated, last=last)
        return after, used

    def _end_when_hopeless(self, error: str) -> None:
        """Not before the server has the error: what happened must not be lost with the process."""
        reported = self._own.node is not None and not self._write_error
        if self._patience and self._hopeless >= self._patience and reported:
            raise RestartNeeded(error)

    def _how_it_stands(self, holdings: Holdings | None) -> Allotment | None:
        """None: unknown. What the operator publishes about the node is enough for a bill; it decides nothing."""
        if self.reading is None or holdings is None:
            return None
        policy, phase = self._shown
        changing = phase in CHANGING or (self.observed is not None and self.observed.quiet)
        last = self._stood
        if holdings.offered is None and last is not None and last[1].offered is not None:
            # Without what there is to hold, whoever holds one replica would be billed for the whole.
            return None
        if last is not None and last[0] is self.reading and last[1:4] == (holdings, policy, changing):
            return last[4]
        self._offers = last_offers(self.reading, holdings, self._offers)
        stands = standing(self.reading, holdings, policy, changing=changing, known=self._offers)
        self._stood = (self.reading, holdings, policy, changing, stands)
        return stands

    async def _read_holdings(self) -> Holdings | None:
        holdings: Holdings | None = None
        try:
            holdings, error = await self._pods.read(), ""
        except PodResourcesUnavailable as unavailable:
            error = str(unavailable)
        if error != self._pods_error:
            log.warning(
                "pods' devices unknown" if error else "pods' devices known again", extra={"error": error}
            )
        self._pods_error = error
        return holdings

    async def _publish(self, observed: Observation) -> None:
        node, doubted = self._own.node, self._own.doubted
        if node is None or (not doubted and self._stands(node, observed)):
            self._write_error = ""
            return
        if (patch := observed.patch({} if doubted else node)) is None:
            self._standing, self._write_error = (node, observed), ""
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

    def _stands(self, node: JSON, observed: Observation) -> bool:
        """Whether exactly this version of the object was found to contain exactly this observation."""
        if self._standing is None or self._standing[0] is not node:
            return False
        return self._standing[1] == observed

    def _asked(self) -> str:
        return "" if self._own.node is None else requested(self._own.node).id

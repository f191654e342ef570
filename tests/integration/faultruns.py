"""Runs of the fault matrix: a scenario, an operator behind the proxy, a fault, and what the log of the run says."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from hack.cluster.api import Api, ApiError
from hack.cluster.nodes import create_nodes
from hack.cluster.process import wait_until
from hack.faultproxy import FaultProxy, PlayedRefusal, ProxiedWrite, faults
from tests.fakes.tls import Identity
from tests.faults.cases import CALLS, FaultCase
from tests.faults.invariants import cost_of, find_wrong, find_wrong_end, uid_of
from tests.faults.oracle import FaultOutcome, Reference, differences, without_way
from tests.faults.points import aim_at
from tests.faults.writelog import LoggedCall, WriteLog
from tests.integration.crash import CALM, SECONDS, Scenario, Theatre, end_state, kind_of, wait_for_pods
from tests.integration.crashscenarios import ELSEWHERE, plain_node
from tests.integration.faultrecorder import Recorder
from tests.integration.nursery import Nursery
from tests.integration.product import LEASE, NODES, Pool, Product

LEASE_TIMES = {"LEASE_DURATION": "6s", "RENEW_DEADLINE": "5s", "RETRY_PERIOD": "0.3s", "WEDGE_PENDING": f"{SECONDS}s"}
"""Of runs with two operators: who waits for the Lease of a frozen one waits six seconds instead of fifteen.

A leader that goes without a renewal until the deadline ends and is started again. Where seven runs and other work fill
two cores, a deadline of three seconds was missed once in 277 runs.

What the frozen one had begun is that much older when the other one sees it, and must not look wedged for that: outside
of tests, twenty minutes are far more than fifteen seconds.
"""
SELDOM_RENEWED = {"RETRY_PERIOD": "0.5s"}
"""Nobody waits for the Lease in the other runs, and each renewal costs the machine as much as any write."""
LATE = 20.0
"""Seconds after which a run that is done must have ended as one that nothing disturbed."""
LOOK = 0.1
"""Seconds between two looks whether a run has ended: what looks takes time from the operator."""
LOOKS = 5
"""At least, in the seconds of CALM: a machine that stood still for so long wrote nothing either."""
SPENT = ("set-up", "run", "calm", "look back")


@dataclass
class Lives:
    """The operators of a run, one after the other or side by side; each is behind a door of the proxy."""

    proxy: FaultProxy
    nursery: Nursery
    api: Api
    environment: Mapping[str, str]
    log: Path
    names: Iterator[str]
    forget: Callable[[], None] = lambda: None
    """Called when one has died: takes it off the Lease, as if that had run out."""
    pids: list[int] = field(default_factory=list)
    doors: dict[int, str] = field(default_factory=dict)
    """By pid, also of those that are gone."""
    asleep: int = 0
    frozen: int = 0
    """It has lost the Lease in its sleep, and must end when it wakes; one that never held it waits on."""
    interrupted: set[str] = field(default_factory=set)
    """Doors of those that were frozen in the middle of a step, as of WriteLog."""
    restarts: int = 0
    strikes: int = 0
    """How often it was killed; one that ends for another reason is started again, too."""
    ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        door = next(self.names)
        port = urlsplit(self.proxy.open_door(door)).port
        pid = self.nursery.start({**self.environment, "KUBERNETES_SERVICE_PORT": str(port)}, self.log)
        self.doors[pid] = door
        self.pids.append(pid)

    def strike(self) -> None:
        self.strikes += 1
        self.nursery.strike(self.pids[-1])

    def holder(self) -> str:
        """Who holds the Lease; empty: nobody."""
        try:
            return str(self.api.get(LEASE)["spec"].get("holderIdentity") or "")
        except ApiError:
            return ""

    def leader(self) -> int:
        """The pid of the one that leads; 0 while none of those that run does."""
        holder = self.holder()
        for pid in list(self.pids):
            for write in self.proxy.writes:
                if write.door != self.doors[pid] or "/leases" not in write.path:
                    continue
                if holder and (write.body.get("spec") or {}).get("holderIdentity") == holder:
                    return pid
        return 0

    def steal(self) -> None:
        """Freeze the leader; another one runs, takes the Lease when it has run out, and the leader wakes again."""
        first, held = self.pids[-1], self.holder()
        if not self.nursery.freeze(first):
            self.interrupted.add(self.doors[first])
        self.start()
        wait_until(lambda: self.holder() not in ("", held), 60.0, "the theft")
        self.asleep, self.frozen = first, first if held else 0

    def wake(self) -> None:
        """What was on its way has arrived: the frozen one may go on."""
        self.nursery.wake(self.asleep)

    def replace(self) -> None:
        """Until told otherwise: who has ended is followed by another one."""
        while not self.ended.wait(0.05):
            for pid in [pid for pid in self.pids if self.nursery.has_ended(pid)]:
                self.pids.remove(pid)
                if pid == self.frozen:
                    self.frozen = 0
                    continue
                self.restarts += 1
                self.forget()
                self.proxy.sprung.clear()
                self.start()

    @contextlib.contextmanager
    def running(self, count: int = 1) -> Iterator[None]:
        replacing = threading.Thread(target=self.replace, daemon=True)
        for _ in range(count):
            self.start()
        replacing.start()
        try:
            yield
        finally:
            self.ended.set()
            replacing.join(15)
            for pid in self.pids:
                self.nursery.kill(pid)


@dataclass(frozen=True)
class Around:
    """What goes on around a whole run, instead of a fault at one write."""

    operators: int = 1
    """Side by side."""
    environment: Mapping[str, str] = field(default_factory=dict)
    then: Callable[[Pool, Lives], None] = lambda pool, lives: None
    """What happens when people have done their part and the operator is at work; blocks."""
    fault: Callable[[], faults.Fault] | None = None
    forget: bool = True
    """Whoever has died is taken off the Lease at once, as if that had run out."""
    gaps: bool = False
    """The server forgets its history in this run, so that states may be missing in the log."""
    alike: bool = True
    """It must end as an undisturbed run."""
    patience: float = SECONDS
    """Until it must have ended."""


UNDISTURBED = Around(alike=False)


@dataclass
class FaultTheatre(Theatre):
    """As the crash matrix' Theatre; its runs are recorded and judged by their log."""

    recorder: Recorder = field(kw_only=True)
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT, 0.0))
    """Seconds by what they went into."""
    _doors: Iterator[str] = field(default_factory=lambda: (f"life-{number}" for number in count(1)))
    """Of the operators' lives: one is never used again."""
    _references: dict[str, Reference] = field(default_factory=dict)

    def reference(self, scenario: Scenario) -> Reference:
        if scenario.name not in self._references:
            one, two = self.watch(scenario), self.watch(scenario)
            for run in (one, two):
                assert not run.wrong, f"undisturbed {scenario.name}: {run.wrong}"
                assert run.restarts == 0, f"undisturbed {scenario.name}: {run.restarts} restarts"
            writes = max(write.number for write in self.proxy.writes)
            self._references[scenario.name] = Reference((one, two), writes)
        return self._references[scenario.name]

    def record(self, scenario: Scenario) -> tuple[ProxiedWrite, ...]:
        run = self.watch(scenario)
        assert not run.wrong, f"undisturbed {scenario.name}: {run.wrong}"
        return tuple(write for write in self.proxy.writes if write.number)

    def watch(
        self, scenario: Scenario, case: FaultCase | None = None, at: int = 0, *, around: Around = UNDISTURBED
    ) -> FaultOutcome:
        """Play it once, with a fault from the write `at` on, or with something that goes on all the time.

        `at` counts the writes that a case aims at: those of one sort in the full matrix, otherwise all.
        """
        wanted = self.reference(scenario).state if case or around.alike else None
        marks = [time.monotonic()]
        number = (case and case.number) or at
        log = self.directory / f"{scenario.name}-{case.kind if case else 'reference'}-{number}.log"
        self.clear()
        self.recorder.forget()
        known = self.recorder.gaps
        with self.product.pool(*scenario.cards, gpus=scenario.gpus) as pool:
            wait_for_pods(pool)
            scenario.prepare(pool)
            self.proxy.reset()
            began = self.recorder.newest
            marks.append(time.monotonic())
            with self._operators(scenario, log, case, at, around) as (lives, fault):
                scenario.act(pool)
                around.then(pool, lives)
                marks.append(time.monotonic())
                self._wait_end(pool, scenario, fault, wanted, patience=around.patience)
                marks.append(time.monotonic())
                wrong = list(self._left_over(lives))
                state = without_way(end_state(pool, midway=scenario.midway))
                written = self._log(began, lives)
                assert around.gaps or self.recorder.gaps == known, "states were missed: nothing can be said of this run"
        self.clear()
        outcome = self._outcome(written, state, wrong, lives, fault)
        if case is not None and fault is None:
            outcome = replace(outcome, reached=lives.strikes > 0)  # it was to be killed
        for part, one, two in zip(SPENT, marks, [*marks[1:], time.monotonic()], strict=True):
            self.spent[part] += two - one
        return outcome

    def _wait_end(
        self, pool: Pool, scenario: Scenario, fault: faults.Fault | None, wanted: object, *, patience: float
    ) -> None:
        """Until it is done, nothing more comes of the fault, nothing is written any more, and it has ended as `wanted`.

        What was lost is tried again, but not at once: a status that nobody took is written a publish period later. Another end than wanted is waited for no longer than LATE: then the oracle says what differs.
        """
        began = time.monotonic()
        writes, since, calm_at, ended, looks = -1, began, 0.0, False, 0
        while True:
            now, looks = time.monotonic(), looks + 1
            if now > began + patience:
                so_far = ", ".join(f"{what}: {so}" for what, so in self._ends(pool, scenario, fault).items())
                raise TimeoutError(f"no end after {patience:.0f} s, {so_far}: {json.dumps(end_state(pool))[:3000]}")
            if (seen := len([write for write in self.proxy.writes if write.number])) != writes:
                writes, since, ended, looks = seen, now, False, 0
            elif now - since > (CALM if ended else LOOK):  # a look costs the server as much as a change does
                ended = self._has_ended(pool, scenario, fault)
                since, looks = (since, looks) if ended else (now, 0)
            if ended and now - since > CALM and looks >= LOOKS:
                calm_at = calm_at or now
                if wanted is None or now > calm_at + LATE:
                    return
                if not any(differences(wanted, without_way(end_state(pool, midway=scenario.midway)))):
                    return
            time.sleep(LOOK)

    def _has_ended(self, pool: Pool, scenario: Scenario, fault: faults.Fault | None) -> bool:
        return all(self._ends(pool, scenario, fault).values())

    def _ends(self, pool: Pool, scenario: Scenario, fault: faults.Fault | None) -> dict[str, bool]:
        """What an end takes; what it asks last costs most, and is asked only where the others hold."""
        ends = {"the fault is over": fault is None or fault.over_at() <= time.monotonic(), "one leads": self._leads()}
        return ends | {"done": all(ends.values()) and scenario.done(pool)}

    def _log(self, began: int, lives: Lives) -> WriteLog:
        calls = tuple(map(call_of, self.proxy.writes))
        return WriteLog(self.recorder.states(), calls, began, frozenset(lives.interrupted))

    def _outcome(
        self, log: WriteLog, state: object, wrong: list[str], lives: Lives, fault: faults.Fault | None
    ) -> FaultOutcome:
        hits = fault.hits if fault is not None else lives.strikes
        return FaultOutcome(
            state=state,
            cost=cost_of(log),
            wrong=(*wrong, *find_wrong(log), *find_wrong_end(log)),
            twice=_twice(log),
            restarts=lives.restarts,
            hits=hits,
            reached=fault is None or not fault.at or fault.began is not None,
        )

    @contextlib.contextmanager
    def _operators(
        self, scenario: Scenario, log: Path, case: FaultCase | None, at: int, around: Around
    ) -> Iterator[tuple[Lives, faults.Fault | None]]:
        environment = self.environment | {"GPUSHARING_PUBLISH_PERIOD": f"{scenario.publish_period}s"}
        stolen = case is not None and case.kind == "lease-stolen"
        times = LEASE_TIMES if stolen else SELDOM_RENEWED
        environment |= {f"GPUSHARING_{name}": value for name, value in times.items()}
        environment |= around.environment
        lives = Lives(self.proxy, self.nursery, self.product.api, environment, log, self._doors)
        if around.forget:
            lives.forget = self._forget_holder
        if case is not None and case.aim:
            self.proxy.aim(aim_at(case.aim))
        fault = self._fault(case, at, lives) if case is not None else None
        if around.fault is not None:
            fault = around.fault()
        if fault is not None:
            self.proxy.disturb(fault)
        with lives.running(around.operators):
            yield lives, fault

    def _fault(self, case: FaultCase, at: int, lives: Lives) -> faults.Fault | None:
        if case.kind in ("kill-before", "kill-after"):
            self.proxy.arm(at, lives.strike, before=case.kind == "kill-before")
            return None
        if case.kind == "lease-stolen":
            return faults.HeldWrite(at, "one", act=lives.steal, then=lives.wake)
        return FAULTS[case.kind](self, at, case.scope)

    def compete(self, path: str) -> None:
        with contextlib.suppress(ApiError):
            mark = {"metadata": {"annotations": {"example.com/competitor": str(time.monotonic_ns())}}}
            self.product.api.merge_patch(path, mark)

    def _left_over(self, lives: Lives) -> Iterator[str]:
        """An operator that slept while the Lease was stolen must be gone."""
        if lives.frozen:
            try:
                wait_until(lambda: not lives.frozen, 20, "the one that lost the Lease to end")
            except TimeoutError as error:
                yield str(error)

    def judge(self, scenario: Scenario, case: FaultCase) -> tuple[FaultOutcome, list[str]]:
        """Play a case; what the run did that it must not."""
        reference = self.reference(scenario)
        run = self.watch(scenario, case, case.write(reference.writes))
        killed = case.kind in ("kill-before", "kill-after")
        counted = run.hits if case.kind in (*CALLS, "old-list") else 1
        restarts = 1 if killed and run.hits else 0
        nodes = len(scenario.cards) if scenario.midway else 0
        told = reference.complaints(run, faults=counted, restarts=restarts, nodes=nodes, joins=scenario.joins)
        return run, list(told)


@contextlib.contextmanager
def fault_theatre(product: Product, directory: Path, more: Mapping[str, str] | None = None) -> Iterator[FaultTheatre]:
    """On a control plane on which no other operator runs: there is one Lease. `more`: environment of all operators."""
    yesterday = datetime.now(UTC) - timedelta(days=1)  # an operator whose clock is set back believes it, too
    identity, api = Identity(directory / "tls", made=yesterday), product.api
    with (
        FaultProxy(api.url, api.ca_pem, tls=identity.context()) as proxy,
        Nursery(more) as nursery,
        Recorder(product.plane) as recorder,
    ):
        create_nodes(product.api, [plain_node(ELSEWHERE)])
        theatre = FaultTheatre(product, proxy, nursery, identity.authority, directory, recorder=recorder)
        yield theatre
        theatre.clear()
        product.remove(f"{NODES}/{ELSEWHERE}")


Make = Callable[[FaultTheatre, int, faults.Scope], faults.Fault]


def _times(scope: faults.Scope) -> int:
    return 3 if scope == "one" else 6


FAULTS: dict[str, Make] = {
    "answer-lost": lambda _, at, scope: faults.AnswerLost(at, scope, _times(scope)),
    "request-lost": lambda _, at, scope: faults.RequestLost(at, scope, _times(scope)),
    "competitor": lambda stage, at, scope: faults.Competitor(at, scope, _times(scope), write=stage.compete),
    "throttled": lambda _, at, scope: faults.RefusedCalls(
        at, scope, _times(scope), answers=(PlayedRefusal(429, "too many requests", "TooManyRequests", retry_after=1),)
    ),
    "refused": lambda _, at, scope: faults.RefusedCalls(
        at,
        scope,
        _times(scope),
        answers=(
            PlayedRefusal(500, reason="InternalError"),
            PlayedRefusal(503, reason="ServiceUnavailable"),
            PlayedRefusal(504),
        ),
    ),
    "watch-late": lambda _, at, scope: faults.WatchLate(at, scope),
    "watch-410": lambda _, at, scope: faults.WatchEnds(at, scope),
    "watch-500": lambda _, at, scope: faults.WatchEnds(at, scope, error=faults.BROKEN),
    "events-swallowed": lambda _, at, scope: faults.EventsSwallowed(at, scope, 1 + at % 5),
    "old-list": lambda _, at, scope: faults.OldList(at, scope),
}


def _twice(log: WriteLog) -> tuple[str, ...]:
    evicted = [uid_of(call) for call in log.calls if call.kind == "pods/eviction" and call.accepted]
    return tuple(sorted({uid for uid in evicted if evicted.count(uid) > 1}))


def call_of(write: ProxiedWrite) -> LoggedCall:
    parts = write.path.split("/")[3 if write.path.startswith("/api/") else 4 :]
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = f"{parts[1]}/", parts[2:]
    body = write.body if isinstance(write.body, dict) else {}
    name = parts[1] if len(parts) > 1 else body.get("metadata", {}).get("name", "")
    return LoggedCall(
        identity=write.door,
        method=write.method,
        kind=kind_of(write.path),
        name=f"{namespace}{name}",
        status=write.status,
        body=body,
        since=write.since,
        version=write.version,
    )

"""Runs of the fault matrix: a scenario, an operator behind the proxy, a fault, and what the log of the run says."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from hack.cluster.api import ApiError
from hack.cluster.nodes import create_nodes
from hack.cluster.process import wait_until
from hack.faultproxy import FaultProxy, Refusal, Write, faults
from tests.fakes.tls import Identity
from tests.faults.cases import Case
from tests.faults.invariants import cost_of, find_wrong, uid_of
from tests.faults.oracle import Outcome, Reference, differences
from tests.faults.writelog import Call, WriteLog
from tests.integration.crash import Scenario, Theatre, end_state, kind_of, wait_for_pods
from tests.integration.crashscenarios import ELSEWHERE, plain_node
from tests.integration.faultrecorder import Recorder
from tests.integration.nursery import Nursery
from tests.integration.product import LEASE, NODES, Pool, Product

LEASE_TIMES = {"LEASE_SECONDS": "4", "RENEW_DEADLINE": "3", "RETRY_PERIOD": "0.3"}
"""Of runs with two operators: who waits for the Lease of a frozen one waits four seconds instead of fifteen."""
LATE = 20.0
"""Seconds after which a run that is done must have ended as one that nothing disturbed."""
SPENT = ("set-up", "run", "calm", "look back")


@dataclass
class Lives:
    """The operators of a run, one after the other or side by side; who ends is replaced, as a Deployment does."""

    theatre: "FaultTheatre"
    environment: dict[str, str]
    log: Path
    forget: bool = True
    """Whoever has died is taken off the Lease, as if it had run out."""
    pids: list[int] = field(default_factory=list)
    doors: dict[int, str] = field(default_factory=dict)
    """By pid, also of those that are gone."""
    frozen: int = 0
    """It has lost the Lease in its sleep, and must end when it wakes."""
    restarts: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """One more, behind a door of its own."""
        door = f"life-{self.theatre.next_life()}"
        port = urlsplit(self.theatre.proxy.open_door(door)).port
        environment = {**self.environment, "KUBERNETES_SERVICE_PORT": str(port)}
        pid = self.theatre.nursery.start(environment, self.log)
        self.doors[pid] = door
        self.pids.append(pid)

    def strike(self) -> None:
        """kill -9 of the newest one."""
        self.theatre.nursery.strike(self.pids[-1])

    def steal(self) -> None:
        """Freeze the leader; another one runs, takes the Lease when it has run out, and the leader wakes again."""
        api, first = self.theatre.product.api, self.pids[-1]
        held = api.get(LEASE)["spec"]["holderIdentity"]
        self.theatre.nursery.freeze(first)
        self.start()
        wait_until(
            lambda: api.get(LEASE)["spec"].get("holderIdentity") not in (None, "", held), 60, "the theft"
        )
        self.frozen = first

    def wake(self) -> None:
        """What was on its way has arrived: the frozen one may go on."""
        self.theatre.nursery.freeze(self.frozen, thaw=True)

    def replace(self) -> None:
        """Until told otherwise: who has ended is followed by another one."""
        nursery = self.theatre.nursery
        while not self.ended.wait(0.05):
            for pid in [pid for pid in self.pids if nursery.has_ended(pid)]:
                self.pids.remove(pid)
                if pid == self.frozen:
                    self.frozen = 0
                    continue
                self.restarts += 1
                if self.forget:
                    self.theatre.forget_holder()
                self.theatre.proxy.sprung.clear()
                self.start()

    @contextlib.contextmanager
    def running(self, count: int = 1) -> Iterator[None]:
        """So many side by side, until the end."""
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
                self.theatre.nursery.kill(pid)


@dataclass
class FaultTheatre(Theatre):
    """As the crash matrix' Theatre; its runs are recorded and judged by their log."""

    recorder: Recorder = field(kw_only=True)
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT, 0.0))
    """Seconds by what they went into."""
    _lives: int = 0
    _references: dict[str, Reference] = field(default_factory=dict)

    def next_life(self) -> int:
        """Doors are never used again."""
        self._lives += 1
        return self._lives

    def forget_holder(self) -> None:
        """As if the dead holder's Lease had run out."""
        self._forget_holder()

    def reference(self, scenario: Scenario) -> Reference:
        """Two runs that nothing disturbs."""
        if scenario.name not in self._references:
            one, two = self.watch(scenario), self.watch(scenario)
            for run in (one, two):
                assert not run.wrong, f"undisturbed {scenario.name}: {run.wrong}"
                assert run.restarts == 0, f"undisturbed {scenario.name}: {run.restarts} restarts"
            writes = max(write.number for write in self.proxy.writes)
            self._references[scenario.name] = Reference((one, two), writes)
        return self._references[scenario.name]

    def watch(
        self, scenario: Scenario, case: Case | None = None, at: int = 0, *, gaps: bool = False
    ) -> Outcome:
        """Play it once, with a fault from the write `at` on.

        `gaps`: the server forgets its history in this run, so that states may be missing in the log.
        """
        marks = [time.monotonic()]
        log = self.directory / f"{scenario.name}-{case.kind if case else 'reference'}-{at}.log"
        self.clear()
        self.recorder.forget()
        known = self.recorder.gaps
        with self.product.pool(*scenario.cards, gpus=scenario.gpus) as pool:
            wait_for_pods(pool)
            scenario.prepare(pool)
            self.proxy.reset()
            began = self.recorder.newest
            marks.append(time.monotonic())
            with self._operators(scenario, log, case, at) as (lives, fault):
                scenario.act(pool)
                marks.append(time.monotonic())
                self._wait_calm(pool, scenario)
                if fault is not None and (left := fault.over_at() - time.monotonic()) > 0:
                    time.sleep(left)  # what comes late may bring something about
                if case is not None:
                    self._wait_alike(pool, scenario)
                marks.append(time.monotonic())
                wrong = list(self._left_over(lives))
                state = end_state(pool)
                written = self._log(began)
                assert gaps or self.recorder.gaps == known, (
                    "states were missed: nothing can be said of this run"
                )
        self.clear()
        outcome = self._outcome(written, state, wrong, lives.restarts, fault)
        for part, one, two in zip(SPENT, marks, [*marks[1:], time.monotonic()], strict=True):
            self.spent[part] += two - one
        return outcome

    def _wait_alike(self, pool: Pool, scenario: Scenario) -> None:
        """Until it has ended as undisturbed, and stays so. What was lost is tried again, but not at once: a status that
        nobody took is written a publish period later.
        """
        wanted = self.reference(scenario).state
        with contextlib.suppress(TimeoutError):  # then the oracle says what differs
            wait_until(lambda: not any(differences(wanted, end_state(pool))), LATE, "the same end")
        self._wait_calm(pool, scenario)

    def judge_log(self, began: int) -> tuple[list[str], tuple[str, ...]]:
        """Invariants that broke since `began`, and UIDs of pods that were evicted more than once."""
        log = self._log(began)
        return find_wrong(log), _twice(log)

    def _log(self, began: int) -> WriteLog:
        return WriteLog(self.recorder.states(), tuple(map(call_of, self.proxy.writes)), began)

    def _outcome(
        self, log: WriteLog, state: object, wrong: list[str], restarts: int, fault: faults.Fault | None
    ) -> Outcome:
        hits = fault.hits if fault is not None else restarts
        return Outcome(
            state=state,
            cost=cost_of(log),
            wrong=(*wrong, *find_wrong(log)),
            twice=_twice(log),
            restarts=restarts,
            hits=hits,
        )

    @contextlib.contextmanager
    def _operators(
        self, scenario: Scenario, log: Path, case: Case | None, at: int
    ) -> Iterator[tuple[Lives, faults.Fault | None]]:
        environment = self.environment | {"GPUSHARING_PUBLISH_PERIOD": str(scenario.publish_period)}
        if case is not None and case.kind == "lease-stolen":
            environment |= {f"GPUSHARING_{name}": value for name, value in LEASE_TIMES.items()}
        lives = Lives(self, environment, log)
        fault = self._fault(case, at, lives) if case is not None else None
        if fault is not None:
            self.proxy.disturb(fault)
        with lives.running():
            yield lives, fault

    def _fault(self, case: Case, at: int, lives: Lives) -> faults.Fault | None:
        """The fault of a case; a kill is armed at once."""
        if case.kind in ("kill-before", "kill-after"):
            self.proxy.arm(at, lives.strike, before=case.kind == "kill-before")
            return None
        if case.kind == "lease-stolen":
            return faults.Held(at, "one", act=lives.steal, then=lives.wake)
        return FAULTS[case.kind](self, at, case.scope)

    def compete(self, path: str) -> None:
        """Somebody else changes the object."""
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

    def judge(self, scenario: Scenario, case: Case) -> tuple[Outcome, list[str]]:
        """Play a case; what the run did that it must not."""
        reference = self.reference(scenario)
        run = self.watch(scenario, case, case.write(reference.writes))
        killed = case.kind in ("kill-before", "kill-after")
        counted = (
            run.hits
            if case.kind in ("answer-lost", "request-lost", "competitor", "throttled", "refused")
            else 1
        )
        restarts = 1 if killed and run.hits else 0
        return run, list(reference.complaints(run, faults=counted, restarts=restarts))


@contextlib.contextmanager
def fault_theatre(product: Product, directory: Path) -> Iterator[FaultTheatre]:
    """On a control plane on which no other operator runs: there is one Lease."""
    identity, api = Identity(directory / "tls"), product.api
    with (
        FaultProxy(api.url, api.ca_pem, tls=identity.context()) as proxy,
        Nursery() as nursery,
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
    "throttled": lambda _, at, scope: faults.Refused(
        at,
        scope,
        _times(scope),
        answers=(Refusal(429, "too many requests", "TooManyRequests", retry_after=1),),
    ),
    "refused": lambda _, at, scope: faults.Refused(
        at,
        scope,
        _times(scope),
        answers=(
            Refusal(500, reason="InternalError"),
            Refusal(503, reason="ServiceUnavailable"),
            Refusal(504),
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


def call_of(write: Write) -> Call:
    """As the fold reads it."""
    parts = write.path.split("/")[3 if write.path.startswith("/api/") else 4 :]
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = f"{parts[1]}/", parts[2:]
    body = write.body if isinstance(write.body, dict) else {}
    name = parts[1] if len(parts) > 1 else body.get("metadata", {}).get("name", "")
    return Call(
        identity=write.door,
        method=write.method,
        kind=kind_of(write.path),
        name=f"{namespace}{name}",
        status=write.status,
        body=body,
        since=write.since,
        version=write.version,
    )

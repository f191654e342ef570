"""The operators of a run of the fault matrix: who ends is replaced, as a Deployment does."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from hack.cluster.api import Api, ApiError
from hack.cluster.process import wait_until
from hack.faultproxy import FaultProxy
from tests.integration.nursery import Nursery
from tests.integration.product import LEASE

SECONDS = 60.0


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
        wait_until(lambda: self.holder() not in ("", held), SECONDS, "the theft")
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

"""What a process of the operator is: a standby, which waits for the Lease and reads nothing else, or the leader.

A standby imports none of the modules that only a leader needs (`leading.py`), so it uses less memory
(docs/adr/0085-a-standby-that-knows-nothing.md).
"""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from gpusharing.controller.complaints import Complaints
from gpusharing.kube.lease import LeaderLease

log = structlog.get_logger()


class LeaderHealth(Protocol):
    """Reports whether the parts of a leader work; `health.py` implements it."""

    def dead(self) -> dict[str, str]:
        """Return the problems that only a restart can solve, by the name of each part; empty if there is none."""
        ...

    def unready(self) -> dict[str, str]:
        """Return why the leader cannot decide at present, by the name of each part; empty if it can."""
        ...


@dataclass(slots=True)
class Role:
    """Whether this process stands by or leads, and what its probes answer."""

    lease: LeaderLease
    """The contender for the Lease."""
    health: LeaderHealth | None = None
    """The health of the leader's parts; None until this process leads and has created them."""
    _complaints: Complaints = field(default_factory=Complaints)
    _announced: str = ""
    """The leader that was logged last; empty before the first."""

    def dead(self) -> dict[str, str]:
        """Return the problems that only a restart can solve, by the name of each part. Always empty before this
        process leads."""
        return self.health.dead() if self.health is not None else {}

    def unready(self) -> dict[str, str]:
        """Return why the probe must fail, as a message by the name of each part; empty if this process works. A standby
        works if another process held the Lease when it was last read, and that read succeeded. A new leader does not
        work until its parts exist and are ready."""
        if self.health is not None:
            return self.health.unready()
        if self.lease.acquired.is_set():
            return {"loop": "this process has just become the leader and is starting"}
        if self.lease.error is not None:
            return {"lease": str(self.lease.error) or repr(self.lease.error)}
        return {} if self.lease.holder else {"lease": "nobody is known to hold the Lease yet"}

    def summary(self) -> str:
        """Return what the probes answer if nothing is wrong: `ok`, for a standby followed by the holder of the
        Lease."""
        return "ok" if self.lease.acquired.is_set() else f"ok: standby, {self.lease.holder or 'nobody'} leads"

    async def wait_to_lead(self, seconds: float) -> None:
        """Return as soon as this process leads, and log that it does. Until then, check the Lease every `seconds`: log
        each new leader once, and an error of the Lease as a problem that begins and ends."""
        while not self.lease.acquired.is_set():
            self._log_wait()
            try:
                async with asyncio.timeout(seconds):
                    await self.lease.acquired.wait()
            except TimeoutError:
                continue
        self._complaints.ends("lease")
        log.info("this process is the leader now", claims=len(self.lease.claims))

    def _log_wait(self) -> None:
        """Log who leads if that has changed, or why the Lease cannot be read if that has changed. Log nothing before
        the first answer about the Lease."""
        if (error := self.lease.error) is not None:
            event = "this process is waiting to become the leader"
            self._complaints.begins("lease", event, type(error).__name__, error=str(error) or repr(error))
            return
        self._complaints.ends("lease")
        if self.lease.holder not in ("", self._announced):
            self._announced = self.lease.holder
            log.info("this process stands by; another one is the leader", leader=self.lease.holder)

"""Whether the parts of a leader work: it is dead when only a new process can help, and not ready while too little is known to decide."""

from collections.abc import Callable
from dataclasses import dataclass

from gpusharing.controller.containment import PolicyWatch
from gpusharing.controller.loop import Loop
from gpusharing.kube.clock import loop_time
from gpusharing.kube.lease import LeaderLease

STUCK = 120.0
"""Seconds without progress (progress.py) after which the loop counts as dead. A single call has a deadline of ten seconds."""
SILENT = 200.0
"""Seconds without an event on a watch, after which its connection counts as dead. The server sends a bookmark every minute and ends the watch after five."""


@dataclass(slots=True)
class Health:
    """Reports whether the parts of a running operator work."""

    loop: Loop
    lease: LeaderLease
    watch: PolicyWatch
    clock: Callable[[], float] = loop_time

    def dead(self) -> dict[str, str]:
        """Return the problems that only a restart can solve, by the name of each part."""
        problems = {}
        still = self.clock() - self.loop.progress.last
        if still > STUCK:
            problems["loop"] = (
                f"for {still:.0f} s, no pass has finished and no API call from a pass has received a response"
            )
        for name, source in self.loop.sources.required.items():
            silent = self.clock() - source.last_contact
            if source.synced.is_set() and source.error is None and silent > SILENT:
                problems[name] = f"the API server has sent nothing for {silent:.0f} s"
        return problems

    def unready(self) -> dict[str, str]:
        """Return why the operator cannot decide at present, by the name of each part. Also requests overdue lists."""
        problems = self.dead() | self.loop.sources.revoked() | self.loop.sources.missing()
        for name, source in self.loop.sources.required.items():
            if source.error is not None:
                problems[name] = str(source.error) or repr(source.error)
        if not self.watch.running.is_set():
            problems["policies"] = self.watch.error or "kopf is not watching the policies"
        if not self.lease.is_leader:
            problems["lease"] = str(self.lease.error or "another process is the leader")
        return problems

"""Why the operator does nothing at all. Each reason is logged when it begins and when it ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from gpusharing.controller.complaints import Complaints
from gpusharing.kube.sources import NOT_YET, Sources
from gpusharing.planning.snapshot.records import Claim, FailedNode

log = structlog.get_logger()


class Leader(Protocol):
    """The Lease: whether we lead, and the claims that are kept on it."""

    @property
    def is_leader(self) -> bool:
        """We hold the Lease and renewed it in time."""
        ...

    @property
    def claims(self) -> Mapping[str, Claim]:
        """Claims as last read or written."""
        ...

    @property
    def error(self) -> Exception | None:
        """Why the Lease could not be acquired or renewed; None when it could."""
        ...

    @property
    def claims_error(self) -> str:
        """Why claims or failures on the Lease cannot be read: claims are then made again from the fences."""
        ...

    @property
    def failed_nodes(self) -> Mapping[str, FailedNode]:
        """Failures on record as last read or written, by UID of the Node."""
        ...

    @property
    def restores(self) -> int:
        """How often writes of the Lease have proven that the store was restored from a backup."""
        ...

    async def set_claims(self, claims: Mapping[str, Claim], failed_nodes: Mapping[str, FailedNode]) -> None:
        """Compare-and-swap of all claims and failures."""
        ...


@dataclass(slots=True)
class Idleness:
    """Asked before every pass."""

    leader: Leader
    sources: Sources
    complaints: Complaints
    _led: bool = False
    _refused: set[str] = field(default_factory=set)

    def lasts(self) -> bool:
        """Whether no pass may begin: another process leads, or not everything was read yet."""
        leads, missing = self.leader.is_leader, self.sources.missing()
        self._tell_lease(leads)
        if leads and (why := self.leader.claims_error):
            self.complaints.begins(
                "claims",
                "claims or failures on the Lease cannot be read: slots are counted from the fences, and a policy "
                "that failures of deleted nodes halted goes on",
                why=why,
            )
        else:
            self.complaints.ends("claims")
        self._tell_sources(missing)
        # Nothing waits for the Warnings, because they only explain. Without this line nobody would miss them.
        if (error := self.sources.agent_warnings.error) is None:
            self.complaints.ends("agent warnings")
        else:  # of one kind, whatever the error: a server that asks us to wait answers in turns
            event = "the Warnings about the agent's pods cannot be read"
            self.complaints.begins("agent warnings", event, why=str(error) or repr(error))
        return not leads or bool(missing)

    def _tell_lease(self, leads: bool) -> None:
        if leads:
            self.complaints.ends("lease")
            if not self._led:
                self._led = True
                log.info("leading", claims=len(self.leader.claims))
            return
        error = self.leader.error
        why = str(error) if error is not None else "another process leads, or its Lease has not expired yet"
        event = "no longer leads" if self._led else "waits to lead"
        self.complaints.begins("lease", event, type(error).__name__, why=why)

    def _tell_sources(self, missing: Mapping[str, str]) -> None:
        refused = {name: why for name, why in missing.items() if why != NOT_YET}
        self._refused |= refused.keys()
        if refused:
            kind = " ".join(sorted(self._refused))  # those that come back one by one are not news
            self.complaints.begins("sources", "not everything can be read", kind, sources=refused)
        elif not missing:
            self._refused.clear()
            self.complaints.ends("sources")

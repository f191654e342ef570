"""Reasons why no pass may run. Each is logged when it begins and when it ends.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#claim.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gpusharing.controller.complaints import Complaints
from gpusharing.kube.sources import NOT_YET, Sources
from gpusharing.planning.snapshot.records import Claim, FailedNode


class Leader(Protocol):
    """The Lease: whether this process leads, and the claims that are recorded there."""

    identity: str
    """Names this process, on the Lease and in Events."""

    @property
    def is_leader(self) -> bool:
        """Whether this process holds the Lease and renewed it in time."""

    @property
    def claims(self) -> Mapping[str, Claim]:
        """The claims on the Lease as last read or written, by node name. Empty if they could not be read."""

    @property
    def claims_error(self) -> str:
        """Why claims or failures on the Lease cannot be read; empty if they can. Claims that cannot be read are made
        again from the fences."""

    @property
    def failed_nodes(self) -> Mapping[str, FailedNode]:
        """The failures on record as last read or written, by UID of the Node, without those that cannot be read."""

    @property
    def restores(self) -> int:
        """How often a write of the Lease has proven that the store was restored from a backup."""

    async def set_claims(self, claims: Mapping[str, Claim], failed_nodes: Mapping[str, FailedNode]) -> None:
        """Replace all claims and failures on the Lease by compare-and-swap. Raises LeaseLost if this process does not
        lead any more, and KubeErrors."""


@dataclass(slots=True)
class Idleness:
    """Decides before each pass whether it may run."""

    leader: Leader
    sources: Sources
    complaints: Complaints
    _refused: set[str] = field(default_factory=set)
    """The sources that could not be read at some time since all of them last could."""

    def lasts(self) -> bool:
        """Whether no pass may run, because this process does not lead or some source cannot be relied on, as before its
        first list or after the store was restored (`Sources.missing`, which also requests overdue lists). Logs when
        sources cannot be read and when they can again (`_log_sources`); also logs problems with claims, with revoked
        rights (`Sources.revoked`) or with Warning events, which stop no pass."""
        leads, missing = self.leader.is_leader, self.sources.missing()
        if leads and (why := self.leader.claims_error):
            self.complaints.begins(
                "claims",
                "claims or failures recorded on the Lease cannot be read; until they can, only fences on nodes count"
                " as used slots, and a policy that was halted by failed nodes continues if those nodes have since been"
                " deleted",
                error=why,
            )
        else:
            self.complaints.ends("claims")
        self._log_sources(missing)
        if revoked := self.sources.revoked():
            self.complaints.begins(
                "revoked rights",
                "some objects may no longer be read, so the operator goes on with what it read last; grant the right"
                " again, or restart the operator to let it continue as if there were no such objects",
                " ".join(sorted(revoked)),
                sources=revoked,
            )
        else:
            self.complaints.ends("revoked rights")
        # Nothing waits for the Warning events, because they only explain. Only this log line shows that they are
        # missing.
        if (error := self.sources.agent_warnings.error) is None:
            self.complaints.ends("agent warnings")
        else:  # one kind for all errors, because a server that asks us to wait alternates between them
            event = "Warning events about the agent's pods cannot be read; trying again"
            self.complaints.begins("agent warnings", event, error=str(error) or repr(error))
        return not leads or bool(missing)

    def _log_sources(self, missing: Mapping[str, str]) -> None:
        """Log the sources in `missing` that cannot be read. A warning is repeated only when a further source is added,
        and the end is logged once `missing` is empty. Sources that were merely not listed yet are not logged."""
        refused = {name: why for name, why in missing.items() if why != NOT_YET}
        self._refused |= refused.keys()
        if refused:
            kind = " ".join(sorted(self._refused))  # sources that recover one by one are not logged again
            self.complaints.begins(
                "sources",
                "some objects cannot be read; the operator changes nothing until it can read them",
                kind,
                sources=refused,
            )
        elif not missing:
            self._refused.clear()
            self.complaints.ends("sources")

"""The PodDisruptionBudgets of the cluster as last listed. Until the first answer arrives, nodes whose drain depends on
budgets wait; that is not an error.

Terms: docs/design/glossary.md#hold.
"""

from dataclasses import dataclass
from datetime import timedelta

from gpusharing.kube.client import PDBS, KubeClient
from gpusharing.kube.clock import loop_time
from gpusharing.kube.convert_pods import pdb_view
from gpusharing.kube.crew import Crew
from gpusharing.kube.errors import HeldBack, KubeError, ServerAway, Throttled, Unauthorized
from gpusharing.kube.paging import list_of
from gpusharing.kube.unreadable import converted
from gpusharing.planning.snapshot.podviews import PdbView

LIST_VALID = 15.0
"""Seconds for which a list is valid. It need not be newer, because the API server checks the present budget at each
eviction."""
LIST_VALID_THROTTLED = timedelta(minutes=2)
"""How long a list of budgets, or of the pods of a node, is valid while the API server refuses new ones with 429."""
PATIENCE = 30.0
"""Seconds to wait for a first answer. An error is also reported for this long while the next answer is awaited."""

_KEY = "/budgets"
"""The crew's key for the list; no node has this name."""


@dataclass(slots=True)
class Budgets:
    """Lists all PodDisruptionBudgets on request, one LIST at a time."""

    client: KubeClient
    crew: Crew
    _pdbs: tuple[PdbView, ...] = ()
    _listed: float = float("-inf")
    """When the last list arrived, by the loop's clock."""
    _valid: float = LIST_VALID
    """Seconds for which the last list is valid."""
    _error: str = ""
    """The error of the last list, or an empty string if it succeeded."""
    _failed: float = float("-inf")
    """When that error arrived, by the loop's clock."""
    _waits_since: float | None = None
    """Since when we have been waiting for an answer, by the loop's clock; None while no LIST is awaited."""

    async def find(self) -> tuple[PdbView, ...] | str | None:
        """List the PodDisruptionBudgets again, unless a LIST is still under way, and return all of them. Return a
        message if they cannot be listed or no answer has come for PATIENCE seconds. Return None if the server has not
        answered yet; the caller must then call again. `crew` bounds how long the call waits for the LIST (`Crew.each`),
        and if none of its workers is free, no LIST is sent and the wait for an answer goes on.

        The last list is returned while it is valid, even if the new LIST failed or is still under way. It is valid for
        LIST_VALID seconds, and for LIST_VALID_THROTTLED after a 429 or while calls are on hold. Without a valid list,
        the error of the last LIST is returned for PATIENCE seconds while the next one is awaited. An answer that
        arrives after this call has returned is used by the next call.

        Raises:
            ExceptionGroup: with Unauthorized or ServerAway.
        """
        now = loop_time()
        if self._waits_since is None:
            self._waits_since = now
        await self.crew.each([_KEY], self._read)
        if now - self._listed <= self._valid:
            return self._pdbs
        if self._error and now - self._failed <= PATIENCE:
            return f"the PodDisruptionBudgets cannot be listed: {self._error}"
        if self._waits_since is None or now - self._waits_since <= PATIENCE:
            return None
        return f"the PodDisruptionBudgets cannot be listed: no response within {PATIENCE:.0f} s"

    async def _read(self, _: str) -> None:
        """List the PodDisruptionBudgets, and record them or the error, with the time. The argument is the crew's key
        and is ignored.

        After a 429, and while the call is on hold, the list recorded before stays valid for LIST_VALID_THROTTLED. A
        call on hold was not sent, so the wait for an answer continues, and an error recorded before counts as new.
        Unauthorized and ServerAway are raised and end the wait; other KubeErrors are recorded.
        """
        try:
            pdbs = tuple(converted(PDBS, raw, pdb_view) for raw in await list_of(self.client, PDBS))
        except HeldBack:  # not sent: the wait goes on, and the server's last answer stays valid
            self._valid = LIST_VALID_THROTTLED.total_seconds()
            self._failed = loop_time() if self._error else self._failed
        except (Unauthorized, ServerAway):
            self._waits_since = None
            raise
        except KubeError as error:
            self._valid = LIST_VALID_THROTTLED.total_seconds() if isinstance(error, Throttled) else LIST_VALID
            self._error, self._failed, self._waits_since = str(error), loop_time(), None
        else:
            self._pdbs, self._listed = pdbs, loop_time()
            self._valid, self._error, self._waits_since = LIST_VALID, "", None

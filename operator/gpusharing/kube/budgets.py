"""The PodDisruptionBudgets of the cluster as last listed.

Until the first answer arrives, nodes whose drain depends on budgets wait; that is not an error.
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

BUDGETS_VALID = 15.0
"""Seconds for which a list is valid. It need not be newer, because the API server checks the present budget at each eviction."""
LIST_VALID_THROTTLED = timedelta(minutes=2)
"""How long a list of budgets, or of the pods of a node, is valid while the API server refuses new ones with 429."""
PATIENCE = 30.0
"""Seconds to wait for a first answer. An error is also reported for this long while the next answer is awaited."""


@dataclass(slots=True)
class Budgets:
    """Lists all PodDisruptionBudgets on request, one LIST at a time. All moments are by the loop's clock."""

    client: KubeClient
    crew: Crew
    _pdbs: tuple[PdbView, ...] = ()
    _listed: float = float("-inf")
    _valid: float = BUDGETS_VALID
    """Seconds for which the last list is valid."""
    _error: str = ""
    """Why the last LIST failed; empty if it succeeded."""
    _failed: float = float("-inf")
    """When `_error` arrived."""
    _waits_since: float | None = None
    """Since when we have been waiting for an answer; None while no LIST is awaited."""

    async def find(self) -> tuple[PdbView, ...] | str | None:
        """Return all PodDisruptionBudgets, a message if they cannot be listed, or None if the server has not answered yet.

        An answer that arrives after this call has returned is used by the next call.

        Raises:
            ExceptionGroup: with Unauthorized or ServerAway.
        """
        now = loop_time()
        if self._waits_since is None:
            self._waits_since = now
        await self.crew.each(["/budgets"], self._read)  # a key that no node has
        if now - self._listed <= self._valid:
            return self._pdbs
        if self._error and now - self._failed <= PATIENCE:
            return f"the PodDisruptionBudgets cannot be listed: {self._error}"
        if self._waits_since is None or now - self._waits_since <= PATIENCE:
            return None
        return f"the PodDisruptionBudgets cannot be listed: no response within {PATIENCE:.0f} s"

    async def _read(self, _: str) -> None:
        try:
            pdbs = tuple(converted(PDBS, raw, pdb_view) for raw in await list_of(self.client, PDBS))
        except HeldBack:  # not sent: the wait goes on, and the server's last answer stays valid
            self._valid = LIST_VALID_THROTTLED.total_seconds()
            self._failed = loop_time() if self._error else self._failed
        except (Unauthorized, ServerAway):
            self._waits_since = None
            raise
        except KubeError as error:
            self._valid = LIST_VALID_THROTTLED.total_seconds() if isinstance(error, Throttled) else BUDGETS_VALID
            self._error, self._failed, self._waits_since = str(error), loop_time(), None
        else:
            self._pdbs, self._listed = pdbs, loop_time()
            self._valid, self._error, self._waits_since = BUDGETS_VALID, "", None

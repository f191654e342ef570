"""The PodDisruptionBudgets of the cluster as last listed. A node waits for a pending answer: that is not an error."""

from dataclasses import dataclass
from datetime import timedelta

from gpusharing.kube.client import PDBS, KubeClient
from gpusharing.kube.clock import loop_time
from gpusharing.kube.convert_pods import pdb_view
from gpusharing.kube.crew import Crew
from gpusharing.kube.errors import HeldBack, KubeError, ServerAway, Throttled, Unauthorized
from gpusharing.kube.paging import list_of
from gpusharing.planning.snapshot.podviews import PdbView

KEPT = 15.0
"""Seconds for which a list is valid; the eviction itself checks the present budget."""
KEPT_THROTTLED = timedelta(minutes=2)
"""For how long lists of budgets, and of the pods of a node, are valid while the API server refuses new ones by 429."""
PATIENCE = 30.0
"""Seconds to wait for a first answer, and for which an error stays while we wait for the next one."""

_KEY = "/budgets"
"""The crew's key for the list; no node has this name."""


@dataclass(slots=True)
class Budgets:
    """Lists them when asked; one list at a time."""

    client: KubeClient
    crew: Crew
    _pdbs: tuple[PdbView, ...] = ()
    _listed: float = float("-inf")
    """When, by the loop's clock."""
    _kept: float = KEPT
    """Seconds for which the last list is valid."""
    _error: str = ""
    """The error of the last list; empty when it was answered."""
    _failed: float = float("-inf")
    """When that error came."""
    _waits_since: float | None = None
    """Since when we have been waiting for an answer."""

    async def find(self) -> tuple[PdbView, ...] | str | None:
        """All of them; why they cannot be listed; or None: the server has not answered yet, ask again.

        On a slow server an answer comes after its round is over: the next round has it then.

        Raises:
            ServerAway, Unauthorized: also in a group.
        """
        asked = loop_time()
        if self._waits_since is None:
            self._waits_since = asked
        await self.crew.each([_KEY], self._read)
        if asked - self._listed <= self._kept:
            return self._pdbs
        if self._error and asked - self._failed <= PATIENCE:
            return f"the PodDisruptionBudgets cannot be listed: {self._error}"
        if self._waits_since is None or asked - self._waits_since <= PATIENCE:
            return None
        return f"the PodDisruptionBudgets cannot be listed: no answer within {PATIENCE:.0f} s"

    async def _read(self, _: str) -> None:
        try:
            raws = await list_of(self.client, PDBS)
        except HeldBack:  # not sent: the wait goes on, and the server's last answer stays valid
            self._kept = KEPT_THROTTLED.total_seconds()
            self._failed = loop_time() if self._error else self._failed
        except (Unauthorized, ServerAway):
            self._waits_since = None
            raise
        except KubeError as error:
            self._kept = KEPT_THROTTLED.total_seconds() if isinstance(error, Throttled) else KEPT
            self._error, self._failed, self._waits_since = str(error), loop_time(), None
        else:
            self._pdbs, self._listed = tuple(map(pdb_view, raws)), loop_time()
            self._kept, self._error, self._waits_since = KEPT, "", None

"""Send evictions and forced deletions, and remember the answers (docs/design/drain.md, rows E and T4).

No pod is evicted twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import PODS, KubeClient
from gpusharing.kube.errors import (
    Conflict,
    EvictionBlocked,
    EvictionFailed,
    Forbidden,
    HeldBack,
    Invalid,
    NotFound,
    Throttled,
    Unavailable,
)
from gpusharing.planning.drain.evictions import is_accepted, is_odd, is_seen, remember
from gpusharing.planning.snapshot.actions import Action, Evict, ForceDelete
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.vocabulary.reasons import Reason

log = structlog.get_logger()


@dataclass(slots=True)
class Evictor:
    """Evicts pods, and deletes them by force, for the executor."""

    client: KubeClient
    now: Callable[[], datetime]
    jitter: Callable[[], float]
    first_wait: float
    """Seconds from the first refusal to the next attempt."""
    calls: CallMemory
    on_action: Callable[[Action, str], None]

    def forget(self, snapshot: ClusterSnapshot) -> None:
        """Forget the answers about nodes without a fence, apart from accepted evictions that no LIST shows yet."""
        for name, memories in list(self.calls.evictions.items()):
            node, work = snapshot.nodes.get(name), snapshot.work.get(name)
            if node is not None and node.fence is not None:
                continue
            del self.calls.evictions[name]
            listed_at = work.listed_at if work is not None and not work.error else None
            unseen = {
                uid: memory
                for uid, memory in memories.items()
                if is_accepted(memory) and not is_seen(memory, listed_at)
            }
            if node is not None and unseen:
                self.calls.evictions[name] = unseen

    async def send(self, action: Evict | ForceDelete) -> bool:
        """Evict or delete a pod, unless that was accepted before, and return whether it is accepted now."""
        if is_accepted(self.calls.evictions.get(action.node, {}).get(action.uid)):
            return False
        try:
            answer, message, retry_after = await self._ask(action)
        except HeldBack:
            return False  # no call was sent
        memories = self.calls.evictions.setdefault(action.node, {})
        before = memories.get(action.uid)
        memory = memories[action.uid] = remember(
            answer, message, before, self.now(), self.jitter(), retry_after=retry_after, first_wait=self.first_wait
        )
        where = {"node": action.node, "pod": f"{action.namespace}/{action.name}"}
        if is_accepted(memory):
            if isinstance(action, ForceDelete):
                log.warning("the pod was force-deleted", **where, uid=action.uid)
            return True
        self.on_action(action, memory.reason)
        # A pod that is leaving is not a refusal. A budget may give the same answer every minute for weeks, so it is
        # logged once.
        if answer is not Reason.PODS_LEAVING and (before is None or before.reason is not memory.reason):
            what = f"the API server rejected the {'eviction' if isinstance(action, Evict) else 'deletion'} of a pod"
            log.info(what, **where, reason=memory.reason)
        return False

    async def _ask(self, action: Evict | ForceDelete) -> tuple[Reason, str, float | None]:
        """Send the call; return answer, the server's message, and the seconds to wait if it names them."""
        done, failed = Reason.EVICTED, Reason.EVICTION_ERROR
        if isinstance(action, ForceDelete):
            done, failed = Reason.FORCE_DELETE, Reason.FORCE_DELETE_FAILED
        space, name, uid = action.namespace, action.name, action.uid  # a new pod of that name is safe
        try:
            if isinstance(action, Evict):
                await self.client.evict(space, name, uid)
            else:
                await self.client.delete(PODS, name, namespace=space, uid=uid, grace=action.grace)
        except (NotFound, Conflict) as error:
            # The pod is gone or was replaced (E2, E3); the next LIST shows which. A pod that LISTs keep showing is
            # neither.
            odd = is_odd(self.calls.evictions.get(action.node, {}).get(action.uid))
            return (failed, str(error), None) if odd else (Reason.PODS_LEAVING, "", None)
        except HeldBack:
            raise  # HeldBack is a Throttled, but not an answer of the server
        except EvictionBlocked as error:
            return Reason.PDB, str(error), error.retry_after
        except Throttled as error:
            return Reason.THROTTLED, str(error), error.retry_after
        except EvictionFailed as error:
            return failed, str(error), None
        except Unavailable as error:
            self.calls.unsure.add(action.node)  # it may have been carried out
            return failed, str(error), None
        except Forbidden as error:
            reason = Reason.NAMESPACE_TERMINATING if error.namespace_terminating else Reason.FORBIDDEN
            return reason, str(error), None
        except Invalid as error:
            return Reason.INTERNAL_ERROR, str(error), None
        return done, "", None

"""Send evictions and forced deletions, and remember what the API server answered (docs/design/drain.md, rows E and T4).
No pod is evicted twice."""

from collections.abc import Awaitable, Callable, Mapping
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
from gpusharing.planning.snapshot.podviews import EvictionMemory, NodeWork
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.vocabulary.reasons import Reason

log = structlog.get_logger()


@dataclass(slots=True)
class Evictor:
    """Part of the executor, which documents its fields."""

    client: KubeClient
    now: Callable[[], datetime]
    jitter: Callable[[], float]
    first_wait: float
    """Seconds after the first refusal."""
    calls: CallMemory
    on_action: Callable[[Action, str], None]

    def forget(self, snapshot: ClusterSnapshot) -> None:
        """Forget refusals: they are valid for one drain only, and the next one asks the budgets again.

        An accepted eviction is remembered beyond the drain: a LIST begun before it would show the pod as still to be
        evicted.
        """
        for name, memories in list(self.calls.evictions.items()):
            node = snapshot.nodes.get(name)
            if node is not None and node.fence is not None:
                continue
            del self.calls.evictions[name]
            if node is not None and (kept := _unseen(memories, snapshot.work.get(name))):
                self.calls.evictions[name] = kept

    async def send(self, action: Evict | ForceDelete) -> bool:
        """Evict or delete a pod; True when the server accepted it. Any other answer is remembered. The log names each
        pod that is deleted by force.

        What was accepted is not sent again, whatever the plan says.

        Raises:
            KubeError: what concerns all calls.
        """
        if is_accepted(self.calls.evictions.get(action.node, {}).get(action.uid)):
            return False
        try:
            answer, message, retry_after = await self._ask(action)
        except HeldBack:
            return False  # nothing was sent
        memories = self.calls.evictions.setdefault(action.node, {})
        before = memories.get(action.uid)
        memory = remember(
            answer,
            message,
            before,
            self.now(),
            self.jitter(),
            retry_after=retry_after,
            first_wait=self.first_wait,
        )
        memories[action.uid] = memory
        where = {"node": action.node, "pod": f"{action.namespace}/{action.name}"}
        if is_accepted(memory):
            if isinstance(action, ForceDelete):
                log.warning("pod deleted by force", **where, uid=action.uid)
            return True
        self.on_action(action, memory.reason)
        # Leaving pods are no refusal. A budget may say the same every minute, for weeks.
        if answer is not Reason.PODS_LEAVING and (before is None or before.reason is not memory.reason):
            what = "eviction refused" if isinstance(action, Evict) else "deletion refused"
            log.info(what, **where, reason=memory.reason)
        return False

    def _call(self, action: Evict | ForceDelete) -> Awaitable[None]:
        """The call: both kinds name the UID, so that a new pod of the same name is safe."""
        space, name, uid = action.namespace, action.name, action.uid
        if isinstance(action, Evict):
            return self.client.evict(space, name, uid)
        return self.client.delete(PODS, name, namespace=space, uid=uid, grace=action.grace)

    async def _ask(self, action: Evict | ForceDelete) -> tuple[Reason, str, float | None]:
        """The server's answer, its words, and the seconds that it asks us to wait."""
        retry_after: float | None = None
        done, failed = Reason.EVICTED, Reason.EVICTION_ERROR
        if isinstance(action, ForceDelete):
            done, failed = Reason.FORCE_DELETE, Reason.FORCE_DELETE_FAILED
        try:
            await self._call(action)
        except (NotFound, Conflict) as error:
            # Gone or replaced (E2, E3); the next LIST shows which. A pod that LISTs still show is neither.
            odd = is_odd(self.calls.evictions.get(action.node, {}).get(action.uid))
            answer, message = (failed, str(error)) if odd else (Reason.PODS_LEAVING, "")
        except HeldBack:
            raise  # a Throttled, but nobody's answer
        except EvictionBlocked as error:
            answer, message, retry_after = Reason.PDB, str(error), error.retry_after
        except Throttled as error:
            answer, message, retry_after = Reason.THROTTLED, str(error), error.retry_after
        except EvictionFailed as error:
            answer, message = failed, str(error)
        except Unavailable as error:
            answer, message = failed, str(error)
            self.calls.unsure.add(action.node)  # it may have been carried out
        except Forbidden as error:
            terminating = error.namespace_terminating
            answer, message = Reason.NAMESPACE_TERMINATING if terminating else Reason.FORBIDDEN, str(error)
        except Invalid as error:
            answer, message = Reason.INTERNAL_ERROR, str(error)
        else:
            answer, message = done, ""
        return answer, message, retry_after


def _unseen(memories: Mapping[str, EvictionMemory], work: NodeWork | None) -> dict[str, EvictionMemory]:
    """The accepted evictions whose end no LIST of the node's pods has shown."""
    listed_at = work.listed_at if work is not None and not work.error else None
    return {
        uid: memory
        for uid, memory in memories.items()
        if is_accepted(memory) and not is_seen(memory, listed_at)
    }

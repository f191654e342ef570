"""Which spec a policy has, but for its price and what only stops and starts its rollout: these make no other of it.

Fences and proofs carry it, so that a canary that was proven is still one after a pause (docs/design/drain.md#canary).
"""

import json
from hashlib import sha256

from gpusharing.api.rollout import Rollout
from gpusharing.planning.snapshot.records import Fence, Verified
from gpusharing.planning.snapshot.views import PolicyView

LENGTH = 12
"""Characters of a revision."""
_RUNNING = Rollout()


def find_revision(policy: PolicyView) -> str:
    """The hash of its spec without `rollout.paused`, `rollout.whenPaused` and `cost`; empty: the spec cannot be read.

    Defaults are left out: a field that a newer operator adds makes no other revision of a policy that lacks it.
    """
    if policy.spec is None:
        return ""
    running = {"paused": _RUNNING.paused, "when_paused": _RUNNING.when_paused}
    rollout = policy.spec.rollout.model_copy(update=running)
    spec = policy.spec.model_copy(update={"rollout": rollout, "cost": None})
    wire = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return sha256(json.dumps(wire, sort_keys=True).encode()).hexdigest()[:LENGTH]


def is_of(record: Fence | Verified, policy: PolicyView, revision: str) -> bool:
    """The change went by this policy as it is now. `revision`: the policy's, which nobody works out for each node.

    A record of an older operator names the generation only.
    """
    if record.policy_uid != policy.uid:
        return False
    return record.revision == revision if record.revision else record.generation == policy.generation

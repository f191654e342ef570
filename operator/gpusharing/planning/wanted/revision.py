"""The revision of a policy's spec, computed without its price and without the fields that only stop and start its
rollout.

Fences and proofs record it, so that a proven canary is still one after a pause (docs/design/drain.md#canary).
"""

import json
from hashlib import sha256

from gpusharing.api.policy import Rollout
from gpusharing.planning.snapshot.records import Fence, Verified
from gpusharing.planning.snapshot.views import PolicyView

LENGTH = 12
"""Characters of a revision."""
_RUNNING = Rollout()


def find_revision(policy: PolicyView) -> str:
    """Return the hash of the policy's spec without `rollout.paused`, `rollout.whenPaused` and `cost`; empty if the
    spec cannot be read.

    Defaults are left out: a field that a newer operator adds does not change the revision of a policy without it.
    """
    if policy.spec is None:
        return ""
    running = {"paused": _RUNNING.paused, "when_paused": _RUNNING.when_paused}
    rollout = policy.spec.rollout.model_copy(update=running)
    spec = policy.spec.model_copy(update={"rollout": rollout, "cost": None})
    wire = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return sha256(json.dumps(wire, sort_keys=True).encode()).hexdigest()[:LENGTH]


def is_of(record: Fence | Verified, policy: PolicyView, revision: str) -> bool:
    """Whether a change or a proof followed this policy as it is now. `revision`: the policy's, computed once for all
    nodes.

    A record of an older operator has no revision; the generation of the policy counts instead.
    """
    if record.version.uid != policy.uid:
        return False
    return record.revision == revision if record.revision else record.version == policy.version

"""The revision of a policy: a hash of its spec without the prices and without the fields that only pause and resume
its rollout.

Fences and proofs record it, so that a proven canary still counts after a pause (docs/design/drain.md#canary).
"""

import json
from hashlib import sha256

from gpusharing.api.policy import Rollout
from gpusharing.planning.snapshot.records import Fence, Verified
from gpusharing.planning.snapshot.views import PolicyView

LENGTH = 12
"""The number of characters of a revision."""
_RUNNING = Rollout()
"""A rollout with default values, which is not paused."""


def find_revision(policy: PolicyView) -> str:
    """Return the hash, of LENGTH characters, of the policy's spec without `rollout.paused`, `rollout.whenPaused` and
    `cost`. Empty if the spec cannot be read.

    Fields with default values are left out of the hash. A field that a newer operator adds therefore does not change
    the revision of policies that do not set it.
    """
    if policy.spec is None:
        return ""
    running = {"paused": _RUNNING.paused, "when_paused": _RUNNING.when_paused}
    rollout = policy.spec.rollout.model_copy(update=running)
    spec = policy.spec.model_copy(update={"rollout": rollout, "cost": None})
    wire = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return sha256(json.dumps(wire, sort_keys=True).encode()).hexdigest()[:LENGTH]


def is_of(record: Fence | Verified, policy: PolicyView, revision: str) -> bool:
    """Whether the change or proof in `record` followed this same policy, by its UID, with its present spec. `revision`
    is the revision of the policy, which the caller computes once for all nodes.

    A record by an older operator has no revision. Then the generations are compared instead.
    """
    if record.version.uid != policy.uid:
        return False
    return record.revision == revision if record.revision else record.version == policy.version

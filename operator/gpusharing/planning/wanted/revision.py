"""The revision of a policy's spec, without its price and the fields that only stop and start its rollout.

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
    """The hash of its spec without `rollout.paused`, `rollout.whenPaused` and `cost`; empty: the spec cannot be read.

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
    """Whether the change followed this policy as it is now. `revision`: the policy's, so that it is not computed for
    each node.

    A record of an older operator only names the generation.
    """
    if record.version.uid != policy.uid:
        return False
    return record.revision == revision if record.revision else record.version == policy.version

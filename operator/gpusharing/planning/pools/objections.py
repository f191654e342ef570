"""Why policies are not accepted. A policy that cannot be judged stops only its own nodes."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from gpusharing.planning.pools.hours import Hours
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.stack.acceptance import Terms
from gpusharing.planning.transition.guard import of_policy
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason


def judge_windows(pool: Pool, now: datetime) -> Pool:
    """Return a copy of the pool with what its windows allow. If that cannot be computed, the windows count as closed,
    with a Finding that says so, and none of the pool's nodes starts."""
    try:
        return pool.with_hours(now)
    except Exception as error:  # noqa: BLE001 - one policy must not stop the others (guard.py)
        return replace(pool, judged_hours=Hours(closed=of_policy(pool.policy.name, error)))


def find_objections(
    terms: Mapping[str, Terms], unread: Mapping[str, Exception], pools: Mapping[str, Pool]
) -> dict[str, Finding]:
    """Return why policies are not accepted, by policy; accepted ones are left out. `unread` has the errors of policies
    that cannot be judged, and `pools` may show that a policy's windows cannot be computed. Windows that are closed,
    invalid or too short are no objection."""
    found = {name: one.targets for name, one in terms.items() if isinstance(one.targets, Finding)}
    found |= {name: of_policy(name, error) for name, error in unread.items()}
    closed = ((name, pool.hours.closed) for name, pool in pools.items() if name not in found)
    return found | {
        name: why for name, why in closed if why is not None and why.reason is Reason.POLICY_NOT_JUDGED
    }

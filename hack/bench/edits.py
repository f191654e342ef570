"""How long a person who edits a policy waits for the operator's first write to a Node. Terms:
docs/design/glossary.md#fence"""

import random
import time
from collections.abc import Iterator
from datetime import datetime

from hack.bench.results import Measured, percentile
from hack.bench.testbed import LARGE_SLICES, SMALL_SLICES, Testbed
from hack.cluster.api import in_parallel
from hack.cluster.process import wait_until

POOL = "edit"
WAIT = 120.0
PAUSE = 0.4
"""The longest random pause in seconds between two edits, which keeps them out of step with the operator's passes."""


def reaction(testbed: Testbed, edits: int) -> Iterator[Measured]:
    """Edit the policies of nodes one after another, and yield percentiles of the time to the first write."""
    added = testbed.add_nodes(POOL, edits)
    # Each node gets its own name as pool label, so that each has a policy of its own.
    in_parallel(lambda name: testbed.label_node(name, name), added)
    in_parallel(lambda name: testbed.apply_policy(name, name, SMALL_SLICES), added)
    testbed.wait_ready(added, WAIT)
    testbed.wait_silent()
    chance = random.Random(1)
    times = []
    for name in added:
        time.sleep(chance.uniform(0.0, PAUSE))
        times.append(_first_write(testbed, name))
    testbed.wait_ready(added, WAIT)
    how = f"PATCH of a policy received to fence PATCH received, by the audit log; {edits} edits"
    yield Measured("edit_to_first_write_p50_s", percentile(times, 50), how)
    yield Measured("edit_to_first_write_p99_s", percentile(times, 99), "the same edits")
    testbed.remove(added, added)


def _first_write(testbed: Testbed, name: str) -> float:
    """Return the seconds from the edit of a policy to the operator's first write to its Node, by the audit log."""
    span = testbed.span()
    testbed.edit(name, LARGE_SLICES)
    writes: list[datetime] = []

    def written() -> bool:
        writes[:] = [
            request.at
            for request in testbed.requests(span)
            if request.is_write and request.resource == "nodes" and request.name == name
        ]
        return bool(writes)

    wait_until(written, WAIT, f"a write on node {name}")
    edited: datetime = next(
        request.at
        for request in testbed.requests(span, user=None)
        if request.is_write and request.resource == "gpusharingpolicies" and request.name == name
    )
    return (min(writes) - edited).total_seconds()

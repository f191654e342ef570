"""Two pods of the operator on two real nodes, and what becomes of a change when all processes of one node stop."""

import time
from collections.abc import Callable, Iterator

import pytest
from hack.cluster.process import wait_until
from hack.report import MEASURED
from tests.e2e.incident import Incident, incident
from tests.e2e.pool import Walk, sliced

from hack import launch

pytestmark = pytest.mark.e2e
MOST_MIB = 55.0
"""The most memory that a standby may use (docs/explanation/performance.md#limits)."""
RSS = "print(next(line for line in open('/proc/1/status') if line.startswith('VmRSS')).split()[1])"
LOOK = 0.1
"""Seconds between two reads of the Lease while its holder is about to change."""


@pytest.fixture
def one(walk: Walk) -> Iterator[Incident]:
    with incident(walk) as made:
        yield made


def used_mib(one: Incident, pod: str) -> float:
    """The resident memory of the operator in a pod, in MiB."""
    told = one.walk.site.kubectl("exec", "-n", launch.NAMESPACE, pod, "--", "python3", "-c", RSS)
    return int(told) / 1024


def test_the_standby_leads_and_finishes_the_change_when_the_leaders_node_stops(
    one: Incident, record_property: Callable[[str, object], None]
) -> None:
    site, walk = one.walk.site, one.walk
    walk.wait(lambda: len(one.operator_pods("Running")) == 2, "two operators to run")
    places = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in one.operator_pods()}
    assert len(set(places.values())) == 2, "each pod has a node of its own"
    node = one.begin(sliced(4))
    change, leader = one.fence(node)["op"], one.leader()
    leading = leader.rpartition("-")[0]
    (standby,) = places.keys() - {leading}
    used = used_mib(one, standby)
    record_property(MEASURED, f"a standby uses {used:.1f} MiB, a leader of two nodes {used_mib(one, leading):.1f} MiB")
    assert used <= MOST_MIB
    dead = places[leading]
    began = time.monotonic()
    site.stop(dead)
    stopped = time.monotonic() - began
    silent = time.monotonic()
    wait_until(lambda: one.leader() not in ("", leader), 300.0, "another operator to lead", poll=LOOK)
    seconds = time.monotonic() - silent
    record_property(
        MEASURED,
        f"another operator led {seconds:.1f} s after all processes of the leader's node had stopped"
        f" ({seconds + stopped:.1f} s after the first was killed)",
    )
    assert one.leader().rpartition("-")[0] == standby
    assert one.fence(node)["op"] == change
    site.restart(dead)
    one.ends_well(restarted=(dead,))

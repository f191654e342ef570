"""What happens to a cluster in the middle of a change, on real kubelets: the change goes on, and nobody pays twice."""

import json
import time
from collections.abc import Callable, Iterator
from itertools import cycle, groupby
from pathlib import Path

import pytest
from hack.cluster.api import ApiError
from hack.cluster.audit import AuditedRequest, read_requests
from hack.cluster.process import wait_until
from hack.nvidia.loop import OPERATOR
from hack.realnode.site import Site
from hack.report import MEASURED
from tests.e2e.incident import LEASE, OPERATOR_PODS, Incident, incident, versions, watched_nodes
from tests.e2e.pool import FASTER, MIG, NODES, Walk, sliced

from gpusharing.api.names import ANNOTATION_CLAIMS, ANNOTATION_FENCE
from hack import launch

pytestmark = pytest.mark.e2e
CHANGES = cycle((sliced(4), sliced(3)))
NEXT = "next"
PATIENCE = "--timeout=300s"
FUTURE = {"ofANewerVersion": {"kept": True}}
"""Records grow by optional keys: what a newer version would have written."""
OF_EVERY_OPERATOR = ("leases", "selfsubjectaccessreviews")


@pytest.fixture(scope="module")
def revision(walk: Walk) -> str:
    (release,) = json.loads(walk.site.helm("list", "--output", "json"))
    return str(release["revision"])


@pytest.fixture
def one(walk: Walk, revision: str) -> Iterator[Incident]:
    with incident(walk) as made:
        yield made


def upgrade(site: Site) -> str:
    """`helm upgrade` to an image of another name; the name."""
    name = f"{site.image.reference.rpartition(':')[0]}:{NEXT}"
    for node in site.nodes.values():
        node.ctr("images", "tag", "--force", site.image.reference, name)
    site.helm_install("--set", FASTER, "--set", f"image.tag={NEXT}")
    return name


def images(site: Site) -> set[str]:
    """Of all pods of ours that run or are to run: that of the last `helm test` has ended and keeps its image."""
    spaces = (launch.NAMESPACE, launch.AGENT_NAMESPACE)
    pods = [pod for space in spaces for pod in site.api.list(f"/api/v1/namespaces/{space}/pods")]
    stay = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return {
        one["image"]
        for pod in stay
        if pod["status"]["phase"] in ("Pending", "Running")
        for one in pod["spec"]["containers"]
    }


def boot_id(site: Site, node: str) -> str:
    return str(site.api.get(f"/api/v1/nodes/{node}")["status"]["nodeInfo"]["bootID"])


def grow(site: Site, path: str, annotation: str, *way: str) -> None:
    """Add a key to the record in this annotation, or deeper in it, as a newer version would have done."""
    while True:
        read = site.api.get(path)["metadata"]
        record = json.loads(read["annotations"][annotation])
        place = record
        for key in way:
            place = place[key]
        place.update(FUTURE)
        metadata = {"annotations": {annotation: json.dumps(record)}, "resourceVersion": read["resourceVersion"]}
        try:
            site.api.merge_patch(path, {"metadata": metadata})
        except ApiError as error:
            if error.status != 409:  # somebody else was faster
                raise
        else:
            return


def acts(site: Site, since: int) -> list[AuditedRequest]:
    """What operators have written, but for what one that waits writes too."""
    requests = read_requests(site.plane.audit_log, OPERATOR, start=since)
    return [one for one in requests if one.is_write and one.resource not in OF_EVERY_OPERATOR]


def test_an_upgrade_in_the_middle_of_a_change_which_the_new_operator_finishes(one: Incident) -> None:
    node = one.begin(next(CHANGES))
    change, older = one.fence(node)["op"], one.leader()
    name = upgrade(one.walk.site)
    one.walk.wait(lambda: images(one.walk.site) == {name}, "all pods to be of the new version")
    one.wait_led_by_another(older)
    assert one.fence(node)["op"] == change
    one.ends_well()


def test_a_rollback_in_the_middle_of_a_change_keeps_what_only_the_newer_version_knows(
    one: Incident, revision: str, tmp_path: Path
) -> None:
    site = one.walk.site
    upgrade(site)
    node = one.begin(next(CHANGES))
    change = one.fence(node)["op"]
    grow(site, f"/api/v1/nodes/{node}", ANNOTATION_FENCE)
    grow(site, LEASE, ANNOTATION_CLAIMS, "claims", node)
    with watched_nodes(one.walk, tmp_path / "nodes.json"):
        newer = one.leader()
        site.helm("rollback", "gpusharing", revision, "--wait", PATIENCE)
        one.walk.wait(lambda: images(site) == {site.image.reference}, "all pods to be of the older version")
        one.wait_led_by_another(newer)
        claims = json.loads(site.api.get(LEASE)["metadata"]["annotations"][ANNOTATION_CLAIMS])
        assert FUTURE.items() <= claims["claims"][node].items()
        one.ends_well()
    written = [
        json.loads(version["metadata"]["annotations"].get(ANNOTATION_FENCE, "{}"))
        for version in versions(tmp_path / "nodes.json")
        if version["metadata"]["name"] == node
    ]
    of_this = [fence for fence in written if fence.get("op") == change]
    assert {fence["stage"] for fence in of_this} == {"fenced", "actuating"}
    assert all(FUTURE.items() <= fence.items() for fence in of_this)


def test_the_operators_pod_is_killed_in_the_middle_of_a_change(one: Incident) -> None:
    node = one.begin(next(CHANGES), at_once=2)
    change, killed = one.fence(node)["op"], one.leader()
    pod = one.leading_pod()
    (other,) = set(NODES) - {node}
    one.walk.wait(lambda: one.waits_for_a_place(other), f"{other} to wait for the operator's sake")
    at_once = {"gracePeriodSeconds": 0}
    one.walk.site.api.delete(f"{OPERATOR_PODS}/{pod['metadata']['name']}", at_once)
    one.wait_led_by_another(killed)
    assert one.fence(node)["op"] == change
    one.ends_well()


def test_kubelet_and_containerd_are_restarted_in_the_middle_of_a_change(one: Incident) -> None:
    one.begin(next(CHANGES))
    for node in one.walk.site.nodes.values():
        node.kill_program("containerd")
        node.kill_program("kubelet")
        node.start_containerd()
        node.start_kubelet()
        node.wait_ready()
    one.ends_well()


@pytest.mark.thorough
def test_the_node_in_the_change_is_rebooted_before_its_pods_have_left(one: Incident) -> None:
    node = one.begin(next(CHANGES))
    before = boot_id(one.walk.site, node)
    one.walk.site.reboot(node)
    assert boot_id(one.walk.site, node) != before
    one.ends_well(restarted=(node,))


def test_the_node_with_the_operator_is_drained_by_hand_in_the_middle_of_a_change(one: Incident) -> None:
    site = one.walk.site
    pod = one.leading_pod()
    drained = pod["spec"]["nodeName"]
    (other,) = set(NODES) - {drained}
    one.begin(next(CHANGES))
    one.let_go()
    in_change = f"{other} to be in the change, or past it"
    one.walk.wait(lambda: bool(one.fence(other)) or one.walk.is_ready(), in_change)
    forget = one.bystanders.pop(f"bystander-{drained}")
    site.kubectl("drain", drained, "--ignore-daemonsets", "--delete-emptydir-data", "--force", PATIENCE)
    left = {pod["metadata"]["name"], forget["metadata"]["name"]}
    assert left.isdisjoint(one.pods_on(drained))
    site.kubectl("uncordon", drained)
    one.ends_well()


@pytest.mark.thorough
def test_of_the_two_pods_one_acts_and_the_other_stands_by(one: Incident) -> None:
    site = one.walk.site
    one.walk.wait(lambda: len(one.operator_pods("Running")) == 2, "two operators to run")
    since = one.walk.mark()
    one.begin(next(CHANGES))
    one.ends_well()
    in_order = sorted(acts(site, since), key=lambda request: request.at)
    acted = [pod for pod, _ in groupby(request.pod for request in in_order)]
    assert acted[-1] == one.leader().rpartition("-")[0]
    assert len(set(acted)) == len(acted), "one acts after the other, if at all"
    assert len(one.operator_pods("Running")) == 2


def test_the_node_in_the_change_is_rebooted_after_the_point_of_no_return(one: Incident) -> None:
    node = one.begin(MIG)
    one.let_go()
    one.walk.wait(lambda: one.fence(node).get("stage") != "fenced", "the point of no return")
    one.walk.site.reboot(node)
    one.ends_well(restarted=(node,))


MOST_MIB = 55.0
"""The most memory that a standby may use (docs/explanation/performance.md#limits)."""
RSS = "print(next(line for line in open('/proc/1/status') if line.startswith('VmRSS')).split()[1])"
LOOK = 0.1
"""Seconds between two reads of the Lease while its holder is about to change."""


def used_mib(one: Incident, pod: str) -> float:
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
    what = "after all processes of the leader's node had stopped"
    killed = f"{seconds + stopped:.1f} s after the first was killed"
    record_property(MEASURED, f"another operator led {seconds:.1f} s {what} ({killed})")
    assert one.leader().rpartition("-")[0] == standby
    assert one.fence(node)["op"] == change
    site.restart(dead)
    one.ends_well(restarted=(dead,))

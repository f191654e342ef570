"""The arithmetic of `make bench`: no clock and no cluster. And its tenants are seen by the agent's own code."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from hack.bench import image, large, results
from hack.bench import testbed as beds
from hack.bench.__main__ import BenchPart, Sizes, on_one_testbed, paced
from hack.bench.agent import SeenTenants, Tenant, occupied, tenants_of
from hack.bench.results import AIMS, Aim, Lost, Measured
from hack.bench.testbed import count
from hack.cluster.audit import AuditedRequest
from hack.nvmlsim.simulator import Simulator
from tests.agent.nvml_machine import in_process, needs_compiler, read

from gpusharing.agent.kubelet import KubeletPodResources
from gpusharing.agent.library import PodID
from gpusharing.agent.processes import Processes, pod_names

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)


def request(verb: str, resource: str, path: str = "", *, group: str = "") -> AuditedRequest:
    return AuditedRequest("operator", verb, group, resource, "", "x", 200, NOW, "", path)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3, 1, 2], 50, 2),
        ([3, 1, 2, 4], 50, 2),
        (list(range(1, 51)), 99, 50),
        (list(range(1, 101)), 99, 99),
        ([7], 1, 7),
    ],
)
def test_a_percentile_is_one_of_the_values(values: list[float], percent: float, expected: float) -> None:
    assert results.percentile(values, percent) == expected


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        results.percentile([], 50)


def test_an_aim_is_a_limit_from_above_or_from_below() -> None:
    assert [Aim(3).met(value) for value in (2.9, 3, 3.1)] == [True, True, False]
    assert [Aim(0.8, at_least=True).met(value) for value in (0.7, 0.8, 0.9)] == [False, True, True]


def test_the_table_says_what_misses_and_gives_no_verdict_without_an_aim() -> None:
    shown = results.table(
        [Measured("idle_writes_60s", 2, "a"), Measured("rss_idle_mib", 64, "b"), Measured("other", 1, "c")]
    )
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["idle_writes_60s", "2", "<=", "0", "MISSED", "a"],
        ["rss_idle_mib", "64", "<=", "65", "ok", "b"],
        ["other", "1", "c"],
    ]


def test_cpu_time_is_compared_as_it_would_be_at_the_reference_pace_and_shown_as_it_was() -> None:
    twice_as_slow = 2 * results.REFERENCE_PACE_MS
    slow = [
        Measured("plan_5000_nodes_full_ms", 480, "a", twice_as_slow),
        Measured("cli_help_ms", 310, "b", twice_as_slow),
        Measured("rss_idle_mib", 66, "c", twice_as_slow),
        Measured("plan_5000_nodes_full_ms", 480, "nobody looked at the pace"),
    ]
    assert [line.split()[1:-1] for line in results.table(slow[:3]).splitlines()[1:]] == [
        ["480", "240", "<=", "250", "ok"],
        ["310", "155", "<=", "150", "MISSED"],
        ["66", "<=", "65", "MISSED"],
    ]
    assert [one.compared for one in slow] == [240, 155, 66, 480]


def test_each_result_has_the_pace_before_and_after_it() -> None:
    paces = iter([100.0, 140.0, 60.0])
    found = list(paced(iter([Measured("a", 1, ""), Measured("b", 2, "")]), lambda: next(paces)))
    assert [(one.name, one.value, one.pace_ms) for one in found] == [("a", 1, 120), ("b", 2, 100)]


def test_a_part_that_fails_is_told_and_costs_no_other_number(tmp_path: Path) -> None:
    opened: list[float] = []

    @contextmanager
    def testbed(factor: float, **_: object) -> Iterator[beds.Testbed]:
        opened.append(factor)
        yield cast("beds.Testbed", None)

    def fails(testbed: beds.Testbed, sizes: Sizes) -> Iterator[Measured]:
        yield Measured("rss_idle_mib", 64, "before it failed")
        raise TimeoutError("in vain")

    def measures(testbed: beds.Testbed, sizes: Sizes) -> Iterator[Measured]:
        yield Measured("idle_writes_60s", 0, "after it")

    waiting = [BenchPart(("rss_idle_mib", "rss_1000_nodes_mib"), fails), BenchPart(("idle_writes_60s",), measures)]
    lost: list[Lost] = []
    found = []
    while waiting:
        found += list(on_one_testbed(waiting, Sizes(), lost, testbed))
    assert len(opened) == 2, "the second part ran where the first one had left something behind"
    assert [line.split()[:5] for line in results.table(found, lost).splitlines()[1:]] == [
        ["rss_idle_mib", "64", "<=", "65", "ok"],
        ["idle_writes_60s", "0", "<=", "0", "ok"],
        ["rss_1000_nodes_mib", "-", "<=", "75", "FAILED"],
    ]
    results.write(tmp_path / "bench.json", found, {}, lost)
    assert json.loads((tmp_path / "bench.json").read_text()) == {
        "rss_idle_mib": 64,
        "idle_writes_60s": 0,
        "rss_1000_nodes_mib.failed": "TimeoutError: in vain",
    }


def test_the_file_is_flat(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench.json"
    results.write(path, [Measured("rss_idle_mib", 64.123456789, "b", 81.4)], {"cores": 2})
    assert json.loads(path.read_text()) == {"rss_idle_mib": 64.12346, "rss_idle_mib.pace_ms": 81, "machine.cores": 2}


def test_polls_of_a_drain_are_told_from_other_reads_and_leases_are_left_out() -> None:
    polls = [
        request("list", "pods", "/api/v1/pods?limit=500&fieldSelector=spec.nodeName%3Dgpu-01"),
        request("list", "poddisruptionbudgets", "/apis/policy/v1/poddisruptionbudgets?limit=500"),
    ]
    others = [
        request("list", "pods", "/api/v1/pods?limit=500&fieldSelector=spec.nodeName%3D,status.phase%3DPending"),
        request("list", "gpusharingpolicies"),
        request("get", "leases"),
        request("watch", "nodes"),
    ]
    writes = [request("patch", "nodes"), request("create", "pods/eviction"), *[request("patch", "leases")] * 5]
    counts = count([*polls, *others, *writes], claim_writes=2)
    assert (counts.polls, counts.reads, counts.node_writes, counts.writes) == (2, 2, 1, 4)
    assert counts.by_resource == "2 leases, 1 nodes, 1 pods/eviction"


def test_actuation_lasts_from_the_second_write_to_the_last_one_of_the_node_software_before_the_release() -> None:
    own = [NOW + timedelta(seconds=second) for second in (0, 2, 10)]
    theirs = [NOW + timedelta(seconds=second) for second in (3, 8, 12)]
    assert large.actuation_seconds((own, theirs)) == 6


def test_every_aim_of_the_issue_has_a_part_that_measures_it() -> None:
    from hack.bench.__main__ import BILLED, PARTS, PLANNED, TYPED

    assert {name for part in PARTS for name in part.metrics} | {*BILLED, *PLANNED, *TYPED} == set(AIMS)


def test_the_lock_and_the_dockerfile_are_read_as_the_image_is_built() -> None:
    lock = "aiohttp==3.14.5 \\\n    --hash=sha256:00\nh2==4.4.1 \\\n    # via x==2\n"
    assert image.locked_names(lock) == ["aiohttp", "h2"]
    assert image.glibc_settings() == {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"}


def machine(folder: Path) -> Simulator:
    """A whole GPU and one with two MIG instances. SIMULATED."""
    simulator = Simulator.create(folder / "state", ["h100-80gb", "h100-80gb"], seed="tenants")
    in_process(simulator, "partition", "1", "3g.40gb", "1g.10gb")
    return simulator


@needs_compiler
async def test_each_device_is_held_by_a_pod_and_used_by_a_process_of_it(tmp_path: Path) -> None:
    simulator = machine(tmp_path)
    names = {"nvidia.com/gpu", "nvidia.com/mig-3g.40gb", "nvidia.com/mig-1g.10gb"}
    assert {tenant.resource for tenant in tenants_of(simulator)} == names
    with occupied(simulator, tmp_path) as told:
        client = KubeletPodResources(Path(told.environment["POD_RESOURCES_SOCKET"]), 60, 60)
        with closing(client):
            holdings = await client.read()
        using = {process["device"]: process for process in read(simulator)["use"]["processes"]}
        processes = Processes(pod_named=pod_names(Path(told.environment["POD_LOGS"])))
        pods = {device: processes.pod_of(process["pid"]) for device, process in using.items()}
    devices = {tenant.device for tenant in told.tenants}
    assert {device for each in holdings.by_pod for device in each.devices} == devices
    assert {device for _, device in holdings.allocatable or ()} == devices
    assert holdings.pods == len(told.tenants)
    assert using.keys() == devices
    named = {t.device: PodID(t.uid, t.namespace, t.pod) if told.attributed else None for t in told.tenants}
    assert pods == named
    assert not simulator.show()["processes"], "and nobody when it is over"


def test_the_line_says_whether_processes_are_in_the_cgroups_of_pods() -> None:
    tenants = (Tenant("a", "x", "nvidia.com/gpu", "GPU-1", 0), Tenant("a", "y", "nvidia.com/gpu", "GPU-2", 1))
    yes, no = SeenTenants(tenants, {}, attributed=True), SeenTenants(tenants, {}, attributed=False)
    assert "used by a process in that pod's cgroup" in str(yes)
    assert "in no pod's cgroup, because this machine does not permit us to create any" in str(no)
    assert "SIMULATED" in str(yes)
    assert (yes.expected()["pod_processes"], no.expected()["pod_processes"]) == (2, 0)
    assert yes.expected()["slice_seconds_total"] == 1

"""Which pod holds which GPU, as the agent reports it for changes of some GPUs."""

from pathlib import Path

import pytest

from gpusharing.agent.library import GPU, Instance
from gpusharing.agent.podresources import Holdings, PodDevices, find_holders
from gpusharing.agent.processes import pod_uids
from gpusharing.api.gpunode import MAX_HOLDERS
from gpusharing.planning.gpus.texts import read_holders, write_holders

HALF = "nvidia.com/mig-3g.40gb"
UIDS = {("team-a", "llm-0"): "uid-0", ("team-a", "llm-1"): "uid-1"}


def gpu(index: int) -> GPU:
    instances = tuple(Instance("3g.40gb", 4 * slot, 4, slot, f"MIG-{index}-{slot}") for slot in range(2))
    return GPU(index, f"GPU-{index}", "NVIDIA H100 80GB HBM3", "Enabled", "Enabled", "Default", instances, ())


def holders(*rows: PodDevices) -> list[tuple[str, str, tuple[int, ...]]]:
    found = find_holders(Holdings(by_pod=rows), [gpu(0), gpu(1)], UIDS)
    assert found is not None
    return sorted(one[:3] for one in read_holders(found))


def row(pod: str, *devices: str, resource: str = HALF) -> PodDevices:
    return PodDevices("team-a", pod, resource, devices)


def test_a_pod_is_reported_with_its_uid_and_the_gpus_of_all_its_devices() -> None:
    assert holders(row("llm-0", "MIG-0-1"), row("llm-1", "MIG-0-0", "MIG-1-1")) == [
        ("team-a/llm-0", "uid-0", (0,)),
        ("team-a/llm-1", "uid-1", (0, 1)),
    ]


@pytest.mark.parametrize(
    ("case", "rows"),
    [
        ("a device that NVML does not show", [row("llm-0", "MIG-0-1", "MIG-gone")]),
        ("two pods of one name, of which one was deleted by force", [row("llm-0", "MIG-0-0"), row("llm-0", "MIG-1-0")]),
    ],
)
def test_what_cannot_be_told_for_certain_has_no_gpus(case: str, rows: list[PodDevices]) -> None:
    assert holders(*rows) == [("team-a/llm-0", "uid-0", ())], case


def test_devices_that_are_no_gpus_do_not_count() -> None:
    rows = (row("llm-0", "MIG-0-1"), row("llm-0", "0000:3b:00.2", resource="nvidia.com/hostdev"))
    assert holders(*rows) == [("team-a/llm-0", "uid-0", (0,))]
    assert holders(row("net", "0000:3b:00.2", resource="nvidia.com/hostdev")) == []


def test_other_devices_give_another_digest_and_another_order_does_not() -> None:
    digests = [
        next(read_holders(found))[3]
        for ids in (("MIG-0-0", "MIG-0-1"), ("MIG-0-1", "MIG-0-0"), ("MIG-0-0", "MIG-1-1"))
        if (found := find_holders(Holdings(by_pod=(row("llm-0", *ids),)), [gpu(0), gpu(1)], UIDS))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_too_many_pods_share_devices_to_be_reported() -> None:
    rows = tuple(row(f"llm-{number}", "MIG-0-0") for number in range(MAX_HOLDERS + 1))
    assert find_holders(Holdings(by_pod=rows), [gpu(0)], UIDS) is None


def test_the_uid_of_a_pod_is_known_only_while_one_folder_has_its_name(tmp_path: Path) -> None:
    for folder in ("team-a_llm-0_u0", "team-a_llm-1_u1", "team-a_llm-1_u2", "no-pod", "a_b_c_d"):
        (tmp_path / folder).mkdir()
    assert pod_uids(tmp_path) == {("team-a", "llm-0"): "u0"}
    assert pod_uids(tmp_path / "missing") == {}


@pytest.mark.parametrize("gpus", [(), (0,), (0, 1, 2, 5)])
@pytest.mark.parametrize("uid", ["", "5f0c2a4e"])
def test_a_line_is_read_as_it_was_written(gpus: tuple[int, ...], uid: str) -> None:
    rows = [(f"team-a/llm-{number}", uid, gpus, "0123456789ab") for number in range(3)]
    assert list(read_holders(write_holders(rows))) == rows


def test_a_line_of_another_form_tells_no_gpu() -> None:
    assert list(read_holders("nonsense")) == [("nonsense", "", (), "")]


def test_a_line_with_other_blanks_is_read_as_it_stands() -> None:
    assert list(read_holders("3 a\tb/c uid 0123456789ab")) == [("a\tb/c", "uid", (3,), "0123456789ab")]

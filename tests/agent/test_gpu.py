"""Read-only checks on a real GPU and driver (rung 5): `make test-gpu`. Nothing is changed on the node."""

import os
import re
import shutil
import subprocess
import time

import pytest
from hack.cache import UnavailableError

from gpusharing.agent.gpunode import gpu_status
from gpusharing.agent.library import LibraryError, Reading
from gpusharing.agent.nvml import NVML
from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.gpus.health import diagnose, is_healthy, vitals_of

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def reading() -> Reading:
    try:
        return NVML().read()
    except LibraryError as error:
        if error.reason != "NVMLNotLoaded":
            raise
        raise UnavailableError(f"rung 5 needs a GPU and NVIDIA's driver on this machine: {error}") from error


def smi(query: str) -> list[str]:
    if shutil.which("nvidia-smi") is None:
        raise UnavailableError("there is no nvidia-smi on PATH to compare with: install the driver's utilities")
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize(("query", "field"), [("uuid", "uuid"), ("name", "product"), ("index", "index")], ids=str)
def test_gpus_are_those_of_nvidia_smi(reading: Reading, query: str, field: str) -> None:
    assert [str(getattr(gpu, field)) for gpu in reading.gpus] == smi(query)


def test_the_driver_is_that_of_nvidia_smi(reading: Reading) -> None:
    assert {reading.driver_version} == set(smi("driver_version"))


def test_mig_mode_is_that_of_nvidia_smi(reading: Reading) -> None:
    words = {"Enabled": "Enabled", "Disabled": "Disabled", "NotSupported": "[N/A]"}
    assert [words[gpu.mig_mode] for gpu in reading.gpus] == smi("mig.mode.current")


def test_what_is_not_supported_is_a_value(reading: Reading) -> None:
    for gpu in reading.gpus:
        assert re.fullmatch(r"GPU-[0-9a-f-]{36}", gpu.uuid)
        if gpu.mig_mode == "NotSupported":
            assert gpu.instances == ()


def test_profiles_of_a_known_card_are_those_of_the_table(reading: Reading) -> None:
    compared = 0
    for model in reading.models:
        card = find_card(model.product)
        table = {profile.name: profile for profile in card.profiles} if card else {}
        for profile in model.profiles:
            if profile.name in table and profile.starts:
                known = table[profile.name]
                assert (profile.starts, profile.size, profile.slices) == (known.starts, known.size, known.slices)
                compared += 1
    if not compared:
        pytest.skip("no card here is in planning/gpus/cards.py with placements that this user may list")


def test_memory_in_use_is_about_that_of_nvidia_smi(reading: Reading) -> None:
    told = {use.uuid: use.memory_used for use in reading.use.devices if use.instance is None}
    for uuid, used in zip(smi("uuid"), smi("memory.used"), strict=True):
        if (memory := told.get(uuid)) is not None:
            assert abs(memory // 1024**2 - int(used)) < 1024, "processes come and go between the two"


def test_of_a_gpu_with_mig_on_no_sm_time_is_told(reading: Reading) -> None:
    assert not [use for use in reading.use.devices if use.instance is not None and use.reports_sm]


def test_readings_are_stable_and_cheap(reading: Reading) -> None:
    began, used = time.perf_counter(), time.process_time()
    again = NVML().read()
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    print(f"one reading of {len(again.gpus)} GPUs: {wall * 1000:.1f} ms, {cpu * 1000:.1f} ms of CPU")
    assert [gpu.uuid for gpu in again.gpus] == [gpu.uuid for gpu in reading.gpus]
    assert wall < 10.0  # hung_after


def test_a_working_gpu_is_healthy_and_listening_for_xids_leaves_no_file_open(reading: Reading) -> None:
    for gpu in reading.gpus:
        assert (gpu.access, gpu.xid) == ("Ok", None)
        assert is_healthy(diagnose([(gpu.index, vitals_of(gpu_status(gpu)))])), gpu
    NVML().read()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        NVML().read()
    assert len(os.listdir("/proc/self/fd")) == files

"""NVIDIA's own programs with fewer rights fail on the simulated library as their trackers say of real drivers."""

import re

import pytest
from hack.nvidia.build import DEVICE_PLUGIN, module_folder
from hack.nvidia.sandbox import WITHOUT_SYS_ADMIN, Sandbox
from hack.nvmlsim.build import implemented_functions
from hack.nvmlsim.rights import RIGHTS
from hack.nvmlsim.simulator import CONFIG, MONITOR, give, of_device
from tests.nvidia.conftest import MakeSandbox
from tests.nvidia.programs import ProgramEnded, entry_for, gfd_labels, served, set_layouts

from gpusharing.planning.wanted import migfile, pluginconfig
from gpusharing.planning.wanted.pluginconfig import PluginConfig

pytestmark = pytest.mark.nvidia

LEAVES_OUT = "nvmlEventSetWait_v2"
"""It is not refused to anybody: it leaves events out."""
REFUSED = "Insufficient Permissions"
MIXED = pluginconfig.render(PluginConfig("mixed"))


@pytest.fixture
def sandbox(make_sandbox: MakeSandbox) -> Sandbox:
    sandbox = make_sandbox("h100-80gb")
    set_layouts(sandbox, (("3g.40gb", 2),))
    return sandbox


def test_without_sys_admin_the_device_plugin_ends_as_k8s_device_plugin_399_says(sandbox: Sandbox) -> None:
    with pytest.raises(ProgramEnded, match="error getting device memory info: " + REFUSED):
        served(sandbox, MIXED, 1, WITHOUT_SYS_ADMIN)


def test_with_the_monitor_capability_it_serves_as_the_answer_there_says(sandbox: Sandbox) -> None:
    instances = sandbox.simulator.show()["gpus"][0]["instances"]
    files = [file for instance in instances for file in of_device(0, instance["id"], 0)]
    give(sandbox.simulator, sandbox.folder / "capabilities", MONITOR, *files)
    assert served(sandbox, MIXED, 1, WITHOUT_SYS_ADMIN) == {"nvidia.com/mig-3g.40gb": 2}
    labels = gfd_labels(sandbox, MIXED, WITHOUT_SYS_ADMIN)
    assert labels["nvidia.com/mig-3g.40gb.count"] == "2"
    assert labels == gfd_labels(sandbox, MIXED)


def test_without_sys_admin_gfd_gives_up_on_mig_devices(sandbox: Sandbox) -> None:
    with pytest.raises(ProgramEnded, match=REFUSED):
        gfd_labels(sandbox, MIXED, WITHOUT_SYS_ADMIN)


def test_without_mig_device_plugin_and_gfd_need_no_right(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb", "t4")
    config = pluginconfig.render(PluginConfig())
    assert served(sandbox, config, 1, WITHOUT_SYS_ADMIN) == {"nvidia.com/gpu": 2}
    assert gfd_labels(sandbox, config, WITHOUT_SYS_ADMIN)["nvidia.com/gpu.count"] == "1"


@pytest.mark.parametrize(
    ("capability", "changed"), [(MONITOR, False), (CONFIG, True)], ids=["mig/monitor", "mig/config"]
)
def test_mig_parted_changes_instances_with_the_config_capability_and_not_with_less(
    capability: str, changed: bool, sandbox: Sandbox
) -> None:
    give(sandbox.simulator, sandbox.folder / "capabilities", MONITOR, capability)
    file = sandbox.folder / "seven.yaml"
    file.write_text(migfile.render({"seven": entry_for((("1g.10gb", 7),))}))
    done = sandbox.run("nvidia-mig-parted", "apply", "-f", str(file), "-c", "seven", limits=WITHOUT_SYS_ADMIN)
    assert (done.returncode == 0) is changed, done.stderr
    assert (REFUSED in done.stderr or "ERROR_NO_PERMISSION" in done.stderr) is not changed
    assert len(sandbox.simulator.show()["gpus"][0]["instances"]) == (7 if changed else 2)


def test_the_table_of_rights_has_every_simulated_call_that_nvml_h_calls_privileged(nvidia_programs: None) -> None:
    header = module_folder(DEVICE_PLUGIN, "github.com/NVIDIA/go-nvml") / "pkg/nvml/nvml.h"
    comment = re.compile(r"/\*\*((?:(?!\*/).)*)\*/\s*nvmlReturn_t DECLDIR (nvml\w+)\(", re.DOTALL)
    documented = {name: text for text, name in comment.findall(header.read_text())}
    told = re.compile(r"Requires (?:root|privileged)|only if the caller has appropriate\W+privileges")
    table = {right.function for right in RIGHTS}
    privileged = {name for name, text in documented.items() if told.search(re.sub(r"\s+\*?\s*", " ", text))}
    assert privileged & implemented_functions() == (table - {"nvmlDeviceGetMemoryInfo_v2"}) | {LEAVES_OUT}

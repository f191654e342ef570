"""hack/realnode/grants.py: what a container gets of the driver, by its variables and rights."""

import pytest
from hack.cluster.api import Object
from hack.nvmlsim.simulator import MachineDevice, machine_devices
from hack.realnode.grants import Grant, GrantRefused, find_grant, find_injected

SHOWN: Object = {
    "gpus": [
        {"index": 0, "uuid": "GPU-a", "instances": []},
        {"index": 1, "uuid": "GPU-b", "instances": [{"id": 2, "compute": [{"id": 0, "uuid": "MIG-c"}]}]},
    ]
}
ACCESS = ("gpu1/mig/gi2/access", "gpu1/mig/gi2/ci0/access")
DEVICES = machine_devices(SHOWN)


def container(privileged: bool = False, **environ: str) -> Object:
    held = ["CAP_CHOWN", "CAP_SYS_ADMIN"] if privileged else ["CAP_CHOWN"]
    env = [f"NVIDIA_{name.upper()}={value}" for name, value in environ.items()]
    return {"process": {"env": ["PATH=/bin", *env], "capabilities": {"bounding": held}}}


CASES = [
    pytest.param(container(), None, id="a container that names no devices gets no driver"),
    pytest.param(container(visible_devices="void"), None, id="void is no driver, too"),
    pytest.param(container(visible_devices="none"), Grant(True, (), (), ()), id="none is the library without a GPU"),
    pytest.param(
        container(visible_devices="all"), Grant(True, (0, 1), ACCESS, ()), id="all is every GPU and MIG device"
    ),
    pytest.param(
        container(visible_devices="1", driver_capabilities="compute"),
        Grant(False, (1,), (), (MachineDevice(1, "GPU-b"),)),
        id="without utility there is no NVML",
    ),
    pytest.param(
        container(visible_devices="GPU-a,MIG-c"),
        Grant(True, (0, 1), ACCESS, (MachineDevice(0, "GPU-a"), MachineDevice(1, "MIG-c", (2, 0)))),
        id="named devices are those it computes on",
    ),
    pytest.param(
        container(True, visible_devices="none", mig_config_devices="all", mig_monitor_devices="all"),
        Grant(True, (), ("mig/config", "mig/monitor"), ()),
        id="a privileged container gets the rights over MIG that it asks for",
    ),
]


@pytest.mark.parametrize(("spec", "expected"), CASES)
def test_a_container_gets_what_its_variables_name(spec: Object, expected: Grant | None) -> None:
    assert find_grant(spec, DEVICES) == expected


def test_rights_over_mig_are_refused_to_a_container_that_is_not_privileged() -> None:
    with pytest.raises(GrantRefused, match="cannot set MIG_MONITOR_DEVICES in non privileged container"):
        find_grant(container(visible_devices="all", mig_monitor_devices="all"), DEVICES)


def test_a_device_that_is_gone_is_refused_by_name() -> None:
    with pytest.raises(GrantRefused, match="unknown device MIG-gone: this machine has GPU-a, GPU-b, MIG-c"):
        find_grant(container(visible_devices="MIG-gone"), DEVICES)


def injected(*files: str) -> Object:
    return {"linux": {"devices": [{"path": path} for path in files]}}


INJECTED = [
    pytest.param(injected("/dev/null", "/dev/nvidiactl"), (), id="files of no device"),
    pytest.param(injected("/dev/nvidia0"), (DEVICES[0],), id="a whole GPU by its own file"),
    pytest.param(
        injected("/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap156", "/dev/nvidia-caps/nvidia-cap157"),
        (DEVICES[2],),
        id="a MIG device by the files of both of its instances, and not its GPU",
    ),
    pytest.param(
        injected("/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap156"),
        (),
        id="one of two files is no MIG device, and no whole GPU",
    ),
]


@pytest.mark.parametrize(("spec", "expected"), INJECTED)
def test_a_container_uses_the_devices_whose_files_a_cdi_specification_adds(
    spec: Object, expected: tuple[MachineDevice, ...]
) -> None:
    assert find_injected(spec, DEVICES) == expected

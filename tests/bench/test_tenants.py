"""The tenants of the benched agent are seen by the agent's own code."""

from contextlib import closing
from pathlib import Path

from hack.bench.agent import SeenTenants, Tenant, occupied, tenants_of
from hack.nvmlsim.simulator import Simulator
from tests.agent.nvml_machine import in_process, needs_compiler, read

from gpusharing.agent.kubelet import KubeletPodResources
from gpusharing.agent.library import PodID
from gpusharing.agent.processes import Processes, pod_names


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

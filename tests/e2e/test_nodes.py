"""A node of rung 4 is a node as the API server knows it, and leaves nothing behind."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hack.cluster.process import pid_exists, wait_until
from hack.launch import ROOT
from hack.realnode import cgroups, sweep
from hack.realnode.site import Site
from tests.e2e.pool import NODES

pytestmark = pytest.mark.e2e
SECONDS = 240.0
OWNER = """
import sys
from pathlib import Path
from hack.realnode.machine import Machine
from hack.realnode.network import bridge
with bridge() as network:
    machine = Machine("left", Path(sys.argv[1]), network, 0)
    machine.start()
    print(network.name, machine.pid, flush=True)
    sys.stdin.read()
"""


def test_the_node_says_that_kubelet_and_containerd_are_real(site: Site) -> None:
    for node in NODES:
        info = site.plane.api.get(f"/api/v1/nodes/{node}")["status"]["nodeInfo"]
        assert info["containerRuntimeVersion"].startswith("containerd://")
        assert info["kubeletVersion"] == site.plane.api.get("/version")["gitVersion"]


def test_a_machine_whose_owner_was_killed_dies_with_it_and_is_swept(real_nodes_possible: None, tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    link, first = owner.stdout.readline().split()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    wait_until(lambda: not pid_exists(int(first)), SECONDS, "the machine to die with its owner")
    assert link in links()
    sweep.main()
    assert link not in links()
    assert not [folder for h in cgroups.hierarchies() for folder in h.glob(f"{cgroups.PREFIX}{owner.pid}")]


def links() -> list[str]:
    told = subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True).stdout
    return [link["ifname"] for link in json.loads(told)]

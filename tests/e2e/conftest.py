"""Rung 4: real kubelets. Skipped with the reason where they cannot run; with CI set that fails."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hack.cluster import toolchain
from hack.cluster.controlplane import ControlPlane
from hack.realnode import needs
from hack.realnode.network import bridge
from hack.realnode.node import KubeletNode, options

NODES = ("gpu-1", "gpu-2")


@dataclass(frozen=True)
class Site:
    """What the tests of rung 4 share."""

    plane: ControlPlane
    nodes: dict[str, KubeletNode]


@pytest.fixture(scope="session")
def real_nodes_possible() -> None:
    """Skip the test, or fail it in CI, where no real kubelet can run."""
    ci = bool(os.environ.get("CI"))
    if ci:
        needs.install_packages()
    if why := needs.why_not():
        (pytest.fail if ci else pytest.skip)(f"RUNG 4 NOT RUN: {why}")
    try:
        toolchain.control_plane_programs()
        for name in ("helm", "kubelet"):
            toolchain.program(name)
    except toolchain.ToolchainError as error:
        (pytest.fail if ci else pytest.skip)(f"RUNG 4 NOT RUN: {error}")


@pytest.fixture(scope="session")
def site(real_nodes_possible: None) -> Iterator[Site]:
    """A control plane and two nodes with real kubelets."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(bridge())
        plane = stack.enter_context(ControlPlane(options=options(network, NODES, audit=True)))
        nodes = {
            name: stack.enter_context(KubeletNode(plane, network, name, number))
            for number, name in enumerate(NODES)
        }
        yield Site(plane, nodes)

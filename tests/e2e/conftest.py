"""Rung 4: real kubelets. Skipped with the reason where they cannot run; with CI set that fails."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from hack.cluster import toolchain
from hack.nvidia import build
from hack.realnode import needs
from hack.realnode.site import Site, running_site
from tests.e2e.pool import DEPLOYMENTS, FULL, GPU, PROPAGATION, REPLICAS, Walk, deployment, holding

NODES = ("gpu-1", "gpu-2")


@pytest.fixture(scope="session")
def real_nodes_possible() -> None:
    """Skip the test, or fail it in CI, where no real kubelet can run."""
    ci = bool(os.environ.get("CI"))
    if ci:
        try:
            needs.install_packages()
        except subprocess.CalledProcessError as error:
            pytest.fail(f"RUNG 4 NOT RUN: {error}")
    if why := needs.why_not():
        (pytest.fail if ci else pytest.skip)(f"RUNG 4 NOT RUN: {why}")
    try:
        toolchain.control_plane_programs()
        for name in ("helm", "kubelet"):
            toolchain.program(name)
        for release in build.RELEASES:
            build.ensure(release)
    except (toolchain.ToolchainError, build.BuildError) as error:
        (pytest.fail if ci else pytest.skip)(f"RUNG 4 NOT RUN: {error}")


@pytest.fixture(scope="session")
def site(real_nodes_possible: None) -> Iterator[Site]:
    """A control plane and two nodes with real kubelets; our chart is not installed."""
    # Told to end, the run ends in order: nothing of it is left on the machine.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with running_site(NODES) as running:
        yield running


@pytest.fixture(scope="session")
def notes(site: Site) -> str:
    """What `helm install --wait` of our chart with its default values said; it waits until both are Ready."""
    return site.helm_install()


@pytest.fixture(scope="session")
def walk(site: Site, notes: str) -> Walk:
    """The pool, brought to mode Full, and a Deployment that holds a GPU in each of its pods."""
    site.helm_install("--set", PROPAGATION)
    made = Walk(site)
    site.install_operands()
    site.api.create(DEPLOYMENTS, deployment("holder", REPLICAS, holding(GPU)))
    made.bring(FULL)
    return made

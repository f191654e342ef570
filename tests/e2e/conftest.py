"""Rung 4: real kubelets. Skipped with the reason where they cannot run; with CI set that fails."""

import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import pytest
from hack.cluster import toolchain
from hack.images import local
from hack.images.debian import FetchError
from hack.images.wheels import WheelError
from hack.nvidia import build
from hack.realnode import needs
from hack.realnode.site import Site, running_site
from tests.e2e.pool import DEPLOYMENTS, FASTER, FULL, GPU, REPLICAS, Walk, deployment, holding

NODES = ("gpu-1", "gpu-2")


def not_run(why: object) -> NoReturn:
    """Skip the test with the reason; in CI it fails."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"RUNG 4 NOT RUN: {why}")


@pytest.fixture(scope="session")
def real_nodes_possible() -> None:
    """Skip the test, or fail it in CI, where no real kubelet can run."""
    if why := needs.why_not_in_ci() if os.environ.get("CI") else needs.why_not():
        not_run(why)
    try:
        toolchain.control_plane_programs()
        for name in ("helm", "kubelet"):
            toolchain.program(name)
        for release in build.RELEASES:
            build.ensure(release)
    except (toolchain.ToolchainError, build.GoBuildError) as error:
        not_run(error)


def end_in_order(number: int, frame: FrameType | None) -> None:
    """Told to end, the run takes everything down: nothing of it is left on the machine.

    It listens once: `timeout` tells each process of the group, and make tells its own a second time.
    """
    signal.signal(number, signal.SIG_IGN)
    signal.default_int_handler(number, frame)


@pytest.fixture(scope="session")
def image() -> local.Image:
    """Our image for this machine."""
    try:
        return local.build()
    except (FetchError, WheelError) as error:
        not_run(error)


@pytest.fixture(scope="session")
def site(real_nodes_possible: None, image: local.Image) -> Iterator[Site]:
    """A control plane and two nodes with real kubelets; our chart is not installed."""
    signal.signal(signal.SIGTERM, end_in_order)
    with running_site(NODES, image) as running:
        yield running


@pytest.fixture(scope="session")
def notes(site: Site) -> str:
    """What `helm install --wait` of our chart with its default values said; it waits until both are Ready."""
    return site.helm_install()


@pytest.fixture(scope="session")
def walk(site: Site, notes: str) -> Walk:
    """The pool, brought to mode Full, and a Deployment that holds a GPU in each of its pods."""
    site.helm_install("--set", FASTER)
    made = Walk(site)
    site.install_operands()
    site.api.create(DEPLOYMENTS, deployment("holder", REPLICAS, holding(GPU)))
    made.bring(FULL)
    return made

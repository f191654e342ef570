"""Rung 4: real kubelets."""

import signal
from collections.abc import Iterator
from types import FrameType

import pytest
from hack.cluster import toolchain
from hack.images import local
from hack.images.contents import Image
from hack.nvidia import build
from hack.realnode import needs
from hack.realnode.site import Site, running_site
from hack.required import require
from tests.e2e.pool import DEPLOYMENTS, FASTER, FULL, GPU, NODES, REPLICAS, Walk, deployment, holding


@pytest.fixture(scope="session")
def real_nodes_possible() -> None:
    """Build what real nodes run, after a look at whether they can run here."""
    require("rung4", needs.why_not())
    toolchain.control_plane_programs()
    for name in ("helm", "kubelet", "containerd"):
        toolchain.program(name)
    for release in (*build.RELEASES, build.DRA_DRIVER):
        build.ensure(release)


def end_in_order(number: int, frame: FrameType | None) -> None:
    """Told to end, the run takes everything down: nothing of it is left on the machine.

    It listens once: `timeout` tells each process of the group, and make tells its own a second time.
    """
    signal.signal(number, signal.SIG_IGN)
    signal.default_int_handler(number, frame)


@pytest.fixture(scope="session")
def image() -> Image:
    return local.build()


@pytest.fixture(scope="session")
def site(real_nodes_possible: None, image: Image) -> Iterator[Site]:
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

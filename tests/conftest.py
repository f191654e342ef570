"""What every test may use, and the report at the end of a run."""

import os
import signal
from collections.abc import Iterator

import pytest
from hack.cache import state_root
from hack.cluster import install, state
from hack.cluster.controlplane import ControlPlane
from hack.report import Report, add_option
from hack.required import Required
from hack.sidebyside import SideBySide, check_names, check_parameters, scheduler
from hack.timelimits import TimeLimits
from hypothesis import settings

# Other work on the same machine makes single examples slow. In CI hypothesis loads its own profile: the same
# examples on every run, and no deadline either.
settings.register_profile("here", deadline=None)
if not os.environ.get("CI"):
    settings.load_profile("here")

MOST_WORKERS = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Count rungs and seconds, and hear Ctrl-C.

    A shell script that starts us with `&` makes us and all that we start ignore it: what a test ends by Ctrl-C would end by kill -9 only, half a minute later.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(Report(), "gpusharing-report")
    config.pluginmanager.register(Required(), "gpusharing-required")
    config.pluginmanager.register(TimeLimits(), "gpusharing-timelimits")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    check_parameters(metafunc.definition)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    check_names(items)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what a worker left: after Ctrl-C, or when a worker hangs, pytest-xdist kills it with its fixtures open."""
    if not hasattr(config, "workerinput"):
        state.sweep(state_root())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: one more than cores, because rung 2 waits for a third of its time; `-n logical`: as many as cores, for whoever runs something beside it. Each worker collects all tests first, so more than four gain little."""
    beside = config.option.numprocesses == "logical"
    return min((os.cpu_count() or 1) + (not beside), MOST_WORKERS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> SideBySide | None:
    return scheduler(config, log)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """The worker's one real control plane, with kwok, our CRDs and the GPU Operator's stand-ins.

    It is shared: a test names its objects uniquely or removes them. One that stops components, counts requests or uninstalls the CRDs starts a ControlPlane of its own.
    """
    with ControlPlane() as plane:
        install.install_all(plane.api)
        yield plane

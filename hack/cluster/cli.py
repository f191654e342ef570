"""The commands behind `make cluster` and `make cluster-down`.

Progress goes to stderr. Stdout has one line, so that a shell can evaluate it: `eval "$(make -s cluster)"`.
"""

import argparse
import fcntl
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpusharing.planning.vocabulary.lengths import counted
from hack.cache import UnavailableError, private_directory, say, state_root
from hack.cluster import install, kind, nodes, state, toolchain
from hack.cluster.api import Api, ApiError
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.kubeconfig import KubeconfigError, open_api
from hack.cluster.process import ComponentError

EXPECTED = (UnavailableError, ComponentError, KubeconfigError, kind.KindError, TimeoutError)
"""Errors whose message is meant for the user."""


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "up":
            up(options.nodes, options.driver)
        else:
            down()
    except EXPECTED as error:
        say(str(error))
        return 1
    return 0


def up(count: int, driver: str) -> None:
    """Start a cluster with `count` nodes, and print its kubeconfig as a shell command. One that runs is kept."""
    directory = cluster_directory()
    with _locked(directory.with_suffix(".lock")):
        running = find_running(directory)
        if running is None:
            begin = time.monotonic()
            api = _create(directory, driver)
            _populate(api, count)
            say(f"the cluster is up after {time.monotonic() - begin:.1f} s: {api.url}; its files are in {directory}")
        else:
            with running as api:
                say(f"the cluster is already up: {api.url}, {counted(len(api.list('/api/v1/nodes')), 'node')}")
            say("to replace it with a new one: make cluster-down, then make cluster")
    if shutil.which("kubectl") is None:
        programs = shlex.quote(str(toolchain.control_plane_programs().kubectl.parent))
        say(f"there is no kubectl on PATH; to use the one built here: export PATH={programs}:$PATH")
    print(f"export KUBECONFIG={shlex.quote(str(_kubeconfig(directory)))}", flush=True)


def down() -> None:
    """Stop what still runs of the recorded cluster, and remove its files."""
    directory = cluster_directory()
    with _locked(directory.with_suffix(".lock")):
        record = state.read(directory)
        stopped = state.stop_recorded(directory)
        if record is not None and record.driver == "kind":
            kind.down()
            stopped.append("kind cluster")
        shutil.rmtree(directory, ignore_errors=True)
    say(f"stopped {', '.join(stopped)}" if stopped else "no cluster is running")


def cluster_directory() -> Path:
    return private_directory(state_root()).resolve() / "cluster"


def find_running(directory: Path) -> Api | None:
    """Return a client for the running cluster, or stop what is left of it and return None."""
    record = state.read(directory)
    if record is None:
        return None
    alive = {component.name for component in state.running(directory)}
    dead = sorted(set(record.pids) - alive)
    if not dead:
        api = open_api(_kubeconfig(directory))
        try:
            api.get("/readyz")
            return api
        except (ApiError, OSError) as error:
            say(f"the recorded cluster does not answer ({error}); starting a new one")
    else:
        say(f"the recorded cluster is broken ({', '.join(dead)} not running); starting a new one")
    state.stop_recorded(directory)
    shutil.rmtree(directory, ignore_errors=True)
    return None


def _create(directory: Path, driver: str) -> Api:
    if driver == "kind":
        kind.check()
        say("creating a kind cluster ...")
        return kind.up(private_directory(directory), _kubeconfig(directory))
    shutil.rmtree(directory, ignore_errors=True)  # files of an interrupted start
    plane = ControlPlane(directory, Options(detached=True))
    _step("control plane (etcd, API server, controller-manager, scheduler, kwok)", plane.start)
    return plane.api


def _populate(api: Api, count: int) -> None:
    _step("CRDs, namespaces and a ClusterPolicy", lambda: install.install_all(api))
    manifests = nodes.fleet(count)
    _step(
        counted(count, "SIMULATED GPU node"),
        lambda: nodes.wait_nodes_ready(api, nodes.create_nodes(api, manifests), 30 + count / 20),
    )


def _step(what: str, work: Callable[[], object]) -> None:
    begin = time.monotonic()
    work()
    say(f"  {time.monotonic() - begin:5.1f} s  {what}")


def _kubeconfig(directory: Path) -> Path:
    return directory / "admin.kubeconfig"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hack.cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    up_verb = verbs.add_parser("up", help="start the cluster and print `export KUBECONFIG=...` as the last line")
    up_verb.add_argument(
        "--nodes",
        type=_count,
        default=os.environ.get("NODES") or "8",
        help="number of simulated GPU nodes; default $NODES or 8",
    )
    up_verb.add_argument(
        "--driver",
        type=_driver,
        default=os.environ.get("DRIVER") or "cluster",
        help="cluster or kind; default $DRIVER or cluster",
    )
    verbs.add_parser("down", help="stop the cluster and remove its files")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"NODES must be a whole number such as 8, not {text!r}")
    return int(text)


def _driver(text: str) -> str:
    """Parse a driver. argparse does not apply `choices` to a default, and this default comes from the environment."""
    if text not in ("cluster", "kind"):
        raise argparse.ArgumentTypeError(f"DRIVER must be cluster or kind, not {text!r}")
    return text

"""The commands behind `make cluster` and `make cluster-down`, and one that writes a kubeconfig for a service account.

Progress goes to stderr. Stdout has one line, so that a shell can evaluate it: `eval "$(make -s cluster)"`.
"""

import argparse
import fcntl
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpusharing.planning.vocabulary.lengths import counted
from hack.cache import UnavailableError, private_directory, state_root
from hack.cluster import install, kind, nodes, state, toolchain
from hack.cluster.api import Api, ApiError
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.kubeconfig import KubeconfigError, kubeconfig_path, open_api, write_token_kubeconfig
from hack.cluster.process import ComponentError

EXPECTED = (UnavailableError, ComponentError, KubeconfigError, kind.KindError, TimeoutError)
"""Errors whose message is meant for the user."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb `up`, `down` or `kubeconfig`; the last one prints the path of the kubeconfig. Return the exit
    status: 0, or 1 after one of the EXPECTED errors (KindError, ComponentError, KubeconfigError, UnavailableError,
    TimeoutError), whose message is printed to stderr. Other errors, such as an ApiError, are raised. Exits with status
    2 if the arguments cannot be parsed."""
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "up":
            up(options.nodes, options.driver)
        elif options.verb == "down":
            down()
        else:
            print(account_kubeconfig(options.namespace, options.service_account, options.node))
    except EXPECTED as error:
        _say(str(error))
        return 1
    return 0


def up(count: int, driver: str) -> None:
    """Start the user's one development cluster with `count` simulated nodes and print the line that sets KUBECONFIG.
    Progress is printed to stderr, and also how to use our kubectl if PATH has none (`_say_kubectl`). If a cluster is
    running already, it is kept with its nodes, and `count` and `driver` are ignored. Raises the EXPECTED errors,
    ApiError, and ValueError or TypeError if the record of a cluster is damaged. A cluster that could not be populated
    keeps running."""
    directory = cluster_directory()
    with _locked(directory.with_suffix(".lock")):
        running = find_running(directory)
        if running is None:
            begin = time.monotonic()
            api = _create(directory, driver)
            _populate(api, count)
            _say(f"the cluster is up after {time.monotonic() - begin:.1f} s: {api.url}; its files are in {directory}")
        else:
            with running as api:
                _say(f"the cluster is already up: {api.url}, {counted(len(api.list('/api/v1/nodes')), 'node')}")
            _say("to replace it with a new one: make cluster-down, then make cluster")
    _say_kubectl()
    print(f"export KUBECONFIG={shlex.quote(str(_kubeconfig(directory)))}", flush=True)


def down() -> None:
    """Stop the programs of the recorded cluster that still run, delete its kind cluster if it has one, and remove its
    files. Prints what was stopped, or that no cluster is running. Raises KindError or UnavailableError if a kind
    cluster cannot be deleted, and ValueError or TypeError if the record is damaged."""
    directory = cluster_directory()
    with _locked(directory.with_suffix(".lock")):
        record = state.read(directory)
        stopped = state.stop_recorded(directory)
        if record is not None and record.driver == "kind":
            kind.down()
            stopped.append("kind cluster")
        shutil.rmtree(directory, ignore_errors=True)
    _say(f"stopped {', '.join(stopped)}" if stopped else "no cluster is running")


def account_kubeconfig(namespace: str, account: str, node: str | None) -> Path:
    """Write a kubeconfig for a service account of the cluster that `$KUBECONFIG` names, and return its path: next to
    that kubeconfig if it is in our state folder, otherwise in the state folder itself. The token in it is bound to
    `node` unless that is None.

    Raises KubeconfigError, whose message says what to do, if $KUBECONFIG is not set or names no file, no such cluster
    answers, or the API server refuses the token, usually because there is no such account.
    """
    current, root = kubeconfig_path().resolve(), private_directory(state_root()).resolve()
    # Next to the kubeconfig if it belongs to a cluster of ours, so that both are removed with the cluster.
    folder = current.parent if current.is_relative_to(root) else root
    with open_api(current) as api:
        path = folder / f"{'-'.join(filter(None, (namespace, account, node)))}.kubeconfig"
        try:
            return write_token_kubeconfig(api, path, namespace, account, node=node)
        except ApiError as error:
            raise KubeconfigError(
                f"there is no token for service account {namespace}/{account}: {error.message}\n"
                "Install the chart first: helm install gpusharing deploy/helm/gpu-sharing-operator "
                f"--namespace {namespace} --create-namespace"
            ) from error
        except OSError as error:
            raise KubeconfigError(f"{api.url} does not answer: {error}\nStart a cluster: make cluster") from error


def cluster_directory() -> Path:
    """Return the folder of the one cluster that `up` creates. The folder need not exist; our state folder above it
    (`state_root`) is created if it is missing, and only its owner may read it."""
    return private_directory(state_root()).resolve() / "cluster"


def find_running(directory: Path) -> Api | None:
    """Return a client for the cluster in `directory` if all its programs run and the API server answers, or None if no
    cluster is recorded there. Otherwise say why it is unusable, stop what is left of it, remove its files, and return
    None. Raises ValueError or TypeError if the record is damaged, and KubeconfigError if all programs run but the
    kubeconfig is missing."""
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
            _say(f"the recorded cluster does not answer ({error}); starting a new one")
    else:
        _say(f"the recorded cluster is broken ({', '.join(dead)} not running); starting a new one")
    state.stop_recorded(directory)
    shutil.rmtree(directory, ignore_errors=True)
    return None


def _create(directory: Path, driver: str) -> Api:
    """Start a cluster with this driver, `kind` or `cluster`, and return a client for it. For `cluster`, the files of
    an interrupted start are removed first. Raises KindError, UnavailableError or ComponentError if the cluster
    cannot be started."""
    if driver == "kind":
        kind.check()
        _say("creating a kind cluster ...")
        return kind.up(private_directory(directory), _kubeconfig(directory))
    shutil.rmtree(directory, ignore_errors=True)  # files of an interrupted start
    plane = ControlPlane(directory, Options(detached=True))
    _step("control plane (etcd, API server, controller-manager, scheduler, kwok)", plane.start)
    return plane.api


def _populate(api: Api, count: int) -> None:
    """Install the CRDs, namespaces and a ClusterPolicy, create `count` simulated nodes, and wait until the nodes are
    Ready. Raises TimeoutError if a CRD is not served in time, or if some nodes are not Ready after 30 s plus 1 s for
    every 20 nodes. Raises ApiError if the API server refuses an object."""
    _step("CRDs, namespaces and a ClusterPolicy", lambda: install.install_all(api))
    manifests = nodes.fleet(count)
    _step(
        counted(count, "SIMULATED GPU node"),
        lambda: nodes.wait_nodes_ready(api, nodes.create_nodes(api, manifests), 30 + count / 20),
    )


def _step(what: str, work: Callable[[], object]) -> None:
    """Call `work`, and then print to stderr `what` with the seconds that it took. Errors of `work` are raised, and
    nothing is printed."""
    begin = time.monotonic()
    work()
    _say(f"  {time.monotonic() - begin:5.1f} s  {what}")


def _say_kubectl() -> None:
    """If PATH has no kubectl, print to stderr how to put ours there. Ours is built first if it is not cached; raises
    UnavailableError if that fails. Does nothing if PATH has a kubectl."""
    if shutil.which("kubectl") is None:
        folder = toolchain.control_plane_programs().kubectl.parent
        _say(f"there is no kubectl on PATH; to use the one built here: export PATH={shlex.quote(str(folder))}:$PATH")


def _kubeconfig(directory: Path) -> Path:
    """Return the path of the admin's kubeconfig of the cluster in `directory`."""
    return directory / "admin.kubeconfig"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` during the block, so that only one `up` or `down` runs at a time. The
    file is emptied, or created if it is missing. Waits for the lock without a limit."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with one subcommand per verb."""
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
    account = verbs.add_parser("kubeconfig", help="print a kubeconfig that acts as a service account")
    account.add_argument("--namespace", default=install.OPERATOR_NAMESPACE)
    account.add_argument("--service-account", required=True)
    account.add_argument("--node", help="bind the token to this Node, as the token of an agent is")
    return parser


def _count(text: str) -> int:
    """Parse a number of nodes, which may be 0. Raises ArgumentTypeError unless `text` is one or more digits."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"NODES must be a whole number such as 8, not {text!r}")
    return int(text)


def _driver(text: str) -> str:
    """Return `text` if it is `cluster` or `kind`, otherwise raise ArgumentTypeError. argparse does not apply `choices`
    to a default, and this default comes from the environment."""
    if text not in ("cluster", "kind"):
        raise argparse.ArgumentTypeError(f"DRIVER must be cluster or kind, not {text!r}")
    return text


def _say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)

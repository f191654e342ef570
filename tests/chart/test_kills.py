"""helm, killed after a write of `install`, `upgrade`, `rollback` or `uninstall`, leaves a release that the commands of docs/how-to/upgrade.md repair.
A proxy in front of the API server kills helm -9 as soon as the server has accepted write number N, so helm never sees the answer. By default a few writes of each verb are taken; FULL=1 takes all of them, FULL=49 those from the 49th on. HELM=helm3 runs the other major."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hack.cluster.api import Credentials
from hack.cluster.controlplane import ControlPlane
from hack.cluster.kubeconfig import service_account_token, write_kubeconfig
from hack.cluster.process import wait_until
from hack.faultproxy import FaultProxy
from hack.faultproxy.calls import ProxiedWrite
from tests.chart.charts import CHART, IMAGE, NAMESPACE, Helm
from tests.chart.cluster import RELEASE, SECONDS, Installed, bind, find_object, set_up
from tests.fakes.tls import Identity

pytestmark = [pytest.mark.cluster, pytest.mark.tools, pytest.mark.timeout(3000 if os.environ.get("FULL") else 900)]

VERBS = ("install", "upgrade", "rollback", "uninstall")
OPERATOR = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/gpusharing-operator"
EVERY = 5
"""One of so many kills is followed by the command that needs a second one: to go on instead of back."""
AGENTS = "/api/v1/namespaces/gpusharing-agent"
HOOK = f"/api/v1/namespaces/{NAMESPACE}/configmaps/gpusharing-uninstall-check"
OTHER = (
    "--set",
    "commonLabels.stage=other,networkPolicy.enabled=true,monitoring.grafanaDashboard.create=true,operator.leaseFlowSchema=false",
)
"""Values of the second revision: they change each object, add some and remove one."""
HALVES = pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.thorough)])
"""Every second kill, of which `.ci/run` takes the first half."""
OF_THE_SERVER = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields")
OF_CONTROLLERS = ("deployment.kubernetes.io/revision", "deprecated.daemonset.template.generation")
KEPT = 10
"""How many revisions of a release helm keeps, unless --history-max says otherwise."""
BEING_DELETED = "being terminated"

State = dict[str, Any]
"""The objects of the release by path; None where there is none."""


@dataclass
class Bench:
    installed: Installed
    proxy: FaultProxy
    kubeconfig: Path
    paths: set[str] = field(default_factory=set)

    def through(self, kill_at: int, *arguments: str) -> list[ProxiedWrite]:
        """Run helm through the proxy, and kill it as soon as write `kill_at` is accepted, or never for 0. Returns the writes that were accepted. Raises AssertionError if helm fails or ends before that write."""
        helm, running = self.installed.helm, list[subprocess.Popen[str]]()
        self.proxy.reset()

        def kill() -> None:
            running[0].kill()

        if kill_at:
            self.proxy.arm(kill_at, kill)
        running.append(
            subprocess.Popen(
                [str(helm.program), *arguments, "-n", NAMESPACE],
                env={**os.environ, **helm.own, "KUBECONFIG": str(self.kubeconfig)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        told, _ = running[0].communicate(timeout=600)
        assert running[0].returncode == (-9 if kill_at else 0), told
        return [write for write in self.proxy.writes if write.number]

    def run(self, verb: str, *arguments: str) -> None:
        """Run a command of the documentation until it succeeds; it may fail only while a namespace is going away."""

        def succeeds() -> bool:
            done = self.installed.run_helm(verb, *arguments)
            if done.returncode == 0:
                return True
            assert BEING_DELETED in done.stderr, f"helm {verb} {arguments}: {done.stderr}"
            return False

        wait_until(succeeds, SECONDS, f"helm {verb} to be possible")

    def history(self) -> list[tuple[int, str]]:
        """Number and status of each revision; empty if there is no release."""
        done = self.installed.run_helm("history", "--output", "json")
        if "release: not found" in done.stderr:
            return []
        assert done.returncode == 0, done.stderr
        return [(row["revision"], row["status"]) for row in json.loads(done.stdout)]

    def state(self) -> State:
        return {path: self._object(path) for path in sorted({*self.paths, HOOK})}

    def _object(self, path: str) -> Any:
        """The object at this path without status and what server or controllers write, or None if there is none."""
        found = find_object(self.installed.admin, path)
        if found is None:
            return None
        metadata = {key: value for key, value in found["metadata"].items() if key not in OF_THE_SERVER}
        # Helm 3 leaves a label of an earlier release on a CRD or a namespace that outlived it.
        if "customresourcedefinitions" in path or path == AGENTS:
            metadata["labels"] = {key: value for key, value in metadata["labels"].items() if key != "stage"}
        notes = metadata.get("annotations", {})
        metadata["annotations"] = {key: value for key, value in notes.items() if key not in OF_CONTROLLERS}
        return {key: value for key, value in found.items() if key != "status"} | {"metadata": metadata}

    def note(self, writes: list[ProxiedWrite]) -> None:
        for write in writes:
            if kind_of(write) != "secrets" and write.method != "DELETE":
                name = f"/{write.body['metadata']['name']}" if write.method == "POST" else ""
                self.paths.add(write.path + name)

    def expect(self, state: State, what: str) -> None:
        """Wait until the objects are these. The release must then be `deployed`, so that nothing is locked, or gone if the state has no operator."""
        try:
            wait_until(lambda: not self._differences(state), SECONDS, what)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self._differences(state)}") from None
        assert [status for _, status in self.history()[-1:]] == (["deployed"] if state[OPERATOR] else []), what

    def _differences(self, state: State) -> list[str]:
        """The paths of the objects that are not as in this state. Of a release that is gone only their presence counts: the CRDs stay as its last revision had them."""
        now = self.state()
        if state[OPERATOR]:
            return [path for path, wanted in state.items() if now[path] != wanted]
        return [path for path, wanted in state.items() if bool(now[path]) != bool(wanted)]


@pytest.fixture(scope="module")
def bench(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A control plane of its own. Through the proxy helm uses a token, because a client certificate would end there."""
    folder = tmp_path_factory.mktemp("kills")
    with ControlPlane() as plane:
        installed = set_up(plane, helm)
        api = installed.admin
        api.create(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "helm"}})
        bind(api, "helm", "cluster-admin", "helm", NAMESPACE)
        identity = Identity(folder / "tls")
        with FaultProxy(api.url, api.ca_pem, tls=identity.context()) as proxy:
            token = Credentials(token=service_account_token(api, NAMESPACE, "helm"))
            kubeconfig = write_kubeconfig(folder / "kubeconfig", proxy.url, identity.authority, "helm", token)
            yield Bench(installed, proxy, kubeconfig)


@dataclass(frozen=True)
class Reference:
    writes: dict[str, list[ProxiedWrite]]
    """By verb."""
    first: State
    """After `install`, and after `rollback` to it."""
    second: State
    """After `upgrade` with OTHER."""
    none: State
    """After `uninstall`: only the CRDs and the agent's namespace."""


@pytest.fixture(scope="module")
def reference(bench: Bench) -> Reference:
    bench.run("uninstall", "--wait")
    *others, last = VERBS
    writes = {verb: bench.through(0, *command(verb, 1)) for verb in others}
    bench.run("uninstall", "--wait")
    bench.run("install", str(CHART))
    # Of one revision: for every other one helm deletes one more Secret, at the end.
    writes[last] = bench.through(0, *command(last, 1))
    for of_verb in writes.values():
        bench.note(of_verb)
    none = bench.state()
    bench.run("install", str(CHART))
    first = bench.state()
    bench.run("upgrade", str(CHART), *OTHER)
    second = bench.state()
    bench.run("rollback", "1")
    assert bench.state() == first
    return Reference(writes, first, second, none)


def command(verb: str, revision: int) -> tuple[str, ...]:
    """helm's words for a verb; `revision` is that of a rollback."""
    return {
        "install": ("install", RELEASE, str(CHART), *IMAGE),
        "upgrade": ("upgrade", RELEASE, str(CHART), *IMAGE, *OTHER),
        "rollback": ("rollback", RELEASE, str(revision)),
        "uninstall": ("uninstall", RELEASE),
    }[verb]


def points(verb: str, writes: list[ProxiedWrite]) -> list[int]:
    """The numbers of the writes after which helm is killed: all from number FULL on if that is set, otherwise the first, the last, those of hooks, and the first of each kind of object, of which each verb takes a fourth."""
    if first := os.environ.get("FULL"):
        return list(range(int(first), len(writes) + 1))
    kinds = [kind_of(write) for write in writes]
    own = sorted(set(kinds) - {"secrets"})[VERBS.index(verb) :: len(VERBS)]
    hooks = [at for at, write in enumerate(writes, 1) if HOOK.rpartition("/")[2] in f"{write.path} {write.body}"]
    return sorted({1, len(writes), *hooks, *(kinds.index(kind) + 1 for kind in own)})


def kind_of(write: ProxiedWrite) -> str:
    parts = write.path.split("/")
    return parts[-1] if write.method == "POST" else parts[-2]


@HALVES
def test_after_a_killed_install_it_is_finished_or_begins_anew(bench: Bench, reference: Reference, half: int) -> None:
    for count, at in enumerate(points("install", reference.writes["install"])[half::2]):
        clear(bench, reference)
        bench.through(at, *command("install", 0))
        if not bench.history():
            bench.run("install", str(CHART))
        elif count % EVERY:
            bench.run("rollback", "1")
        else:
            bench.run("uninstall", "--wait")
            bench.run("install", str(CHART))
        bench.expect(reference.first, f"a new release after write {at}")


@HALVES
def test_after_a_killed_upgrade_the_last_good_revision_comes_back(
    bench: Bench, reference: Reference, half: int
) -> None:
    install_first(bench, reference)
    for count, at in enumerate(points("upgrade", reference.writes["upgrade"])[half::2]):
        good = bench.history()[-1][0]
        bench.through(at, *command("upgrade", 0))
        bench.run("rollback", str(good))
        bench.expect(reference.first, f"the revision before the upgrade killed after write {at}")
        if not count % EVERY:
            bench.run("upgrade", str(CHART), *OTHER)
            bench.expect(reference.second, f"the same upgrade again, after write {at}")
            bench.run("rollback", str(good))


@pytest.mark.thorough
def test_after_a_killed_rollback_the_last_good_revision_comes_back(bench: Bench, reference: Reference) -> None:
    older = -1
    for count, at in enumerate(points("rollback", reference.writes["rollback"])):
        if older not in revisions_after(bench.history(), 2 if count % EVERY else 4):
            install_first(bench, reference)
            older = bench.history()[-1][0]
            bench.run("upgrade", str(CHART), *OTHER)
        good = bench.history()[-1][0]
        bench.through(at, *command("rollback", older))
        bench.run("rollback", str(good))
        bench.expect(reference.second, f"the revision before the rollback killed after write {at}")
        if not count % EVERY:
            bench.run("rollback", str(older))
            bench.expect(reference.first, f"the same rollback again, after write {at}")
            bench.run("rollback", str(good))


def revisions_after(history: list[tuple[int, str]], more: int) -> list[int]:
    """The revisions in the history that are still there when there are so many more: helm keeps the last KEPT."""
    return [revision for revision, _ in history][max(0, len(history) + more - KEPT) :]


@pytest.mark.thorough
def test_after_a_killed_uninstall_it_is_finished_or_taken_back(bench: Bench, reference: Reference) -> None:
    for count, at in enumerate(points("uninstall", reference.writes["uninstall"])):
        install_first(bench, reference)
        bench.through(at, *command("uninstall", 0))
        left = bench.history()
        if left and count % EVERY:
            bench.run("rollback", str(left[-1][0]))
            # helm may have had no time to delete its ConfigMap, which does nothing; the next uninstall deletes it.
            left_over = {HOOK: bench.state()[HOOK]}
            bench.expect(reference.first | left_over, f"the release before the uninstall killed after write {at}")
            continue
        if left:
            bench.run("uninstall", "--wait")
        bench.expect(reference.none, f"no release, after write {at}")


def clear(bench: Bench, reference: Reference) -> None:
    if bench.history():
        bench.run("uninstall", "--wait")
    bench.expect(reference.none, "no release")


def install_first(bench: Bench, reference: Reference) -> None:
    """Have a release with the first values, undisturbed and with a history of its own."""
    if bench.history() and bench.state() == reference.first:
        return
    clear(bench, reference)
    bench.run("install", str(CHART))
    bench.expect(reference.first, "an installed release")

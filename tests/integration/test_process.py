"""The operator as a process: probes, signals, logs, leadership, missing rights, an API server that goes away."""

import contextlib
import json
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hack.cluster.api import Api
from hack.cluster.kubeconfig import write_token_kubeconfig
from hack.cluster.process import free_ports, wait_until
from tests.integration.product import FULL, HELD, LEASE, MIXED, NODES, SECONDS, SLICED, Product

from gpusharing.controller.main import LOST_LEASE
from hack import launch

RBAC = "rbac.authorization.k8s.io"
LEASE_TIMES = {"lease_duration": "15s", "renew_deadline": "14s", "retry_period": "0.5s"}
"""A dead leader blocks its successor for fifteen seconds; a machine that stands still for less ends no leader."""


class Watched:
    def __init__(self, product: Product, name: str, **settings: str) -> None:
        self.probes, self.metrics = free_ports(2)
        ports = {"probe_port": str(self.probes), "metrics_port": str(self.metrics)}
        self.process = product.operator(name, **ports, **settings)

    def get(self, path: str) -> tuple[int, str]:
        port = self.metrics if path == "/metrics" else self.probes
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def wait(self, path: str, status: int, *texts: str) -> str:
        said = ""

        def holds() -> bool:
            nonlocal said
            code, said = self.get(path)
            return code == status and all(part in said for part in texts)

        try:
            wait_until(holds, SECONDS, f"{path} to answer {status} {texts}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it answers {self.get(path)}; {self.log()[-2000:]}") from None
        return said

    def log(self) -> str:
        return self.process.log.read_text()

    def wait_for_log(self, part: str) -> None:
        """Until it has written a line with this in it; every line of the log is JSON."""

        def holds() -> bool:
            whole = self.log().rpartition("\n")[0]
            return any(part in json.dumps(json.loads(line)) for line in whole.splitlines())

        wait_until(holds, SECONDS, f"{part!r} in the log")


@contextlib.contextmanager
def busy_neighbors(api: Api, *paths: str) -> Iterator[None]:
    """Somebody else writes to these objects all the time, as kubelets and people do."""
    ended = threading.Event()

    def write() -> None:
        count = 0
        while not ended.is_set():
            count += 1
            for path in paths:
                api.merge_patch(path, {"metadata": {"annotations": {"example.com/heartbeat": str(count)}}})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()


def test_writes_of_others_cost_a_second_look_and_nothing_else(product: Product) -> None:
    watched = Watched(product, "crowded")
    with watched.process, product.pool() as pool:
        node = f"{NODES}/{pool.nodes[0]}"
        since = product.mark()
        pool.apply(SLICED)
        with busy_neighbors(product.api, node, pool.path):
            for spec in (FULL, SLICED) * 10:  # when they meet is chance; mostly in the first change
                pool.serve(spec)
                if {"nodes", "gpusharingpolicies"} <= looked_again(product, since):
                    break
        assert {"nodes", "gpusharingpolicies"} <= looked_again(product, since)
        refused = [
            request
            for request in product.requests(since)
            if request.resource == "nodes" and request.is_write and request.status == 409
        ]
        assert refused, "a write on an older version is refused"
        assert "unschedulable" not in pool.node()["spec"]
        assert pool.node()["metadata"]["annotations"]["example.com/heartbeat"], "and theirs is still there"


def looked_again(product: Product, since: int) -> set[str]:
    """Resources of which the operator read a single object: it does so after a 409 only."""
    return {request.resource for request in product.requests(since) if request.verb == "get"}


def holder(product: Product) -> str:
    with contextlib.suppress(Exception):
        return str(product.api.get(LEASE)["spec"].get("holderIdentity") or "")
    return ""


def test_probes_metrics_and_logs_of_one_life_and_a_prompt_end(product: Product) -> None:
    watched = Watched(product, "alone")
    with watched.process as process, product.pool() as pool:
        assert watched.wait("/readyz", 200) == "ok\n"
        assert watched.get("/healthz") == (200, "ok\n")
        pool.serve(SLICED)
        # The status was written first: the pass that wrote it counts itself afterwards.
        watched.wait(
            "/metrics",
            200,
            "gpusharing_leader 1.0",
            'gpusharing_actions_total{action="FenceNode",result="done"} 1.0',
            f'gpusharing_policy_nodes{{phase="Synced",policy="{pool.name}"}} 1.0',
            f'gpusharing_policy_condition{{policy="{pool.name}",reason="Synced",status="True",type="Ready"}} 1.0',
        )
        identity = holder(product)
        assert identity
        process.stop()  # ends it by force, and fails, when it takes longer than a kubelet would wait
        assert process.exit_status == 0, watched.log()
        assert holder(product) == "", "a successor need not wait"
        check_log(watched.log(), identity, pool.name)


def check_log(log: str, identity: str, policy: str) -> None:
    """Every line is JSON with the same first keys; what happened to a node names node, policy and phase."""
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    # Who waits says so, also for the moment until the Lease is taken or a slow server has listed the policies.
    loud = [line for line in lines if line["level"] != "info" and line.get("subject") != "lease"]
    assert [line for line in loud if "has not responded yet" not in line.get("why", "")] == []
    assert (lines[0]["event"], lines[0]["identity"]) == ("started", identity)
    assert lines[-1]["event"] == "stopped"
    told = [line for line in lines if line.get("policy") == policy]
    assert [line["event"] for line in told] == ["Reconfiguring", "LayoutVerified"]
    keys = {"event", "level", "timestamp", "node", "policy", "phase", "note"}
    assert [set(line) for line in told] == [keys, keys]


def test_an_operator_outside_a_pod_logs_in_with_a_kubeconfig(product: Product, tmp_path: Path) -> None:
    """As `make run` does; every other test here logs in as the pod does, with mounted files over TLS."""
    watched = Watched(product, "desk")
    in_a_pod = watched.process.environment
    assert Path(in_a_pod["SERVICE_ACCOUNT"], "token").exists()
    assert in_a_pod["KUBECONFIG"] == ""
    path = launch.operator_kubeconfig(product.plane.kubeconfig, tmp_path)
    pod = ("SERVICE_ACCOUNT", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
    watched.process.environment = {
        **{name: value for name, value in in_a_pod.items() if name not in pod},
        "KUBECONFIG": str(path),
    }
    watched.process.arguments = launch.AT_A_DESK
    with watched.process as process:
        assert watched.wait("/readyz", 200) == "ok\n"
        process.stop()
        assert process.exit_status == 0, watched.log()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_standby_finishes_what_a_leader_began_that_was(product: Product, end: signal.Signals) -> None:
    first, second = (Watched(product, name, **LEASE_TIMES, **HELD) for name in ("first", "second"))
    with first.process as leader, product.pool() as pool:
        first.wait("/readyz", 200)
        began_as = holder(product)
        with second.process as other:
            second.wait("/readyz", 200, f"ok: standby, {began_as} leads")
            assert second.get("/healthz")[0] == 200
            pool.serve(FULL)
            pool.hold()
            pool.apply(MIXED)
            pool.wait_held()
            metrics = second.get("/metrics")[1]
            assert "gpusharing_leader 0.0" in metrics
            assert "gpusharing_actions_total" not in metrics
            assert holder(product) == began_as
            leader.send(end)
            second.wait("/metrics", 200, "gpusharing_leader 1.0")
            assert holder(product) not in ("", began_as)
            pool.let_go()
            pool.wait_synced()
            second.wait("/readyz", 200, "ok\n")
            if end is signal.SIGSTOP:
                before, since = pool.node()["metadata"]["resourceVersion"], product.mark()
                leader.send(signal.SIGCONT)
                wait_until(lambda: leader.exit_status is not None, SECONDS, "the one that woke up to end")
                assert leader.exit_status == LOST_LEASE, first.log()
                assert pool.node()["metadata"]["resourceVersion"] == before
                # The new leader may still be writing statuses and Events.
                for resource in ("nodes", "pods/eviction", "configmaps"):
                    assert product.writes(resource, since=since) == []
            assert other.exit_status is None


def powerless(product: Product, folder: Path) -> Watched:
    """An operator with the account `default` of its namespace, which has no rights of ours; not started yet."""
    watched = Watched(product, "powerless")
    kubeconfig = write_token_kubeconfig(product.api, folder / "kubeconfig", launch.NAMESPACE, "default")
    process = watched.process
    process.environment = {**process.environment, "KUBECONFIG": str(kubeconfig)}
    process.arguments = launch.AT_A_DESK
    return watched


@contextlib.contextmanager
def lease_rights(api: Api) -> Iterator[None]:
    """The chart's rights on the Lease, and no others, for the account `default`."""
    binding = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "lease-only"},
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "gpusharing-operator"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": launch.NAMESPACE}],
    }
    path = f"/apis/{RBAC}/v1/namespaces/{launch.NAMESPACE}/rolebindings"
    api.create(path, binding)
    try:
        yield
    finally:
        api.delete(f"{path}/lease-only")


def check_hint(line: str) -> None:
    assert "rbac.create" in line
    assert "system:serviceaccount:gpusharing:default" in line


def test_without_rights_it_never_leads_and_names_verb_resource_and_chart_value(
    product: Product, tmp_path: Path
) -> None:
    watched = powerless(product, tmp_path)
    with watched.process:
        # Before the first answer it says that nobody is known to hold the Lease.
        text = watched.wait("/readyz", 503, "lease: not allowed to get leases")
        (line,) = text.splitlines()
        check_hint(line)
        assert watched.get("/healthz") == (200, "ok: standby, nobody leads\n"), "a restart would not help"
        watched.wait_for_log("rbac.create")


def test_with_rights_on_the_lease_only_it_leads_and_names_what_else_it_lacks(product: Product, tmp_path: Path) -> None:
    watched = powerless(product, tmp_path)
    with lease_rights(product.api), watched.process:
        # Before the first answers each part says that it has none yet.
        text = watched.wait("/readyz", 503, "nodes: not allowed to list nodes")
        check_hint(next(line for line in text.splitlines() if line.startswith("nodes: ")))
        assert not any(line.startswith("lease: ") for line in text.splitlines())
        assert "gpusharing_leader 1.0" in watched.get("/metrics")[1]
        assert watched.get("/healthz") == (200, "ok\n"), "a restart would not help"
        watched.wait_for_log("rbac.create")


def test_the_api_server_may_go_away_in_the_middle_of_a_change(product: Product) -> None:
    # On a slow machine the API server needs more than ten seconds until it answers again; that must not be the issue.
    watched = Watched(product, "outage", lease_duration="60s", renew_deadline="50s", **HELD)
    with watched.process as process, product.pool() as pool:
        watched.wait("/readyz", 200)
        pool.serve(FULL)
        pool.hold()
        pool.apply(MIXED)
        pool.wait_held()
        began = datetime.now(UTC)
        product.plane.kill_component("kube-apiserver")
        assert "kube-apiserver" not in product.plane.pids()
        time.sleep(5)  # the outage itself
        assert watched.get("/healthz")[0] == 200, "a restart would not help"
        watched.wait("/readyz", 503)
        product.plane.start_component("kube-apiserver")
        product.plane.wait_ready()
        product.outages.append((began, datetime.now(UTC) + timedelta(seconds=10)))
        pool.let_go()
        pool.wait_synced()
        watched.wait("/readyz", 200)
        assert process.exit_status is None
        assert "unschedulable" not in pool.node()["spec"]
        writes = [r for r in product.writes("nodes", pool.nodes[0]) if r.verb == "patch"]
        assert 1 + 3 <= len(writes) <= 1 + 3 + 2, "adoption, then three and at most two repeated"

"""The operator as a process against an API server on loopback: how it starts, what it logs, and how it ends.
What it does while it leads (controller/leading.py) is tested through it."""

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import ClientError, ClientSession
from hack.cluster.nodes import fleet
from hack.cluster.process import free_ports
from tests.fakes.apiserver import FakeServer, Gate, fake_server
from tests.wording import lacks

from gpusharing.controller.main import FAULT, LOST_LEASE, NO_LOGIN
from gpusharing.kube.client import CONFIG_MAPS, GPUNODES, LEASES, NODES, POLICIES
from gpusharing.kube.errors import NotFound
from gpusharing.kube.pageserver import MOST_CONNECTIONS

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds after which a test gives up: a start takes two on an idle machine."""
FAST = {
    "GPUSHARING_LEASE_DURATION": "60s",
    "GPUSHARING_RENEW_DEADLINE": "50s",
    "GPUSHARING_RETRY_PERIOD": "0.1s",
    "GPUSHARING_LISTEN": "127.0.0.1",
    "GPUSHARING_METRICS_PORT": "0",
}

NAMELESS = """
import pwd

def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = getpwuid
"""

FAULTY = """
import random

def uniform(low, high):
    raise ZeroDivisionError("a bug")

random.uniform = uniform
"""

ENDLESS = """
import threading
import prometheus_client.exposition

def generate_latest(*_, **__):
    threading.Event().wait()

prometheus_client.exposition.generate_latest = generate_latest
"""
"""Metrics whose rendering never ends."""


@asynccontextmanager
async def operator(environment: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """The operator with these variables and no others of its own; killed when the test leaves it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KUBE", "GPUSHARING_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gpusharing.controller.main",
        env={**kept, "PYTHONPATH": str(ROOT / "operator"), **environment},
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def end_of(environment: Mapping[str, str]) -> tuple[int | None, str, str]:
    """Exit status and both outputs of an operator that ends by itself."""
    async with operator(environment) as process:
        output, errors = await process.communicate()
        return process.returncode, output.decode(), errors.decode()


def log_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    """An empty cluster."""
    async with fake_server() as fake:
        yield fake


@pytest.fixture
def environment(server: FakeServer, tmp_path: Path) -> dict[str, str]:
    """A kubeconfig for the server, a Lease that is often renewed, and a port for the probes."""
    kubeconfig = tmp_path / "kubeconfig"
    entry = {"cluster": "here", "user": "us"}
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "contexts": [{"name": "here", "context": entry}],
                "clusters": [{"name": "here", "cluster": {"server": server.url}}],
                "users": [{"name": "us", "user": {"token": "t"}}],
            }
        )
    )
    return {**FAST, "KUBECONFIG": str(kubeconfig), "GPUSHARING_PROBE_PORT": str(free_ports(1)[0])}


def holder(server: FakeServer) -> str:
    """Who holds the Lease; empty when nobody does."""
    try:
        lease = server.cluster.get(LEASES, "gpusharing-operator", "gpusharing")
    except NotFound:
        return ""
    name: str = lease["spec"].get("holderIdentity") or ""
    return name


async def until(server: FakeServer, holds: Callable[[], bool]) -> None:
    """Wait until this is true of the cluster; looked at after every write."""
    while not holds():
        await server.cluster.changed()


async def shows(environment: Mapping[str, str], holds: Callable[[str], bool]) -> None:
    """Wait until this is true of what /readyz says, which is 200 where it says ok."""
    url, text = f"http://127.0.0.1:{environment['GPUSHARING_PROBE_PORT']}/readyz", ""
    async with ClientSession() as session:
        while not holds(text):
            with suppress(ClientError):  # it does not listen yet
                async with session.get(url) as answer:
                    text = await answer.text()
                    assert answer.status == (200 if text.startswith("ok") else 503)
            await asyncio.sleep(0.05)


async def ready(environment: Mapping[str, str]) -> str:
    """Wait until it is ready; returns what /healthz says then."""
    await shows(environment, lambda text: text.startswith("ok"))
    url = f"http://127.0.0.1:{environment['GPUSHARING_PROBE_PORT']}/healthz"
    async with ClientSession() as session, session.get(url) as answer:
        return await answer.text()


async def log_of_end(process: asyncio.subprocess.Process) -> list[dict[str, Any]]:
    """End it by SIGTERM, with status 0."""
    process.send_signal(signal.SIGTERM)
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return log_lines(errors.decode())


async def test_a_bad_setting_ends_the_start_with_the_name_of_the_variable() -> None:
    status, output, errors = await end_of({"GPUSHARING_SETTLE": "soon"})
    assert (status, output) == (FAULT, "")
    assert not lacks(errors, "GPUSHARING_SETTLE=soon", "GPUSHARING_SETTLE=5s")


async def test_without_credentials_it_says_so_and_ends_with_2() -> None:
    status, _, errors = await end_of({})
    assert status == NO_LOGIN
    (line,) = log_lines(errors)
    assert (line["event"], line["level"]) == ("cannot log in to the API server", "error")
    assert "service account" in line["error"] or "pod" in line["error"]


async def test_a_kubeconfig_that_is_not_there_is_named() -> None:
    status, _, errors = await end_of({"KUBECONFIG": "/does/not/exist"})
    assert status == NO_LOGIN
    assert "/does/not/exist" in log_lines(errors)[-1]["error"]


async def test_a_port_that_is_taken_is_named(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, errors = await end_of({**environment, "GPUSHARING_PROBE_PORT": str(port)})
    assert status == FAULT
    line = log_lines(errors)[-1]
    assert line["event"] == "cannot listen on a port"
    assert (line["variable"], line["port"]) == ("GPUSHARING_PROBE_PORT", port)


async def test_on_sigterm_it_releases_the_lease_and_ends_with_0(
    server: FakeServer, environment: dict[str, str]
) -> None:
    server.cluster.add(POLICIES, {"metadata": {"name": "pool-a"}, "spec": {}})
    async with operator(environment) as process:
        assert await ready(environment) == "ok\n"
        assert holder(server)
        lines = await log_of_end(process)
    assert holder(server) == ""
    assert [line["event"] for line in lines if line["event"] in ("started", "stopped")] == ["started", "stopped"]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    assert all(line["level"] in ("info", "warning") for line in lines), lines
    assert {agent for _, _, agent in server.writes} == {"gpusharing-operator"}, "kopf writes nothing"


async def test_an_edit_of_a_policy_is_answered_without_waiting_for_the_next_list(
    server: FakeServer, environment: dict[str, str]
) -> None:
    def answered() -> bool:
        policy = server.cluster.get(POLICIES, "pool-a")
        seen = policy.get("status", {}).get("observedGeneration")
        return bool(seen == policy["metadata"]["generation"])

    async with operator(environment):
        await ready(environment)
        await server.watched(POLICIES)
        server.cluster.add(POLICIES, {"metadata": {"name": "pool-a"}, "spec": {}})
        await until(server, answered)
        server.cluster.patch(POLICIES, "pool-a", {"spec": {"mode": "Full"}})
        assert not answered()
        await until(server, answered)
        (row,) = (
            row for row in server.cluster.get(POLICIES, "pool-a")["status"]["conditions"] if row["type"] == "Accepted"
        )
        assert (row["status"], row["reason"]) == ("False", "InvalidSpec")
        assert "nodeSelector" in row["message"]


async def test_it_outlives_an_error_that_ends_kopf(server: FakeServer, environment: dict[str, str]) -> None:
    server.cluster.add(POLICIES, {"metadata": {"name": "pool-a"}, "spec": {}})
    async with operator(environment) as process:
        await ready(environment)
        await server.break_watches(POLICIES, 500)
        assert await server.watched(POLICIES), "kopf is back"
        assert await ready(environment) == "ok\n"
        lines = await log_of_end(process)
    assert "the policies cannot be watched; trying again" in [line["event"] for line in lines]
    traces = [line for line in lines if line.get("logger", "").startswith("kopf")]
    assert traces
    assert all("Traceback" in line["exception"] for line in traces), "also what libraries log is complete"


async def test_it_becomes_ready_as_a_user_without_a_name(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NAMELESS)
    path = os.pathsep.join((str(tmp_path), str(ROOT / "operator")))
    no_names = dict.fromkeys(("LOGNAME", "USER", "LNAME", "USERNAME"), "")
    async with operator({**environment, **no_names, "PYTHONPATH": path}):
        assert await ready(environment) == "ok\n"


async def test_on_sigterm_it_ends_also_while_kopf_is_not_running(
    server: FakeServer, environment: dict[str, str]
) -> None:
    server.absent.add(POLICIES)
    async with operator(environment) as process:
        await until(server, lambda: holder(server) != "")
        await log_of_end(process)
    assert holder(server) == ""


async def test_a_process_that_lost_the_lease_ends_at_once_and_writes_nothing_more(
    server: FakeServer, environment: dict[str, str]
) -> None:
    async with operator(environment) as process:
        await ready(environment)
        server.cluster.patch(LEASES, "gpusharing-operator", {"spec": {"holderIdentity": "somebody-else"}}, "gpusharing")
        _, errors = await process.communicate()
    assert process.returncode == LOST_LEASE
    assert not lacks(log_lines(errors.decode())[-1]["event"], "Lease", "leader")
    assert holder(server) == "somebody-else"


async def test_a_process_that_was_frozen_beyond_its_lease_wakes_to_answers_and_writes_nothing_more(
    server: FakeServer, environment: dict[str, str]
) -> None:
    for node in fleet(12):
        server.cluster.add(NODES, node)
    gate = server.gates["POST", GPUNODES] = Gate()
    short = {"GPUSHARING_LEASE_DURATION": "4s", "GPUSHARING_RENEW_DEADLINE": f"{(deadline := 3)}s"}
    async with operator({**environment, **short}) as process:
        await gate.came.wait()
        process.send_signal(signal.SIGSTOP)
        passed = asyncio.create_task(asyncio.sleep(deadline))
        begun = len([asked for asked in server.writes if asked[1].endswith("/gpunodes")])
        gate.opened.set()
        await until(server, lambda: len(server.cluster.objects(GPUNODES)) >= begun)
        await passed
        written = len(server.writes)
        process.send_signal(signal.SIGCONT)
        _, errors = await process.communicate()
    assert process.returncode == LOST_LEASE, errors.decode()
    after = [path for _, path, _ in server.writes[written:]]
    assert [path for path in after if "/leases/" not in path] == [], "a renewal compares and swaps"
    assert len(server.cluster.objects(GPUNODES)) < 12, "it had more to write"


async def test_a_leader_that_sleeps_until_a_standby_leads_wakes_and_writes_nothing(
    server: FakeServer, environment: dict[str, str]
) -> None:
    short = {"GPUSHARING_LEASE_DURATION": "4s", "GPUSHARING_RENEW_DEADLINE": "3s"}
    beside = {**environment, **short, "GPUSHARING_PROBE_PORT": str(free_ports(1)[0])}
    async with operator({**environment, **short}) as sleeper:
        assert await ready(environment) == "ok\n"
        leader = holder(server)
        async with operator(beside):
            assert await ready(beside) == f"ok: standby, {leader} leads\n"
            sleeper.send_signal(signal.SIGSTOP)
            await until(server, lambda: holder(server) not in ("", leader))
            while await ready(beside) != "ok\n":  # noqa: ASYNC110 - a page of another process sets no event
                await asyncio.sleep(0.1)
            written, successor = len(server.writes), holder(server)
            sleeper.send_signal(signal.SIGCONT)
            _, errors = await sleeper.communicate()
            assert sleeper.returncode == LOST_LEASE, errors.decode()
            assert holder(server) == successor
            assert [path for _, path, _ in server.writes[written:] if "/leases/" not in path] == []


async def test_a_second_operator_waits_for_the_lease_and_says_who_leads(
    server: FakeServer, environment: dict[str, str]
) -> None:
    server.cluster.add(
        LEASES,
        {
            "metadata": {"name": "gpusharing-operator", "namespace": "gpusharing"},
            "spec": {"holderIdentity": "the-first", "leaseDurationSeconds": 3600},
        },
    )
    async with operator(environment) as process:
        await shows(environment, lambda text: text == "ok: standby, the-first leads\n")
        await log_of_end(process)
    assert holder(server) == "the-first"
    assert server.writes == []


async def test_a_node_that_could_be_any_ends_nothing_and_is_what_readyz_says(
    server: FakeServer, environment: dict[str, str]
) -> None:
    server.garbled.add(NODES)
    async with operator(environment) as process:
        await shows(environment, lambda text: "an object of nodes without metadata.name" in text)
        server.garbled.clear()
        assert await ready(environment) == "ok\n"
        lines = await log_of_end(process)
    told = [line["event"] for line in lines if "without metadata.name" in line["event"]]
    assert len(told) == 1


async def test_a_fault_of_its_own_ends_it_with_a_trace_in_the_log(
    server: FakeServer, environment: dict[str, str], tmp_path: Path
) -> None:
    """What matters is that the end is told as everything else is."""
    (tmp_path / "sitecustomize.py").write_text(FAULTY)
    path = os.pathsep.join((str(tmp_path), str(ROOT / "operator")))
    status, _, errors = await end_of({**environment, "PYTHONPATH": path})
    line = log_lines(errors)[-1]
    assert (status, line["level"]) == (FAULT, "error")
    assert not lacks(line["event"], "internal error")
    assert "Traceback" in line["exception"]
    assert holder(server) == "", "the next one need not wait"


async def test_the_lease_has_connections_that_carry_nothing_but_what_stops_the_operator(
    server: FakeServer, environment: dict[str, str]
) -> None:
    async with operator(environment) as process:
        await ready(environment)
        renewed = ("PATCH", "/apis/coordination.k8s.io/v1/namespaces/gpusharing/leases/gpusharing-operator")
        await until(server, lambda: [asked[:2] for asked in server.asked].count(renewed) > 3)
        carried = [kinds for kinds in server.connections.values() if LEASES in kinds]
        assert set().union(*carried) == {LEASES, CONFIG_MAPS}, "the Lease, and what stops the operator"
        await log_of_end(process)


async def test_a_flood_that_asks_for_metrics_holds_up_neither_the_lease_nor_the_probes(
    server: FakeServer, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ENDLESS)
    path, (port,) = os.pathsep.join((str(tmp_path), str(ROOT / "operator"))), free_ports(1)
    renewal = "/apis/coordination.k8s.io/v1/namespaces/gpusharing/leases/gpusharing-operator"

    def renewals() -> int:
        return [asked[:2] for asked in server.asked].count(("PATCH", renewal))

    async with operator({**environment, "PYTHONPATH": path, "GPUSHARING_METRICS_PORT": str(port)}):
        assert await ready(environment) == "ok\n"
        flood = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2 * MOST_CONNECTIONS)]
        for _, writer in flood:
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        with suppress(ConnectionError):
            assert await flood[0][0].read() == b"", "ended for a later one, while the rendering goes on"
        begun = renewals()
        await until(server, lambda: renewals() > begun + 20)
        assert await ready(environment) == "ok\n"
        for _, writer in flood:
            writer.close()


async def test_what_time_it_is_the_api_server_says(server: FakeServer, environment: dict[str, str]) -> None:
    server.date = "Sat, 01 Jan 2033 12:00:00 GMT"
    async with operator(environment) as process:
        await ready(environment)
        lease = server.cluster.get(LEASES, "gpusharing-operator", "gpusharing")
        assert lease["spec"]["renewTime"].startswith("2033-01-01T12:0")
        await log_of_end(process)


CONSOLE = (
    "import structlog; from gpusharing.controller.main import configure_logs;"
    " from gpusharing.controller.settings import Settings; configure_logs(Settings(log_format='console'));"
    " structlog.get_logger().warning('told', node='gpu-1')"
)


@pytest.mark.parametrize("terminal", [False, True], ids=["into a file", "on a terminal"])
def test_text_for_people_has_colours_on_a_terminal_only(terminal: bool) -> None:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    with closing_both(ours, theirs):
        subprocess.run([sys.executable, "-c", CONSOLE], stderr=theirs, check=True)
        line = os.read(ours, 65536)
    assert b"told" in line
    assert (b"\x1b[" in line) == terminal


@contextmanager
def closing_both(*files: int) -> Iterator[None]:
    try:
        yield
    finally:
        for file in files:
            os.close(file)

"""Who we are: service account files, and kubeconfigs as the official client reads them; and by which proxy we go."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from hack.cluster.certs import create_pki
from tests.fakes.serving import serving
from tests.fakes.tls import Identity
from tests.kube.scripted import found, scripted, status

from gpusharing.agent.rest import RestClient
from gpusharing.kube.client import NODES
from gpusharing.kube.errors import Unauthorized, Unavailable
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import OfficialLogin, ServiceAccountLogin, environment_login, find_proxy

OPERATOR = Path(__file__).parents[2] / "operator"
NODE = {"metadata": {"name": "n"}}


def kubeconfig(path: Path, server: str, context: str = "c", proxy: str = "", **user: Any) -> Path:
    cluster = {"server": server} | ({"proxy-url": proxy} if proxy else {})
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": context,
        "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
        "clusters": [{"name": context, "cluster": cluster}],
        "users": [{"name": context, "user": user}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


async def test_the_token_of_a_kubeconfig_is_sent_and_read_again_when_refused(tmp_path: Path) -> None:
    async with scripted(found(NODE), status(401), found(NODE)) as (script, _):
        path = kubeconfig(tmp_path / "config", script.url, token="one")
        async with HttpClient(OfficialLogin(path)) as client:
            await client.get(NODES, "n")
            kubeconfig(path, script.url, token="two")
            await client.get(NODES, "n")
    sent = [asked.headers["Authorization"] for asked in script.asked]
    assert sent == ["Bearer one", "Bearer one", "Bearer two"]


async def test_an_exec_plugin_is_asked_for_the_token(tmp_path: Path) -> None:
    credential = '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"made"}}'
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "echo", "args": [credential]}
    async with scripted(found(NODE)) as (script, _):
        path = kubeconfig(tmp_path / "config", script.url, exec=plugin)
        async with HttpClient(OfficialLogin(path)) as client:
            await client.get(NODES, "n")
    assert script.asked[0].headers["Authorization"] == "Bearer made"


FAILING = {
    "that says why": (["/bin/sh", "-c", "echo 'your session\nis over' >&2; exit 1"], "your session is over"),
    "that says nothing": (["/bin/sh", "-c", "exit 3"], "exec: process returned 3"),
    "that is not there": (["no-such-login"], "no-such-login"),
    "that answers something else": (["echo", "hello"], "failed to decode"),
}


@pytest.mark.parametrize("name", FAILING)
async def test_a_login_program_that_fails_is_told_and_nothing_is_asked_as_nobody(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (command, *words), told = FAILING[name]
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": command, "args": words}
    async with scripted(found(NODE)) as (script, _):
        path = kubeconfig(tmp_path / "config", script.url, exec=plugin)
        with pytest.raises(Unauthorized, match=told) as raised:
            async with HttpClient(OfficialLogin(path)) as client:
                await client.get(NODES, "n")
    assert "Log in again" in str(raised.value)
    assert script.asked == []
    assert caplog.text == "", "it is told once"


async def test_a_login_program_that_fails_does_no_harm_beside_a_token_or_a_certificate(tmp_path: Path) -> None:
    broken = {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-login"}
    async with scripted(found(NODE)) as (script, _):
        path = kubeconfig(tmp_path / "config", script.url, exec=broken, token="spare")
        async with HttpClient(OfficialLogin(path)) as client:
            await client.get(NODES, "n")
    assert script.asked[0].headers["Authorization"] == "Bearer spare"
    pki = create_pki(tmp_path / "pki")
    certified = {"client-certificate": str(pki.cert("admin")), "client-key": str(pki.key("admin"))}
    path = kubeconfig(tmp_path / "certified", "https://127.0.0.1:1", exec=broken, **certified)
    assert (await OfficialLogin(path).access()).tls is not None


async def test_what_the_official_client_only_remarks_is_no_complaint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It remarks which ways of logging in it tries, and a user without any of them is nobody, as for kubectl."""
    caplog.set_level("DEBUG", "kubernetes.aio.config.kube_config")
    path = kubeconfig(tmp_path / "config", "http://127.0.0.1:1", username="me")
    assert await OfficialLogin(path).token() is None


@pytest.mark.parametrize("environment", [{}, {"SERVICE_ACCOUNT": ""}], ids=["nothing", "an empty name"])
def test_without_a_folder_in_the_environment_the_service_account_is_where_every_pod_has_it(
    environment: dict[str, str],
) -> None:
    login = environment_login(environment)
    assert isinstance(login, ServiceAccountLogin)
    assert login.directory == Path("/var/run/secrets/kubernetes.io/serviceaccount")


@pytest.mark.parametrize("content", [None, "{", "apiVersion: v1\nkind: Config\n"], ids=["missing", "no YAML", "empty"])
async def test_a_kubeconfig_that_cannot_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Unauthorized, match=str(path)):
        await OfficialLogin(path).access()


@pytest.mark.parametrize(("context", "port"), [("east", 1), ("west", 2)])
async def test_of_several_kubeconfigs_the_context_that_is_named_counts(tmp_path: Path, context: str, port: int) -> None:
    east = kubeconfig(tmp_path / "east", "http://127.0.0.1:1", "east", token="t")
    west = kubeconfig(tmp_path / "west", "http://127.0.0.1:2", "west", token="t")
    login = OfficialLogin(Path(f"{east}{os.pathsep}{west}"), context)
    assert (await login.access()).server == f"http://127.0.0.1:{port}"


async def test_a_kubeconfig_is_read_once_for_all_its_contexts_and_again_when_it_has_changed(tmp_path: Path) -> None:
    """The official client takes 0.1 s to read 100 contexts, so that a command in all of them took 10 s."""
    path = kubeconfig(tmp_path / "config", "http://127.0.0.1:1", "east", token="t")
    load, read = yaml.safe_load, list[Any]()

    def count(stream: Any) -> Any:
        read.append(stream)
        return load(stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "safe_load", count)
        servers = [(await OfficialLogin(path, "east").access()).server for _ in range(3)]
    assert (servers, len(read)) == (["http://127.0.0.1:1"] * 3, 1)
    kubeconfig(path, "http://127.0.0.1:12345", "east", token="t")
    assert (await OfficialLogin(path, "east").access()).server == "http://127.0.0.1:12345"


async def test_a_kubeconfig_without_the_official_client_tells_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.aio", None)  # as in the image: importing it fails
    with pytest.raises(Unauthorized, match=r"KUBECONFIG=.*config is set.*\[kubeconfig\]"):
        await OfficialLogin(tmp_path / "config").access()


LOADED = """
import asyncio, sys
from pathlib import Path
from gpusharing.kube.login import OfficialLogin
print(asyncio.run(OfficialLogin(Path(sys.argv[1])).access()).server)
loaded = [name for name in sys.modules if name.startswith(("kubernetes.", "requests"))]
print([name for name in loaded if not name.startswith("kubernetes.aio")])
"""


def test_a_kubeconfig_is_read_without_the_blocking_half_of_the_official_client(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "east", "https://127.0.0.1:1", "east", token="t")
    program = [sys.executable, "-c", LOADED, str(path)]
    done = subprocess.run(program, check=False, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("https://127.0.0.1:1\n[]\n", "")


async def test_outside_a_pod_there_is_no_service_account() -> None:
    with pytest.raises(Unauthorized, match="is not running in a pod"):
        await ServiceAccountLogin({}).access()


def mounted(directory: Path, token: str) -> Path:
    pki = create_pki(directory / "pki")
    (directory / "ca.crt").write_text(pki.ca.read_text())
    (directory / "token").write_text(token)
    return directory


async def test_a_projected_token_is_read_again_each_minute_and_at_once_when_refused(tmp_path: Path) -> None:
    now = [0.0]
    login = ServiceAccountLogin({}, mounted(tmp_path, "one\n"), clock=lambda: now[0])
    assert await login.token() == "Bearer one"
    (tmp_path / "token").write_text("two")
    now[0] = 59.0
    assert await login.token() == "Bearer one"
    now[0] = 61.0
    assert await login.token() == "Bearer two"
    (tmp_path / "token").write_text("three")
    await login.renew()
    assert await login.token() == "Bearer three"


async def test_an_empty_token_is_an_error_until_the_kubelet_has_written_it(tmp_path: Path) -> None:
    login = ServiceAccountLogin({}, mounted(tmp_path, "\n"))
    for _ in range(2):
        with pytest.raises(Unauthorized, match=r"token is empty; if the kubelet does not write it soon"):
            await login.token()
    (tmp_path / "token").write_text("one\n")
    assert await login.token() == "Bearer one"


@pytest.mark.parametrize(
    ("host", "port", "server"),
    [
        ("10.0.0.1", "6443", "https://10.0.0.1:6443"),
        ("fd00::1", "443", "https://[fd00::1]:443"),
        ("10.0.0.1", "", "https://10.0.0.1:443"),
    ],
    ids=["IPv4", "IPv6", "an empty port"],
)
async def test_the_address_of_the_server_comes_from_the_environment(
    tmp_path: Path, host: str, port: str, server: str
) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    access = await ServiceAccountLogin(environment, mounted(tmp_path, "t")).access()
    assert access.server == server
    assert access.tls is not None
    assert access.tls.cert_store_stats()["x509_ca"] == 1


@asynccontextmanager
async def serving_node(identity: Identity, port: int | None = None) -> AsyncIterator[int]:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(NODE)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with serving(app, port, identity.context()) as url:
        yield int(url.rpartition(":")[2])


async def test_after_a_rotation_of_the_clusters_authority_new_connections_work(tmp_path: Path) -> None:
    first, second = Identity(tmp_path / "first"), Identity(tmp_path / "second")
    account = mounted(tmp_path, "t")
    (account / "ca.crt").write_text(first.authority)
    async with serving_node(first) as port:
        environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
        client = HttpClient(ServiceAccountLogin(environment, account))
        assert await client.get(NODES, "n") == NODE
    async with client, serving_node(second, port):
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            await client.get(NODES, "n")
        (account / "ca.crt").write_text(second.authority)
        assert await client.get(NODES, "n") == NODE


async def test_a_file_that_did_not_change_is_not_parsed_again(tmp_path: Path) -> None:
    login = ServiceAccountLogin({"KUBERNETES_SERVICE_HOST": "h"}, mounted(tmp_path, "t"))
    assert await login.access() is await login.access(), "and connections are used again"


async def test_a_new_token_comes_with_a_new_file_of_the_same_authority_and_connections_stay(tmp_path: Path) -> None:
    account = mounted(tmp_path, "t")
    login = ServiceAccountLogin({"KUBERNETES_SERVICE_HOST": "h"}, account)
    before = await login.access()
    (tmp_path / "next").write_text((account / "ca.crt").read_text())
    (tmp_path / "next").replace(account / "ca.crt")
    assert await login.access() is before


@pytest.mark.parametrize(("content", "told"), [(" \n", "is empty"), ("PEM", "contains no certificates")])
async def test_an_authority_that_is_none_is_named_and_never_replaced_by_those_of_the_image(
    tmp_path: Path, content: str, told: str
) -> None:
    account = mounted(tmp_path, "t")
    (account / "ca.crt").write_text(content)
    with pytest.raises(Unauthorized, match=f"ca.crt {told}"):
        await ServiceAccountLogin({"KUBERNETES_SERVICE_HOST": "h"}, account).access()


async def test_a_pod_without_a_token_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(Unauthorized, match="no service account token"):
        await ServiceAccountLogin({}, tmp_path).token()


def test_the_agent_does_not_pay_for_the_official_client() -> None:
    """16 MiB on every GPU node: importing our client and logging in as a service account must not load it."""
    code = "import sys, gpusharing.kube.http; sys.exit(any(m.split('.')[0] == 'kubernetes' for m in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(OPERATOR)})


@pytest.mark.parametrize("name", ["ca.crt", "token"])
async def test_a_file_of_the_service_account_that_is_no_text_is_named(tmp_path: Path, name: str) -> None:
    account = mounted(tmp_path, "t")
    (account / name).write_bytes(b"\xff\xfe")
    login = ServiceAccountLogin({"KUBERNETES_SERVICE_HOST": "127.0.0.1"}, account)
    for client in (HttpClient(login), RestClient(login)):
        with pytest.raises(Unauthorized, match=f"{name} is not a text file"):
            await client.get(NODES, "n")


UNUSABLE = {
    "a token of two lines": ("", "one\ntwo"),
    "a host with an empty part": ("https://a..example.com", "t"),
    "a port that is too large": ("https://example.invalid:99999", "t"),
    "a port that is no number": ("https://example.invalid:https", "t"),
    "half an IPv6 address": ("https://[fd00::1", "t"),
}


@pytest.mark.parametrize(("server", "token"), UNUSABLE.values(), ids=UNUSABLE.keys())
async def test_a_server_or_a_token_that_cannot_be_sent_is_an_error_of_the_call(
    tmp_path: Path, server: str, token: str
) -> None:
    async with scripted() as (script, _):
        login = OfficialLogin(kubeconfig(tmp_path / "config", server or script.url, token=token))
        operators = HttpClient(login)
        for client in (operators, RestClient(login)):
            with pytest.raises(Unavailable, match="cannot get nodes at"):
                await client.get(NODES, "n")
        await operators.close()
    assert script.asked == []


SERVER = "https://api.example.com:6443"
PROXY = "http://proxy.example.com:3128"
OTHER = "http://other.example.com:3128"

CHOSEN: dict[str, tuple[str, str, dict[str, str], str | None]] = {
    "none is named": (SERVER, "", {}, None),
    "the kubeconfig's comes first": (SERVER, PROXY, {"HTTPS_PROXY": OTHER}, PROXY),
    "and NO_PROXY is not about it": (SERVER, PROXY, {"NO_PROXY": "*"}, PROXY),
    "the environment's": (SERVER, "", {"HTTPS_PROXY": PROXY}, PROXY),
    "in lower case": (SERVER, "", {"https_proxy": PROXY}, PROXY),
    "without a scheme it is http": (SERVER, "", {"HTTPS_PROXY": "proxy.example.com:3128"}, PROXY),
    "a proxy of https": (SERVER, "https://proxy.example.com", {}, "https://proxy.example.com"),
    "that of http is for http only": (SERVER, "", {"HTTP_PROXY": PROXY}, None),
    "and is taken there": ("http://api.example.com", "", {"HTTP_PROXY": PROXY, "HTTPS_PROXY": OTHER}, PROXY),
    "an empty one is none": (SERVER, "", {"HTTPS_PROXY": ""}, None),
    "the host is exempt": (SERVER, "", {"HTTPS_PROXY": PROXY, "NO_PROXY": "a.b, api.example.com"}, None),
    "the host with its port is exempt": (SERVER, "", {"HTTPS_PROXY": PROXY, "NO_PROXY": "api.example.com:6443"}, None),
    "another port is exempt": (SERVER, "", {"HTTPS_PROXY": PROXY, "NO_PROXY": "api.example.com:443"}, PROXY),
    "its domain is exempt": (SERVER, "", {"HTTPS_PROXY": PROXY, "no_proxy": ".example.com"}, None),
    "all are exempt": (SERVER, "", {"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, None),
    "its network is exempt": ("https://10.3.0.1", "", {"HTTPS_PROXY": PROXY, "NO_PROXY": "x, 10.0.0.0/8"}, None),
    "another network is": ("https://10.3.0.1", "", {"HTTPS_PROXY": PROXY, "NO_PROXY": "10.4.0.0/16"}, PROXY),
    "an IPv6 network is": ("https://[fd00::1]:6443", "", {"HTTPS_PROXY": PROXY, "NO_PROXY": "fd00::/8"}, None),
    "no URL": ("https://[::1", "", {"NO_PROXY": "x"}, None),
    "loopback": ("https://127.0.0.1:6443", "", {"HTTPS_PROXY": PROXY}, None),
    "loopback by name": ("https://localhost:6443", "", {"HTTPS_PROXY": PROXY}, None),
}


@pytest.mark.parametrize(("server", "url", "environment", "proxy"), CHOSEN.values(), ids=CHOSEN.keys())
def test_the_proxy_to_a_server_is_the_one_that_kubectl_takes(
    server: str, url: str, environment: dict[str, str], proxy: str | None
) -> None:
    assert find_proxy(server, url, environment) == proxy


@pytest.mark.parametrize(
    "proxy", ["socks5://me:secret@proxy:1080", "proxy:3128", "http://", "http://[::1", "http://proxy:0"]
)
def test_a_proxy_that_cannot_be_used_is_refused_by_field_with_an_example(proxy: str) -> None:
    with pytest.raises(Unauthorized, match=r"^proxy-url of the cluster.* http://proxy.example.com:3128$") as caught:
        find_proxy(SERVER, proxy, {})
    assert "secret" not in str(caught.value)


def test_a_variable_with_a_proxy_that_cannot_be_used_is_named() -> None:
    with pytest.raises(Unauthorized, match=r"^HTTPS_PROXY names a proxy"):
        find_proxy(SERVER, "", {"HTTPS_PROXY": "socks5://proxy:1080"})


@pytest.mark.parametrize("by", ["the kubeconfig", "the environment"])
async def test_what_is_read_with_a_kubeconfig_goes_through_the_proxy(tmp_path: Path, by: str) -> None:
    asked: list[str] = []

    async def passed_on(request: web.Request) -> web.StreamResponse:
        asked.append(str(request.url))
        return web.json_response({"metadata": {"name": "n"}})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", passed_on)
    async with serving(app) as url:
        proxy = url if by == "the kubeconfig" else ""
        path = kubeconfig(tmp_path / "config", "http://api.example.com", proxy=proxy, token="t")
        environment = {"HTTP_PROXY": url if by == "the environment" else "http://other.invalid"}
        async with HttpClient(environment_login({"KUBECONFIG": str(path), **environment})) as client:
            await client.get(NODES, "n")
    assert asked == ["http://api.example.com/api/v1/nodes/n"]

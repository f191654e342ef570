"""The proxy that kubectl would take to an API server (kube/login.py)."""

from pathlib import Path

import pytest
import yaml
from aiohttp import web
from tests.fakes.serving import serving

from gpusharing.kube.client import NODES
from gpusharing.kube.errors import Unauthorized
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import environment_login, find_proxy

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
        cluster = {"server": "http://api.example.com"} | ({"proxy-url": url} if by == "the kubeconfig" else {})
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }
        path = tmp_path / "config"
        path.write_text(yaml.safe_dump(document))
        environment = {"HTTP_PROXY": url if by == "the environment" else "http://other.invalid"}
        async with HttpClient(environment_login({"KUBECONFIG": str(path), **environment})) as client:
            await client.get(NODES, "n")
    assert asked == ["http://api.example.com/api/v1/nodes/n"]

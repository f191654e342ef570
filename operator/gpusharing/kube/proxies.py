"""The proxy in front of an API server, chosen as kubectl does: `proxy-url` of the cluster, else the environment.

HTTPS_PROXY or HTTP_PROXY is used, depending on the scheme of the server, unless NO_PROXY lists the server's host or network, or the server is on loopback (golang.org/x/net/http/httpproxy). kubectl can also use SOCKS proxies; we cannot, and raise an error that says so.
"""

from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed does not know it

from gpusharing.kube.errors import Unauthorized


def find_proxy(server: str, proxy_url: str | None, environment: Mapping[str, str]) -> str | None:
    """Return the URL of the proxy for this server, or None. `proxy_url`, from the kubeconfig, takes precedence, even over NO_PROXY.

    Raises Unauthorized for anything but the URL of an HTTP or HTTPS proxy; the message contains no password.
    """
    source, proxy = "proxy-url of the cluster in the kubeconfig", proxy_url
    if not proxy and not _is_direct(server, environment):
        variable = f"{server.partition(':')[0]}_proxy"
        source, proxy = _first(environment, variable.upper(), variable)
        if proxy and "://" not in proxy:
            proxy = f"http://{proxy}"
    if not proxy:
        return None
    with suppress(ValueError):
        url = urlsplit(proxy)
        if url.scheme in ("http", "https") and url.hostname and url.port != 0:
            return proxy
    raise Unauthorized(
        f"{source} names a proxy that cannot be used here, because only HTTP and HTTPS proxies can. Set a URL such as"
        " http://proxy.example.com:3128"
    )


def _is_direct(server: str, environment: Mapping[str, str]) -> bool:
    _, exempt = _first(environment, "NO_PROXY", "no_proxy")
    with suppress(ValueError):  # not a URL, or no IP address: an error of the connection says what is wrong
        place = urlsplit(server)
        if place.hostname == "localhost" or proxy_bypass_environment(place.netloc, {"no": exempt}):
            return True
        address = ip_address(str(place.hostname))
        if address.is_loopback:
            return True
        for network in exempt.split(","):
            with suppress(ValueError):  # a name
                if address in ip_network(network.strip(), strict=False):
                    return True
    return False


def _first(environment: Mapping[str, str], *names: str) -> tuple[str, str]:
    return next(((name, environment[name]) for name in names if environment.get(name)), ("", ""))

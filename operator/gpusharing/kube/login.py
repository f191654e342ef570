"""How to reach the API server: kubeconfig or service account, and proxies.

`OfficialLogin` asks the official client (`kubernetes.aio`): kubeconfig with certificates, tokens, exec plugins and
OIDC. `ServiceAccountLogin` reads the service account's files itself, in a pod: the official client's imports cost 18
MiB of memory (docs/adr/0014).
"""

import ast
import logging
import os
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec, module_from_spec
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed does not know it

from gpusharing.kube.errors import Unauthorized


def find_proxy(server: str, proxy_url: str | None, environment: Mapping[str, str]) -> str | None:
    """Return the URL of the proxy for this server, chosen as kubectl does, or None.

    `proxy_url`, from the kubeconfig, precedes NO_PROXY; the environment is read as by golang.org/x/net/http/httpproxy.
    Raises Unauthorized, without a password, for anything but an HTTP or HTTPS proxy.
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


SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_SECONDS = 60.0
"""Seconds until the token is read again; the kubelet replaces it at 80 % of its life, of at least 10 min."""


@dataclass(frozen=True)
class Access:
    """The address of the API server and how to connect to it."""

    server: str
    """URL without a trailing slash."""
    tls: ssl.SSLContext | None = None
    """Trusted authorities and client certificate, or None for plain http."""
    proxy: str | None = None
    """URL of the proxy to go through, or None if there is none."""
    tls_server_name: str | None = None
    """The name on the server's certificate, or None if it is the host."""


class Login(Protocol):
    """Credentials that can be renewed. `access` and `token` raise Unauthorized when there are none."""

    async def access(self) -> Access:
        """Return the address of the server and how to connect to it; both may change after `renew`."""
        ...

    async def token(self) -> str | None:
        """Return the value of the Authorization header, or None if the client certificate is enough."""
        ...

    async def renew(self) -> None:
        """Discard the credentials, because the server refused them; the next call reads or fetches them again."""
        ...


@dataclass
class ServiceAccountLogin:
    """The pod's own service account, from the files and variables that every pod has."""

    environment: Mapping[str, str]
    directory: Path = SERVICE_ACCOUNT
    clock: Callable[[], float] = time.monotonic
    _access: Access | None = None
    _authority: str = ""
    """The certificates that `_access` trusts."""
    _trusted: tuple[int, ...] = ()
    """The stamp of the file from which those certificates were read; see `_stamp`."""
    _token: str = ""
    _read_at: float = float("-inf")

    async def access(self) -> Access:
        """Return the server that the kubelet names in the environment, trusting `ca.crt` as it is at this call."""
        host = self.environment.get("KUBERNETES_SERVICE_HOST", "")
        port = self.environment.get("KUBERNETES_SERVICE_PORT") or "443"
        if not host:
            raise Unauthorized(
                "KUBERNETES_SERVICE_HOST is not set, so this process is not running in a pod; set KUBECONFIG"
            )
        try:  # reading the file would take twenty times as long
            stamp = _stamp(f"{self.directory}/ca.crt")
        except OSError as error:
            raise _not_mounted(error) from error
        if self._access is not None and stamp == self._trusted:
            return self._access
        # The content read now is at least as new as the stamp. Each new token brings a new file with the same content.
        authority = self._file("ca.crt")
        if self._access is None or authority != self._authority:
            server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
            try:
                tls = ssl.create_default_context(cadata=authority) if authority.strip() else None
            except (ssl.SSLError, ValueError) as error:
                raise Unauthorized(f"{self.directory / 'ca.crt'} contains no certificates: {error}") from error
            if tls is None:  # the library would trust the authorities of the image
                raise Unauthorized(f"{self.directory / 'ca.crt'} is empty")
            self._access, self._authority = Access(server, tls), authority
        self._trusted = stamp
        return self._access

    async def token(self) -> str | None:
        """Return the projected token as `Bearer TOKEN`, never None."""
        if self.clock() - self._read_at >= TOKEN_SECONDS:
            if not (token := self._file("token").strip()):
                raise Unauthorized(
                    f"{self.directory / 'token'} is empty; if the kubelet does not write it soon, delete the pod"
                )
            self._token, self._read_at = f"Bearer {token}", self.clock()
        return self._token

    async def renew(self) -> None:
        self._read_at = float("-inf")

    def _file(self, name: str) -> str:
        # Reading a few hundred bytes from a tmpfs is not worth a thread.
        try:
            return (self.directory / name).read_text("utf-8")
        except OSError as error:
            raise _not_mounted(error) from error
        except UnicodeDecodeError as error:
            raise Unauthorized(f"{self.directory / name} is not a text file: {error}") from error


def _stamp(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _not_mounted(error: OSError) -> Unauthorized:
    return Unauthorized(f"no service account token is mounted in this pod (automountServiceAccountToken): {error}")


@dataclass
class OfficialLogin:
    """The credentials of a kubeconfig, as the official client reads it."""

    kubeconfig: Path
    """One file, or several joined by the path separator."""
    context: str = ""
    """Name of a context of the kubeconfig; its current one if empty."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that may name a proxy if the kubeconfig does not; see `find_proxy`."""
    _loaded: tuple[Any, Access] | None = None
    """The official client's configuration, and what follows from it; None before it is read, also after `renew`."""

    async def access(self) -> Access:
        """Return how to reach the server; the first call, also after `renew`, may run a login program."""
        return (await self._login())[1]

    async def token(self) -> str | None:
        configuration, _ = await self._login()
        value: str | None = await configuration.get_api_key_with_prefix("BearerToken")
        return value

    async def renew(self) -> None:
        _merged.cache_clear()
        self._loaded = None

    async def _login(self) -> tuple[Any, Access]:
        if self._loaded is None:
            loaded = await self._load()
            from kubernetes.aio.client.rest import RESTClientObject

            try:
                access = Access(
                    server=loaded.host.rstrip("/"),
                    # The context that the official transport creates; no connection is opened.
                    tls=RESTClientObject(loaded).ssl_context if loaded.host.startswith("https") else None,
                    proxy=find_proxy(loaded.host, loaded.proxy, self.environment),
                    tls_server_name=loaded.tls_server_name,
                )
            except (OSError, ValueError) as error:  # such as certificates that are none
                why = f"context {self.context} of kubeconfig {self.kubeconfig} cannot be used: {error}"
                raise Unauthorized(why) from error
            self._loaded = loaded, access
        return self._loaded

    async def _load(self) -> Any:
        # Imported here because it costs 18 MiB, and is not installed in a pod, which needs only the class above.
        import yaml

        _without_init("kubernetes")
        try:
            from kubernetes.aio import config
            from kubernetes.aio.client import Configuration
        except ImportError as error:
            raise Unauthorized(
                f"KUBECONFIG={self.kubeconfig} is set, but the Kubernetes client library that reads it is not installed:"
                " pip install 'gpu-sharing-operator[kubeconfig]', or unset KUBECONFIG if this runs in a pod"
            ) from error

        configuration = Configuration()
        where = f"kubeconfig {self.kubeconfig}"
        try:
            with _complaints() as complaints:
                await config.load_kube_config_from_dict(
                    _merged(str(self.kubeconfig), kubeconfig_stamps(str(self.kubeconfig))),
                    context=self.context or None,
                    client_configuration=configuration,
                )
        # The client raises a TypeError where a part of the file is missing, such as the user of a context.
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError) as error:
            raise Unauthorized(f"no credentials could be read from {where}: {error}") from error
        # If a login program fails, the client would continue without credentials, and be refused for lack of rights.
        if complaints and not configuration.api_key and not configuration.cert_file:
            raise Unauthorized(f"no credentials could be read from {where}: {'; '.join(complaints)}. Log in again")
        return configuration


@lru_cache(maxsize=1)
def _merged(kubeconfig: str, _stamps: tuple[object, ...]) -> Any:
    # The client takes 0.1 s to read 100 contexts, and a command may log in to each of them.
    from kubernetes.aio.config.kube_config import KubeConfigMerger

    return KubeConfigMerger(kubeconfig).config


def kubeconfig_stamps(kubeconfig: str) -> tuple[object, ...]:
    """Return a value that changes whenever a file of a kubeconfig does; the client ignores missing files, too."""
    stamps = list[tuple[int, ...]]()
    for path in kubeconfig.split(os.pathsep):
        with suppress(OSError):
            stamps.append(_stamp(os.path.expanduser(path)))
    return tuple(stamps)


def _without_init(package: str) -> None:
    """Let the modules of `package` be imported without its `__init__`, which costs a fifth of a command's time.

    The one of the official client imports all modules for blocking calls, none of which `kubernetes.aio` uses (37.0).
    """
    spec = None if package in sys.modules else find_spec(package)
    if spec is not None:
        sys.modules[package] = module_from_spec(spec)


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Yield a list for this task that fills with what the official client only logs, as of a failing login program."""
    complaints: list[str] = []
    logging.getLogger("kubernetes.aio.config.kube_config").addFilter(_collect)
    token = _complaining.set(complaints)
    try:
        yield complaints
    finally:
        _complaining.reset(token)


_complaining: ContextVar[list[str] | None] = ContextVar("complaints", default=None)
"""The list of the innermost `_complaints` of this task, or None outside of it."""


def _collect(record: logging.LogRecord) -> bool:
    complaints = _complaining.get()
    if complaints is not None and record.levelno >= logging.ERROR:
        complaints.append(_readable(record.getMessage()))
    return complaints is None


def _readable(text: str) -> str:
    # The client renders the output of a login program as Python bytes at the end of its message.
    head, found, rest = text.partition(". b")
    if not found:
        return text
    try:
        output = ast.literal_eval(f"b{rest}")
    except (SyntaxError, ValueError):
        return text
    return f"{head}: {' '.join(output.decode(errors='replace').split())}"


def environment_login(environment: Mapping[str, str]) -> Login:
    """Return the login for KUBECONFIG if set, else for the service account, in SERVICE_ACCOUNT if set."""
    directory = Path(environment.get("SERVICE_ACCOUNT") or SERVICE_ACCOUNT)
    return find_login(environment, environment.get("KUBECONFIG", ""), directory)


def find_login(environment: Mapping[str, str], kubeconfig: str, service_account: Path = SERVICE_ACCOUNT) -> Login:
    if kubeconfig:
        return OfficialLogin(Path(kubeconfig), environment=environment)
    return ServiceAccountLogin(environment, service_account)

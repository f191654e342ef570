"""Where the API server is and how we prove who we are.

`OfficialLogin` asks the official client (`kubernetes.aio`): kubeconfig with certificates, tokens, exec plugins and
OIDC. `ServiceAccountLogin` reads the service account's files itself, in a pod: the official client's imports cost
18 MiB of memory (docs/adr/0014).
"""

import ast
import logging
import os
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any, Protocol

from gpusharing.kube.errors import Unauthorized
from gpusharing.kube.proxies import find_proxy

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_SECONDS = 60.0
"""The kubelet replaces a projected token at 80 % of its life (at least 10 min), so a minute is early enough."""

NO_CLIENT = (
    "the official client that reads it is not installed: pip install 'gpu-sharing-operator[kubeconfig]', "
    "or unset KUBECONFIG in a pod"
)


@dataclass(frozen=True)
class Access:
    """How to reach the API server."""

    server: str
    """URL without a trailing slash."""
    tls: ssl.SSLContext | None = None
    """Trust and client certificate; None for plain http."""
    proxy: str | None = None
    """URL of the proxy to go through; None: none."""
    tls_server_name: str | None = None
    """The name on the server's certificate, where it differs from the host; None: it does not."""


class Login(Protocol):
    """Credentials that can be renewed. Raises Unauthorized when there are none."""

    async def access(self) -> Access:
        """How to reach the server; may change after `renew`."""
        ...

    async def token(self) -> str | None:
        """Value of the Authorization header, None when the client certificate is enough."""
        ...

    async def renew(self) -> None:
        """Read or fetch the credentials again: the server refused them."""
        ...


@dataclass
class ServiceAccountLogin:
    """The pod's own service account, by the files and variables that every pod has."""

    environment: Mapping[str, str]
    directory: Path = SERVICE_ACCOUNT
    clock: Callable[[], float] = time.monotonic
    _access: Access | None = None
    _authority: str = ""
    """The certificates that `_access` trusts."""
    _trusted: tuple[int, ...] = ()
    """The file that they were read from."""
    _token: str = ""
    _read_at: float = float("-inf")

    async def access(self) -> Access:
        """The server that the kubelet names, trusted by `ca.crt` as it is now.

        It is checked each time and read again when the file changed: the kubelet replaces it when the cluster's
        authority is rotated, and from then on no connection can be made with the old one.
        """
        host = self.environment.get("KUBERNETES_SERVICE_HOST", "")
        port = self.environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise Unauthorized(
                "KUBERNETES_SERVICE_HOST is not set: this process does not run in a pod; set KUBECONFIG"
            )
        stamp = self._stamp("ca.crt")
        if self._access is not None and stamp == self._trusted:
            return self._access
        authority = self._file(
            "ca.crt"
        )  # of the stamp or newer; a new token brings a new file of the same content
        if self._access is None or authority != self._authority:
            server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
            self._access, self._authority = Access(server, self._trust(authority)), authority
        self._trusted = stamp
        return self._access

    async def token(self) -> str | None:
        """The projected token, read again each minute because the kubelet replaces it."""
        if self.clock() - self._read_at >= TOKEN_SECONDS:
            self._token = f"Bearer {self._file('token').strip()}"
            self._read_at = self.clock()
        return self._token

    def _trust(self, authority: str) -> ssl.SSLContext:
        """Trust these certificates and no others: with none the library would trust those of the image."""
        try:
            if authority.strip():
                return ssl.create_default_context(cadata=authority)
        except (ssl.SSLError, ValueError) as error:
            raise Unauthorized(f"{self.directory / 'ca.crt'} holds no certificates: {error}") from error
        raise Unauthorized(f"{self.directory / 'ca.crt'} is empty")

    async def renew(self) -> None:
        """Read the token again at once."""
        self._read_at = float("-inf")

    def _file(self, name: str) -> str:
        # A few hundred bytes on a tmpfs: not worth a thread.
        try:
            return (self.directory / name).read_text()
        except OSError as error:
            raise _not_mounted(error) from error

    def _stamp(self, name: str) -> tuple[int, ...]:
        """Differs when the file does: it costs a twentieth of reading the file, and every call needs it."""
        try:
            found = os.stat(f"{self.directory}/{name}")
        except OSError as error:
            raise _not_mounted(error) from error
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _not_mounted(error: OSError) -> Unauthorized:
    return Unauthorized(
        f"no service account token is mounted in this pod (automountServiceAccountToken): {error}"
    )


@dataclass
class OfficialLogin:
    """A kubeconfig, as the official client reads it."""

    kubeconfig: Path
    """One file, or several with the path separator between."""
    context: str = ""
    """Of the kubeconfig; empty: its current one."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Where a proxy is looked for if the kubeconfig names none; see `find_proxy`."""
    _loaded: Any = None
    _access: Access | None = None

    async def access(self) -> Access:
        """Server, trust, client certificate and proxy of the current context."""
        await self._configuration()
        if self._access is None:
            raise RuntimeError("loading sets the access")
        return self._access

    async def token(self) -> str | None:
        """See Login."""
        configuration = await self._configuration()
        value: str | None = await configuration.get_api_key_with_prefix("BearerToken")
        return value

    async def renew(self) -> None:
        """Load everything again: exec plugins run, files are read."""
        self._loaded = None

    async def _configuration(self) -> Any:
        if self._loaded is None:
            self._loaded = await self._load()
            self._access = _access(self._loaded, self.environment)
        return self._loaded

    async def _load(self) -> Any:
        # Imported here: it costs 18 MiB, and a pod, which needs only the class above, does not have it.
        import yaml

        _without_init("kubernetes")
        try:
            from kubernetes.aio import config
            from kubernetes.aio.client import Configuration
        except ImportError as error:
            raise Unauthorized(f"KUBECONFIG={self.kubeconfig} is set, and {NO_CLIENT}") from error

        configuration = Configuration()
        where = f"kubeconfig {self.kubeconfig}"
        try:
            with _complaints() as complaints:
                await config.load_kube_config(
                    str(self.kubeconfig),
                    context=self.context or None,
                    client_configuration=configuration,
                    persist_config=False,
                )
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError) as error:
            raise Unauthorized(f"no credentials from {where}: {error}") from error
        # If a login program fails the client would go on without credentials, and be refused for lack of rights.
        if complaints and not configuration.api_key and not configuration.cert_file:
            raise Unauthorized(f"no credentials from {where}: {'; '.join(complaints)}. Log in again")
        return configuration


def _without_init(package: str) -> None:
    """Let the modules of a package be imported without what its `__init__` imports, unless that is loaded already.

    That of the official client imports all of its half for blocking calls, of which `kubernetes.aio` uses nothing, and
    requests with it: two fifths of what reading a kubeconfig costs, and a fifth of what a command of kubectl-gpusharing
    takes (37.0).
    """
    spec = None if package in sys.modules else find_spec(package)
    if spec is not None:
        sys.modules[package] = module_from_spec(spec)


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the official client only writes into its log, such as the output of a failing login program."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(_readable(record.getMessage()))

    log, listener = logging.getLogger("kubernetes.aio.config.kube_config"), Listener(logging.ERROR)
    passed_on = log.propagate
    log.addHandler(listener)
    log.propagate = False
    try:
        yield told
    finally:
        log.removeHandler(listener)
        log.propagate = passed_on


def _readable(text: str) -> str:
    """Undo the client's rendering of a program's output as Python bytes."""
    head, found, rest = text.partition(". b")
    if not found:
        return text
    try:
        said = ast.literal_eval(f"b{rest}")
    except (SyntaxError, ValueError):
        return text
    return f"{head}: {' '.join(said.decode(errors='replace').split())}"


def _access(configuration: Any, environment: Mapping[str, str]) -> Access:
    return Access(
        server=configuration.host.rstrip("/"),
        tls=_tls(configuration) if configuration.host.startswith("https") else None,
        proxy=find_proxy(configuration.host, configuration.proxy, environment),
        tls_server_name=configuration.tls_server_name,
    )


def _tls(configuration: Any) -> Any:
    """The official transport makes the TLS context in its constructor and opens nothing before its first request."""
    from kubernetes.aio.client.rest import RESTClientObject

    return RESTClientObject(configuration).ssl_context


def environment_login(environment: Mapping[str, str]) -> Login:
    """By KUBECONFIG, else by the files in SERVICE_ACCOUNT or where every pod has them."""
    directory = Path(environment.get("SERVICE_ACCOUNT") or SERVICE_ACCOUNT)
    return find_login(environment, environment.get("KUBECONFIG", ""), directory)


def find_login(
    environment: Mapping[str, str], kubeconfig: str, service_account: Path = SERVICE_ACCOUNT
) -> Login:
    """A kubeconfig is read by the official client; in a pod the mounted files are enough (docs/adr/0014)."""
    if kubeconfig:
        return OfficialLogin(Path(kubeconfig))
    return ServiceAccountLogin(environment, service_account)

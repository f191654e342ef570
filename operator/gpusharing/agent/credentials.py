"""Where the API server is and how the agent proves who it is: in the cluster, or by a kubeconfig on a desk."""

import base64
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class NoCredentials(Exception):
    """There is nothing to log in with; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Everything is read again for each connection: the kubelet renews token and CA file under us."""

    host: str
    port: int
    ca: Path | str
    """CA certificates: a file, or PEM text."""
    token: Path | str = ""
    """Bearer token: a file, or the token itself; empty with a client certificate."""
    certificate: str = ""
    """Client certificate and key, PEM text; empty with a token."""

    def headers(self) -> dict[str, str]:
        """The Authorization header."""
        token = self.token.read_text().strip() if isinstance(self.token, Path) else self.token
        return {"Authorization": f"Bearer {token}"} if token else {}

    def ssl_context(self) -> ssl.SSLContext:
        """Trusts this cluster's CA and nothing else."""
        if isinstance(self.ca, Path):
            context = ssl.create_default_context(cafile=self.ca)
        else:
            context = ssl.create_default_context(cadata=self.ca)
        if self.certificate:
            with tempfile.NamedTemporaryFile("w") as file:  # ssl takes key material from files only
                file.write(self.certificate)
                file.flush()
                context.load_cert_chain(file.name)
        return context


def in_cluster(environ: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> Credentials:
    """The pod's service account; raises NoCredentials outside of a pod."""
    host = environ.get("KUBERNETES_SERVICE_HOST")
    if not host or not (folder / "token").exists():
        raise NoCredentials(f"not in a pod with a service account ({folder}); set KUBECONFIG for development")
    port = int(environ.get("KUBERNETES_SERVICE_PORT", "443"))
    return Credentials(host, port, folder / "ca.crt", folder / "token")


def from_kubeconfig(path: Path) -> Credentials:
    """The current context of a kubeconfig with a token or a client certificate; for development.

    Raises NoCredentials for a user with other means, an exec plugin for example.
    """
    import yaml  # 3 MiB that only a developer pays

    try:
        return _of_context(yaml.safe_load(path.read_text()), path.parent)
    except (OSError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise NoCredentials(
            f"{path} is no kubeconfig that the agent can use: {type(error).__name__}: {error}"
        ) from error


def _of_context(config: dict[str, Any], folder: Path) -> Credentials:
    context = _named(config["contexts"], config["current-context"])["context"]
    cluster = _named(config["clusters"], context["cluster"])["cluster"]
    user = _named(config["users"], context["user"])["user"]
    server = urlsplit(cluster["server"])
    where = (
        server.hostname or "",
        server.port or 443,
        _inline_or_file(cluster, "certificate-authority", folder),
    )
    if "token" in user:
        return Credentials(*where, token=user["token"])
    if "tokenFile" in user:
        return Credentials(*where, token=folder / user["tokenFile"])
    if "client-certificate-data" in user or "client-certificate" in user:
        parts = [_inline_or_file(user, key, folder) for key in ("client-certificate", "client-key")]
        return Credentials(*where, certificate="\n".join(parts))
    raise ValueError("its user has neither a token nor a client certificate")


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _inline_or_file(entry: dict[str, Any], key: str, folder: Path) -> str:
    """PEM text from `<key>-data`, or from the file that `<key>` names relative to the kubeconfig."""
    if f"{key}-data" in entry:
        return base64.b64decode(entry[f"{key}-data"]).decode()
    return (folder / str(entry[key])).read_text()

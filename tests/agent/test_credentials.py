"""Where the agent finds the API server and its token."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hack.cluster.certs import create_pki

from gpusharing.agent.credentials import Credentials, NoCredentials, from_kubeconfig, in_cluster


def kubeconfig(folder: Path, user: dict[str, Any], ca: str = "PEM") -> Path:
    """A kubeconfig with one context."""
    path = folder / "config"
    data = base64.b64encode(ca.encode()).decode()
    cluster = {"server": "https://127.0.0.1:6443", "certificate-authority-data": data}
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(document))  # JSON is YAML
    return path


def test_a_pod_uses_its_service_account(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    found = in_cluster(environ, tmp_path)
    assert (found.host, found.port, found.ca) == ("fd00::1", 6443, tmp_path / "ca.crt")
    assert found.headers() == {"Authorization": "Bearer secret"}


def test_outside_of_a_pod_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(NoCredentials, match="set KUBECONFIG"):
        in_cluster({}, tmp_path)


def test_a_kubeconfig_with_a_token_is_enough(tmp_path: Path) -> None:
    found = from_kubeconfig(kubeconfig(tmp_path, {"token": "secret"}))
    assert (found.host, found.port, found.ca) == ("127.0.0.1", 6443, "PEM")
    assert found.headers() == {"Authorization": "Bearer secret"}


def test_a_token_file_is_found_beside_the_kubeconfig_and_read_each_time(tmp_path: Path) -> None:
    found = from_kubeconfig(kubeconfig(tmp_path, {"tokenFile": "token"}))
    for token in ("first", "second"):
        (tmp_path / "token").write_text(token)
        assert found.headers() == {"Authorization": f"Bearer {token}"}


def test_a_client_certificate_is_loaded(tmp_path: Path) -> None:
    pki = create_pki(tmp_path / "pki")
    user = {
        "client-certificate": str(pki.cert("admin")),
        "client-key-data": base64.b64encode(pki.key("admin").read_bytes()).decode(),
    }
    found = from_kubeconfig(kubeconfig(tmp_path, user, pki.ca.read_text()))
    assert found.headers() == {}
    assert found.certificate.count("BEGIN") == 2
    assert len(found.ssl_context().get_ca_certs()) == 1


def test_only_this_clusters_authority_is_trusted(tmp_path: Path) -> None:
    pki = create_pki(tmp_path / "pki")
    assert len(Credentials("h", 443, pki.ca).ssl_context().get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("user", "told"),
    [
        ({"exec": {"command": "aws"}}, "neither a token nor a client certificate"),
        ({"client-certificate": "/no/such"}, "/no/such"),
    ],
    ids=["an exec plugin", "a missing certificate"],
)
def test_a_kubeconfig_of_another_kind_is_refused(tmp_path: Path, user: dict[str, Any], told: str) -> None:
    with pytest.raises(NoCredentials, match=f"is no kubeconfig that the agent can use: .*{told}"):
        from_kubeconfig(kubeconfig(tmp_path, user))


@pytest.mark.parametrize("text", ["", "{}", "[]"], ids=["an empty file", "an empty object", "a list"])
def test_a_file_that_is_no_kubeconfig_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(NoCredentials, match="is no kubeconfig"):
        from_kubeconfig(tmp_path / "config")

"""hack/cluster/certs.py: who the certificates say their bearers are, and that keys stay private."""

import datetime as dt
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hack.cluster.certs import Pki, create_pki

NOW = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return create_pki(tmp_path_factory.mktemp("state") / "pki", NOW)


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.mark.parametrize("name", ["serving", "admin", "controller-manager", "scheduler", "kwok", "etcd-client"])
def test_every_certificate_is_signed_by_the_authority_and_valid_now(pki: Pki, name: str) -> None:
    certificate = load(pki.cert(name))
    certificate.verify_directly_issued_by(load(pki.ca))
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc


def test_the_serving_certificate_is_good_for_loopback_only(pki: Pki) -> None:
    names = load(pki.cert("serving")).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.IPv4Address("127.0.0.1")]
    assert "localhost" in names.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize(
    ("client", "user", "groups"),
    [
        pytest.param("admin", "gpusharing-dev-admin", ["system:masters"], id="admin by group"),
        pytest.param("scheduler", "system:kube-scheduler", [], id="scheduler by its bootstrap role"),
        pytest.param("etcd-client", "etcd-client", [], id="etcd's client is nobody to the API server"),
    ],
)
def test_a_client_certificate_carries_user_and_groups(pki: Pki, client: str, user: str, groups: list[str]) -> None:
    certificate = load(pki.cert(client))
    subject = certificate.subject
    assert [name.value for name in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [user]
    assert [name.value for name in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == groups
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_token_keys_are_a_pair(pki: Pki) -> None:
    private = serialization.load_pem_private_key(pki.key("service-account").read_bytes(), None)
    public = serialization.load_pem_public_key((pki.directory / "service-account.pub").read_bytes())
    assert private.public_key() == public


def test_only_the_user_can_read_the_keys(pki: Pki) -> None:
    assert pki.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in pki.directory.iterdir()} == {0o600}

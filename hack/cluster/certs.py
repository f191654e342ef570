"""Certificates and keys of one development control plane. They are created at each start, and nothing else trusts
them."""

import datetime as dt
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hack.cache import private_directory, write_private

LIFETIME = dt.timedelta(days=365)
BACKDATED = dt.timedelta(minutes=5)
"""How long before now certificates become valid, so that a clock that is set back does not make them invalid."""
LOOPBACK = "127.0.0.1"
SERVING_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
CLIENTS = {
    # Common name and groups as the components' bootstrap RBAC expects them.
    "admin": ("gpusharing-dev-admin", ("system:masters",)),
    "controller-manager": ("system:kube-controller-manager", ()),
    "scheduler": ("system:kube-scheduler", ()),
    # kwok plays the kubelets of all nodes with one identity, which the node authorizer would refuse.
    "kwok": ("gpusharing-dev-kwok", ("system:masters",)),
    "etcd-client": ("etcd-client", ()),
}
KUBELET_CLIENT = "kubelet-client"
SERVICE_ADDRESS = "10.96.0.1"
"""The address of the Service `kubernetes`, at which pods call the API server."""


@dataclass(frozen=True)
class Pki:
    """The paths of the PEM files of one control plane."""

    directory: Path

    @property
    def ca(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def service_account_key(self) -> Path:
        return self.directory / "service-account.key"

    @property
    def service_account_public_key(self) -> Path:
        return self.directory / "service-account.pub"

    def cert(self, name: str) -> Path:
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def server_context(self) -> ssl.SSLContext:
        """Return a TLS context for a server that shows the certificate `serving` and asks clients for none."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert("serving"), self.key("serving"))
        return context


@dataclass(frozen=True)
class _Authority:
    key: ec.EllipticCurvePrivateKey
    name: x509.Name
    now: dt.datetime

    def issue(self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        """Return the builder of a certificate for `subject`, which `sign` turns into the certificate."""
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - BACKDATED)
            .not_valid_after(self.now + LIFETIME)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return builder.sign(self.key, hashes.SHA256())


def kubelet_user(node: str) -> str:
    """Return the client name of the real kubelet of `node`."""
    return f"kubelet-{node}"


def create_pki(
    directory: Path,
    now: dt.datetime | None = None,
    *,
    addresses: Sequence[str] = (LOOPBACK,),
    kubelets: Sequence[str] = (),
) -> Pki:
    """Write new certificates and keys for the API server, the admin and these kubelets."""
    pki = Pki(private_directory(directory))
    key = _new_key()
    authority = _Authority(key, _name("gpusharing-dev-ca"), now or dt.datetime.now(dt.UTC))
    write_private(pki.ca, _pem(_self_signed(authority)))
    _write_leaf(pki, authority, "serving", _name("kube-apiserver"), addresses)
    clients: dict[str, tuple[str, tuple[str, ...]]] = dict(CLIENTS)
    if kubelets:
        clients[KUBELET_CLIENT] = ("gpusharing-dev-kubelet-client", ("system:masters",))
    clients |= {kubelet_user(node): (f"system:node:{node}", ("system:nodes",)) for node in kubelets}
    for client, (common_name, groups) in clients.items():
        _write_leaf(pki, authority, client, _name(common_name, groups))
    tokens = _new_key()
    write_private(pki.service_account_key, _key_pem(tokens))
    public = tokens.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_private(pki.service_account_public_key, public)
    return pki


def _self_signed(authority: _Authority) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    public_key = authority.key.public_key()
    builder = authority.issue(authority.name, public_key)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    return authority.sign(builder.add_extension(usage, critical=True))


def _write_leaf(pki: Pki, authority: _Authority, file: str, subject: x509.Name, addresses: Sequence[str] = ()) -> None:
    key = _new_key()
    uses = [ExtendedKeyUsageOID.SERVER_AUTH] if addresses else []
    builder = authority.issue(subject, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    # etcd's gRPC gateway calls etcd with the serving certificate, which is therefore a client's as well.
    builder = builder.add_extension(x509.ExtendedKeyUsage([*uses, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    if addresses:
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in SERVING_NAMES]
        for address in dict.fromkeys((LOOPBACK, *addresses)):
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    write_private(pki.cert(file), _pem(authority.sign(builder)))
    write_private(pki.key(file), _key_pem(key))


def _name(common_name: str, groups: tuple[str, ...] = ()) -> x509.Name:
    organisations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organisations, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encryption = serialization.NoEncryption()
    # kube-apiserver reads the traditional form "EC PRIVATE KEY" for service-account keys.
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, encryption)

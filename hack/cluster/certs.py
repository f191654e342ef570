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
    directory: Path

    @property
    def ca(self) -> Path:
        return self.directory / "ca.crt"

    def cert(self, name: str) -> Path:
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def server_context(self) -> ssl.SSLContext:
        """Return a TLS context for a server that shows the certificate `serving` and asks clients for none."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert("serving"), self.key("serving"))
        return context


def kubelet_user(node: str) -> str:
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
    key, name, now = _new_key(), _name("gpusharing-dev-ca"), now or dt.datetime.now(dt.UTC)

    def issued(subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        """Return a certificate of our authority that is not signed yet."""
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        )

    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    own = (
        issued(name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(usage, critical=True)
    )
    write_private(pki.ca, _pem(own, key))
    clients: dict[str, tuple[str, tuple[str, ...]]] = dict(CLIENTS)
    if kubelets:
        clients[KUBELET_CLIENT] = ("gpusharing-dev-kubelet-client", ("system:masters",))
    clients |= {kubelet_user(node): (f"system:node:{node}", ("system:nodes",)) for node in kubelets}
    leaves = {"serving": (_name("kube-apiserver"), tuple(addresses))}
    leaves |= {client: (_name(common_name, groups), ()) for client, (common_name, groups) in clients.items()}
    for file, (subject, served) in leaves.items():
        leaf = _new_key()
        write_private(pki.cert(file), _pem(_for_use(issued(subject, leaf.public_key()), served), key))
        write_private(pki.key(file), _key_pem(leaf))
    tokens = _new_key()
    write_private(pki.key("service-account"), _key_pem(tokens))
    public = tokens.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_private(pki.directory / "service-account.pub", public)
    return pki


def _for_use(builder: x509.CertificateBuilder, addresses: Sequence[str]) -> x509.CertificateBuilder:
    """Add what a client's certificate has, and with addresses a server's too."""
    uses = [ExtendedKeyUsageOID.SERVER_AUTH] if addresses else []
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    # etcd's gRPC gateway calls etcd with the serving certificate, which is therefore a client's as well.
    builder = builder.add_extension(x509.ExtendedKeyUsage([*uses, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    if not addresses:
        return builder
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in SERVING_NAMES]
    names += [x509.IPAddress(ipaddress.ip_address(each)) for each in dict.fromkeys((LOOPBACK, *addresses))]
    return builder.add_extension(x509.SubjectAlternativeName(names), critical=False)


def _name(common_name: str, groups: tuple[str, ...] = ()) -> x509.Name:
    organisations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organisations, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _pem(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> bytes:
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encryption = serialization.NoEncryption()
    # kube-apiserver reads the traditional form "EC PRIVATE KEY" for service-account keys.
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, encryption)

"""hack/cluster in parts, without a cluster: nodes.py, certs.py, audit.py and minors.py."""

import datetime as dt
import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hack.cache import UnavailableError
from hack.cluster.audit import lines_since, read_requests
from hack.cluster.certs import Pki, create_pki
from hack.cluster.minors import control_plane, go_mod, main
from hack.cluster.nodes import FLEET, LABEL_POOL, fleet, is_ready, node_manifest
from hack.generate import ROOT


def labels_of(manifest: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = manifest["metadata"]["labels"]
    return labels


def test_a_node_with_mig_capable_cards_has_been_seen_by_mig_manager() -> None:
    manifest = node_manifest("gpu-01", product="NVIDIA H100 80GB HBM3", gpus=8, pool="a")
    labels = labels_of(manifest)
    assert labels["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert labels["nvidia.com/gpu.count"] == "8"
    assert labels["nvidia.com/mig.capable"] == "true"
    assert labels["nvidia.com/mig.config"] == "all-disabled"
    assert labels["nvidia.com/mig.config.state"] == "success"
    assert labels["nvidia.com/gpu.deploy.mig-manager"] == "true"
    assert labels[LABEL_POOL] == "a"
    assert manifest["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert manifest["metadata"]["annotations"] == {"kwok.x-k8s.io/node": "fake"}


def test_a_node_whose_card_cannot_do_mig_has_no_mig_config_label() -> None:
    labels = labels_of(node_manifest("gpu-01", product="NVIDIA L40S", gpus=4))
    assert labels["nvidia.com/mig.capable"] == "false"
    assert labels["nvidia.com/gpu.family"] == "ada-lovelace"
    assert not [key for key in labels if key.startswith("nvidia.com/mig.config")]
    assert "nvidia.com/gpu.deploy.mig-manager" not in labels
    assert LABEL_POOL not in labels


def test_labels_given_by_the_caller_win() -> None:
    labels = labels_of(node_manifest("gpu-01", labels={"nvidia.com/gpu.count": "7", "rack": "r1"}))
    assert (labels["nvidia.com/gpu.count"], labels["rack"]) == ("7", "r1")


def test_an_unknown_card_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="NVIDIA H100 81GB"):
        node_manifest("gpu-01", product="NVIDIA H100 81GB")


@pytest.mark.parametrize("count", [0, 1, 8, 250])
def test_a_fleet_has_distinct_names_in_order_and_pools_of_even_size(count: int) -> None:
    manifests = fleet(count)
    names = [manifest["metadata"]["name"] for manifest in manifests]
    assert len(set(names)) == count
    assert names == sorted(names)
    sizes = [sum(labels_of(manifest)[LABEL_POOL] == pool for manifest in manifests) for pool, _, _ in FLEET]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("status", "taints", "expected"),
    [
        pytest.param("True", [], True, id="Ready and free of taints"),
        pytest.param("Unknown", [], False, id="no kubelet yet"),
        pytest.param("True", [{"key": "node.kubernetes.io/not-ready"}], False, id="still tainted as new"),
        pytest.param("True", [{"key": "dedicated"}], True, id="a taint of the admin does not matter"),
    ],
)
def test_when_a_node_counts_as_ready(status: str, taints: list[dict[str, str]], expected: bool) -> None:
    node = {"spec": {"taints": taints}, "status": {"conditions": [{"type": "Ready", "status": status}]}}
    assert is_ready(node) is expected


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


WHO = "system:serviceaccount:gpusharing:gpusharing-operator"


def line(number: int) -> bytes:
    event = {
        "verb": "patch",
        "stage": "ResponseComplete",
        "user": {"username": WHO},
        "objectRef": {"resource": "nodes", "name": f"gpu-{number}"},
        "responseStatus": {"code": 200},
        "requestReceivedTimestamp": "2026-03-01T12:00:00.000000Z",
    }
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"  # as Go writes it


def test_a_line_that_is_half_there_is_none_yet(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_bytes(line(1) + line(2)[:-20])
    assert [request.name for request in read_requests(log, WHO)] == ["gpu-1"]


@pytest.mark.parametrize("half", [1, 100, len(line(1)) - 1])
def test_a_mark_in_the_middle_of_a_line_is_one_after_it(half: int, tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_bytes(line(1) + line(2))
    assert [request.name for request in read_requests(log, WHO, start=half)] == ["gpu-2"]


def test_a_mark_at_the_end_of_a_line_leaves_the_next_one_whole(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_bytes(line(1) + line(2))
    assert list(lines_since(log)) == [line(1), line(2)]
    assert list(lines_since(log, len(line(1)))) == [line(2)]
    assert list(lines_since(log, log.stat().st_size)) == []


KUBERNETES = """module k8s.io/kubernetes

go 1.22.0

require (
	github.com/spf13/cobra v1.7.0
	go.etcd.io/etcd/client/v3 v3.5.10
	k8s.io/api v0.0.0
)

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/kubectl => ./staging/src/k8s.io/kubectl
)
"""


def test_the_staging_modules_and_etcd_are_those_of_that_version() -> None:
    lines = go_mod("v1.30.14", KUBERNETES).splitlines()
    assert [line for line in lines if line.startswith(("require", "replace"))] == [
        "require github.com/spf13/cobra v1.7.0",
        "require go.etcd.io/etcd/server/v3 v3.5.10",
        "require k8s.io/component-base v0.30.14",
        "require k8s.io/kubectl v0.30.14",
        "require k8s.io/kubernetes v1.30.14",
        "replace k8s.io/api => k8s.io/api v0.30.14",
        "replace k8s.io/kubectl => k8s.io/kubectl v0.30.14",
    ]


def test_a_version_that_pins_no_etcd_is_refused() -> None:
    with pytest.raises(UnavailableError, match="requires no go"):
        go_mod("v1.99.0", "require github.com/spf13/cobra v1.7.0")


@pytest.mark.parametrize("minor", ["", "1.30.14", "v1.30", "latest"])
def test_only_a_minor_version_is_taken(minor: str) -> None:
    with pytest.raises(UnavailableError, match="is not a minor version of Kubernetes"):
        control_plane(minor)


def test_without_a_version_the_program_says_how_to_write_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "write it as in VERSION=1.30" in capsys.readouterr().err


def test_the_tests_of_another_minor_exist_and_exercise_all_admission_policies() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    variables = dict(re.findall(r"^([A-Z_]+) = (.*)$", makefile, re.MULTILINE))
    paths = variables["ON_ANOTHER_MINOR"].replace("$(ADMISSION)", variables["ADMISSION"]).split()
    for path in paths:
        file, _, name = path.partition("::")
        assert f"def {name or 'test_'}" in (ROOT / file).read_text(), path
    admission = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "chart").glob("test_*admission*.py")}
    effects = {
        "tests/chart/test_effects.py",
        "tests/integration/test_isolation.py",
        "tests/integration/test_repair_mps.py",
    }
    assert admission | effects <= {path.partition("::")[0] for path in paths}

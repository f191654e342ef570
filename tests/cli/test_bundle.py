"""`support-bundle`: what is in it, and that planted secrets are not (kubectl_gpusharing/diagnosis/bundle.py)."""

import json
import tarfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from hack.sim.fakefaults import EVER
from tests.cli.asking import ME, Answered, ask, operated, writes
from tests.embedded.scene import FULL, H100, MIXED, Scene
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DAEMON_SETS,
    DEPLOYMENTS,
    EVENTS,
    NODES,
    PODS,
    POLICIES,
    Resource,
)
from gpusharing.kube.errors import Forbidden, Unavailable
from kubectl_gpusharing.diagnosis.bundle import AWAY, LINES, REMOVED, cleaned, pack, scrubbed
from kubectl_gpusharing.live.cluster import OPERATOR
from kubectl_gpusharing.shell.troubles import DONE, Trouble

PLANTED = "hunter2"
SECRETS = Resource("", "v1", "secrets", namespaced=True)


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {}
        for entry in archive.getmembers():
            stream = archive.extractfile(entry)
            assert stream is not None
            found[entry.name.partition("/")[2]] = stream.read()
    return found


COMPONENTS = (
    *("driver", "toolkit", "devicePlugin", "dcgm", "dcgmExporter", "gfd", "migManager", "nodeStatusExporter"),
    *("validator", "vgpuManager", "vgpuDeviceManager", "sandboxDevicePlugin", "vfioManager", "gds", "gdrcopy"),
    *("kataManager", "kataSandboxDevicePlugin", "ccManager"),
)
"""Blocks of ClusterPolicy that have `env` and `args` (GPU Operator v26.7.0, api/nvidia/v1/clusterpolicy_types.go)."""
HIDDEN = [{"name": "X", "value": PLANTED}]
APPLIED = {"kubectl.kubernetes.io/last-applied-configuration": PLANTED, "team/note": PLANTED}


def container(name: str) -> dict[str, Any]:
    probe = {
        "exec": {"command": [PLANTED]},
        "httpGet": {"path": f"/healthz?key={PLANTED}", "httpHeaders": [{"name": "Authorization", "value": PLANTED}]},
    }
    return {
        "name": name,
        "image": "agent:1",
        "env": [{"name": "PASSWORD", "value": PLANTED}],
        "envFrom": [{"secretRef": {"name": PLANTED}}],
        "args": [f"--token={PLANTED}"],
        "command": ["sh", "-c", PLANTED],
        "lifecycle": {"postStart": probe, "preStop": probe},
        **dict.fromkeys(("livenessProbe", "readinessProbe", "startupProbe"), probe),
    }


def pod_spec() -> dict[str, Any]:
    kinds = ("containers", "initContainers", "ephemeralContainers")
    volumes = [{"name": "v", "csi": {"volumeAttributes": {"key": PLANTED}}}]
    return {kind: [container(kind)] for kind in kinds} | {"volumes": volumes}


SAID = (
    f'Liveness probe failed: Get "http://10.0.0.7:80/?token={PLANTED}": connection refused',
    f"pulling with Authorization: Bearer {PLANTED}",
    f"cloning https://robot:{PLANTED}@registry.example/team",
    f'{{"level":"error","password":"{PLANTED}"}}',
    f"exec: server --api-key {PLANTED} --port 80",
)
"""As programs tell secrets in messages and logs."""


def plant(cluster: Any) -> None:
    """Where people put what nobody else may see, and where programs tell it."""
    metadata = {
        "name": "agent-x",
        "namespace": "gpusharing-agent",
        "labels": {"app.kubernetes.io/name": "gpusharing-agent"},
        "annotations": APPLIED,
    }
    ended = {"terminated": {"reason": "Error", "message": SAID[0]}}
    status = {"phase": "Running", "containerStatuses": [{"name": "main", "lastState": ended}]}
    cluster.add(PODS, {"metadata": metadata, "spec": pod_spec(), "status": status})
    cluster.logs["gpusharing-agent", "agent-x"] = "\n".join(SAID)
    for number, said in enumerate(SAID):
        event = {"name": f"event-{number}", "namespace": "gpusharing-agent", "annotations": APPLIED}
        cluster.add(EVENTS, {"metadata": event, "reason": "Planted", "note": said})
    template = {"metadata": {"annotations": APPLIED}, "spec": pod_spec()}
    for resource, namespace in ((DEPLOYMENTS, "gpusharing"), (DAEMON_SETS, "gpu-operator")):
        workload = {"name": "planted", "namespace": namespace, "annotations": APPLIED}
        cluster.add(resource, {"metadata": workload, "spec": {"template": template}})
    secret = {"metadata": {"name": "s", "namespace": "gpusharing"}, "data": {"password": PLANTED}}
    cluster.add(SECRETS, secret)
    spec: dict[str, Any] = {one: {"env": HIDDEN, "args": [PLANTED]} for one in COMPONENTS}
    spec["driver"] |= {"licensingConfig": {"nlsToken": PLANTED}, "manager": {"env": HIDDEN}}
    spec["validator"] |= {"plugin": {"env": HIDDEN}, "toolkit": {"env": HIDDEN}}
    spec["proxy"] = {"httpProxy": f"http://me:{PLANTED}@proxy.example", "tokens": [PLANTED]}
    cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"metadata": {"annotations": APPLIED}, "spec": spec})
    text = f"version: v1\n# password: {PLANTED}\n"
    taken = {"metadata": {"annotations": APPLIED}, "data": {"planted": text}, "binaryData": {"b": PLANTED}}
    cluster.patch(CONFIG_MAPS, "gpusharing-device-plugin", taken, "gpu-operator")
    cluster.patch(NODES, "gpu-1", {"metadata": {"annotations": {"team/bmc-password": PLANTED, **APPLIED}}})
    cluster.patch(POLICIES, "pool-b", {"metadata": {"annotations": APPLIED}})


async def packed(scene: Scene, folder: Path) -> tuple[Answered, dict[str, bytes]]:
    told = await ask(scene.e.cluster, "support-bundle", str(folder / "bundle.tar.gz"))
    return told, contents(folder / "bundle.tar.gz")


@virtually
async def test_no_planted_secret_is_in_it(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        plant(scene.e.cluster)
        told, found = await packed(scene, tmp_path)
        assert writes(scene.e.cluster) == []
        assert (ME, "list", "secrets") not in scene.e.cluster.calls
        assert (ME, "get", "secrets") not in scene.e.cluster.calls
    assert told.status == DONE
    assert [name for name, content in found.items() if PLANTED.encode() in content] == []
    planted = {
        "gpusharing-agent/pods.json": b"agent-x",
        "gpusharing-agent/events.json": b"Liveness probe failed",
        "gpusharing-agent/logs/agent-x.log": b"--api-key REMOVED --port 80",
        "gpusharing/deployments.json": b"planted",
        "gpu-operator/daemonsets.json": b"planted",
        "gpu-operator/configmap-gpusharing-device-plugin.json": b"# password: REMOVED",
        "clusterpolicies.json": b"kataSandboxDevicePlugin",
    }
    assert [name for name, seen in planted.items() if seen not in found[name]] == [], "all else is there"


@virtually
async def test_it_has_what_a_person_needs_to_see_what_happened(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        scene.e.cluster.logs["gpu-operator", scene.pods("nvidia-mig-manager")[0]["metadata"]["name"]] = "applied\n"
        _, found = await packed(scene, tmp_path)
    (policy,) = json.loads(found["policies.json"])
    assert policy["status"]["summary"]["status"] == "Synced"
    (node,) = json.loads(found["nodes.json"])
    assert "gpusharing.dev/verified" in node["metadata"]["annotations"]
    assert "nvidia.com/gpu" in node["status"]["allocatable"]
    assert {"gpunodes.json", "clusterpolicies.json", "README.txt"} <= set(found)
    assert "gpu-operator/configmap-gpusharing-device-plugin.json" in found
    assert b"applied\n" in [content for name, content in found.items() if "/logs/nvidia-mig-manager" in name]


@virtually
async def test_it_tells_the_versions_of_plugin_and_operator_and_that_they_differ(tmp_path: Path) -> None:
    ours = version("gpu-sharing-operator")
    async with operated(1) as scene:
        same = await read_me(scene, tmp_path)
        label = {"metadata": {"labels": {"app.kubernetes.io/version": "9.9.9"}}}
        scene.e.cluster.patch(DEPLOYMENTS, OPERATOR, label, "gpusharing")
        other = await read_me(scene, tmp_path)
        scene.e.cluster.delete(DEPLOYMENTS, OPERATOR, "gpusharing")
        none = await read_me(scene, tmp_path)
    assert f"\nPlugin: {ours}\nOperator: {ours}\n" in same
    assert "Not read" not in same
    assert "\nSIMULATED: gpu-1 has no real GPUs" in same
    assert f"\nPlugin: {ours}\nOperator: 9.9.9\n" in other
    assert not lacks(other, "operator is version 9.9.9", ours)
    assert f"\nPlugin: {ours}\nOperator: not known\n" in none
    assert "no operator is installed" in none


async def read_me(scene: Scene, folder: Path) -> str:
    return (await packed(scene, folder))[1]["README.txt"].decode()


@virtually
async def test_it_has_what_the_agents_read_of_the_gpus(tmp_path: Path) -> None:
    async with operated(2, serving=MIXED) as scene:
        _, files = await packed(scene, tmp_path)
        there = {name: scene.e.gpunode(name)["status"] for name in ("gpu-1", "gpu-2")}
    found = {raw["metadata"]["name"]: raw["status"] for raw in json.loads(files["gpunodes.json"])}
    assert found == there, "a report has nothing that would be left out"
    observed = found["gpu-1"]["observed"]
    assert [model["product"] for model in observed["models"]] == [H100]
    assert ["3g.40gb" in gpu["mig"] for gpu in observed["gpus"]] == [True, True]
    assert found["gpu-2"]["transition"]["phase"] == "Synced"


LOGGING = {
    ("gpusharing", "app.kubernetes.io/name"): "gpusharing-operator",
    ("gpusharing-agent", "app.kubernetes.io/name"): "gpusharing-agent",
    ("gpu-operator", "app"): "nvidia-device-plugin-daemonset",
}


@virtually
async def test_it_has_the_ends_of_the_logs_of_the_operator_the_agents_and_nvidias_operands(tmp_path: Path) -> None:
    async with operated(1) as scene:
        cluster = scene.e.cluster
        for (namespace, label), workload in LOGGING.items():
            metadata = {"name": f"{workload}-x", "namespace": namespace, "labels": {label: workload}}
            cluster.add(PODS, {"metadata": metadata})
            cluster.logs[namespace, f"{workload}-x"] = f"{workload} has begun\n"
        rows = [f"row {number}\n" for number in range(LINES + 1)]
        cluster.logs["gpusharing", "gpusharing-operator-x"] = "".join(rows)
        other = {"name": "other-x", "namespace": "gpu-operator", "labels": {"app": "dcgm"}}
        cluster.add(PODS, {"metadata": other})
        _, found = await packed(scene, tmp_path)
    logs = {name: log.decode() for name, log in found.items() if "/logs/" in name}
    assert {name: log for name, log in logs.items() if log} == {
        "gpusharing/logs/gpusharing-operator-x.log": "".join(rows[1:]),
        "gpusharing-agent/logs/gpusharing-agent-x.log": "gpusharing-agent has begun\n",
        "gpu-operator/logs/nvidia-device-plugin-daemonset-x.log": "nvidia-device-plugin-daemonset has begun\n",
    }
    assert "gpu-operator/logs/other-x.log" not in logs


@virtually
async def test_of_each_workload_the_logs_of_twenty_pods_are_in_it_and_the_others_counted(tmp_path: Path) -> None:
    async with operated(21) as scene:
        told = await ask(scene.e.cluster, "support-bundle", str(tmp_path / "bundle.tar.gz"), "-o", "json")
    assert not lacks(str(told.data["gaps"]), "gpu-operator", "1 more pod", "nvidia-mig-manager")


@virtually
async def test_a_log_that_cannot_be_read_is_a_gap_that_is_named(tmp_path: Path) -> None:
    async with operated(1) as scene:
        refusal = Forbidden('User "me" cannot get resource "pods/log"')
        scene.e.cluster.faults.fail("log", PODS, refusal, times=EVER, identity=ME)
        told, found = await packed(scene, tmp_path)
    assert [name for name in found if "/logs/" in name] == []
    assert "Not read: log of gpu-operator/nvidia-mig-manager-" in found["README.txt"].decode()
    assert 'cannot get resource "pods/log"' in " ".join(told.out.split())


@virtually
async def test_what_may_not_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    async with operated(1) as scene:
        refusal = Forbidden('User "me" cannot list resource "nodes"')
        scene.e.cluster.faults.fail("list", NODES, refusal, times=EVER, identity=ME)
        told, found = await packed(scene, tmp_path)
    assert told.status == DONE
    assert not lacks(told.out, "nodes.json", 'list resource "nodes"')
    assert b'cannot list resource "nodes"' in found["README.txt"]


@virtually
async def test_what_no_answer_came_to_is_a_gap_where_something_was_read(tmp_path: Path) -> None:
    kinds = {"nodes": NODES, "clusterpolicies": CLUSTER_POLICIES, "pods": PODS}
    async with operated(1) as scene:
        for resource in kinds.values():
            scene.e.cluster.faults.fail("list", resource, Unavailable("no answer"), times=EVER, identity=ME)
        told, found = await packed(scene, tmp_path)
    assert told.status == DONE
    readme = found["README.txt"].decode()
    assert [kind for kind in kinds if f"{kind}.json: no answer" not in readme] == []


@virtually
async def test_where_no_answer_comes_at_all_it_is_given_up_early(tmp_path: Path) -> None:
    async with operated(1) as scene:
        scene.e.cluster.faults.fail("list", None, Unavailable("no answer"), times=EVER, identity=ME)
        with pytest.raises(Trouble, match="the API server of context test does not respond: no answer"):
            await ask(scene.e.cluster, "support-bundle", str(tmp_path / "bundle.tar.gz"))
        mine = sum(count for call, count in scene.e.cluster.calls.items() if call[0] == ME)
    assert mine == 1 + AWAY, "the first is about the installation"


@virtually
async def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    async with operated(1) as scene:
        with pytest.raises(Trouble, match="cannot be written"):
            await ask(scene.e.cluster, "support-bundle", str(tmp_path / "no" / "such.tar.gz"))


def test_only_the_owner_may_read_what_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    path.write_bytes(pack({"a": b"x"}, "folder", datetime(2026, 11, 20, tzinfo=UTC)))
    with tarfile.open(path) as archive:
        assert [entry.mode for entry in archive.getmembers()] == [0o600]


def test_whatever_a_telling_key_has_goes_wherever_it_is_but_for_what_is_no_text() -> None:
    assert cleaned({"a": [{"apiKey": "x", "nlsToken": "y", "name": "z"}]}) == {
        "a": [{"apiKey": REMOVED, "nlsToken": REMOVED, "name": "z"}]
    }
    found = cleaned({"tokens": ["x"], "secrets": {"a": "x"}, "automountServiceAccountToken": False})
    assert found == {"tokens": REMOVED, "secrets": REMOVED, "automountServiceAccountToken": False}


TEXTS = {
    "password=hunter2": "password=REMOVED",
    "passwd: hunter2 next": "passwd: REMOVED next",
    'api_key = "hunter2 and more" next': "api_key = REMOVED next",
    "PGPASSWORD='hunter2'": "PGPASSWORD=REMOVED",
    r"{\"token\":\"hunter2\"}": r"{\"token\":REMOVED}",
    "?access_key=hunter2&next=1": "?access_key=REMOVED&next=1",
    "--auth-token hunter2 --next": "--auth-token REMOVED --next",
    "-password hunter2": "-password REMOVED",
    "Proxy-Authorization: Basic aHVudGVyMg==\nnext": "Proxy-Authorization: REMOVED\nnext",
    "got bearer hunter2 back": "got bearer REMOVED back",
    "amqp://me:hunter2@broker/x": "amqp://REMOVED@broker/x",
    "jwt eyJhbGciOiJI.eyJzdWIiOiJodW50ZXIy.c2ln": "jwt REMOVED",
    "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----\nnext": "REMOVED\nnext",
    "-----BEGIN PRIVATE KEY-----\nhunter2": "REMOVED",
    "hunter2hunter2==\n-----END RSA PRIVATE KEY-----\nnext": "REMOVED\nnext",
    '"tokens": ["hunter2"]\nnext': '"tokens": REMOVED\nnext',
    '{"password":{"v":"hunter2"}}\nnext': '{"password":REMOVED\nnext',
    "password: |\n  hunter2\n  hunter2\nnext: 1": "password: REMOVED\nREMOVEDnext: 1",
    "password:\n  hunter2\nnext: 1": "password:\nREMOVEDnext: 1",
    r'password="a\"hunter2" next': "password=REMOVED next",
    "password=a,hunter2;hunter2 next": "password=REMOVED next",
    '{"auth":"aHVudGVyMg=="}': '{"auth":REMOVED}',
    "DB_PASS=hunter2": "DB_PASS=REMOVED",
    "password: a-hunter2": "password: REMOVED",
    "token: no!hunter2": "token: REMOVED",
    "tokens:\n- hunter2\nnext": "tokens:\nREMOVEDnext",
    "password: |2 # c\n  hunter2\nnext: 1": "password: REMOVED # c\nREMOVEDnext: 1",
    'password: "hunter2 cut': "password: REMOVED",
    '{"auth":{"k":"hunter2"}}': '{"auth":REMOVED',
    "client-key-data: aHVudGVyMg==": "client-key-data: REMOVED",
    "https://hunter2@host/x": "https://REMOVED@host/x",
    '{"authorization":"Bearer hunter2","error":"y"}': '{"authorization":REMOVED,"error":"y"}',
}
HARMLESS = (
    'MountVolume.SetUp failed for volume "v": secret "gpu-tls" not found',
    "passDeviceSpecs: true",
    "http://10.0.0.7:8080/metrics",
    "the token has expired; reading it anew",
    "failed to fetch token: context deadline exceeded",
    "secret: not found",
    "no -----BEGIN CERTIFICATE----- in this file, says it",
    "tokenreviews.authentication.k8s.io: User cannot create",
    "passes: 3, compass=north",
    "2x3g.40gb -> 7x1g.10gb; class Reset",
)


@pytest.mark.parametrize(("text", "left"), [*TEXTS.items(), *zip(HARMLESS, HARMLESS, strict=True)])
def test_of_a_text_only_the_secret_goes(text: str, left: str) -> None:
    assert scrubbed(text) == left


def test_a_long_log_of_single_words_is_searched_once_and_not_from_each_of_its_lines() -> None:
    def duration(lines: int) -> float:
        text = "auth\n" + f"{'w' * 64}\n" * lines
        began = process_time()
        assert scrubbed(text) == text
        return process_time() - began

    assert min(duration(1000) for _ in range(3)) < 50 * min(duration(100) for _ in range(3))

"""hack/cluster/cli.py: what `make cluster`, `make cluster-down` and `make run` say, and what they leave. And `make kind`'s parts."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from socketserver import BaseRequestHandler

import pytest
import yaml
from hack.cluster import kind, state, toolchain
from hack.cluster.api import Credentials
from hack.cluster.cli import find_running
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.kubeconfig import KubeconfigError, kubeconfig_path, open_api, write_kubeconfig
from hack.cluster.process import wait_until
from hack.cluster.state import ClusterState
from hack.cluster.toolchain import CONTROLPLANE_SOURCE, kubernetes_version
from hack.nvmlsim.build import LIBRARY
from tests.chart.charts import Helm, find
from tests.fakes.tls import Identity
from tests.fakes.web import WebServer

from hack import kindtrial


def put_programs(folder: Path, scripts: Mapping[str, str]) -> None:
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("scripts", "why", "command"),
    [
        pytest.param({}, "no `docker` on PATH", "make cluster", id="no docker"),
        pytest.param(
            {"docker": "echo 'Cannot connect to the Docker daemon' >&2; exit 1"},
            "Cannot connect to the Docker daemon",
            "sudo systemctl start docker",
            id="docker does not answer",
        ),
    ],
)
def test_driver_kind_says_what_is_missing_and_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: dict[str, str], why: str, command: str
) -> None:
    put_programs(tmp_path, scripts)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(kind.KindError) as raised:
        kind.check()
    assert why in str(raised.value)
    assert command in str(raised.value)


def test_the_user_s_own_kubeconfig_is_never_taken() -> None:
    with pytest.raises(KubeconfigError, match="make cluster"):
        kubeconfig_path({"HOME": "/home/someone"})


def test_a_kubeconfig_without_usable_credentials_is_refused(tmp_path: Path) -> None:
    entry = {"name": "x"}
    cluster = {**entry, "cluster": {"server": "https://127.0.0.1:1", "certificate-authority-data": ""}}
    user = {**entry, "user": {"exec": {"command": "login"}}}
    context = {**entry, "context": {"cluster": "x", "user": "x"}}
    document = {"clusters": [cluster], "users": [user], "contexts": [context], "current-context": "x"}
    (tmp_path / "config").write_text(yaml.safe_dump(document))
    with pytest.raises(KubeconfigError, match="neither a token nor client-certificate-data"):
        open_api(tmp_path / "config")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 200\r\nContent-Length: 9\r\n\r\nok", id="cut"),
    ],
)
def test_a_recorded_cluster_that_gives_no_complete_answer_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes
) -> None:
    identity = Identity(tmp_path / "pki")

    class Broken(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(answer)

    server = WebServer(("127.0.0.1", 0), Broken)
    server.socket = identity.context().wrap_socket(server.socket, server_side=True)
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    url = f"https://127.0.0.1:{server.server_port}"
    ClusterState(None, url).write(cluster)
    admin = Credentials(token="admin")
    write_kubeconfig(cluster / "admin.kubeconfig", url, identity.authority, "admin", admin)
    with server.running():
        assert find_running(cluster) is None
    assert "the recorded cluster does not answer" in capsys.readouterr().err
    assert not cluster.exists()


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        pytest.param({"DRIVER": "minikube"}, "DRIVER must be cluster or kind, not 'minikube'", id="unknown driver"),
        pytest.param({"NODES": "many"}, "NODES must be a whole number such as 8, not 'many'", id="no number"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, variable: dict[str, str], message: str) -> None:
    done = run_cli(tmp_path, "up", environ=variable)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "cluster").exists()


def run_cli(
    state_folder: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hack.cluster", *arguments]
    own = {**os.environ, "GPUSHARING_STATE": str(state_folder), **(environ or {})}
    return subprocess.run(command, env=own, capture_output=True, text=True, check=False)


@pytest.fixture
def programs() -> toolchain.Programs:
    return toolchain.control_plane_programs()


@pytest.fixture
def state_folder(tmp_path: Path, programs: toolchain.Programs) -> Iterator[Path]:
    """A folder for clusters; what a failed test leaves running there is stopped."""
    yield tmp_path
    state.stop_recorded(tmp_path / "cluster")


@pytest.mark.cluster
def test_up_ends_with_the_export_line_every_time_and_down_can_be_repeated(state_folder: Path) -> None:
    first = run_cli(state_folder, "up", "--nodes", "2")
    last = first.stdout.splitlines()[-1]
    assert last == f"export KUBECONFIG={state_folder}/cluster/admin.kubeconfig"
    second = run_cli(state_folder, "up", "--nodes", "2")
    assert second.stdout == first.stdout
    assert "is already up" in second.stderr
    assert "2 nodes" in second.stderr
    assert "stopped etcd, kube-apiserver" in run_cli(state_folder, "down").stderr
    assert run_cli(state_folder, "down").stderr == "no cluster is running\n"
    assert not (state_folder / "cluster").exists()


@pytest.mark.cluster
def test_driver_kind_runs_its_nodes_on_the_cluster_that_kind_makes(
    state_folder: Path, programs: toolchain.Programs
) -> None:
    """`kind` and Docker are played by scripts; the cluster that `kind create` hands out is one of ours."""
    with ControlPlane(options=Options(kwok=False)) as plane:
        scripts = {
            "docker": "exit 0",
            "kind": f"""echo "$@" >> {state_folder}/calls
                if [ "$1" = create ]; then cp {plane.kubeconfig} {state_folder}/cluster/admin.kubeconfig; fi""",
        }
        put_programs(state_folder, scripts)
        environ = {"PATH": f"{state_folder}:{os.environ['PATH']}"}
        up = run_cli(state_folder, "up", "--nodes", "2", "--driver", "kind", environ=environ)
        assert up.returncode == 0, up.stderr
        assert up.stdout == f"export KUBECONFIG={state_folder}/cluster/admin.kubeconfig\n"
        # kind's controller-manager gives a node up after 40 s, so kwok has to renew leases there.
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

        def renewed() -> set[str]:
            return {lease["metadata"]["name"] for lease in plane.api.list(leases)}

        wait_until(lambda: renewed() == {"gpu-01", "gpu-02"}, 60, "the leases of both nodes")
        down = run_cli(state_folder, "down", environ=environ)
        assert down.stderr == "stopped kwok, kind cluster\n"
        assert "delete cluster --name gpusharing-dev" in (state_folder / "calls").read_text()


NODES = ("trial-control-plane", "trial-worker", "trial-worker2")
# What Docker would answer, as far as kind asks before kubeadm: the nodes run, have these roles and kind's containerd.
DOCKER = """
echo "$@" >>{folder}/calls
case "$*" in
  info*) echo '{{}}' ;;
  run*) touch {folder}/ran ;;
  logs*) echo "Reached target Multi-User System" ;;
  ps*) if [ -e {folder}/ran ]; then printf '%s\\n' {nodes}; fi ;;
  inspect*role*control-plane) echo control-plane ;;
  inspect*role*worker*) echo worker ;;
  inspect*IPAddress*) echo 10.0.0.1,fc00::1 ;;
  *"cat /kind/version") echo v1.36.1 ;;
  *"cat /etc/containerd/config.toml") echo version = 2 ;;
  *"cp /dev/stdin /etc/containerd/config.toml") cat >"{folder}/$4.toml" ;;
  *"kubeadm init"*) exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def program() -> Path:
    return toolchain.program("kind")


def create(program: Path, folder: Path, config: Path) -> str:
    """What `kind create cluster` says; it ends where kubeadm would begin."""
    put_programs(folder, {"docker": DOCKER.format(folder=folder, nodes=" ".join(NODES))})
    done = subprocess.run(
        [program, "create", "cluster", "--name", "trial", "--config", config, "--kubeconfig", folder / "kubeconfig"],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "KIND_EXPERIMENTAL_PROVIDER": "docker"},
        cwd=kind.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, "Docker is played by a script: no cluster can have come of it"
    return done.stderr


@pytest.mark.tools
def test_kind_takes_the_configuration_and_asks_docker_for_its_nodes(program: Path, tmp_path: Path) -> None:
    said = create(program, tmp_path, kind.CONFIG)
    assert "Preparing nodes" in said
    runs = [line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("run ")]
    images = {line.split()[-1] for line in runs}
    (image,) = images
    version, _, digest = image.partition("@")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    minor = kubernetes_version((CONTROLPLANE_SOURCE / "go.mod").read_text()).rpartition(".")[0]
    assert version.rpartition(".")[0] == f"kindest/node:{minor}"
    mounted = {line.split("--name ")[1].split()[0] for line in runs if f"{kind.DRIVER}:/opt/nvmlsim" in line}
    assert len(runs) == len(NODES)
    assert mounted == {NODES[2]}


@pytest.mark.tools
def test_containerd_gets_a_handler_for_the_runtime_class_of_the_agent(program: Path, tmp_path: Path) -> None:
    create(program, tmp_path, kind.CONFIG)
    for node in NODES:
        merged = tomllib.loads((tmp_path / f"{node}.toml").read_text())
        handler = merged["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["nvidia"]
        assert handler["runtime_type"] == "io.containerd.runc.v2"
        assert handler["options"]["SystemdCgroup"] is True


@pytest.mark.tools
def test_kind_refuses_a_field_that_it_does_not_know(program: Path, tmp_path: Path) -> None:
    config = tmp_path / "kind.yaml"
    config.write_text(kind.CONFIG.read_text().replace("extraMounts:", "mounts:"))
    assert "field mounts not found" in create(program, tmp_path, config)


@pytest.mark.tools
def test_the_chart_takes_the_values_and_its_pods_fit_the_nodes_of_kind(tmp_path: Path) -> None:
    objects = Helm(toolchain.program("helm"), tmp_path).template("-f", str(kindtrial.VALUES))
    agent = find(objects, "DaemonSet", "gpusharing-agent")["spec"]["template"]["spec"]
    operator = find(objects, "Deployment", "gpusharing-operator")["spec"]["template"]["spec"]
    workers = [node["labels"] for node in yaml.safe_load(kind.CONFIG.read_text())["nodes"] if "labels" in node]
    assert [agent["nodeSelector"].items() <= labels.items() for labels in workers] == [False, True]
    assert all(operator["nodeSelector"].items() <= labels.items() for labels in workers)
    (mount,) = [one for one in agent["containers"][0]["volumeMounts"] if one["name"] == "nvmlsim"]
    environment = {one["name"]: one.get("value", "") for one in agent["containers"][0]["env"]}
    assert environment["LD_LIBRARY_PATH"] == mount["mountPath"]
    assert environment["NVMLSIM_STATE"].startswith(mount["mountPath"])


@pytest.mark.tools
def test_the_driver_that_kind_mounts_is_laid_down_before_the_cluster_is_made(tmp_path: Path) -> None:
    kind.put_driver(tmp_path)
    assert (tmp_path / LIBRARY).is_file()
    assert (tmp_path / "state" / "nvml.state").stat().st_size > 0


def test_the_trial_says_which_image_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(kindtrial.TrialError, match=r"but has: none\nBuild it: make images"):
        kindtrial.find_archive(tmp_path)
    for name in ("a.tar", "b.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            text = json.dumps([{"RepoTags": ["localhost/x:1"]}]).encode()
            member = tarfile.TarInfo("manifest.json")
            member.size = len(text)
            tar.addfile(member, BytesIO(text))
    with pytest.raises(kindtrial.TrialError, match=r"but has: a\.tar, b\.tar"):
        kindtrial.find_archive(tmp_path)
    (tmp_path / "b.tar").unlink()
    assert kindtrial.read_reference(kindtrial.find_archive(tmp_path)) == "localhost/x:1"

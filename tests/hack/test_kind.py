"""hack/kind.yaml and hack/kindtrial.py: the real `kind` reads the configuration, Docker is played by a script."""

import json
import os
import re
import subprocess
import tarfile
import tomllib
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from hack.cluster import kind, toolchain
from hack.cluster.toolchain import CONTROLPLANE_SOURCE, kubernetes_version
from hack.nvmlsim.build import LIBRARY
from tests.chart.charts import Helm, find
from tests.hack.test_cluster_cli import put_programs

from hack import kindtrial

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

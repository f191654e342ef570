"""controller/uninstall.py, the pre-delete hook: what its Job runs, with its rights, against a real API server."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster.api import MERGE_PATCH
from hack.cluster.kubeconfig import write_token_kubeconfig
from tests.build import make_fence
from tests.chart.charts import NAMESPACE, Helm, find
from tests.chart.cluster import NODES, POLICIES, POLICY, Installed

from gpusharing.api.names import ANNOTATION_FENCE, FINALIZER
from gpusharing.kube.fence import record_text

pytestmark = pytest.mark.cluster


def asked(
    installed: Installed, helm: Helm, folder: Path, account: str = ""
) -> subprocess.CompletedProcess[str]:
    """The Job's command as a process: its environment, and the token of its service account (or of `account`)."""
    job = find(
        helm.template("--show-only", "templates/uninstall-check.yaml"), "Job", "gpusharing-uninstall-check"
    )
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    kubeconfig = write_token_kubeconfig(
        installed.admin, folder / "kubeconfig", NAMESPACE, account or pod["serviceAccountName"]
    )
    environment = {"KUBECONFIG": str(kubeconfig), **{one["name"]: one["value"] for one in container["env"]}}
    return subprocess.run(
        [str(Path(sys.executable).with_name(container["command"][0])), *container["command"][1:]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def fenced(installed: Installed) -> Iterator[str]:
    """A node in the middle of a change."""

    def annotate(text: str | None) -> None:
        patch = {"metadata": {"annotations": {ANNOTATION_FENCE: text}}}
        installed.admin.request("PATCH", f"{NODES}/{installed.node_a}", patch, MERGE_PATCH)

    annotate(record_text(make_fence()))
    yield installed.node_a
    annotate(None)


def test_a_node_in_the_middle_of_a_change_ends_it_with_status_1_and_its_name(
    installed: Installed, helm: Helm, tmp_path: Path, fenced: str
) -> None:
    done = asked(installed, helm, tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("NOT UNINSTALLED: 1 node is")
    assert f"{fenced}: policy pool-b" in done.stdout


@pytest.fixture
def resetting(installed: Installed) -> Iterator[str]:
    """A policy at rest that holds our finalizer."""
    metadata = {"name": "uninstall-resets", "finalizers": [FINALIZER]}
    spec = {**POLICY["spec"], "deletionPolicy": "Reset"}
    installed.admin.request("POST", POLICIES, {**POLICY, "metadata": metadata, "spec": spec})
    yield "uninstall-resets"
    path = f"{POLICIES}/uninstall-resets"
    given_up = {"metadata": {"finalizers": None}, "spec": {"deletionPolicy": "Retain"}}
    installed.admin.request("PATCH", path, given_up, MERGE_PATCH)
    installed.admin.request("DELETE", path)


def test_a_policy_that_could_not_be_deleted_any_more_ends_it_with_status_1_and_its_name(
    installed: Installed, helm: Helm, tmp_path: Path, resetting: str
) -> None:
    done = asked(installed, helm, tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"kubectl delete gsp {resetting} --wait=false" in done.stdout


def test_with_nothing_in_flight_it_ends_well_and_says_what_stays(
    installed: Installed, helm: Helm, tmp_path: Path
) -> None:
    done = asked(installed, helm, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "kubectl patch clusterpolicy cluster-policy --type merge" in done.stdout
    assert (
        "kubectl -n gpu-operator delete configmap gpusharing-device-plugin gpusharing-mig-parted"
        in done.stdout
    )


def test_what_may_not_be_read_refuses_with_the_servers_words(
    installed: Installed, helm: Helm, tmp_path: Path
) -> None:
    done = asked(installed, helm, tmp_path, account="default")
    assert done.returncode == 1
    assert "not allowed to list nodes" in done.stdout
    assert "--no-hooks" in done.stdout

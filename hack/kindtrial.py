"""`make e2e DRIVER=kind`: our image and our chart on the cluster that `make cluster DRIVER=kind` created.

The kubelets and containerd are real, GPUs and driver are SIMULATED. NVIDIA's programs do not run there, so no mode is
changed; `make e2e` tests that. This shows that image and chart start on kind, and that the agent reads GPUs.
"""

import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from hack import launch
from hack.cluster import kind
from hack.cluster.api import Api, ApiError, Object, is_true
from hack.cluster.cli import EXPECTED
from hack.cluster.kubeconfig import kubeconfig_path, open_api
from hack.cluster.process import wait_until

IMAGES = kind.ROOT / "build" / "images"
VALUES = kind.ROOT / "hack" / "kind-values.yaml"
SECONDS = 120.0
POLICY: Object = {
    "apiVersion": "gpusharing.dev/v1alpha1",
    "kind": "GPUSharingPolicy",
    "metadata": {"name": "kind-trial"},
    "spec": {
        "nodeSelector": {"matchLabels": {"gpusharing.dev/pool": "kind"}},
        "mode": "TimeSlicing",
        "timeSlicing": {"replicas": 4},
        "rollout": {"paused": True},
    },
}
POLICIES = "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies"


class TrialError(Exception):
    """A requirement of the trial is missing, or a step failed; the message says what to do."""


def main() -> int:
    """Run the trial with the image of `make images` on the cluster of $KUBECONFIG."""
    try:
        archive = find_archive(IMAGES)
        kubeconfig = kubeconfig_path()
        kind.load(archive)
        with open_api(kubeconfig) as api:
            trial(api, kubeconfig, read_reference(archive))
    except (*EXPECTED, launch.LaunchError, TrialError, ApiError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def find_archive(folder: Path) -> Path:
    """Return the path of the archive that `make images` has written into `folder`."""
    archives = sorted(folder.glob("*.tar"))
    if len(archives) != 1:
        names = ", ".join(path.name for path in archives) or "none"
        raise TrialError(f"{folder} must have exactly one archive, but has: {names}\nBuild it: make images")
    return archives[0]


def read_reference(archive: Path) -> str:
    """Return the `repository:tag` in a docker-archive."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("manifest.json")
        assert member is not None
        return str(json.load(member)[0]["RepoTags"][0])


def trial(api: Api, kubeconfig: Path, reference: str) -> None:
    """Install the chart in a kind cluster, run helm's test, and play one policy."""
    repository, _, tag = reference.rpartition(":")
    image = ("--set", f"image.repository={repository}", "--set", f"image.tag={tag}")
    _step(
        "helm install --wait: operator and agents are Ready",
        lambda: launch.install_chart(kubeconfig, *image, "-f", str(VALUES), "--wait", "--timeout", f"{SECONDS:.0f}s"),
    )
    _step("helm test", lambda: _helm_test(kubeconfig))

    def reads_gpus() -> bool:
        gpunodes = api.list("/apis/gpusharing.dev/v1alpha1/gpunodes")
        return any(len(node.get("status", {}).get("observed", {}).get("gpus") or ()) == 2 for node in gpunodes)

    try:
        _step("the agent reads two SIMULATED GPUs", lambda: wait_until(reads_gpus, SECONDS, "GPUs"))
        api.create(POLICIES, POLICY)
        what, path = "the policy to be accepted", f"{POLICIES}/{POLICY['metadata']['name']}"
        _step(
            "a policy for its node is accepted",
            lambda: wait_until(lambda: is_true(api.get(path), "Accepted"), SECONDS, what),
        )
    finally:
        try:
            api.delete(f"{POLICIES}/{POLICY['metadata']['name']}")
        except ApiError as error:
            if error.status != 404:
                raise


def _helm_test(kubeconfig: Path) -> None:
    command = ("test", "gpusharing", "-n", launch.NAMESPACE, "--logs", "--timeout", f"{SECONDS:.0f}s")
    done = launch.helm({**os.environ, "KUBECONFIG": str(kubeconfig)}, *command)
    if done.returncode:
        raise TrialError(f"helm test found that this installation cannot work:\n{done.stdout}{done.stderr}")


def _step(what: str, work: Callable[[], object]) -> None:
    work()
    print(f"ok  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

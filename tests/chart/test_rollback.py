"""CRDs that grow over stored objects, and `helm rollback`, which puts the older ones back: its pre-rollback hook.

kwok runs no program, so the test does what the hook's pod would do (controller/rollback.py), with its account and
variables. Helm goes by how the Job ends.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hack.cluster.api import ApiError, Object, selector
from hack.cluster.controlplane import ControlPlane
from hack.cluster.kubeconfig import write_token_kubeconfig
from hack.cluster.process import wait_until
from tests.chart.charts import CHART, NAMESPACE, Helm
from tests.chart.cluster import GPUNODES, POLICIES, POLICY, SECONDS, Installed, refusal, set_up

pytestmark = pytest.mark.cluster

HOOK = "gpusharing-rollback-check"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gpusharingpolicies.gpusharing.dev"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/gpusharing-operator"
ACCOUNT = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{HOOK}"
HOURS = ["22:00-05:00"]
NEW_FIELDS = {
    "gpusharingpolicies": (
        "              rollout:\n",
        """\
                  hours:
                    type: array
                    description: When nodes may be drained.
                    maxItems: 8
                    items: {type: string, maxLength: 16}
                  pace:
                    default: Steady
                    type: string
                    description: How fast.
                    enum: [Steady, Slow]
""",
    ),
    "gpunodes": (
        "              request:\n",
        """\
                  deep:
                    default: false
                    type: boolean
                    description: Read everything.
""",
    ),
}
"""Where the copy's CRD gets them, and what. `hours` is optional, the others have defaults."""


def newer_chart(folder: Path) -> Path:
    """A copy of the chart as version 0.2.0, whose CRDs have a few fields more."""
    chart = folder / "newer"
    shutil.copytree(CHART, chart)
    about = chart / "Chart.yaml"
    about.write_text(about.read_text().replace("ersion: 0.1.0", "ersion: 0.2.0"))
    for plural, (above, fields) in NEW_FIELDS.items():
        crd = chart / "templates" / "crds" / f"{plural}.yaml"
        before, parent, after = crd.read_text().partition(above)
        head, properties, below = after.partition("                properties:\n")
        assert below, f"{plural} has no {above.strip()}"
        crd.write_text(before + parent + head + properties + fields + below)
    return chart


@pytest.fixture(scope="module")
def older(helm: Helm) -> Iterator[tuple[Installed, Object]]:
    """The chart on a control plane of its own, and a policy that is stored before its CRD grows."""
    with ControlPlane() as plane:
        installed = set_up(plane, helm)
        yield installed, installed.admin.create(POLICIES, POLICY)


@pytest.fixture(scope="module")
def upgraded(older: tuple[Installed, Object], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The same release, upgraded to the copy."""
    installed, _ = older
    done = installed.run_helm("upgrade", str(newer_chart(tmp_path_factory.mktemp("chart"))))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: has(installed, "hours"), SECONDS, "the grown CRD to be served")
    return installed


def has(installed: Installed, field: str) -> bool:
    """Whether the server keeps this field of spec.rollout when somebody writes it."""
    value: object = HOURS if field == "hours" else "Slow"
    patch = {"spec": {"rollout": {field: value}}}
    answer = installed.admin.request(
        "PATCH", f"{POLICIES}/pool-d", patch, "application/merge-patch+json", dryRun="All"
    )
    return field in answer["spec"]["rollout"]


def rolled_back(installed: Installed, folder: Path, revision: int) -> tuple[int, str]:
    """Exit status of `helm rollback`, and what the hook's program said, which ran in the place of its pod."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(installed.run_helm, "rollback", str(revision), "--timeout", "300s")
        query = {"labelSelector": selector({"app.kubernetes.io/name": HOOK})}

        def runs() -> list[Object]:  # that of an earlier rollback has ended, and may not be gone yet
            pods = installed.admin.list(PODS, **query)
            return [pod for pod in pods if pod["status"].get("phase") == "Running"]

        wait_until(lambda: running.done() or bool(runs()), SECONDS, "the hook's pod")
        assert not running.done(), running.result().stderr
        (pod,) = runs()
        done = answered(installed, pod, folder)
        end: Object = {"phase": "Failed" if done.returncode else "Succeeded"}
        installed.admin.merge_patch(f"{PODS}/{pod['metadata']['name']}/status", {"status": end})
        return running.result().returncode, done.stdout + done.stderr


def answered(installed: Installed, pod: Object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run what the pod's container would run: its command, its variables, its account."""
    (container,) = pod["spec"]["containers"]
    account = pod["spec"]["serviceAccountName"]
    kubeconfig = write_token_kubeconfig(installed.admin, folder / "kubeconfig", NAMESPACE, account)
    environment = {one["name"]: one["value"] for one in container["env"]}
    return subprocess.run(
        [str(Path(sys.executable).with_name(container["command"][0]))],
        env={"PATH": os.environ["PATH"], "KUBECONFIG": str(kubeconfig), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_a_stored_object_outlives_crds_with_new_optional_and_defaulted_fields(
    older: tuple[Installed, Object], upgraded: Installed
) -> None:
    admin, (_, stored) = upgraded.admin, older
    read = admin.get(f"{POLICIES}/pool-d")
    wanted = stored["spec"]["rollout"] | {"pace": "Steady"}
    assert read["metadata"]["uid"] == stored["metadata"]["uid"]
    assert read["spec"] == stored["spec"] | {"rollout": wanted}, "the default is there, hours is not"
    node = admin.get(f"{GPUNODES}/{upgraded.node_a}")
    assert node["spec"]["request"] == {"id": "1", "quiet": False, "deep": False}
    patched = admin.merge_patch(f"{POLICIES}/pool-d", {"spec": {"timeSlicing": {"replicas": 2}}})
    assert (patched["spec"]["timeSlicing"]["replicas"], patched["spec"]["rollout"]) == (2, wanted)
    asked = admin.merge_patch(f"{GPUNODES}/{upgraded.node_a}", {"spec": {"request": {"id": "2"}}})
    assert asked["spec"]["request"] == {"id": "2", "quiet": False, "deep": False}
    for rollout in ({"pace": "Hasty"}, {"hours": [1]}, {"paused": "maybe"}):
        with pytest.raises(ApiError, match=next(iter(rollout))):
            admin.merge_patch(f"{POLICIES}/pool-d", {"spec": {"rollout": rollout}})
    assert refusal(admin, POLICY | {"metadata": {"name": "next"}}) == ""


def test_a_rollback_that_would_cut_a_field_off_is_refused_before_anything_is_touched(
    upgraded: Installed, tmp_path: Path
) -> None:
    admin = upgraded.admin
    nightly = POLICY | {
        "metadata": {"name": "nightly"},
        "spec": POLICY["spec"] | {"rollout": {"hours": HOURS}},
    }
    admin.create(POLICIES, nightly)
    before = [admin.get(path)["metadata"]["resourceVersion"] for path in (CRD, f"{POLICIES}/nightly")]
    deployed = admin.get(DEPLOYMENT)["metadata"]["generation"]
    status, told = rolled_back(upgraded, tmp_path, 1)
    assert status != 0, told
    assert told.startswith("NOT ROLLED BACK: 1 policy has fields")
    assert "\n  nightly: spec.rollout.hours\n" in told
    assert "pool-d" not in told, "a default is nothing that anybody wrote"
    after = [admin.get(path)["metadata"]["resourceVersion"] for path in (CRD, f"{POLICIES}/nightly")]
    assert (after, admin.get(DEPLOYMENT)["metadata"]["generation"]) == (before, deployed)
    # What it says of the release: helm upgrades nothing until then.
    upgrade = ("upgrade", str(CHART), "--dry-run=server", "--set", "crds.install=false")
    assert "another operation" in upgraded.run_helm(*upgrade).stderr
    (command,) = [line.strip() for line in told.splitlines() if "delete secret" in line]
    upgraded.plane.kubectl(*command.split()[1:])
    done = upgraded.run_helm(*upgrade)
    assert done.returncode == 0, done.stderr


def test_what_may_not_be_read_refuses_with_the_servers_words(upgraded: Installed, tmp_path: Path) -> None:
    container = {
        "command": [HOOK],
        "env": [
            {"name": "GPUSHARING_RELEASE", "value": "gpusharing"},
            {"name": "GPUSHARING_NAMESPACE", "value": NAMESPACE},
        ],
    }
    done = answered(
        upgraded, {"spec": {"serviceAccountName": "default", "containers": [container]}}, tmp_path
    )
    assert done.returncode == 1, done.stderr
    assert "not allowed to get customresourcedefinitions" in done.stdout
    assert "--no-hooks" in done.stdout


def test_without_such_a_field_the_rollback_goes_on_and_takes_its_account_with_it(
    upgraded: Installed, tmp_path: Path
) -> None:
    upgraded.admin.merge_patch(f"{POLICIES}/nightly", {"spec": {"rollout": {"hours": None}}})
    status, told = rolled_back(upgraded, tmp_path, 1)
    assert (status, told) == (0, "No policy has a field that the older version lacks.\n")
    wait_until(lambda: not has(upgraded, "hours"), SECONDS, "the older CRD to be served")
    with pytest.raises(ApiError) as gone:
        upgraded.admin.get(ACCOUNT)
    assert gone.value.status == 404
    assert upgraded.admin.get(f"{POLICIES}/nightly")["spec"]["mode"] == "TimeSlicing"

"""What else names resources and labels that vanish with a plan (kubectl_gpusharing/changing/plan.py)."""

from pathlib import Path
from typing import Any

import pytest
from hack.sim.fakecluster import FakeClient, FakeCluster
from hack.sim.fakefaults import EVER
from tests.cli.asking import ME, Answered, ask, operated, written
from tests.embedded.scene import FULL, MIXED, SINGLE, SLICED, policy
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.api.names import LABEL_GPU_PRODUCT, LABEL_ISOLATION
from gpusharing.kube.client import JSON, NAMESPACES, ApiRequest
from gpusharing.kube.errors import Forbidden
from kubectl_gpusharing.changing.plan import KINDS

RESOURCES = dict(reversed(KINDS))
GPU = "nvidia.com/gpu"
PRODUCT = "NVIDIA-H100-80GB-HBM3"
TEMPLATE: JSON = {"spec": {"containers": [{"name": "main", "resources": {"limits": {GPU: "1"}}}]}}
SELECTING: JSON = {"spec": {"nodeSelector": {LABEL_GPU_PRODUCT: PRODUCT}, "containers": [{"name": "main"}]}}
NAMING: dict[str, JSON] = {
    "ResourceQuota": {"hard": {f"requests.{GPU}": "4"}},
    "LimitRange": {"limits": [{"type": "Container", "max": {GPU: "1"}}]},
    "ClusterQueue": {"resourceGroups": [{"coveredResources": ["cpu", GPU], "flavors": []}]},
    "Deployment": {"template": TEMPLATE},
    "StatefulSet": {"template": TEMPLATE},
    "DaemonSet": {"template": TEMPLATE},
    "Job": {"template": TEMPLATE},
    "CronJob": {"jobTemplate": {"spec": {"template": TEMPLATE}}},
}
"""By kind: a spec that names nvidia.com/gpu."""


def put(cluster: FakeCluster, kind: str, spec: JSON, *, namespace: str = "team-a", **more: Any) -> str:
    """Add an object of this kind; returns the words by which it is called."""
    resource = RESOURCES[kind]
    where = {"namespace": namespace} if resource.namespaced else {}
    metadata = {"name": f"a-{kind.lower()}", **where, **more.pop("metadata", {})}
    cluster.add(resource, {"kind": kind, "metadata": metadata, "spec": spec, **more})
    return f"{kind} {namespace}/{metadata['name']}" if where else f"{kind} {metadata['name']}"


async def planned(tmp_path: Path, cluster: FakeCluster, spec: JSON, output: str = "json") -> Answered:
    return await ask(cluster, "plan", "-o", output, "-f", written(tmp_path, policy(spec)))


LABEL = f"{LABEL_GPU_PRODUCT}={PRODUCT}"
VANISHING: dict[str, tuple[str, JSON, str, JSON, JSON]] = {
    **{kind: (kind, spec, GPU, MIXED, SINGLE) for kind, spec in NAMING.items()},
    "ResourceFlavor by label": ("ResourceFlavor", {"nodeLabels": {LABEL_GPU_PRODUCT: PRODUCT}}, LABEL, SLICED, MIXED),
    "Deployment by label": ("Deployment", {"template": SELECTING}, LABEL, SLICED, MIXED),
}
"""An object with what it names, a plan with which that vanishes, and one that keeps it: strategy single keeps the name of the resource, and with strategy mixed GFD goes on describing the card."""


@pytest.mark.parametrize(("kind", "spec", "named", "without", "with_it"), VANISHING.values(), ids=VANISHING)
@virtually
async def test_an_object_that_names_a_resource_or_a_label_which_vanishes_is_told(
    tmp_path: Path, kind: str, spec: JSON, named: str, without: JSON, with_it: JSON
) -> None:
    async with operated(1, serving=FULL) as scene:
        called = put(scene.e.cluster, kind, spec)
        gone = await planned(tmp_path, scene.e.cluster, without)
        kept = await planned(tmp_path, scene.e.cluster, with_it)
    dependent, *others = gone.data["dependents"]
    assert not lacks(dependent, named, called)
    assert kept.data["dependents"] == []
    if named == LABEL:
        assert others == []
    else:
        assert gone.data["notes"] == kept.data["notes"]


@virtually
async def test_a_quota_on_a_vanished_name_limits_nothing_and_that_is_told(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        put(scene.e.cluster, "ResourceQuota", NAMING["ResourceQuota"])
        told = await planned(tmp_path, scene.e.cluster, MIXED, "table")
    said = " ".join(told.out.split())
    assert not lacks(said, GPU, "ResourceQuota team-a/a-resourcequota")
    assert not lacks(said, "ResourceQuota has no effect")


UNTOLD: dict[str, tuple[str, dict[str, Any]]] = {
    "a Job that has ended": ("Job", {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}),
    "a Job that has failed": ("Job", {"status": {"conditions": [{"type": "Failed", "status": "True"}]}}),
    "a Job whose template its CronJob has": (
        "Job",
        {
            "metadata": {
                "ownerReferences": [
                    {"apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": "u", "controller": True}
                ]
            }
        },
    ),
    "NVIDIA's own DaemonSets": ("DaemonSet", {"namespace": "gpu-operator"}),
}


@pytest.mark.parametrize(("kind", "fields"), UNTOLD.values(), ids=UNTOLD)
@virtually
async def test_nothing_is_told_of(tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    async with operated(1, serving=FULL) as scene:
        put(scene.e.cluster, kind, NAMING[kind], **fields)
        told = await planned(tmp_path, scene.e.cluster, MIXED)
    assert told.data["dependents"] == []


@virtually
async def test_kinds_that_the_user_may_not_read_are_named_in_one_note_and_the_others_are_read(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        called = put(scene.e.cluster, "Deployment", NAMING["Deployment"])
        for kind in (RESOURCES["ResourceQuota"], RESOURCES["LimitRange"]):
            refusal = Forbidden(f'User "me" cannot list resource "{kind.plural}"')
            scene.e.cluster.faults.fail("list", kind, refusal, times=EVER, identity=ME)
        told = await planned(tmp_path, scene.e.cluster, MIXED)
    (dependent,) = told.data["dependents"]
    assert not lacks(dependent, GPU, called)
    (note,) = (one for one in told.data["notes"] if "not be read" in one)
    assert not lacks(note, "limitranges, resourcequotas", "could not be read")


class RefusingFirst(FakeClient):
    """A client without rights to kinds that are not installed, on a server that asks RBAC first, as a real one does."""

    async def call(self, request: ApiRequest) -> JSON:
        if request.verb == "list" and request.resource in self.cluster.uninstalled:
            raise Forbidden(f'User "me" cannot list resource "{request.resource.plural}"')
        return await super().call(request)


@virtually
async def test_a_kind_that_is_not_installed_is_not_missed_where_the_server_refuses_to_list_it(tmp_path: Path) -> None:
    """RBAC comes before the 404: who has no right to a kind is refused also where it is not served."""
    async with operated(1, serving=FULL) as scene:
        scene.e.cluster.uninstalled |= {resource for _, resource in KINDS if resource.group == "kueue.x-k8s.io"}
        edit = written(tmp_path, policy(MIXED))
        told = await ask(scene.e.cluster, "plan", "-o", "json", "-f", edit, client=RefusingFirst(scene.e.cluster, ME))
    assert [one for one in told.data["notes"] if "not be read" in one] == []


@virtually
async def test_nothing_else_is_read_while_nothing_vanishes(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        await planned(tmp_path, scene.e.cluster, FULL)
        assert not [call for call in scene.e.cluster.calls if call[0] == ME and call[2] == "resourcequotas"]


# --- namespaces with the guard's label ---------------------------------------------------------------------------

LEFT = "No node will have mode full or mig, but GPU pods in namespaces with the label gpusharing.dev/isolation=hardware"


@pytest.mark.parametrize("guard", ["mutating", "validating", "false"])
@virtually
async def test_namespaces_that_lose_their_last_admitted_mode_are_named_if_the_guard_is_on(
    tmp_path: Path, guard: str
) -> None:
    async with operated(1, settings={"GPUSHARING_GUARD": guard}) as scene:
        cluster = scene.e.cluster
        for name, level in (("team-b", "hardware"), ("team-a", "hardware"), ("team-c", "memory"), ("team-d", "")):
            labels = {LABEL_ISOLATION: level} if level else {}
            cluster.add(NAMESPACES, {"metadata": {"name": name, "labels": labels}})
        await scene.serve(FULL)
        gone = await planned(tmp_path, cluster, {"mode": "MPS", "mps": {"replicas": 4}})
        kept = await planned(tmp_path, cluster, MIXED)
        cluster.faults.fail("list", NAMESPACES, Forbidden("no"), identity=ME)
        unread = await planned(tmp_path, cluster, SLICED)
    wanted = [f"{LEFT} are admitted only to such nodes: team-a, team-b"] if guard != "false" else []
    assert [one for one in gone.data["dependents"] if LABEL_ISOLATION in one] == wanted
    assert [one for one in kept.data["dependents"] if LABEL_ISOLATION in one] == []
    notes = [one for one in unread.data["notes"] if LABEL_ISOLATION in one]
    assert [lacks(note, "gpusharing.dev/isolation", "read: no") for note in notes] == [[]] * (guard != "false")

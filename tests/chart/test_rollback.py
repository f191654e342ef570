"""CRDs that grow over stored objects, and `helm rollback`, which puts the older ones back: an admission policy of the chart refuses that while a stored policy would lose a field."""

import copy
import itertools
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.cluster.api import ApiError, Object
from hack.cluster.controlplane import ControlPlane
from hack.cluster.process import wait_until
from tests.chart.charts import CHART, NAMESPACE, NEXT, ROOT, VERSION, Helm, find
from tests.chart.cluster import GPUNODES, POLICIES, POLICY, SECONDS, Installed, refusal, set_up

pytestmark = pytest.mark.cluster

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gpusharingpolicies.gpusharing.dev"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/gpusharing-operator"
BINDING = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/gpusharing-policy-fields"
HOURS = ["22:00-05:00"]
UNASKED = {"quiet": False, "deep": False, "holders": False}
"""What the schema adds to the request of a GPUNode that asks for nothing."""
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
    chart = folder / "newer"
    shutil.copytree(CHART, chart)
    about = chart / "Chart.yaml"
    about.write_text(about.read_text().replace(f"ersion: {VERSION}", f"ersion: {NEXT}"))
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
    installed, _ = older
    installed.must("upgrade", str(newer_chart(tmp_path_factory.mktemp("chart"))))
    wait_until(lambda: has(installed, "hours"), SECONDS, "the grown CRD to be served")
    return installed


def has(installed: Installed, field: str) -> bool:
    """Whether the server keeps this field of spec.rollout when somebody writes it."""
    value: object = HOURS if field == "hours" else "Slow"
    patch = {"spec": {"rollout": {field: value}}}
    answer = installed.admin.request("PATCH", f"{POLICIES}/pool-d", patch, "application/merge-patch+json", dryRun="All")
    return field in answer["spec"]["rollout"]


def refusal_of(installed: Installed, crd: Object) -> str:
    """Why the server would not take this CRD in place of its own; empty if it would."""
    try:
        installed.admin.request("PUT", CRD, crd, dryRun="All")
    except ApiError as error:
        if "gpusharing-policy-fields" not in error.message:
            raise
        return error.message
    return ""


def older_crd(installed: Installed) -> Object:
    chart = find(installed.helm.template(), "CustomResourceDefinition", "gpusharingpolicies.gpusharing.dev")
    now: Object = installed.admin.get(CRD)
    return now | {"spec": now["spec"] | {"versions": chart["spec"]["versions"]}}


def test_a_stored_object_outlives_crds_with_new_optional_and_defaulted_fields(
    older: tuple[Installed, Object], upgraded: Installed
) -> None:
    admin, (_, stored) = upgraded.admin, older
    read = admin.get(f"{POLICIES}/pool-d")
    wanted = stored["spec"]["rollout"] | {"pace": "Steady"}
    assert read["metadata"]["uid"] == stored["metadata"]["uid"]
    assert read["spec"] == stored["spec"] | {"rollout": wanted}, "the default is there, hours is not"
    node = admin.get(f"{GPUNODES}/{upgraded.node_a}")
    assert node["spec"]["request"] == {"id": "1", **UNASKED}
    patched = admin.merge_patch(f"{POLICIES}/pool-d", {"spec": {"timeSlicing": {"replicas": 2}}})
    assert (patched["spec"]["timeSlicing"]["replicas"], patched["spec"]["rollout"]) == (2, wanted)
    asked = admin.merge_patch(f"{GPUNODES}/{upgraded.node_a}", {"spec": {"request": {"id": "2"}}})
    assert asked["spec"]["request"] == {"id": "2", **UNASKED}
    for rollout in ({"pace": "Hasty"}, {"hours": [1]}, {"paused": "maybe"}):
        with pytest.raises(ApiError, match=next(iter(rollout))):
            admin.merge_patch(f"{POLICIES}/pool-d", {"spec": {"rollout": rollout}})
    assert refusal(admin, POLICY | {"metadata": {"name": "next"}}) == ""


def test_a_rollback_that_would_cut_a_field_off_is_refused_and_the_release_stays_usable(upgraded: Installed) -> None:
    admin = upgraded.admin
    nightly = POLICY | {"metadata": {"name": "nightly"}, "spec": POLICY["spec"] | {"rollout": {"hours": HOURS}}}
    admin.create(POLICIES, nightly)
    touches = itertools.count()

    def known() -> bool:
        """What was written right after the CRD changed, the server's cache has without the new fields until it is written again, as the operator does with every status."""
        note = {"metadata": {"annotations": {"tests/touched": str(next(touches))}}}
        admin.merge_patch(f"{POLICIES}/nightly", note)
        return refusal_of(upgraded, older_crd(upgraded)) != ""

    wait_until(known, SECONDS, "the server to know the policy")
    done = upgraded.run_helm("rollback", "1")
    assert done.returncode != 0
    assert "policy nightly has fields that this version of the CRD would remove (spec.rollout.hours)" in done.stderr
    assert "pool-d" not in done.stderr, "a default is nothing that anybody wrote"
    assert admin.get(f"{POLICIES}/nightly")["spec"]["rollout"]["hours"] == HOURS
    assert has(upgraded, "hours"), "the newer CRD is still served"
    last = upgraded.run_helm("history", "--max", "1").stdout.splitlines()[-1]
    assert "failed" in last, "so nothing is locked"
    upgraded.must("rollback", "2")
    assert NEXT in admin.get(DEPLOYMENT)["metadata"]["labels"]["helm.sh/chart"]


def test_without_such_a_field_the_rollback_goes_on(upgraded: Installed) -> None:
    upgraded.admin.merge_patch(f"{POLICIES}/nightly", {"spec": {"rollout": {"hours": None}}})
    wait_until(lambda: refusal_of(upgraded, older_crd(upgraded)) == "", SECONDS, "the server to know the policy")
    upgraded.must("rollback", "1")
    wait_until(lambda: not has(upgraded, "hours"), SECONDS, "the older CRD to be served")
    assert upgraded.admin.get(f"{POLICIES}/nightly")["spec"]["mode"] == "TimeSlicing"


def test_of_all_fields_of_a_policy_those_that_somebody_set_may_not_be_removed_from_the_crd(upgraded: Installed) -> None:
    admin, specs = upgraded.admin, []
    for path in sorted((ROOT / "examples").glob("pool-*.yaml")):
        name = {"metadata": {"name": f"fields-{path.stem}"}}
        for example in yaml.safe_load_all(path.read_text()):
            if example["kind"] == "GPUSharingPolicy":
                specs.append(admin.create(POLICIES, example | name)["spec"])
    crd = loosened(admin.get(CRD))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    names = [one["metadata"]["name"] for one in admin.list(POLICIES)]
    touches = itertools.count()

    def is_kept(steps: list[str]) -> bool:
        """Whether the server does not let this field go. It hears of each policy at a time of its own, and of some only when they are written again (see above)."""
        if f"(spec.{'.'.join(steps)}" in refusal_of(upgraded, without(crd, steps)):
            return True
        for name in names:
            note = {"metadata": {"annotations": {"tests/touched": str(next(touches))}}}
            admin.merge_patch(f"{POLICIES}/{name}", note)
        return False

    refused: list[list[str]] = []
    free: list[list[str]] = []
    for steps in properties(schema):
        is_set = any(sets(spec, schema, steps) for spec in specs)
        if is_set:
            wait_until(partial(is_kept, steps), SECONDS, f"{steps} to be kept")
        else:
            assert refusal_of(upgraded, without(crd, steps)) == "", steps
        (refused if is_set else free).append(steps)
    assert len(refused) > 10, "examples that set fields"
    assert len(free) > 10, "fields that no example sets, or only to the default"


def loosened(crd: Object) -> Object:
    """The CRD without what makes it invalid if a property of a spec is taken out."""
    (version,) = crd["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    inner = schema | {"properties": schema["properties"] | {"spec": bare(schema["properties"]["spec"])}}
    inner.pop("x-kubernetes-validations", None)
    looser = {key: value for key, value in version.items() if key not in ("selectableFields", "schema")}
    return crd | {"spec": crd["spec"] | {"versions": [looser | {"schema": {"openAPIV3Schema": inner}}]}}


RELIANT = ("x-kubernetes-validations", "x-kubernetes-list-map-keys", "x-kubernetes-list-type")


def bare(schema: Any) -> Any:
    """The schema without rules, keys of lists, and lists of required fields, all of which name properties."""
    if isinstance(schema, list):
        return [bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: bare(value)
        for key, value in schema.items()
        if key not in RELIANT and not (key == "required" and isinstance(value, list))
    }


def below(schema: Any) -> Any:
    return schema.get("items", schema)


def properties(schema: Any) -> Iterator[list[str]]:
    for name, child in below(schema).get("properties", {}).items():
        yield [name]
        yield from ([name, *rest] for rest in properties(child))


def without(crd: Object, steps: list[str]) -> Object:
    smaller = copy.deepcopy(crd)
    schema = smaller["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for step in steps[:-1]:
        schema = below(schema)["properties"][step]
    del below(schema)["properties"][steps[-1]]
    return smaller


def sets(value: Any, schema: Any, steps: list[str]) -> bool:
    """Whether a spec sets the field at this path, or one below it, to anything but its default."""
    if isinstance(value, list):
        return any(sets(item, schema, steps) for item in value)
    name, *rest = steps
    if not isinstance(value, dict) or name not in value:
        return False
    child = below(schema)["properties"][name]
    if rest:
        return sets(value[name], child, rest)
    inner = value[name]
    if isinstance(inner, dict) and inner:
        known = child.get("properties", {})
        return any(key not in known or sets(inner, child, [key]) for key in inner)
    return "default" not in child or bool(inner != child["default"])


def test_whoever_wants_to_lose_the_fields_deletes_the_binding(upgraded: Installed) -> None:
    admin = upgraded.admin
    crd = without(loosened(admin.get(CRD)), ["mode"])
    (command,) = [part for part in refusal_of(upgraded, crd).split(": ") if part.startswith("kubectl delete")]
    upgraded.plane.kubectl(*command.partition(",")[0].split()[1:])
    wait_until(lambda: refusal_of(upgraded, crd) == "", SECONDS, "the policy not to be enforced")
    upgraded.must("upgrade", str(CHART))
    assert admin.get(BINDING)["spec"]["policyName"] == "gpusharing-policy-fields"

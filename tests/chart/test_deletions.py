"""What Helm deletes when a value changes (deletions.yaml), and that nothing of other people's is among it."""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.cluster import install
from hack.cluster.api import Api, Object
from hack.cluster.process import wait_until
from tests.chart.charts import CHART, HOOK, NAMESPACE, Helm, Manifest
from tests.chart.cluster import AGENT_NAMESPACE, POLICIES, POLICY, SECONDS, Installed, bind

TABLE: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("deletions.yaml").read_text())
Values = dict[str, Any]
EVERYTHING: Values = {
    "agent.serviceAccount.name": "own-agent",
    "dra.deviceTaints": True,
    "forceDelete": True,
    "gpuOperator.configure": True,
    "gpuOperator.repairMps": True,
    "guard.enabled": True,
    "monitoring.grafanaDashboard.create": True,
    "networkPolicy.enabled": True,
    "operator.podDisruptionBudget.enabled": True,
    "operator.serviceAccount.name": "own-operator",
}
"""Values with which the chart has all its objects that need no API of others."""
MORE: tuple[Values, ...] = (
    {
        "guard.kind": "mutating",
        "monitoring.podMonitor.enabled": True,
        "monitoring.prometheusRule.enabled": True,
        "openshift.createSCC": True,
    },
    {"monitoring.serviceMonitor.enabled": True, "agent.namespace": AGENT_NAMESPACE},
    {"monitoring.readers": ["team/prometheus"]},
)
"""What needs an API of others, or hides something of another row. With the first row each value is changed, with another its own."""
APIS = (
    "monitoring.coreos.com/v1",
    "security.openshift.io/v1",
    "admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy",
)
Identity = tuple[str, str, str]


def flags(values: Values) -> list[str]:
    return [word for key, one in values.items() for word in ("--set-json", f"{key}={json.dumps(one)}")]


def rendered(helm: Helm, values: Values) -> dict[Identity, Manifest]:
    apis = [word for api in APIS for word in ("--api-versions", api)]
    return {
        (one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]): one
        for one in helm.applied(*apis, *flags(values))
        if HOOK not in one["metadata"].get("annotations", {})
    }


def leaves(node: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """The values of values.yaml that have no values below them, by their path."""
    if isinstance(node, dict) and node:
        for key, below in node.items():
            yield from leaves(below, *path, key.replace(".", r"\."))
    else:
        yield ".".join(path), node


def alternatives(key: str, value: Any) -> list[Any]:
    if key == "guard.kind":
        return ["validating", "mutating"]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return ["other", ""]
    return [[]] if value else []


def deleted(helm: Helm, base: Values, changed: Values) -> dict[str, dict[Identity, Manifest]]:
    """Which of these values remove objects when they are changed, with the objects. What the chart refuses removes nothing."""
    before, found = rendered(helm, base), dict[str, dict[Identity, Manifest]]()
    for key, value in changed.items():
        for other in alternatives(key, value):
            try:
                after = rendered(helm, {**base, key: other})
            except AssertionError:
                continue
            gone = {name: one for name, one in before.items() if name not in after}
            if gone:
                found.setdefault(key, {}).update(gone)
    return found


@pytest.mark.tools
def test_the_table_has_each_object_whose_presence_a_value_decides(helm: Helm) -> None:
    found: dict[str, set[str]] = {}
    lasting: set[str] = set()
    defaults = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    for number, more in enumerate(MORE):
        base = EVERYTHING | more
        for key, objects in deleted(helm, base, more if number else defaults | base).items():
            found.setdefault(key, set()).update(f"{kind} {name}" for kind, _, name in objects)
            lasting |= {
                kind
                for (kind, _, _), one in objects.items()
                if TABLE["kinds"][kind].get("others")
                and one["metadata"].get("annotations", {}).get("helm.sh/resource-policy") != "keep"
            }
    assert lasting == set(), "goes with what other people have put there"
    listed = {
        key: {one for one in found.get(key, set()) if any(fnmatchcase(one, row) for row in rows)}
        for key, rows in TABLE["values"].items()
    }
    assert {key: names - listed.get(key, set()) for key, names in found.items()} == {key: set() for key in found}, (
        "deleted, and not in deletions.yaml"
    )
    idle = [
        (key, row)
        for key, rows in TABLE["values"].items()
        for row in rows
        if not any(fnmatchcase(one, row) for one in listed[key])
    ]
    assert idle == [], "in deletions.yaml, and not deleted"


LEAST: Values = {
    "agent.createNamespace": False,
    "agent.secureMetrics": False,
    "crds.enabled": False,
    "guard.enabled": False,
    "operator.leaseFlowSchema": False,
    "operator.serviceAccount.name": "",
    "agent.serviceAccount.name": "",
    "priorityClassQuota": False,
    "rbac.create": False,
    "rollbackCheck.enabled": False,
    "uninstallCheck.enabled": False,
}
"""The values with which the chart has the fewest objects."""


COME_AND_GO = ("ComponentStatus", "Event", "Lease")


def snapshot(api: Api) -> dict[str, Object]:
    found: dict[str, Object] = {}
    for group in ["/api/v1", *(f"/apis/{version}" for version in versions(api))]:
        for row in api.get(group)["resources"]:
            if "list" in row["verbs"] and "/" not in row["name"] and row["kind"] not in COME_AND_GO:
                for one in api.list(f"{group}/{row['name']}"):
                    found[one["metadata"]["uid"]] = {**one, "apiVersion": group.split("/", 2)[2], "kind": row["kind"]}
    return found


def versions(api: Api) -> list[str]:
    return [one["preferredVersion"]["groupVersion"] for one in api.get("/apis")["groups"]]


def is_ours(one: Object, objects: dict[str, Object]) -> bool:
    metadata = one["metadata"]
    if metadata.get("annotations", {}).get("meta.helm.sh/release-name") or HOOK in str(metadata):
        return True
    owners = [objects[row["uid"]] for row in metadata.get("ownerReferences", ()) if row["uid"] in objects]
    return any(is_ours(owner, objects) for owner in owners)


@pytest.mark.cluster
def test_no_value_deletes_an_object_of_other_people(installed: Installed) -> None:
    api = installed.admin
    installed.must("upgrade", str(CHART), *flags(EVERYTHING))
    for namespace in (NAMESPACE, AGENT_NAMESPACE, "gpu-operator"):
        for kind in ("configmaps", "secrets", "serviceaccounts"):
            api.create(f"/api/v1/namespaces/{namespace}/{kind}", {"metadata": {"name": "theirs"}})
    api.create(POLICIES, {**POLICY, "metadata": {"name": "theirs"}})
    bind(api, "theirs", "gpusharing-viewer", "theirs")
    before = snapshot(api)
    assert len([one for one in before.values() if one["metadata"]["name"] == "theirs"]) == 11
    installed.must("upgrade", str(CHART), *flags(LEAST))

    def settled() -> bool:
        return all("deletionTimestamp" not in one["metadata"] for one in snapshot(api).values())

    wait_until(settled, SECONDS, "what is being deleted to be gone")
    after = snapshot(api)
    gone = [one for uid, one in before.items() if uid not in after]
    assert len(gone) > 30
    theirs = [(one["kind"], one["metadata"]["name"]) for one in gone if not is_ours(one, before)]
    assert theirs == []
    for one in after.values():
        if one["metadata"]["name"] == "theirs":
            api.delete(install.object_path(api, one))
    installed.must("upgrade", str(CHART))
    installed.wait_enforced()

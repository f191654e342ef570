"""examples/monitoring/kube-state-metrics.yaml is held to the schemas that the API server gets: kinds, fields and words.
The form is that of kubernetes/kube-state-metrics docs/metrics/extend/customresourcestate-metrics.md."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.yamlfiles import read_yaml

from gpusharing.api.names import Phase

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION: Any = read_yaml(ROOT / "examples" / "monitoring" / "kube-state-metrics.yaml")
CRDS: list[Any] = [read_yaml(path) for path in sorted((ROOT / "crds").glob("*.yaml"))]
RESOURCES: list[Any] = CONFIGURATION["spec"]["resources"]
METADATA = {"type": "object", "properties": {"name": {"type": "string"}}}
FAMILIES = {"Info": "info", "StateSet": "stateSet"}
"""By type of a metric: the field in which the rest is said."""


def served(kind: dict[str, str]) -> Any:
    """The schema of a group, version and kind; None: there is none."""
    for crd in CRDS:
        spec = crd["spec"]
        for version in spec["versions"]:
            found = (spec["group"], version["name"], spec["names"]["kind"])
            if version["served"] and found == (kind["group"], kind["version"], kind["kind"]):
                schema = version["schema"]["openAPIV3Schema"]
                return {**schema, "properties": {**schema["properties"], "metadata": METADATA}}
    return None


def follow(schema: Any, path: list[str]) -> Any:
    """The schema at the end of a path, and of the items where that is a list; None: the path leads nowhere."""
    for word in path:
        schema = schema.get("properties", {}).get(word)
        if schema is None:
            return None
    return schema["items"] if schema["type"] == "array" else schema


def metrics() -> Iterator[tuple[Any, Any]]:
    for resource in RESOURCES:
        for metric in resource["metrics"]:
            yield metric, served(resource["groupVersionKind"])


def wrong(metric: Any, schema: Any) -> list[str]:
    """Paths of a metric that do not lead to a text, as labels and states have to."""
    family = metric["each"][FAMILIES[metric["each"]["type"]]]
    base = follow(schema, family["path"])
    if base is None:
        return [".".join(family["path"])]
    paths = [*family.get("labelsFromPath", {}).values()]
    if metric["each"]["type"] == "StateSet":
        paths.append(family.get("valueFrom", []))
    return [
        ".".join([*family["path"], *path])
        for path in paths
        if (found := follow(base, path)) is None or found["type"] != "string"
    ]


def named(name: str) -> Any:
    return next((metric, schema) for metric, schema in metrics() if metric["name"] == name)


def test_every_kind_is_served() -> None:
    assert CONFIGURATION["kind"] == "CustomResourceStateMetrics"
    kinds = [resource["groupVersionKind"] for resource in RESOURCES]
    assert [kind for kind in kinds if served(kind) is None] == []
    assert {kind["kind"] for kind in kinds} == {crd["spec"]["names"]["kind"] for crd in CRDS}


@pytest.mark.parametrize("name", [metric["name"] for metric, _ in metrics()])
def test_every_path_leads_to_a_text_that_the_schema_has(name: str) -> None:
    assert wrong(*named(name)) == []


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource["groupVersionKind"]["kind"])
def test_every_object_is_told_by_its_name(resource: Any) -> None:
    schema = served(resource["groupVersionKind"])
    assert [path for path in resource["labelsFromPath"].values() if follow(schema, path) is None] == []
    assert ["metadata", "name"] in resource["labelsFromPath"].values()


def test_the_states_are_all_that_there_are() -> None:
    for metric, schema in metrics():
        if metric["each"]["type"] != "StateSet":
            continue
        family = metric["each"]["stateSet"]
        field = follow(follow(schema, family["path"]), family.get("valueFrom", []))
        words = field.get("enum", [str(phase) for phase in Phase])
        assert sorted(family["list"]) == sorted(words), metric["name"]


def test_the_phases_are_those_of_the_operator() -> None:
    metric, _ = named("gpunode_status_phase")
    assert metric["each"]["stateSet"]["list"] == [str(phase) for phase in Phase]


def test_no_name_is_that_of_a_metric_of_ours_and_an_info_says_that_it_is_one() -> None:
    told = [f"{one['metricNamePrefix']}_{metric['name']}" for one in RESOURCES for metric in one["metrics"]]
    assert len(set(told)) == len(told)
    ours = re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "reference" / "metrics.md").read_text(), re.MULTILINE)
    assert ours
    assert set(told) & set(ours) == set()
    infos = {metric["name"] for metric, _ in metrics() if metric["each"]["type"] == "Info"}
    assert {name for name in infos if not name.endswith("_info")} == set()


@pytest.mark.parametrize(
    ("path", "label"),
    [
        (["status", "sumary"], ["mode"]),
        (["status", "summary"], ["mod"]),
        (["status", "summary"], ["gpus"]),
        (["status", "conditions"], ["phase"]),
    ],
    ids=["no such object", "no such field", "a number", "no field of an item"],
)
def test_a_path_that_leads_nowhere_or_to_no_text_is_found_out(path: list[str], label: list[str]) -> None:
    metric, schema = named("gpusharingpolicy_info")
    family = {"path": path, "labelsFromPath": {"x": label}}
    assert wrong({**metric, "each": {"type": "Info", "info": family}}, schema) != []

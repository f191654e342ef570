"""The CRDs: as committed, structural, described, with defaults; and who reads each field.

A new field of a status needs a row in READERS."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import MISSING, is_dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

import pytest
import yaml
from hack.crdschema import SchemaError, structural_schema
from hack.customresources import GPUNODE, POLICY, RESOURCES, CustomResource, chart_crds, crds
from hack.generate import ROOT
from pydantic import BaseModel, Field

from gpusharing.api.gpunode import GPUNodeSpec
from gpusharing.api.names import Phase
from gpusharing.api.policy import GPUSharingPolicySpec, WireModel
from gpusharing.api.records import WireRecord, wire_name

Schema = dict[str, Any]


def schema_of(resource: CustomResource) -> Schema:
    text = (ROOT / "crds" / f"{resource.plural}.yaml").read_text()
    schema: Schema = yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def fields(schema: Schema, at: str) -> Iterator[tuple[str, Schema]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{at}.{name}", child
        yield from fields(child, f"{at}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from fields(schema[key], f"{at}[]")


@pytest.mark.parametrize("path", [*crds(), *chart_crds()])
def test_a_committed_crd_is_what_the_types_generate(path: str) -> None:
    wanted = (crds() | chart_crds())[path]
    assert (ROOT / path).read_text() == wanted, "run `make gen`"


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_every_field_to_select_by_is_a_string_of_the_schema(resource: CustomResource) -> None:
    types = {f".{path}": child.get("type") for path, child in fields(schema_of(resource), "")}
    assert resource.selectable
    assert {types.get(f".{path}") for path in resource.selectable} == {"string"}


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_every_field_is_described_by_a_sentence(resource: CustomResource) -> None:
    found = [
        (path, child.get("description", ""))
        for part in ("spec", "status")
        for path, child in fields(schema_of(resource)["properties"][part], part)
    ]
    bare = [path for path, description in found if not re.fullmatch(r"[A-Z`].+\.", description, re.DOTALL)]
    assert len(found) > 20
    assert bare == [], "write the sentence below the field, in operator/gpusharing/api, then run `make gen`"


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_every_description_is_one_sentence(resource: CustomResource) -> None:
    """`kubectl explain` shows it alone."""
    found = fields(schema_of(resource), resource.kind)
    assert [path for path, child in found if re.search(r"\. [A-Z`0-9]", child.get("description", ""))] == []


LONGEST = {
    "Policy": "pool-b",
    "Wanted": "2x3g.40gb",
    "Observed": "7x1g.10gb",
    "Phase": max(Phase, key=len),
    "Reason": "ForeignMaintenance",
    "Since": "5m30s",
    "Waiting-For": "Person",
    "Age": "120d",
    "Mode": "TimeSlicing",
    "Layout": "1x3g.40gb+4x1g.10gb",
    "Nodes": "100/100",
    "Used": "2000/2000",
    "Ready": "False",
    "Status": "ApprovalNeeded",
}
"""A long value that is usual in a column, by its name."""


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_the_columns_fit_into_120_characters(resource: CustomResource) -> None:
    names = [column.name for column in resource.columns if not column.wide]
    assert sum(max(len(name), len(LONGEST.get(name, ""))) + len("   ") for name in ["gpu-0123", *names]) <= 120


def own_defaults(model: type[Any]) -> Iterator[tuple[str, Any]]:
    """The wire name of each field of a type with its default, None where it has none."""
    if issubclass(model, BaseModel):
        for info in model.model_fields.values():
            yield str(info.alias), None if info.is_required() else info.get_default(call_default_factory=True)
        return
    for each in dataclasses.fields(model):
        made = None if each.default_factory is MISSING else each.default_factory()
        yield wire_name(each.name), made if each.default is MISSING else each.default


def defaults(model: type[Any], at: str) -> Iterator[tuple[str, Any]]:
    """Every default of a type that says something, by wire path."""
    for key, value in own_defaults(model):
        path = f"{at}.{key}"
        if isinstance(value, BaseModel | WireRecord):
            yield path, {}
            yield from defaults(type(value), path)
        elif value not in (None, "", (), {}):
            yield path, value


@pytest.mark.parametrize(("model", "resource"), [(GPUSharingPolicySpec, POLICY), (GPUNodeSpec, GPUNODE)])
def test_every_default_of_the_types_is_in_the_schema(model: type[Any], resource: CustomResource) -> None:
    spec = dict(fields(schema_of(resource)["properties"]["spec"], "spec"))
    wanted = dict(defaults(model, "spec"))
    assert wanted
    assert {path: spec[path]["default"] for path in wanted} == wanted


def test_status_keeps_null_where_null_means_something() -> None:
    status = dict(fields(schema_of(GPUNODE)["properties"]["status"], "status"))
    nullable = {path for path, child in status.items() if child.get("nullable")}
    assert nullable == {
        "status.observed",
        "status.transition",
        "status.observed.allocated",
        "status.observed.pods",
        "status.observed.holders",
        "status.observed.gpus[].recoveryAction",
        "status.observed.gpus[].xid",
        "status.transition.since",
        "status.transition.waitingFor",
        "status.transition.deadline",
        "status.transition.cordonedBy",
    }
    assert "required" not in status["status.observed.gpus"]["items"], "the agent leaves out what is at its default"


def test_enums_are_in_pascal_case_and_have_every_phase() -> None:
    """The values of mig.strategy are NVIDIA's."""
    found = {
        path: child["enum"]
        for resource in RESOURCES
        for path, child in fields(schema_of(resource), resource.kind)
        if "enum" in child
    }
    odd = [path for path, words in found.items() if not all(re.fullmatch(r"[A-Z]+[A-Za-z0-9]*", one) for one in words)]
    assert odd == ["GPUSharingPolicy.spec.mig.strategy"]
    assert found["GPUNode.status.transition.phase"] == list(Phase)


def test_spec_has_no_nullable_field_so_that_has_means_present_in_cel() -> None:
    spec = dict(fields(schema_of(POLICY)["properties"]["spec"], "spec"))
    assert [path for path, child in spec.items() if "nullable" in child] == []


def test_conditions_are_a_map_by_type() -> None:
    conditions = schema_of(POLICY)["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_every_rule_shows_a_way_out() -> None:
    root = schema_of(POLICY)
    rules = [rule for _, child in [("", root), *fields(root, "")] for rule in child.get("x-kubernetes-validations", ())]
    assert len(rules) >= 15
    assert [rule for rule in rules if not re.search("for example|change the mode", rule["message"])] == []


class Union(WireModel):
    """Two types."""

    field: int | Annotated[str, Field(max_length=3)]
    """One or the other."""


class Unbounded(WireModel):
    """No bound."""

    field: str
    """Any length."""


class Undescribed(WireModel):
    """No text."""

    field: int


class Tuple(WireModel):
    """Something that JSON schema says with prefixItems."""

    field: tuple[int, bool]
    """A pair."""


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (Union, "Union.field: anyOf"),
        (Unbounded, "Unbounded.field: maxLength is missing"),
        (Undescribed, "Undescribed.field: description is missing"),
        (Tuple, "Tuple.field: prefixItems"),
    ],
)
def test_what_a_structural_schema_cannot_say_is_refused(model: type[BaseModel], complaint: str) -> None:
    with pytest.raises(SchemaError, match=complaint):
        structural_schema(model)


STANDARD = "metav1.Condition"
"""A field that Kubernetes requires of a condition; `kubectl wait` and others read it."""
PLAN = "docs/how-to/roll-out-at-night.md"
REQUESTS, VERIFY = "gpusharing/planning/transition/requests.py", "gpusharing/planning/wanted/verify.py"
CONVERT, HEALTH = "gpusharing/kube/convert.py", "gpusharing/planning/gpus/health.py"
FLEET, WHY = "kubectl_gpusharing/pools/fleet.py", "kubectl_gpusharing/diagnosis/why.py"
STEER = "kubectl_gpusharing/changing/steer.py"
ARGO = "deploy/gitops/argocd-cm.yaml"

READERS: dict[str, str] = {
    "GPUNode.observed.requestID": "gpusharing/planning/snapshot/views.py:answer",
    "GPUNode.observed.quiet": f"{REQUESTS}:answers_quiet",
    "GPUNode.observed.driverVersion": "gpusharing/planning/transition/gates.py:target_gates",
    "GPUNode.observed.error": f"{REQUESTS}:tell_busy",
    "GPUNode.observed.simulated": f"{FLEET}:read_node",
    "GPUNode.observed.allocated": "kubectl_gpusharing/usage/holdings.py:read_gpunode",
    "GPUNode.observed.computeModes": f"{CONVERT}:observed_view",
    "GPUNode.observed.programs": f"{CONVERT}:observed_view",
    "GPUNode.observed.holders": f"{CONVERT}:observed_view",
    "GPUNode.observed.models.product": f"{CONVERT}:_of_model",
    "GPUNode.observed.models.gpus": f"{CONVERT}:observed_view",
    "GPUNode.observed.models.profiles": f"{CONVERT}:_of_model",
    "GPUNode.observed.models.resetInGuest": f"{VERIFY}:tell_guest_reset",
    "GPUNode.observed.gpus.uuid": f"{CONVERT}:observed_view",
    "GPUNode.observed.gpus.mig": f"{CONVERT}:observed_view",
    "GPUNode.observed.gpus.partialInstances.id": f"{VERIFY}:find_leftover",
    "GPUNode.observed.gpus.partialInstances.profile": f"{VERIFY}:tell_partial",
    "GPUNode.observed.gpus.partialInstances.compute": f"{VERIFY}:tell_partial",
    "GPUNode.observed.gpus.migPending": "gpusharing/planning/wanted/assess.py:find_disruption",
    "GPUNode.observed.gpus.instancesWithheld": f"{VERIFY}:find_withheld",
    "GPUNode.observed.gpus.eccErrors": f"{HEALTH}:vitals_of",
    "GPUNode.observed.gpus.remapPending": f"{HEALTH}:vitals_of",
    "GPUNode.observed.gpus.remapFailed": f"{HEALTH}:vitals_of",
    "GPUNode.observed.gpus.access": f"{HEALTH}:vitals_of",
    "GPUNode.observed.gpus.recoveryAction": f"{HEALTH}:vitals_of",
    "GPUNode.observed.gpus.xid": f"{HEALTH}:vitals_of",
    "GPUNode.observed.gpus.error": f"{HEALTH}:vitals_of",
    "GPUNode.transition.attempt": f"{WHY}:describe_node",
    "GPUNode.transition.disruption": f"{WHY}:describe_node",
    "GPUNode.transition.blockers": f"{WHY}:describe_node",
    "GPUNode.transition.history": f"{FLEET}:phases",
    "GPUNode.conditions.type": f"{FLEET}:read_node",
    "GPUNode.conditions.status": f"{FLEET}:read_node",
    "GPUNode.conditions.message": f"{FLEET}:read_node",
    "GPUNode.conditions.reason": STANDARD,
    "GPUNode.conditions.lastTransitionTime": STANDARD,
    "GPUSharingPolicy.observedGeneration": f"{FLEET}:read_pools",
    "GPUSharingPolicy.halt": f"{STEER}:_resume",
    "GPUSharingPolicy.revision": PLAN,
    **{f"GPUSharingPolicy.plan.{name}": f"{STEER}:_approve" for name in ("hash", "disruption")},
    **{f"GPUSharingPolicy.plan.{name}": f"{FLEET}:tell_extent" for name in ("nodeCount", "pods")},
    **{
        f"GPUSharingPolicy.plan.{name}": PLAN
        for name in ("nodes", "podNames", "budgets", "gangs", "blockers", "shortages", "windows")
    },
    "GPUSharingPolicy.plan.capacityBefore": PLAN,
    "GPUSharingPolicy.plan.capacityAfter": PLAN,
    **{
        f"GPUSharingPolicy.failures.{name}": "docs/how-to/retry-a-failed-node.md"
        for name in ("node", "reason", "message")
    },
    **{f"GPUSharingPolicy.conditions.{name}": ARGO for name in ("type", "status", "message")},
    "GPUSharingPolicy.summary.pausedBy": "kubectl_gpusharing/pools/status.py:describe_facts",
    **{
        f"GPUSharingPolicy.conditions.{name}": STANDARD
        for name in ("reason", "observedGeneration", "lastTransitionTime")
    },
}
"""The reader of each field that is no column: a function of operator/, a page, or STANDARD."""


def records(hint: Any) -> Iterator[type[Any]]:
    if is_dataclass(hint):
        yield hint  # type: ignore[misc]  # a class, as an annotation
    for argument in get_args(hint):
        yield from records(argument)


def leaves(kind: type[Any], at: str) -> Iterator[tuple[str, str]]:
    """Path in JSON, and name in Python, of each field that holds a value."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        path, inner = f"{at}.{wire_name(field.name)}", list(records(hints[field.name]))
        for record in inner:
            yield from leaves(record, path)
        if not inner:
            yield path, field.name


def unlisted(resource: CustomResource) -> dict[str, str]:
    """The fields of the status that are no column, with their names in Python."""
    columns = {f"{resource.kind}{column.path.removeprefix('.status')}" for column in resource.columns}
    return {path: name for path, name in leaves(resource.status, resource.kind) if path not in columns}


FIELDS = {path: name for resource in RESOURCES for path, name in unlisted(resource).items()}


@cache
def read_in(where: str) -> frozenset[str]:
    file, _, function = where.partition(":")
    tree = ast.parse((ROOT / "operator" / file).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    assert len(found) == 1, f"{where} is no function"
    names: set[str] = set()
    for node in ast.walk(found[0]):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        # A key stands in a call such as text(raw, "status", "halt"), or in brackets; in a dict it would be written.
        arguments = node.args if isinstance(node, ast.Call) else [node.slice] if isinstance(node, ast.Subscript) else []
        names |= {each.value for each in arguments if isinstance(each, ast.Constant) and isinstance(each.value, str)}
    return frozenset(names)


def test_every_field_has_a_reader_and_every_row_a_field() -> None:
    assert FIELDS.keys() == READERS.keys()


@pytest.mark.parametrize("path", READERS)
def test_the_reader_reads_it(path: str) -> None:
    reader, wire = READERS[path], path.rpartition(".")[2]
    if reader == STANDARD:
        assert path.split(".")[1] == "conditions"
    elif ":" in reader:
        assert {FIELDS[path], wire} & read_in(reader)
    else:
        text = (ROOT / reader).read_text()
        assert any(shown in text for shown in (f"`{wire}`", f".{wire}", f"status.{wire}"))


def test_a_field_that_nobody_reads_is_found() -> None:
    assert "compute_capability" not in read_in(f"{CONVERT}:_of_model")
    assert "halt" in read_in(f"{STEER}:_resume")
    with pytest.raises(AssertionError, match="is no function"):
        read_in(f"{CONVERT}:nothing")

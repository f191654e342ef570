"""Every field of a status has a reader: a column, code that decides or shows something, or a page that tells people to.
A new field needs a row in READERS."""

import ast
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

import pytest
from hack.customresources import RESOURCES, CustomResource
from hack.generate import ROOT

from gpusharing.api.records import wire_name

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
    for field in fields(kind):
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

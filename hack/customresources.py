"""The CustomResourceDefinitions of both resources: their names, the columns of `kubectl get`, and their schemas.

They are not part of the product, which runs on a cluster that has them already. They are written as plain YAML to
crds/, and as templates to the chart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from gpusharing.api.gpunode import GPUNodeSpec, GPUNodeStatus
from gpusharing.api.names import GPUNODES, GROUP, POLICIES, VERSION
from gpusharing.api.policy import GPUSharingPolicySpec, WireModel
from gpusharing.api.policystatus import GPUSharingPolicyStatus
from gpusharing.api.records import WireRecord
from gpusharing.api.rules import NAME_LENGTH, ApiRule, cel
from hack.crdschema import Schema, structural_schema


@dataclass(frozen=True, slots=True)
class PrinterColumn:
    name: str
    """The heading, which kubectl shows in upper case."""
    path: str
    description: str
    """The column's description in the CRD, also shown on the reference page."""
    type: Literal["string", "integer", "date"] = "string"
    wide: bool = False

    def manifest(self) -> Schema:
        column: Schema = {"name": self.name, "type": self.type, "jsonPath": self.path, "description": self.description}
        return column | {"priority": 1} if self.wide else column


@dataclass(frozen=True, slots=True)
class CustomResource:
    kind: str
    plural: str
    short_name: str
    description: str
    spec: type[WireModel | WireRecord]
    status: type[WireModel | WireRecord]
    columns: Sequence[PrinterColumn]
    rules: Sequence[ApiRule] = ()
    selectable: Sequence[str] = ()
    """The paths for `kubectl get --field-selector`, which Kubernetes 1.30 ignores (CustomResourceFieldSelectors)."""


AGE = PrinterColumn("Age", ".metadata.creationTimestamp", "Time since creation.", "date")

POLICY = CustomResource(
    kind="GPUSharingPolicy",
    plural=POLICIES,
    short_name="gsp",
    description="GPUSharingPolicy says what the GPUs of one node pool are for: whole, divided or shared.",
    spec=GPUSharingPolicySpec,
    status=GPUSharingPolicyStatus,
    columns=(
        PrinterColumn("Mode", ".status.summary.mode", "Full, MIG, MIG+TS (with time-slicing), MPS or TimeSlicing."),
        PrinterColumn("Layout", ".status.summary.layout", "What each GPU is divided into."),
        PrinterColumn("Nodes", ".status.summary.nodes", "Verified and schedulable nodes, out of all nodes."),
        PrinterColumn("GPUs", ".status.summary.gpus", "GPUs in the pool.", "integer"),
        PrinterColumn("Used", ".status.summary.used", "Devices held by pods, out of all advertised devices."),
        PrinterColumn(
            "Ready", '.status.conditions[?(@.type=="Ready")].status', "Whether every node is as the policy wants it."
        ),
        PrinterColumn("Status", ".status.summary.status", "One word for the pool."),
        AGE,
        PrinterColumn("Pending", ".status.summary.pendingPods", "Pods waiting for this pool.", "integer", wide=True),
        PrinterColumn("Strategy", ".spec.mig.strategy", "MIG strategy.", wide=True),
        PrinterColumn(
            "Window", ".status.summary.nextWindow", "When nodes may start, or empty if at any time.", wide=True
        ),
        PrinterColumn("Product", ".status.summary.product", "Card models.", wide=True),
        PrinterColumn("Message", ".status.summary.message", "The most urgent sentence.", wide=True),
    ),
    rules=(NAME_LENGTH,),
    selectable=(".spec.mode",),
)
GPUNODE = CustomResource(
    kind="GPUNode",
    plural=GPUNODES,
    short_name="gpun",
    description="GPUNode shows the GPU node of the same name: what is wanted, what its agent observed, and how far a "
    "change has come.",
    spec=GPUNodeSpec,
    status=GPUNodeStatus,
    columns=(
        PrinterColumn("Policy", ".status.transition.policy", "The policy that owns the node."),
        PrinterColumn("Wanted", ".status.transition.wanted", "What each GPU is to be divided into."),
        PrinterColumn("Observed", ".status.transition.observed", "What each GPU is divided into now."),
        PrinterColumn("Phase", ".status.transition.phase", "How far the node's change has come."),
        PrinterColumn("Reason", ".status.transition.reason", "Why, in one word."),
        PrinterColumn("Pods", ".status.observed.pods", "Pods that hold a GPU device.", "integer"),
        PrinterColumn("Since", ".status.transition.since", "Time since the phase began.", "date"),
        PrinterColumn("Waiting-For", ".status.transition.waitingFor", "Who ends the wait: Clock, Person or Others."),
        AGE,
        PrinterColumn(
            "Culprit", ".status.transition.culprit", "What blocks the node: a pod or another object.", wide=True
        ),
        # kubectl shows a `date` in the future as <invalid>, and a string as it is.
        PrinterColumn("Deadline", ".status.transition.deadline", "When the clock ends the wait, in UTC.", wide=True),
        PrinterColumn("Cordon", ".status.transition.cordonedBy", "Who cordoned the node.", wide=True),
        PrinterColumn("Step", ".status.transition.step", "The step, and how many there are.", wide=True),
        PrinterColumn("Message", ".status.transition.message", "What happens, why, and what to do.", wide=True),
    ),
    selectable=(".status.transition.policy", ".status.transition.phase"),
)
RESOURCES = (POLICY, GPUNODE)


def custom_resource_definition(resource: CustomResource) -> Schema:
    singular = resource.kind.lower()
    schema: Schema = {
        "type": "object",
        "description": resource.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Version of this schema: {GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"{resource.kind}."},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": structural_schema(resource.spec),
            "status": structural_schema(resource.status, written_by_us=True),
        },
    }
    if resource.rules:
        schema |= cel(*resource.rules)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": singular,
                "shortNames": [resource.short_name],
                "categories": ["gpu"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [column.manifest() for column in resource.columns],
                    "selectableFields": [{"jsonPath": path} for path in resource.selectable],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


HEADER = (
    "# This file is generated by `make gen` from operator/gpusharing/api and hack/customresources.py; do not edit it.\n"
)
CHART = "deploy/helm/gpu-sharing-operator/templates/crds"
LABELS = """\
  labels:
    {{- include "gpusharing.labels" . | nindent 4 }}
"""
"""The labels of the chart's CRDs. templates/validations.yaml reads the version among them and refuses a downgrade."""
KEEP = """\
  {{- if .Values.crds.keep }}
  annotations:
    {{- include "gpusharing.keep" . | nindent 4 }}
  {{- end }}
"""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write no anchor: they are hard to read, and confuse helm's diff tools."""
        return True


def crds() -> dict[str, str]:
    return {f"crds/{name}.yaml": HEADER + text for name, text in _manifests().items()}


def chart_crds() -> dict[str, str]:
    """Return the chart's CRD templates by path: in templates/, so that an upgrade upgrades them."""
    templates = {}
    for name, text in _manifests().items():
        if "{{" in text:
            raise ValueError(f"{name}: two opening braces would be read by helm; reword the description")
        before, line, after = text.partition("\nspec:\n")
        spec = f"{line.lstrip()}{after}"
        templates[f"{CHART}/{name}.yaml"] = (
            f"{HEADER}{{{{- if .Values.crds.enabled }}}}\n{before}\n{LABELS}{KEEP}{spec}{{{{- end }}}}\n"
        )
    return templates


def _manifests() -> dict[str, str]:
    manifests = (custom_resource_definition(resource) for resource in RESOURCES)
    return {
        manifest["metadata"]["name"].split(".")[0]: yaml.dump(
            manifest, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True
        )
        for manifest in manifests
    }

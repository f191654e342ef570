"""SIMULATED: the CRD ClusterPolicy of each version of the GPU Operator, with the fields that we use. The API server
prunes all other fields."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hack.cluster.api import Object

FIELDS = Path(__file__).resolve().parent / "manifests" / "cluster-policy-fields.yaml"


@dataclass(frozen=True)
class Field:
    path: tuple[str, ...]
    schema: Object
    present: bool
    default: Any = None
    """The CRD's default if the field is missing from an existing block, or None if it has no default."""


@dataclass(frozen=True)
class CRDVersion:
    """The CRD ClusterPolicy of one version of the GPU Operator."""

    name: str
    fields: tuple[Field, ...]
    required: tuple[str, ...] = field(repr=False, default=())
    """The blocks that `spec` must have."""

    @property
    def group(self) -> str:
        """The API group of the stand-in for this version."""
        return f"{self.name.replace('.', '-')}.stand-in.gpusharing.dev"

    @property
    def crd(self) -> Object:
        """The stand-in CRD, with this version's fields and the blocks that `spec` requires."""
        root: Object = {"type": "object", "properties": {}}
        for item in self.fields:
            if item.present:
                _put(root, item)
        spec = root["properties"]["spec"]
        spec["required"] = list(self.required)
        for block in self.required:
            spec["properties"].setdefault(block, {"type": "object"})
        names = {"kind": "ClusterPolicy", "plural": "clusterpolicies", "singular": "clusterpolicy"}
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"clusterpolicies.{self.group}"},
            "spec": {
                "group": self.group,
                "scope": "Cluster",
                "names": names,
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "subresources": {"status": {}},
                        "schema": {"openAPIV3Schema": root},
                    }
                ],
            },
        }


def versions() -> tuple[CRDVersion, ...]:
    """Return the CRDs of the versions that we know, each with all fields; `Field.present` says which it has."""
    table = yaml.safe_load(FIELDS.read_text())
    rows = table["fields"].items()
    return tuple(
        CRDVersion(
            name,
            tuple(
                Field(
                    tuple(path.split(".")),
                    row["schema"],
                    name in row.get("in", table["versions"]),
                    row.get("default", {}).get(name),
                )
                for path, row in rows
            ),
            tuple(table["required"]),
        )
        for name in table["versions"]
    )


def _put(root: Object, item: Field) -> None:
    *blocks, last = item.path
    for block in blocks:
        root = root["properties"].setdefault(block, {"type": "object", "properties": {}})
    default = {} if item.default is None else {"default": item.default}
    root["properties"][last] = {**item.schema, **default}

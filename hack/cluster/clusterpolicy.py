"""SIMULATED: the CRD ClusterPolicy of each version of the GPU Operator, as far as we use it. Others are pruned."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hack.cluster.api import Object

FIELDS = Path(__file__).resolve().parent / "manifests" / "cluster-policy-fields.yaml"


@dataclass(frozen=True)
class Field:
    """One field, in the version that was asked for."""

    path: tuple[str, ...]
    schema: Object
    there: bool
    """The CRD has it."""
    default: Any = None
    """The CRD's default where its block exists and the field does not; None: none."""


@dataclass(frozen=True)
class CRDVersion:
    """The CRD of one version of the GPU Operator."""

    name: str
    fields: tuple[Field, ...]
    required: tuple[str, ...] = field(repr=False, default=())
    """Blocks that the spec must have."""

    @property
    def group(self) -> str:
        """Of its stand-in: all versions are served beside one another."""
        return f"{self.name.replace('.', '-')}.stand-in.gpusharing.dev"

    @property
    def crd(self) -> Object:
        """The stand-in."""
        root: Object = {"type": "object", "properties": {}}
        for one in self.fields:
            if one.there:
                _put(root, one)
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
    """All that the table names, oldest first."""
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


def _put(root: Object, one: Field) -> None:
    *blocks, last = one.path
    for block in blocks:
        root = root["properties"].setdefault(block, {"type": "object", "properties": {}})
    default = {} if one.default is None else {"default": one.default}
    root["properties"][last] = {**one.schema, **default}

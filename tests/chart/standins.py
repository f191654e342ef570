"""SIMULATED neighbors for a control plane that has none: kinds that other projects bring, with any content."""

from hack.cluster.api import Object
from tests.chart.charts import Manifest

KINDS = {
    "monitoring.coreos.com": ("v1", ("PodMonitor", "ServiceMonitor", "PrometheusRule"), "Namespaced"),
    "security.openshift.io": ("v1", ("SecurityContextConstraints",), "Cluster"),
}
"""Group: version, kinds, scope."""


def crd(group: str, version: str, kind: str, scope: str) -> Object:
    """A stand-in that takes any content: what it proves is names, scopes and what the chart asks of helm."""
    singular = kind.lower()
    plural = singular if singular.endswith("s") else f"{singular}s"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": singular},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                }
            ],
        },
    }


def crds() -> list[Manifest]:
    return [crd(group, version, kind, scope) for group, (version, kinds, scope) in KINDS.items() for kind in kinds]

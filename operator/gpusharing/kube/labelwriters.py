"""Who besides us writes the two labels by which a node is changed."""

import re
from collections.abc import Mapping

from gpusharing.api import names
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, part, text
from gpusharing.planning.snapshot.records import Fence, Verified

KEEPERS: Mapping[str, tuple[str, str]] = {
    "nfd.node.kubernetes.io/feature-labels": ("Node Feature Discovery", "the NodeFeatureRule that sets it"),
    "cluster.x-k8s.io/labels-from-machine": ("Cluster API", "the labels of the node's Machine"),
    "node.gke.io/last-applied-node-labels": ("GKE", "the labels of the node pool"),
    "node.machine.sapcloud.io/last-applied-anno-labels-taints": ("Gardener", "the labels of the worker pool"),
}
"""Annotations in which a controller lists the labels that it puts back: its name, and where it finds them.

An instance of Node Feature Discovery puts its name and a dot before the key (pkg/nfd-master/nfd-master.go). The others:
cluster-api internal/controllers/machine/machine_controller_noderef.go, cloud-provider-gcp at 008f015
cmd/gcp-controller-manager/node_annotator.go, gardener/machine-controller-manager (SyncMachineLabels)."""
_LISTED = {
    label: re.compile(rf"(?<![\w./-]){re.escape(label)}(?![\w./-])")
    for label in (names.LABEL_MIG_CONFIG, names.LABEL_PLUGIN_CONFIG)
}
"""A whole key: lists have it between commas, before an equals sign, or in quotes."""


def label_owners(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return, for each of the two labels that a controller lists as its own, who that is and what to do about it."""
    return {
        label: f"{who} sets it (annotation {key}) and puts its own value back; remove it from {source}"
        for key, listed in annotations.items()
        for label, pattern in _LISTED.items()
        if label in listed  # the pattern alone takes as long as all else in a view of a Node
        for ending, (who, source) in KEEPERS.items()
        if key.endswith(ending)
        if pattern.search(listed)
    }


def label_rewriters(raw: JSON, fence: Fence | None, verified: Verified | None) -> dict[str, str]:
    """Return, for each of the two labels whose value is not what we wrote last, the field manager that replaced it.

    A label is left out if its manager is unknown to the API server or is one of ours, or if we never wrote it. What we
    wrote last is taken from the record of the change in flight once that has passed its point of no return, before that
    from the record of the last proof.
    """
    written = (verified.mig_config, verified.plugin_config) if verified is not None else ("", "")
    if fence is not None and fence.target_plugin_config:
        written = fence.target_mig_config, fence.target_plugin_config
    return {
        label: manager
        for label, value in zip(_LISTED, written, strict=True)
        if value not in ("", text(raw, "metadata", "labels", label))
        if (manager := setter(raw, "metadata", "labels", label))
        if not manager.startswith("gpusharing")
    }


def setter(raw: JSON, *path: str) -> str:
    """Return the field manager that last wrote a field; empty when unknown."""
    fields = [f"f:{name}" for name in path]
    managers = entries(raw, "metadata", "managedFields")
    writers = [one for one in managers if part(one, "fieldsV1", *fields) is not None]
    return text(max(writers, key=lambda one: text(one, "time"), default={}), "manager")

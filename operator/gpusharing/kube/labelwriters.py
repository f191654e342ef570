"""Which other program writes our two labels on a Node?

One may list them as its own in an annotation, or have replaced our value according to managedFields.
"""

import re
from collections.abc import Mapping

from gpusharing.api import names
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, part, text
from gpusharing.planning.snapshot.records import Fence, Verified

LABEL_KEEPERS: Mapping[str, tuple[str, str]] = {
    "nfd.node.kubernetes.io/feature-labels": ("Node Feature Discovery", "the NodeFeatureRule that sets it"),
    "cluster.x-k8s.io/labels-from-machine": ("Cluster API", "the labels of the node's Machine"),
    "node.gke.io/last-applied-node-labels": ("GKE", "the labels of the node pool"),
    "node.machine.sapcloud.io/last-applied-anno-labels-taints": ("Gardener", "the labels of the worker pool"),
}
"""The controllers that list labels in an annotation and restore their values, by annotation.

Each has its name and where it takes the labels from. An instance of Node Feature Discovery puts its name and a dot
before the key (pkg/nfd-master/nfd-master.go). The others: cluster-api
internal/controllers/machine/machine_controller_noderef.go, cloud-provider-gcp at 008f015
cmd/gcp-controller-manager/node_annotator.go, gardener/machine-controller-manager (SyncMachineLabels)."""
_LISTED = {
    label: re.compile(rf"(?<![\w./-]){re.escape(label)}(?![\w./-])")
    for label in (names.LABEL_MIG_CONFIG, names.LABEL_PLUGIN_CONFIG)
}
"""Patterns of our two labels as whole keys: between commas, before an equals sign, or in quotes."""


def label_owners(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return a message for each of our two labels that another controller lists as its own, by label."""
    return {
        label: f"{who} manages it (annotation {key}) and restores its own value; remove it from {source}"
        for key, listed in annotations.items()
        for label, pattern in _LISTED.items()
        if label in listed  # checked first, because the pattern takes as long as the rest of a Node's view
        for ending, (who, source) in LABEL_KEEPERS.items()
        if key.endswith(ending)
        if pattern.search(listed)
    }


def label_rewriters(raw: JSON, fence: Fence | None, verified: Verified | None) -> dict[str, str]:
    """Return, by label, which field manager replaced our value of our two labels, as far as it is known."""
    written = "", ""
    # The proof of a node that was adopted without a change of its policy names values that we may never have written,
    # even if it keeps the time of a change of an earlier policy; its revision is then empty.
    if verified is not None and (
        verified.rolled_back or (verified.version.revision != "" and verified.changed_at is not None)
    ):
        written = verified.mig_config, verified.plugin_config
    if fence is not None and fence.stage == "actuating":
        written = fence.target_mig_config, fence.target_plugin_config
    return {
        label: manager
        for label, value in zip(_LISTED, written, strict=True)
        if value not in ("", text(raw, "metadata", "labels", label))
        if (manager := setter(raw, "metadata", "labels", label))
        if not manager.startswith("gpusharing")
    }


def setter(raw: JSON, *path: str) -> str:
    """Return the field manager that last wrote the field at `path`; empty if managedFields show none."""
    fields = [f"f:{name}" for name in path]
    managers = entries(raw, "metadata", "managedFields")
    writers = [entry for entry in managers if part(entry, "fieldsV1", *fields) is not None]
    return text(max(writers, key=lambda entry: text(entry, "time"), default={}), "manager")

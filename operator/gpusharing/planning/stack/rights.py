"""The rights that the operator and the agent need, one by one, which are those that the roles of the chart grant.

tests/chart/rbac.yaml lists them again with the reasons; a test compares both.
"""

from typing import Literal

from gpusharing.planning.snapshot.draviews import TAINT_TEST
from gpusharing.planning.stack.mpsrepair import DAEMON_SET
from gpusharing.planning.vocabulary.values import value

Scope = Literal["cluster", "own", "agent", "gpu-operator", "default"]
"""The namespace in which a right is needed, or the whole cluster; `own` is the operator's."""


@value
class Right:
    """The right to use one verb on one kind of object."""

    verb: str
    group: str
    """Empty for the core group."""
    resource: str
    subresource: str = ""
    scope: Scope = "cluster"
    name: str = ""
    """Name of the only object for which the right is needed, or in braces the setting that contains the name."""

    @property
    def text(self) -> str:
        """The right in the form that `kubectl auth can-i` takes, such as `patch nodes` or `create pods/eviction`."""
        kind = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {kind}{'/' + self.subresource if self.subresource else ''}"


def _rights(verbs: str, group: str, resource: str, subresource: str = "", **more: str) -> tuple[Right, ...]:
    return tuple(Right(verb, group, resource, subresource, **more) for verb in verbs.split())  # type: ignore[arg-type]  # scope is one of the words above


_OURS, _NVIDIA = "gpusharing.dev", "nvidia.com"

OPERATOR_RIGHTS: tuple[Right, ...] = (
    *_rights("get list watch patch", _OURS, "gpusharingpolicies"),
    *_rights("patch", _OURS, "gpusharingpolicies", "status"),
    *_rights("list watch create patch", _OURS, "gpunodes"),
    *_rights("patch", _OURS, "gpunodes", "status"),
    *_rights("get list watch patch", "", "nodes"),
    *_rights("list", "", "pods"),
    *_rights("create", "", "pods", "eviction"),
    *_rights("list", "policy", "poddisruptionbudgets"),
    *_rights("get", "", "namespaces"),
    *_rights("get", "apps", "daemonsets"),
    *_rights("get", "resource.k8s.io", "resourceclaims"),
    *_rights("list watch", "resource.k8s.io", "resourceslices"),
    *_rights("list watch create patch delete", "resource.k8s.io", "deviceclasses"),
    *_rights("get list watch delete", "resource.k8s.io", "devicetaintrules"),
    *_rights("list watch", _NVIDIA, "clusterpolicies"),
    *_rights("list watch", _NVIDIA, "gpuclusters"),
    *_rights("list watch", "nodemaintenance.medik8s.io", "nodemaintenances"),
    *_rights("list watch", "maintenance.nvidia.com", "nodemaintenances"),
    *_rights("create", "coordination.k8s.io", "leases", scope="own"),
    *_rights("get patch", "coordination.k8s.io", "leases", scope="own", name="{lease}"),
    *_rights("list watch", "", "pods", scope="agent"),
    *_rights("list watch", "events.k8s.io", "events", scope="agent"),
    *_rights("list watch create", "", "configmaps", scope="gpu-operator"),
    *_rights("patch", "", "configmaps", scope="gpu-operator", name="{plugin_config_map}"),
    *_rights("patch", "", "configmaps", scope="gpu-operator", name="{mig_config_map}"),
    *_rights("watch delete", "", "pods", scope="gpu-operator"),
    *_rights("list watch", "apps", "daemonsets", scope="gpu-operator"),
    *_rights("get", "", "pods", "log", scope="gpu-operator"),
    *_rights("create", "events.k8s.io", "events", scope="default"),
)
"""The rights of the operator's service account."""

CONFIGURE: tuple[Right, ...] = _rights("patch", _NVIDIA, "clusterpolicies")
"""Additional rights of the operator's service account if chart value gpuOperator.configure is on."""

REPAIR_MPS: tuple[Right, ...] = _rights("patch", "apps", "daemonsets", scope="gpu-operator", name=DAEMON_SET)
"""Additional rights of the operator's service account if chart value gpuOperator.repairMps is on."""

FORCE_DELETE: tuple[Right, ...] = _rights("delete", "", "pods")
"""Additional rights of the operator's service account if chart value forceDelete is on."""

DEVICE_TAINTS: tuple[Right, ...] = (
    *_rights("create", "resource.k8s.io", "devicetaintrules"),
    *_rights("patch", "apps", "replicasets", "scale", scope="own", name=TAINT_TEST),
)
"""Additional rights of the operator's service account if chart value dra.deviceTaints is on."""

AGENT_RIGHTS: tuple[Right, ...] = (
    *_rights("list watch", _OURS, "gpunodes"),
    *_rights("patch", _OURS, "gpunodes", "status"),
)
"""The rights of the agent's service account."""

SECURE_METRICS: tuple[Right, ...] = (
    *_rights("create", "authentication.k8s.io", "tokenreviews"),
    *_rights("create", "authorization.k8s.io", "subjectaccessreviews"),
)
"""Additional rights of the agent's service account if chart value agent.secureMetrics is on."""

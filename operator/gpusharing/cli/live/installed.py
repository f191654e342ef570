"""The operator as it is installed: its settings from the variables of its Deployment, its claims from its Lease.

For what may not be read or does not exist, the chart's defaults are assumed, and a note says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gpusharing.api.names import ANNOTATION_CLAIMS
from gpusharing.cli.shell.arguments import own_version
from gpusharing.cli.shell.troubles import error_text
from gpusharing.kube.client import DEPLOYMENTS, JSON, LEASES, PODS, KubeClient
from gpusharing.kube.errors import Forbidden, Invalid, NotFound
from gpusharing.kube.fence import parse_claims, parse_failed_nodes
from gpusharing.kube.paging import list_of
from gpusharing.kube.plainstack import find_gpu_operator
from gpusharing.kube.raw import entries, section, text, texts
from gpusharing.kube.sources import AdminMaps, SourceSettings
from gpusharing.planning.snapshot.records import Claim, FailedNode
from gpusharing.planning.snapshot.views import PlanSettings

OPERATOR = "gpusharing-operator"
SELECTOR = f"app.kubernetes.io/name={OPERATOR}"
PREFIX = "GPUSHARING_"
_PLAN = TypeAdapter(PlanSettings)
DEFAULTS = SourceSettings(agent_namespace="gpusharing-agent")
"""The settings of the chart."""


@dataclass(frozen=True, slots=True)
class Installed:
    """The operator of a cluster."""

    settings: SourceSettings = DEFAULTS
    """The settings of its Deployment, or the defaults."""
    claims: Mapping[str, Claim] = field(default_factory=dict)
    """The slots that nodes have on the leader Lease, by node."""
    failed_nodes: Mapping[str, FailedNode] = field(default_factory=dict)
    """The failures that the leader Lease records, by UID of the Node."""
    version: str = ""
    """The version of the operator, by the label of its chart; empty if unknown."""
    notes: tuple[str, ...] = ()
    """What is not known about it, and why."""
    missing: bool = False
    """There is no Deployment of the operator in any namespace."""


async def read_installed(client: KubeClient) -> Installed:
    """Read settings and claims of the operator, which is looked for in all namespaces. If there is none, or Deployments
    may not be listed, the chart's defaults are returned with a note. Raises any other KubeError."""
    try:
        found = await list_of(client, DEPLOYMENTS, label_selector=SELECTOR)
    except (Forbidden, NotFound) as error:
        return Installed(notes=(f"planned with the chart's default settings: {error_text(error)}",))
    if not found:
        note = "no operator is installed: planned with the chart's default settings"
        where = await find_gpu_operator(client, PlanSettings().gpu_operator_namespace)
        settings = replace(DEFAULTS, plan=PlanSettings(gpu_operator_namespace=where))
        return Installed(settings, notes=(note,), missing=True)
    deployment = found[0]
    namespace = text(deployment, "metadata", "namespace")
    settings, notes = settings_of(deployment)
    told = texts(section(deployment, "metadata", "labels")).get("app.kubernetes.io/version", "")
    notes += find_difference(told)
    name = await _pod_name(client, namespace)
    written, more = await _written_claims(client, namespace)
    claims, damaged = parse_claims(written) if written else ({}, "")
    failed_nodes, unread = parse_failed_nodes(written) if written else ({}, "")
    if damaged or unread:
        more = (_without_lease(damaged or unread),)
    settings = replace(settings, plan=replace(settings.plan, pod_name=name))
    return Installed(settings, claims, failed_nodes, told, (*notes, *more))


async def is_missing(client: KubeClient) -> bool:
    """Whether there is certainly no Deployment of the operator; False also where Deployments may not be listed."""
    try:
        return not await list_of(client, DEPLOYMENTS, label_selector=SELECTOR)
    except (Forbidden, NotFound):
        return False


def settings_of(deployment: JSON) -> tuple[SourceSettings, tuple[str, ...]]:
    """Read the operator's settings from the variables of its container. One that cannot be used is left out and
    reported in a note."""
    namespace = text(deployment, "metadata", "namespace")
    containers = entries(deployment, "spec", "template", "spec", "containers")
    given = {
        text(one, "name").removeprefix(PREFIX).lower(): text(one, "value")
        for container in containers
        for one in entries(container, "env")
        if text(one, "name").startswith(PREFIX) and "value" in one
    }
    known = {item.name for item in fields(PlanSettings)}
    plan: dict[str, Any] = {name: value for name, value in given.items() if name in known}
    notes: tuple[str, ...] = ()
    try:
        read = _PLAN.validate_python({**plan, "namespace": namespace})
    except ValidationError as error:
        bad = {str(one["loc"][0]) for one in error.errors()}
        read = _PLAN.validate_python({name: value for name, value in plan.items() if name not in bad})
        read = replace(read, namespace=namespace)
        notes = (f"settings of the operator that this plugin cannot read: {', '.join(sorted(bad))}",)
    settings = SourceSettings(
        plan=read,
        admin_maps=AdminMaps(given.get("admin_plugin_config_map", ""), given.get("admin_mig_config_map", "")),
        agent_namespace=given.get("agent_namespace") or namespace,
        maintenance_keys=frozenset(filter(None, given.get("maintenance_keys", "").split(","))),
    )
    return settings, notes


def find_difference(theirs: str) -> tuple[str, ...]:
    """What to say where the operator is of another version than this plugin; nothing where either is not known."""
    ours = own_version()
    if not theirs or not ours or theirs == ours:
        return ()
    return (f"the operator is version {theirs} and this plugin is version {ours}: their plans may differ",)


async def _pod_name(client: KubeClient, namespace: str) -> str:
    """The operator's own pod, which is never drained."""
    try:
        pods = await list_of(client, PODS, namespace=namespace, label_selector=SELECTOR)
    except (Forbidden, NotFound):
        return ""
    return min((text(raw, "metadata", "name") for raw in pods), default="")


async def _written_claims(client: KubeClient, namespace: str) -> tuple[str, tuple[str, ...]]:
    """What the Lease says of slots and failures, and what to say where it may not be read."""
    try:
        lease = await client.get(LEASES, OPERATOR, namespace=namespace)
    except NotFound:
        return "", ()
    except (Forbidden, Invalid) as error:
        return "", (_without_lease(error_text(error)),)
    return texts(section(lease, "metadata", "annotations")).get(ANNOTATION_CLAIMS, ""), ()


def _without_lease(why: str) -> str:
    return f"slots are counted from fences, and failures of deleted nodes are not known: {why}"

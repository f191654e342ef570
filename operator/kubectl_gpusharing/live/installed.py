"""The installed operator: its settings, from the environment variables of its Deployment, and the claims on its Lease.

If these do not exist or may not be read, the chart's defaults are assumed and a note says so.
"""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from gpusharing.api.names import ANNOTATION_CLAIMS
from gpusharing.kube.client import DEPLOYMENTS, JSON, LEASES, PODS, KubeClient
from gpusharing.kube.errors import Forbidden, Invalid, NotFound
from gpusharing.kube.fence import parse_claims, parse_failed_nodes
from gpusharing.kube.lease import host_of
from gpusharing.kube.ownversion import own_version
from gpusharing.kube.paging import list_of
from gpusharing.kube.plainstack import find_gpu_operator
from gpusharing.kube.raw import entries, section, text, texts
from gpusharing.kube.sources import AdminMaps, SourceSettings
from gpusharing.planning.snapshot.records import Claim, FailedNode
from gpusharing.planning.snapshot.views import PlanSettings
from kubectl_gpusharing.shell.troubles import error_text

OPERATOR = "gpusharing-operator"
SELECTOR = f"app.kubernetes.io/name={OPERATOR}"
PREFIX = "GPUSHARING_"
Value = TypeVar("Value")
Other = TypeVar("Other")
_PLAN = TypeAdapter(PlanSettings)
DEFAULTS = SourceSettings(agent_namespace="gpusharing-agent")
"""The settings with the chart's default values."""


@dataclass(frozen=True, slots=True)
class InstalledOperator:
    settings: SourceSettings = DEFAULTS
    claims: Mapping[str, Claim] = field(default_factory=dict)
    failed_nodes: Mapping[str, FailedNode] = field(default_factory=dict)
    version: str = ""
    """From the chart's label on the Deployment; empty if unknown."""
    notes: tuple[str, ...] = ()
    missing: bool = False
    """Whether no namespace has a Deployment of the operator."""
    deployment: JSON = field(default_factory=dict)
    """Empty if there is none or it may not be read."""


async def read_deployment(client: KubeClient) -> InstalledOperator:
    """Find the operator's Deployment in any namespace, and read its settings. Raises KubeError, except Forbidden and NotFound."""
    try:
        deployments = await list_of(client, DEPLOYMENTS, label_selector=SELECTOR)
    except (Forbidden, NotFound) as error:
        why = f"the operator's settings could not be read: {error_text(error)}"
        return InstalledOperator(notes=(f"the chart's default settings are assumed, because {why}",))
    if not deployments:
        note = "no operator is installed, so the chart's default settings are assumed"
        return InstalledOperator(notes=(note,), missing=True)
    settings, notes = _settings_of(deployments[0])
    version = texts(section(deployments[0], "metadata", "labels")).get("app.kubernetes.io/version", "")
    ours = own_version()
    if version and ours and version != ours:
        notes += (
            f"the operator is version {version} and this plugin is version {ours}: their plans may differ",
        )
    return InstalledOperator(settings, version=version, notes=notes, deployment=deployments[0])


async def read_installed(client: KubeClient) -> InstalledOperator:
    """Read also the claims and failures on the operator's Lease. Raises KubeError, except Forbidden, Invalid and NotFound."""
    found = await read_deployment(client)
    if found.missing:
        where = await find_gpu_operator(client, PlanSettings().gpu_operator_namespace)
        return replace(found, settings=replace(DEFAULTS, plan=PlanSettings(gpu_operator_namespace=where)))
    if not found.deployment:
        return found
    settings, notes = found.settings, found.notes
    namespace = settings.plan.namespace
    lease, why = JSON(), ""
    try:
        lease = await client.get(LEASES, OPERATOR, namespace=namespace)
    except (Forbidden, Invalid, NotFound) as error:
        why = "" if isinstance(error, NotFound) else error_text(error)
    written = texts(section(lease, "metadata", "annotations")).get(ANNOTATION_CLAIMS, "")
    claims, damaged = parse_claims(written) if written else ({}, "")
    failed_nodes, unread = parse_failed_nodes(written) if written else ({}, "")
    host = host_of(text(lease, "spec", "holderIdentity"))
    # The operator's own pod, the leader's, is never evicted.
    pods = list_of(client, PODS, namespace=namespace, label_selector=SELECTOR)
    own = await unless_hidden(pods, list[JSON]())
    names = sorted(text(raw, "metadata", "name") for raw in own)
    name = host if host in names else next(iter(names), "")
    if why := why or damaged or unread:
        notes += (
            "the operator's Lease could not be used, so only changes that are recorded on Nodes are counted, and"
            f" failures on deleted nodes are unknown: {why}",
        )
    settings = replace(settings, plan=replace(settings.plan, pod_name=name))
    return replace(found, settings=settings, claims=claims, failed_nodes=failed_nodes, notes=notes)


async def unless_hidden(read: Awaitable[Value], otherwise: Other) -> Value | Other:
    """Return what `read` returns, or `otherwise` if the user may not read it or it does not exist."""
    try:
        return await read
    except (Forbidden, NotFound):
        return otherwise


def _settings_of(deployment: JSON) -> tuple[SourceSettings, tuple[str, ...]]:
    containers = entries(deployment, "spec", "template", "spec", "containers")
    values = {
        text(variable, "name").removeprefix(PREFIX).lower(): text(variable, "value")
        for container in containers
        for variable in entries(container, "env")
        if text(variable, "name").startswith(PREFIX) and "value" in variable
    } | {"namespace": text(deployment, "metadata", "namespace")}
    bad: set[str] = set()
    try:
        plan = _PLAN.validate_python(values)  # it ignores the settings of the process itself
    except ValidationError as error:
        bad = {str(one["loc"][0]) for one in error.errors()}
        plan = _PLAN.validate_python({name: value for name, value in values.items() if name not in bad})
    settings = SourceSettings(
        plan=plan,
        admin_maps=AdminMaps(
            values.get("admin_plugin_config_map", ""), values.get("admin_mig_config_map", "")
        ),
        agent_namespace=values.get("agent_namespace") or values["namespace"],
        maintenance_keys=frozenset(filter(None, values.get("maintenance_keys", "").split(","))),
    )
    assumed = "this plugin cannot read these operator settings and assumes their defaults"
    return settings, (f"{assumed}: {', '.join(sorted(bad))}",) if bad else ()

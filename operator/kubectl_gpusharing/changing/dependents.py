"""Find other objects that refer to resources and labels which a plan would remove: quotas, limits, objects of Kueue, the templates of workloads, and namespaces whose guard admits only modes that no node would have.

They are read with the user's rights, and only here; the operator needs no rights to them.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Set

from gpusharing.api.names import LABEL_ISOLATION, LABEL_MODE
from gpusharing.api.validation import is_rewritten
from gpusharing.kube.client import DAEMON_SETS, DEPLOYMENTS, NAMESPACES, KubeClient, Resource
from gpusharing.kube.errors import KubeError
from gpusharing.kube.paging import list_of, pages_of
from gpusharing.kube.raw import entries, has_condition, text
from gpusharing.planning.drain.isolation import ADMITTED
from gpusharing.planning.report.proposal import Proposal
from gpusharing.planning.vocabulary.lengths import some
from kubectl_gpusharing.live.cluster import LivePlan
from kubectl_gpusharing.shell.troubles import error_text

KUEUE = ("v1beta2", "v1beta1")
"""The versions of Kueue's API that are tried."""
KINDS: tuple[tuple[str, Resource], ...] = (
    ("ResourceQuota", Resource("", "v1", "resourcequotas", namespaced=True)),
    ("LimitRange", Resource("", "v1", "limitranges", namespaced=True)),
    *(("ResourceFlavor", Resource("kueue.x-k8s.io", version, "resourceflavors")) for version in KUEUE),
    *(("ClusterQueue", Resource("kueue.x-k8s.io", version, "clusterqueues")) for version in KUEUE),
    ("Deployment", DEPLOYMENTS),
    ("StatefulSet", Resource("apps", "v1", "statefulsets", namespaced=True)),
    ("DaemonSet", DAEMON_SETS),
    ("Job", Resource("batch", "v1", "jobs", namespaced=True)),
    ("CronJob", Resource("batch", "v1", "cronjobs", namespaced=True)),
)


def find_vanishing(proposals: Iterable[Proposal], live: LivePlan) -> frozenset[str]:
    """Return the resource names and the node labels, as `key=value`, that no node would have after the changes."""
    accepted = [one for one in proposals if one.accepted and one.steps]
    names = {lost.resource for one in accepted for lost in one.vanishing if not lost.demand.remain}
    nodes = [live.snapshot.nodes[step.verdict.node] for one in accepted for step in one.steps]
    pairs = {pair for node in nodes for pair in node.labels.items() if is_rewritten(pair[0])}
    gone = pairs - live.plan.afterwards.find_labels() if pairs else pairs
    return frozenset(names | {f"{key}={value}" for key, value in gone})


async def read_dependents(
    client: KubeClient, vanishing: Set[str], ignored: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return sentences about objects outside the namespace `ignored` that refer to a name in `vanishing`, and a note about kinds that could not be read.

    Raises KubeError only if it cannot be determined whether an unreadable kind is served.
    """
    mentions: dict[str, set[str]] = defaultdict(set)
    unread: dict[str, str] = {}
    for kind, resource in KINDS if vanishing else ():
        try:
            async for page in pages_of(client, resource):
                for raw in page.items:
                    namespace = text(raw, "metadata", "namespace")
                    ended = has_condition(raw, "Complete") or has_condition(raw, "Failed")
                    owners = {text(one, "kind") for one in entries(raw, "metadata", "ownerReferences")}
                    if ended or namespace == ignored or "CronJob" in owners:
                        continue
                    ref = "/".join(filter(None, (namespace, text(raw, "metadata", "name"))))
                    for name in _mentioned(raw.get("spec"), vanishing):
                        mentions[name].add(f"{kind} {ref}")
        except KubeError as error:
            if await client.served(resource):  # RBAC also refuses kinds that are not installed
                unread[resource.plural] = error_text(error)
    lines = [
        f"{name} will no longer exist, but these objects refer to it: {some(sorted(refs), 20)}"
        for name, refs in sorted(mentions.items())
    ]
    if any(ref.startswith("ResourceQuota ") for refs in mentions.values() for ref in refs):
        lines.append("A ResourceQuota has no effect on a resource that no node advertises")
    if not unread:
        return tuple(lines), ()
    why = f"{', '.join(sorted(unread))} may refer to names that will no longer exist, but could not be read"
    return tuple(lines), (f"{why}: {min(unread.values())}",)


async def read_tenants(
    client: KubeClient, vanishing: Set[str], live: LivePlan
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return sentences about namespaces that the chart's guard for tenants (docs/how-to/isolate-tenants.md) would leave without nodes for GPU pods, and a note if they could not be read."""
    lines = []
    for level, modes in ADMITTED.items() if live.snapshot.settings.guard != "false" else ():
        lost = vanishing & {f"{LABEL_MODE}={mode}" for mode in modes}
        if not lost or live.plan.afterwards.find_labels() & {(LABEL_MODE, mode) for mode in modes}:
            continue
        try:
            found = await list_of(client, NAMESPACES, label_selector=f"{LABEL_ISOLATION}={level}")
        except KubeError as error:
            what = f"namespaces with the {LABEL_ISOLATION} label"
            return (), (f"{what} could not be read: {error_text(error)}",)
        if found:
            whose = some(sorted(text(raw, "metadata", "name") for raw in found), 20)
            lines.append(
                f"No node will have mode {' or '.join(modes)}, but GPU pods in namespaces with the label"
                f" {LABEL_ISOLATION}={level} are admitted only to such nodes: {whose}"
            )
    return tuple(lines), ()


def _mentioned(value: object, vanishing: Set[str]) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from {str(key).removeprefix("requests."), f"{key}={item}"} & vanishing
            yield from _mentioned(item, vanishing)
    elif isinstance(value, list):
        for item in value:
            yield from _mentioned(item, vanishing)
    elif isinstance(value, str) and value in vanishing:
        yield value

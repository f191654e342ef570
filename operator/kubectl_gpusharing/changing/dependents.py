"""Find other objects that refer to resources and labels which a plan would remove: quotas, limits, objects of Kueue,
the templates of workloads, and namespaces whose guard admits only modes that no node would have. They are read with the
user's rights, and only here; the operator needs no rights to them."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Set

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
    """Return one set with the resource names that no node would advertise after the changes and the node labels,
    written as `key=value`, that no node would have. Only proposals that are accepted and change something are
    considered, of these only the resources of which the pool would have fewer devices, and of their changing nodes only
    the present labels that a mode change rewrites (`is_rewritten`)."""
    accepted = [one for one in proposals if one.accepted and one.steps]
    names = {lost.resource for one in accepted for lost in one.vanishing if not lost.demand.remain}
    nodes = [live.snapshot.nodes[step.verdict.node] for one in accepted for step in one.steps]
    pairs = {pair for node in nodes for pair in node.labels.items() if is_rewritten(pair[0])}
    gone = pairs - live.plan.afterwards.find_labels() if pairs else pairs
    return frozenset(names | {f"{key}={value}" for key, value in gone})


async def read_dependents(
    client: KubeClient, vanishing: Set[str], ignored: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Look for objects outside the namespace `ignored` that refer to a name in `vanishing`. Return sentences without a
    period: one for each name that has such objects, sorted by name and with at most 20 of the objects, and one more if
    a ResourceQuota is among them. Also return a tuple with one note if some kinds could not be read, which names them
    all and one of the errors, otherwise an empty tuple. A kind that cannot be read and is not served counts as having
    no objects. Nothing is read if `vanishing` is empty. Raises KubeError only if it cannot be determined whether an
    unreadable kind is served."""
    mentions: dict[str, set[str]] = defaultdict(set)
    unread: dict[str, str] = {}
    for kind, resource in KINDS if vanishing else ():
        try:
            async for name, ref in _read_mentions(client, resource, vanishing, ignored):
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
    kinds = ", ".join(sorted(unread))
    why = (
        f"{kinds} may refer to names that will no longer exist, but could not be read:"
        f" {min(unread.values(), default='')}"
    )
    return tuple(lines), (why,) if unread else ()


async def read_tenants(
    client: KubeClient, vanishing: Set[str], live: LivePlan
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Look for namespaces that the chart's guard for tenants (docs/how-to/isolate-tenants.md) would leave without nodes
    for GPU pods: `vanishing` has the label of a mode that their isolation label admits, and no node will have the label
    of an admitted mode afterwards. Return a sentence for each value of the isolation label that such namespaces have,
    which names at most 20 of them, and no note. If namespaces cannot be listed for one of the values, return no
    sentence at all and a note. Nothing is read if no value can be affected, for example because the chart's guard for
    tenants is off. No KubeError is raised."""
    lines = []
    for level, modes in ADMITTED.items() if live.snapshot.settings.guard != "false" else ():
        lost = vanishing & {f"{LABEL_MODE}={mode}" for mode in modes}
        if not lost or live.plan.afterwards.find_labels() & {(LABEL_MODE, mode) for mode in modes}:
            continue
        try:
            found = await list_of(client, NAMESPACES, label_selector=f"{LABEL_ISOLATION}={level}")
        except KubeError as error:
            return (), (
                f"namespaces with the {LABEL_ISOLATION} label could not be read: {error_text(error)}",
            )
        if found:
            whose = some(sorted(text(raw, "metadata", "name") for raw in found), 20)
            lines.append(
                f"No node will have mode {' or '.join(modes)}, but GPU pods in namespaces with the label"
                f" {LABEL_ISOLATION}={level} are admitted only to such nodes: {whose}"
            )
    return tuple(lines), ()


async def _read_mentions(
    client: KubeClient, resource: Resource, vanishing: Set[str], ignored: str
) -> AsyncIterator[tuple[str, str]]:
    """Yield a pair for each mention of a name of `vanishing` in the spec of an object of this kind: the name, and
    NAMESPACE/NAME of the object, or only NAME if the kind has no namespaces. A pair may be yielded twice. Objects that
    the change does not affect are left out: those in the namespace `ignored`, those that have ended, as a Job with the
    condition Complete or Failed has, and those of which an owner is a CronJob, because the CronJob is examined instead.
    The kind is listed page by page. Raises KubeError."""
    async for page in pages_of(client, resource):
        for raw in page.items:
            namespace = text(raw, "metadata", "namespace")
            ended = has_condition(raw, "Complete") or has_condition(raw, "Failed")
            kinds = {text(one, "kind") for one in entries(raw, "metadata", "ownerReferences")}
            if ended or namespace == ignored or "CronJob" in kinds:
                continue
            for name in _mentioned(raw.get("spec"), vanishing):
                yield name, "/".join(filter(None, (namespace, text(raw, "metadata", "name"))))


def _mentioned(value: object, vanishing: Set[str]) -> Iterator[str]:
    """Yield the names in `vanishing` that occur anywhere in `value`, a part of an object: as a key (also with the
    prefix `requests.` of quotas), as a whole string value, or as a key and its value, written `key=value`. Lists and
    objects are searched at every depth. A name is yielded for each of its occurrences."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from {str(key).removeprefix("requests."), f"{key}={item}"} & vanishing
            yield from _mentioned(item, vanishing)
    elif isinstance(value, list):
        for item in value:
            yield from _mentioned(item, vanishing)
    elif isinstance(value, str) and value in vanishing:
        yield value

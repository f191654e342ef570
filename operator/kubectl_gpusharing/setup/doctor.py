"""`doctor`: find what silently overrides the operator or breaks its proofs, with one command to fix each problem.

It checks what `helm test` checks (`planning/stack/installation.py`), and also the labels of Nodes and the versions of
kubelets. Before the operator is installed, it leaves out the checks of the installation itself.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace

from gpusharing.api.names import LABEL_MIG_CAPABLE, LABEL_MIG_CONFIG
from gpusharing.kube.answers import HINT
from gpusharing.kube.client import CONFIG_MAPS, DAEMON_SETS, DEVICE_CLASSES, GPUNODES, JSON, KubeClient
from gpusharing.kube.dra import device_class_view
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.installation import gather_installation, read_entries
from gpusharing.kube.paging import list_of, pages_of
from gpusharing.kube.plainstack import find_gpu_operator, gpu_server
from gpusharing.kube.raw import text
from gpusharing.kube.sources import MIG_KEY, NODE_CONFIG_SUFFIX
from gpusharing.planning.snapshot.draviews import DeviceClassView
from gpusharing.planning.snapshot.stackviews import MIG_MANAGER_SWITCH
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.stack.classsymptoms import find_class_symptoms
from gpusharing.planning.stack.installation import conclude, find_symptoms, report_topics, start
from gpusharing.planning.stack.installationviews import (
    ASKED_BY_PEOPLE,
    ConfigMapState,
    InstallationView,
    Place,
    Severity,
    Symptom,
    Topic,
    Unseen,
    find_unread_topics,
    join_unseen,
)
from gpusharing.planning.stack.nodesymptoms import (
    PluginEntries,
    find_entry_symptoms,
    find_kubelet_symptoms,
    find_node_symptoms,
)
from gpusharing.planning.stack.pointers import UPSTREAM_MIG_CONFIG
from gpusharing.planning.stack.rivals import Server, find_rival_symptoms
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.wanted.migfile import parse
from kubectl_gpusharing.live.installed import read_deployment, unless_hidden
from kubectl_gpusharing.shell.clusters import Answer, FleetVerb
from kubectl_gpusharing.shell.documents import DoctorReportData
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    Ink,
    Line,
    Paper,
    Span,
    columns,
    describe_simulated,
    line,
    prose,
    prose_of_each,
)
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import DONE, FAILED, Trouble, explained

NOT_INSTALLED = "The operator is not installed. These checks show what an installation would find here."
INKS = {"ok": Ink.GOOD, "ERROR": Ink.BAD}
"""The ink of each result; all others have that of a warning."""
NEEDED = frozenset({"nodes", "configmaps", "daemonsets.apps", "clusterpolicies.nvidia.com"})
"""The kinds that the user must be able to read, because most checks need them."""
OUR_KINDS = frozenset({"gpusharingpolicies.gpusharing.dev", "gpunodes.gpusharing.dev"})
NO_VERSION: Unseen = {
    Topic.KUBELETS: "the API server does not report its version, so kubelet versions were not compared with it"
}
NO_SERVERS: Unseen = {
    Topic.NODES: (
        "you are not allowed to list DaemonSets in other namespaces, so a second device plugin would go unnoticed, and"
        " so would a second mig-manager"
    )
}
NO_CLASSES: Unseen = {
    Topic.CLUSTER_POLICY: "DeviceClasses cannot be read, so one that selects the wrong devices would go unnoticed"
}


@dataclass(frozen=True, slots=True)
class Examination:
    """What doctor has read, and what it found to be wrong."""

    view: InstallationView
    """The state of the installation, as far as it could be read."""
    symptoms: Sequence[Symptom] = ()
    """The problems that were found."""
    notes: tuple[str, ...] = ()
    """Sentences about what could not be determined about the installation, and why."""
    unseen: Unseen = field(default_factory=dict)
    """The reason why something could not be checked, by topic."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Print what is wrong, and return FAILED if there is an error, otherwise DONE, also if there are warnings or
    something could not be checked (see VerbModule). Raises Trouble if the server does not answer, or if no error was
    found but a kind in NEEDED may not be read."""
    examined = await _examine(session)
    data = as_data(examined, session.name)
    terminal.answer(DoctorReportData, lambda: data, lambda paper: describe(examined, paper))
    return _status(examined)


def _status(examined: Examination) -> int:
    """Return FAILED if an error was found, otherwise DONE; warnings do not count."""
    return FAILED if any(symptom.severity is Severity.ERROR for symptom in examined.symptoms) else DONE


async def _examine(session: Session) -> Examination:
    """Read the installation and all Nodes, and find what is wrong with them. Kinds that may not be read are recorded in
    the view, and what could not be checked in `unseen`. Raises Trouble if one of the kinds in NEEDED could not be read
    and no error was found in the rest, and for all other KubeErrors, for example if the server does not answer."""
    client = session.client
    with explained(session.where):
        place, notes = await _place(client)
        view = await _as_installed(client, await gather_installation(client, place))
        view, entries = await _with_pointed(client, view)
        version = await unless_hidden(client.version(), "")
        mig_entries = await _mig_entries(client, view)
        servers = await unless_hidden(_servers(client), None)
        classes = await unless_hidden(_classes(client), None) if view.stack.by_dra else ()
    if entries is not None and entries.config_map == place.plugin_config_map and entries.texts is None:
        entries = None  # `find_symptoms` reports that the operator's own ConfigMap does not exist
    used = {*view.named_entries, view.followed_policy.plugin_default if view.followed_policy else ""}
    install = "" if view.installed else start(view)
    symptoms = [
        *find_symptoms(view),
        *(() if entries is None else find_entry_symptoms(entries, used, install)),
        *find_kubelet_symptoms(view, version),
        *find_node_symptoms(view, mig_entries),
        *find_rival_symptoms(servers or (), view.nodes, place.gpu_operator_namespace),
        *find_class_symptoms(classes or ()),
    ]
    symptoms = [replace(one, message=one.message.replace(f" ({HINT})", "")) for one in symptoms]
    unknown = (
        {} if version else NO_VERSION,
        NO_SERVERS if servers is None else {},
        NO_CLASSES if classes is None else {},
    )
    examined = Examination(view, symptoms, notes, join_unseen(find_unread_topics(view), *unknown))
    blind = sorted(NEEDED & view.unread.keys())
    if blind and _status(examined) == DONE:
        why = view.unread[blind[0]].replace(f" ({HINT})", "")
        raise Trouble(
            f"doctor cannot check anything: you are not allowed to read {', '.join(blind)} in {session.where}: {why}"
        )
    return examined


async def _as_installed(client: KubeClient, view: InstallationView) -> InstallationView:
    """Return the view. If the user may not read one of our kinds, ask the server's discovery. If that does not list
    GPUNode, return a copy in which these kinds are not served instead of unread. Forbidden does not show whether a kind
    is served, because the server checks rights first. Raises KubeError if discovery fails."""
    hidden = OUR_KINDS & view.unread.keys()
    if not hidden or await client.served(GPUNODES):
        return view
    unread = {kind: why for kind, why in view.unread.items() if kind not in hidden}
    return replace(view, unread=unread, not_served=view.not_served | hidden)


async def _servers(client: KubeClient) -> list[Server]:
    """Return the DaemonSets of all namespaces that serve or partition GPUs, as `gpu_server` recognizes them. Raises
    KubeError."""
    servers = [gpu_server(raw) async for page in pages_of(client, DAEMON_SETS) for raw in page.items]
    return [server for server in servers if server is not None]


async def _classes(client: KubeClient) -> list[DeviceClassView]:
    """Return all DeviceClasses. Raises KubeError."""
    return [device_class_view(raw) for raw in await list_of(client, DEVICE_CLASSES)]


async def _place(client: KubeClient) -> tuple[Place, tuple[str, ...]]:
    """Return the settings of this installation, read from the operator's Deployment, and notes about settings that
    cannot be read and about a version other than this plugin's. If there is no Deployment, or Deployments cannot be
    listed (Forbidden or NotFound), return the chart's defaults with the namespace in which the GPU Operator was
    found, and no notes. Raises any other KubeError."""
    place, operator = Place(), await read_deployment(client)
    if not operator.deployment:
        namespace = await find_gpu_operator(client, place.gpu_operator_namespace)
        return replace(place, gpu_operator_namespace=namespace), ()
    settings = operator.settings
    account = text(operator.deployment, "spec", "template", "spec", "serviceAccountName")
    place = Place(
        **{one.name: getattr(settings.plan, one.name) for one in fields(PlanSettings)},
        release=text(operator.deployment, "metadata", "labels", "app.kubernetes.io/instance")
        or place.release,
        agent_namespace=settings.agent_namespace,
        admin_mig_config_map=settings.admin_maps.mig,
        operator_account=account or place.operator_account,
    )
    return place, operator.notes


async def _with_pointed(
    client: KubeClient, view: InstallationView
) -> tuple[InstallationView, PluginEntries | None]:
    """Return `view` with the ConfigMaps that ClusterPolicy names added, and the device plugin's entries. Our own,
    mig-manager's default, and any that may not be read (Forbidden) are not added; one that does not exist is added as
    empty.

    The entries are None if no ConfigMap is named or it may not be read. If it does not exist, they have no texts, but
    the namespaces that have one of this name. Raises other KubeErrors.
    """
    stack, place, maps, entries = view.followed_policy, view.place, dict(view.config_maps), None
    plugin = stack.plugin_config_name if stack is not None else ""
    pointed = {plugin, stack.mig_config_name if stack is not None else ""}
    for name in sorted(pointed - {"", UPSTREAM_MIG_CONFIG, place.mig_config_map}):
        reading = read_entries(client, name, place.gpu_operator_namespace, search=name == plugin)
        read = await unless_hidden(reading, None)
        if read is not None and name != place.plugin_config_map:
            maps[name] = ConfigMapState(frozenset(read.texts or ()), ours=False)
        if name == plugin:
            entries = read
    return replace(view, config_maps=maps), entries


async def _mig_entries(client: KubeClient, view: InstallationView) -> dict[str, tuple[str, frozenset[str]]]:
    """Return, by node name, the entries of the ConfigMap that mig-manager reads, for nodes that are labeled as
    MIG-capable and whose MIG label names an entry. This is the ConfigMap that ClusterPolicy names, else the one
    generated for the node (docs/design/nvidia.md#a10). Nodes whose ConfigMap is absent, unreadable or empty are left
    out. Empty without the GPU Operator's ClusterPolicy or with mig-manager off. Raises KubeErrors other than Forbidden
    and NotFound."""
    stack = view.followed_policy
    named = [
        one.name
        for one in view.nodes
        if one.labels.get(LABEL_MIG_CONFIG) and one.labels.get(LABEL_MIG_CAPABLE) == "true"
    ]
    if not named or stack is None or stack.plain is not None or stack.is_off(MIG_MANAGER_SWITCH):
        return {}
    wanted = {name: stack.mig_config_name or f"{name}{NODE_CONFIG_SUFFIX}" for name in named}
    namespace, maps = view.place.gpu_operator_namespace, list[JSON]()
    with suppress(Forbidden, NotFound):
        if stack.mig_config_name:
            maps = [await client.get(CONFIG_MAPS, stack.mig_config_name, namespace=namespace)]
        else:
            maps = await list_of(client, CONFIG_MAPS, namespace=namespace)
    data = {text(raw, "metadata", "name"): text(raw, "data", MIG_KEY) for raw in maps}
    entries = {name: frozenset(parse(data.get(name, ""))) for name in {*wanted.values()}}
    return {node: (name, entries[name]) for node, name in wanted.items() if entries[name]}


# --- in words ------------------------------------------------------------------------------------------------


def describe(examined: Examination, paper: Paper) -> list[Line]:
    """Draw the nodes with SIMULATED GPUs, a hint if the operator is not installed, a line for each problem with the
    command that fixes it below, and a line for each topic that is in order or could not be checked. Commands are never
    wrapped, so that they can be copied. Notes follow, and the last line has the totals."""
    lines: list[Line] = describe_simulated(sorted(examined.view.simulated), paper)
    if not examined.view.installed:
        lines += [*prose(NOT_INSTALLED, paper, ink=Ink.WAITING), BLANK]
    for word, message, command in _topics(examined):
        rows = prose(message, paper, indent="         ")
        lines += [line(Span(f"{word:8} ", INKS.get(word, Ink.WAITING)), rows[0][0].text[9:]), *rows[1:]]
        lines += [line(f"         -> {command}")] if command else []
    lines += prose_of_each((f"Note: {note}" for note in examined.notes), paper, ink=Ink.FAINT)
    count = Counter(one.severity for one in examined.symptoms)
    errors, warnings = count[Severity.ERROR], count[Severity.WARNING]
    what = "installation" if examined.view.installed else "cluster"
    state = conclude(what, unseen=bool(examined.unseen), errors=errors)
    title = f"{state}: {counted(errors, 'error')} and {counted(warnings, 'warning')}."
    return [*lines, BLANK, *prose(title, paper, ink=Ink.BAD if errors else Ink.GOOD)]


def _topics(examined: Examination) -> Iterator[tuple[str, str, str]]:
    """Yield the word, the text and the command of each topic and symptom (see `report_topics`). Before the
    installation, topics of the installation itself are left out unless they have a symptom."""
    asked = frozenset(Topic) if examined.view.installed else ASKED_BY_PEOPLE | {Topic.CLUSTER_POLICY}
    return report_topics(examined.symptoms, examined.unseen, asked)


async def ask(session: Session, _typed: Namespace) -> Answer:
    """Return the answer of one cluster, with a row for each thing that is wrong with it or could not be checked (see
    FleetVerb): the severity, or UNKNOWN, and the message, in the order of the topics. The remarks are the notes, a
    sentence if the operator is not installed, and, if there is a symptom, the command that shows the remedies. The
    flags are ignored. Raises Trouble if the server does not answer, or if no error was found but a kind in NEEDED may
    not be read."""
    examined = await _examine(session)
    found = [(word, message) for word, message, _ in _topics(examined) if word != "ok"]
    rows = [[Span(word, INKS.get(word, Ink.WAITING)), Span(message)] for word, message in found]
    notes = [*([] if examined.view.installed else [NOT_INSTALLED.rstrip(".")]), *examined.notes]
    if examined.symptoms:
        notes.append(
            f"for the commands that fix this, run: kubectl gpusharing doctor --context {session.name}"
        )
    data, simulated = as_data(examined, session.name), sorted(examined.view.simulated)
    return Answer(_status(examined), rows, data, simulated, notes)


BESIDE = FleetVerb(columns(RESULT=0, FINDING=0), "nothing is wrong", DoctorReportData, ask)


def as_data(examined: Examination, where: str) -> DoctorReportData:
    """Return the result as plain data, for JSON and YAML: whether the operator is installed, all symptoms, by topic why
    something could not be checked, the nodes with SIMULATED GPUs, and the notes. `where` is the name of the context."""
    return {
        "context": where,
        "installed": examined.view.installed,
        "symptoms": [{key: str(value) for key, value in asdict(one).items()} for one in examined.symptoms],
        "unknown": {str(topic): why for topic, why in examined.unseen.items()},
        "simulated": sorted(examined.view.simulated),
        "notes": list(examined.notes),
    }

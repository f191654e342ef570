"""`doctor`: what overrides the operator or breaks its proofs, and which command fixes each problem?

It checks what `helm test` checks (`planning/stack/installation.py`), and also the labels of Nodes and the versions of
kubelets. Before the operator is installed, it leaves out the checks of the installation itself.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace

from gpusharing.api.names import LABEL_MIG_CAPABLE, LABEL_MIG_CONFIG, LABEL_PLUGIN_CONFIG, STOP
from gpusharing.kube.client import CONFIG_MAPS, DAEMON_SETS, DEVICE_CLASSES, GPUNODES, JSON, KubeClient
from gpusharing.kube.daemonsets import find_gpu_operator, gpu_server
from gpusharing.kube.dra import device_class_view
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.installation import gather_installation, read_entries
from gpusharing.kube.lists import list_of
from gpusharing.kube.raw import text
from gpusharing.kube.sources import NODE_CONFIG_SUFFIX
from gpusharing.kube.wire import HINT
from gpusharing.planning.snapshot.nvidia import MIG_MANAGER_SWITCH
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.stack.drastack import find_class_symptoms
from gpusharing.planning.stack.effects import RESTART_PLUGIN, UPSTREAM_MIG_CONFIG
from gpusharing.planning.stack.installation import conclude, find_symptoms, report_topics, start
from gpusharing.planning.stack.installationviews import (
    ASKED_BY_PEOPLE,
    Installation,
    Place,
    Symptom,
    Topic,
    Unseen,
    find_unread_topics,
    join_unseen,
    warning,
)
from gpusharing.planning.stack.nodesymptoms import (
    PluginEntries,
    find_all_misfits,
    find_entry_symptoms,
    find_kubelet_symptoms,
    find_node_symptoms,
)
from gpusharing.planning.stack.plugins import find_rival_symptoms
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.wanted.migfile import MIG_KEY, parse
from kubectl_gpusharing.live.cluster import read_deployment, unless_hidden
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import DoctorReportData
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    Ink,
    Line,
    PrintOptions,
    Span,
    columns,
    describe_simulated,
    line,
    prose,
    prose_of_each,
)
from kubectl_gpusharing.shell.running import Answer, FleetVerb
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import DONE, FAILED, Trouble, explained

NOT_INSTALLED = "The operator is not installed. These checks show what an installation would find here."
INKS = {"ok": Ink.GOOD, "ERROR": Ink.BAD}
"""The ink of each result; all others have that of a warning."""
NEEDED = frozenset({"nodes", "configmaps", "daemonsets.apps", "clusterpolicies.nvidia.com"})
"""The kinds that the user must be able to read, because most checks need them."""
OUR_KINDS = frozenset({"gpusharingpolicies.gpusharing.dev", "gpunodes.gpusharing.dev"})


Rows = Sequence[tuple[str, str, str]]
"""The word, the text and the command of each row of the report (`report_topics`)."""


async def run(session: Session, _: Arguments, terminal: Terminal) -> int:
    """Print what is wrong, and return FAILED if there is an error. Warnings and missing checks do not count."""
    report, rows = await _examine(session)
    terminal.answer(DoctorReportData, lambda: report, lambda options: describe(report, rows, options))
    return _status(rows)


def _status(rows: Rows) -> int:
    return FAILED if any(word == "ERROR" for word, _, _ in rows) else DONE


async def _examine(session: Session) -> tuple[DoctorReportData, Rows]:
    client = session.client
    with explained(session.where):
        place, stop, notes = await _place(client)
        view = await gather_installation(client, place)
        # RBAC also refuses kinds that are not installed.
        if (hidden := OUR_KINDS & view.unread.keys()) and not await client.served(GPUNODES):
            unread = {kind: why for kind, why in view.unread.items() if kind not in hidden}
            snapshot = replace(view.snapshot, policies_error="")
            view = replace(view, snapshot=snapshot, unread=unread, not_served=view.not_served | hidden)
        view, entries = await _with_pointed(client, view)
        version = await unless_hidden(client.version(), "")
        mig_entries = await _mig_entries(client, view)
        daemon_sets = await unless_hidden(list_of(client, DAEMON_SETS), None)
        classes = await unless_hidden(list_of(client, DEVICE_CLASSES), None) if view.stack.by_dra else ()
    if entries is not None and entries.config_map == place.plugin_config_map and entries.texts is None:
        entries = None  # `find_symptoms` reports that the operator's own ConfigMap does not exist
    nodes, policy = view.snapshot.nodes, view.stack.cluster_policy
    used = {one.labels.get(LABEL_PLUGIN_CONFIG, "") for one in nodes.values()} | {
        policy.plugin_default if policy else ""
    }
    install = None if view.installed else start(view)
    symptoms = [
        *find_symptoms(view),
        *(() if entries is None else find_entry_symptoms(entries, used, install)),
        *find_kubelet_symptoms(view, version),
        *find_node_symptoms(view.snapshot, mig_entries, find_all_misfits(view.snapshot)),
        *find_rival_symptoms(
            [*filter(None, map(gpu_server, daemon_sets or ()))],
            [*nodes.values()],
            place.gpu_operator_namespace,
            view.effects(RESTART_PLUGIN),
            [one.release for one in view.stack.finders],
        ),
        *find_class_symptoms([*map(device_class_view, classes or ())]),
        *([_stopped(stop, place)] if stop else []),
    ]
    symptoms = [replace(one, message=one.message.replace(f" ({HINT})", "")) for one in symptoms]
    unknown: list[Unseen] = [find_unread_topics(view)]
    if not version:
        why = "the API server does not report its version, so kubelet versions were not compared with it"
        unknown.append({Topic.KUBELETS: why})
    if daemon_sets is None:
        why = (
            "you are not allowed to list DaemonSets in other namespaces, so a second device plugin would go unnoticed,"
            " and so would a second mig-manager"
        )
        unknown.append({Topic.NODES: why})
    if classes is None:
        why = "DeviceClasses cannot be read, so one that selects the wrong devices would go unnoticed"
        unknown.append({Topic.CLUSTER_POLICY: why})
    unseen = join_unseen(*unknown)
    asked = frozenset(Topic) if view.installed else ASKED_BY_PEOPLE | {Topic.CLUSTER_POLICY}
    rows = [*report_topics(symptoms, unseen, asked)]
    blind = sorted(NEEDED & view.unread.keys())
    if blind and _status(rows) == DONE:
        why = view.unread[blind[0]].replace(f" ({HINT})", "")
        raise Trouble(
            f"doctor cannot check anything: you are not allowed to read {', '.join(blind)} in {session.where}: {why}"
        )
    return {
        "context": session.name,
        "installed": view.installed,
        "symptoms": [{of.name: str(getattr(one, of.name)) for of in fields(one)} for one in symptoms],
        "unknown": {str(topic): why for topic, why in unseen.items()},
        "simulated": list(view.snapshot.simulated),
        "notes": list(notes),
    }, rows


def _stopped(stop: str, place: Place) -> Symptom:
    message = f"{stop}: no node starts a change, and no pod is evicted. Once whoever created it agrees, delete it"
    command = Command.of(f"kubectl -n {place.namespace} delete configmap {STOP}", effects=())
    return warning(Topic.OPERATOR, "Stopped", message, command)


async def _place(client: KubeClient) -> tuple[Place, str, tuple[str, ...]]:
    """Return where the operator is installed, what stops it, and notes."""
    place, operator = Place(), await read_deployment(client)
    if not operator.deployment:
        namespace = await find_gpu_operator(client, place.gpu_operator_namespace)
        return replace(place, gpu_operator_namespace=namespace), "", ()
    settings = operator.settings
    account = text(operator.deployment, "spec", "template", "spec", "serviceAccountName")
    place = Place(
        **{one.name: getattr(settings, one.name) for one in fields(PlanSettings)},
        release=text(operator.deployment, "metadata", "labels", "app.kubernetes.io/instance") or place.release,
        agent_namespace=settings.agent_namespace,
        admin_mig_config_map=settings.admin_mig_config_map,
        operator_account=account or place.operator_account,
    )
    return place, operator.stop, operator.notes


async def _with_pointed(client: KubeClient, view: Installation) -> tuple[Installation, PluginEntries | None]:
    stack, place, policy, entries = view.stack, view.place, view.stack.cluster_policy, None
    if policy is None:
        return view, None
    plugin, mig, void = policy.plugin_config_name, policy.mig_config_name, set[str]()
    for name in sorted({plugin, mig} - {"", UPSTREAM_MIG_CONFIG, place.mig_config_map}):
        reading = read_entries(client, name, place.gpu_operator_namespace, search=name == plugin)
        read = await unless_hidden(reading, None)
        if name == plugin:
            entries = read
        if read is None or name == place.plugin_config_map:
            continue
        theirs = read.texts or {}
        void |= set() if theirs else {name}
        if name == plugin:
            stack = replace(stack, named_keys=frozenset(theirs), admin_plugin_configs=theirs)
        if name == (place.admin_mig_config_map or mig):
            stack = replace(stack, admin_mig_file=theirs.get(MIG_KEY, ""))
    return replace(view, snapshot=replace(view.snapshot, stack=stack), void_maps=frozenset(void)), entries


async def _mig_entries(client: KubeClient, view: Installation) -> dict[str, tuple[str, frozenset[str]]]:
    """Return, by node, the ConfigMap that mig-manager reads and its entries.

    It is the one that ClusterPolicy names, else the one generated for the node (docs/design/nvidia.md#a10).
    """
    stack = view.stack.cluster_policy
    named = [
        one.name
        for one in view.snapshot.nodes.values()
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


def describe(report: DoctorReportData, topics: Rows, options: PrintOptions) -> list[Line]:
    lines: list[Line] = describe_simulated(report["simulated"], options)
    if not report["installed"]:
        lines += [*prose(NOT_INSTALLED, options, ink=Ink.WAITING), BLANK]
    for word, message, command in topics:
        rows = prose(message, options, indent="         ")
        lines += [line(Span(f"{word:8} ", INKS.get(word, Ink.WAITING)), rows[0][0].text[9:]), *rows[1:]]
        lines += [line(f"         -> {command}")] if command else []
    lines += prose_of_each((f"Note: {note}" for note in report["notes"]), options, ink=Ink.FAINT)
    count = Counter(word for word, _, _ in topics)
    errors, warnings = count["ERROR"], count["WARNING"]
    what = "installation" if report["installed"] else "cluster"
    state = conclude(what, unseen=bool(report["unknown"]), errors=errors)
    title = f"{state}: {counted(errors, 'error')} and {counted(warnings, 'warning')}."
    return [*lines, BLANK, *prose(title, options, ink=Ink.BAD if errors else Ink.GOOD)]


async def ask(session: Session, _: Arguments) -> Answer:
    report, found = await _examine(session)
    rows = [[Span(word, INKS.get(word, Ink.WAITING)), Span(text)] for word, text, _ in found if word != "ok"]
    notes = [*([] if report["installed"] else [NOT_INSTALLED.rstrip(".")]), *report["notes"]]
    if report["symptoms"]:
        notes.append(f"for the commands that fix this, run: kubectl gpusharing doctor --context {session.name}")
    return Answer(_status(found), rows, report, report["simulated"], notes)


FLEET = FleetVerb(columns(RESULT=0, FINDING=0), "nothing is wrong", DoctorReportData, ask)

"""`doctor`: what silently overrides us or breaks proof, each with the one command that mends it.

It asks what `helm test` asks (`planning/stack/installation.py`), and looks at labels of Nodes besides. Before the
operator is installed it leaves out what an installation brings.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpusharing.api.names import ANNOTATION_FENCE
from gpusharing.cli.drawing import BLANK, Ink, Line, Paper, Span, line, prose
from gpusharing.cli.installed import DEPLOYMENTS, SELECTOR, find_difference, settings_of
from gpusharing.cli.session import Session
from gpusharing.cli.terminal import Terminal
from gpusharing.cli.troubles import DONE, FAILED, Trouble, sentence
from gpusharing.kube.answers import HINT
from gpusharing.kube.client import CONFIG_MAPS, NODES, KubeClient
from gpusharing.kube.errors import Forbidden, KubeError, NotFound
from gpusharing.kube.installation import gather_installation
from gpusharing.kube.raw import section, text, texts
from gpusharing.planning.stack.installation import find_symptoms
from gpusharing.planning.stack.installationviews import ConfigMapState, InstallationView, Place
from gpusharing.planning.stack.nodesymptoms import Given, NodeLabels, find_node_symptoms
from gpusharing.planning.stack.symptoms import Severity, Symptom, Topic

NOT_YET = frozenset(
    {"KindNotServed", "RightsMissing", "RightsUnknown", "OperatorMissing", "ConfigMapEmpty", "AgentMissing"}
)
"""What every cluster lacks before the chart is installed."""
NEEDED = frozenset({"nodes", "configmaps", "daemonsets.apps", "clusterpolicies.nvidia.com"})
"""Without these nothing can be said."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""
    try:
        view, symptoms, notes = await _examine(session.client)
    except KubeError as error:
        raise Trouble(sentence(error, session.where)) from error
    installed = not (view.operator_replicas is None and view.not_served)
    if not installed:
        symptoms = [one for one in symptoms if one.reason not in NOT_YET]
    blind = sorted(NEEDED & view.unread.keys())
    if blind and not any(one.severity is Severity.ERROR for one in symptoms):
        why = view.unread[blind[0]].replace(f" ({HINT})", "")
        raise Trouble(f"nobody can tell: you may not look at {', '.join(blind)} in {session.where}: {why}")
    if terminal.structured:
        terminal.data(as_data(symptoms, notes, installed=installed, where=session.name))
    else:
        terminal.show(describe(symptoms, notes, installed=installed, paper=terminal.paper))
    return FAILED if any(one.severity is Severity.ERROR for one in symptoms) else DONE


async def _examine(client: KubeClient) -> tuple[InstallationView, list[Symptom], tuple[str, ...]]:
    place, given, notes = await _place(client)
    view = await gather_installation(client, place)
    nodes: list[NodeLabels] = []
    if "nodes" not in view.unread:
        nodes = [
            NodeLabels(
                text(raw, "metadata", "name"),
                texts(section(raw, "metadata", "labels")),
                ANNOTATION_FENCE in section(raw, "metadata", "annotations"),
            )
            async for page in client.pages(NODES)
            for raw in page.items
        ]
    given = await _with_keys(client, view, given)
    if given.plugin_keys is not None and given.plugin_map not in view.config_maps:
        theirs = ConfigMapState(frozenset(given.plugin_keys), ours=False)
        view = replace(view, config_maps={**view.config_maps, given.plugin_map: theirs})
    found = [*find_symptoms(view), *find_node_symptoms(nodes, given)]
    return view, [replace(one, message=one.message.replace(f" ({HINT})", "")) for one in found], notes


async def _place(client: KubeClient) -> tuple[Place, Given, tuple[str, ...]]:
    """Where things are, by the operator's Deployment, else as the chart's defaults have it; and what there is to say of
    that Deployment."""
    place = Place()
    try:
        found = [
            raw async for page in client.pages(DEPLOYMENTS, label_selector=SELECTOR) for raw in page.items
        ]
    except (Forbidden, NotFound):
        found = []
    if not found:
        return place, Given(place.gpu_operator_namespace, "", None), ()
    settings, notes = settings_of(found[0])
    plan = settings.plan
    labels = texts(section(found[0], "metadata", "labels"))
    notes += find_difference(labels.get("app.kubernetes.io/version", ""))
    account = text(found[0], "spec", "template", "spec", "serviceAccountName")
    place = Place(
        release=labels.get("app.kubernetes.io/instance", place.release),
        namespace=plan.namespace,
        agent_namespace=settings.agent_namespace,
        gpu_operator_namespace=plan.gpu_operator_namespace,
        plugin_config_map=plan.plugin_config_map,
        mig_config_map=plan.mig_config_map,
        configure_gpu_operator=plan.configure_gpu_operator,
        force_delete=plan.force_delete,
        operator_account=account or place.operator_account,
    )
    given = Given(plan.gpu_operator_namespace, "", None, plan.unsafe_drivers, plan.refuse_unsafe_drivers)
    return place, given, notes


async def _with_keys(client: KubeClient, view: InstallationView, given: Given) -> Given:
    """With what the ConfigMap holds that the device plugin is pointed at, ours or somebody else's."""
    stacks = [one for one in view.cluster_policies if not one.ignored] or ([view.plain] if view.plain else [])
    name = stacks[0].plugin_config_name if stacks else ""
    if not name:
        return given
    try:
        raw = await client.get(CONFIG_MAPS, name, namespace=given.namespace)
    except (Forbidden, NotFound):
        return replace(given, plugin_map=name)
    return replace(given, plugin_map=name, plugin_keys=frozenset(section(raw, "data")))


# --- in words ------------------------------------------------------------------------------------------------


def describe(
    symptoms: Sequence[Symptom], notes: Sequence[str] = (), *, installed: bool, paper: Paper
) -> list[Line]:
    """A line for each topic that is well; what is wrong elsewhere, with its command. Commands are never broken."""
    lines: list[Line] = []
    if not installed:
        text = "The operator is not installed. What follows is what an installation would meet here."
        lines += [*prose(text, paper, ink=Ink.WAITING), BLANK]
    for topic in Topic:
        found = [one for one in symptoms if one.topic is topic]
        if not found and (installed or topic in (Topic.CLUSTER_POLICY, Topic.NODES)):
            lines.append(line(Span("ok       ", Ink.GOOD), str(topic)))
        for one in found:
            ink = Ink.BAD if one.severity is Severity.ERROR else Ink.WAITING
            told = prose(f"{topic}: {one.message}", paper, indent="         ")
            first = told[0][0].text[9:]
            lines += [
                line(Span(f"{one.severity:8} ", ink), first),
                *told[1:],
                line(f"         -> {one.command}"),
            ]
    for note in notes:
        lines += prose(f"Note: {note}", paper, hang="  ", ink=Ink.FAINT)
    count = Counter(one.severity for one in symptoms)
    errors, warnings = count[Severity.ERROR], count[Severity.WARNING]
    verdict = "cannot work as it is" if errors else "can work"
    title = (
        f"This {'installation' if installed else 'cluster'} {verdict}: errors {errors}, warnings {warnings}."
    )
    return [*lines, BLANK, *prose(title, paper, ink=Ink.BAD if errors else Ink.GOOD)]


def as_data(
    symptoms: Sequence[Symptom], notes: Sequence[str] = (), *, installed: bool, where: str
) -> dict[str, Any]:
    """For programs."""
    return {
        "context": where,
        "installed": installed,
        "symptoms": [
            {
                "topic": str(one.topic),
                "severity": str(one.severity),
                "reason": one.reason,
                "message": one.message,
                "command": one.command,
            }
            for one in symptoms
        ],
        "notes": list(notes),
    }

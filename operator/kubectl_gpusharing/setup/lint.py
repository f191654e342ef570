"""`lint FILE...`: would mig-parted, the device plugin and this operator accept these files?

No cluster is contacted. Each object is judged by the functions with which the operator, `plan` and `doctor` judge it. A
ConfigMap is read by the program to which a ClusterPolicy among the files gives it, or else by the one whose files its
entries look like. A ClusterPolicy is judged as if all policies among the files were installed.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from gpusharing.api.names import GROUP
from gpusharing.api.validation import validate_policy
from gpusharing.kube.convert import cluster_policy_view, find_zones, policy_view
from gpusharing.kube.raw import entries, section, text, whole
from gpusharing.kube.stackreader import stack_view
from gpusharing.planning.gpus.cards import CARDS, Card, describe_turns, find_card
from gpusharing.planning.gpus.geometry import find_misfit, nearest_layout, normalize, tell_misfit
from gpusharing.planning.pools.windows import find_window_flaw
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.stack.effects import UPSTREAM_MIG_CONFIG
from gpusharing.planning.stack.installation import find_symptoms
from gpusharing.planning.stack.installationviews import Installation, Place, Topic
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.wanted import migfile, pluginconfig
from gpusharing.planning.wanted.migfile import MIG_KEY
from gpusharing.planning.wanted.pluginconfig import Unreadable, find_line, parse_yaml
from kubectl_gpusharing.live.files import KIND, Document, read_documents
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import FindingData, LintReportData
from kubectl_gpusharing.shell.drawing import Ink, Line, PrintOptions, Span, fold, line, printable, prose
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import DONE, FAILED

ERROR, WARNING, NOTE, IGNORED = "error", "warning", "note", "ignored"
INKS = {ERROR: Ink.BAD, WARNING: Ink.WAITING, NOTE: Ink.FAINT, IGNORED: Ink.FAINT}
Fault = tuple[str, str, str]
"""The path of a field, what is wrong with it, and how bad that is; IGNORED means that the object is not judged. In the
path of a field of a text in a ConfigMap, a | follows the path of the text."""
OUR_KINDS = (KIND, "GPUNode")
MIG_PARTED, PLUGIN = "mig-parted", "the device plugin"
_OURS = re.compile("gpusharing|nvidia|mig-|sharing:|migStrategy")
"""Matches documents that are refused if they cannot be read; others are ignored then."""
_BLOCK = re.compile(r"\|[-+0-9]*\s*(#.*)?$")
"""Matches a line after which a text follows line by line."""


def run_offline(typed: Arguments, terminal: Terminal) -> int:
    """Print what is wrong with the files, and return FAILED if an object is refused. Warnings do not count."""
    documents = tuple(read_documents(typed.files, "lint -"))
    findings = list(judge(documents))
    count = Counter(finding["severity"] for finding in findings)
    judged = len(documents) - count[IGNORED]
    totals = f"{counted(count[ERROR], 'error')} and {counted(count[WARNING], 'warning')}"
    last = f"{counted(judged, 'object')} checked: {totals}."
    data: LintReportData = {"accepted": not count[ERROR], "checked": judged, "findings": findings}

    def describe(options: PrintOptions) -> Iterator[Line]:
        for one in findings:
            severity = Span(one["severity"], INKS[one["severity"]])
            drawn = line(f"{one['file']}:{one['line']}: ", severity, printable(f": {one['message']}"))
            yield from [drawn] if options.width is None else fold(drawn, options)
        yield from prose(last, options)

    terminal.answer(LintReportData, lambda: data, lambda options: [*describe(options)])
    return FAILED if count[ERROR] else DONE


def judge(documents: Sequence[Document]) -> Iterator[FindingData]:
    """Yield each problem in these documents, in their order, and each document that is not judged."""
    policies = tuple(policy_view(one.raw) for one in documents if text(one.raw, "kind") == KIND)
    readers: dict[str, str] = {}
    for view in (cluster_policy_view(one.raw) for one in documents if _is_cluster_policy(one.raw)):
        readers |= {view.mig_config_name: MIG_PARTED, view.plugin_config_name: PLUGIN}
    named: set[tuple[str, str]] = set()
    for document in documents:
        faults, own = [*_find_faults(document, policies, readers)], (document.file, document.name)
        if own in named:
            twice = f"{document.name} is in this file twice; one would replace the other"
            faults.append(("metadata.name", twice, ERROR))
        if text(document.raw, "kind") == KIND and text(document.raw, "metadata", "name"):
            named.add(own)
        for path, message, severity in faults:
            outer, inside, inner = path.partition("|")
            number = document.before + 1 if severity == IGNORED else document.line(outer)
            # Only a literal block has the same lines as the file; for any other text, the line of its key counts.
            if inside and _BLOCK.search(document.text.splitlines()[number - document.before - 1]):
                number += find_line(document.raw["data"][outer.removeprefix("data.")], inner)
            yield {"file": document.file, "line": number, "severity": severity, "message": message}


def _find_faults(document: Document, policies: tuple[PolicyView, ...], readers: Mapping[str, str]) -> Iterator[Fault]:
    raw, kind = document.raw, text(document.raw, "kind")
    if isinstance(raw, Unreadable):
        yield "", str(raw), ERROR if _OURS.search(document.text) else IGNORED
        return
    if kind == KIND:
        yield from _judge_policy(document)
        return
    if text(raw, "apiVersion").startswith(f"{GROUP}/") and kind not in OUR_KINDS:
        yield "kind", f"kind is {kind or 'missing'}; {GROUP} has the kinds {' and '.join(OUR_KINDS)}", ERROR
        return
    if _is_cluster_policy(raw):
        view, place = cluster_policy_view(raw), Place()
        free = view.mig_config_name in ("", UPSTREAM_MIG_CONFIG)
        view = replace(
            view,
            plugin_config_name=view.plugin_config_name or place.plugin_config_map,
            mig_config_name=place.mig_config_map if free else view.mig_config_name,
        )
        snapshot = ClusterSnapshot({}, {}, policies, stack_view([view], (), {}, place))
        for symptom in find_symptoms(Installation(snapshot)):
            if symptom.topic is Topic.CLUSTER_POLICY:
                field = re.search(r"\b\w+(\.\w+)+(?= is )", symptom.message)
                yield f"spec.{field[0]}" if field else "", symptom.message, symptom.severity.lower()
        return
    texts: dict[str, object] = {} if kind else {"": document.text}
    if kind == "ConfigMap":
        texts = {f"data.{key}|": value for key, value in section(raw, "data").items()}
    reader = readers.get(text(raw, "metadata", "name"), "")
    programs = {
        at: (reader if reader == PLUGIN or MIG_KEY in at else "") or _find_reader(value) for at, value in texts.items()
    }
    if not any(programs.values()):
        yield "", document.name, IGNORED
    for at, program in programs.items():
        for path, message, severity in _judge_text(program, texts[at]) if program else ():
            yield f"{at}{path}", f"{at.replace('|', ': ')}{message}", severity


def _is_cluster_policy(raw: object) -> bool:
    """Compare the API group too, because Kyverno has a kind of the same name."""
    return text(raw, "kind") == "ClusterPolicy" and text(raw, "apiVersion").startswith("nvidia.com/")


def _judge_policy(document: Document) -> Iterator[Fault]:
    if document.fault[1]:
        yield *document.fault, ERROR
    checked = validate_policy(document.raw)
    if isinstance(checked, tuple):
        yield from ((problem.field, str(problem), ERROR) for problem in checked)
        return
    if flaw := find_window_flaw(checked, find_zones(checked)):
        yield flaw[0], " ".join(flaw), ERROR
    if checked.time_slicing and (said := describe_turns(checked.time_slicing.replicas)):
        yield "spec.timeSlicing.replicas", f"spec.timeSlicing.replicas: {said}", NOTE
    cards = [card for card in map(find_card, checked.products) if card is not None]
    if len(cards) < len(checked.products):
        return
    for index, layout in enumerate((checked.mig and checked.mig.layouts) or ()):
        yield from _find_unfit(f"spec.mig.layouts[{index}].profiles", layout.profiles, cards or CARDS, ERROR)


def _find_reader(content: object) -> str:
    try:
        fields = parse_yaml(content) if isinstance(content, str) else content
    except Unreadable:
        fields = dict.fromkeys(re.findall(r'^"?([\w-]+)"?:', str(content), re.MULTILINE))
    names = {str(name).lower() for name in fields} if isinstance(fields, dict) else set()
    if "sharing" in names or ("version" in names and names & {"flags", "resources", "imex"}):
        return PLUGIN
    return MIG_PARTED if names & {"mig-configs", "mig-config"} else ""


def _judge_text(reader: str, content: object) -> Iterator[Fault]:
    if not isinstance(content, str):
        yield "", "a ConfigMap holds strings only; write | behind the colon", ERROR
        return
    flaws = tuple(migfile.find_flaws(content) if reader == MIG_PARTED else pluginconfig.find_flaws(content))
    yield from ((flaw.path, flaw.text, ERROR if flaw.refused else WARNING) for flaw in flaws)
    if reader == PLUGIN and not any(flaw.refused for flaw in flaws):
        for index, row in enumerate(entries(parse_yaml(content), "sharing", "timeSlicing", "resources")):
            if said := describe_turns(whole(row, "replicas")):
                at = f"sharing.timeSlicing.resources[{index}].replicas"
                yield at, f"{at}: {said}", NOTE
    for name, entry in migfile.sound_entries(content).items() if reader == MIG_PARTED else ():
        for index, row in enumerate(entry):
            at = f"mig-configs.{name}[{index}].mig-devices"
            yield from _find_unfit(at, row.get("mig-devices") or {}, CARDS, WARNING)


def _find_unfit(path: str, profiles: Mapping[str, int], cards: Sequence[Card], severity: str) -> Iterator[Fault]:
    layout, offered = normalize(profiles), [profile for card in cards for profile in card.profiles]
    if strange := next((name for name, _ in layout if name not in {one.name for one in offered}), ""):
        similar = nearest_layout(((strange, 1),), offered) or ()
        near = "".join(f"; did you mean {name}?" for name, _ in similar)
        yield f"{path}.{strange}", f"{path}: no card in the operator's table has {strange}{near}", WARNING
        return
    offers = {card.key: card.profiles for card in cards if card.profiles}
    if offers and all(find_misfit(layout, profiles) for profiles in offers.values()):
        wanted = {name for name, _ in layout}
        key = min(offers, key=lambda key: len(wanted - {one.name for one in offers[key]}))
        misfit = tell_misfit(layout, offers[key])
        why = f"no card in the operator's table can hold this layout; {key}: {misfit}"
        yield path, f"{path}: {why}", severity

"""`support-bundle [FILE]`: collect what a colleague needs for troubleshooting into a tar archive.

Secrets are not read. Fields in which people keep secrets on purpose, such as the environments of pods, are left out
(`cleaned`). In messages and logs, whatever is named as a secret or has the form of one is removed; a secret that
nothing marks as one stays. Objects that the user may not read are left out, and README.txt in the archive names them.
If nothing can be read, no archive is written.
"""

import io
import json
import re
import tarfile
from collections.abc import Awaitable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from gpusharing.kube import client as kinds
from gpusharing.kube.client import JSON, Resource
from gpusharing.kube.errors import KubeError, Unauthorized, Unavailable
from gpusharing.kube.lists import list_of, pages_of
from gpusharing.kube.ownversion import own_version
from gpusharing.kube.raw import has_condition, text
from gpusharing.planning.vocabulary.lengths import counted
from kubectl_gpusharing.live.cluster import InstalledOperator, read_installed
from kubectl_gpusharing.pools.fleet import read_node
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import SupportBundleData
from kubectl_gpusharing.shell.drawing import Ink, Span, fold, line, prose_of_each, simulated_sentence
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import DONE, Trouble, error_text, explained

REMOVED = "REMOVED"
LEFT_OUT = frozenset({
    "env", "envFrom", "args", "command", "exec", "httpGet", "httpHeaders", "lifecycle", "managedFields",
    "imagePullSecrets", "volumes", "addresses", "binaryData",
})  # fmt: skip
"""Keys whose whole value is left out: above all environments, command lines and probes of containers."""
KEPT_ANNOTATIONS = ("gpusharing.dev/", "nvidia.com/", "deployment.kubernetes.io/", "meta.helm.sh/")
_KEYS = "(?:api|access|private|client|licen[cs]e).?key"
_NAMES = f"passw|passphrase|pwd|(?<![a-z])pass(?![a-z])|token|secret|credential|{_KEYS}"
_TELLING = re.compile(f"{_NAMES}|private|(?<![a-z])auth(?:orization)?(?![a-z])", re.IGNORECASE)
_QUOTED = r"""\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|\\\"[^\"\n]*\""""
_PROSE = "(?:not|no|context|user|unauthorized|invalid|expired|error|failed)"
"""Matches the word after the colon in an ordinary sentence that is kept, such as `token: expired since May`."""
_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"(?:[\sA-Za-z0-9+/=:,-]*?-----END [A-Z ]*PRIVATE KEY-----|(?:\s+[\w+/=]{16,})*(?:\s+[\w+/=]+(?=\s*\Z))?)"
)
"""Matches a private key in PEM format (RFC 7468), even if its end is missing."""
_KEY_LINES = re.compile(
    r"(?:^[\w+/=]+[ \t\r]*\n)+(-----END [A-Z ]*PRIVATE KEY-----)?|(-----END [A-Z ]*PRIVATE KEY-----)", re.MULTILINE
)
"""Matches the rest of a private key whose beginning is missing, and lines of one word, which must stay. A pattern that
needs the end of a key takes quadratic time, because it is tried again from each line."""
_IN_TEXTS = (
    re.compile(r"(\bbearer[ \t]+)[^\s\"']+", re.IGNORECASE),
    # user:password@ or token@ in a URL (RFC 3986), and a JSON Web Token (RFC 7519).
    re.compile(r"(://)[^/\s@\"']+(?=@)"),
    re.compile(r"()\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    # A list or an object under such a name, to the end of its line; and a block or a list in YAML.
    re.compile(rf"((?:{_NAMES}|\bauth\b)[\w.-]{{0,60}}\\?[\"']?[ \t]*[=:][ \t]*)[\[{{][^\n]*", re.IGNORECASE),
    re.compile(
        rf"(^([ \t]*)[\w\"'.-]{{0,60}}(?:{_NAMES})[\w\"'.-]{{0,60}}:[ \t]*(?:[|>][^\n]*)?\n)"
        r"(?:\2(?:[ \t]+|- )[^\n]*(?:\n|\Z))+",
        re.IGNORECASE | re.MULTILINE,
    ),
    # The value of the HTTP header Authorization: a scheme and one word (RFC 9110, RFC 6750).
    re.compile(
        rf"(\bauth(?:orization)?[\"']?[ \t]*[=:][ \t]*)(?:{_QUOTED}|(?:\w+[ \t]+)?[^\s\"',;}}]+)", re.IGNORECASE
    ),
    # Values such as in password=x, "apiKey": "x" and --token x.
    re.compile(
        rf"((?:{_NAMES})[\w.-]{{0,60}}\\?[\"']?[ \t]*=[ \t]*)(?:{_QUOTED}|[\"'][^\n]*|[^\s\"'&}}\]]+)", re.IGNORECASE
    ),
    re.compile(
        rf"((?:{_NAMES})[\w.-]{{0,60}}\\?[\"']?[ \t]*:[ \t]*)"
        rf"(?:{_QUOTED}|[\"'][^\n]*|(?!{_PROSE}[ \t]+[a-z])[^\s\"'}}\]]+)",
        re.IGNORECASE,
    ),
    re.compile(rf"((?<![\w-])--?[\w-]{{0,60}}(?:{_NAMES})[\w-]{{0,60}}[ \t]+)[^\s-]\S*", re.IGNORECASE),
)

_HINTS = ("-----", "bearer", "://", "eyj", "pass", "pwd", "token", "secret", "credent", "key", "auth")
"""Strings that contain none of these, case-folded, hold no secret that a pattern above recognizes."""


def cleaned(value: object, key: str = "") -> Any:
    """Return a copy of the JSON value without LEFT_OUT, other programs' annotations, and secrets."""
    if isinstance(value, str | list | dict) and _TELLING.search(key):
        return REMOVED
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    if isinstance(value, str):
        return scrubbed(value)
    if not isinstance(value, dict):
        return value
    if key == "annotations":
        value = {name: text for name, text in value.items() if name.startswith(KEPT_ANNOTATIONS)}
    return {name: cleaned(item, name) for name, item in value.items() if name not in LEFT_OUT}


def scrubbed(text: str) -> str:
    """Replace everything that is named as a secret or has the form of one by REMOVED."""
    folded = text.casefold()
    if not any(hint in folded for hint in _HINTS):
        return text
    text = _KEY_LINES.sub(lambda match: REMOVED if match.lastindex else match[0], _KEY.sub(REMOVED, text))
    for pattern in _IN_TEXTS:
        text = pattern.sub(rf"\g<1>{REMOVED}", text)
    return text


def node_facts(raw: JSON) -> JSON:
    status, spec = raw.get("status") or {}, raw.get("spec") or {}
    return {
        "metadata": cleaned(raw.get("metadata") or {}),
        "spec": {key: spec[key] for key in ("taints", "unschedulable") if key in spec},
        "status": {key: cleaned(status[key]) for key in ("allocatable", "conditions", "nodeInfo") if key in status},
    }


LINES = 2000
"""How many lines of each log are included."""
AWAY = 3
"""Unanswered calls, each of perhaps half a minute, without any answer, after which the server counts as unreachable."""
MOST_LOGS = 20
"""How many pods of one workload have their logs read; those that are not Ready come first."""
WORKLOADS = ("gpusharing-operator", "gpusharing-agent", "nvidia-mig-manager", "nvidia-device-plugin-daemonset")
LABELS = ("app.kubernetes.io/name", "app")
READ_ME = """\
A support bundle of gpu-sharing-operator, made by kubectl gpusharing support-bundle at {at}.

Left out on purpose: Secrets are not read at all. Pods and workloads come without their environments, command lines,
probes and volumes. Only annotations from this operator, NVIDIA, Helm and Deployments are included. Values under a key
that suggests a secret are left out. In messages, logs and configuration files, anything that is named like a secret or
looks like one is replaced by REMOVED. Nothing else is changed: policies, labels and logs are as people and programs
wrote them. Review them before you share this bundle.

Plugin: {plugin}
Operator: {operator}

"""


def pack(files: Mapping[str, bytes], folder: str, at: datetime) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(at.timestamp()), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


async def run(session: Session, typed: Arguments, terminal: Terminal) -> int:
    at = session.now()
    folder = f"gpusharing-support-{at:%Y%m%dT%H%M%SZ}"
    path = Path(typed.file or f"{folder}.tar.gz")
    with explained(session.where):
        files, gaps = await gather(session, at)
    try:
        path.write_bytes(pack(files, folder, at))  # noqa: ASYNC240 - nothing else goes on here
    except OSError as error:
        raise Trouble(f"{path} cannot be written: {error_text(error)}") from error
    lines = fold(line(Span(str(path), Ink.TITLE), f"  {counted(len(files), 'file')}"), terminal.options)
    lines += prose_of_each((f"Not included: {gap}" for gap in gaps), terminal.options, ink=Ink.WAITING)
    data: SupportBundleData = {"file": str(path), "files": sorted(files), "gaps": gaps}
    terminal.answer(SupportBundleData, lambda: data, lambda _: lines)
    return DONE


async def gather(session: Session, at: datetime) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of the archive, and what could not be read.

    One call goes out after the other, to spare a struggling server. Raises KubeError if nothing can be read.
    """
    client, files, gaps, errors = session.client, dict[str, bytes](), list[str](), list[KubeError]()
    try:
        installed = await read_installed(client)
    except Unauthorized:
        raise
    except KubeError as error:
        installed = InstalledOperator(notes=(error_text(error),))
    settings = installed.settings
    ours = {settings.namespace, settings.agent_namespace}
    namespaces = sorted({*ours, settings.gpu_operator_namespace})
    lists: list[tuple[str, Resource, str | None]] = [
        ("policies.json", kinds.POLICIES, None),
        ("gpunodes.json", kinds.GPUNODES, None),
        ("nodes.json", kinds.NODES, None),
        ("clusterpolicies.json", kinds.CLUSTER_POLICIES, None),
        ("poddisruptionbudgets.json", kinds.PDBS, None),
        ("default/events.json", kinds.EVENTS, "default"),
        *((f"{namespace}/deployments.json", kinds.DEPLOYMENTS, namespace) for namespace in sorted(ours)),
    ]
    for namespace in namespaces:
        for resource in (kinds.DAEMON_SETS, kinds.PODS, kinds.EVENTS):
            lists.append((f"{namespace}/{resource.plural}.json", resource, namespace))

    async def read_all(resource: Resource, namespace: str | None) -> list[JSON]:
        clean = node_facts if resource == kinds.NODES else cleaned
        pages = pages_of(client, resource, namespace=namespace)
        return [clean(raw) async for page in pages for raw in page.items]

    async def read_one(resource: Resource, name: str, namespace: str) -> JSON:
        found: JSON = cleaned(await client.get(resource, name, namespace=namespace))
        return found

    async def add(name: str, what: Awaitable[object]) -> None:
        try:
            files[name] = (json.dumps(await what, indent=1, sort_keys=True) + "\n").encode()
        except KubeError as error:
            gaps.append(f"{name}: {error_text(error)}")
            errors.append(error)
            silent = [one for one in errors if isinstance(one, Unavailable)]
            if isinstance(error, Unauthorized) or (not files and len(silent) >= AWAY):
                raise

    for file, resource, space in lists:
        await add(file, read_all(resource, space))
    for name in (settings.plugin_config_map, settings.mig_config_map):
        where = settings.gpu_operator_namespace
        await add(f"{where}/configmap-{name}.json", read_one(kinds.CONFIG_MAPS, name, where))
    if not files:
        raise errors[0]
    for namespace in namespaces:
        await _logs(session, files, gaps, namespace)
    read_me = READ_ME.format(
        at=f"{at:%Y-%m-%dT%H:%M:%SZ}", plugin=own_version() or "not known", operator=installed.version or "not known"
    )
    reports = map(read_node, json.loads(files.get("gpunodes.json", b"[]")))
    if played := simulated_sentence(sorted(one.name for one in reports if one.simulated)):
        read_me += f"{played}.\n\n"
    read_me += "".join(f"Not read: {gap}\n" for gap in (*installed.notes, *gaps))
    files["README.txt"] = read_me.encode()
    return files, gaps


async def _logs(session: Session, files: dict[str, bytes], gaps: list[str], namespace: str) -> None:
    try:
        pods = await list_of(session.client, kinds.PODS, namespace=namespace)
    except KubeError:
        return  # the list of pods is a gap already
    for workload in WORKLOADS:
        matching = sorted(
            (raw for raw in pods if workload in (text(raw, "metadata", "labels", one) for one in LABELS)),
            key=lambda raw: (has_condition(raw, "Ready"), text(raw, "metadata", "name")),
        )
        if len(matching) > MOST_LOGS:
            more = counted(len(matching) - MOST_LOGS, "more pod")
            gaps.append(f"{namespace}: the logs of {more} of {workload}")
        for raw in matching[:MOST_LOGS]:
            name = text(raw, "metadata", "name")
            try:
                log = await session.client.log(namespace, name, LINES)
            except KubeError as error:
                gaps.append(f"log of {namespace}/{name}: {error_text(error)}")
            else:
                files[f"{namespace}/logs/{name}.log"] = scrubbed(log).encode()

"""`support-bundle [FILE]`: a tar archive for troubleshooting. Secrets are not read, and the environments of pods are
left out.

What may not be read is left out, and its README says so: a bundle with gaps is better than none. Where nothing at all
can be read there is none.

Everything that people deliberately put secrets into is left out (`cleaned`). From texts of programs (messages, logs),
whatever is named as a secret or has the form of one is removed too; a secret that nothing gives away stays.
"""

import io
import json
import re
import tarfile
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from gpusharing.cli.live.installed import Installed, read_installed
from gpusharing.cli.pools.fleet import read_node
from gpusharing.cli.shell.arguments import own_version
from gpusharing.cli.shell.drawing import Ink, Span, fold, line, prose, simulated_sentence
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import DONE, Trouble, error_text, sentence
from gpusharing.kube import client as kinds
from gpusharing.kube.client import DEPLOYMENTS, JSON, KubeClient, Resource
from gpusharing.kube.convert import has_condition
from gpusharing.kube.errors import KubeError, Unauthorized, Unavailable
from gpusharing.kube.paging import list_of, pages_of
from gpusharing.kube.raw import text
from gpusharing.planning.vocabulary.lengths import counted

REMOVED = "REMOVED"
LEFT_OUT = frozenset({
    "env", "envFrom", "args", "command", "exec", "httpGet", "httpHeaders", "lifecycle", "managedFields",
    "imagePullSecrets", "volumes", "addresses", "binaryData",
})  # fmt: skip
"""Keys whose whole value goes: environments, command lines and probes of containers above all."""
KEPT_ANNOTATIONS = ("gpusharing.dev/", "nvidia.com/", "deployment.kubernetes.io/", "meta.helm.sh/")
_KEYS = "(?:api|access|private|client|licen[cs]e).?key"
_NAMES = f"passw|passphrase|pwd|(?<![a-z])pass(?![a-z])|token|secret|credential|{_KEYS}"
_TELLING = re.compile(f"{_NAMES}|private|(?<![a-z])auth(?:orization)?(?![a-z])", re.IGNORECASE)
_QUOTED = r"""\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|\\\"[^\"\n]*\""""
_PROSE = "(?:not|no|context|user|unauthorized|invalid|expired|error|failed)"
"""How a sentence about a secret continues after its colon."""
_IN_TEXTS = (
    # PEM (RFC 7468), also one that was cut at either end.
    re.compile(
        r"()-----BEGIN [A-Z ]*PRIVATE KEY-----"
        r"(?:[\sA-Za-z0-9+/=:,-]*?-----END [A-Z ]*PRIVATE KEY-----|(?:\s+[\w+/=]{16,})*(?:\s+[\w+/=]+(?=\s*\Z))?)"
    ),
    re.compile(r"()(?:^[\w+/=]+[ \t\r]*\n)*-----END [A-Z ]*PRIVATE KEY-----", re.MULTILINE),
    re.compile(r"(\bbearer[ \t]+)[^\s\"']+", re.IGNORECASE),
    # user:password@ or token@ of an address (RFC 3986), and a JSON Web Token (RFC 7519).
    re.compile(r"(://)[^/\s@\"']+(?=@)"),
    re.compile(r"()\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    # Under such a name a list or an object, to the end of its line, and a block or list of YAML.
    re.compile(rf"((?:{_NAMES}|\bauth\b)[\w.-]{{0,60}}\\?[\"']?[ \t]*[=:][ \t]*)[\[{{][^\n]*", re.IGNORECASE),
    re.compile(
        rf"(^([ \t]*)[\w\"'.-]{{0,60}}(?:{_NAMES})[\w\"'.-]{{0,60}}:[ \t]*(?:[|>][^\n]*)?\n)"
        r"(?:\2(?:[ \t]+|- )[^\n]*(?:\n|\Z))+",
        re.IGNORECASE | re.MULTILINE,
    ),
    # HTTP's Authorization, its scheme and one word, and a bearer token anywhere (RFC 9110, RFC 6750).
    re.compile(
        rf"(\bauth(?:orization)?[\"']?[ \t]*[=:][ \t]*)(?:{_QUOTED}|(?:\w+[ \t]+)?[^\s\"',;}}]+)",
        re.IGNORECASE,
    ),
    # password=x, "apiKey": "x", --token x
    re.compile(
        rf"((?:{_NAMES})[\w.-]{{0,60}}\\?[\"']?[ \t]*=[ \t]*)(?:{_QUOTED}|[\"'][^\n]*|[^\s\"'&}}\]]+)",
        re.IGNORECASE,
    ),
    re.compile(
        rf"((?:{_NAMES})[\w.-]{{0,60}}\\?[\"']?[ \t]*:[ \t]*)"
        rf"(?:{_QUOTED}|[\"'][^\n]*|(?!{_PROSE}[ \t]+[a-z])[^\s\"'}}\]]+)",
        re.IGNORECASE,
    ),
    re.compile(rf"((?<![\w-])--?[\w-]{{0,60}}(?:{_NAMES})[\w-]{{0,60}}[ \t]+)[^\s-]\S*", re.IGNORECASE),
)

_HINTS = ("-----", "bearer", "://", "eyj", "pass", "pwd", "token", "secret", "credent", "key", "auth")
"""Every text that one of the above matches contains one of these, case-folded; most texts contain none."""


def cleaned(value: object) -> Any:
    """The object without what LEFT_OUT names, with only our and NVIDIA's annotations, with REMOVED in place of every
    value whose key suggests a secret, and with all texts `scrubbed`."""
    if isinstance(value, list):
        return [cleaned(one) for one in value]
    if isinstance(value, str):
        return scrubbed(value)
    if not isinstance(value, dict):
        return value
    return {key: _cleaned(key, one) for key, one in value.items() if key not in LEFT_OUT}


def _cleaned(key: str, value: object) -> Any:
    if key == "annotations" and isinstance(value, dict):
        return {
            name: _cleaned(name, text) for name, text in value.items() if name.startswith(KEPT_ANNOTATIONS)
        }
    if isinstance(value, str | list | dict) and _TELLING.search(key):
        return REMOVED
    return cleaned(value)


def scrubbed(text: str) -> str:
    """A text of a program, with REMOVED in place of what is named as a secret or has the form of one."""
    folded = text.casefold()
    if not any(hint in folded for hint in _HINTS):
        return text
    for pattern in _IN_TEXTS:
        text = pattern.sub(rf"\g<1>{REMOVED}", text)
    return text


def node_facts(raw: JSON) -> JSON:
    """Of a Node: names, labels, marks of ours, taints, what it offers and how it is."""
    status, spec = raw.get("status") or {}, raw.get("spec") or {}
    return {
        "metadata": cleaned(raw.get("metadata") or {}),
        "spec": {key: spec[key] for key in ("taints", "unschedulable") if key in spec},
        "status": {
            key: cleaned(status[key]) for key in ("allocatable", "conditions", "nodeInfo") if key in status
        },
    }


LINES = 2000
"""Of each log."""
AWAY = 3
"""Unanswered calls, before anything was read, after which the server counts as away: each may take as long as a person
waits for anything."""
MOST_LOGS = 20
"""Pods of one workload whose logs are read, those that are not Ready first."""
WORKLOADS = (
    "gpusharing-operator",
    "gpusharing-agent",
    "nvidia-mig-manager",
    "nvidia-device-plugin-daemonset",
)
LABELS = ("app.kubernetes.io/name", "app")
READ_ME = """\
A support bundle of gpu-sharing-operator, made by kubectl gpusharing support-bundle at {at}.

Left out on purpose: Secrets are not read at all. Pods and workloads come without their environments, command lines,
probes and volumes. Of annotations, only ours, NVIDIA's, Helm's and a Deployment's are here. Values under a key that
speaks of a secret are left out. In messages, logs and configuration files, whatever is named as a secret or looks like
one is replaced by REMOVED. Nothing else is changed: policies, labels and logs are as people and programs wrote them.
Look through them before you hand this on.

Plugin: {plugin}
Operator: {operator}

"""


@dataclass(slots=True)
class Bundle:
    """The files as they come."""

    files: dict[str, bytes] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)
    """What could not be read, and why."""
    errors: list[KubeError] = field(default_factory=list)
    """Of these."""

    def add(self, name: str, value: object) -> None:
        """As JSON."""
        self.files[name] = (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()

    async def read(self, name: str, what: Callable[[], Awaitable[object]]) -> None:
        """Add what this reads, or remember why it could not. Raises Unauthorized, because then nothing can be read, and
        Unavailable when the server does not seem to answer at all."""
        try:
            self.add(name, await what())
        except Unauthorized:
            raise
        except KubeError as error:
            self.gaps.append(f"{name}: {error_text(error)}")
            self.errors.append(error)
            silent = [one for one in self.errors if isinstance(one, Unavailable)]
            if not self.files and len(silent) >= AWAY:
                raise

    def tar(self, folder: str, at: datetime) -> bytes:
        """All of it, in one folder."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for name, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mtime, entry.mode = len(content), int(at.timestamp()), 0o600
                archive.addfile(entry, io.BytesIO(content))
        return stream.getvalue()


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See VerbModule."""
    at = session.now()
    folder = f"gpusharing-support-{at:%Y%m%dT%H%M%SZ}"
    path = Path(typed.file or f"{folder}.tar.gz")
    try:
        bundle = await gather(session, at)
    except KubeError as error:
        raise Trouble(sentence(error, session.where)) from error
    try:
        path.write_bytes(bundle.tar(folder, at))  # noqa: ASYNC240 - nothing else goes on here
    except OSError as error:
        raise Trouble(f"{path} cannot be written: {error_text(error)}") from error
    if terminal.structured:
        terminal.data({"file": str(path), "files": sorted(bundle.files), "gaps": bundle.gaps})
        return DONE
    lines = fold(line(Span(str(path), Ink.TITLE), f"  {counted(len(bundle.files), 'file')}"), terminal.paper)
    for gap in bundle.gaps:
        lines += prose(f"Left out: {gap}", terminal.paper, hang="  ", ink=Ink.WAITING)
    terminal.show(lines)
    return DONE


async def gather(session: Session, at: datetime) -> Bundle:
    """Read everything, one after the other: there is no hurry, and a sick server is not pressed. Raises the first
    KubeError where nothing could be read."""
    bundle, client = Bundle(), session.client
    try:
        installed = await read_installed(client)
    except Unauthorized:
        raise
    except KubeError as error:
        installed = Installed(notes=(error_text(error),))
    plan = installed.settings.plan
    ours = {plan.namespace, installed.settings.agent_namespace}
    namespaces = sorted({*ours, plan.gpu_operator_namespace})
    for file, resource, namespace in _lists(sorted(ours), namespaces):
        await bundle.read(file, partial(_all, client, resource, namespace))
    for name in (plan.plugin_config_map, plan.mig_config_map):
        await bundle.read(
            f"{plan.gpu_operator_namespace}/configmap-{name}.json",
            partial(_one, client, kinds.CONFIG_MAPS, name, plan.gpu_operator_namespace),
        )
    if not bundle.files:
        raise bundle.errors[0]
    for namespace in namespaces:
        await _logs(session, bundle, namespace)
    read_me = READ_ME.format(
        at=f"{at:%Y-%m-%dT%H:%M:%SZ}",
        plugin=own_version() or "not known",
        operator=installed.version or "not known",
    )
    reports = map(read_node, json.loads(bundle.files.get("gpunodes.json", b"[]")))
    if played := simulated_sentence(sorted(one.name for one in reports if one.simulated)):
        read_me += f"{played}.\n\n"
    gaps = "".join(f"Not read: {gap}\n" for gap in (*installed.notes, *bundle.gaps))
    bundle.files["README.txt"] = (read_me + gaps).encode()
    return bundle


def _lists(ours: Sequence[str], namespaces: Sequence[str]) -> Iterator[tuple[str, Resource, str | None]]:
    """Yield each list that the bundle has: its file, the kind, and the namespace, or None for all. `ours`: namespaces
    of our workloads; `namespaces`: these, and that of NVIDIA's."""
    yield "policies.json", kinds.POLICIES, None
    yield "gpunodes.json", kinds.GPUNODES, None
    yield "nodes.json", kinds.NODES, None
    yield "clusterpolicies.json", kinds.CLUSTER_POLICIES, None
    yield "poddisruptionbudgets.json", kinds.PDBS, None
    yield "default/events.json", kinds.EVENTS, "default"
    for namespace in ours:
        yield f"{namespace}/deployments.json", DEPLOYMENTS, namespace
    for namespace in namespaces:
        yield f"{namespace}/daemonsets.json", kinds.DAEMON_SETS, namespace
        yield f"{namespace}/pods.json", kinds.PODS, namespace
        yield f"{namespace}/events.json", kinds.EVENTS, namespace


async def _one(client: KubeClient, resource: Resource, name: str, namespace: str) -> JSON:
    found: JSON = cleaned(await client.get(resource, name, namespace=namespace))
    return found


async def _all(client: KubeClient, resource: Resource, namespace: str | None) -> list[JSON]:
    clean = node_facts if resource == kinds.NODES else cleaned
    pages = pages_of(client, resource, namespace=namespace)
    return [clean(raw) async for page in pages for raw in page.items]


async def _logs(session: Session, bundle: Bundle, namespace: str) -> None:
    """The ends of the logs of our workloads and of those of NVIDIA's that we steer."""
    try:
        pods = await list_of(session.client, kinds.PODS, namespace=namespace)
    except KubeError:
        return  # told already, with the list of pods
    for workload in WORKLOADS:
        of_it = sorted(
            (raw for raw in pods if workload in (text(raw, "metadata", "labels", one) for one in LABELS)),
            key=_ready,
        )
        if len(of_it) > MOST_LOGS:
            more = counted(len(of_it) - MOST_LOGS, "more pod")
            bundle.gaps.append(f"{namespace}: the logs of {more} of {workload}")
        for raw in of_it[:MOST_LOGS]:
            name = text(raw, "metadata", "name")
            try:
                log = await session.client.log(namespace, name, LINES)
            except KubeError as error:
                bundle.gaps.append(f"log of {namespace}/{name}: {error_text(error)}")
            else:
                bundle.files[f"{namespace}/logs/{name}.log"] = scrubbed(log).encode()


def _ready(raw: JSON) -> tuple[bool, str]:
    return has_condition(raw, "Ready"), text(raw, "metadata", "name")

"""Which objects are in files that `kubectl apply -f` would accept, and how is a GPUSharingPolicy written for one?

Whatever a file contains, the caller gets documents or a Trouble, never another exception.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpusharing.api.names import API_VERSION
from gpusharing.api.nearest import did_you_mean
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import part, section, text
from gpusharing.planning.wanted.pluginconfig import Unreadable, find_line, parse_yaml
from kubectl_gpusharing.shell.drawing import printable
from kubectl_gpusharing.shell.troubles import Trouble, error_text

KIND = "GPUSharingPolicy"


def policy_manifest(name: str, spec: Mapping[str, Any], **metadata: object) -> JSON:
    about = {"name": name, **metadata}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": about, "spec": dict(spec)}


def comment(text: str) -> str:
    return f"# {printable(' '.join(text.splitlines()))}\n"


SUFFIXES = (".yaml", ".yml", ".json")
_OTHER = re.compile(r"^kind: *(?!(?:GPUSharingPolicy|ClusterPolicy|ConfigMap|\w*List)\b)(\w+)", re.MULTILINE)
"""Matches the kind of an object that no verb reads."""
_OBJECT = re.compile(r"(?:\s|#.*\n)*(?=\{)")
"""Matches the spaces and comments before an object in braces."""
_END = re.compile(r"((?:\s|#.*\n)*^)\.\.\.(?=\s|\Z)", re.MULTILINE)
"""Matches YAML's marker of a document's end, with the spaces and comments before it as the group."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""Matches the names that the API server accepts (RFC 1123)."""
_FIELDS = ("apiVersion", "kind", "metadata", "spec", "status")


@dataclass(frozen=True, slots=True)
class Document:
    """One object in a file, or a document there that cannot be parsed."""

    file: str
    """`-` is standard input."""
    before: int
    """Number of lines in the file before `text`."""
    text: str
    raw: Any = None
    """The object, only its kind if no verb reads it (a CRD may be nested too deeply), or an Unreadable."""
    at: str = ""
    """Path of the object in the document, such as `items[0].` in a List."""

    @property
    def name(self) -> str:
        what = "/".join(filter(None, (text(self.raw, "kind"), text(self.raw, "metadata", "name"))))
        return what or "an object without a kind"

    @property
    def fault(self) -> tuple[str, str]:
        """The first field outside the spec for which the API server would refuse a policy, and why; empty without one.

        The path alone may be empty.
        """
        metadata, version = section(self.raw, "metadata"), text(self.raw, "apiVersion")
        if version != API_VERSION:
            return "", f"apiVersion is {version or 'missing'}; this plugin knows {API_VERSION}"
        if not (name := text(metadata, "name")):
            return "", f"a {KIND} has no metadata.name"
        if not _NAME.fullmatch(name):
            hint = "use a-z, 0-9, dashes and periods only, for example pool-b"
            return "metadata.name", f"metadata.name {name}: {hint}"
        for field in ("labels", "annotations"):
            if not isinstance(metadata.get(field), dict | None):
                return f"metadata.{field}", f"metadata.{field} must be an object of strings"
            for key, value in section(metadata, field).items():
                if not isinstance(value, str | None):
                    path, hint = f"metadata.{field}.{key}", "only strings are allowed; put the value in quotes"
                    return path, f"{path} {json.dumps(value)}: {hint}"
        unknown = next((str(key) for key in self.raw if key not in _FIELDS), "")
        return unknown, unknown and f"{unknown}: there is no such field{did_you_mean(unknown, _FIELDS)}"

    def line(self, path: str) -> int:
        """Return the number of the line in the file, from 1, on which the field at `path` begins."""
        return self.before + find_line(self.text, f"{self.at}{path}")


def read_policies(names: Sequence[str]) -> tuple[tuple[JSON, ...], tuple[str, ...]]:
    """Return the policies in these files, and a sentence for each other object, which is ignored. Raises Trouble."""
    policies: dict[str, JSON] = {}
    others: list[str] = []
    for document in read_documents(names, "plan -f -"):
        name, raw = document.file, document.raw
        if isinstance(raw, Unreadable):
            raise Trouble(f"{name} cannot be read: {raw}")
        if not isinstance(raw, dict):
            raise Trouble(f"{name}: a document is not an object but of type {type(raw).__name__}")
        if text(raw, "kind") != KIND:
            others.append(f"{name}: {document.name} is ignored")
            continue
        if document.fault[1]:
            raise Trouble(f"{name}: {document.fault[1]}")
        if (named := text(raw, "metadata", "name")) in policies:
            raise Trouble(f"{name}: there are two policies named {named}")
        policies[named] = raw
    if names and not policies:
        raise Trouble(f"there is no {KIND} in {', '.join(names)}")
    return tuple(policies.values()), tuple(others)


def read_documents(names: Sequence[str], command: str) -> Iterator[Document]:
    """Yield every object in these files, each read once, in order. Raises Trouble.

    `command` reads the output of kubectl kustomize.
    """
    files: dict[str, str] = {}
    for file in (file for one in names for file in _files(one, command)):
        files.setdefault(os.path.realpath(file), file)
    for name in files.values():
        try:
            content = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise Trouble(f"{name} cannot be read: {error_text(error)}") from error
        before = 0
        for piece in re.split(r"^---(?=\s|\Z)", content.removeprefix("\ufeff"), flags=re.MULTILINE):
            for document in _split_json(piece):
                before += document.count("\n")
                own = re.sub(r"\A(?:[ \t]*(?:#.*)?\r?\n)+", "", document)
                found = Document(name, before - own.count("\n"), own)
                try:
                    raw = parse_yaml(own)
                except Unreadable as error:
                    other = _OTHER.search(own)
                    raw = error if other is None else {"kind": other[1]}
                if isinstance(items := part(raw, "items"), list) and text(raw, "kind").endswith("List"):
                    for index, item in enumerate(items):
                        yield replace(found, raw=item, at=f"items[{index}].")
                elif raw is not None:
                    yield replace(found, raw=raw)


def _split_json(text: str) -> Iterator[str]:
    begin = 0
    while found := _OBJECT.match(text, begin):
        try:
            _, end = json.JSONDecoder().raw_decode(text, found.end())
        except (ValueError, RecursionError):
            break
        marker = _END.match(text, end)
        yield text[begin : marker.end(1) if marker else end]
        begin = marker.end() if marker else end
    yield text[begin:]


def _files(name: str, command: str) -> list[str]:
    try:
        if name == "-" or not Path(name).is_dir():
            return [name]
        found = sorted(path for path in Path(name).iterdir() if path.suffix in SUFFIXES)
    except OSError as error:
        raise Trouble(f"{name} cannot be read: {error_text(error)}") from error
    if any(path.stem == "kustomization" for path in found):
        raise Trouble(f"{name} is for kustomize: kubectl kustomize {name} | kubectl gpusharing {command}")
    return list(map(str, found))

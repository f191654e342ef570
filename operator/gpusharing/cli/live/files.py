"""Read policies from files that `kubectl apply -f` would accept. Whatever a file contains, the caller gets policies or
a Trouble, never another exception."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from gpusharing.api.names import API_VERSION
from gpusharing.cli.shell.manifests import KIND
from gpusharing.cli.shell.troubles import Trouble, error_text
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, text

SUFFIXES = (".yaml", ".yml", ".json")


def read_policies(names: Sequence[str]) -> tuple[tuple[JSON, ...], tuple[str, ...]]:
    """Return the policies in these files, and a sentence for each other object, which is ignored. A directory stands
    for the files in it that end in .yaml, .yml or .json, and `-` for standard input. Raises Trouble if a file cannot
    be read, if a policy has no name or an unknown API version, if two policies have the same name, or if no file
    contains a policy; without files, both results are empty."""
    policies: dict[str, JSON] = {}
    others: list[str] = []
    for name in (file for one in names for file in _files(one)):
        for document in _documents(name):
            kind = text(document, "kind")
            if kind != KIND:
                what = "/".join(filter(None, (kind, text(document, "metadata", "name"))))
                others.append(f"{name}: {what or 'an object without a kind'} is ignored")
                continue
            _check(document, name)
            named = text(document, "metadata", "name")
            if named in policies:
                raise Trouble(f"{name}: there are two policies named {named}")
            policies[named] = document
    if names and not policies:
        raise Trouble(f"there is no {KIND} in {', '.join(names)}")
    return tuple(policies.values()), tuple(others)


def _files(name: str) -> list[str]:
    """Return the manifests directly in the directory `name`, sorted, or `name` itself if it is not a directory. Raises
    Trouble if the directory cannot be read, or if it has a kustomization, because then the files in it are not what
    is applied."""
    try:
        if name == "-" or not Path(name).is_dir():
            return [name]
        found = sorted(path for path in Path(name).iterdir() if path.suffix in SUFFIXES)
    except OSError as error:
        raise Trouble(f"{name} cannot be read: {error_text(error)}") from error
    if any(path.stem == "kustomization" for path in found):
        raise Trouble(f"{name} is for kustomize: kubectl kustomize {name} | kubectl gpusharing plan -f -")
    return list(map(str, found))


def _check(document: JSON, name: str) -> None:
    """Raise Trouble if the policy has no name, or has an API version that this plugin does not know. `name` is the
    name of the file."""
    written = text(document, "apiVersion")
    if written != API_VERSION:
        raise Trouble(f"{name}: apiVersion is {written or 'missing'}; this plugin knows {API_VERSION}")
    if not text(document, "metadata", "name"):
        raise Trouble(f"{name}: a {KIND} has no metadata.name")


def _documents(name: str) -> Iterator[JSON]:
    """Yield each object in the file `name`, or in standard input if that is `-`. An object whose kind ends in `List`
    is replaced by those of its items that are objects, and empty documents are skipped. Raises Trouble if the file
    cannot be read, is not YAML, or contains a document that is not an object."""
    try:
        content = sys.stdin.read() if name == "-" else Path(name).read_text()
        documents = list(yaml.load_all(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Trouble(f"{name} cannot be read: {error_text(error)}") from error
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise Trouble(f"{name}: a document is not an object but of type {type(document).__name__}")
        if text(document, "kind").endswith("List"):
            yield from entries(document, "items")
        else:
            yield document

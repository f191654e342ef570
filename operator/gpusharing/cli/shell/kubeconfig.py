"""Which contexts there are. The official client reads the rest of a kubeconfig (`kube/login.py`).

kubectl's rule, which that client does not follow for several files: the first that names a current context decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from gpusharing.cli.shell.troubles import Trouble, nearest, said
from gpusharing.kube.raw import entries, text


@dataclass(frozen=True, slots=True)
class Context:
    """One context."""

    name: str
    """Its name in the kubeconfig."""
    namespace: str
    """Where pods are looked for by default."""


def find_context(files: Sequence[Path], name: str) -> Context:
    """The context of this name; without a name, the current one. Raises Trouble when it does not exist."""
    current, known = "", dict[str, str]()
    for file in files:
        told = _read(file)
        current = current or text(told, "current-context")
        for one in entries(told, "contexts"):
            known.setdefault(text(one, "name"), text(one, "context", "namespace"))
    wanted = name or current
    where = ", ".join(map(str, files))
    if not wanted:
        raise Trouble(
            f"no current context in kubeconfig {where}. Name one: --context; there are {_list(known)}"
        )
    if wanted not in known:
        like = nearest(wanted, known)
        more = f"did you mean: {', '.join(like)}" if like else f"there are: {_list(known)}"
        raise Trouble(f"no context {wanted} in kubeconfig {where}; {more}")
    return Context(wanted, known[wanted] or "default")


def _list(known: Mapping[str, str]) -> str:
    return ", ".join(sorted(known)[:5]) or "none"


def _read(file: Path) -> object:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(file.read_bytes(), loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Trouble(f"kubeconfig {file} cannot be read: {said(error)}") from error

"""Which errors end a command without a result?

Each is a sentence for the person who typed the command, with an exit status.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from gpusharing.kube.errors import Forbidden, Invalid, KubeError, NotFound, Throttled, Unauthorized

DONE, FAILED, CHANGES, FAILED_ON, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 5, 130, 141
"""Exit statuses (docs/reference/cli.md#exit-status); the last two as a shell reports SIGINT and SIGPIPE."""
INSTALL = "helm install gpusharing deploy/helm/gpu-sharing-operator --namespace gpusharing --create-namespace"
_RIGHT = re.compile(r'(?:not allowed to|cannot) (\w+) (?:resource )?"?([\w./-]+)')
"""Finds verb and resource in a refusal, as our client or the API server words it."""


class Trouble(Exception):
    """The command cannot continue; the message says why to the person who typed it."""


class Denied(Trouble):
    """The user lacks these rights, such as `list nodes`."""

    def __init__(self, message: str, rights: Sequence[str]) -> None:
        super().__init__(message)
        self.rights = tuple(rights)


def worst(statuses: Collection[int]) -> int:
    """Return FAILED if it is among these exit statuses, otherwise the highest."""
    return FAILED if FAILED in statuses else max(statuses, default=DONE)


def sentence(error: KubeError, where: str) -> str:
    what, server = error_text(error), f"the API server of {where}"
    sentences: dict[type[KubeError], str] = {
        Unauthorized: f"{what}. The credentials of {where} have expired or were rejected; log in again",
        Forbidden: f"you lack a permission in {where}: {what}. Ask for the permission named here",
        Invalid: f"{server} rejected the request: {what}",
        NotFound: f"not found in {where}: {what}",
        Throttled: f"{server} is too busy to respond: {what}. Try again in a moment",
        KubeError: f"{server} does not respond: {what}. Check the context and the network path to the server",
    }
    return next(text for kind, text in sentences.items() if isinstance(error, kind))


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn a KubeError into a Trouble with its `sentence`, and a Forbidden into Denied."""
    try:
        yield
    except KubeError as error:
        why = sentence(error, where)
        raise (Denied(why, [right_of(error)]) if isinstance(error, Forbidden) else Trouble(why)) from error


def right_of(error: Forbidden) -> str:
    """Return the right that the user lacks, such as `list nodes`."""
    match = _RIGHT.search(str(error.message))
    return " ".join(match.groups()) if match else error_text(error)


def tell_rights(rights: Iterable[str]) -> str:
    """Return these rights by verb, such as `list nodes, pods and get namespaces`."""
    by_verb: dict[str, list[str]] = {}
    for right in dict.fromkeys(rights):
        verb, _, kind = right.partition(" ")
        by_verb.setdefault(verb, []).append(kind)
    return " and ".join(f"{verb} {', '.join(kinds)}" for verb, kinds in by_verb.items())


def error_text(error: Exception) -> str:
    """Return the message of an error on one line and without a period at its end."""
    if isinstance(error, Forbidden):
        error = KubeError(error.message)
    return " ".join((str(error) or type(error).__name__).split()).rstrip(". ")

"""Errors that end a command without a result: each is a sentence for the person who typed it, with an exit status."""

from collections.abc import Iterable
from difflib import get_close_matches

from gpusharing.api.names import GROUP
from gpusharing.kube.errors import (
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
    Throttled,
    Unauthorized,
)

DONE, FAILED, CHANGES, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
"""Exit statuses. The last two are those that a shell reports for a program that SIGINT or SIGPIPE ended."""
INSTALL = "helm install gpusharing deploy/helm/gpu-sharing-operator --namespace gpusharing --create-namespace"
VIEWER = "ClusterRole gpusharing-viewer"
"""The role that the chart makes for users who only look. It grants reading our own kinds and nothing else."""
MOST_MEANT = 3
"""The most similar names that are suggested for a name that does not exist."""


class Trouble(Exception):
    """The command cannot continue. The message says what is wrong and what to do."""


class Denied(Trouble):
    """The user lacks a permission."""


def sentence(error: KubeError, where: str) -> str:
    """Return a sentence for the user about an error of the API server, or about its silence. `where`: the context, for
    the message."""
    if isinstance(error, Unauthorized):
        return f"{error_text(error)}. The credentials of {where} are expired or refused: log in again"
    if isinstance(error, Forbidden):
        tail = f"{VIEWER} is enough to look; ask" if error.group == GROUP else "Ask"
        return f"you lack a permission in {where}: {error_text(error)}. {tail} for what is named here"
    if isinstance(error, Invalid):
        return f"the API server of {where} refuses the request: {error_text(error)}"
    if isinstance(error, NotFound):
        return f"not found in {where}: {error_text(error)}"
    if isinstance(error, Throttled):
        return f"the API server of {where} is too busy to answer: {error_text(error)}. Try again in a moment"
    return (
        f"the API server of {where} does not answer: {error_text(error)}. Check the context and the network path to"
        " the server"
    )


def error_text(error: Exception) -> str:
    """Return the text of an error on one line without a final full stop, or its type if it has no text. The hint of a
    Forbidden error is left out, because it addresses the operator."""
    if isinstance(error, Forbidden):
        error = KubeError(error.message)
    return " ".join((str(error) or type(error).__name__).split()).rstrip(". ")


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return at most MOST_MEANT of `names` that are similar to `name`, the most similar first; empty when none is."""
    known = sorted(set(names))
    part = [other for other in known if name in other or other in name][:MOST_MEANT] if name else []
    close = get_close_matches(name, known, n=MOST_MEANT, cutoff=0.6)
    return list(dict.fromkeys([*close, *part]))[:MOST_MEANT]

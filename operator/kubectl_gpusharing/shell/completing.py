"""`kubectl_complete-gpusharing`: suggest words to kubectl's own shell completion.

kubectl calls it with all the words typed so far, the last one possibly incomplete. It reads one suggestion from each
line and a directive from the last. If the cluster cannot be read, no names of objects are suggested.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from kubectl_gpusharing.shell.arguments import parser
from kubectl_gpusharing.shell.troubles import Trouble

FILES, NO_FILES = ":0", ":4"
"""The directives to suggest the names of files, and not to (cobra, ShellCompDirective)."""
SECONDS = 3.0
"""How long the cluster may take to answer: a person who presses Tab waits no longer."""
Names = Callable[[str], Iterable[str]]
"""Returns the names of all objects of a kind, as `cluster_names` does."""
CONTEXTS, NAMESPACES, HASHES = "contexts", "namespaces", "hashes"
OBJECTS = {
    "POLICY": "gpusharingpolicies", "POLICY|NODE": "gpusharingpolicies", "NODE": "gpunodes", "NODE|KIND/NAME": "gpunodes"
}  # fmt: skip
KINDS = {
    **OBJECTS, "HASH": HASHES,
    "context": CONTEXTS, "contexts": CONTEXTS, "namespace": NAMESPACES,
}  # fmt: skip
"""The kind of an argument, by its name in the help or, for flags of all verbs, by the flag."""


def main() -> None:
    """Print one suggestion on each line, then the directive. This is the console script that kubectl looks for."""
    words = sys.argv[1:] or [""]
    suggestions = suggest(words, lambda kind: cluster_names(kind, words))
    print("\n".join([FILES] if suggestions is None else [*suggestions, NO_FILES]))


def suggest(words: Sequence[str], names: Names) -> list[str] | None:
    """Return the sorted completions of the last word, or None if it is the name of a file."""
    # argparse has no public way to list its flags. These private names are the same from Python 3.11 to 3.14.
    top = parser()
    *before, begun = ("", *words)
    verbs = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    verb = next((word for word in before if word in verbs.choices), "")
    chosen: argparse.ArgumentParser = verbs.choices.get(verb, top)
    flags = {text: action for action in chosen._actions for text in action.option_strings}
    valued = {text: action for text, action in flags.items() if action.nargs != 0}
    plain = [word for last, word in pairwise(before) if not word.startswith("-") and last not in valued]
    if before[-1] in valued:
        suggestions = _values(valued[before[-1]], begun, names)
    elif begun.startswith("-"):
        suggestions = _begin("--", flags)
    elif verb:
        arguments, position = [one for one in chosen._actions if not one.option_strings], len(plain) - 1
        many = bool(arguments) and arguments[-1].nargs in ("*", "+")
        if many:
            position = min(position, len(arguments) - 1)
        suggestions = _values(next(iter(arguments[position:]), None), begun, names)
        if many and arguments[0].metavar in OBJECTS and plain[1:] and _is_kind(plain[1]):
            suggestions = names(plain[1])
    else:
        suggestions = _values(verbs, begun, names)
    return None if suggestions is None else _begin(begun, {*suggestions} - {*plain})


def _is_kind(word: str) -> bool:
    from kubectl_gpusharing.shell.session import find_kind

    return find_kind(word) is not None


def _begin(begun: str, suggestions: Iterable[str]) -> list[str]:
    return sorted(text for text in suggestions if text.startswith(begun))


def _values(action: argparse.Action | None, begun: str, names: Names) -> Iterable[str] | None:
    if action is None:
        return ()
    kind = KINDS.get(action.dest) or KINDS.get(str(action.metavar), "")
    head = begun[: begun.rfind(",") + 1] if kind == CONTEXTS else ""
    if action.metavar in OBJECTS and "/" in begun:
        kind = begun.partition("/")[0]
        head = f"{kind}/"
    if action.metavar == "CARD":
        from gpusharing.planning.gpus.cards import CARDS

        return [card.key for card in CARDS if card.profiles]
    if action.metavar == "FILE":
        return None
    return action.choices or [f"{head}{name}" for name in (names(kind) if kind else ())]


def cluster_names(kind: str, words: Sequence[str]) -> list[str]:
    """Return the names of all objects of a kind in the cluster that the words select; none if it cannot be read."""
    from gpusharing.kube import client
    from gpusharing.kube.background import run_command
    from gpusharing.kube.raw import text
    from kubectl_gpusharing.shell.session import connected, find_kubeconfigs, find_subject, read_contexts

    kubeconfig = _value(words, "--kubeconfig")
    known = {"gpunodes": client.GPUNODES, NAMESPACES: client.NAMESPACES, HASHES: client.POLICIES}
    resource, _, namespace = find_subject(f"{kind}/any", _value(words, "--namespace") or _value(words, "-n"))
    resource = known.get(kind, resource)

    async def ask() -> list[str]:
        async with asyncio.timeout(SECONDS), connected(kubeconfig, _value(words, "--context")) as session:
            objects = await session.all(resource, namespace=namespace or session.namespace)
        if kind == HASHES:
            objects = [raw for raw in objects if text(raw, "metadata", "name") in words]
            return [*filter(None, (text(raw, "status", "plan", "hash") for raw in objects))]
        return [text(raw, "metadata", "name") for raw in objects]

    try:
        if kind == CONTEXTS:
            return [*read_contexts(find_kubeconfigs(kubeconfig))[1]]
        return run_command(ask())
    except (Trouble, TimeoutError):
        return []


def _value(words: Sequence[str], flag: str) -> str:
    for word, following in zip(words, (*words[1:], ""), strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return ""

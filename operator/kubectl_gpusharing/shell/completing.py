"""`kubectl_complete-gpusharing`: suggestions for kubectl's own shell completion.

kubectl calls it with all the words typed so far, the last one possibly incomplete. It reads one suggestion from each
line and a directive from the last (cobra, ShellCompDirective). If the cluster cannot be read, no names of objects are
suggested.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise

from kubectl_gpusharing.shell.arguments import parser
from kubectl_gpusharing.shell.troubles import Trouble

FILES, NO_FILES = ":0", ":4"
"""The directives to suggest the names of files, and not to."""
SECONDS = 3.0
"""Seconds within which the cluster must answer, because a person who presses Tab waits no longer."""
Names = Callable[[str], Iterable[str]]
"""A function that returns the names of all objects of a kind, as `cluster_names` does."""
CONTEXTS, NAMESPACES, HASHES = "contexts", "namespaces", "hashes"
KINDS = {
    "POLICY": "gpusharingpolicies", "NODE": "gpunodes", "NODE|KIND/NAME": "gpunodes", "HASH": HASHES,
    "context": CONTEXTS, "contexts": CONTEXTS, "namespace": NAMESPACES,
}  # fmt: skip
"""The kind that an argument refers to, by the argument's name in the help or, for flags of all verbs, the flag."""


def main() -> None:
    """Run the console script that kubectl looks for: print one suggestion on each line, then the directive that forbids
    names of files. If the word is the name of a file, print only the directive that asks for them."""
    words = sys.argv[1:] or [""]
    suggestions = suggest(words, lambda kind: cluster_names(kind, words))
    print("\n".join([FILES] if suggestions is None else [*suggestions, NO_FILES]))


def suggest(words: Sequence[str], names: Names) -> list[str] | None:
    """Return the sorted completions of the last word: the values of the flag before it; else, after a dash, long flags;
    else verbs or, once a verb was typed, values of its next argument. Flags are those of the verb or, before one was
    typed, of the program. Verbs and arguments typed before are left out. Return None if the word is the name of a file.
    `words` has all words, the last of which may be empty. `names` lists the objects of a kind, and is called only if a
    name of that kind can follow."""
    # argparse has no public way to list its flags. These private names are the same from Python 3.11 to 3.14.
    top = parser()
    *before, begun = ("", *words)
    verbs = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    verb = next((word for word in before if word in verbs.choices), "")
    chosen: argparse.ArgumentParser = verbs.choices.get(verb, top)
    flags = {text: action for action in chosen._actions for text in action.option_strings}
    valued = {text: action for text, action in flags.items() if action.nargs != 0}
    plain = _plain(before, valued)
    if before[-1] in valued:
        suggestions = _values(valued[before[-1]], begun, names)
    elif begun.startswith("-"):
        suggestions = _begin("--", flags)
    else:
        suggestions = _values(_argument(chosen, len(plain) - 1) if verb else verbs, begun, names)
    return None if suggestions is None else _begin(begun, {*suggestions} - {*plain})


def _plain(words: Sequence[str], valued: Collection[str]) -> list[str]:
    """Return the words that are neither flags nor the values of flags. `valued` has the flags that take a value. The
    first word is always left out."""
    return [word for last, word in pairwise(words) if not word.startswith("-") and last not in valued]


def _begin(begun: str, suggestions: Iterable[str]) -> list[str]:
    """Return the suggestions that begin with `begun`, sorted."""
    return sorted(text for text in suggestions if text.startswith(begun))


def _argument(chosen: argparse.ArgumentParser, position: int) -> argparse.Action | None:
    """Return the argument of a verb that has the word at this position, counted from 0 and without flags and their
    values. A last argument that takes several words has all further ones. None if the verb takes fewer words."""
    arguments = [action for action in chosen._actions if not action.option_strings]
    if arguments and arguments[-1].nargs in ("*", "+"):
        position = min(position, len(arguments) - 1)
    return next(iter(arguments[position:]), None)


def _values(action: argparse.Action | None, begun: str, names: Names) -> Iterable[str] | None:
    """Return the possible values of a flag or an argument: its choices, the cards with MIG, or names of objects. Empty
    if `action` is None or the value is free text; None if it is a file. `begun` is what was typed so far. It gives the
    kind for `KIND/NAME`; of several contexts, the last is completed. Each value repeats what precedes the name."""
    if action is None:
        return ()
    kind = KINDS.get(action.dest) or KINDS.get(str(action.metavar), "")
    head = begun[: begun.rfind(",") + 1] if kind == CONTEXTS else ""
    if action.metavar == "NODE|KIND/NAME" and "/" in begun:
        kind = begun.partition("/")[0]
        head = f"{kind}/"
    if action.metavar == "CARD":
        from gpusharing.planning.gpus.cards import CARDS

        return [card.key for card in CARDS if card.profiles]
    if action.metavar == "FILE":
        return None
    return action.choices or [f"{head}{name}" for name in (names(kind) if kind else ())]


def cluster_names(kind: str, words: Sequence[str]) -> list[str]:
    """Return the names of all objects of a kind in the cluster and namespace that the typed words select. `kind` is
    spelled as for `why`; any other word is a namespace, whose pods are listed. `words` are searched for --kubeconfig,
    --context and --namespace or -n; without a namespace, that of the context counts. CONTEXTS are read from the
    kubeconfig. HASHES are those of the plans of policies named anywhere in the words. Empty if the kubeconfig or the
    cluster cannot be read, or if that takes more than SECONDS."""
    from gpusharing.kube import client
    from gpusharing.kube.commandloop import run_command
    from gpusharing.kube.raw import text
    from kubectl_gpusharing.shell.session import connected, find_kubeconfigs, find_subject, read_contexts

    kubeconfig = _value(words, "--kubeconfig")
    known = {"gpunodes": client.GPUNODES, NAMESPACES: client.NAMESPACES, HASHES: client.POLICIES}
    resource, _, namespace = find_subject(f"{kind}/any", _value(words, "--namespace") or _value(words, "-n"))
    resource = known.get(kind, resource)

    async def ask() -> list[str]:
        """List the objects and return their names or, for HASHES, the hashes of the plans of those policies that are
        named in `words`. Raises Trouble or TimeoutError."""
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
    """Return the value of the first occurrence of a flag in the typed words, written `FLAG VALUE` or `FLAG=VALUE`; an
    empty string if the flag is not there or has no value yet."""
    for word, following in zip(words, (*words[1:], ""), strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return ""

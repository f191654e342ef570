"""`kubectl_complete-gpusharing`: suggestions for kubectl's own shell completion.

kubectl calls it with all the words typed so far, the last one possibly incomplete. It reads one suggestion from each
line and a directive from the last (cobra, ShellCompDirective). If anything goes wrong, nothing is suggested.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterable, Sequence

from gpusharing.cli.shell.arguments import parser
from gpusharing.cli.shell.troubles import Trouble

NO_FILES = ":4"
"""The directive not to suggest file names as well."""
SECONDS = 3.0
"""Seconds within which the cluster must answer, because a person who presses Tab waits no longer."""
Names = Callable[[str], Iterable[str]]
"""A function that returns the names of all objects of a kind; the argument is the plural of the kind."""
KINDS = {"POLICY": "gpusharingpolicies", "NODE": "gpunodes", "NODE|KIND/NAME": "gpunodes"}
"""The plural of the kind that an argument refers to, by the argument's name in the help."""


def main() -> None:
    """Run the console script that kubectl looks for: print one suggestion on each line, then the directive."""
    words = sys.argv[1:] or [""]
    print("\n".join([*suggest(words, lambda kind: cluster_names(kind, words)), NO_FILES]))


def suggest(words: Sequence[str], names: Names) -> list[str]:
    """Return the sorted completions of the last word: the values of the flag before it; else all long flags if it
    begins with a dash; else the verbs or, after a verb, the values of the verb's first argument. Only what begins with
    the last word is returned. `names` lists the objects of a kind."""
    # argparse has no public way to list its flags. These private names are the same from Python 3.11 to 3.14.
    top = parser()
    *before, begun = ("", *words)
    verbs = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    verb = next((word for word in before if word in verbs.choices), "")
    chosen: argparse.ArgumentParser = verbs.choices.get(verb, top)
    suggestions = _flags(chosen, before[-1], begun)
    if suggestions is None:
        suggestions = _positional(chosen, names) if verb else verbs.choices
    return sorted(text for text in set(suggestions) if text.startswith(begun))


def _flags(chosen: argparse.ArgumentParser, last: str, begun: str) -> Iterable[str] | None:
    """Return the values of the flag `last` if it takes one; they are empty if any value is allowed. Otherwise return
    all long flags if the incomplete word `begun` starts with a dash, or None if it does not."""
    options = {text: action for action in chosen._actions for text in action.option_strings}
    if last in options and options[last].nargs != 0:
        return options[last].choices or ()
    return [text for text in options if text.startswith("--")] if begun.startswith("-") else None


def _positional(chosen: argparse.ArgumentParser, names: Names) -> Iterable[str]:
    """Return the possible values of the verb's first argument: the cards that have MIG, or the names of policies or
    nodes. Empty if the first argument is of another kind. Further arguments are not completed."""
    first = next((action for action in chosen._actions if not action.option_strings), None)
    if first is None:
        return ()
    if first.metavar == "CARD":
        from gpusharing.planning.gpus.cards import CARDS

        return [card.key for card in CARDS if card.profiles]
    return names(KINDS[first.metavar]) if isinstance(first.metavar, str) and first.metavar in KINDS else ()


def cluster_names(kind: str, words: Sequence[str]) -> list[str]:
    """Return the names of all policies, if `kind` is their plural, else of all GPUNodes, in the cluster that the typed
    words select. Empty if they cannot be read for any reason (Trouble), or not within SECONDS."""
    from gpusharing.cli.shell.session import connected
    from gpusharing.kube.client import GPUNODES, POLICIES

    resource = POLICIES if kind == POLICIES.plural else GPUNODES

    async def ask() -> list[str]:
        """List the objects and return their names. Raises Trouble or TimeoutError."""
        async with (
            asyncio.timeout(SECONDS),
            connected(_value(words, "--kubeconfig"), _value(words, "--context")) as session,
        ):
            return [raw["metadata"]["name"] for raw in await session.all(resource)]

    try:
        return asyncio.run(ask())
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

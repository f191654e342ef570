"""Whoever does what a message says takes nothing from a node that the message does not name: random clusters.
Every command of doctor, import, plan, why, of Accepted and of the nodes' reasons is carried out on SIMULATED nodes, one after another. The first seeds are played every time, and PROPERTIES=long plays two thousand."""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

import pytest
from hack.report import PROPERTY
from tests.cli.asking import ask
from tests.cli.fleets import BEFORE, Holdings, Inhabited, Machine, RandomCluster, draw, inhabited
from tests.cli.printed import QUIET, NotPlayed, changes, commands_in, is_open
from tests.embedded.scene import H100
from tests.fakes.virtualtime import run_virtually, virtually
from tests.wording import lacks

from gpusharing.kube.client import GPUNODES, POLICIES
from kubectl_gpusharing.shell.troubles import Trouble

LONG = os.environ.get("PROPERTIES") == "long"
FIRST = int(os.environ.get("SEED", "1"))
SEEDS = range(FIRST, FIRST + (2000 if LONG else 40))
BATCH = 20
STEPS = 3
"""How often somebody reads everything in one cluster, and types one of the commands, or all of an import."""
CLIENTS = re.compile(r"all MPS clients on ([^;]*?) would end")
UNPLAYED = {
    "helm install dra-driver-nvidia-gpu": "NVIDIA's DRA driver is simulated or not",
    "helm install gpu-operator": "there is always a GPU Operator",
    "helm uninstall": "another device plugin is not simulated",
    "helm upgrade dra": "the DRA driver's values are not simulated",
    "helm upgrade nvdp": "NVIDIA's device-plugin chart is not among these clusters",
    "kubectl apply -k deploy/mig-manager": "a mig-manager without the GPU Operator is not among these clusters",
    "kubectl edit": "a person decides what to write",
    "kubectl patch daemonset gpusharing-agent": "tolerations of the agent do not matter to its simulator",
    "kubectl set image": "the images of DaemonSets are not simulated",
}
"""The beginnings of commands, without their options, that the simulators cannot play, and why."""


@dataclass
class Tale:
    happened: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Told:
    verb: str
    text: str
    commands: tuple[str, ...]


async def read(one: Inhabited, random: Random) -> list[Told]:
    """Return the commands of every verb and of every message; why is asked of one node."""
    cluster = one.scene.e.cluster

    async def say(*words: str) -> str:
        try:
            return (await ask(cluster, *words)).out
        except Trouble as trouble:
            return str(trouble)

    told = await ask(cluster, "doctor", "-o", "json")
    found = [Told("doctor", row["message"], (row["command"],)) for row in told.data["symptoms"]]
    imported = re.sub(r"(?m)^# ?", "", await say("import"))
    steps = [one.strip() for one in re.findall(r"(?m)^\d+\. .*:\n(.*)$", imported)]
    found += [Told("import", imported, tuple(step for step in steps if changes(step)))] if steps else []
    texts = [("import", re.sub(r"(?m)^\d+\. .*:\n(.*)$", "", imported))]
    for words in (["plan"], ["why", random.choice(one.fleet.machines).name]):
        texts += [(words[0], text) for text in dict.fromkeys(strings(await say(*words, "-o", "json")))]
    for raw in cluster.objects(POLICIES):
        rows = (raw.get("status") or {}).get("conditions") or ()
        texts += [(row["type"], row["message"]) for row in rows]
    texts += [
        ("node", one.scene.transition(raw["metadata"]["name"]).get("message", "")) for raw in cluster.objects(GPUNODES)
    ]
    return found + [Told(verb, text, (command,)) for verb, text in texts for command in commands_in(text)]


def strings(answer: str) -> Iterator[str]:
    """Yield every text of a JSON document; the lines of a table would be wrapped within commands."""
    todo = [json.loads(answer) if answer.startswith("{") else answer]
    while todo:
        one = todo.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict | list):
            todo += one.values() if isinstance(one, dict) else one


async def live(number: int, tale: Tale) -> None:
    random = Random(number)
    fleet = draw(random)
    async with inhabited(fleet) as one:
        before = one.holdings()
        if fleet.state not in BEFORE:
            await one.player.roll_out()
            await asyncio.sleep(QUIET)
            tale.wrong += compare(one, number, "our chart", "", before, 0)
        one.somebody_divides("after us")
        await asyncio.sleep(QUIET)
        for policy in fleet.policies:
            one.scene.e.apply(policy)
        if fleet.policies:
            await asyncio.sleep(3 * QUIET)
        done: set[tuple[str, ...]] = set()
        for _ in range(STEPS):
            found: dict[tuple[str, ...], Told] = {}
            for told in await read(one, random):
                tale.happened[f"a command of {told.verb}"] += 1
                for command in told.commands:
                    if is_open(command):
                        tale.happened[f"left to a person: {shape(command)}"] += 1
                if told.commands not in done and any(map(changes, told.commands)):
                    found.setdefault(told.commands, told)
            if not found:
                break
            commands = random.choice(sorted(found))
            done.add(commands)
            for command in commands:
                before, mark = one.holdings(), one.scene.mark()
                try:
                    await one.player.play(command)
                except TimeoutError:
                    tale.happened[f"waited for ever: {shape(command)}"] += 1
                    break
                except NotPlayed as error:
                    tale.happened[f"not played: {shape(command)}"] += 1
                    if not str(error).startswith(tuple(UNPLAYED)):
                        tale.wrong.append(f"SEED={number}: add to UNPLAYED, or play: {error}")
                    break
                tale.happened[f"played: {shape(command)}"] += 1
                tale.wrong += compare(one, number, command, found[commands].text, before, mark)


def shape(command: str) -> str:
    words = [word for word in command.split(" -p ")[0].split() if not word.startswith("gpu-")]
    return " ".join(re.sub(r"=.*", "=", word) for word in words)


def compare(one: Inhabited, number: int, command: str, text: str, before: Holdings, mark: int) -> Iterator[str]:
    """Yield what nodes have lost since then, of which the text says nothing."""
    named = {name for names in CLIENTS.findall(text) for name in re.split(r", | and ", names)}
    excused = one.fenced_since(mark) | (one.wanting_mig() if '"strategy":null' in command else set())
    for name, what in before.lost(one.holdings()).items():
        if name not in excused and not (name in named and what == ["a pod"]):
            yield f"SEED={number}: {name} has lost {', '.join(what)} by {command}\n  of: {text}\n{one.fleet}"


@pytest.mark.parametrize("first", SEEDS[::BATCH], ids=lambda first: f"from-{first}")
def test_no_command_takes_anything_that_its_text_does_not_name(
    first: int, record_property: Callable[[str, object], None]
) -> None:
    tale = Tale()
    for number in range(first, min(first + BATCH, SEEDS[-1] + 1)):
        try:
            run_virtually(live(number, tale))
        except Exception as error:
            error.add_note(f"SEED={number}")
            raise
    record_property(PROPERTY, dict(tale.happened))
    print("\n".join(f"{count:5} {what}" for what, count in sorted(tale.happened.items())))
    assert not tale.wrong, "\n".join(tale.wrong)


DIVIDED = Machine("gpu-1", "a", H100, {}, ("1g.10gb",) * 7, when="before us")
OFF = {"migManager": {"enabled": False, "config": {"default": "all-disabled"}}, "mig": {"strategy": "mixed"}}


@virtually
async def test_what_a_node_loses_is_noticed_and_excused_only_if_the_text_names_it() -> None:
    cluster = RandomCluster("everything", OFF, {}, (DIVIDED,), (), {})
    command = (
        """kubectl patch clusterpolicy cluster-policy --type merge -p '{"spec":{"migManager":{"enabled":true}}}'"""
    )
    async with inhabited(cluster) as one:
        before = one.holdings()
        await one.player.play(command)
        (wrong,) = compare(one, 1, command, "all MPS clients on gpu-1 would end", before, 0)
        assert not lacks(wrong, "gpu-1", "nvidia.com/mig-1g.10gb", "14 -> 0", "14 MIG instances")


def test_commands_are_found_in_prose() -> None:
    patch = """kubectl patch clusterpolicy p --type merge -p '{"spec":{"mig":{"strategy":null}}}'"""
    text = f"It is off; run: kubectl label node a b --overwrite k=v && {patch} (helm: --set mig.strategy=)."
    assert [*commands_in(text)] == [f"kubectl label node a b --overwrite k=v && {patch}"]
    assert [*filter(changes, commands_in("First see (kubectl gpusharing import), or kubectl get nodes -L k."))] == []

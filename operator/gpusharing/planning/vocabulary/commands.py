"""Which command may a person paste, which objects does it touch, and what does it take from nodes?

A command that can touch NVIDIA's installation or several nodes cannot be built without its effects, and none can be
built that takes anything from a node which labels set before it cannot keep.
"""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum

from gpusharing.planning.vocabulary.values import value


@value
class Change:
    """What a command, or the operator itself, would change in NVIDIA's installation."""

    fields: tuple[tuple[str, str | bool | None], ...] = ()
    """Fields of ClusterPolicy by path below `spec`, or the same settings of NVIDIA's chart. None removes one."""
    labels: tuple[tuple[str, str | None], ...] = ()
    """Labels that are set on `nodes`. None removes one."""
    restarts: tuple[str, ...] = ()
    """Programs whose pods start anew, by their deploy labels; on all nodes if `nodes` is empty."""
    nodes: tuple[str, ...] = ()


class Loss(StrEnum):
    """What a node would lose by a change of the installation."""

    GPUS = "MIG instances"
    DEVICES = "devices that it advertises"
    CLIENTS = "MPS clients"
    PODS = "pods that use GPUs"
    REPLACED = "devices that its policy is about to replace"


@value
class Effect:
    """What a change of the installation would take from one node (`find_effects`)."""

    node: str
    loss: Loss
    why: str
    """What the node would lose, or why that is unknown, as a clause for people."""
    label: str = ""
    """A label of the node, as KEY=VALUE, with which it would lose nothing. Empty if there is none or it is unknown."""
    known: bool = True
    """Whether it is known that the node would lose something."""
    missing: str = ""
    """The entry that a label of the node names and that the program would not find."""


Effects = tuple[Effect, ...]
_READS = frozenset({"get", "describe", "logs", "auth"})
_OURS = frozenset({"gpunode", "gsp"})
_VALUED = frozenset(
    {"-n", "-p", "-l", "-L", "-c", "-o", "-k", "--namespace", "--type", "--field-selector", "--tail", "--version"}
    | {"--set", "--set-json", "--set-string"}
)
"""Options whose value is another word."""
_PATCHES = frozenset({"annotate", "edit", "label", "rollout", "set", "uncordon"})
_KINDS = {"node": "Nodes", "nodes": "Nodes", "gpunode": "GPUNodes", "gsp": "GPUSharingPolicies"}


@value
class Command:
    """A command as a person types it. CAPITALS are to be filled in."""

    args: tuple[str, ...]
    effects: Effects | None = None
    """What it takes from nodes after `first`. None if such a command cannot take anything from any node."""
    first: tuple["Command", ...] = ()
    """The commands that go first, such as labels that protect nodes."""

    def __post_init__(self) -> None:
        if self.effects is None and not self.is_harmless:
            raise ValueError(f"it is not said what nodes lose by: {self}")
        if not is_safe(self.effects or ()):
            raise ValueError(f"nodes would lose something that nothing protects by: {self}")

    @classmethod
    def of(cls, line: str, *more: str, effects: Effects | None = None) -> "Command":
        """Build a command from words and whole arguments; ValueError without the effects it needs, or if they harm."""
        return cls((*line.split(), *more), effects, label_commands(effects or ()))

    @classmethod
    def if_safe(cls, line: str, *more: str, effects: Effects) -> "Command | None":
        """Build it after the commands that protect nodes by labels. None if these are not enough."""
        return cls.of(line, *more, effects=effects) if is_safe(effects) else None

    def after(self, *others: "Command") -> "Command":
        return Command(self.args, self.effects, (*self.first, *others))

    def __str__(self) -> str:
        return " && ".join([*map(str, self.first), shlex.join(self.args)])

    @property
    def parts(self) -> tuple["Command", ...]:
        """The commands that `&&` joins, in order, each alone."""
        return (*(part for one in self.first for part in one.parts), Command(self.args, self.effects))

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments without options, such as `kubectl label node NAME KEY=VALUE`."""
        valued = (False, *(word in _VALUED for word in self.args))
        return tuple(word for word, of in zip(self.args, valued, strict=False) if not (of or word.startswith("-")))

    @property
    def options(self) -> Mapping[str, str]:
        """The values of options that have one, by name."""
        return {name: value for name, value in zip(self.args, self.args[1:], strict=False) if name in _VALUED}

    @property
    def verb(self) -> str:
        return self.words[1] if len(self.words) > 1 else ""

    @property
    def kind(self) -> str:
        return "node" if self.verb == "uncordon" else "".join(self._target[:1]).partition("/")[0]

    @property
    def names(self) -> tuple[str, ...]:
        rest = self._target[self.verb != "uncordon" :]
        return tuple(word for word in rest if "=" not in word and not word.endswith("-"))

    @property
    def pairs(self) -> Mapping[str, str | None]:
        """The labels or annotations that it sets; None removes one."""
        rest = self._target[1:]
        pairs = (word.partition("=") for word in rest if "=" in word)
        return {key: value for key, _, value in pairs} | {word[:-1]: None for word in rest if word.endswith("-")}

    @property
    def _target(self) -> tuple[str, ...]:
        return self.words[3 if self.verb in ("auth", "rollout", "set") else 2 :]

    @property
    def reads(self) -> bool:
        return self.words[0] == "kubectl" and self.verb in _READS

    @property
    def is_harmless(self) -> bool:
        """Whether no such command can take anything from a node, whatever the state of the cluster."""
        program, kind = self.words[0], self.kind
        if program != "kubectl":
            return False
        if self.reads or self.verb in ("gpusharing", "uncordon"):
            return True
        if self.verb not in ("label", "annotate"):
            return False
        # NVIDIA's programs, and clouds that run a device plugin, follow only labels that name NVIDIA.
        return kind in _OURS or (kind == "node" and not any("nvidia" in key for key in self.pairs))

    @property
    def right(self) -> str:
        """The right that a command which changes something needs, for people, such as `patch Nodes`."""
        verb = "patch" if self.verb in _PATCHES else self.verb
        return f"{verb} {_KINDS.get(self.kind, self.kind)}"


def label_commands(effects: Iterable[Effect]) -> tuple[Command, ...]:
    """Return the commands that protect nodes by labels, as far as labels can."""
    nodes = defaultdict[str, list[str]](list)
    for effect in effects:
        if effect.label:
            nodes[effect.label].append(effect.node)
    return tuple(label_command(names, label) for label, names in sorted(nodes.items()))


def label_command(nodes: Iterable[str], label: str) -> Command:
    """Return the command that sets a label which names what the nodes have already."""
    return Command.of("kubectl label node", *nodes, "--overwrite", label, effects=())


def allow_privileged(namespace: str) -> Command:
    label = "pod-security.kubernetes.io/enforce=privileged"  # it only admits more pods
    return Command.of("kubectl label --overwrite namespace", namespace, label, effects=())


def is_safe(effects: Iterable[Effect]) -> bool:
    """Whether nodes lose nothing but MPS clients and pods that a drain evicts, once `label_commands` have been run."""
    return all(effect.label or effect.loss in (Loss.CLIENTS, Loss.PODS, Loss.REPLACED) for effect in effects)

"""What a person may change about a rollout: each a small patch of one object, found by the verb's own module. Pure.

The operator reads all of them on its next pass; what they mean is its business (`api/names.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gpusharing.api import names
from gpusharing.cli.pools.fleet import Seen
from gpusharing.cli.shell.troubles import Trouble
from gpusharing.kube.client import JSON, Resource
from gpusharing.kube.fence import parse_fence
from gpusharing.kube.raw import section, text, texts, whole


@dataclass(frozen=True, slots=True)
class SteeringWish:
    """What was typed besides verb and name."""

    now: datetime
    """When it was typed."""
    hash: str = ""
    """approve: the plan that was read."""
    when_paused: str = ""
    """pause: what happens to nodes in flight; empty: what the policy says."""
    undo: bool = False
    """skip: take it back."""
    halted: tuple[str, ...] = ()
    """resume: the nodes of the policy that failures keep from starting."""
    resume: str = ""
    """resume: the value of the annotation that the operator asks for; empty: it asks for none."""
    stands: Seen | None = None
    """retry: how the operator sees the node; None: that may not be read."""


@dataclass(frozen=True, slots=True)
class Change:
    """One patch."""

    resource: Resource
    """The kind of the object."""
    name: str
    """Name of the object."""
    body: JSON
    """A JSON merge patch."""
    means: str
    """What follows from it, in a sentence."""
    moves: bool = False
    """Pods may be evicted because of it: it needs confirmation."""

    def as_data(self, *, done: bool) -> dict[str, Any]:
        """For programs."""
        return {"kind": self.resource.plural, "name": self.name, "patch": self.body, "done": done}


@dataclass(frozen=True, slots=True)
class Steered:
    """How one verb is carried out."""

    resource: Resource
    """The kind of the objects that it changes."""
    find: Callable[[JSON, SteeringWish], Change]
    """The patch of an object. Raises Trouble when it would have no effect."""
    lasts: bool = False
    """What a person may set before the operator is installed, which then honours it."""


def decided_on(raw: JSON) -> tuple[str, int, str]:
    """What a person decides about: this very object, the generation of a policy, the change of a node and how far it
    is."""
    recorded = texts(section(raw, "metadata", "annotations")).get(names.ANNOTATION_FENCE, "")
    fence, damage = parse_fence(recorded) if recorded else (None, "")
    stands = f"{fence.op} {fence.stage}" if fence is not None else damage
    return text(raw, "metadata", "uid"), whole(raw, "metadata", "generation"), stands


def as_seen(body: JSON, raw: JSON) -> JSON:
    """The patch, for the object as it was read: one that was written since is refused (Conflict)."""
    metadata = {**section(body, "metadata"), "resourceVersion": text(raw, "metadata", "resourceVersion")}
    return {**body, "metadata": metadata}


def annotation(key: str, value: str) -> JSON:
    """The patch that sets it."""
    return {"metadata": {"annotations": {key: value}}}


def expect_seen(policy: JSON) -> None:
    """Raises Trouble where the operator has not looked at the present generation yet."""
    seen, now = whole(policy, "status", "observedGeneration"), whole(policy, "metadata", "generation")
    if seen < now:
        name = text(policy, "metadata", "name")
        raise Trouble(f"the operator has not looked at generation {now} of {name} yet; try again in a moment")

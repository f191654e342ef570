"""What the GPUs of a pool are divided into, as the agents read it from the driver. Pure; raw JSON as it comes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, section, text, whole


@dataclass(frozen=True, slots=True)
class Slice:
    """One MIG instance on a card."""

    profile: str
    """For example 3g.40gb."""
    start: int
    """In memory units; -1: the agent may not read it."""
    size: int
    """Memory units that it covers; 0: the agent may not read it."""


@dataclass(frozen=True, slots=True)
class Face:
    """How a card looks."""

    product: str
    """The card's product name."""
    units: int
    """Memory units of the whole card; 0: unknown, so nothing can be drawn to scale."""
    slices: tuple[Slice, ...]
    """From the first unit to the last."""
    told: str
    """What the operator calls it, where no instances are on it: `1x full`, `4x shared`."""


@dataclass(frozen=True, slots=True)
class Cards:
    """Cards that look the same."""

    face: Face
    """How they look."""
    gpus: int
    """How many they are."""
    nodes: tuple[str, ...]
    """By name."""


def read_cards(gpunodes: Iterable[JSON]) -> Mapping[str, tuple[Cards, ...]]:
    """By policy: the looks that its cards have, what most of them have first."""
    found: dict[str, dict[Face, list[str]]] = {}
    for raw in gpunodes:
        told = section(raw, "status", "transition")
        faces = found.setdefault(text(told, "policy"), {})
        for face in _faces(raw, text(told, "observed")):
            faces.setdefault(face, []).append(text(raw, "metadata", "name"))
    return {
        policy: tuple(
            Cards(face, len(nodes), tuple(sorted(set(nodes))))
            for face, nodes in sorted(faces.items(), key=lambda item: (-len(item[1]), min(item[1])))
        )
        for policy, faces in found.items()
    }


def _faces(raw: JSON, told: str) -> list[Face]:
    """Of each card of a node."""
    observed = section(raw, "status", "observed")
    units = {text(model, "product"): _units(model) for model in entries(observed, "models")}
    faces = []
    for gpu in entries(observed, "gpus"):
        product = text(gpu, "product")
        slices = tuple(
            sorted(map(_slice, entries(gpu, "instances")), key=lambda one: (one.start, one.profile))
        )
        faces.append(Face(product, units.get(product, 0) if slices else 0, slices, "" if slices else told))
    return faces


def _slice(raw: JSON) -> Slice:
    start = raw.get("start")
    return Slice(text(raw, "profile"), start if isinstance(start, int) else -1, whole(raw, "size"))


def _units(model: JSON) -> int:
    """Where the last instance ends that the card can have."""
    ends = [0]
    for profile in entries(model, "profiles"):
        starts = profile.get("starts")
        found = [one for one in starts if isinstance(one, int)] if isinstance(starts, list) else []
        ends += [one + whole(profile, "size") for one in found]
    return max(ends)

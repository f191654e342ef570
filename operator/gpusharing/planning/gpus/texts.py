"""How does what a GPU has and who uses it stand in a GPUNode's status.observed? The agent writes, kube/ reads."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import get_args

from gpusharing.api.gpunode import HOLDER, INDEXES, MIG, PROFILE, PROGRAM, ComputeMode, GPUStatus
from gpusharing.planning.gpus.cards import Profile
from gpusharing.planning.gpus.geometry import Layout, describe, normalize, parse_profile

_PROFILE, _MIG, _PROGRAM, _HOLDER, _INDEXES = map(re.compile, (PROFILE, MIG, PROGRAM, HOLDER, INDEXES))
_COMPUTE_MODES: dict[str, ComputeMode] = {mode: mode for mode in get_args(ComputeMode)}
_BETWEEN = "; "
_LONGEST_NAME = 512
_MOST_SLICES = 8
"""More than any card has (7)."""


def key_of(uuids: Iterable[str]) -> str:
    """Return a hash of these UUIDs of devices, as 16 hexadecimal digits. It does not depend on their order."""
    return sha256("\n".join(sorted(uuids)).encode(errors="backslashreplace")).hexdigest()[:16]


def write_profile(profile: Profile) -> str:
    number = "" if profile.profile_id is None else f" id={profile.profile_id}"
    starts = ",".join(map(str, profile.starts))
    places = f" placements={{{starts}}}:{profile.size}" if starts else ""
    return f"{profile.name}{number} max={profile.max_count}{places}"


def write_profiles(profiles: Iterable[Profile]) -> str:
    return _BETWEEN.join(map(write_profile, profiles))


def read_profiles(text: str) -> tuple[Profile, ...]:
    """Return the profiles without those that `read_profile` refuses."""
    return tuple(filter(None, map(read_profile, text.split(_BETWEEN))))


def read_profile(text: str) -> Profile | None:
    """Return the profile, or None if its name is not one that mig-parted can read, or no card can have it."""
    if (match := _PROFILE.fullmatch(text)) is None or (parsed := parse_profile(match[1])) is None:
        return None
    (slices, memory_gb, _), number = parsed, match[2]
    if not 0 < slices <= _MOST_SLICES:
        return None
    starts = tuple(dict.fromkeys(map(int, match[4].split(",")))) if match[4] else ()
    return Profile(
        match[1], starts, int(match[5] or 0), int(match[3]), slices, memory_gb, None if number is None else int(number)
    )


def write_mig(mode: str, instances: Sequence[tuple[str, str]]) -> str:
    """Return the field `mig` of a GPU in this MIG mode, with the profile and the device's UUID of each instance."""
    if mode != "Enabled" or not instances:
        return mode
    counts = normalize(Counter(profile for profile, _ in instances))
    return f"{describe(counts)}@{key_of(uuid for _, uuid in instances)}"


def read_mig(text: str) -> tuple[Layout | None, str]:
    """Return the layout, and the hash of its devices, which is empty without instances.

    The layout is None with MIG off, and for a text of another form.
    """
    if text == "Enabled":
        return (), ""
    if (match := _MIG.fullmatch(text)) is None or match[1] is None:
        return None, ""
    # A profile's name may contain +, but no count follows there.
    pairs = (part.split("x", 1) for part in re.split(r"\+(?=[0-9]+x)", match[1]))
    return normalize({name: int(count) for count, name in pairs}), match[2]


def read_layout(gpu: GPUStatus) -> tuple[Layout | None, str]:
    """Return what `read_mig` does, with the parts of instances that are not one full compute instance in the layout.

    With such a part the layout equals none that a policy can want, as in mig-parted, which counts compute instances
    (v0.15.1 pkg/mig/config/config.go, GetMigConfig).
    """
    layout, key = read_mig(gpu.mig)
    if layout is None or not gpu.partial_instances:
        return layout, key
    parts = Counter(name for one in gpu.partial_instances for name in one.contents)
    return normalize(parts + Counter(dict(layout))), key


def write_compute_modes(modes: Sequence[ComputeMode]) -> str:
    """Return the modes other than Default, with the indexes of their GPUs, as in `0-3 ExclusiveProcess`."""
    rare = sorted(set(modes) - {"Default"})
    return _BETWEEN.join(f"{write_indexes(n for n, one in enumerate(modes) if one == mode)} {mode}" for mode in rare)


def read_compute_modes(text: str) -> dict[int, ComputeMode]:
    """Return the mode of each GPU of which the text names one: Unknown, and not Default, for one that we do not know."""
    parts = (part.partition(" ") for part in text.split(_BETWEEN))
    return {index: _COMPUTE_MODES.get(mode, "Unknown") for gpus, _, mode in parts for index in read_indexes(gpus)}


def write_programs(programs: Iterable[tuple[str, Iterable[int]]]) -> str:
    """Return the GPUs that each program uses, with its name if it has one, as in `0-3,5 python3; 6`."""
    # No name may become another one by what is cut or replaced: that of an MPS daemon says that a GPU is idle.
    found = []
    for name, indexes in programs:
        shown = "".join(char if char.isprintable() and char != ";" else "?" for char in name)[:_LONGEST_NAME]
        found.append(f"{write_indexes(indexes)} {shown}" if shown else write_indexes(indexes))
    return _BETWEEN.join(found)


def read_programs(text: str) -> list[tuple[str, set[int]]]:
    """Return the name of each program, empty if it has none, and the indexes of its GPUs."""
    return [_read_program(part) for part in text.split(_BETWEEN)] if text else []


def _read_program(text: str) -> tuple[str, set[int]]:
    if (match := _PROGRAM.fullmatch(text)) is None:
        return "", set(range(1000))  # of any GPU, so that none counts as idle
    return match[2] or "", read_indexes(match[1])


def write_indexes(indexes: Iterable[int]) -> str:
    """Return indexes of GPUs, with ranges, as in `0-3,5`."""
    known = sorted(set(indexes))
    breaks = [0, *(n for n, (one, other) in enumerate(pairwise(known), 1) if other != one + 1), len(known)]
    spans = [known[begin:end] for begin, end in pairwise(breaks) if begin < end]
    return ",".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def write_holders(pods: Iterable[tuple[str, str, Iterable[int], str]]) -> str:
    """Return a part for each set of GPUs; `pods` are name, UID, GPUs (empty if unknown) and a digest of the devices."""
    parts: dict[str, str] = {}
    for pod, uid, indexes, devices in pods:
        gpus = write_indexes(indexes) or "?"
        parts[gpus] = f"{parts.get(gpus, gpus)} {pod} {uid or '?'} {devices}"
    return _BETWEEN.join(part for _, part in sorted(parts.items()))


def read_holders(text: str) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    """Yield each pod as `write_holders` got it; a part of another form is a pod of which nothing is known."""
    for part in text.split(_BETWEEN) if text else ():
        if (match := _HOLDER.fullmatch(part)) is None:
            yield part, "", (), ""
            continue
        gpus, words = match[1], match[2].split(" ")[1:]
        indexes = tuple(sorted(read_indexes(gpus))) if gpus != "?" else ()
        for pod, uid, devices in zip(words[::3], words[1::3], words[2::3], strict=True):
            yield pod, uid.replace("?", ""), indexes, devices


def read_indexes(text: str) -> set[int]:
    """Return what `write_indexes` got; empty for a text of another form."""
    if not _INDEXES.fullmatch(text):
        return set()
    ends = (part.partition("-") for part in text.split(","))
    return {index for begin, _, end in ends for index in range(int(begin), int(end or begin) + 1)}

"""What does a mig-parted file say, ours or another, and what does a name mean on a node's GPUs?

Grammar: docs/design/nvidia.md#a10 (mig-parted api/spec/v1). The file is always rendered as a whole
(docs/design/transition.md#mig-file). Names of our own entries never change their meaning.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import yaml

from gpusharing.api.nearest import did_you_mean
from gpusharing.api.policy import MigLayout
from gpusharing.planning.gpus.cards import Profile, find_card
from gpusharing.planning.gpus.geometry import Layout, generated_layouts, normalize
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.views import CardView, GpuView
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.wanted.pluginconfig import (
    BadField,
    Unreadable,
    dump_yaml,
    is_named_after,
    is_whole,
    parse_yaml,
)

MIG_KEY = "config.yaml"
"""The key of mig-parted's file in a ConfigMap (docs/design/nvidia.md#a10)."""
ALL_DISABLED = "all-disabled"
"""Name of the configuration that switches MIG off on all GPUs."""
Entry = list[dict[str, Any]]
"""The value of one named configuration: a list of rows, as parsed from YAML."""
_FIELDS = frozenset({"device-filter", "devices", "mig-enabled", "mig-devices"})
_TOP = ("version", "mig-configs")
_ATTRIBUTE = r"[A-Za-z](?:[A-Za-z0-9.]*[A-Za-z0-9])?"
_PROFILE = re.compile(
    r"(?!.{100})"  # no card has such a long name, and searching it for repeated attributes would take minutes
    r"(?!.*[+,-]([^,]+),(?:.*,)?\1(?:,|$))"  # no attribute twice
    r"(?:[0-9]{1,18}c\.)?[0-9]{1,18}g\.[0-9]{1,18}gb"
    rf"(?:[+-]{_ATTRIBUTE}(?:,{_ATTRIBUTE})*)?"
)
"""Profile names that go-nvlib v0.8.1 accepts (pkg/nvlib/device/mig_profile.go, parseMigProfile)."""
_FILTER = re.compile(r"0x[0-9A-Fa-f]{1,8}(?::0x[0-9A-Fa-f]{1,8})?")


def entry_of(layouts: Iterable[MigLayout]) -> Entry:
    return [
        {
            "devices": "all" if layout.devices is None else list(layout.devices),
            "mig-enabled": bool(layout.profiles),
            **({"mig-devices": dict(sorted(layout.profiles.items()))} if layout.profiles else {}),
        }
        for layout in layouts
    ]


def entry_text(entry: Entry) -> str:
    return yaml.safe_dump(entry, sort_keys=True)


def render(entries: Mapping[str, Entry]) -> str:
    return dump_yaml({"version": "v1", "mig-configs": {name: entries[name] for name in sorted(entries)}})


@lru_cache(maxsize=256)
def parse(text: str) -> Mapping[str, Entry]:
    """Return all entries of a readable file by name, even those that mig-parted would refuse.

    The result is cached and must not be changed.
    """
    try:
        return {name: entry for name, entry in _configs(text, any_version=True).items() if _is_entry(entry)}
    except Unreadable:
        return {}


def find_flaws(text: str) -> tuple[BadField, ...]:
    """Return what makes mig-parted refuse a file that is not empty, or the operator leave out an entry of it."""
    if not text:
        return ()
    try:
        entries, document = _configs(text), parse_yaml(text)
    except Unreadable as error:
        return (BadField("", str(error)),)
    known = document if isinstance(document, dict) else {}
    flaws = [] if "version" in known else [("", "it has no version; add version: v1")]
    for name in map(str, known):
        if name not in _TOP:
            flaws.append((name, f"mig-parted knows no such field{did_you_mean(name, _TOP)}"))
    if not entries:
        flaws.append(("mig-configs", "it has no entries"))
    for name, entry in entries.items():
        flaws += [(f"mig-configs.{name}{path}", why) for path, why in _find_faults(entry)]
    return tuple(BadField.of(path, why) for path, why in flaws)


def _configs(text: str, *, any_version: bool = False) -> dict[str, Any]:
    document = parse_yaml(text)
    configs = document.get("mig-configs") if isinstance(document, dict) else None
    if not isinstance(configs, dict):
        raise Unreadable("it has no mig-configs map")
    if isinstance(document, dict) and document.get("version", "v1") != "v1" and not any_version:
        raise Unreadable(f"its version is {document['version']}, but mig-parted reads only v1")
    return {
        # A bare `off` as a name becomes `false`, as for mig-parted, which converts YAML to JSON.
        str(name).lower() if isinstance(name, bool) else str(name): entry
        for name, entry in configs.items()
    }


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and all(isinstance(row, dict) for row in entry)


@lru_cache(maxsize=64)
def sound_entries(text: str) -> Mapping[str, Entry]:
    """Return those entries of `parse` that mig-parted accepts. The result must not be changed."""
    return {name: entry for name, entry in parse(text).items() if not any(_find_faults(entry))}


@lru_cache(maxsize=64)
def lasting_entries(text: str) -> Mapping[str, Entry]:
    """Return the entries of `parse` whose names contain the hash of their content. The result must not be changed."""
    return {name: entry for name, entry in parse(text).items() if is_named_after(entry_text(entry), name)}


@lru_cache(maxsize=64)
def is_rendered(text: str) -> bool:
    return bool(text) and text == render(sound_entries(text))


@lru_cache(maxsize=64)
def parse_admin(text: str) -> tuple[Mapping[str, Entry], str]:
    """Return the entries of an admin's file that mig-parted would accept, and why others cannot be used.

    A missing version and unknown keys outside the entries are no problem, because the operator renders the file itself.
    """
    if not text:
        return {}, ""
    try:
        entries = _configs(text)
    except Unreadable as error:
        return {}, str(error)
    bad = {name: why for name, entry in sorted(entries.items()) for _, why in [*_find_faults(entry)][:1]}
    problem = some([f"entry {name}: {why}" for name, why in bad.items()])
    return {name: entry for name, entry in entries.items() if name not in bad}, problem


def _find_faults(entry: object) -> Iterator[tuple[str, str]]:
    """Yield the path, such as `[0].devices`, and why mig-parted would refuse the row there on any hardware."""
    if not isinstance(entry, list) or not _is_entry(entry):
        yield "", "it is not a list of maps"
    elif not entry:
        yield "", "it is an empty list"
    else:
        for index, row in enumerate(entry):
            if (fault := _find_row_fault(row)) is not None:
                yield f"[{index}].{fault[0]}", fault[1]


def _find_row_fault(row: Mapping[str, Any]) -> tuple[str, str] | None:
    # A misspelled field also leaves the right one missing, so the typo comes first.
    if (unknown := min(map(str, row.keys() - _FIELDS), default=None)) is not None:
        return unknown, f"unknown field {unknown}{did_you_mean(unknown, _FIELDS)}"
    devices, enabled, counts = (row.get(name) for name in ("devices", "mig-enabled", "mig-devices"))
    if devices != "all" and not (isinstance(devices, list) and all(map(is_whole, devices))):
        return "devices", "devices is neither all nor a list of GPU indexes"
    if type(enabled) is not bool:
        return "mig-enabled", "mig-enabled is neither true nor false"
    if enabled and not isinstance(counts, dict):
        return "mig-devices", "mig-enabled needs mig-devices"
    if counts and not enabled:  # it is impossible to tell which of the two was meant
        return "mig-devices", "mig-devices needs mig-enabled"
    if not isinstance(counts, dict | None):
        return "mig-devices", "mig-devices is not a map of profiles and counts"
    for name, count in (counts or {}).items():
        if not _PROFILE.fullmatch(str(name)) or not is_whole(count) or count < 0:
            return f"mig-devices.{name}", f"{name}: {count} in mig-devices is not a profile with a count"
    if counts and not any(counts.values()):
        return "mig-devices", "all counts in mig-devices are 0"
    for item in _filters(row):  # YAML reads an id without quotes as a number
        if not isinstance(item, str) or not _FILTER.fullmatch(item):
            example = "is not a PCI device id in quotes, for example '0x233010DE'"
            return "device-filter", f"device-filter {item} {example}"
    return None


def _filters(row: Mapping[str, Any]) -> list[Any]:
    wanted = row.get("device-filter")
    if wanted is None or wanted == "":
        return []
    return wanted if isinstance(wanted, list) else [wanted]


def resolve_name(name: str, node: str, gpus: Sequence[CardView], stack: StackView) -> tuple[Layout | None, ...] | str:
    """Return the layout that the mig.config value `name` gives each GPU of the node, or a clause that says why none."""
    if not stack.serves_our_mig_file:
        generated = parse(stack.generated_mig_file(node))
        if not generated:
            return f"ConfigMap {node}-mig-config, where mig-manager lists its configurations, does not exist"
        if name not in generated:
            return f"mig-manager on {node} has only {', '.join(sorted(generated))}"
        return resolve(generated[name], gpus)
    admins, problem = parse_admin(stack.admin_mig_file)
    for entries in (admins, parse(stack.mig_file)):
        if entry := entries.get(name):
            return resolve(entry, gpus)
    meaning = well_known(gpus, name)
    if isinstance(meaning, str) and problem:
        return f"{meaning}; in the ConfigMap with your own entries, {problem}"
    return meaning


def resolve(entry: Entry, gpus: Sequence[CardView]) -> tuple[Layout | None, ...] | str:
    """Return the layout that an entry gives each of `gpus`, or which of them no row covers.

    The last row counts. mig-parted's assert never succeeds on a GPU that no row covers (R6).
    """
    layouts: dict[int, Layout | None] = {}
    for row in entry:
        layout, devices = None, row.get("mig-devices")
        if row.get("mig-enabled"):
            counts = devices.items() if isinstance(devices, dict) else ()
            layout = normalize({str(name): one for name, one in counts if type(one) is int and one > 0})
        layouts |= {gpu.index: layout for gpu in gpus if _covers(row, gpu)}
    if missing := [gpu for gpu in gpus if gpu.index not in layouts]:
        why = f"it does not cover GPU {', '.join(str(gpu.index) for gpu in missing)}"
        unknown = sorted({gpu.product for gpu in missing if not _identifiers(gpu.product)})
        if not unknown or not any(map(_filters, entry)):
            return why
        ids = f"the operator does not know the PCI device ids of {', '.join(unknown)}"
        return f"{why}, because {ids}; use spec.mig.layouts"
    return tuple(layouts[gpu.index] for gpu in gpus)


def outcome(entry: Entry, gpus: Sequence[GpuView]) -> tuple[Layout | None, ...] | str:
    """Return the layouts that mig-parted leaves, or why they are unknown; it skips GPUs without a row (a.8)."""
    if any(map(_filters, entry)) and not all(_identifiers(gpu.product) for gpu in gpus):
        return resolve(entry, gpus)
    given = [resolve(entry, [gpu]) for gpu in gpus]
    return tuple(gpu.layout if isinstance(one, str) else one[0] for gpu, one in zip(gpus, given, strict=True))


def _covers(row: Mapping[str, Any], gpu: CardView) -> bool:
    devices = row.get("devices")
    if devices != "all" and not (isinstance(devices, list) and gpu.index in devices):
        return False
    filters = _filters(row)
    if not filters:
        return True
    ours = {identifier.lower() for identifier in _identifiers(gpu.product)}
    return any(str(item).split(":")[0].lower() in ours for item in filters)


_generated = lru_cache(maxsize=64)(generated_layouts)


def well_known(gpus: Sequence[CardView], name: str) -> tuple[Layout | None, ...] | str:
    """Return the layout that a name of mig-manager's own gives each GPU (a.10), or a clause that says why none."""
    layouts: list[Layout | None] = []
    profiles, generated = None, {}
    for gpu in gpus:
        if gpu.profiles is not profiles:
            profiles, generated = gpu.profiles, _generated(gpu.profiles)
        if not generated:
            return f"no MIG profiles of {gpu.product} are known"
        if name not in generated:
            return f"{gpu.product} has only {', '.join(sorted(generated))}"
        layouts.append(generated[name])
    return tuple(layouts)


def well_known_entries(models: Mapping[str, Sequence[CardView]]) -> dict[str, Entry]:
    """Return the entries for NVIDIA's well-known names on the card models that are present, each by its first GPU.

    A name that means the same on all models gets one row. So does one that means the same on those that have it, if the
    PCI device ids of one of these are unknown. Otherwise each model with known ids gets a row, limited to its ids. The
    entries are cached and must not be changed.
    """
    return {**_well_known_entries(tuple((name, models[name][0].profiles) for name in sorted(filter(None, models))))}


@lru_cache(maxsize=64)
def _well_known_entries(present: tuple[tuple[str, tuple[Profile, ...]], ...]) -> Mapping[str, Entry]:
    meanings: dict[str, list[tuple[str, Layout | None]]] = {}
    for product, profiles in present:
        for name, layout in _generated(profiles).items():
            meanings.setdefault(name, []).append((product, layout))
    meanings.pop(ALL_DISABLED, None)
    entries: dict[str, Entry] = {ALL_DISABLED: [{"devices": "all", "mig-enabled": False}]}
    for name, rows in sorted(meanings.items()):
        entry = [_row(list(ids), layout) for product, layout in rows if (ids := _identifiers(product))]
        alone = len(rows) == len(present) or len(entry) < len(rows)
        if alone and len({layout for _, layout in rows}) == 1:
            entry = [_row(None, rows[0][1])]
        if entry:
            entries[name] = entry
    return entries


def _identifiers(product: str) -> Sequence[str]:
    card = find_card(product)
    return card.pci_device_ids if card else ()


def _row(device_filter: list[str] | None, layout: Layout | None) -> dict[str, Any]:
    row: dict[str, Any] = {"device-filter": device_filter} if device_filter else {}
    row |= {"devices": "all", "mig-enabled": layout is not None}
    if layout is not None:
        row["mig-devices"] = dict(layout)
    return row

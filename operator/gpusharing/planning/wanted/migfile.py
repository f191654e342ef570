"""The mig-parted file: renders our entries, parses those of others, and finds what a configuration name means on the
GPUs of a node.

Grammar: docs/design/nvidia.md#a10 (mig-parted api/spec/v1). The file is always rendered as a whole
(docs/design/transition.md#mig-file). Names of our own entries contain a hash of their content and never change their
meaning.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import yaml

from gpusharing.api.nearest import did_you_mean
from gpusharing.api.policy import MigLayout
from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.gpus.geometry import Layout, generated_layouts, normalize
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import CardView
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.pluginconfig import Flaw, is_named_after
from gpusharing.planning.wanted.yamltext import Unreadable, dump_yaml, is_whole, parse_yaml

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
    """Return the mig-parted entry for the layouts of a policy, with one row for each layout, in their order. A row for
    a layout without profiles switches MIG off."""
    return [
        {
            "devices": "all" if layout.devices == "all" else list(layout.devices),
            "mig-enabled": bool(layout.profiles),
            **({"mig-devices": dict(sorted(layout.profiles.items()))} if layout.profiles else {}),
        }
        for layout in layouts
    ]


def entry_text(entry: Entry) -> str:
    """Return one entry as YAML, from which its hash is computed. Equal entries give equal YAML."""
    return yaml.safe_dump(entry, sort_keys=True)


def render(entries: Mapping[str, Entry]) -> str:
    """Return a whole mig-parted file as YAML, with the entries sorted by name."""
    configs = {name: entries[name] for name in sorted(entries)}
    return dump_yaml({"version": "v1", "mig-configs": configs})


@lru_cache(maxsize=256)
def parse(text: str) -> Mapping[str, Entry]:
    """Return all entries of a file by name, including those that mig-parted would refuse, whatever the version of the
    file. Values that are not lists of maps are left out. Empty if the file is not valid YAML or has no map
    mig-configs. The result is cached and must not be changed."""
    try:
        return {name: entry for name, entry in _configs(text, any_version=True).items() if _is_entry(entry)}
    except Unreadable:
        return {}


def find_flaws(text: str) -> tuple[Flaw, ...]:
    """Return what makes mig-parted refuse a file, or the operator leave out an entry of it: what is wrong with the file
    itself (no version, an unknown field or no entries), then the faults of each entry, at most one for each row. Empty
    for a good file and for an empty string. If the file cannot be read, the only flaw says so."""
    if not text:
        return ()
    try:
        entries, document = _configs(text), parse_yaml(text)
    except Unreadable as error:
        return (Flaw("", str(error)),)
    known = document if isinstance(document, dict) else {}
    flaws = [] if "version" in known else [Flaw("", "it has no version; add version: v1")]
    for name in known:
        if name not in _TOP:
            flaws.append(Flaw(str(name), f"mig-parted knows no such field{did_you_mean(str(name), _TOP)}"))
    if not entries:
        flaws.append(Flaw("mig-configs", "it has no entries"))
    for name, entry in entries.items():
        at = f"mig-configs.{name}"
        flaws += [Flaw(f"{at}{flaw.path}", flaw.why) for flaw in _find_in_entry(entry)]
    return tuple(flaws)


def _configs(text: str, *, any_version: bool = False) -> dict[str, Any]:
    """Return the map mig-configs of a file, with all names as strings. A bare `off` as a name becomes `false`, as for
    mig-parted, which converts YAML to JSON.

    Raises Unreadable if the text is not valid YAML or has no such map, or, unless `any_version`, if it names another
    version than v1. A missing version counts as v1.
    """
    document = parse_yaml(text)
    configs = document.get("mig-configs") if isinstance(document, dict) else None
    if not isinstance(configs, dict):
        raise Unreadable("it has no mig-configs map")
    if isinstance(document, dict) and document.get("version", "v1") != "v1" and not any_version:
        raise Unreadable(f"its version is {document['version']}, but mig-parted reads only v1")
    return {
        str(name).lower() if isinstance(name, bool) else str(name): entry for name, entry in configs.items()
    }


def _is_entry(entry: object) -> bool:
    """Whether the value is a list of maps; the list may be empty."""
    return isinstance(entry, list) and all(isinstance(row, dict) for row in entry)


@lru_cache(maxsize=64)
def sound_entries(text: str) -> Mapping[str, Entry]:
    """Return the entries of a file by name, whatever its version, without those that would make mig-parted refuse the
    whole file. Empty if the file is not valid YAML or has no map `mig-configs`. The result is cached and must not be
    changed."""
    return {name: entry for name, entry in parse(text).items() if not any(_find_in_entry(entry))}


@lru_cache(maxsize=64)
def lasting_entries(text: str) -> Mapping[str, Entry]:
    """Return those entries of a file, by name, whose names contain the hash of their content, so that each name can
    have only one meaning. The result is cached and must not be changed."""
    return {name: entry for name, entry in parse(text).items() if is_named_after(entry_text(entry), name)}


@lru_cache(maxsize=64)
def is_rendered(text: str) -> bool:
    """Whether the file is byte for byte what `render` returns for its sound entries. False for an empty text, and for
    a file with an entry that mig-parted refuses."""
    return bool(text) and text == render(sound_entries(text))


@value
class AdminFile:
    """The usable content of an admin's own mig-parted file."""

    entries: Mapping[str, Entry]
    """The entries that mig-parted would accept, by name."""
    problem: str = ""
    """Why the other entries cannot be used, as a clause for people. Empty if all can be used."""


@lru_cache(maxsize=64)
def parse_admin(text: str) -> AdminFile:
    """Return the entries of an admin's file that mig-parted would accept, and a problem that names the first three of
    the others, in the order of their names. One bad entry would make mig-parted refuse the whole file on every node. If
    the file as a whole cannot be read, there are no entries, and the problem says why. A missing version and unknown
    keys outside the entries are no problem, because the operator renders the file itself. An empty string gives no
    entries and no problem."""
    if not text:
        return AdminFile({})
    try:
        entries = _configs(text)
    except Unreadable as error:
        return AdminFile({}, str(error))
    bad = {name: flaw for name, entry in sorted(entries.items()) for flaw in [*_find_in_entry(entry)][:1]}
    problem = some([f"entry {name}: {flaw.why}" for name, flaw in bad.items()])
    return AdminFile({name: entry for name, entry in entries.items() if name not in bad}, problem)


def _find_in_entry(entry: object) -> Iterator[Flaw]:
    """Yield why mig-parted would refuse the entry on any hardware (docs/design/nvidia.md#a10): that it is no list of
    maps or an empty list, else the first fault of each row. The paths begin at the entry, such as `[0].devices`; the
    path of the entry itself is empty."""
    if not isinstance(entry, list) or not _is_entry(entry):
        yield Flaw("", "it is not a list of maps")
    elif not entry:
        yield Flaw("", "it is an empty list")
    else:
        for index, row in enumerate(entry):
            flaw = next((flaw for fault in ROW_FAULTS if (flaw := fault(row))), None)
            if flaw is not None:
                yield Flaw(f"[{index}].{flaw.path}", flaw.why)


def _unknown_field(row: Mapping[str, Any]) -> Flaw | None:
    """Return a flaw about the alphabetically first unknown field of the row, or None if there is none. This is checked
    first, because a misspelled field also leaves the right one missing, and this flaw shows the typo."""
    name = next(iter(sorted(map(str, row.keys() - _FIELDS))), None)
    return None if name is None else Flaw(name, f"unknown field {name}{did_you_mean(name, _FIELDS)}")


def _bad_devices(row: Mapping[str, Any]) -> Flaw | None:
    """Return a flaw if `devices` is neither `all` nor a list of whole numbers, else None. An empty list and negative
    numbers pass. A boolean does not, although it is an int in Python."""
    devices = row.get("devices")
    if devices == "all" or (isinstance(devices, list) and all(map(is_whole, devices))):
        return None
    return Flaw("devices", "devices is neither all nor a list of GPU indexes")


def _bad_switch(row: Mapping[str, Any]) -> Flaw | None:
    """Return a flaw if mig-enabled is not a boolean, else None. The next two checks rely on this one."""
    if type(row.get("mig-enabled")) is bool:
        return None
    return Flaw("mig-enabled", "mig-enabled is neither true nor false")


def _no_instances(row: Mapping[str, Any]) -> Flaw | None:
    """Return a flaw if MIG is on and mig-devices is not a map, else None. An empty map is valid; it means MIG without
    instances."""
    wrong = row.get("mig-enabled") and not isinstance(row.get("mig-devices"), dict)
    return Flaw("mig-devices", "mig-enabled needs mig-devices") if wrong else None


def _instances_without_mig(row: Mapping[str, Any]) -> Flaw | None:
    """Return a flaw if the row has a mig-devices that is not empty but does not switch MIG on, else None. It is
    impossible to tell which of the two was meant."""
    wrong = row.get("mig-devices") and not row.get("mig-enabled")
    return Flaw("mig-devices", "mig-devices needs mig-enabled") if wrong else None


def _bad_instances(row: Mapping[str, Any]) -> Flaw | None:
    """Return a flaw if mig-devices is not a map, if an item of it is not a profile name with a count of at least 0
    (the first is named), or if it has items but all counts are 0. None otherwise, also if mig-devices is missing,
    null or an empty map. It is not checked whether any card has the profile."""
    counts = row.get("mig-devices")
    if counts is None:
        return None
    if not isinstance(counts, dict):
        return Flaw("mig-devices", "mig-devices is not a map of profiles and counts")
    for name, count in counts.items():
        if not _PROFILE.fullmatch(str(name)) or not is_whole(count) or count < 0:
            why = f"{name}: {count} in mig-devices is not a profile with a count"
            return Flaw(f"mig-devices.{name}", why)
    none = counts and not any(counts.values())
    return Flaw("mig-devices", "all counts in mig-devices are 0") if none else None


def _bad_filter(row: Mapping[str, Any]) -> Flaw | None:
    """Return a flaw about the first device-filter that is not a PCI device id as a string, or None if there is none.
    YAML reads an id without quotes as a number."""
    for item in _filters(row):
        if not isinstance(item, str) or not _FILTER.fullmatch(item):
            why = f"device-filter {item} is not a PCI device id in quotes, for example '0x233010DE'"
            return Flaw("device-filter", why)
    return None


ROW_FAULTS = (
    _unknown_field,
    _bad_devices,
    _bad_switch,
    _no_instances,
    _instances_without_mig,
    _bad_instances,
    _bad_filter,
)
"""All checks of a row, in order; the first fault is reported."""


def _filters(row: Mapping[str, Any]) -> list[Any]:
    """Return the PCI device ids that the row is limited to, not validated. Empty if it applies to every card."""
    wanted = row.get("device-filter")
    if wanted is None or wanted == "":
        return []
    return wanted if isinstance(wanted, list) else [wanted]


def resolve_name(
    name: str, node: str, gpus: Sequence[CardView], stack: StackView
) -> tuple[Layout | None, ...] | str:
    """Return the layout that the mig.config value `name` gives each GPU of the node (None switches MIG off), or a
    clause for people that says why it gives none. If mig-manager reads our file, the admin's entries, our file and
    NVIDIA's well-known names are searched in this order, and an entry without rows counts as absent. Otherwise only the
    file that mig-manager generated for the node is searched. If none of the three has the name, the clause also names
    the problem of the admin's file, if there is one."""
    if not stack.serves_our_mig_file:
        return _generated_name(name, node, gpus, stack.generated_mig_file(node))
    admin = parse_admin(stack.admin_mig_file)
    for entries in (admin.entries, parse(stack.mig_file)):
        if entry := entries.get(name):
            return resolve(entry, gpus)
    meaning = well_known(gpus, name)
    if isinstance(meaning, str) and admin.problem:
        return f"{meaning}; in the ConfigMap with your own entries, {admin.problem}"
    return meaning


def _generated_name(
    name: str, node: str, gpus: Sequence[CardView], generated: str
) -> tuple[Layout | None, ...] | str:
    """Return the layout of each GPU, None for MIG off, according to the file that mig-manager generated for the node,
    or a clause for people that says why the file gives none. A file without entries counts as missing."""
    entries = parse(generated)
    if not entries:
        return f"ConfigMap {node}-mig-config, where mig-manager lists its configurations, does not exist"
    if name not in entries:
        return f"mig-manager on {node} has only {', '.join(sorted(entries))}"
    return resolve(entries[name], gpus)


def resolve(entry: Entry, gpus: Sequence[CardView]) -> tuple[Layout | None, ...] | str:
    """Return the layout that an entry gives each GPU, in the order of `gpus`, or a clause for people that names the
    GPUs which no row covers. If several rows cover a GPU, the last one counts. A layout is None if the row that
    counts does not switch MIG on.

    mig-parted's assert never succeeds on a GPU that no row covers, so such an entry is unusable (R6).
    """
    layouts: dict[int, Layout | None] = {}
    for row in entry:
        layout = normalize(_counts(row)) if row.get("mig-enabled") else None
        layouts |= {gpu.index: layout for gpu in gpus if _covers(row, gpu)}
    missing = [gpu for gpu in gpus if gpu.index not in layouts]
    if missing:
        return (
            f"it does not cover GPU {', '.join(str(gpu.index) for gpu in missing)}{_unlisted(entry, missing)}"
        )
    return tuple(layouts[gpu.index] for gpu in gpus)


def _unlisted(entry: Entry, gpus: Sequence[CardView]) -> str:
    """Return the end of a sentence about GPUs that the entry does not cover: that the PCI device ids of some of them
    are unknown, and what to use instead. Empty if all are known, or if no row has a device-filter."""
    unknown = sorted({gpu.product for gpu in gpus if not _identifiers(gpu.product)})
    if not unknown or not any(map(_filters, entry)):
        return ""
    return f", because the operator does not know the PCI device ids of {', '.join(unknown)}; use spec.mig.layouts"


def _counts(row: Mapping[str, Any]) -> dict[str, int]:
    """Return the profiles of a row with their counts. Counts that are not positive integers are left out."""
    devices = row.get("mig-devices")
    if not isinstance(devices, dict):
        return {}
    return {str(name): count for name, count in devices.items() if type(count) is int and count > 0}


def _covers(row: Mapping[str, Any], gpu: CardView) -> bool:
    """Whether the row applies to the GPU, according to its index and, if the row has a device-filter, its PCI device id
    too. A row whose `devices` is neither `all` nor a list applies to no GPU. The part of a device-filter after a colon
    is ignored. A row with a device-filter does not apply to a card whose ids are not in our table."""
    devices = row.get("devices")
    if devices != "all" and not (isinstance(devices, list) and gpu.index in devices):
        return False
    filters = _filters(row)
    if not filters:
        return True
    ours = {identifier.lower() for identifier in _identifiers(gpu.product)}
    return any(str(item).split(":")[0].lower() in ours for item in filters)


_generated = lru_cache(maxsize=64)(generated_layouts)
"""`generated_layouts` with a cache."""


def well_known(gpus: Sequence[CardView], name: str) -> tuple[Layout | None, ...] | str:
    """Return the layout (None for MIG off) that a configuration name gives each of `gpus`, in their order, if
    mig-manager generates it from the hardware (a.10). If mig-manager does not generate this name for one of the cards,
    return a clause for people instead, which lists the names that the first such card has, if any."""
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
    """Return the entries for NVIDIA's well-known names on the card models that are present. all-disabled is always the
    first of them; the others are sorted by name. `models` maps each product to a non-empty sequence of GPUs; only the
    first GPU of each is used.

    A name that means the same on all models gets one row. So does a name that means the same on all models that have
    it, if the PCI device ids of one of these are unknown. Any other name gets one row for each model that has it,
    limited to the ids of that model. A model whose ids are unknown is left out of such entries, and an entry without
    rows is left out too. GPUs without a product are ignored.
    """
    present = sorted(filter(None, models))
    meanings: dict[str, list[tuple[str, Layout | None]]] = {}
    for product in present:
        for name, layout in _generated(models[product][0].profiles).items():
            meanings.setdefault(name, []).append((product, layout))
    entries: dict[str, Entry] = {ALL_DISABLED: [{"devices": "all", "mig-enabled": False}]}
    for name, rows in sorted(meanings.items()):
        if name == ALL_DISABLED:
            continue
        entry = _filtered(rows)
        alone = len(rows) == len(present) or len(entry) < len(rows)
        if alone and len({layout for _, layout in rows}) == 1:
            entry = [_row(None, rows[0][1])]
        if entry:
            entries[name] = entry
    return entries


def _filtered(rows: Sequence[tuple[str, Layout | None]]) -> Entry:
    """Return an entry with one row for each pair of product and layout, limited to the PCI device ids of the product.
    Products whose ids are unknown are left out, so the entry may be empty."""
    entry: Entry = []
    for product, layout in rows:
        if identifiers := _identifiers(product):
            entry.append(_row(list(identifiers), layout))
    return entry


def _identifiers(product: str) -> Sequence[str]:
    """Return the PCI device ids of the product. Empty if they are not in our table."""
    card = find_card(product)
    return card.pci_device_ids if card else ()


def _row(device_filter: list[str] | None, layout: Layout | None) -> dict[str, Any]:
    """Return the row of an entry that gives this layout to the GPUs with the PCI device ids in `device_filter`, or to
    all GPUs if that is None or empty. A layout of None switches MIG off."""
    row: dict[str, Any] = {"device-filter": device_filter} if device_filter else {}
    row |= {"devices": "all", "mig-enabled": layout is not None}
    if layout is not None:
        row["mig-devices"] = dict(layout)
    return row

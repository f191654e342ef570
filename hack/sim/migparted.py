"""SIMULATED nvidia-mig-parted: its configuration file (docs/design/nvidia.md#a10), and how an entry is asserted and applied.

As in the real one, an apply is not atomic (docs/design/nvidia.md#a8): after a failure, earlier GPUs have the new
layout, the one that failed has MIG on and no instances, and later ones have the old layout.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from types import NoneType
from typing import Any, TypeAlias

import yaml

from gpusharing.agent.library import GPU, Reading
from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.gpus.geometry import Layout, generated_layouts, normalize
from hack.sim.goyaml import GoError, to_json
from hack.sim.gpu import DriverRefusal, NoFreePlace, NotSupported, SimulatedGPUs, mig_devices

Target: TypeAlias = Layout | None
"""The layout that one GPU should have: None for MIG off, and empty for MIG on without instances."""

_SLICES = re.compile(r"([0-9]{1,18}c\.)?[0-9]{1,18}g\.[0-9]{1,18}gb")
_ATTRIBUTE = re.compile(r"[A-Za-z]([A-Za-z0-9.]*[A-Za-z0-9])?")
_FIELDS = {"device-filter", "devices", "mig-enabled", "mig-devices"}


class ConfigError(Exception):
    """The file, or the configuration of this name, is not valid: `assert --valid-config` fails."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of a named configuration: the GPUs that it selects, and their target."""

    filters: tuple[str, ...]
    """PCI device ids such as 0x233010DE; empty if it selects every card."""
    devices: frozenset[int] | None
    """Indexes of GPUs, or None if it selects all."""
    target: Target

    def matches(self, gpu: GPU) -> bool:
        """Whether this item selects the GPU, by its index and by the PCI device id of its product."""
        if self.devices is not None and gpu.index not in self.devices:
            return False
        return not self.filters or pci_device_id(gpu.product) in self.filters


@lru_cache(maxsize=64)
def parse(text: str) -> Mapping[str, tuple[Entry, ...]]:
    """Return every configuration by name. One mistake makes the file invalid (api/spec/v1/spec.go)."""
    try:
        document = to_json(text)
    except GoError as error:
        raise ConfigError(f"not YAML: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict) or document.keys() - {"version", "mig-configs"}:
        raise ConfigError("expected version and mig-configs and nothing else")
    if document.get("version") != "v1":
        raise ConfigError(f"unknown version {document.get('version')!r}")
    if "mig-configs" not in document:
        return {}
    configs = document["mig-configs"]
    if not isinstance(configs, dict) or not configs:
        raise ConfigError("mig-configs is not a map with at least one entry")
    for name, rows in configs.items():
        if not isinstance(rows, list) or not rows:
            raise ConfigError(f"mig-config {name} is not a list with at least one entry")
    return {name: tuple(map(_entry, rows)) for name, rows in configs.items()}


def entries(text: str, name: str) -> tuple[Entry, ...]:
    items = parse(text).get(name)
    if items is None:
        raise ConfigError(f"no mig-config named {name!r}")
    return items


def targets(items: Iterable[Entry], gpus: Sequence[GPU]) -> list[tuple[GPU, Target]]:
    """Return each GPU that an item selects with its target; a GPU may occur several times. An item that turns MIG on
    skips GPUs without MIG if it is for all devices, and raises ConfigError if it lists one."""
    wanted: list[tuple[GPU, Target]] = []
    for entry in items:
        for gpu in gpus:
            if not entry.matches(gpu):
                continue
            if gpu.mig_mode == "NotSupported" and entry.target is not None:
                if entry.devices is not None:
                    raise ConfigError(f"GPU {gpu.index} has no MIG")
                continue
            wanted.append((gpu, entry.target))
    return wanted


def covers_all(items: Iterable[Entry], gpus: Sequence[GPU]) -> bool:
    """Whether an item selects every GPU. If not, mig-parted's assert never succeeds (a.8)."""
    items = tuple(items)
    return all(any(entry.matches(gpu) for entry in items) for gpu in gpus)


def present(gpu: GPU) -> Target:
    """Return the layout that the GPU has now, or None if its MIG mode is not Enabled.

    Only compute instances count (v0.15.1 pkg/mig/config/config.go, GetMigConfig).
    """
    if gpu.mig_mode != "Enabled":
        return None
    return normalize(Counter(instance.profile for instance in mig_devices(gpu)))


def generated(reading: Reading) -> str:
    """Return the file that mig-manager from v0.14 on generates from a node's cards (docs/design/nvidia.md#a10)."""
    return _generated(tuple(model.product for model in reading.models))


@lru_cache(maxsize=64)
def _generated(products: tuple[str, ...]) -> str:
    configs: dict[str, list[dict[str, Any]]] = {}
    for product in products:
        card = find_card(product)
        layouts = generated_layouts(card.profiles) if card else {}
        filters = {"device-filter": [pci_device_id(product)]} if len(products) > 1 else {}
        for name, layout in layouts.items():
            divided = {"mig-enabled": layout is not None} | ({} if layout is None else {"mig-devices": dict(layout)})
            configs.setdefault(name, []).append({**filters, "devices": "all", **divided})
    return yaml.safe_dump({"version": "v1", "mig-configs": configs}) if configs else ""


def pci_device_id(product: str) -> str:
    """Return the PCI device id of a product, or the first one of its card; empty if there is none."""
    card = find_card(product)
    if card is None or not card.pci_device_ids:
        return ""
    same_length = len(card.pci_device_ids) == len(card.products) and product in card.products
    return card.pci_device_ids[card.products.index(product) if same_length else 0]


def _entry(raw: Any) -> Entry:
    """Parse one item. As in the real one, null, an empty string and `[]` are no device-filter."""
    if not isinstance(raw, dict) or raw.keys() - _FIELDS or not {"devices", "mig-enabled"} <= raw.keys():
        raise ConfigError(f"a mig-config item has devices, mig-enabled and mig-devices: {raw!r}")
    wanted = raw.get("device-filter")
    filters = [] if wanted in (None, "") else [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(filters, list) or not all(item is None or isinstance(item, str) for item in filters):
        raise ConfigError(f"bad device-filter: {filters!r}")
    return Entry(tuple(normal_id(item or "") for item in filters), _devices(raw["devices"]), _target(raw))


def _devices(raw: object) -> frozenset[int] | None:
    """Return the indexes, or None for `all`. In a list, null counts as 0, and a negative index selects no GPU."""
    if raw == "all":
        return None
    if not isinstance(raw, list):
        raise ConfigError(f"devices is `all` or a list of indexes: {raw!r}")
    return frozenset(_int(index) for index in raw)


def _int(raw: object) -> int:
    """Return an integer of 64 bits, or 0 for null, which encoding/json ignores."""
    if raw is None:
        return 0
    if type(raw) is not int or not -(2**63) <= raw < 2**63:
        raise ConfigError(f"cannot unmarshal {raw!r} into an int")
    return raw


def _target(raw: Mapping[str, Any]) -> Target:
    enabled, counts = raw["mig-enabled"], raw.get("mig-devices")
    if type(enabled) not in (bool, NoneType):
        raise ConfigError(f"mig-enabled is true or false: {enabled!r}")
    if counts is not None and not isinstance(counts, dict):
        raise ConfigError(f"mig-devices is a map: {counts!r}")
    wanted = {profile: _int(count) for profile, count in (counts or {}).items()}
    for profile, count in wanted.items():
        if not _is_profile(profile) or count < 0:
            raise ConfigError(f"bad mig-devices entry {profile}: {count!r}")
    if wanted and not any(wanted.values()):
        raise ConfigError("bad mig-devices: all counts for all MigProfiles are 0")
    if not enabled:
        if wanted:
            raise ConfigError("mig-devices without mig-enabled")
        return None
    if counts is None:
        raise ConfigError("mig-devices is compulsory with mig-enabled")
    return normalize(wanted)


def _is_profile(text: str) -> bool:
    """Whether go-nvlib's parseMigProfile accepts this name, such as `1g.10gb+me` or `1c.3g.20gb`."""
    slices, *attributes = re.split(r"[+-]", text, maxsplit=1)
    if not _SLICES.fullmatch(slices):
        return False
    listed = attributes[0].split(",") if attributes else []
    return len(set(listed)) == len(listed) and all(map(_ATTRIBUTE.fullmatch, listed))


def normal_id(text: str) -> str:
    """Return a PCI device id in our notation, such as 0x233010DE."""
    return "0x" + text.partition(":")[0][2:].upper()


_MOST_ORDERINGS = 200
"""Orderings tried on one GPU. The real one tries all; no legal layout needs more here."""


class ApplyError(Exception):
    """mig-parted failed to apply a configuration; the message says why."""


def mode_applied(items: Sequence[Entry], gpus: Sequence[GPU]) -> bool:
    """Whether every GPU has the MIG mode that its items request (`assert --mode-only`)."""
    wanted = targets(items, gpus)
    return covers_all(items, gpus) and all((t is not None) == _mig(gpu) for gpu, t in wanted)


def applied(items: Sequence[Entry], gpus: Sequence[GPU]) -> bool:
    """Whether every GPU has exactly the layout that its items request (`assert`)."""
    return covers_all(items, gpus) and all(present(gpu) == target for gpu, target in targets(items, gpus))


def apply_mode(items: Sequence[Entry], gpus: Sequence[GPU], driver: SimulatedGPUs) -> None:
    """Set the MIG modes. A change destroys the instances of every selected GPU, even if it fails."""
    wanted = [(gpu, t) for gpu, t in targets(items, gpus) if gpu.mig_mode != "NotSupported"]
    if all((target is not None) == _mig(gpu) == (gpu.mig_mode_pending == "Enabled") for gpu, target in wanted):
        return
    try:
        for gpu, _ in wanted:
            if _mig(gpu):
                driver.destroy_all(gpu.index)
        outcomes = [driver.set_mig_mode(gpu.index, target is not None) for gpu, target in wanted]
        if "Pending" in outcomes:
            driver.reset()
    except DriverRefusal as refusal:
        raise ApplyError(f"error setting MIG mode: {refusal}") from None


def apply_layout(items: Sequence[Entry], gpus: Sequence[GPU], driver: SimulatedGPUs) -> None:
    """Rebuild each GPU that differs from its target. A profile that the card does not have leaves the GPU without
    instances and raises no error (docs/design/nvidia.md#unknown-profile)."""
    for gpu, target in targets(items, gpus):
        if target is not None and present(gpu) != target:
            _rebuild(gpu.index, target, driver)


def _rebuild(index: int, layout: Layout, driver: SimulatedGPUs) -> None:
    try:
        for ordering in islice(_arrange(dict(layout)), _MOST_ORDERINGS):
            if present(driver.look()[index]):  # instances without compute instances stay, and may take the room
                driver.destroy_all(index)
            try:
                for profile in ordering:
                    driver.create(index, profile)
            except NoFreePlace:
                continue
            return
        driver.destroy_all(index)
    except NotSupported:
        driver.destroy_all(index)
        return
    except DriverRefusal as refusal:
        raise ApplyError(f"error clearing MIG devices: {refusal}") from None
    raise ApplyError(f"GPU {index}: all orderings failed")


def _arrange(counts: dict[str, int]) -> Iterator[tuple[str, ...]]:
    left = [name for name, count in counts.items() if count]
    if not left:
        yield ()
    for name in left:
        for rest in _arrange({**counts, name: counts[name] - 1}):
            yield (name, *rest)


def _mig(gpu: GPU) -> bool:
    return gpu.mig_mode == "Enabled"

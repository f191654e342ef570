"""mig-parted's configuration file: what a name in it means for the GPUs of one node (docs/design/nvidia.md#a10).

version: v1
mig-configs:
  all-1g.10gb:
  - {devices: all, mig-enabled: true, mig-devices: {1g.10gb: 7}}
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import yaml

from gpusharing.agent.library import GPU, Reading
from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.gpus.geometry import Layout, generated_layouts, normalise

Target: TypeAlias = Layout | None
"""What one GPU is to be: None MIG off, () MIG on and empty."""

_FILTER = re.compile(r"0x[0-9A-Fa-f]{1,8}(?::0x[0-9A-Fa-f]{1,8})?")
_PROFILE = re.compile(r"(?:\d+c\.)?\d+g\.\d+gb(?:[+-][a-z.,]+)*")
_FIELDS = {"device-filter", "devices", "mig-enabled", "mig-devices"}


class ConfigError(Exception):
    """The file or the name in it is not valid: `assert --valid-config` fails."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of a named configuration."""

    filters: tuple[str, ...]
    """PCI device ids such as 0x233010DE; empty: every card."""
    devices: frozenset[int] | None
    """GPU indexes; None: all."""
    target: Target

    def matches(self, gpu: GPU) -> bool:
        """Whether this item is about that GPU."""
        if self.devices is not None and gpu.index not in self.devices:
            return False
        return not self.filters or pci_device_id(gpu.product) in self.filters


@lru_cache(maxsize=64)
def parse(text: str) -> Mapping[str, tuple[Entry, ...]]:
    """All named configurations of the file; unknown fields are errors, as in mig-parted."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from None
    if not isinstance(document, dict) or document.keys() - {"version", "mig-configs"}:
        raise ConfigError("expected version and mig-configs and nothing else")
    if document.get("version", "v1") != "v1":
        raise ConfigError(f"unknown version {document['version']!r}")
    configs = document.get("mig-configs")
    if not isinstance(configs, dict):
        raise ConfigError("mig-configs is not a map")
    return {_key(name): tuple(map(_entry, _items(name, entries))) for name, entries in configs.items()}


def entries(text: str, name: str) -> tuple[Entry, ...]:
    """The configuration of that name; ConfigError when the file does not hold it."""
    found = parse(text).get(name)
    if found is None:
        raise ConfigError(f"no mig-config named {name!r}")
    return found


def targets(items: Iterable[Entry], gpus: Sequence[GPU]) -> list[tuple[GPU, Target]]:
    """What each matching entry wants of each GPU, in the order of the file. A GPU without MIG is left out of
    entries for all devices; one that is named there is an error."""
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
    """Whether every GPU is matched by some entry; else the assert never succeeds (a.8)."""
    items = tuple(items)
    return all(any(entry.matches(gpu) for entry in items) for gpu in gpus)


def present(gpu: GPU) -> Target:
    """What the GPU is now, in the words of the file."""
    if gpu.mig_mode != "Enabled":
        return None
    return normalise(Counter(instance.profile for instance in gpu.instances))


def generated(reading: Reading) -> str:
    """The file that mig-manager >= 0.14 generates from the hardware; empty without any profile (a.10)."""
    return _generated(tuple(model.product for model in reading.models))


@lru_cache(maxsize=64)
def _generated(products: tuple[str, ...]) -> str:
    configs: dict[str, list[dict[str, Any]]] = {}
    for product in products:
        card = find_card(product)
        layouts = generated_layouts(card.profiles) if card else {}
        filters = {"device-filter": [pci_device_id(product)]} if len(products) > 1 else {}
        for name, layout in layouts.items():
            configs.setdefault(name, []).append({**filters, **_render(layout)})
    return yaml.safe_dump({"version": "v1", "mig-configs": configs}) if configs else ""


def pci_device_id(product: str) -> str:
    """The PCI device id of a product; the card's first one when the table does not tell them apart."""
    card = find_card(product)
    if card is None or not card.pci_device_ids:
        return ""
    same_length = len(card.pci_device_ids) == len(card.products) and product in card.products
    return card.pci_device_ids[card.products.index(product) if same_length else 0]


def _render(layout: Target) -> dict[str, Any]:
    if layout is None:
        return {"devices": "all", "mig-enabled": False}
    return {"devices": "all", "mig-enabled": True, "mig-devices": dict(layout)}


def _key(name: object) -> str:
    # YAML takes the word off for a boolean, and Go's JSON makes the text "false" of it.
    return str(name).lower() if isinstance(name, bool) else str(name)


def _items(name: object, entries: object) -> list[Any]:
    if not isinstance(entries, list):
        raise ConfigError(f"mig-config {name} is not a list")
    return entries


def _entry(raw: Any) -> Entry:
    if not isinstance(raw, Mapping) or raw.keys() - _FIELDS or not {"devices", "mig-enabled"} <= raw.keys():
        raise ConfigError(f"a mig-config item has devices, mig-enabled and mig-devices: {raw!r}")
    filters = raw.get("device-filter") or []
    filters = [filters] if isinstance(filters, str) else filters
    if not isinstance(filters, list) or not all(isinstance(f, str) and _FILTER.fullmatch(f) for f in filters):
        raise ConfigError(f"bad device-filter: {filters!r}")
    return Entry(tuple(map(_normal_id, filters)), _devices(raw["devices"]), _target(raw))


def _devices(raw: object) -> frozenset[int] | None:
    if raw == "all":
        return None
    if not isinstance(raw, list) or not all(type(index) is int and index >= 0 for index in raw):
        raise ConfigError(f"devices is `all` or a list of indexes: {raw!r}")
    return frozenset(raw)


def _target(raw: Mapping[str, Any]) -> Target:
    if type(raw["mig-enabled"]) is not bool:
        raise ConfigError(f"mig-enabled is true or false: {raw['mig-enabled']!r}")
    counts = raw.get("mig-devices")
    if not raw["mig-enabled"]:
        if counts:
            raise ConfigError("mig-devices without mig-enabled")
        return None
    if not isinstance(counts, Mapping):
        raise ConfigError("mig-devices is compulsory with mig-enabled")
    for profile, count in counts.items():
        if not _PROFILE.fullmatch(str(profile)) or type(count) is not int or count < 0:
            raise ConfigError(f"bad mig-devices entry {profile}: {count!r}")
    return normalise(counts)


def _normal_id(text: str) -> str:
    return "0x" + text.partition(":")[0][2:].upper()

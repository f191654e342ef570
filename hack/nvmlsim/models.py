"""Simulated cards: the facts of `gpusharing.planning.gpus.cards`, and the few that only NVML reports.

The card table has names, PCI ids, compute capability, profiles, ids and placements. The numbers below (usable memory
of a profile, SMs) are in no other file because nothing in the product depends on them.
"""

import ctypes
import re
import uuid
from dataclasses import dataclass

from gpusharing.planning.gpus.cards import CARDS, Card, Profile
from hack.cards import mig_mode_needs_reset
from hack.nvmlsim import layout

# NVML_GPU_INSTANCE_PROFILE_* (NVML API reference, Multi Instance GPU Management), by slices and suffix.
PROFILE_INDEX = {
    (1, ""): 0, (2, ""): 1, (3, ""): 2, (4, ""): 3, (7, ""): 4, (8, ""): 5, (6, ""): 6, (1, "+me"): 7,
    (2, "+me"): 8, (1, "+gfx"): 10, (2, "+gfx"): 11, (4, "+gfx"): 12, (1, "-me"): 13, (2, "-me"): 14,
    (1, "+me.all"): 15, (2, "+me.all"): 16, (3, "+gfx"): 17,
}  # fmt: skip
INDEX_OF_DOUBLE_MEMORY = 9  # 1_SLICE_REV2
_MEDIA = {"+me": layout.MEDIA_EXTENSIONS, "+me.all": layout.MEDIA_ALL, "-me": layout.MEDIA_NONE}
_GFX = 2  # NVML_GPU_INSTANCE_PROFILE_CAPS_GFX

# Total memory in MiB of cards for which the table lacks it (nvidia-smi captures; for A30, A100 80 GB and V100 the data
# sheets).
_MEMORY_MIB = {"a30": 24576, "a100-80gb": 81920, "rtx-pro-6000-blackwell": 97887, "v100-16gb": 16384}
# Memory in GiB that `nvidia-smi mig -lgip` shows, by profile size in eighths (RTX PRO 6000: in twelfths), captures.
_USABLE_GIB = {
    "a30": {1: 5.81, 2: 11.69, 4: 23.5},
    "a100-40gb": {1: 4.75, 2: 9.62, 4: 19.5, 8: 39.25},
    "a100-80gb": {1: 9.62, 2: 19.5, 4: 39.25, 8: 78.5},
    "h100-80gb": {1: 9.75, 2: 19.62, 4: 39.5, 8: 79.25},
    "h200-141gb": {1: 16.0, 2: 32.5, 4: 69.8, 8: 140.0},
    "rtx-pro-6000-blackwell": {3: 23.62, 6: 47.38, 12: 95.0},
}
_USABLE_SHARE = 0.97  # a guess for all other cards
# SMs of a profile by slices (captures; guide). All other cards have 16 per slice, a guess.
_SMS = {
    "a30": {1: 14, 2: 28, 4: 56},
    "a100-40gb": {1: 14, 2: 28, 3: 42, 4: 56, 7: 98},
    "a100-80gb": {1: 14, 2: 28, 3: 42, 4: 56, 7: 98},
    "h100-80gb": {1: 16, 2: 32, 3: 60, 4: 64, 7: 132},
    "h200-141gb": {1: 16, 2: 32, 3: 60, 4: 64, 7: 132},
    "rtx-pro-6000-blackwell": {1: 46, 2: 94, 4: 188},
}
# NVML_DEVICE_ARCH_* by compute capability (NVML API reference).
_ARCHITECTURE = {(6, 0): 4, (7, 0): 5, (7, 5): 6, (8, 0): 7, (8, 6): 7, (8, 9): 8, (9, 0): 9}
_BLACKWELL = 10
_BRAND_TESLA, _BRAND_RTX, _BRAND_NVIDIA = 2, 13, 14
_RESERVED_MIB = 600
_FIRST_BUS = 0x17


class UnknownModelError(ValueError):
    """The name fits no card that can be simulated, or several cards."""


@dataclass(frozen=True)
class GpuPlace:
    """The index of a GPU in the simulated machine, and the machine's seed for UUIDs."""

    index: int
    seed: str


def simulated_cards() -> list[Card]:
    """Return the cards of the table whose product, PCI device id, profile ids and placements are known."""
    return [
        card
        for card in CARDS
        if card.products
        and card.pci_device_ids
        and all(profile.profile_id is not None and profile.starts for profile in card.profiles)
    ]


def find_model(name: str) -> Card:
    """Return the card with this key, or the only one whose key begins with it. Raises UnknownModelError."""
    cards = simulated_cards()
    exact = [card for card in cards if card.key == name]
    matches = exact or [card for card in cards if card.key.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(card.key for card in matches or cards)
    raise UnknownModelError(f"{name!r} names {'several cards' if matches else 'no card'}: choose from {known}")


def fill_gpu(gpu: layout.SimGpu, card: Card, place: GpuPlace) -> None:
    """Overwrite `gpu` with a new, healthy GPU of this card, with ECC on and MIG off."""
    ctypes.memset(ctypes.addressof(gpu), 0, ctypes.sizeof(gpu))
    identity = uuid.uuid5(uuid.NAMESPACE_OID, f"nvmlsim/{place.seed}/{place.index}/{card.key}")
    gpu.name = card.products[0].encode()
    gpu.uuid = f"GPU-{identity}".encode()
    gpu.model = card.key.encode()
    gpu.pci_bus = _FIRST_BUS + 4 * place.index
    gpu.pci_device_id = int(card.pci_device_ids[0], 16)
    gpu.pci_subsystem_id = 0x10DE
    gpu.minor = place.index
    gpu.cc_major, gpu.cc_minor = card.compute_capability
    gpu.architecture = _ARCHITECTURE.get(card.compute_capability, _BLACKWELL)
    rtx = _BRAND_RTX if " RTX " in card.products[0] else _BRAND_NVIDIA
    gpu.brand = _BRAND_TESLA if card.products[0].startswith("Tesla") else rtx
    gpu.memory_mib = total_memory_mib(card)
    gpu.reserved_mib = _RESERVED_MIB
    gpu.temperature, gpu.power_mw = 34, 68_000
    gpu.ecc_supported = gpu.ecc_current = gpu.ecc_pending = 1
    gpu.remap_supported = card.compute_capability >= (8, 0)
    gpu.mig_capable = bool(card.profiles)
    gpu.mig_resetless = bool(card.profiles) and not mig_mode_needs_reset(card)
    if card.profiles:
        gpu.units = max(start + profile.size for profile in card.profiles for start in profile.starts)
        gpu.max_mig_devices = max(profile.slices for profile in card.profiles)
        gpu.profile_count = len(card.profiles)
        for slot, profile in zip(gpu.profiles, card.profiles, strict=False):
            _fill_profile(slot, profile, card, gpu.units)


def total_memory_mib(card: Card) -> int:
    """Return the card's memory in MiB as NVML reports it, or else the nominal GiB of the card table."""
    return card.memory_mib or _MEMORY_MIB.get(card.key) or card.memory_gb * 1024


def profile_suffix(name: str) -> str:
    """Return the suffix of a profile's name, such as `+me` of `1g.10gb+me`; empty for a plain profile."""
    return re.sub(r"^\d+g\.\d+gb", "", name)


def profile_index(profile: Profile, card: Card) -> int:
    """Return the number NVML_GPU_INSTANCE_PROFILE_* by which NVML looks up this profile of `card`."""
    suffix = profile_suffix(profile.name)
    same = [p.size for p in card.profiles if p.slices == profile.slices and profile_suffix(p.name) == suffix]
    if profile.size > min(same):
        return INDEX_OF_DOUBLE_MEMORY
    return PROFILE_INDEX[profile.slices, suffix]


def _fill_profile(slot: layout.SimProfile, profile: Profile, card: Card, units: int) -> None:
    suffix = profile_suffix(profile.name)
    engines = 0 if suffix == "-me" else profile.slices
    slot.index = profile_index(profile, card)
    slot.id = profile.profile_id
    slot.slices = profile.slices
    slot.instance_count = profile.max_count
    slot.sm_count = _SMS.get(card.key, {}).get(profile.slices, 16 * profile.slices)
    slot.copy_engines = profile.slices
    slot.decoders = slot.jpegs = engines
    slot.ofas = 1 if profile.size == units or suffix in ("+me", "+me.all") else 0
    slot.capabilities = _GFX if suffix == "+gfx" else 0
    slot.media = _MEDIA.get(suffix, layout.MEDIA_PLAIN)
    slot.size = profile.size
    slot.start_count = len(profile.starts)
    slot.starts[: len(profile.starts)] = profile.starts
    usable = _USABLE_GIB.get(card.key, {}).get(profile.size)
    share = total_memory_mib(card) * profile.size / units * _USABLE_SHARE
    slot.memory_mib = int(share if usable is None else usable * 1024)
    slot.name = f"MIG {profile.name}".encode()

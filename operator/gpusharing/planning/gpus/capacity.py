"""The memory that a card and each of its MIG instances have for workloads, whether a node has enough devices, and how many are free.

The number in a profile's name is nominal: an instance has less memory, and how much less cannot be computed. `_SEEN`
contains what ``nvidia-smi mig -lgip`` and ``nvidia-smi`` printed on that hardware, in published captures (the same as
in tests/planning/mig-facts.yaml, which names them). It varies by 0.1 to 0.5 GiB with the driver.
"""

from collections.abc import Mapping

from gpusharing.planning.gpus.cards import Card, Profile

HEADROOM = 1.2
"""Factor by which the memory of a workload is multiplied: allocators, caches and bursts need a fifth more than the observed peak."""
TURNS = 4
"""The largest number of pods that should take turns on one GPU. With more of them, each waits too long."""
_CARD = 0.95
"""GiB of usable memory for each GB in the name of a card of which there is no capture."""
_INSTANCE = 0.88
"""GiB of usable memory for each GB in the name of a profile of which there is no capture. The lowest ratio of all
captures is 0.89 (16.0 GiB of an H200's 1g.18gb), and the assumption must not exceed the real size."""
_SEEN: Mapping[str, Mapping[int, float]] = {
    "a30": {6: 5.81, 12: 11.69, 24: 23.5},
    "a100-40gb": {5: 4.75, 10: 9.62, 20: 19.5, 40: 39.25},
    "a100-80gb": {10: 9.62, 20: 19.5, 40: 39.25, 80: 78.5},
    "h100-80gb": {10: 9.75, 20: 19.62, 40: 39.5, 80: 79.25},
    "h100-nvl-94gb": {47: 46.38, 94: 93.12},
    "hopper-96gb": {12: 11.0, 24: 23.0, 48: 46.5, 96: 93.0},
    "h200-141gb": {18: 16.0, 35: 32.5, 71: 69.8, 141: 140.0},
    "rtx-pro-6000-blackwell": {24: 23.62, 48: 47.38, 96: 95.0},
}
"""GiB of usable memory of an instance, by the key of the card and the GB in the profile's name."""


def memory_of(card: Card) -> float:
    """Return the memory of the whole card in GiB. A card that shares its memory with the CPU has 0 unless its total is known."""
    if card.memory_mib:
        return card.memory_mib / 1024
    return _SEEN.get(card.key, {}).get(card.memory_gb, card.memory_gb * _CARD)


def usable_memory(card: Card, profile: Profile) -> float:
    """Return the GiB that a workload can use of one instance of the profile; 0 if the card shares its memory with the CPU."""
    if not card.memory_gb:
        return 0.0
    return _SEEN.get(card.key, {}).get(profile.memory_gb, profile.memory_gb * _INSTANCE)


def plain_profiles(card: Card) -> tuple[Profile, ...]:
    """Return the profiles without an attribute that are not the whole card, sorted by memory; of equal ones, the more numerous first."""
    whole = max((profile.slices for profile in card.profiles), default=0)
    plain = [
        profile for profile in card.profiles if not {"+", "-"} & set(profile.name) and profile.slices < whole
    ]
    return tuple(sorted(plain, key=lambda profile: (profile.memory_gb, -profile.max_count)))


def client_memory(card: Card, clients: int) -> float:
    """Return the GiB that each of `clients` MPS clients of a card may use (docs/design/hardware.md#mps-share)."""
    return memory_of(card) / clients


def client_threads(clients: int) -> int:
    """Return the percentage of a GPU's threads that each of `clients` MPS clients may use; the device plugin rounds it down (docs/design/hardware.md#mps-share)."""
    return 100 // clients


def fits(requested: Mapping[str, int], available: Mapping[str, int]) -> bool:
    return all(available.get(name, 0) >= count for name, count in requested.items())


def remaining(available: Mapping[str, int], held: Mapping[str, int]) -> dict[str, int]:
    return {name: max(0, count - held.get(name, 0)) for name, count in available.items()}

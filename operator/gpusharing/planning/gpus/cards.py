"""What is each card, which MIG profiles does it offer, and how much memory and share has an instance?

What the card itself reports through NVML takes precedence, except for `Card.nvml_counts_wrong`. A new model is an entry
in `CARDS`, and one in tests/planning/mig-facts.yaml; only a card with a new way of dividing it also needs a family.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, field
from fractions import Fraction
from functools import lru_cache
from typing import Literal, TypeAlias

from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

# How reliable a fact is. real: read on that hardware. doc: NVIDIA's guide or playbook. cfg: only in mig-parted's
# shipped file. family: taken from the family, never seen for this model. unknown: no source.
Status = Literal["real", "doc", "cfg", "family", "unknown"]


@value
class Profile:
    """One GPU instance profile as a card offers it, according to this table or to NVML."""

    name: str
    """The name as NVML and mig-parted write it, such as `1g.10gb+me`."""
    starts: tuple[int, ...]
    """Memory units at which an instance may start. Empty if the placements are unknown."""
    size: int
    """How many memory units an instance covers, or 0 if unknown."""
    max_count: int
    """How many instances fit on a card that has only instances of this profile."""
    slices: int
    memory_gb: int
    """The number of GB in the name. The usable memory is less."""
    profile_id: int | None = None
    """GPU instance profile id, or None if unknown. The same id stands for other profiles on other cards."""

    @property
    def is_plain(self) -> bool:
        """Whether the name has no attribute, such as `+me`, `+gfx` or `-me`."""
        return not {"+", "-"} & set(self.name)


@value
class Provenance:
    """How reliable the facts about a card and its profiles are, and where they come from.

    - *guide*: NVIDIA MIG user guide, pages "supported GPUs" and "supported MIG profiles";
    - *capture*: output of ``nvidia-smi mig -lgip`` / ``-lgipp`` taken on that hardware and published;
    - *mig-parted*: NVIDIA/mig-parted v0.15.0, its ``config-default.yaml`` (names and counts only);
    - *playbook*: NVIDIA DGX Station MIG playbook (GB300);
    - *report*: ``nvidia-smi -q -x`` of a real node, in NVIDIA/k8s-test-infra at 3b2b865d (tests/planning/real-nodes.yaml);
    - *pci.ids*: the PCI ID repository, for device ids that mig-parted does not know.

    Compute capabilities are those of NVIDIA's "CUDA GPU compute capability" table.
    """

    names: Status
    """How reliable the names and counts of its profiles are."""
    ids: Status
    placements: Status
    cite: str
    card: Status = "doc"
    """How reliable its product name, PCI device ids, memory and support for MIG are."""


_Shape: TypeAlias = tuple[int, int, str, tuple[int, ...], int, int, int | None]
"""Compute slices, eighths of the card's memory, attribute, then `starts` to `profile_id` as in Profile."""


@value
class Card:
    """One card model of the table."""

    key: str
    """A short name of our own, unique in the table."""
    products: tuple[str, ...]
    """Product names exactly as NVML prints them."""
    device_ids: InitVar[str]
    """PCI device ids in hex, separated by spaces, without NVIDIA's own (10DE)."""
    compute_capability: tuple[int, int]
    memory_gb: int
    """The GB from which the names of the MIG profiles are computed. 0 if the memory is shared with the CPU."""
    family: InitVar[tuple[_Shape, ...]]
    """The shapes of its profiles, which cards of one family share."""
    source: Provenance
    memory_mib: int | None = None
    """Total memory as nvidia-smi shows it, or None if there is no capture."""
    nvml_counts_wrong: bool = False
    """Whether this table is right and NVML's counts are wrong. Seen on A30 (mig-parted v0.15.0 pkg/mig/discovery)."""
    pci_device_ids: tuple[str, ...] = field(init=False)
    """Ids in the form of mig-parted's device-filter, `0xDDDDVVVV` (device, vendor). Empty if unknown."""
    profiles: tuple[Profile, ...] = field(init=False)

    def __post_init__(self, device_ids: str, family: tuple[_Shape, ...]) -> None:
        profiles = []
        for slices, eighths, attribute, starts, size, max_count, profile_id in family:
            # go-nvlib v0.10.0 mig_profile.go: the fraction of the total, rounded half up.
            gb = (self.memory_gb * eighths + 4) // 8
            profiles.append(Profile(f"{slices}g.{gb}gb{attribute}", starts, size, max_count, slices, gb, profile_id))
        object.__setattr__(self, "profiles", tuple(profiles))
        object.__setattr__(self, "pci_device_ids", tuple(f"0x{device}10DE" for device in device_ids.split()))

    @property
    def mps_max_clients(self) -> int:
        """The most MPS replicas that the device plugin accepts on the card (docs/design/hardware.md#mps-served)."""
        return 48 if self.compute_capability >= (7, 5) else 16


_SEVENTHS, _PAIRS, _QUARTERS = (0, 1, 2, 3, 4, 5, 6), (0, 2, 4, 6), (0, 3, 6, 9)

# 7 compute slices, 8 memory units. Captures: A100 40/80 GB, H100 80 GB, H100 NVL; guide.
_SEVEN_SLICE: tuple[_Shape, ...] = (
    (1, 1, "", _SEVENTHS, 1, 7, 19),
    (1, 1, "+me", _SEVENTHS, 1, 1, 20),
    (1, 2, "", _PAIRS, 2, 4, 15),
    (2, 2, "", (0, 2, 4), 2, 3, 14),
    (3, 4, "", (0, 4), 4, 2, 9),
    (4, 4, "", (0,), 4, 1, 5),
    (7, 8, "", (0,), 8, 1, 0),
)
# 4 compute slices, 4 memory units. Captures; guide.
_A30: tuple[_Shape, ...] = (
    (1, 2, "", (0, 1, 2, 3), 1, 4, 14),
    (1, 2, "+me", (0, 1, 2, 3), 1, 1, 21),
    (2, 4, "", (0, 2), 2, 2, 5),
    (2, 4, "+me", (0, 2), 2, 1, 6),
    (4, 8, "", (0,), 4, 1, 0),
)
# 4 compute slices, 12 memory units (a 1g is 3 units wide). Capture; guide.
_RTX_PRO_6000: tuple[_Shape, ...] = (
    (1, 2, "", _QUARTERS, 3, 4, 14),
    (1, 2, "+me", _QUARTERS, 3, 1, 21),
    (1, 2, "+gfx", _QUARTERS, 3, 4, 47),
    (1, 2, "+me.all", _QUARTERS, 3, 1, 65),
    (1, 2, "-me", _QUARTERS, 3, 4, 67),
    (2, 4, "", (0, 6), 6, 2, 5),
    (2, 4, "+gfx", (0, 6), 6, 2, 35),
    (2, 4, "+me.all", (0, 6), 6, 1, 64),
    (2, 4, "-me", (0, 6), 6, 2, 66),
    (4, 8, "", (0,), 12, 1, 0),
    (4, 8, "+gfx", (0,), 12, 1, 32),
)
# Names and counts only (guide); no ids, no placements.
_RTX_PRO_4500: tuple[_Shape, ...] = (
    (1, 4, "", (), 0, 2, None),
    (1, 4, "+gfx", (), 0, 2, None),
    (1, 4, "+me.all", (), 0, 1, None),
    (1, 4, "-me", (), 0, 2, None),
    (2, 8, "", (), 0, 1, None),
    (2, 8, "+gfx", (), 0, 1, None),
)
_RTX_PRO_5000: tuple[_Shape, ...] = ((1, 4, "+me", (), 0, 1, None), *_RTX_PRO_4500)
_THOR: tuple[_Shape, ...] = tuple(
    (g, 8, a, (), 0, 1, None) for g in (1, 2, 3) for a in ("", "+me", "+gfx") if (g == 1 or a != "+me")
)


_NO_MIG = Provenance("doc", "unknown", "unknown", "not in the guide's list of supported GPUs; device IDs from pci.ids")
_CAPTURED = Provenance("real", "real", "real", "output of nvidia-smi mig -lgip and -lgipp; guide; mig-parted", "real")
_CONFIG_ONLY = Provenance("cfg", "family", "family", "mig-parted only", "cfg")
_SEEN_WITHOUT_MIG = Provenance("real", "unknown", "unknown", "a report from a real node shows MIG as N/A", "real")

CARDS: tuple[Card, ...] = (
    # --- with MIG ---
    Card("a30", ("NVIDIA A30",), "20B7", (8, 0), 24, _A30, _CAPTURED, nvml_counts_wrong=True),
    Card(
        "a100-40gb",
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A800 40GB"),
        "20B0 20B1 20F1 20F6", (8, 0), 40, _SEVEN_SLICE, _CAPTURED,
        memory_mib=40960,
    ),
    Card(
        "a100-80gb",
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", "NVIDIA A800-SXM4-80GB", "NVIDIA A800 80GB PCIe"),
        "20B2 20B5 20F3 20F5", (8, 0), 80, _SEVEN_SLICE, _CAPTURED,
    ),
    Card(
        "pg506-96gb", (), "20B6", (8, 0), 96, _SEVEN_SLICE,
        Provenance("cfg", "family", "family", "mig-parted: an A100-class board whose product name is unknown", "cfg"),
    ),
    Card(
        "h100-80gb",
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H800", "NVIDIA H800 PCIe"),
        "2330 2331 2324 2322", (9, 0), 80, _SEVEN_SLICE, _CAPTURED,
        memory_mib=81559,
    ),
    Card(
        "h100-nvl-94gb", ("NVIDIA H100 NVL", "NVIDIA H800 NVL"),
        "2321 233A", (9, 0), 94, _SEVEN_SLICE, _CAPTURED,
    ),
    Card(
        "hopper-96gb", ("NVIDIA GH200 480GB", "NVIDIA H100 96GB", "NVIDIA H20"),
        "2342 233D 2329", (9, 0), 96, _SEVEN_SLICE,
        Provenance(
            "real", "real", "family",
            "-lgip output from a GH200; for the H20, the vGPU guide, which has no profile IDs", "real",
        ),
    ),
    Card("gh200-144gb", ("NVIDIA GH200 144G HBM3e",), "2348", (9, 0), 144, _SEVEN_SLICE, _CONFIG_ONLY),
    Card(
        "h200-141gb", ("NVIDIA H200", "NVIDIA H200 NVL"),
        "2335 233B", (9, 0), 141, _SEVEN_SLICE,
        Provenance("doc", "family", "family", "guide; mig-parted; a capture confirms IDs 19, 20, 14 and 0", "real"),
        memory_mib=143771,
    ),
    Card(
        "b200-180gb", ("NVIDIA B200",), "2901", (10, 0), 180, _SEVEN_SLICE,
        Provenance("doc", "family", "family", "guide; mig-parted; a report from a real node", "real"),
        memory_mib=183359,
    ),
    Card(
        "gb200-186gb", ("NVIDIA GB200",), "2941", (10, 0), 186, _SEVEN_SLICE,
        Provenance("cfg", "family", "family", "mig-parted; a report from a real node", "real"),
        memory_mib=189471,
    ),
    Card("b300-269gb", ("NVIDIA B300 SXM6 AC",), "3182", (10, 3), 269, _SEVEN_SLICE, _CONFIG_ONLY),
    Card(
        "gb300-278gb", ("NVIDIA GB300",), "31C2", (10, 3), 278, _SEVEN_SLICE,
        Provenance("doc", "doc", "family", "playbook; mig-parted; a report from a real node", "real"),
        memory_mib=284208,
    ),
    Card(
        "rtx-pro-6000-blackwell", ("NVIDIA RTX PRO 6000 Blackwell Server Edition",),
        "2BB5", (12, 0), 96, _RTX_PRO_6000, _CAPTURED,
    ),
    Card(
        "rtx-pro-6000-blackwell-workstation",
        (
            "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
            "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        ),
        "2BB1 2BB4", (12, 0), 96, _RTX_PRO_6000,
        Provenance(
            "doc", "family", "family", "guide (needs a minimum vBIOS version and compute display mode); pci.ids"
        ),
    ),
    Card(
        "rtx-pro-5000-blackwell", ("NVIDIA RTX PRO 5000 Blackwell",), "", (12, 0), 48, _RTX_PRO_5000,
        Provenance("doc", "unknown", "unknown", "the September 2026 guide; the guide for driver 580 contradicts it"),
    ),
    Card(
        "rtx-pro-4500-blackwell", ("NVIDIA RTX PRO 4500 Blackwell",), "", (12, 0), 32, _RTX_PRO_4500,
        Provenance("doc", "unknown", "unknown", "the September 2026 guide"),
    ),
    Card(
        "thor-igpu", ("NVIDIA Thor",), "", (11, 0), 0, _THOR,
        Provenance("doc", "unknown", "unknown", "guide; at most one compute and one graphics instance coexist"),
    ),
    # --- without MIG: NVML answers NOT_SUPPORTED to the MIG mode ---
    Card("t4", ("Tesla T4",), "1EB8", (7, 5), 16, (), _SEEN_WITHOUT_MIG, memory_mib=15360),
    Card("l40s", ("NVIDIA L40S",), "26B9", (8, 9), 48, (), _SEEN_WITHOUT_MIG, memory_mib=46068),
    Card("l40", ("NVIDIA L40",), "26B5", (8, 9), 48, (), _NO_MIG),
    Card("l4", ("NVIDIA L4",), "27B8", (8, 9), 24, (), _NO_MIG),
    Card("a10", ("NVIDIA A10", "NVIDIA A10G"), "2236 2237", (8, 6), 24, (), _NO_MIG),
    Card("a16", ("NVIDIA A16", "NVIDIA A2"), "25B6", (8, 6), 16, (), _NO_MIG),
    Card("a40", ("NVIDIA A40",), "2235", (8, 6), 48, (), _NO_MIG),
    Card(
        "v100-16gb", ("Tesla V100-SXM2-16GB", "Tesla V100-PCIE-16GB"), "1DB1 1DB4", (7, 0), 16, (), _NO_MIG
    ),
    Card(
        "v100-32gb",
        ("Tesla V100-SXM2-32GB", "Tesla V100-PCIE-32GB", "Tesla V100-SXM3-32GB", "Tesla V100S-PCIE-32GB"),
        "1DB5 1DB6 1DB8 1DF6", (7, 0), 32, (), _NO_MIG,
    ),
    Card(
        "p100-16gb", ("Tesla P100-PCIE-16GB", "Tesla P100-SXM2-16GB"), "15F8 15F9", (6, 0), 16, (), _NO_MIG
    ),
    Card("rtx-4090", ("NVIDIA GeForce RTX 4090",), "2684", (8, 9), 24, (), _NO_MIG),
    Card("rtx-5090", ("NVIDIA GeForce RTX 5090",), "2B85", (12, 0), 32, (), _NO_MIG),
)  # fmt: skip

# What GFD appends to nvidia.com/gpu.product (k8s-device-plugin v0.19.3 internal/lm, mig-strategy.go and resource.go):
# -MIG-<profile> or -MIG-INVALID, then -SHARED.
_GFD_SUFFIX = re.compile(r"(?:-MIG-(?:INVALID|(?:\d+c\.)?\d+g\.\d+gb[a-z.+-]*?))?(?:-SHARED)?\Z")


def bare_product(product: str) -> str:
    """Return the product name with dashes and without the suffixes that GPU Feature Discovery appends."""
    return _GFD_SUFFIX.sub("", "-".join(product.split()), count=1)


_BY_PRODUCT = {bare_product(product): card for card in CARDS for product in card.products}


def find_card(product_name: str) -> Card | None:
    """Return the card with this product name, as NVML prints it or as GPU Feature Discovery labels it."""
    return _BY_PRODUCT.get(bare_product(product_name))


@lru_cache(maxsize=64)
def find_doubt(product: str, reported: tuple[Profile, ...]) -> Finding | None:
    """Return how the `reported` profiles of a card differ from our table, if they can be compared."""
    card = find_card(product)
    if card is None or not card.profiles or card.nvml_counts_wrong:
        return None
    if not reported:
        return Finding(
            Reason.PROFILES_FROM_TABLE,
            f"the driver lists no MIG profiles for {product}, so the operator uses its own table; if the operator"
            " rejects a layout that should fit, update the driver",
        )
    known = {profile.name: profile for profile in card.profiles}
    differences = [text for profile in reported if (text := _difference(profile, known))]
    if not differences:
        return None
    return Finding(
        Reason.CARD_DIFFERS,
        f"{product} reports {'; '.join(differences[:3])}. The operator uses what the card reports;"
        " please open an issue, so that the operator's table can be corrected",
    )


def _difference(profile: Profile, known: Mapping[str, Profile]) -> str:
    same = known.get(profile.name)
    if same is None:
        return f"{profile.name}, which the operator's table does not have"
    if profile.starts and same.starts and (profile.starts, profile.size) != (same.starts, same.size):
        here, there = (f"{', '.join(map(str, one.starts))} (size {one.size})" for one in (profile, same))
        return f"{profile.name} at {here}, but the operator's table has {there}"
    if profile.max_count != same.max_count:
        return f"at most {profile.max_count} of {profile.name}, but the operator's table has {same.max_count}"
    return ""


HEADROOM = 1.2
"""Factor for the memory of a workload: allocators, caches and bursts need a fifth more than the observed peak."""
TURNS = 4
"""The largest number of pods that should take turns on one GPU (docs/design/hardware.md#turns)."""
_CARD = 0.95
"""GiB of usable memory for each GB in the name of a card of which there is no capture."""
_INSTANCE = 0.88
"""GiB of usable memory for each GB in the name of a profile without a capture. The lowest ratio of all captures is 0.89
(16.0 GiB of an H200's 1g.18gb); the assumption must not exceed the real size."""
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
"""GiB of usable memory of an instance, by the key of the card and the GB in the profile's name.

An instance has less memory than its name says, and how much less cannot be computed. These are what ``nvidia-smi mig
-lgip`` and ``nvidia-smi`` printed in published captures (tests/planning/mig-facts.yaml names them). It varies by 0.1 to
0.5 GiB with the driver.
"""


def memory_of(card: Card) -> float:
    """Return the GiB of the whole card; 0 for one that shares its memory with the CPU, unless its total is known."""
    if card.memory_mib:
        return card.memory_mib / 1024
    return _SEEN.get(card.key, {}).get(card.memory_gb, card.memory_gb * _CARD)


def usable_memory(card: Card, profile: Profile) -> float:
    """Return the GiB that a workload can use of one instance; 0 if the card shares its memory with the CPU."""
    if not card.memory_gb:
        return 0.0
    return _SEEN.get(card.key, {}).get(profile.memory_gb, profile.memory_gb * _INSTANCE)


def extent(profiles: Sequence[Profile]) -> tuple[int, int]:
    """Return how many compute slices and memory units a card with these profiles has; 0 if that is unknown."""
    units = (max(profile.starts) + profile.size for profile in profiles if profile.starts)
    return max((profile.slices for profile in profiles), default=0), max(units, default=0)


def plain_profiles(card: Card) -> tuple[Profile, ...]:
    """Return the profiles without an attribute that are not the whole card, by memory; the more numerous first."""
    whole, _ = extent(card.profiles)
    plain = [profile for profile in card.profiles if profile.is_plain and profile.slices < whole]
    return tuple(sorted(plain, key=lambda profile: (profile.memory_gb, -profile.max_count)))


def find_memory(gpus: Mapping[str, int]) -> int | None:
    """Return the memory in GB of so many GPUs of each product; None if the size of one is unknown."""
    cards = [(find_card(product), count) for product, count in gpus.items()]
    sizes = [card.memory_gb * count for card, count in cards if card is not None and card.memory_gb]
    return sum(sizes) if len(sizes) == len(cards) else None


def client_memory(card: Card, clients: int) -> float:
    """Return the GiB that each of `clients` MPS clients of a card may use. See docs/design/hardware.md#mps-share."""
    return memory_of(card) / clients


def describe_turns(replicas: int) -> str:
    """Return a sentence about a number of time-slicing replicas that is legal and seldom wise; empty for another."""
    if replicas <= TURNS:
        return ""
    return (
        f"{replicas} pods would take turns on each GPU; beyond about {TURNS}, the turns of the others make each wait long"
        " (docs/design/hardware.md#turns)"
    )


def client_threads(clients: int) -> int:
    """Return the percent of a GPU's threads for each of `clients` MPS clients (docs/design/hardware.md#mps-share)."""
    return 100 // clients


def remaining(available: Mapping[str, int], held: Mapping[str, int]) -> dict[str, int]:
    return {name: max(0, count - held.get(name, 0)) for name, count in available.items()}


WHOLE = Fraction(1)


def shares(instances: Sequence[tuple[int, int]], card: tuple[int, int]) -> tuple[Fraction, ...]:
    """Return the share of a GPU that each MIG instance counts for on a bill, in the order of `instances`.

    Instances and the card are pairs of compute slices and memory, in any unit that is the same for all. The larger
    fraction counts, because a pod that takes all of one resource leaves no use for the other. Shares of one GPU that
    add up to more than 1 (4g.40gb and 3g.40gb on an 80 GB card: 4/7 and 4/8) are reduced in proportion.
    """
    parts = [max(map(_part, instance, card)) for instance in instances]
    most = max(WHOLE, sum(parts, Fraction(0)))
    return tuple(part / most for part in parts)


def _part(part: int, whole: int) -> Fraction:
    return Fraction(part, whole) if whole > 0 else Fraction(0)

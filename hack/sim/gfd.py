"""SIMULATED gpu-feature-discovery: the labels that it puts on a node, as a function (docs/design/nvidia.md#c).

GFD writes one card model's labels over another's, in an order that Go leaves open (k8s-device-plugin v0.19.3,
internal/lm/mig-strategy.go, newGPULabelers), models with a whole GPU last; here they take turns. Not simulated: engine
and multiprocessor counts, machine, clique and CUDA versions, and the memory of an instance that the driver reserves.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from gpusharing.agent.library import GPU, Model, Reading
from gpusharing.api.names import (
    LABEL_GFD_TIMESTAMP,
    LABEL_GPU_COUNT,
    LABEL_GPU_PRODUCT,
    LABEL_GPU_REPLICAS,
    LABEL_MIG_CAPABLE,
    LABEL_MIG_STRATEGY,
    LABEL_MPS_CAPABLE,
    LABEL_SHARING_STRATEGY,
    RESOURCE_GPU,
)
from gpusharing.planning.gpus.cards import Profile, bare_product, find_card
from gpusharing.planning.gpus.geometry import resource_name
from hack.sim.gpu import mig_devices
from hack.sim.plugin import PluginError, SimPluginConfig, single_profile

LABEL_GPU_MEMORY = "nvidia.com/gpu.memory"

# The labels with NVIDIA's prefix that GFD owns; the others belong to the GPU Operator, mig-manager or us.
_OWNED = re.compile(
    r"nvidia\.com/(?:"
    r"gpu\.(?:product|count|replicas|memory|sharing-strategy|family|mode|machine|clique|compute\..+|slices\..+|"
    r"engines\..+|multiprocessors)|mig\.(?:capable|strategy)|mig-.+|mps\.capable|gfd\.timestamp|cuda\..+|vgpu\..+)"
)
_FAMILIES = {6: "pascal", 7: "volta", 8: "ampere", 9: "hopper", 10: "blackwell", 12: "blackwell"}
_LATER_FAMILIES = {(7, 5): "turing", (8, 9): "ada-lovelace"}
"""The family of a card by compute capability, as in gpu-feature-discovery 0.19.3 (internal/lm/resource.go); others are
"undefined"."""


@lru_cache(maxsize=4096)
def owns(label: str) -> bool:
    """Whether GFD writes this label, and removes it when it is turned off or crash-loops (b.4)."""
    return _OWNED.fullmatch(label) is not None


def labels(reading: Reading, config: SimPluginConfig, started: int, turn: int = 0) -> dict[str, str]:
    """Return all labels that GFD gives a node. `started` is when its process began, in seconds since 1970; `turn`
    numbers the runs of its loop. Raises PluginError if no GPU answers, or for MPS with MIG."""
    gpus = reading.gpus
    if not gpus:
        return {}
    model = _shown(reading, turn)
    if config.sharing == "mps" and any(gpu.mig_mode == "Enabled" for gpu in gpus):
        raise PluginError("failed to check MPS-capable: MPS sharing is not supported for mig devices")
    card = find_card(model.product)
    major, minor = card.compute_capability if card else (0, 0)
    node_labels = {
        "nvidia.com/gpu.family": _LATER_FAMILIES.get((major, minor)) or _FAMILIES.get(major, "undefined"),
        "nvidia.com/gpu.compute.major": str(major),
        "nvidia.com/gpu.compute.minor": str(minor),
        "nvidia.com/gpu.mode": "compute",
        LABEL_MIG_CAPABLE: str(any(known.mig_capable for known in reading.models)).lower(),
        LABEL_MPS_CAPABLE: str(config.sharing == "mps").lower(),
        LABEL_GFD_TIMESTAMP: str(started),
    }
    if config.mig_strategy == "none":
        return {**node_labels, **_whole(gpus, model, config)}
    node_labels[LABEL_MIG_STRATEGY] = config.mig_strategy
    if config.mig_strategy == "single":
        return {**node_labels, **_single(reading, model, config)}
    merged = {**node_labels, **_whole(gpus, model, config)}
    owners = [(instance.profile, gpu.product) for gpu in gpus for instance in mig_devices(gpu)]
    names = [name for name, _ in owners]
    for name in sorted(set(names)):
        resource, first = resource_name(name), next(product for owned, product in owners if owned == name)
        merged |= _instances(resource, resource, name, names.count(name), _model(reading, first), config)
    return merged


def _shown(reading: Reading, turn: int) -> Model:
    answering = [gpu for gpu in reading.gpus if gpu.access == "Ok"]
    if not answering:
        raise PluginError("no GPU answers")
    whole = [gpu.product for gpu in answering if gpu.mig_mode != "Enabled"]
    products = list(dict.fromkeys(whole or [gpu.product for gpu in answering]))
    return _model(reading, products[turn % len(products)])


def _model(reading: Reading, product: str) -> Model:
    return next(model for model in reading.models if model.product == product)


def changes(present: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str | None]:
    """Return the label patch that turns `present` into `wanted`. Labels that GFD does not own are not removed."""
    gone: Iterable[str] = (key for key in present if owns(key) and key not in wanted)
    changed = {key: value for key, value in wanted.items() if present.get(key) != value}
    return {**dict.fromkeys(gone), **changed}


def _sharing(config: SimPluginConfig, resource: str) -> tuple[int, str, str]:
    replicas = (config.replicas or {}).get(resource)
    if replicas is None:
        return 1, "none", ""
    return replicas, config.sharing, "" if config.rename else "-SHARED"


def _whole(gpus: tuple[GPU, ...], model: Model, config: SimPluginConfig) -> dict[str, str]:
    """Return the labels for the GPUs of this model. Those in MIG mode are counted too."""
    replicas, strategy, suffix = _sharing(config, RESOURCE_GPU)
    same = [gpu for gpu in gpus if gpu.product == model.product]
    if all(gpu.mig_mode == "Enabled" for gpu in same):
        replicas, strategy, suffix = 0, "none", ""  # no GPU is whole
    return {
        LABEL_GPU_PRODUCT: bare_product(model.product) + suffix,
        LABEL_GPU_COUNT: str(len(same)),
        LABEL_GPU_REPLICAS: str(replicas),
        LABEL_SHARING_STRATEGY: strategy,
        LABEL_GPU_MEMORY: str(_memory_mib(model)),
    }


def _single(reading: Reading, model: Model, config: SimPluginConfig) -> dict[str, str]:
    gpus = reading.gpus
    divided = next((gpu.product for gpu in gpus if gpu.mig_mode == "Enabled"), None)
    if divided is not None:
        model = _model(reading, divided)  # GFD shows the model of the first divided GPU, whatever the turn
    try:
        name = single_profile(gpus)
    except PluginError:
        return {
            LABEL_GPU_PRODUCT: f"{bare_product(model.product)}-MIG-INVALID",
            LABEL_GPU_COUNT: "0",
            LABEL_GPU_REPLICAS: "0",
            LABEL_SHARING_STRATEGY: "",
            LABEL_GPU_MEMORY: "0",
        }
    if not name:
        return _whole(gpus, model, config)
    count = sum(len(mig_devices(gpu)) for gpu in gpus)
    return _instances("nvidia.com/gpu", RESOURCE_GPU, name, count, model, config)


def _instances(
    prefix: str, resource: str, name: str, count: int, model: Model, config: SimPluginConfig
) -> dict[str, str]:
    profile = next(known for known in model.profiles if known.name == name)
    replicas, strategy, suffix = _sharing(config, resource)
    return {
        f"{prefix}.product": f"{bare_product(model.product)}-MIG-{name.replace('+', '.')}{suffix}",
        f"{prefix}.count": str(count),
        f"{prefix}.replicas": str(replicas),
        f"{prefix}.sharing-strategy": strategy,
        f"{prefix}.memory": str(_memory(profile, model)),
        f"{prefix}.slices.gi": str(profile.slices),
        f"{prefix}.slices.ci": str(profile.slices),
    }


def _memory(profile: Profile, model: Model) -> int:
    total = max((known.memory_gb for known in model.profiles), default=0)
    return _memory_mib(model) * profile.memory_gb // total if total else 0


def _memory_mib(model: Model) -> int:
    card = find_card(model.product)
    return 0 if card is None else card.memory_mib or card.memory_gb * 1024

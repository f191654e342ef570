"""SIMULATED gpu-feature-discovery: the labels that it puts on a node, as a function (docs/design/nvidia.md#c).

GFD counts per card model and writes the labels of one model over those of another, in an order that Go leaves open and
that may change at each run (k8s-device-plugin v0.19.3, internal/lm/mig-strategy.go, newGPULabelers); models with a
whole GPU come last. Here the models take turns.

Not simulated: engine and multiprocessor counts, machine, clique and CUDA versions. The memory of a MIG instance is its
share of the card without the few hundred MiB that the driver reserves.
"""

import re
from collections.abc import Iterable, Mapping

from gpusharing.agent.library import Reading
from gpusharing.api.gpunode import GPU, DriverProfile, Model
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
from gpusharing.planning.gpus.cards import bare_product
from gpusharing.planning.gpus.geometry import resource_name
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


def owns(label: str) -> bool:
    """Whether GFD writes a label of this name while it runs, and removes it when it is turned off or crash-loops (b.4).
    False for the labels of the GPU Operator, mig-manager and ours."""
    return _OWNED.fullmatch(label) is not None


def labels(reading: Reading, config: SimPluginConfig, started: int, turn: int = 0) -> dict[str, str]:
    """Return all labels that GFD gives a node: whether any model supports MIG, whether MPS is configured, the time
    stamp `started`, and family, compute capability and mode of one model; then the MIG strategy, unless it is none, and
    by strategy the labels of `_whole`, `_single` or `_mixed`. Empty if the node has no GPUs. `started` is when this GFD
    process began, in seconds since 1970. `turn` numbers the runs of its loop, and selects the model whose labels are
    shown (`_shown`).

    Raises PluginError if no GPU answers, or if MPS is configured and MIG is on at any GPU. Raises StopIteration if a
    GPU's model or an instance's profile is missing from the reading."""
    gpus = reading.gpus
    if not gpus:
        return {}
    model = _shown(reading, turn)
    if config.sharing == "mps" and any(gpu.mig_mode == "Enabled" for gpu in gpus):
        raise PluginError("failed to check MPS-capable: MPS sharing is not supported for mig devices")
    node_labels = {
        **_constant(model),
        LABEL_MIG_CAPABLE: str(any(known.mig_capable for known in reading.models)).lower(),
        LABEL_MPS_CAPABLE: str(config.sharing == "mps").lower(),
        LABEL_GFD_TIMESTAMP: str(started),
    }
    if config.mig_strategy == "none":
        return {**node_labels, **_whole(gpus, model, config)}
    node_labels[LABEL_MIG_STRATEGY] = config.mig_strategy
    if config.mig_strategy == "single":
        return {**node_labels, **_single(reading, model, config)}
    return {**node_labels, **_mixed(reading, model, config)}


def _shown(reading: Reading, turn: int) -> Model:
    """Return the model whose labels win in this turn. The candidates are the models of the GPUs that answer, but if MIG
    is off on some of these, only the models of those. They take turns in the order of the GPUs. Raises PluginError if
    no GPU answers."""
    answering = [gpu for gpu in reading.gpus if gpu.access == "Ok"]
    if not answering:
        raise PluginError("no GPU answers")
    whole = [gpu.product for gpu in answering if gpu.mig_mode != "Enabled"]
    products = list(dict.fromkeys(whole or [gpu.product for gpu in answering]))
    return _model(reading, products[turn % len(products)])


def _model(reading: Reading, product: str) -> Model:
    """Return the model of this product. Raises StopIteration if the reading does not contain it."""
    return next(model for model in reading.models if model.product == product)


def changes(present: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str | None]:
    """Return the label patch that turns `present` into `wanted`: the changed labels only; a value of None removes a
    label. Labels that GFD does not own are not removed."""
    gone: Iterable[str] = (key for key in present if owns(key) and key not in wanted)
    changed = {key: value for key, value in wanted.items() if present.get(key) != value}
    return {**dict.fromkeys(gone), **changed}


def _constant(model: Model) -> dict[str, str]:
    """Return the labels that do not depend on the configuration: family, major and minor compute capability, and mode,
    which is always `compute`. The family is `undefined` if neither table of families has the capability."""
    major, _, minor = model.compute_capability.partition(".")
    number = int(major or 0)
    family = _LATER_FAMILIES.get((number, int(minor or 0))) or _FAMILIES.get(number, "undefined")
    return {
        "nvidia.com/gpu.family": family,
        "nvidia.com/gpu.compute.major": major,
        "nvidia.com/gpu.compute.minor": minor,
        "nvidia.com/gpu.mode": "compute",
    }


def _sharing(config: SimPluginConfig, resource: str) -> tuple[int, str, str]:
    """Return (number of replicas, sharing strategy, product suffix) of a resource, or (1, "none", "") if it is not
    shared. The suffix of a shared one is `-SHARED`, or empty if the configuration renames the resource."""
    replicas = (config.replicas or {}).get(resource)
    if replicas is None:
        return 1, "none", ""
    return replicas, config.sharing, "" if config.rename else "-SHARED"


def _whole(gpus: tuple[GPU, ...], model: Model, config: SimPluginConfig) -> dict[str, str]:
    """Return the labels for the whole GPUs of this model: product, count, replicas, sharing strategy and memory. GPUs
    of the model in MIG mode are counted too. If all of them are in MIG mode, there are 0 replicas, and the strategy is
    `none`."""
    replicas, strategy, suffix = _sharing(config, RESOURCE_GPU)
    same = [gpu for gpu in gpus if gpu.product == model.product]
    if all(gpu.mig_mode == "Enabled" for gpu in same):
        replicas, strategy, suffix = 0, "none", ""  # no GPU is whole
    return {
        LABEL_GPU_PRODUCT: bare_product(model.product) + suffix,
        LABEL_GPU_COUNT: str(len(same)),
        LABEL_GPU_REPLICAS: str(replicas),
        LABEL_SHARING_STRATEGY: strategy,
        LABEL_GPU_MEMORY: str(model.memory_mib),
    }


def _single(reading: Reading, model: Model, config: SimPluginConfig) -> dict[str, str]:
    """Return the labels for MIG strategy single: labels of instances if all GPUs are divided into instances of one
    profile, labels of whole GPUs if MIG is off everywhere, and otherwise labels of a MIG-INVALID product with 0
    GPUs. They describe the model of the first GPU with MIG on or, if MIG is off everywhere, `model`. Raises
    StopIteration if the reading lacks that model or its profile."""
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
    count = sum(len(gpu.instances) for gpu in gpus)
    return _instances("nvidia.com/gpu", RESOURCE_GPU, name, count, model, config)


def _mixed(reading: Reading, model: Model, config: SimPluginConfig) -> dict[str, str]:
    """Return the labels for MIG strategy mixed: labels for the whole GPUs of `model`, and labels for each profile that
    has instances on any GPU. The latter describe the model of the first GPU that has such an instance. Raises
    StopIteration if the reading lacks that model or its profile."""
    merged = _whole(reading.gpus, model, config)
    owners = [(instance.profile, gpu.product) for gpu in reading.gpus for instance in gpu.instances]
    names = [name for name, _ in owners]
    for name in sorted(set(names)):
        resource, first = resource_name(name), next(product for owned, product in owners if owned == name)
        merged |= _instances(resource, resource, name, names.count(name), _model(reading, first), config)
    return merged


def _instances(
    prefix: str, resource: str, name: str, count: int, model: Model, config: SimPluginConfig
) -> dict[str, str]:
    """Return the labels for `count` MIG instances of the profile `name`: product, count, replicas, sharing strategy,
    memory, and slices of GPU and compute instance. `prefix` is the beginning of the labels' names, and `resource` the
    name under which the configuration lists replicas. Raises StopIteration if the model has no such profile."""
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


def _memory(profile: DriverProfile, model: Model) -> int:
    """Return the approximate memory of one MIG instance in MiB: the model's memory (0 if unknown) times the share that
    the profile's gigabytes have of the largest profile's, rounded down. 0 if the model has no profiles."""
    total = max((known.memory_gb for known in model.profiles), default=0)
    return (model.memory_mib or 0) * profile.memory_gb // total if total else 0

"""Predicts the labels that GPU Feature Discovery (GFD) writes for a layout and a configuration of the device
plugin."""

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from gpusharing.api import names
from gpusharing.planning.gpus.cards import bare_product, find_card
from gpusharing.planning.gpus.geometry import Layout, resource_name
from gpusharing.planning.snapshot.views import NodeView, ObservedView
from gpusharing.planning.wanted.pluginconfig import PluginConfig
from gpusharing.planning.wanted.target import Target


def expected_gfd_labels(target: Target, observed: ObservedView) -> tuple[Mapping[str, str], ...]:
    """Return the label sets that GPU Feature Discovery may write for the target (docs/design/nvidia.md#c), limited to
    product, counts, replicas, sharing and MIG strategy. Empty without GPUs. Raises ValueError unless the target has one
    layout for each observed GPU.

    There is one set for each card model on the node. If there are whole GPUs, only their models have a set, because GFD
    writes their labels last. GFD counts each model separately and overwrites the labels of one with those of the next,
    in an order that may change at each run (k8s-device-plugin v0.19.3, internal/lm/mig-strategy.go).
    """
    products = tuple(bare_product(gpu.product) for gpu in observed.gpus)
    return _expect(target.layouts, target.plugin, products)


@lru_cache(maxsize=1024)
def _expect(
    layouts: tuple[Layout | None, ...], plugin: PluginConfig, products: tuple[str, ...]
) -> tuple[Mapping[str, str], ...]:
    """Return the label sets for a node with these GPUs, one set for each different product that GFD may describe last,
    in the order of the GPUs. `products` and `layouts` must have one entry for each GPU; otherwise ValueError is raised.
    With MIG under strategy single, at least one layout must have instances; otherwise StopIteration is raised."""
    shared = "-SHARED" if plugin.sharing and not plugin.sharing.rename else ""
    # GFD writes the labels of models with a whole GPU last, so those of one such model remain.
    whole = [product for product, layout in zip(products, layouts, strict=True) if layout is None]
    if len(whole) == len(products):
        return tuple(
            {**_whole_labels(plugin, count), names.LABEL_GPU_PRODUCT: product + shared}
            for product, count in Counter(products).items()
        )
    common, suffix = _mig_labels(layouts, plugin), shared if whole else ""
    if plugin.mig_strategy == "single":
        profile = next(layout[0][0] for layout in layouts if layout)
        suffix = f"-MIG-{profile.replace('+', '.')}{shared}"
    shown = dict.fromkeys(whole or products)
    return tuple({**common, names.LABEL_GPU_PRODUCT: product + suffix} for product in shown)


def _whole_labels(plugin: PluginConfig, gpus: int) -> dict[str, str]:
    """Return the labels of a node with `gpus` GPUs without MIG, except the product: the count, the replicas of the
    first shared resource (1 without sharing), the sharing strategy (`none` without sharing) and, only under MPS,
    mps.capable."""
    sharing = plugin.sharing
    return {
        names.LABEL_GPU_COUNT: str(gpus),
        names.LABEL_GPU_REPLICAS: str(sharing.replicas[0][1] if sharing else 1),
        names.LABEL_SHARING_STRATEGY: sharing.strategy if sharing else "none",
        **({names.LABEL_MPS_CAPABLE: "true"} if sharing and sharing.strategy == "mps" else {}),
    }


def _mig_labels(layouts: tuple[Layout | None, ...], plugin: PluginConfig) -> dict[str, str]:
    """Return the labels of a node with MIG, except the product. With strategy single, they are the MIG strategy and,
    for the whole node, the count, the replicas and the sharing strategy. With strategy mixed, they are the MIG strategy
    and, for each profile, the count and the replicas. The replicas are those of the first shared resource, or 1 without
    sharing."""
    sharing = plugin.sharing
    replicas = sharing.replicas[0][1] if sharing else 1
    instances: Counter[str] = Counter()
    for layout in layouts:
        instances.update(dict(layout or ()))
    if plugin.mig_strategy == "single":
        return {
            names.LABEL_MIG_STRATEGY: "single",
            names.LABEL_GPU_COUNT: str(instances.total()),
            names.LABEL_GPU_REPLICAS: str(replicas),
            names.LABEL_SHARING_STRATEGY: sharing.strategy if sharing else "none",
        }
    expected = {names.LABEL_MIG_STRATEGY: "mixed"}
    for profile, count in instances.items():
        expected[f"{resource_name(profile)}.count"] = str(count)
        expected[f"{resource_name(profile)}.replicas"] = str(replicas)
    return expected


_MEMORY = "nvidia.com/gpu.memory"
"""GFD's label with the memory of a GPU, or of an instance under strategy single, in MiB."""
_OF_INSTANCES = ("nvidia.com/gpu.multiprocessors", "nvidia.com/gpu.slices.", "nvidia.com/gpu.engines.")
"""Prefixes of labels that GFD writes only under strategy single, from what NVML reports about the instances."""


def future_labels(
    node: NodeView, target: Target, observed: ObservedView, policy: str
) -> tuple[Mapping[str, str], ...]:
    """Return all labels that the node will have when the change to `target` is done, once for each label set that GFD
    may write (`expected_gfd_labels`). `policy` is the name of the policy that will own the node, which must have a GPU.

    The operator's own two labels and the labels of the device plugin's and mig-manager's configuration have the values
    of the target, and mig-manager's state is `success` if the target sets mig-manager's label. Labels about MIG that
    GFD will no longer write are left out, and any other label whose future value is unknown keeps its present value.
    The memory of an instance is taken from the GB in the name of its profile. Raises ValueError unless the target has
    one layout for each observed GPU.
    """
    strategy, before = target.plugin.mig_strategy, node.labels.get(names.LABEL_MIG_STRATEGY, "none")
    own = {**node.labels, names.LABEL_MODE: target.routing, names.LABEL_POLICY: policy}
    if (observed.hardware.layouts, before) != (target.layouts, strategy):
        gone = (names.LABEL_MIG_STRATEGY, *(() if strategy == "single" else _OF_INSTANCES))
        own = {key: value for key, value in own.items() if not key.startswith(gone) and _stays(key, target)}
        if "single" in (strategy, before) and (memory := _find_memory(target, observed)):
            own[_MEMORY] = str(memory)
    own |= {names.LABEL_MPS_CAPABLE: "false", names.LABEL_PLUGIN_CONFIG: target.plugin_key}
    if not target.plugin_key:
        del own[names.LABEL_PLUGIN_CONFIG]
    if target.mig_config:
        own |= {names.LABEL_MIG_CONFIG: target.mig_config, names.LABEL_MIG_STATE: "success"}
    if strategy == "mixed" and None not in target.layouts:
        own |= {names.LABEL_GPU_REPLICAS: "0", names.LABEL_SHARING_STRATEGY: "none"}
        own[names.LABEL_GPU_COUNT] = str(len(target.layouts))
    return tuple({**own, **written} for written in expected_gfd_labels(target, observed))


def _stays(label: str, target: Target) -> bool:
    """Whether the label is about no MIG profile, or about one that GFD still describes after the change to `target`.
    GFD describes a profile if the target has it under strategy mixed."""
    if not label.startswith(names.RESOURCE_MIG_PREFIX):
        return True
    profiles = {profile for layout in target.layouts for profile, _ in layout or ()}
    described = tuple(f"{resource_name(profile)}." for profile in profiles)
    return target.plugin.mig_strategy == "mixed" and label.startswith(described)


def _find_memory(target: Target, observed: ObservedView) -> int:
    """Return the MiB that the label gpu.memory will have, derived from the first GPU: an instance's memory under
    strategy single, else the whole card's. 0 if it is unknown. The node must have a GPU."""
    gpu, layout = observed.gpus[0], target.layouts[0]
    if target.plugin.mig_strategy == "single" and layout:
        return 1024 * next((one.memory_gb for one in gpu.profiles if one.name == layout[0][0]), 0)
    card = find_card(gpu.product)
    return (card.memory_mib or 1024 * card.memory_gb) if card is not None else 0

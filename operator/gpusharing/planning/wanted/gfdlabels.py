"""Predicts the labels that GPU Feature Discovery (GFD) writes for a layout and a configuration of the device plugin."""

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
    """Return the label sets that GPU Feature Discovery may write for the target (docs/design/nvidia.md#c): product, counts, replicas, sharing and MIG strategy.

    There is one set for each card model on the node. If there are whole GPUs, only their models have a set, because GFD
    writes their labels last. GFD counts each model separately and overwrites the labels of one with those of the next,
    in an order that may change at each run (k8s-device-plugin v0.19.3, internal/lm/mig-strategy.go).

    Raises ValueError unless the target has one layout for each observed GPU.
    """
    products = tuple(bare_product(gpu.product) for gpu in observed.gpus)
    return _expect(target.layouts, target.plugin, products)


@lru_cache(maxsize=1024)
def _expect(
    layouts: tuple[Layout | None, ...], plugin: PluginConfig, products: tuple[str, ...]
) -> tuple[Mapping[str, str], ...]:
    replicas, sharing = str(plugin.replicas), plugin.sharing
    shared = "-SHARED" if sharing and not sharing.rename else ""
    labels = {
        names.LABEL_GPU_REPLICAS: replicas,
        names.LABEL_SHARING_STRATEGY: sharing.strategy if sharing else "none",
    }
    whole = [product for product, layout in zip(products, layouts, strict=True) if layout is None]
    if len(whole) == len(products):
        if sharing and sharing.strategy == "mps":
            labels[names.LABEL_MPS_CAPABLE] = "true"
        return tuple(
            {names.LABEL_GPU_COUNT: str(count), **labels, names.LABEL_GPU_PRODUCT: product + shared}
            for product, count in Counter(products).items()
        )
    instances: Counter[str] = Counter()
    for layout in layouts:
        instances.update(dict(layout or ()))
    if plugin.mig_strategy == "single":
        common = {names.LABEL_MIG_STRATEGY: "single", names.LABEL_GPU_COUNT: str(instances.total()), **labels}
        profile = next(layout[0][0] for layout in layouts if layout)
        suffix = f"-MIG-{profile.replace('+', '.')}{shared}"
    else:
        common, suffix = {names.LABEL_MIG_STRATEGY: "mixed"}, shared if whole else ""
        for profile, count in instances.items():
            common[f"{resource_name(profile)}.count"] = str(count)
            common[f"{resource_name(profile)}.replicas"] = replicas
    shown = dict.fromkeys(whole or products)
    return tuple({**common, names.LABEL_GPU_PRODUCT: product + suffix} for product in shown)


def future_labels(
    node: NodeView, target: Target, observed: ObservedView, policy: str
) -> tuple[Mapping[str, str], ...]:
    """Return all labels that the node will have when the change to `target` is done, once for each label set that GFD may write.

    `policy` is the name of the policy that will own the node. Labels about MIG that GFD will no longer write are left
    out, and any other label whose future value is unknown keeps its present value. The memory of an instance is taken
    from the GB in the name of its profile. Raises ValueError unless the target has one layout for each observed GPU.
    """
    strategy, before = target.plugin.mig_strategy, node.labels.get(names.LABEL_MIG_STRATEGY, "none")
    own = {**node.labels, names.LABEL_MODE: target.routing, names.LABEL_POLICY: policy}
    if (observed.hardware.layouts, before) != (target.layouts, strategy):
        # GFD writes the last three only under strategy single, from what NVML reports about the instances.
        of_instances = ("nvidia.com/gpu.multiprocessors", "nvidia.com/gpu.slices.", "nvidia.com/gpu.engines.")
        gone = (names.LABEL_MIG_STRATEGY, *(() if strategy == "single" else of_instances))
        profiles = {profile for layout in target.layouts for profile, _ in layout or ()}
        described = tuple(f"{resource_name(one)}." for one in profiles) if strategy == "mixed" else ()
        own = {
            key: value
            for key, value in own.items()
            if not key.startswith(gone)
            and (not key.startswith(names.RESOURCE_MIG_PREFIX) or key.startswith(described))
        }
        if "single" in (strategy, before) and (memory := _find_memory(target, observed)):
            own["nvidia.com/gpu.memory"] = str(memory)
    own |= {names.LABEL_MPS_CAPABLE: "false", names.LABEL_PLUGIN_CONFIG: target.plugin_key}
    if not target.plugin_key:
        del own[names.LABEL_PLUGIN_CONFIG]
    if target.mig_config:
        own |= {names.LABEL_MIG_CONFIG: target.mig_config, names.LABEL_MIG_STATE: "success"}
    if strategy == "mixed" and None not in target.layouts:
        own |= {names.LABEL_GPU_REPLICAS: "0", names.LABEL_SHARING_STRATEGY: "none"}
        own[names.LABEL_GPU_COUNT] = str(len(target.layouts))
    return tuple({**own, **written} for written in expected_gfd_labels(target, observed))


def _find_memory(target: Target, observed: ObservedView) -> int:
    """Return the MiB that the label gpu.memory will have: an instance's under strategy single, else the whole card's; 0 if unknown."""
    gpu, layout = observed.gpus[0], target.layouts[0]
    if target.plugin.mig_strategy == "single" and layout:
        return 1024 * next((one.memory_gb for one in gpu.profiles if one.name == layout[0][0]), 0)
    card = find_card(gpu.product)
    return (card.memory_mib or 1024 * card.memory_gb) if card is not None else 0

"""Which labels GPU Feature Discovery (GFD) writes for a layout and a configuration of the device plugin."""

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from gpusharing.api import names
from gpusharing.planning.gpus.cards import bare_product
from gpusharing.planning.gpus.geometry import Layout, resource_name
from gpusharing.planning.snapshot.views import ObservedView
from gpusharing.planning.wanted.pluginconfig import PluginConfig
from gpusharing.planning.wanted.target import Target


def expected_gfd_labels(target: Target, observed: ObservedView) -> tuple[Mapping[str, str], ...]:
    """The label sets that GPU Feature Discovery may write for the target (docs/design/nvidia.md#c).

    One per card model on the node: it counts per model and writes one over the other, in an order that may change at
    each run (k8s-device-plugin v0.19.3, internal/lm/mig-strategy.go).
    """
    products = tuple(bare_product(gpu.product) for gpu in observed.gpus)
    return _expect(target.layouts, target.plugin, products)


@lru_cache(maxsize=1024)
def _expect(
    layouts: tuple[Layout | None, ...], plugin: PluginConfig, products: tuple[str, ...]
) -> tuple[Mapping[str, str], ...]:
    shared = "-SHARED" if plugin.sharing and not plugin.sharing.rename else ""
    # Models with a whole GPU come last, so one of them stays.
    whole = [product for product, layout in zip(products, layouts, strict=True) if layout is None]
    if len(whole) == len(products):
        return tuple(
            {**_whole_labels(plugin, count), names.LABEL_GPU_PRODUCT: product + shared}
            for product, count in Counter(products).items()
        )
    common = _mig_labels(layouts, plugin)
    if plugin.mig_strategy == "single":
        profile = next(layout[0][0] for layout in layouts if layout)
        suffix = f"-MIG-{profile.replace('+', '.')}{shared}"
    else:
        suffix = shared if whole else ""
    shown = dict.fromkeys(whole or products)
    return tuple({**common, names.LABEL_GPU_PRODUCT: product + suffix} for product in shown)


def _whole_labels(plugin: PluginConfig, gpus: int) -> dict[str, str]:
    sharing = plugin.sharing
    return {
        names.LABEL_GPU_COUNT: str(gpus),
        names.LABEL_GPU_REPLICAS: str(sharing.replicas[0][1] if sharing else 1),
        names.LABEL_SHARING_STRATEGY: sharing.strategy if sharing else "none",
        **({names.LABEL_MPS_CAPABLE: "true"} if sharing and sharing.strategy == "mps" else {}),
    }


def _mig_labels(layouts: tuple[Layout | None, ...], plugin: PluginConfig) -> dict[str, str]:
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

"""What a policy makes of two whole GPUs, written down by hand: the tests' own opinion, not the planner's."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hack.sim.node import SimNode

from gpusharing.kube.client import JSON

NAMED: Mapping[str, Mapping[str, int]] = {
    "all-1g.10gb": {"1g.10gb": 7},
    "all-1g.20gb": {"1g.20gb": 4},
    "all-3g.40gb": {"3g.40gb": 2},
    "all-balanced": {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1},
}
"""Profiles per GPU of the named configurations that the tests use, for cards with 80 GB (docs/design/nvidia.md#a10)."""
NAMED_A30: Mapping[str, Mapping[str, int]] = {"all-balanced": {"1g.6gb": 2, "2g.12gb": 1}}
"""The same for A30, which has four slices."""


Named = Mapping[str, Mapping[str, int]]


def wanted_layouts(spec: JSON, products: Sequence[str], site: Named | None = None) -> list[Mapping[str, int] | None]:
    """Instances per GPU; None: MIG off. `site`: what entries of the admin's own mean."""
    gpus = len(products)
    if spec["mode"] != "MIG":
        return [None] * gpus
    mig = spec["mig"]
    if "config" in mig:
        named = [{**(NAMED_A30 if "A30" in product else NAMED), **(site or {})} for product in products]
        unknown = {f"those of {mig['config']}, which the tests do not know": 1}
        return [known.get(mig["config"], unknown) for known in named]
    layouts: list[Mapping[str, int] | None] = [None] * gpus
    for row in mig["layouts"]:
        for index in row.get("devices", range(gpus)):
            layouts[index] = row["profiles"] or None
    return layouts


def wanted_resources(spec: JSON, products: Sequence[str], site: Named | None = None) -> dict[str, int]:
    gpus = len(products)
    if spec["mode"] == "Full":
        return {"nvidia.com/gpu": gpus}
    shares = spec.get("timeSlicing") or spec.get("mps") or {}
    suffix = ".shared" if shares.get("renameByDefault") else ""
    if spec["mode"] in ("TimeSlicing", "MPS"):
        return {f"nvidia.com/gpu{suffix}": gpus * shares["replicas"]}
    counts: Counter[str] = Counter()
    for layout in wanted_layouts(spec, products, site):
        for profile, count in (layout or {}).items():
            counts[f"nvidia.com/mig-{profile.replace('+', '.')}"] += count
        counts["nvidia.com/gpu"] += layout is None
    if spec["mig"].get("strategy") == "single":
        counts = Counter({"nvidia.com/gpu": counts.total()})
    return {f"{name}{suffix}": count * shares.get("replicas", 1) for name, count in counts.items() if count}


def published_resources(slices: Iterable[JSON]) -> dict[str, int]:
    """The resources that stand for the devices in these ResourceSlices of NVIDIA's DRA driver, with their numbers."""
    counts: Counter[str] = Counter()
    for raw in slices:
        for device in raw["spec"].get("devices") or ():
            profile = device["attributes"].get("profile", {}).get("string", "")
            counts[f"nvidia.com/mig-{profile.replace('+', '.')}" if profile else "nvidia.com/gpu"] += 1
    return dict(counts)


def difference(
    spec: JSON, node: JSON, machine: SimNode, site: Named | None = None, published: Mapping[str, int] | None = None
) -> str:
    """How the SIMULATED machine and the Node differ from what the spec wants; empty when they do not. `published`: the resources that the DRA driver's devices stand for, where it serves the GPUs and allocatable has none."""
    gpus = machine.gpus.look()
    products = [gpu.product for gpu in gpus]
    found: list[Mapping[str, int] | None] = [
        dict(Counter(instance.profile for instance in gpu.instances)) if gpu.mig_mode == "Enabled" else None
        for gpu in gpus
    ]
    wanted = wanted_layouts(spec, products, site)
    if found != wanted:
        return f"instances {found}, wanted {wanted}"
    clients = spec["mps"]["replicas"] if spec["mode"] == "MPS" else None
    if machine.mps.clients != clients:
        return f"{machine.mps.clients} clients of MPS, wanted {clients}"
    mode = "ExclusiveProcess" if clients else "Default"
    if odd := [gpu.compute_mode for gpu in gpus if gpu.compute_mode != mode]:
        return f"compute modes {odd}, wanted {mode}"
    allocatable: Mapping[str, Any] = node["status"]["allocatable"]
    capacity: Mapping[str, Any] = node["status"].get("capacity") or {}
    served = {  # with the devices that the plugin calls unhealthy
        name: int(capacity.get(name, count))
        for name, count in allocatable.items()
        if name.startswith("nvidia.com/") and count != "0"
    }
    if published is not None and served:
        return f"allocatable {served} beside the DRA driver"
    served = served if published is None else dict(published)
    if served != wanted_resources(spec, products, site):
        return f"serves {served}, wanted {wanted_resources(spec, products, site)}"
    paused = [key for key, value in node["metadata"]["labels"].items() if "paused-for" in value]
    return f"paused {paused}" if paused else ""

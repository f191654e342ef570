"""GPU fleets that somebody configured by hand, each by a recipe that people follow, and the policies that they are.
Sources: NVIDIA GPU Operator, pages "Time-Slicing GPUs in Kubernetes" (several configurations, chosen by a label) and "GPU Operator with MIG" (custom-mig-config); articles on mixed fleets (one configuration as the default of the cluster, all-1g.20gb and all-3g.40gb by label)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpusharing.kube.client import JSON

H100, L40S = "NVIDIA H100 80GB HBM3", "NVIDIA L40S"
PLUGIN, MIG = "nvidia.com/device-plugin.config", "nvidia.com/mig.config"


@dataclass(frozen=True)
class RecipePool:
    """Nodes that somebody configured alike, and what they are as a policy."""

    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    product: str = H100
    count: int = 1
    forgotten: bool = False
    """No label says any more what mig-manager was told: as if nos or nvidia-smi had made the instances."""


@dataclass(frozen=True)
class Recipe:
    cluster_policy: JSON
    config_maps: Mapping[str, Mapping[str, str]]
    pools: Mapping[str, RecipePool] = field(default_factory=dict)


def time_slicing(replicas: Mapping[str, int], flags: str = "") -> str:
    """A configuration of the device plugin as documentation has it."""
    rows = "".join(f"      - name: {name}\n        replicas: {count}\n" for name, count in replicas.items())
    return f"version: v1\n{flags}sharing:\n  timeSlicing:\n    resources:\n{rows}"


def parted(entries: Mapping[str, Mapping[str, int]]) -> str:
    text = "version: v1\nmig-configs:\n  all-disabled:\n    - devices: all\n      mig-enabled: false\n"
    for name, profiles in entries.items():
        rows = "".join(f'        "{profile}": {count}\n' for profile, count in profiles.items())
        text += f"  {name}:\n    - devices: all\n      mig-enabled: true\n      mig-devices:\n{rows}"
    return text


MIXED_FLAG = "flags:\n  migStrategy: mixed\n  plugin:\n    passDeviceSpecs: true\n"
EVERYTHING = {
    "nvidia.com/gpu": 8,
    "nvidia.com/mig-1g.10gb": 2,
    "nvidia.com/mig-2g.20gb": 2,
    "nvidia.com/mig-3g.40gb": 2,
    "nvidia.com/mig-7g.80gb": 7,
}
BALANCED = {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}

DOCUMENTED = Recipe(
    cluster_policy={
        "devicePlugin": {"config": {"name": "time-slicing-config-fine"}},
        "migManager": {"enabled": True, "config": {"name": "custom-mig-config", "default": "all-disabled"}},
        "mig": {"strategy": "mixed"},
    },
    config_maps={
        "time-slicing-config-fine": {
            "h100-80gb": time_slicing(EVERYTHING, MIXED_FLAG),
            "l40s": time_slicing({"nvidia.com/gpu": 4}),
        },
        "custom-mig-config": {
            "config.yaml": parted({"five-1g-one-2g": {"1g.10gb": 5, "2g.20gb": 1}, "all-balanced": BALANCED})
        },
    },
    pools={
        "a": RecipePool(
            {MIG: "five-1g-one-2g"},
            {"mode": "MIG", "mig": {"strategy": "mixed", "layouts": [{"profiles": {"2g.20gb": 1, "1g.10gb": 5}}]}},
            count=2,
        ),
        "b": RecipePool(
            {MIG: "all-balanced", PLUGIN: "h100-80gb"},
            {"mode": "MIG", "mig": {"strategy": "mixed", "config": "all-balanced"}, "timeSlicing": {"replicas": 2}},
        ),
        "c": RecipePool({}, {"mode": "Full"}),
        "d": RecipePool({PLUGIN: "l40s"}, {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}, L40S),
    },
)
"""A configuration for each kind of card, one of them for whole GPUs and instances alike, and a layout of one's own."""

BY_DEFAULT = Recipe(
    cluster_policy={
        "devicePlugin": {"config": {"name": "time-slicing-config", "default": "any"}},
        "migManager": {"enabled": True, "config": {"default": "all-disabled"}},
        "mig": {"strategy": "mixed"},
    },
    config_maps={"time-slicing-config": {"any": time_slicing({"nvidia.com/gpu": 4}), "whole": "version: v1\n"}},
    pools={
        "a": RecipePool({MIG: "all-1g.20gb"}, {"mode": "MIG", "mig": {"strategy": "mixed", "config": "all-1g.20gb"}}),
        "b": RecipePool({MIG: "all-3g.40gb"}, {"mode": "MIG", "mig": {"strategy": "mixed", "config": "all-3g.40gb"}}),
        "c": RecipePool({PLUGIN: "whole"}, {"mode": "Full"}),
        "d": RecipePool({}, {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}, L40S),
    },
)
"""Time-slicing as the cluster's default, MIG by NVIDIA's own names, and one pool taken out by a label."""
NOS = Recipe(
    cluster_policy={
        "devicePlugin": {"config": {}},
        "migManager": {"enabled": True, "config": {"default": ""}},
        "mig": {"strategy": "mixed"},
    },
    config_maps={},
    pools={
        "m": RecipePool(
            {MIG: "all-1g.10gb", "nos.nebuly.com/gpu-partitioning": "mig"},
            {"mode": "MIG", "mig": {"strategy": "mixed", "config": "all-1g.10gb"}},
            forgotten=True,
        ),
        "c": RecipePool({}, {"mode": "Full"}),
    },
)
"""nos partitions by itself, by NVML; here with NVIDIA's mig-manager started again beside what nos has left."""
BY_ENTRY = Recipe(
    cluster_policy={
        "devicePlugin": {"config": {"name": "plugin-configs", "default": "default"}},
        "migManager": {"enabled": True, "config": {"name": "default-mig-parted-config", "default": "all-disabled"}},
    },
    config_maps={
        "plugin-configs": {
            "default": "version: v1\nflags:\n  migStrategy: none\n",
            "single": "version: v1\nflags:\n  migStrategy: single\n",
            "mps-4": time_slicing({"nvidia.com/gpu": 4}).replace("timeSlicing", "mps"),
            "turns": time_slicing({"nvidia.com/gpu": 2}).replace(
                "    resources:", "    renameByDefault: true\n    failRequestsGreaterThanOne: true\n    resources:"
            ),
        },
        "default-mig-parted-config": {"config.yaml": parted({"all-1g.10gb": {"1g.10gb": 7}})},
    },
    pools={
        "a": RecipePool(
            {MIG: "all-1g.10gb", PLUGIN: "single"},
            {"mode": "MIG", "mig": {"strategy": "single", "config": "all-1g.10gb"}},
        ),
        "b": RecipePool({PLUGIN: "mps-4"}, {"mode": "MPS", "mps": {"replicas": 4}}),
        "c": RecipePool({}, {"mode": "Full"}),
        "d": RecipePool(
            {PLUGIN: "turns"},
            {
                "mode": "TimeSlicing",
                "timeSlicing": {"replicas": 2, "renameByDefault": True, "failRequestsGreaterThanOne": True},
            },
            L40S,
        ),
    },
)
"""Every mode by an entry of its own, the cluster's default among them, and the mig-parted entries of older versions."""
RECIPES = {
    "of NVIDIA's documentation": DOCUMENTED,
    "with a default for the cluster": BY_DEFAULT,
    "with an entry for each mode": BY_ENTRY,
}

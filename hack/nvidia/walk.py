"""The walk through all modes that rung 3 and `make demo DRIVER=nvidia` take, and what nodes of two H100 serve then."""

from dataclasses import dataclass

from hack.cluster.api import Object

FULL: Object = {"mode": "Full"}
HALVES: Object = {
    "mode": "MIG",
    "mig": {"strategy": "mixed", "layouts": [{"devices": "all", "profiles": {"3g.40gb": 2}}]},
}
MIXED: Object = {
    "mode": "MIG",
    "mig": {
        "strategy": "mixed",
        "layouts": [{"devices": "all", "profiles": {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}}],
    },
}
SINGLE: Object = {"mode": "MIG", "mig": {"strategy": "single", "config": "all-1g.10gb"}}


@dataclass(frozen=True)
class Stop:
    """One mode."""

    text: str
    spec: Object
    served: dict[str, int]
    """Allocatable per node."""


WALK = (
    Stop("Full", FULL, {"nvidia.com/gpu": 2}),
    Stop("MIG mixed", HALVES, {"nvidia.com/mig-3g.40gb": 4}),
    Stop(
        "MIG mixed in another geometry",
        MIXED,
        {"nvidia.com/mig-1g.10gb": 4, "nvidia.com/mig-2g.20gb": 2, "nvidia.com/mig-3g.40gb": 2},
    ),
    Stop("MIG with time-slicing", {**HALVES, "timeSlicing": {"replicas": 3}}, {"nvidia.com/mig-3g.40gb": 12}),
    Stop("Full again", FULL, {"nvidia.com/gpu": 2}),
    Stop("TimeSlicing", {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}, {"nvidia.com/gpu": 8}),
    Stop("MPS", {"mode": "MPS", "mps": {"replicas": 4}}, {"nvidia.com/gpu": 8}),
    Stop("MIG single, through Full", SINGLE, {"nvidia.com/gpu": 14}),
)

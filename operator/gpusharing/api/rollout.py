"""How a change moves over a node pool: the block `spec.rollout` of a policy. Edit, then `make gen`."""

from typing import Annotated, Literal

from pydantic import Field

from gpusharing.api import rules
from gpusharing.api.base import Duration, WireModel
from gpusharing.api.rules import cel

MAX_WINDOWS = 16
"""How many windows, and how many blackouts, a policy may have: CEL needs a bound."""


class Window(WireModel):
    """A recurring time window."""

    schedule: Annotated[str, Field(min_length=9, max_length=128, json_schema_extra=cel(rules.SCHEDULE))]
    """When it begins, in cron syntax: minute, hour, day of month, month, day of week; for example "0 22 * * 1-5"."""
    duration: Duration
    """How long it lasts, in elapsed time, for example 6h."""
    time_zone: Annotated[str, Field(min_length=1, max_length=64, json_schema_extra=cel(rules.TIME_ZONE))] = (
        "UTC"
    )
    """Time zone of the schedule: a name of the IANA time zone database, for example Europe/Berlin."""


Windows = Annotated[tuple[Window, ...], Field(max_length=MAX_WINDOWS)]


class Canary(WireModel):
    """The first nodes of a change, for which the others wait."""

    nodes: Annotated[int, Field(ge=1, le=5000)] = 1
    """How many nodes. If the pool has exactly as many, all are canaries and no node waits; if it has fewer, no node in
    service starts."""
    soak: Duration = "10m"
    """How long they must have served since their proof before the next node starts."""


class Timeouts(WireModel):
    """How long the steps after the point of no return may take before a node counts as Failed."""

    actuation: Duration = "30m"
    """From the label change until mig-manager and the device plugin are done."""
    verification: Duration = "10m"
    """From then until NVML, the labels and the allocatable resources agree."""


class Rollout(WireModel):
    """How the change moves over the pool."""

    max_unavailable: (
        Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=rules.PERCENT, max_length=8)]
    ) = Field(
        default=1,
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "maxLength": 8,
            **cel(rules.MAX_UNAVAILABLE),
        },
    )
    """Nodes that may be unavailable at once: a number, or a percentage of the pool such as "25%"
    (rounded down, at least 1; nodes without a GPU or of products left out do not count). 0 freezes the pool."""
    paused: bool = False
    """Start no further node."""
    when_paused: Literal["Finish", "Hold", "Abort"] = "Finish"
    """What happens to nodes in flight that are not past the point of no return. Finish: they go on. Hold: no further
    pod is evicted, and the node waits cordoned until drain.timeout restores it, or longer with drain.onTimeout: Hold.
    Abort: they are restored at once."""
    windows: Windows = ()
    """When nodes may start. A node starts only while enough of the window is left for drain.timeout and for the slowest
    of the last 20 changes of the pool (15m before the first); nodes in flight finish. None: at any time."""
    blackouts: Windows = ()
    """When no node may start, whatever the windows say."""
    canary: Canary | None = None
    """Change some nodes first, and the others once these are proven and have served for a while."""
    approval: Literal["Automatic", "Manual"] = "Automatic"
    """Manual: no node starts before the annotation gpusharing.dev/approve of the policy has the hash of the plan
    (status.plan.hash)."""
    max_failures: Annotated[int, Field(ge=1, le=5000)] = 1
    """When so many nodes have failed after the point of no return in one generation of the policy, no further node
    starts. The annotation gpusharing.dev/resume with that generation lets the rollout go on until so many more have
    failed, and with <generation>.2, .3 and so on until twice, three times as many have."""
    on_failure: Literal["Hold", "Rollback"] = "Hold"
    """What happens to a node that failed after the point of no return. Hold: it stays cordoned until a person retries
    it or changes the policy. Rollback: it goes back to what was proven on it last, once per generation or retry, and
    serves that; where nothing was proven, or going back fails too, it is held."""
    timeouts: Timeouts = Field(default_factory=Timeouts)
    """Limits for the steps that follow the drain."""

"""What we leave on Nodes and on the leader Lease: the only memory of a change. `kube/fence.py` writes it as text."""

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict
from pydantic.alias_generators import to_camel

from gpusharing.api.names import DisruptionClass
from gpusharing.api.times import Moment

_WRITTEN = ConfigDict(alias_generator=to_camel, strict=True)
"""As text: camelCase keys, and no value is taken for one of another type."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Our record on a Node of the change in flight. It is the only memory of that change.

    `stage` is `fenced` before the point of no return (PNR), `actuating` after it, `yielded` while somebody else
    maintains the node that we had fenced. Targets are empty before the PNR.
    """

    __pydantic_config__ = _WRITTEN

    op: str
    policy: str
    generation: int
    node_uid: str
    prior_unschedulable: bool
    added: tuple[str, ...]
    """Labels and annotations for the neighbours (docs/design/drain.md#c6) that we set and take away again."""
    disruption: DisruptionClass
    from_layout: str
    to_layout: str
    stage: Literal["fenced", "yielded", "actuating"]
    step: int
    steps: int
    attempt: int
    since: Moment
    stage_since: Moment
    deadline: Moment
    drift: bool = False
    """The change puts drift right; allowed once per generation."""
    from_mode: str = ""
    """Routing label before the fence; an abort puts it back."""
    target_mode: str = ""
    target_mig_config: str = ""
    target_plugin_config: str = ""
    gfd_timestamp: str = ""
    """GFD's start time before the PNR; a plugin change is proven only by a later one."""
    daemon_uid: str = ""
    """The MPS daemon's pod that this attempt deletes; while that very pod lives, it is still to be deleted."""
    restart_uid: str = ""
    """The mig-manager pod that this attempt deletes; while that very pod lives, it is still to be deleted."""
    retry: str = ""
    """The value of the retry annotation that this attempt answers."""
    policy_uid: str = ""
    """Of the policy; another one of this name counts its attempts anew. Empty: not recorded."""
    owed: str = ""
    """What a run of the actuators that is still to begin leads to; it begins when the node is proven idle anew."""
    unknown: str = ""
    """JSON object of the keys that a newer operator wrote and this one does not know: kept as they are. Empty: none."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """Left on a Node by an abort: the next try waits until `until` (5 min · 2ⁿ)."""

    __pydantic_config__ = _WRITTEN

    count: int
    until: Moment
    reason: str
    generation: int
    retry: str = ""
    """The value of the retry annotation at the time; another one ends the wait."""
    policy_uid: str = ""
    """Whose change it was: a policy of another UID does not wait. Empty in records of older operators: any policy."""


@dataclass(frozen=True, slots=True)
class Verified:
    """Left on a Node by every release and adoption: what was proven there last."""

    __pydantic_config__ = _WRITTEN

    policy: str
    mig_config: str
    plugin_config: str
    corrected_generation: int = 0
    """The policy generation in which drift was already put right once; 0: never."""
    retry: str = ""
    """The value of the retry annotation at the time; another one allows one more correction."""
    layout: str = ""
    gpus: int = 0
    """What the pair meant, which an admin may change, and on how many GPUs; empty and 0: not recorded."""
    policy_uid: str = ""
    """Of the policy, whose generation it is: one of this name that was made anew counts anew. Empty: not recorded."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A slot of the disruption budget, held on the leader Lease."""

    __pydantic_config__ = _WRITTEN

    node_uid: str
    policy: str
    op: str

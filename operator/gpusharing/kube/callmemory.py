"""What the operator's process remembers of its own calls. It is kept in memory only: a restart forgets it."""

from dataclasses import dataclass, field

from gpusharing.planning.snapshot.memory import CallFailure
from gpusharing.planning.snapshot.podviews import EvictionMemory


@dataclass(slots=True)
class CallMemory:
    """The results of our calls that later passes need, recorded even while no pass waits for a call."""

    evictions: dict[str, dict[str, EvictionMemory]] = field(default_factory=dict)
    """The last answer to an eviction or a forced deletion, by node and pod UID."""
    failures: dict[str, CallFailure] = field(default_factory=dict)
    """Failed calls, by node name, or by the subject of a write that serves all nodes."""
    unsure: set[str] = field(default_factory=set)
    """Nodes whose pods must be listed again, because a call had no answer; removed when the LIST begins."""
    write_error: str = ""
    """Why the last write of our ConfigMaps was refused; empty if it was not."""
    taint_proof: tuple[bool, str] = (False, "")
    """Whether the scheduler obeyed DeviceTaintRules in its last test, and if not, why; empty before it."""

"""What the operator's process remembers of its own calls. It is kept in memory only: a restart forgets it.

Terms: docs/design/glossary.md#pass.
"""

from dataclasses import dataclass, field

from gpusharing.planning.snapshot.callfailures import CallFailure
from gpusharing.planning.snapshot.draviews import UNTESTED, TaintProof
from gpusharing.planning.snapshot.podviews import EvictionMemory


@dataclass(slots=True)
class CallMemory:
    """The results of our calls that later passes need."""

    evictions: dict[str, dict[str, EvictionMemory]] = field(default_factory=dict)
    failures: dict[str, CallFailure] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)
    """Nodes whose pods must be listed again, because a call got no answer and only a new LIST shows whether a pod was evicted."""
    write_error: str = ""
    """Why the last write of our ConfigMaps was refused; empty if it was not."""
    taint_proof: TaintProof = UNTESTED

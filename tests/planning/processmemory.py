"""What the operator's process of a World knows besides the API server's objects."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.memory import CallFailure, PassMemory
from gpusharing.planning.snapshot.podviews import EvictionMemory, NodeWork

if TYPE_CHECKING:
    from tests.planning.world import World


@dataclass
class Memory:
    """What the operator's process knows and loses when it is killed."""

    memo: Memo = field(default_factory=Memo)
    passed: PassMemory = field(default_factory=PassMemory)
    work: dict[str, NodeWork] = field(default_factory=dict)
    evictions: dict[str, dict[str, EvictionMemory]] = field(default_factory=dict)
    failures: dict[str, CallFailure] = field(default_factory=dict)
    """By node or subject."""
    reading: "World | None" = None
    """What a second operator read in an earlier pass (leaders.py); None: nothing yet."""

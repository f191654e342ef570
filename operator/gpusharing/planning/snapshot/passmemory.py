"""What one pass remembers for the next, besides what the cluster says itself.

Terms: docs/design/glossary.md#pass, docs/design/glossary.md#look.
"""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime

from gpusharing.planning.snapshot.looks import Look, Preview
from gpusharing.planning.vocabulary.values import value


@value
class PassMemory:
    """Made by a plan and read by the next one. A new process starts with an empty memory."""

    wants_pods: frozenset[str] = frozenset()
    """Nodes whose pods the next pass needs."""
    proving: frozenset[str] = frozenset()
    """Nodes that need nothing but another LIST of their pods to be proven idle."""
    drifting_since: Mapping[str, datetime] = field(default_factory=dict)
    """Since when this process has seen that a Ready, unfenced node differs from its target, by node."""
    looks: Mapping[str, Look] = field(default_factory=dict)
    """What the latest LIST of its pods found at each node whose pods block it."""
    previews: Mapping[str, Preview] = field(default_factory=dict)
    """What the change of each waiting node would disturb."""
    vain_passes: Mapping[str, int] = field(default_factory=dict)
    """How many passes in a row made no progress, by policy (`count_vain`)."""

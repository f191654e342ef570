"""What one pass remembers for the next one because the cluster does not record it.

Terms: docs/design/glossary.md#pass, docs/design/glossary.md#look, docs/design/glossary.md#fence.
"""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime

from gpusharing.planning.snapshot.looks import Look, Preview
from gpusharing.planning.vocabulary.values import value


@value
class PassMemory:
    """State that each plan returns and that the next plan receives. It is kept in memory only, so a new process starts
    without it."""

    wants_pods: frozenset[str] = frozenset()
    """Nodes whose pods have to be listed for the next pass."""
    proving: frozenset[str] = frozenset()
    """Nodes that count as idle as soon as one last LIST of their pods confirms it."""
    drifting_since: Mapping[str, datetime] = field(default_factory=dict)
    """By node: since when this process has seen that the node, which is Ready and has no fence, differs from its
    target."""
    looks: Mapping[str, Look] = field(default_factory=dict)
    """By node: the result of the latest LIST of its pods before its change starts."""
    previews: Mapping[str, Preview] = field(default_factory=dict)
    """By waiting node: what its change would disturb."""
    vain_passes: Mapping[str, int] = field(default_factory=dict)
    """By policy: how many passes in a row made no progress (`count_vain`)."""

"""How every answer says which nodes' GPUs are SIMULATED. Pure; `status` imports it, so it knows nothing of
Prometheus."""

from collections.abc import Sequence

from gpusharing.cli.shell.drawing import Ink, Line, Paper, prose
from gpusharing.planning.vocabulary.lengths import some


def sentence(nodes: Sequence[str]) -> str:
    """The sentence about these nodes; empty: there are none."""
    if not nodes:
        return ""
    have, them = ("have", "them") if len(nodes) > 1 else ("has", "it")
    names = some([node or "a node without a name" for node in nodes])
    return f"SIMULATED: {names} {have} no real GPUs, and the numbers about {them} here come from a simulator"


def describe_simulated(nodes: Sequence[str], paper: Paper) -> list[Line]:
    """The same as lines."""
    return prose(f"{sentence(nodes)}.", paper, hang="  ", ink=Ink.WAITING) if nodes else []

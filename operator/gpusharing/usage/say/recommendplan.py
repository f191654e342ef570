"""What a recommended policy would do, as text and as data: as `plan -f` shows it. Pure."""

from dataclasses import dataclass, field
from typing import Any

from gpusharing.cli.changing.plantext import Planned
from gpusharing.cli.changing.plantext import as_data as as_plan_data
from gpusharing.cli.changing.plantext import describe as describe_plan
from gpusharing.cli.shell.drawing import BLANK, Ink, Line, Paper, prose


@dataclass(frozen=True, slots=True)
class Effect:
    """The plan of the policy, or why there is none."""

    planned: Planned = field(default_factory=Planned)
    """What the policy would do."""
    where: str = ""
    """Which cluster, for programs."""
    why_not: str = ""
    """As a clause; empty: it was planned."""


def describe_effect(effect: Effect, paper: Paper) -> list[Line]:
    """The plan, or why there is none."""
    if effect.why_not:
        return prose(f"Its plan is not shown: {effect.why_not}.", paper, hang="  ", ink=Ink.FAINT)
    title = prose("Its plan, if it were applied now:", paper, hang="  ", ink=Ink.TITLE)
    return [BLANK, *title, *describe_plan(effect.planned, paper), BLANK]


def effect_data(effect: Effect | None) -> dict[str, Any]:
    """For programs: `plan` as `plan -f FILE -o json` has it, or null and the reason."""
    if effect is None or effect.why_not:
        return {"plan": None, "notPlanned": None if effect is None else effect.why_not}
    return {"plan": as_plan_data(effect.planned, effect.where), "notPlanned": None}

"""Types of the operator's settings: pydantic parses the value of each environment variable by one of them."""

import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from gpusharing.api import names
from gpusharing.api.rules import LABEL_KEY
from gpusharing.api.times import parse_duration
from gpusharing.api.validation import is_rewritten

_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def listed(find_problem: Callable[[str], str]) -> BeforeValidator:
    """Return a validator that splits a string at its commas; `find_problem` says why an entry is not valid."""

    def split(text: str) -> tuple[str, ...]:
        entries = tuple(entry.strip() for entry in text.split(",")) if text.strip() else ()
        for entry in entries:
            if problem := find_problem(entry):
                raise ValueError(f": {problem}")
        return entries

    return BeforeValidator(split)


def _find_no_namespace(entry: str) -> str:
    return "" if _NAMESPACE.fullmatch(entry) else f"{entry!r} is not the name of a namespace"


def _find_no_mark(entry: str) -> str:
    key, equals, value = entry.partition("=")
    if not (equals and re.fullmatch(LABEL_KEY, key) and _VALUE.fullmatch(value)):
        return f"{entry!r} is not a label with a value, for example example.com/hands-off=true"
    if key.startswith((names.PREFIX, "nvidia.com/")) or is_rewritten(key):
        return f"{key} is written by the changes of this operator or by NVIDIA's software"
    return ""


def _is_on(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(" is neither true nor false")
    return text == "true"


def _seconds(text: str) -> float:
    try:
        return parse_duration(text).total_seconds()
    except ValueError:
        raise ValueError(" is not a duration") from None


Seconds = Annotated[float, BeforeValidator(_seconds)]
"""A duration such as 90s or 1h30m, in seconds."""
Period = Annotated[Seconds, Field(gt=0)]
"""A duration of more than 0: with 0 a loop would spin, or never act."""
Count = Annotated[int, Field(ge=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
"""A port number; 0 turns the port off."""
Switch = Annotated[bool, BeforeValidator(_is_on)]
"""`true` or `false`; any other word is rejected."""
Guard = Literal["false", "mutating", "validating"]
Labels = Annotated[tuple[str, ...], listed(_find_no_mark)]
"""Comma-separated labels, each written as key=value."""
Namespaces = Annotated[tuple[str, ...], listed(_find_no_namespace)]

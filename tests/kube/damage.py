"""Objects and texts as a hostile or hasty hand leaves them: any part of a valid one replaced by something odd."""

import copy
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

JSON = dict[str, Any]

DEEP: Any = "bottom"
for _ in range(400):
    DEEP = [DEEP]

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 5, 2**63, -(2**70), 1.5, float("inf"), float("nan"), "", "x", "²", "-1", "5m", "1e9",
    "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-23:59", "2026-11-20", "\ud800", "a" * 5000, "{", "[" * 3000,
    [], {}, [None], {"": None}, [[]], {"a": {"b": []}}, DEEP,
)  # fmt: skip
"""Of the wrong type, out of every bound, or too deep."""

ODD_YAML = (
    "", "x", "- x", "{", "2026-11-20", "2026-13-45", "0x233010DE", "!!python/object:os.system {}", "&a [*a]",
    "? [a] : b", "1_000", ".nan", ".inf", "9999999999999-01-01", "!!timestamp 0001-01-01T00:00:00+23:59",
    "!!int x", "!!binary a",
    "[" * 3000, "{a: " * 1500, "&a [&b [&c [x]], *a, *b]", "<<: 5", "<<: [5]", "{? {a: b} : c}", "\x00", "\ud800",
    "---\n---", "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\n"
    "d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\n"
    "e: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e, *e]",
)  # fmt: skip
"""Texts that PyYAML answers with more kinds of errors than its own, or with documents that end a careless reader."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    rest = [(path, value)]
    while rest:  # not recursive: DEEP would be walked once for each of its levels
        path, value = rest.pop()
        yield path
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        rest += reversed([((*path, key), child) for key, child in children])


def put(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    """A copy with `odd` at `path`."""
    if not path:
        return odd
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = odd
    return changed


@st.composite
def damaged(draw: st.DrawFn, valid: JSON, keep: tuple[Any, ...] = ()) -> Any:
    """`valid` with one to three places replaced; `keep` names top-level keys that the API server guarantees."""
    value: Any = valid
    for _ in range(draw(st.integers(1, 3))):
        free = [path for path in places(value) if path and path[0] not in keep]
        if free:
            value = put(value, draw(st.sampled_from(free)), draw(st.sampled_from(ODD)))
    return value


def yaml_of(valid: JSON) -> st.SearchStrategy[str]:
    """Text of a damaged document, or a text that is odd by itself, alone or in the place of a value."""
    whole = damaged(valid).map(_dump)
    inside = st.tuples(st.sampled_from(sorted(valid)), st.sampled_from(ODD_YAML)).map(lambda row: f"{row[0]}: {row[1]}")
    return st.one_of(whole, st.sampled_from(ODD_YAML), inside)


def _dump(document: Any) -> str:
    try:
        return yaml.dump(document)
    except (RecursionError, ValueError, yaml.YAMLError):
        return "[" * 3000

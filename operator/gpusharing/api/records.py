"""Records of GPUNode as plain dataclasses: their names in JSON, how they are written, and how they are read.

The agent and `kubectl gpusharing status` use the records without pydantic, whose models would take 10 MiB of the
agent's 45. Where an object has to be checked (kube/convert.py) or described (hack/crdschema.py), pydantic reads the
same classes (docs/adr/0072-one-record-for-gpunode.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

_SPELT_OTHERWISE = {"request_id": "requestID", "quiet_gpus": "quietGPUs"}
"""Names in JSON that differ from the camel case of the field's name, by field name."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a number, a string, a list or a map. pydantic checks them, and the schema shows them, with `schema`."""

    ge: int | None = None
    """The least number, or None for any."""
    le: int | None = None
    """The greatest number, or None for any."""
    max_length: int | None = None
    """The most characters, items or keys, or None for any number."""
    pattern: str | None = None
    """The regular expression that a string matches."""
    schema: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further keys of the field's schema, which do not follow from its type."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> dict[str, Any]:
        limits = {"ge": self.ge, "le": self.le, "max_length": self.max_length, "pattern": self.pattern}
        return {**handler(source), **{key: limit for key, limit in limits.items() if limit is not None}}

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Callable[[Any], Any]) -> dict[str, Any]:
        return {**handler(core_schema), **self.schema}


def one_of(words: type[StrEnum]) -> Limits:
    """Return the bounds of a string that is one of these words. A reader does not check it: newer writers know more."""
    return Limits(schema={"enum": [str(word) for word in words]})


Line = Annotated[str, Limits(max_length=1024)]
"""A name or a few words."""
Sentence = Annotated[str, Limits(max_length=4096)]
"""Text for people; writers shorten longer texts."""
Time = Annotated[str, Limits(max_length=64, schema={"format": "date-time"})]
"""RFC 3339 in UTC, to the second."""
Counts = Annotated[dict[str, int], Limits(max_length=128)]
"""Numbers by name, for example by that of a resource."""


def wire_name(name: str) -> str:
    """Return the name of a field in JSON: camel case, apart from _SPELT_OTHERWISE."""
    head, *tail = name.split("_")
    return _SPELT_OTHERWISE.get(name) or head + "".join(word.capitalize() for word in tail)


class WireRecord:
    """Base of the dataclasses that are read from or written to the API server.

    Unknown fields are ignored, as in WireModel: an older operator must be able to read a newer object.
    """

    __slots__ = ()
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {
        "alias_generator": wire_name,
        "validate_by_name": True,
        "validate_by_alias": True,
        "extra": "ignore",
        "use_attribute_docstrings": True,
    }


def to_wire(value: Any, *, item: bool = False) -> Any:
    """Return the JSON of a record, all fields included, or of a list of records without fields at their default."""
    # A merge patch keeps what it does not name, but replaces a list as a whole.
    if names := _wire_names(type(value)):  # type: ignore[arg-type]  # mypy takes classes for unhashable
        found = ((key, getattr(value, name), default) for name, key, default in names)
        return {key: to_wire(one) for key, one, default in found if not item or one != default}
    return [to_wire(one, item=True) for one in value] if isinstance(value, tuple | list) else value


def from_wire(kind: type[Record], raw: object) -> Record:
    """Return the record of this kind that the JSON object `raw` holds.

    A field that is missing or not exactly of its type (1 is no float) gets its default, or the empty value of its type; an optional field gets None. Items of another type are left out of a tuple. Bounds, the words of a Literal, and the contents of a map are not checked.
    """
    values = raw if isinstance(raw, dict) else {}
    readers = _readers(kind)  # type: ignore[arg-type]  # mypy takes classes for unhashable
    return kind(**{name: read(values.get(key)) for name, key, read in readers})


@cache
def _wire_names(kind: type[object]) -> tuple[tuple[str, str, object], ...]:
    own = fields(kind) if is_dataclass(kind) else ()
    return tuple((each.name, wire_name(each.name), each.default) for each in own)


@cache
def _readers(kind: type[Any]) -> tuple[tuple[str, str, Callable[[Any], Any]], ...]:
    """Return name, name in JSON and reader of each field. All records of the class share the defaults."""
    hints = get_type_hints(kind)
    factories = {each.name: each.default_factory for each in fields(kind) if each.default_factory is not MISSING}
    return tuple(
        (
            each.name,
            wire_name(each.name),
            _reader(hints[each.name], factories[each.name]() if each.name in factories else each.default),
        )
        for each in fields(kind)
    )


def _reader(hint: Any, default: Any = MISSING) -> Callable[[Any], Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        (inner,) = (argument for argument in arguments if argument is not NoneType)
        return _reader(inner, None)
    if origin is tuple:
        item, read_item = dict if is_dataclass(arguments[0]) else arguments[0], _reader(arguments[0])
        absent = None if default is None else ()
        return lambda raw: (
            tuple(read_item(one) for one in raw if type(one) is item) if isinstance(raw, list) else absent
        )
    kind = str if origin is Literal else origin or hint
    if is_dataclass(kind):
        return lambda raw: from_wire(kind, raw) if isinstance(raw, dict) or default is MISSING else default
    empty = kind() if default is MISSING else default
    return lambda raw: raw if type(raw) is kind else empty

"""From pydantic types to the schemas of CRDs: a pure rewrite of JSON schema into a structural schema.

This module refuses whatever it does not know, so that nothing half understood reaches the API server.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, NoDefault
from pydantic_core import core_schema

Schema = dict[str, Any]

_BOUNDS = frozenset(
    {
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "pattern",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "enum",
        "format",
    }
)
_KNOWN = _BOUNDS | {
    "type",
    "description",
    "default",
    "properties",
    "required",
    "items",
    "additionalProperties",
}
_JUNCTORS = frozenset({"anyOf", "allOf", "oneOf", "not"})


class SchemaError(ValueError):
    """A type cannot be expressed as a structural schema; the message names the place and the key."""


def structural_schema(model: type[object], *, written_by_us: bool = False) -> Schema:
    """The structural schema of a type.

    `written_by_us` is for status: null is kept where it has a meaning, and nothing is defaulted, because
    its writers write every field.

    Raises:
        SchemaError: the type uses something that a structural schema cannot say, or that is not known here.
    """
    source = TypeAdapter(model).json_schema(by_alias=True, schema_generator=_Generator)
    schema = _Rewrite(source.pop("$defs", {}), keep_null=written_by_us).node(source, model.__name__)
    _assert_structural(schema, model.__name__)
    return schema


class _Generator(GenerateJsonSchema):
    """Shows defaults that come from a factory: `{}` for an object whose fields have their own defaults."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        if "default_factory" not in schema:
            return super().get_default_value(schema)
        factory: Any = schema["default_factory"]
        return {} if isinstance(factory, type) else NoDefault


@dataclass(frozen=True, slots=True)
class _Rewrite:
    definitions: Mapping[str, Schema]
    keep_null: bool

    def node(self, source: Mapping[str, Any], at: str) -> Schema:
        """One schema node without $ref, null branches and titles."""
        merged, nullable = _without_null(self._resolve(source), at)
        merged = self._resolve(merged)
        if merged.get("x-kubernetes-int-or-string"):
            merged.pop("anyOf", None)
        elif merged.get("x-kubernetes-preserve-unknown-fields"):
            _check_value_validation(merged, at)
        schema: Schema = {}
        for key in sorted(merged, key=_reading_order):
            schema |= self._entry(key, merged[key], at)
        if "default" in merged and self._says_something(merged["default"], schema):
            schema = {"default": merged["default"]} | schema
        return {"nullable": True} | schema if nullable and self.keep_null else schema

    def _entry(self, key: str, value: Any, at: str) -> Schema:
        if key == "default":
            return {}
        if key == "description":
            return {key: " ".join(value.split())}
        if key == "const":
            return {"enum": [value]}
        if key == "properties":
            return {key: {name: self.node(child, f"{at}.{name}") for name, child in value.items()}}
        if key in ("items", "additionalProperties"):
            return {key: self.node(value, f"{at}[]")}
        if key == "anyOf" and _is_value_validation(value):
            return {key: value}
        if key in _KNOWN or key.startswith("x-kubernetes-"):
            return {key: value}
        raise SchemaError(f"{at}: {key} has no place in a structural schema")

    def _resolve(self, source: Mapping[str, Any]) -> Schema:
        """Inline a $ref; keys beside it win over those of the definition."""
        schema = {key: value for key, value in source.items() if key != "title"}
        reference = schema.pop("$ref", None)
        if reference is None:
            return schema
        return self._resolve(self.definitions[reference.rsplit("/", 1)[-1]]) | schema

    def _says_something(self, default: Any, schema: Schema) -> bool:
        """An empty default means what an absent field means, unless `{}` makes the defaults below it apply."""
        empty = default in (None, "", [], {}) and not (default == {} and "properties" in schema)
        return not empty and not self.keep_null


def _reading_order(key: str) -> int:
    """Type and text first, nested schemas last, as one reads a manifest."""
    first = ("type", "description")
    last = ("x-kubernetes-validations", "required", "properties", "additionalProperties", "items")
    if key in first:
        return first.index(key) - len(first)
    return last.index(key) + 1 if key in last else 0


def _without_null(schema: Schema, at: str) -> tuple[Schema, bool]:
    """Fold `anyOf: [X, null]` to X."""
    branches = schema.get("anyOf", [])
    if {"type": "null"} not in branches:
        return schema, False
    rest = [branch for branch in branches if branch != {"type": "null"}]
    if len(rest) != 1:
        raise SchemaError(f"{at}: a union of types has no structural schema")
    outer = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**rest[0], **outer}, True


def _is_value_validation(branches: Sequence[Schema]) -> bool:
    """Branches without a type only narrow the node that contains them."""
    return all(set(branch) <= _BOUNDS | _JUNCTORS | {"items", "properties"} for branch in branches)


def _check_value_validation(schema: Schema, at: str) -> None:
    allowed = _BOUNDS | _JUNCTORS | {"description", "default", "x-kubernetes-preserve-unknown-fields"}
    if unknown := set(schema) - allowed:
        raise SchemaError(f"{at}: {sorted(unknown)} cannot stand in a node without type")


def _assert_structural(schema: Schema, at: str) -> None:
    """Check the rules of structural schemas that a rewrite could break, and our own: text and bounds everywhere."""
    if schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-int-or-string"):
        return
    kind = schema.get("type")
    if kind not in ("object", "array", "string", "integer", "boolean"):
        raise SchemaError(f"{at}: type {kind!r}")
    if "properties" in schema and "additionalProperties" in schema:
        raise SchemaError(f"{at}: properties and additionalProperties exclude each other")
    _assert_bounded(schema, at)
    for name, child in schema.get("properties", {}).items():
        if "description" not in child:
            raise SchemaError(f"{at}.{name}: description is missing")
        _assert_structural(child, f"{at}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            _assert_structural(schema[key], f"{at}[]")


def _assert_bounded(schema: Schema, at: str) -> None:
    """Check that a list, a text or a map has a greatest length."""
    bound = {"array": "maxItems", "string": "maxLength", "object": "maxProperties"}.get(schema["type"])
    if bound and bound not in schema and not {"enum", "properties"} & set(schema):
        raise SchemaError(f"{at}: {bound} is missing; CEL and etcd need a bound")

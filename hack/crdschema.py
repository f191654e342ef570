"""Turns pydantic types into the schemas of CRDs: a pure rewrite of JSON schema into a structural schema.

Keys and shapes that this module does not know raise SchemaError, so that nothing half understood reaches the API
server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, NoDefault
from pydantic_core import core_schema

Schema = dict[str, Any]

_KNOWN = frozenset(
    {
        "type",
        "description",
        "default",
        "properties",
        "required",
        "items",
        "additionalProperties",
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


class SchemaError(ValueError):
    """A type cannot be expressed as a structural schema; the message names the place and the key."""


def structural_schema(model: type[object], *, written_by_us: bool = False) -> Schema:
    """Return a type's structural schema; `written_by_us`, for a status, allows null. Raises SchemaError."""
    source = TypeAdapter(model).json_schema(by_alias=True, schema_generator=_Generator)
    schema = _Rewrite(source.pop("$defs", {}), keep_null=written_by_us).node(source, model.__name__)
    _assert_structural(schema, model.__name__)
    return schema


class _Generator(GenerateJsonSchema):
    """Also shows defaults that come from a factory: `{}` for an object whose fields have defaults of their own."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        if "default_factory" not in schema:
            return super().get_default_value(schema)
        factory: Any = schema["default_factory"]
        return {} if isinstance(factory, type) else NoDefault


@dataclass(frozen=True, slots=True)
class _Rewrite:
    """Rewrites one JSON schema, with the definitions that it refers to."""

    definitions: Mapping[str, Schema]
    """The types that a $ref can name, by name."""
    keep_null: bool
    """Whether null stays allowed where it was, and defaults are left out."""

    def node(self, source: Mapping[str, Any], at: str) -> Schema:
        """Return the structural schema of the node `source`, without $ref, titles and null branches."""
        merged, nullable = _without_null(self._resolve(source), at)
        merged = self._resolve(merged)
        if merged.get("x-kubernetes-int-or-string"):
            merged.pop("anyOf", None)
        schema: Schema = {}
        for key in sorted(merged, key=_reading_order):
            schema |= self._entry(key, merged[key], at)
        default = merged.get("default")
        # An empty one equals an absent field, except an `{}` that makes the defaults below it apply.
        empty = default in (None, "", [], {}) and not (default == {} and "properties" in schema)
        if not (empty or self.keep_null):
            schema = {"default": default} | schema
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
        if key in _KNOWN or key.startswith("x-kubernetes-"):
            return {key: value}
        raise SchemaError(f"{at}: {key} has no place in a structural schema")

    def _resolve(self, source: Mapping[str, Any]) -> Schema:
        schema = {key: value for key, value in source.items() if key != "title"}
        reference = schema.pop("$ref", None)
        if reference is None:
            return schema
        return self._resolve(self.definitions[reference.rsplit("/", 1)[-1]]) | schema


def _reading_order(key: str) -> int:
    first = ("type", "description")
    last = ("x-kubernetes-validations", "required", "properties", "additionalProperties", "items")
    if key in first:
        return first.index(key) - len(first)
    return last.index(key) + 1 if key in last else 0


def _without_null(schema: Schema, at: str) -> tuple[Schema, bool]:
    branches = schema.get("anyOf", [])
    if {"type": "null"} not in branches:
        return schema, False
    rest = [branch for branch in branches if branch != {"type": "null"}]
    if len(rest) != 1:
        raise SchemaError(f"{at}: a union of types has no structural schema")
    outer = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**rest[0], **outer}, True


def _assert_structural(schema: Schema, at: str) -> None:
    """Check what a rewrite could break, and our own rules: descriptions, and maximum lengths. Raises SchemaError."""
    if schema.get("x-kubernetes-int-or-string"):
        return
    kind = schema.get("type")
    if kind not in ("object", "array", "string", "integer", "boolean"):
        raise SchemaError(f"{at}: type {kind!r}")
    if "properties" in schema and "additionalProperties" in schema:
        raise SchemaError(f"{at}: properties and additionalProperties exclude each other")
    bound = {"array": "maxItems", "string": "maxLength", "object": "maxProperties"}.get(schema["type"])
    if bound and bound not in schema and not {"enum", "properties"} & set(schema):
        raise SchemaError(f"{at}: {bound} is missing; CEL and etcd need a bound")
    for name, child in schema.get("properties", {}).items():
        if "description" not in child:
            raise SchemaError(f"{at}.{name}: description is missing")
        _assert_structural(child, f"{at}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            _assert_structural(schema[key], f"{at}[]")

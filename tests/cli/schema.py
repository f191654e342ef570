"""Compare what the plugin prints with docs/reference/cli-schema.json, by the part of JSON Schema that the file uses."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from hack.generate import ROOT
from hack.generate_schema import PATH

JSON = dict[str, Any]
TYPES = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}


@cache
def read_schema() -> JSON:
    found: JSON = json.loads((ROOT / PATH).read_text())
    return found


def read_stream(text: str) -> Iterator[Any]:
    """JSON documents one after the other, as jq reads them."""
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        found, end = decoder.raw_decode(text)
        text = text[end:]
        yield found


def check(text: str) -> list[str]:
    """Return the kinds of the documents in the output of `-o json`. Manifests for kubectl apply count as List. Fails if one does not match its schema."""
    kinds = []
    for document in read_stream(text):
        kinds.append(document["kind"])
        if document["kind"] != "List":
            assert find_mistakes(document) == []
    return kinds


def find_mistakes(document: JSON) -> list[str]:
    kinds = {one["title"]: one for one in read_schema()["oneOf"]}
    return list(_mistakes(document, kinds[document["kind"]], document["kind"]))


def _mistakes(value: Any, schema: JSON, where: str) -> Iterator[str]:
    if "$ref" in schema:
        schema = read_schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        if all(list(_mistakes(value, one, where)) for one in schema["anyOf"]):
            yield f"{where}: {value!r} is none of {schema['anyOf']}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{where}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    types = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])
    if types and not any(_has_type(value, one) for one in types):
        yield f"{where}: {value!r} is no {' or '.join(types)}"
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _mistakes(item, schema.get("items", {}), f"{where}[{index}]")
    if isinstance(value, dict):
        yield from _mistakes_of_object(value, schema, where)


def _mistakes_of_object(value: JSON, schema: JSON, where: str) -> Iterator[str]:
    yield from (f"{where}.{key} is missing" for key in schema.get("required", ()) if key not in value)
    for key, item in value.items():
        more = schema.get("additionalProperties", {})
        if key not in schema.get("properties", {}) and more is False:
            yield f"{where}.{key} is not in the schema"
            continue
        yield from _mistakes(item, schema.get("properties", {}).get(key, more), f"{where}.{key}")


def _has_type(value: object, name: str) -> bool:
    """Whether a value is of this type; true and false are no numbers."""
    if name in ("integer", "number"):
        kinds = (int,) if name == "integer" else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])

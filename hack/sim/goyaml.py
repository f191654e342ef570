"""YAML as NVIDIA's SIMULATED programs read it: sigs.k8s.io/yaml turns it into JSON with go-yaml v2.

tests/foreign holds the answers of the real programs. The product has a reader of its own
(planning/wanted/pluginconfig.py).
"""

import re
from typing import Any, TypeAlias

import yaml

JSONValue: TypeAlias = Any
"""None, bool, int, float, str, list or dict: the values that encoding/json knows."""
_WORDS: dict[str, JSONValue] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **{word: True for base in ("y", "yes", "true", "on") for word in (base, base.title(), base.upper())},
    **{word: False for base in ("n", "no", "false", "off") for word in (base, base.title(), base.upper())},
}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WHOLE = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))")
_UNSUPPORTED = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_STRING, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_RESOLVER = yaml.SafeLoader("")
_MOST = 200_000
"""The largest number of values in a document. Values behind an alias count again at each use of the alias."""


class GoError(Exception):
    """The simulated program refuses the document; the message is close to Go's."""


class _Loader(yaml.SafeLoader):
    """A YAML loader that accepts tabs where libyaml does: inside brackets, and where no indentation is expected."""

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        while self.peek() == "\t" and (self.flow_level or not self.allow_simple_key):
            self.forward()
            super().scan_to_next_token()

    def check_value(self) -> bool:
        """Refuse a colon before a comma or bracket, as in `{key:[]}`, which go-yaml takes as a part of the key."""
        if self.flow_level and self.peek(1) in ",[]{}" and self.buffer[self.pointer - 1] not in "\"'":
            raise GoError("did not find expected ',' or '}'")
        return bool(super().check_value())


def to_json(text: str) -> JSONValue:
    """Return the first YAML document in `text` as JSON, or None if there is none."""
    try:
        node = next(yaml.compose_all(text, _Loader), None)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise GoError(f"error converting YAML to JSON: {error}") from None
    return None if node is None else _Converter().value(node, ())


class _Converter:
    def __init__(self) -> None:
        self._count = 0

    def value(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> JSONValue:
        self._count += 1
        if any(node is parent for parent in above) or self._count > _MOST:
            raise GoError("an anchor contains itself, or the document contains excessive aliasing")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*above, node)) for item in node.value]
        fields: dict[str, JSONValue] = {}
        for key, item in node.value:
            if key.tag == _MERGE:  # go-yaml v2 merges in order: it overwrites earlier keys, and later ones overwrite it
                fields |= self._merged(item, (*above, node))
            else:
                fields[_key(self.value(key, (*above, node)))] = self.value(item, (*above, node))
        return fields

    def _merged(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> dict[str, JSONValue]:
        fields: dict[str, JSONValue] = {}
        for source in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                raise GoError("map merge requires map or sequence of maps as the value")
            fields |= self.value(source, above)
        return fields


def _key(value: JSONValue) -> str:
    if value is None or isinstance(value, dict | list):
        raise GoError(f"unsupported map key: {value!r}")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _scalar(node: yaml.ScalarNode) -> JSONValue:
    text = node.value
    plain_tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # no stub
    if node.style is not None or (node.tag == _STRING and plain_tag != _STRING):
        return text  # quoted, or tagged as a string
    if text in _WORDS:
        return _WORDS[text]
    if _UNSUPPORTED.fullmatch(text):
        raise GoError(f"json: unsupported value: {text}")
    return _number(text)


def _number(text: str) -> JSONValue:
    """Return the number that Go's strconv would parse, or the text. encoding/json writes a float below 1e21 without a
    fraction as an integer."""
    plain = text.replace("_", "") if text[0] in "+-0123456789" else text
    if match := _WHOLE.fullmatch(plain):
        sign, *bases = match.groups()
        base, digits = next((base, text) for base, text in zip((16, 2, 8, 10), bases, strict=True) if text)
        whole = int(sign + digits, base)
        if -(2**63) <= whole < 2**64:
            return whole
    if not _FLOAT.fullmatch(plain):
        return text
    number = float(plain)
    if number in (float("inf"), float("-inf")):
        return text
    return int(number) if number.is_integer() and abs(number) < 1e21 else number

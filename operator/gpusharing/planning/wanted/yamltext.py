"""Parses and writes YAML that others may edit: ConfigMaps of admins and of NVIDIA's programs, and our own.

No other module parses such YAML. It is read as by NVIDIA's programs, which use go-yaml v2.4.3 through sigs.k8s.io/yaml v1.6.0.

PyYAML raises far more than YAMLError (RecursionError for deep nesting, ValueError for 2024-13-45, OverflowError,
TypeError), and aliases can turn a small text into a huge or endless document.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

MAX_DEPTH = 20
"""The largest number of nested maps and lists. The deepest file that NVIDIA's programs read has six levels."""
TOO_DEEP = f"it is nested more than {MAX_DEPTH} levels deep"
MAX_VALUES = 100_000
"""The largest number of maps, lists and scalars. A value counts again wherever an alias repeats it."""
TOO_LARGE = f"it contains more than {MAX_VALUES} values"
_MERGE = "tag:yaml.org,2002:merge"
_BOOL = re.compile("(?:y|Y|yes|Yes|YES|true|True|TRUE|on|On|ON|n|N|no|No|NO|false|False|FALSE|off|Off|OFF)$")
_NUMBER = re.compile(
    r"[-+]?(?:0[xXbBoO][0-9a-fA-F_]+|[0-9.][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9_]+)?|\.(?:inf|Inf|INF))$"
    r"|\.(?:nan|NaN|NAN)$"
)


class Unreadable(ValueError):
    """Raised for text that we do not accept as a YAML document. Its message is a clause for people."""


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars as go-yaml does, and stops as soon as brackets are nested too deeply.

    PyYAML's scanner would take 0.9 s for 3,000 brackets in a line.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name
        first: [row for row in rows if row[0] in (_MERGE, "tag:yaml.org,2002:null")]
        for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012 - the same; no dates, sets or bytes, which JSON does not have
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "str", "seq", "map")
    }
    _merged = 0  # number of keys that merge keys have merged in so far
    bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}  # noqa: RUF012 - the same

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= MAX_DEPTH:
            raise Unreadable(TOO_DEEP)
        super().fetch_flow_collection_start(TokenClass)

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        # Tabs where no indentation is expected, which libyaml and go-yaml allow.
        while self.peek() == "\t" and (self.flow_level or not self.allow_simple_key):
            self.forward()
            super().scan_to_next_token()

    def check_value(self) -> bool:
        # go-yaml reads a colon as in `{key:[]}` as part of the key.
        if self.flow_level and self.peek(1) in ",[]{}" and self.buffer[self.pointer - 1] not in "\"'":
            raise yaml.scanner.ScannerError(None, None, "a colon needs a space after it", self.get_mark())
        return bool(super().check_value())

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        first = [key.tag == _MERGE for key, _ in node.value]
        if first != sorted(first, reverse=True):
            raise Unreadable(
                "the merge key << comes after other keys, which it would override in NVIDIA's programs: put it first"
            )
        merges = [value for key, value in node.value if key.tag == _MERGE]
        sources = [one for value in merges for one in (value.value if value.id == "sequence" else [value])]
        for source in sources:
            if isinstance(source, yaml.MappingNode):
                self.flatten_mapping(source)
            self._merged += len(source.value)  # merges of merges make millions out of a few lines
            if self._merged > MAX_VALUES:
                raise Unreadable(TOO_LARGE)
        super().flatten_mapping(node)

    def construct_number(self, node: yaml.ScalarNode) -> int | float | str:
        """Return the scalar as the number that Go's strconv reads and JSON writes, so that 2.0 becomes 2; else the string itself."""
        if node.value.lower().endswith((".inf", ".nan")):
            raise Unreadable(f"it contains {node.value}, which is not a number in JSON")
        plain = re.sub(r"^([-+]?)0(?=[0-7]+$)", r"\g<1>0o", node.value.replace("_", ""))
        try:
            whole = int(plain, 0)
        except ValueError:
            whole = 2**64
        if -(2**63) <= whole < 2**64:
            return whole
        try:
            number = float(plain)
        except ValueError:
            return str(node.value)
        if abs(number) == float("inf"):
            return str(node.value)
        return int(number) if number.is_integer() and abs(number) < 1e21 else number


class _Dumper(yaml.SafeDumper):
    """Quotes strings that PyYAML or go-yaml would otherwise read as another type.

    Writes no anchors, which the chart's admission policy refuses (docs/adr/0084-what-the-operators-token-writes.md).
    """

    def ignore_aliases(self, data: object) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("yYnNtTfFoO"))
    _class.add_implicit_resolver("!number", _NUMBER, list("-+.0123456789"))
_Loader.add_constructor("!number", _Loader.construct_number)


def dump_yaml(document: object) -> str:
    """Return a document as YAML that NVIDIA's programs and `parse_yaml` read back unchanged."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False)


_BROKEN = (RecursionError, ValueError, OverflowError, TypeError, AttributeError, LookupError)
"""What PyYAML raises for some texts beside YAMLError."""


def parse_yaml(text: str) -> object:
    """Return the first YAML document in `text`, or None if there is none or it is null.

    Raises Unreadable, and no other exception, if that document is not valid YAML, has more than MAX_DEPTH levels or
    MAX_VALUES values, or has a key or a tag that JSON does not allow.
    """
    try:
        document: object = next(yaml.load_all(text, _Loader), None)
    except Unreadable:
        raise
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f" (line {mark.line + 1}: {problem})" if mark is not None else ""
        raise Unreadable(f"it is not YAML{where}") from error
    except _BROKEN as error:
        raise Unreadable(f"it is not valid YAML ({type(error).__name__})") from error
    _check_size(document)
    return document


def find_line(text: str, path: str) -> int:
    """Return the line, from 1, of the key or list item at `path`, such as `data.config.yaml` or `rows[0]`, in the first YAML document of `text`.

    Keys may contain dots. A missing field gets the line of the innermost one on the way to it, and invalid YAML that of
    the mistake. Never raises.
    """
    try:
        loader = _Loader(text)
        node = loader.get_node() if loader.check_node() else None
    except (yaml.YAMLError, *_BROKEN) as error:
        mistake = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        return max(1, min(mistake, len(text.splitlines())))
    line = 1
    while path:
        inner = [one for one in _children(node) if f"{path}.".startswith((f"{one[0]}.", f"{one[0]}["))]
        if not inner:
            break
        name, key, node = max(inner, key=lambda one: (len(one[0]), one[1].start_mark.line))
        line, path = key.start_mark.line + 1, path[len(name) :].removeprefix(".")
    return line


def _children(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Yield the name in a path, the node of the key (in a list, that of the value) and the node of each value."""
    if isinstance(node, yaml.MappingNode):
        yield from ((str(key.value), key, item) for key, item in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from ((f"[{index}]", item, item) for index, item in enumerate(node.value))


def is_whole(value: object) -> bool:
    """Whether the value is an int that fits into Go's int64. False for a boolean and for a float such as 2.0."""
    return type(value) is int and -(2**63) <= value < 2**63


def _check_size(document: object) -> None:
    # Not recursive, so neither deep nesting nor a loop of aliases can crash the process.
    left, count = [(document, 1)], 0
    while left:
        value, depth = left.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise Unreadable(TOO_DEEP)
        if count > MAX_VALUES:
            raise Unreadable(TOO_LARGE)
        if isinstance(value, dict):
            if odd := [key for key in value if not isinstance(key, str | int | float)]:
                raise Unreadable(f"it has {odd[0]!r} as a key")
            value = list(value.values())
        if isinstance(value, list):
            left.extend((item, depth + 1) for item in value)

"""The only reader of YAML that somebody else may have written: ConfigMaps of admins, of NVIDIA's programs, and our own
after an edit. It reads as NVIDIA's programs do: with go-yaml v2.4.3, below sigs.k8s.io/yaml v1.6.0.

PyYAML raises far more than YAMLError (RecursionError for deep nesting, ValueError for 2024-13-45, OverflowError,
TypeError), and aliases make a small text a huge or an endless document.
"""

import re
from typing import Any

import yaml

MAX_DEPTH = 20
"""Levels of maps and lists; the deepest file that NVIDIA's programs read has six."""
TOO_DEEP = f"it is nested more than {MAX_DEPTH} levels deep"
MAX_VALUES = 100_000
"""Maps, lists and scalars, each counted wherever an alias repeats it."""
TOO_LARGE = f"it holds more than {MAX_VALUES} values"
_MERGE = "tag:yaml.org,2002:merge"
_BOOL = re.compile("(?:y|Y|yes|Yes|YES|true|True|TRUE|on|On|ON|n|N|no|No|NO|false|False|FALSE|off|Off|OFF)$")
_NUMBER = re.compile(r"[-+]?(?:0[xXbBoO][0-9a-fA-F_]+|[0-9.][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9_]+)?)$")


class Unreadable(ValueError):
    """The text is not a document that we read; the message is a clause for people."""


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars as go-yaml does, and stops at the first bracket too many.

    PyYAML's scanner takes 0.9 s for 3,000 brackets in a line.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name
        first: [row for row in rows if row[0] in (_MERGE, "tag:yaml.org,2002:null")]
        for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _merged = 0  # entries that merge keys have brought in so far
    bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}  # noqa: RUF012 - the same

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        """As PyYAML's own, for at most MAX_DEPTH open brackets."""
        if self.flow_level >= MAX_DEPTH:
            raise Unreadable(TOO_DEEP)
        super().fetch_flow_collection_start(TokenClass)

    def scan_to_next_token(self) -> None:
        """As PyYAML's own, and past tabs where no indentation is expected, which libyaml and go-yaml allow."""
        super().scan_to_next_token()
        while self.peek() == "\t" and (self.flow_level or not self.allow_simple_key):
            self.forward()
            super().scan_to_next_token()

    def check_value(self) -> bool:
        """As PyYAML's own, but the colon of `{key:[]}` is an error: go-yaml takes it for a part of the key."""
        if self.flow_level and self.peek(1) in ",[]{}" and self.buffer[self.pointer - 1] not in "\"'":
            raise yaml.scanner.ScannerError(None, None, "a colon needs a space after it", self.get_mark())
        return bool(super().check_value())

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse a merge key after other keys, which it overrides in go-yaml v2 and not in PyYAML, and more than
        MAX_VALUES merged keys: merges of merges make millions out of a few lines."""
        first = [key.tag == _MERGE for key, _ in node.value]
        if first != sorted(first, reverse=True):
            raise Unreadable(
                "it has << after other keys, which NVIDIA's programs let it override: put it first"
            )
        merges = [value for key, value in node.value if key.tag == _MERGE]
        sources = [one for value in merges for one in (value.value if value.id == "sequence" else [value])]
        for source in sources:
            if isinstance(source, yaml.MappingNode):
                self.flatten_mapping(source)
            self._merged += len(source.value)
            if self._merged > MAX_VALUES:
                raise Unreadable(TOO_LARGE)
        super().flatten_mapping(node)

    def construct_number(self, node: yaml.ScalarNode) -> int | float | str:
        """The number as Go's strconv reads it and JSON writes it: 2.0 is 2. Returns the text itself if it is none."""
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
        return int(number) if number.is_integer() and abs(number) < 1e21 else number


class _Dumper(yaml.SafeDumper):
    """Quotes text that PyYAML or go-yaml would take for something else."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("yYnNtTfFoO"))
    _class.add_implicit_resolver("!number", _NUMBER, list("-+.0123456789"))
_Loader.add_constructor("!number", _Loader.construct_number)


def dump_yaml(document: object) -> str:
    """The text of a document, which NVIDIA's programs and `parse_yaml` read back as it was; keys keep their order."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False)


def parse_yaml(text: str) -> object:
    """The first document, of at most MAX_DEPTH levels and MAX_VALUES values; None for an empty text.

    Raises:
        Unreadable: and nothing else, whatever the text is.
    """
    try:
        document: object = next(yaml.load_all(text, _Loader), None)
    except Unreadable:
        raise
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f" (line {mark.line + 1}: {problem})" if mark is not None else ""
        raise Unreadable(f"it is not YAML{where}") from error
    except (RecursionError, ValueError, OverflowError, TypeError, AttributeError, LookupError) as error:
        raise Unreadable(f"it is not YAML that can be read ({type(error).__name__})") from error
    _check_size(document)
    return document


def _check_size(document: object) -> None:
    """Raises Unreadable; walks without recursion, so that neither depth nor a loop of aliases can end us."""
    left, seen = [(document, 1)], 0
    while left:
        value, depth = left.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise Unreadable(TOO_DEEP)
        if seen > MAX_VALUES:
            raise Unreadable(TOO_LARGE)
        if isinstance(value, dict):
            if odd := [key for key in value if not isinstance(key, str | int | float)]:
                raise Unreadable(f"it has {odd[0]!r} as a key")
            left.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list | tuple | set):
            left.extend((item, depth + 1) for item in value)

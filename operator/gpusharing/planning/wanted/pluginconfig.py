"""What does the device plugin's configuration say for a mode, and what would the plugin refuse of it?

Format and precedence: docs/design/nvidia.md#b1 to b.4 (k8s-device-plugin v0.19.3 api/config/v1). Keys contain a hash of
the content and never change their meaning (docs/design/transition.md#plugin-entries), because config-manager does not
notice an edit under the same key. No other module parses YAML that others may edit.
"""

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal

import yaml

from gpusharing.api.nearest import did_you_mean
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.values import value

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
    """Resolves plain scalars as go-yaml does, and stops at deep nesting: 3,000 brackets would take PyYAML 0.9 s."""

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
        """Return the number that Go's strconv reads and JSON writes, so that 2.0 becomes 2, else the string itself."""
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

    Raises Unreadable, and no other exception, if it is not valid YAML, is too deep or too large, or has a key or a tag
    that JSON does not allow. It is read as by NVIDIA's programs, with go-yaml v2.4.3 through sigs.k8s.io/yaml v1.6.0.
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
    """Return the line, from 1, of the key or list item at `path` in the first YAML document of `text`. Never raises.

    A path is such as `data.config.yaml` or `rows[0]`; keys may contain dots. A missing field gets the line of the
    innermost one on the way to it, and invalid YAML that of the mistake.
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
    """Yield the name in a path, the node of the key (in a list: of the value) and that of the value."""
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


_NAME = re.compile(r"(nvidia\.com/)?(?=.{1,52}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_DEVICE = re.compile(rf"(?i)[0-9]+(:[0-9]+)?|(MIG|GPU)-{_UUID}|MIG-GPU-{_UUID}/[0-9]+/[0-9]+")
_DURATION = re.compile(r"infinite|[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+)")


@value
class BadField:
    """A field of a configuration that one of NVIDIA's programs refuses or ignores."""

    path: str
    """The path, such as `sharing.timeSlicing.resources[0].replicas`; empty for the whole document."""
    text: str
    """The path, and what the program does or expects, for messages."""
    refused: bool = True
    """Whether the program does not start with this configuration. Otherwise it only ignores the field."""

    @classmethod
    def of(cls, path: str, why: str, *, refused: bool = True) -> "BadField":
        return cls(path, f"{path}: {why}" if path else why, refused)


def find_flaws(text: str) -> tuple[BadField, ...]:
    try:
        return tuple(_find(parse_yaml(text), _CONFIG, ""))
    except Unreadable as error:
        return (BadField.of("", f"the device plugin cannot read it: {error}"),)


def field_of(item: object, name: str) -> Any:
    """Return the value of the first field of a map with this name, in any case, as Go's encoding/json finds it."""
    fields = item if isinstance(item, dict) else {}
    return next((fields[key] for key in fields if str(key).lower() == name.lower()), None)


def _is_text(item: object, pattern: str | re.Pattern[str] = "") -> bool:
    return isinstance(item, str) and (not pattern or re.fullmatch(pattern, item) is not None)


def _is_choice(item: Any) -> bool:
    # The plugin does not use the value, and shares all devices.
    if isinstance(item, list):
        return all(is_whole(device) or _is_text(device, _DEVICE) for device in item)
    return item == "all" or (is_whole(item) and item > 0)


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "flag": (lambda item: isinstance(item, bool | None), "true or false, without quotes"),
    "text": (lambda item: item is None or _is_text(item), "a string, in quotes"),
    "texts": (lambda item: all(map(_is_text, item if isinstance(item, list) else [item or ""])), "texts"),
    "number": (lambda item: item is None or is_whole(item), "a whole number, without quotes"),
    "duration": (
        lambda item: type(item) in (int, float) or _is_text(item or "0", _DURATION),
        "a duration, for example 60s",
    ),
    "version": (lambda item: item in (None, "", "v1"), "v1"),
    "strategy": (lambda item: item in (None, "", "none", "single", "mixed"), "none, single or mixed"),
    "resource": (lambda item: _is_text(item, _NAME), "the name of an nvidia.com resource"),
    "replicas": (lambda item: is_whole(item) and item > 1, "a whole number of at least 2, without quotes"),
    "devices": (_is_choice, "all, a number or a list of devices"),
}
"""The kinds of field values, each with a test and the words by which a message names what is expected."""


def _all(kind: str, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), kind)


_ROW = {"name!": "resource", "replicas!": "replicas", "rename": "resource", "devices": "devices"}
_BLOCK = {"resources!": [_ROW], **_all("flag", "renameByDefault failRequestsGreaterThanOne")}
_FLAGS = {
    "migStrategy": "strategy",
    **_all("flag", "failOnInitError gdrcopyEnabled gdsEnabled mofedEnabled useNodeFeatureAPI"),
    **_all("text", "mpsRoot nvidiaDriverRoot nvidiaDevRoot deviceDiscoveryStrategy"),
    # Before v0.20 the device plugin ignores sharedDevicesAllocationPolicy (api/config/v1/flags.go).
    "plugin": {"passDeviceSpecs": "flag", "deviceListStrategy": "texts"}
    | _all(
        "text",
        "deviceIDStrategy cdiAnnotationPrefix nvidiaCTKPath containerDriverRoot sharedDevicesAllocationPolicy",
    ),
    "gfd": {"sleepInterval": "duration", **_all("flag", "oneshot noTimestamp")}
    | _all("text", "outputFile machineTypeFile"),
}
_OWN = [{"pattern!": "text", "name!": "resource"}]
_SHARING = {"timeSlicing": _BLOCK, "mps": _BLOCK}
_CONFIG = {
    "version": "version",
    "flags": _FLAGS,
    "resources": {"gpus": _OWN, "mig": _OWN},
    "sharing": _SHARING,
    "imex": {"channelIDs": ["number"], "required": "flag"},
}
_PLACES = {"flags": _FLAGS, "sharing": _SHARING, "sharing.timeSlicing": _BLOCK, "its resources": _ROW}
"""The blocks of a configuration, by the name that a message gives them."""


def _find(item: Any, wanted: Any, path: str) -> Iterator[BadField]:
    """Yield the bad fields of the value at `path`; `wanted` is a kind, a map by field, or a list with one format."""
    words = "a map" if isinstance(wanted, dict) else "a list"
    if isinstance(wanted, str):
        accepts, words = _KINDS[wanted]
        if accepts(item):
            return
    elif item is None or isinstance(item, type(wanted)):
        if isinstance(wanted, dict):
            yield from _find_in_map(item or {}, wanted, path)
        for index, row in enumerate(item or () if isinstance(wanted, list) else ()):
            yield from _find(row, wanted[0], f"{path}[{index}]")
        return
    shown = cut(json.dumps(item, default=str), 60)
    yield BadField.of(path, f"the device plugin rejects {shown}: it expects {words}")


def _find_in_map(fields: Mapping[Any, Any], wanted: Mapping[str, Any], path: str) -> Iterator[BadField]:
    needed = [name.rstrip("!") for name in wanted if name.endswith("!")]
    known = {name.rstrip("!") if needed else name.lower(): inner for name, inner in wanted.items()}
    for key, item in fields.items():
        where, name = f"{path}.{key}".lstrip("."), str(key) if needed else str(key).lower()
        if name not in known:
            places = {one.rstrip("!"): place for place, names in reversed(_PLACES.items()) for one in names}
            place = places.get(str(key))
            belongs = f", which belongs to {place}" if place else did_you_mean(str(key), places)
            yield BadField.of(where, f"the device plugin ignores this field{belongs}", refused=False)
        elif item is not None or name not in (*needed, "mps"):
            yield from _find(item, known[name], where)
    for name in needed:
        if fields.get(name) in (None, []):
            yield BadField.of(f"{path}.{name}", "the device plugin needs this field")


MigStrategy = Literal["none", "single", "mixed"]
STRATEGIES: Mapping[str, MigStrategy] = {"none": "none", "single": "single", "mixed": "mixed"}

NEUTRAL_KEY, NEUTRAL = "default", "version: v1\n"
"""The name and the content of the entry that always exists.

With it, nothing is shared and every flag has the plugin's default.

If there is no entry at all, config-manager 0.19.3 exits with "no configuration files available", and the pods of the
device plugin and GFD do not start. If neither a label nor DEFAULT_CONFIG names an entry, its fallback `named` uses the
entry of this name. Without that entry, its fallback `single` would use the only entry there is, which belongs to some
policy (cmd/config-manager/main.go, b.4). The GPU Operator's fallback is `empty`, which has the same effect as this
content.
"""


def default_entry(stack: StackView) -> str:
    """Return the name of the entry that the device plugin uses on a node without the label, or empty for none.

    NVIDIA's own chart uses the entry named NEUTRAL_KEY, if there is one, unless its values name another one (b.4).
    """
    policy = stack.cluster_policy
    if policy is None or policy.plugin_default:
        return policy.plugin_default if policy is not None else ""
    return NEUTRAL_KEY if policy.plain is not None and NEUTRAL_KEY in stack.plugin_configs else ""


SharingStrategy = Literal["time-slicing", "mps"]
"""A value of the label nvidia.com/gpu.sharing-strategy, which GFD writes."""
_BLOCKS: Mapping[SharingStrategy, str] = {"mps": "mps", "time-slicing": "timeSlicing"}
"""The key below `sharing` for each strategy, in order of precedence. If both are present, the plugin uses mps (b.3)."""


@value
class Sharing:
    replicas: tuple[tuple[str, int], ...]
    """Pairs of a resource name and the number of pods that share one device of it."""
    rename: bool = False
    """Whether `.shared` is appended to the name of the shared resource."""
    fail_requests_greater_than_one: bool = False
    strategy: SharingStrategy = "time-slicing"


@value
class PluginConfig:
    """The effect of one configuration on the device plugin."""

    mig_strategy: MigStrategy = "none"
    sharing: Sharing | None = None

    @property
    def replicas(self) -> int:
        return self.sharing.replicas[0][1] if self.sharing is not None else 1

    @property
    def one_each(self) -> tuple[str, ...]:
        """The resources of which a container that requests more than one share is refused (b.3)."""
        sharing = self.sharing
        if sharing is None or not sharing.fail_requests_greater_than_one:
            return ()
        return tuple(f"{name}.shared" if sharing.rename else name for name, _ in sharing.replicas)

    def on(self, names: Container[str]) -> "PluginConfig":
        """Return the configuration without the rows for resources that are not in `names` and so have no effect."""
        if self.sharing is None:
            return self
        rows = tuple(row for row in self.sharing.replicas if row[0] in names)
        return replace(self, sharing=replace(self.sharing, replicas=rows) if rows else None)

    def same_effect(self, other: "PluginConfig", *, with_mig: bool) -> bool:
        """Whether both share devices in the same way. The MIG strategies count only if the node has MIG instances."""
        return self.sharing == other.sharing and (not with_mig or self.mig_strategy == other.mig_strategy)


@lru_cache(maxsize=256)
def render(config: PluginConfig) -> str:
    document: dict[str, Any] = {"version": "v1", "flags": {"migStrategy": config.mig_strategy}}
    if config.sharing is not None:
        document["sharing"] = {
            _BLOCKS[config.sharing.strategy]: {
                "renameByDefault": config.sharing.rename,
                "failRequestsGreaterThanOne": config.sharing.fail_requests_greater_than_one,
                "resources": [{"name": name, "replicas": count} for name, count in config.sharing.replicas],
            }
        }
    return yaml.safe_dump(document, sort_keys=False)


@lru_cache(maxsize=1024)
def parse(text: str) -> PluginConfig | None:
    """Return the effect of a configuration, given as YAML. None if the device plugin would not start with it."""
    if any(flaw.refused for flaw in find_flaws(text)):
        return None
    document = parse_yaml(text)
    strategy = STRATEGIES[field_of(field_of(document, "flags"), "migStrategy") or "none"]
    for kind, block in _BLOCKS.items():
        if (sharing := field_of(field_of(document, "sharing"), block)) is not None:
            rows = [(row["name"], row["replicas"]) for row in sharing["resources"]]
            fails = sharing.get("failRequestsGreaterThanOne")
            shared = Sharing(
                tuple(sorted((name if "/" in name else f"nvidia.com/{name}", count) for name, count in rows)),
                bool(sharing.get("renameByDefault")),
                kind == "mps" if fails is None else fails,  # the default of MPS is true (b.3)
                kind,
            )
            return PluginConfig(strategy, shared)
    return PluginConfig(strategy)


@lru_cache(maxsize=1024)
def key_for(policy: str, content: str) -> str:
    """Return the name of an entry for `policy`. It ends with a hash of the content and fits a label value."""
    return f"{policy[:55].rstrip('-.')}-{_digest(content)}"


def is_named_after(content: str, key: str) -> bool:
    return key.endswith(f"-{_digest(content)}")


def _digest(content: str) -> str:
    return sha256(content.encode(errors="surrogatepass")).hexdigest()[:7]

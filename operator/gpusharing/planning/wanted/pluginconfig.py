"""The device plugin's configuration: what a mode means there, its text, how to read that of others, and what the
plugin's own parser refuses or silently ignores, by field.

Format and precedence: docs/design/nvidia.md#b1 to b.4 (k8s-device-plugin v0.19.3 api/config/v1). Answers of that parser
are in tests/foreign. Keys are
content-hashed and never change their meaning (docs/design/transition.md#plugin-entries), because config-manager does
not notice an edit under the same key.
"""

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal

import yaml

from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.yamltext import Unreadable, is_whole, parse_yaml

_NAME = re.compile(
    r"(nvidia\.com/)?(?=.{1,52}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
)
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_DEVICE = re.compile(rf"(?i)[0-9]+(:[0-9]+)?|(MIG|GPU)-{_UUID}|MIG-GPU-{_UUID}/[0-9]+/[0-9]+")
_DURATION = re.compile(r"infinite|[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+)")


@value
class Flaw:
    """A place in a configuration that the device plugin refuses or ignores."""

    path: str
    """The field, such as `sharing.timeSlicing.resources[0].replicas`; empty: the whole text."""
    why: str
    """What the plugin does and what it expects, as a clause for people."""
    refused: bool = True
    """Whether the plugin does not start with the configuration. If not, it only ignores the field."""

    @property
    def text(self) -> str:
        """Path and reason, for people."""
        return f"{self.path}: {self.why}" if self.path else self.why


def find_flaws(text: str) -> tuple[Flaw, ...]:
    """Return everything in a configuration that the device plugin refuses or ignores; empty if it reads all of it."""
    try:
        return tuple(_find(parse_yaml(text), _CONFIG, ""))
    except Unreadable as error:
        return (Flaw("", f"the device plugin cannot read it: {error}"),)


def field_of(found: object, name: str) -> Any:
    """Return the value of a field by its name in any case, as Go's encoding/json finds it; None if the map has no such
    field, or if `found` is no map."""
    fields = found if isinstance(found, dict) else {}
    return next((fields[key] for key in fields if str(key).lower() == name.lower()), None)


def _is_choice(found: Any) -> bool:
    """Whether the plugin can read `devices` of a row: `all`, a positive number, or a list of devices. It shares all
    devices in any case."""
    if isinstance(found, list):
        return all(is_whole(one) or (isinstance(one, str) and _DEVICE.fullmatch(one)) for one in found)
    return found == "all" or (is_whole(found) and found > 0)


def _is_text(found: object, pattern: str | re.Pattern[str] = "") -> bool:
    """Whether the value is a text that matches the pattern as a whole; without a pattern, any text."""
    return isinstance(found, str) and (not pattern or re.fullmatch(pattern, found) is not None)


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "flag": (lambda found: isinstance(found, bool | None), "true or false, without quotes"),
    "text": (lambda found: found is None or _is_text(found), "a text, in quotes"),
    "texts": (lambda found: all(map(_is_text, found if isinstance(found, list) else [found or ""])), "texts"),
    "number": (lambda found: found is None or is_whole(found), "a whole number, without quotes"),
    "duration": (
        lambda found: type(found) in (int, float) or _is_text(found or "0", _DURATION),
        "such as 60s",
    ),
    "version": (lambda found: found in (None, "", "v1"), "v1"),
    "strategy": (lambda found: found in (None, "", "none", "single", "mixed"), "none, single or mixed"),
    "resource": (lambda found: _is_text(found, _NAME), "the name of a resource of nvidia.com"),
    "replicas": (lambda found: is_whole(found) and found > 1, "a number of at least 2, without quotes"),
    "devices": (_is_choice, "all, a number or a list of devices"),
}
"""What a value has to be, and how a message says that."""


def _all(kind: str, names: str) -> dict[str, Any]:
    """Return several fields of the same kind, as the format below has them. `names`: separated by spaces."""
    return dict.fromkeys(names.split(), kind)


_ROW = {"name!": "resource", "replicas!": "replicas", "rename": "resource", "devices": "devices"}
_BLOCK = {"resources!": [_ROW], **_all("flag", "renameByDefault failRequestsGreaterThanOne")}
_FLAGS = {
    "migStrategy": "strategy",
    **_all("flag", "failOnInitError gdrcopyEnabled gdsEnabled mofedEnabled useNodeFeatureAPI"),
    **_all("text", "mpsRoot nvidiaDriverRoot nvidiaDevRoot deviceDiscoveryStrategy"),
    "plugin": {"passDeviceSpecs": "flag", "deviceListStrategy": "texts"}
    | _all("text", "deviceIDStrategy cdiAnnotationPrefix nvidiaCTKPath containerDriverRoot"),
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
"""The format. `!` marks a field that must be there; a map with such fields knows them only in their own case."""
_PLACES = {"flags": _FLAGS, "sharing": _SHARING, "sharing.timeSlicing": _BLOCK, "its resources": _ROW}


def _find(found: Any, wanted: Any, path: str) -> Iterator[Flaw]:
    """Yield the flaws of the value at `path`. `wanted`: one of _KINDS, or a map or list of such."""
    words = "a map" if isinstance(wanted, dict) else "a list"
    if isinstance(wanted, str):
        accepts, words = _KINDS[wanted]
        if accepts(found):
            return
    elif found is None or isinstance(found, type(wanted)):
        if isinstance(wanted, dict):
            yield from _find_in_map(found or {}, wanted, path)
        for index, item in enumerate(found or () if isinstance(wanted, list) else ()):
            yield from _find(item, wanted[0], f"{path}[{index}]")
        return
    shown = cut(json.dumps(found, default=str), 60)
    yield Flaw(path, f"the device plugin refuses {shown}: it expects {words}")


def _find_in_map(found: Mapping[Any, Any], wanted: Mapping[str, Any], path: str) -> Iterator[Flaw]:
    """Yield the flaws of a map: fields that are unknown, wrong or missing. A required field that is null or an empty
    list counts as missing."""
    needed = [name.rstrip("!") for name in wanted if name.endswith("!")]
    known = {name.rstrip("!") if needed else name.lower(): inner for name, inner in wanted.items()}
    for key, item in found.items():
        where, name = f"{path}.{key}".lstrip("."), str(key) if needed else str(key).lower()
        if name not in known:
            yield Flaw(where, f"the device plugin ignores this field{_belongs(str(key))}", refused=False)
        elif item is not None or name not in (*needed, "mps"):
            yield from _find(item, known[name], where)
    for name in needed:
        if found.get(name) in (None, []):
            yield Flaw(f"{path}.{name}", "the device plugin needs this field")


def _belongs(key: str) -> str:
    """Return, after a comma, the part of the configuration to which a field of this name belongs; empty if none has
    it."""
    places = [place for place, fields in _PLACES.items() if not {key, f"{key}!"}.isdisjoint(fields)]
    return f", which belongs to {places[0]}" if places else ""


MigStrategy = Literal["none", "single", "mixed"]
STRATEGIES: Mapping[str, MigStrategy] = {"none": "none", "single": "single", "mixed": "mixed"}

NEUTRAL_KEY, NEUTRAL = "default", "version: v1\n"
"""The entry that always exists, and its text: nothing is shared, every flag has the plugin's default.

config-manager 0.19.3 ends with "no configuration files available" when there is no entry at all, and the pods of the
device plugin and GFD do not start. Where no label and no DEFAULT_CONFIG names an entry, its fallback `named` takes the
one of this name; without it, `single` would take the only entry there is, which is some policy's
(cmd/config-manager/main.go, b.4). The GPU Operator's fallback is `empty`, which means the same as this text.
"""


def default_entry(stack: StackView) -> str:
    """The entry that the device plugin of a node without the label uses; empty: none, which shares nothing.

    NVIDIA's own chart takes the one of the neutral name where it is not told another (b.4).
    """
    policy = stack.cluster_policy
    if policy is None or policy.plugin_default:
        return policy.plugin_default if policy is not None else ""
    return NEUTRAL_KEY if policy.plain is not None and NEUTRAL_KEY in stack.plugin_configs else ""


SharingStrategy = Literal["time-slicing", "mps"]
"""As GFD writes it into nvidia.com/gpu.sharing-strategy."""
_BLOCKS: Mapping[SharingStrategy, str] = {"mps": "mps", "time-slicing": "timeSlicing"}
"""Key of the block under `sharing`; with both, the plugin takes mps (b.3)."""


@value
class Sharing:
    """Several pods on one device. Replicas are shares per device, by resource name."""

    replicas: tuple[tuple[str, int], ...]
    """Resource name and how many pods share one device of it."""
    rename: bool = False
    """Whether the shared resource has `.shared` behind its name."""
    fail_requests_greater_than_one: bool = False
    """Whether a container that asks for more than one is refused."""
    strategy: SharingStrategy = "time-slicing"
    """How the pods share it."""


@value
class PluginConfig:
    """What one device-plugin configuration makes the plugin do."""

    mig_strategy: MigStrategy = "none"
    """How MIG instances are offered."""
    sharing: Sharing | None = None
    """None: one pod has a whole device."""

    def on(self, names: Container[str]) -> "PluginConfig":
        """Its effect on a node that has only these resources: rows for others do nothing there."""
        if self.sharing is None:
            return self
        rows = tuple(row for row in self.sharing.replicas if row[0] in names)
        return replace(self, sharing=replace(self.sharing, replicas=rows) if rows else None)

    def same_effect(self, other: "PluginConfig", *, with_mig: bool) -> bool:
        """Whether both serve the same; the MIG strategy only matters if MIG instances exist."""
        return self.sharing == other.sharing and (not with_mig or self.mig_strategy == other.mig_strategy)


@lru_cache(maxsize=256)
def render(config: PluginConfig) -> str:
    """The text of a configuration; equal configurations give equal text."""
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
    """Read a configuration; None when the device plugin would not start with it."""
    if any(flaw.refused for flaw in find_flaws(text)):
        return None
    document = parse_yaml(text)
    strategy = STRATEGIES[field_of(field_of(document, "flags"), "migStrategy") or "none"]
    for kind, block in _BLOCKS.items():
        if (found := field_of(field_of(document, "sharing"), block)) is not None:
            return PluginConfig(strategy, _parse_sharing(found, kind))
    return PluginConfig(strategy)


def _parse_sharing(block: Mapping[str, Any], strategy: SharingStrategy) -> Sharing:
    rows = [(row["name"], row["replicas"]) for row in block["resources"]]
    fails = block.get("failRequestsGreaterThanOne")
    return Sharing(
        tuple(sorted((name if "/" in name else f"nvidia.com/{name}", count) for name, count in rows)),
        bool(block.get("renameByDefault")),
        strategy == "mps" if fails is None else fails,  # the default of MPS is true (b.3)
        strategy,
    )


@lru_cache(maxsize=1024)
def key_for(policy: str, content: str) -> str:
    """Name of an entry: the policy, shortened to fit a label value, and a hash of the content."""
    return f"{policy[:55].rstrip('-.')}-{_digest(content)}"


def is_named_after(content: str, key: str) -> bool:
    """Whether `key_for` gave the entry its name, which then has only one meaning."""
    return key.endswith(f"-{_digest(content)}")


def _digest(content: str) -> str:
    return sha256(content.encode(errors="surrogatepass")).hexdigest()[:7]

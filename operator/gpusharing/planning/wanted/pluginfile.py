"""What the device plugin's own parser refuses in a configuration, and what it silently ignores, by field.

Format: docs/design/nvidia.md#b1 (k8s-device-plugin v0.19.3 api/config/v1); answers of that parser are in tests/foreign.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.yamltext import Unreadable, parse_yaml

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


def _is_whole(found: object) -> bool:
    """Whether Go reads the value into an int."""
    return type(found) is int and -(2**63) <= found < 2**63


def _is_choice(found: Any) -> bool:
    """Whether the plugin can read `devices` of a row: `all`, a positive number, or a list of devices. It shares all
    devices in any case."""
    if isinstance(found, list):
        return all(_is_whole(one) or (isinstance(one, str) and _DEVICE.fullmatch(one)) for one in found)
    return found == "all" or (_is_whole(found) and found > 0)


def _is_text(found: object, pattern: str | re.Pattern[str] = "") -> bool:
    """Whether the value is a text that matches the pattern as a whole; without a pattern, any text."""
    return isinstance(found, str) and (not pattern or re.fullmatch(pattern, found) is not None)


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "flag": (lambda found: isinstance(found, bool | None), "true or false, without quotes"),
    "text": (lambda found: found is None or _is_text(found), "a text, in quotes"),
    "texts": (lambda found: all(map(_is_text, found if isinstance(found, list) else [found or ""])), "texts"),
    "number": (lambda found: found is None or _is_whole(found), "a whole number, without quotes"),
    "duration": (
        lambda found: type(found) in (int, float) or _is_text(found or "0", _DURATION),
        "such as 60s",
    ),
    "version": (lambda found: found in (None, "", "v1"), "v1"),
    "strategy": (lambda found: found in (None, "", "none", "single", "mixed"), "none, single or mixed"),
    "resource": (lambda found: _is_text(found, _NAME), "the name of a resource of nvidia.com"),
    "replicas": (lambda found: _is_whole(found) and found > 1, "a number of at least 2, without quotes"),
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

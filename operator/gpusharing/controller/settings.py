"""The operator's settings: environment variables GPUSHARING_*, set by the chart. Bad values end the start with a name.

`docs/reference/settings.md` is generated from this file.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gpusharing.kube.foreign import find_problem
from gpusharing.planning.gpus.drivers import VERSION
from gpusharing.planning.snapshot.views import PlanSettings

PREFIX = "GPUSHARING_"
CHOICES = {"log_format": ("json", "console"), "log_level": ("debug", "info", "warning", "error")}
POSITIVE = frozenset(
    {
        "lease_seconds",
        "renew_deadline",
        "retry_period",
        "relist",
        "pending_period",
        "parallel",
        "poll",
        "eviction_wait",
    }
)
"""With 0 the loop would spin, or never act."""
MAX_PORT = 65535
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class SettingsError(Exception):
    """A setting cannot be used; the message names the variable and a valid example."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the shell needs beyond what the planner needs. Times in seconds."""

    plan: PlanSettings = field(default_factory=PlanSettings)
    """Settings that decisions depend on; each has a variable of its own too."""
    admin_mig_config_map: str = ""
    """ConfigMap in the GPU Operator's namespace whose mig-parted entries are merged into ours; empty: none."""
    agent_namespace: str = "gpusharing-agent"
    """Where the agent's pods are; empty: our own namespace."""
    maintenance_keys: tuple[str, ...] = ()
    """Keys, commas between: a label, annotation or taint of one on a Node means that somebody else maintains it."""
    lease_name: str = "gpusharing-operator"
    """Lease in our namespace: leader and claims."""
    lease_seconds: float = 15.0
    """How long a lost leader blocks its successor."""
    renew_deadline: float = 10.0
    """A leader that could not renew for this long ends its process at once."""
    retry_period: float = 2.0
    """Between two tries to take or renew the Lease."""
    debounce: float = 0.2
    """From the first change to the pass that looks at all of them."""
    publish_period: float = 2.0
    """While an object moves, its status follows after this time; phases that pass more quickly are never shown."""
    relist: float = 600.0
    """Policies are listed again after this long even when nothing happened."""
    pending_period: float = 60.0
    """Between two counts of Pending GPU pods."""
    parallel: int = 16
    """Nodes acted on at once."""
    log_format: str = "json"
    """json or console."""
    log_level: str = "info"
    """debug, info, warning or error."""
    metrics_port: int = 8080
    """Port of /metrics; 0 switches it off."""
    probe_port: int = 8081
    """Port of /healthz and /readyz; 0 switches it off."""
    listen: str = "0.0.0.0"
    """Address of the two ports."""


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Read every GPUSHARING_<NAME>. Raises SettingsError for a value of the wrong kind or an unknown name."""
    known = dict.fromkeys(_names(PlanSettings), "plan") | dict.fromkeys(_names(Settings), "shell")
    plan: dict[str, Any] = {}
    shell: dict[str, Any] = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        where = known.get(name)
        if where is None:
            raise SettingsError(
                f"{variable} is not a setting; known are {', '.join(sorted(_variables(known)))}"
            )
        defaults: object = PlanSettings() if where == "plan" else Settings()
        (plan if where == "plan" else shell)[name] = _convert(variable, text, getattr(defaults, name))
    settings = replace(Settings(**shell), plan=replace(PlanSettings(), **plan))
    _check_lease(settings)
    return settings


def default_text(value: object) -> str:
    """A value as its variable would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _names(kind: type) -> tuple[str, ...]:
    return tuple(item.name for item in fields(kind) if item.name != "plan")


def _variables(known: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(PREFIX + name.upper() for name in known)


def _convert(variable: str, text: str, default: object) -> object:
    name = variable.removeprefix(PREFIX).lower()
    example = f"for example {variable}={default}"
    if allowed := CHOICES.get(name):
        if text not in allowed:
            raise SettingsError(f"{variable}={text} is not one of {', '.join(allowed)}; {example}")
        return text
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise SettingsError(f"{variable}={text} is neither true nor false; for example {variable}=true")
        return text == "true"
    if isinstance(default, tuple):
        return _list(variable, text)
    if not isinstance(default, (int, float)):
        return text
    convert: Callable[[str], float] = type(default)
    try:
        value = convert(text)
    except ValueError:
        kind = "whole number" if isinstance(default, int) else "number"
        raise SettingsError(f"{variable}={text} is not a {kind}; {example}") from None
    if not math.isfinite(value):
        raise SettingsError(f"{variable}={text} is not a number; {example}")
    if value < 0:
        raise SettingsError(f"{variable}={text} is negative; {example}")
    if value == 0 and name in POSITIVE:
        raise SettingsError(f"{variable}={text} must be above 0; {example}")
    if name.endswith("_port") and value > MAX_PORT:
        raise SettingsError(f"{variable}={text} is not a port; {example}")
    return value


def _list(variable: str, text: str) -> tuple[str, ...]:
    """The entries between commas; none in an empty text."""
    find, example = LISTS[variable.removeprefix(PREFIX).lower()]
    entries = tuple(entry.strip() for entry in text.split(",")) if text.strip() else ()
    for entry in entries:
        if problem := find(entry):
            raise SettingsError(f"{variable}={text}: {problem}; for example {variable}={example}")
    return entries


def _find_no_namespace(entry: str) -> str:
    return "" if NAMESPACE.fullmatch(entry) else f"{entry!r} is not the name of a namespace"


def _find_no_version(entry: str) -> str:
    return "" if VERSION.fullmatch(entry) else f"{entry!r} is not a driver version or the beginning of one"


LISTS: Mapping[str, tuple[Callable[[str], str], str]] = {
    "maintenance_keys": (find_problem, "example.com/maintenance"),
    "protected_namespaces": (_find_no_namespace, "kube-system,monitoring"),
    "unsafe_drivers": (_find_no_version, "570,580.95.05"),
}
"""What is wrong with an entry (empty: nothing), and an example."""


def _check_lease(settings: Settings) -> None:
    """A leader must be able to renew before it has to give up, and give up before others take over."""
    if not settings.retry_period < settings.renew_deadline < settings.lease_seconds:
        raise SettingsError(
            f"{PREFIX}RETRY_PERIOD={settings.retry_period:g}, {PREFIX}RENEW_DEADLINE={settings.renew_deadline:g} and"
            f" {PREFIX}LEASE_SECONDS={settings.lease_seconds:g} must each be larger than the one before;"
            " for example 2, 10 and 15"
        )

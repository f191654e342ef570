"""The operator's settings: environment variables GPUSHARING_*, which the chart sets.

An invalid one prevents the start. `docs/reference/settings.md` is generated from this file.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from gpusharing.api.settingtypes import Period, Port, Seconds
from gpusharing.kube.fence import MOST_CLAIMS
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.planning.vocabulary.values import value

PREFIX = "GPUSHARING_"
EXAMPLES = {
    "maintenance_keys": "example.com/maintenance",
    "neighbor_labels": "example.com/hands-off=true",
    "protected_namespaces": "kube-system,monitoring",
    "unsafe_drivers": "570,580.95.05",
}
"""Examples for the settings whose default does not show what a value looks like, by field name."""
WHY = {
    "int_parsing": " is not a whole number",
    "greater_than_equal": " is negative",
    "greater_than": " must be above 0",
    "less_than_equal": " is not a port",
}
"""Our wording for pydantic's errors, after the name and the value of the variable."""


class SettingsError(Exception):
    """A setting cannot be used; the message names the variable and shows a valid example."""


@value
class Settings(SourceSettings):
    """All settings of the operator; durations are in seconds."""

    lease_name: str = "gpusharing-operator"
    """Name of the Lease in the operator's namespace that records the leader and the claims."""
    lease_duration: Period = 15.0
    """How long a leader that has vanished blocks its successor."""
    renew_deadline: Period = 10.0
    """Time without a renewal of the Lease after which a leader ends its process at once."""
    retry_period: Period = 2.0
    """Time between two attempts to take or renew the Lease."""
    debounce: Seconds = 0.2
    """Time from the first change to the pass that handles all of them."""
    publish_period: Seconds = 2.0
    """Time after which a node that begins to change is shown; its next phases are shown after twice that
    time. Phases that pass more quickly are never shown."""
    relist: Period = 600.0
    """Time after which policies are listed again even if no event came."""
    pending_period: Period = 60.0
    """Time between two counts of Pending GPU pods."""
    parallel: Annotated[int, Field(gt=0)] = 16
    """How many nodes are acted on at once."""
    log_format: Literal["json", "console"] = "json"
    """Form of the log: json or console."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged: debug, info, warning or error."""
    metrics_port: Port = 8080
    """Port of /metrics; 0 switches it off."""
    probe_port: Port = 8081
    """Port of /healthz and /readyz; 0 switches it off."""
    listen: str = "0.0.0.0"
    """Address on which the two ports listen."""


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Return the settings of the variables GPUSHARING_<NAME>, or raise SettingsError; an empty one is a value."""
    texts = {name.removeprefix(PREFIX): text for name, text in environment.items() if name.startswith(PREFIX)}
    known = {item.name.upper(): item.name for item in fields(Settings)}
    if unknown := sorted(texts.keys() - known):
        names = ", ".join(PREFIX + name for name in sorted(known))
        raise SettingsError(f"{PREFIX}{unknown[0]} is not a setting; the known ones are {names}")
    try:
        settings = _SETTINGS.validate_python({known[name]: text for name, text in texts.items()})
    except ValidationError as errors:
        raise SettingsError(_explain(errors)) from None
    _check(settings)
    return settings


_SETTINGS = TypeAdapter(Settings)


def default_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}s"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name, text, context = str(first["loc"][0]), first["input"], first.get("ctx", {})
    if first["type"] == "literal_error":
        words = re.findall("'(.*?)'", context["expected"])
        why = f" is not one of {', '.join(words)}"
    else:
        why = WHY.get(first["type"]) or str(context.get("error", first["msg"]))
    example = EXAMPLES.get(name) or default_text(getattr(Settings(), name))
    variable = PREFIX + name.upper()
    return f"{variable}={text}{why}; for example {variable}={example}"


def _check(settings: Settings) -> None:
    # A leader needs time to renew before it must stop, and must stop before another process takes over.
    if not settings.retry_period < settings.renew_deadline < settings.lease_duration:
        raise SettingsError(
            f"{PREFIX}RETRY_PERIOD={settings.retry_period:g}s, {PREFIX}RENEW_DEADLINE={settings.renew_deadline:g}s and"
            f" {PREFIX}LEASE_DURATION={settings.lease_duration:g}s must each be larger than the one before;"
            " for example 2s, 10s and 15s"
        )
    if settings.max_in_flight > MOST_CLAIMS:
        raise SettingsError(
            f"{PREFIX}MAX_IN_FLIGHT={settings.max_in_flight} is more than {MOST_CLAIMS}, the number of nodes that"
            f" the leader's Lease can record; for example {PREFIX}MAX_IN_FLIGHT=100"
        )
    # Keys of the one list keep the operator away from nodes, and those of the other are set during its own change.
    for key in (entry.partition("=")[0] for entry in settings.neighbor_labels):
        if key in settings.maintenance_keys:
            raise SettingsError(
                f"{PREFIX}MAINTENANCE_KEYS and {PREFIX}NEIGHBOR_LABELS both name {key}: the operator would block"
                " itself on every node that it changes"
            )
    # An admin's ConfigMap that is ours, merged into itself, would keep every entry forever and never be corrected.
    for name in ("admin_plugin_config_map", "admin_mig_config_map"):
        value = getattr(settings, name)
        if value in (settings.plugin_config_map, settings.mig_config_map):
            raise SettingsError(
                f"{PREFIX}{name.upper()}={value} is the operator's own ConfigMap: name the one whose entries should be"
                " merged into it, or none"
            )

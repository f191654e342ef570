"""The operator's settings: environment variables GPUSHARING_*, set by the chart. A bad one is named and ends the start.

`docs/reference/settings.md` is generated from this file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from gpusharing.api.settingtypes import Period, Port, Seconds, listed
from gpusharing.kube.fence import MOST_CLAIMS
from gpusharing.kube.foreign import find_problem
from gpusharing.kube.sources import AdminMaps, SourceSettings
from gpusharing.planning.snapshot.views import PlanSettings

PREFIX = "GPUSHARING_"
EXAMPLES = {
    "maintenance_keys": "example.com/maintenance",
    "neighbour_labels": "example.com/hands-off=true",
    "protected_namespaces": "kube-system,monitoring",
    "unsafe_drivers": "570,580.95.05",
}
"""Examples for settings whose default does not show how to write one."""
WHY = {
    "float_parsing": " is not a number",
    "finite_number": " is not a number",
    "int_parsing": " is not a whole number",
    "greater_than_equal": " is negative",
    "greater_than": " must be above 0",
    "less_than_equal": " is not a port",
}
"""What pydantic's errors say about a variable of ours."""
MaintenanceKeys = Annotated[tuple[str, ...], listed(find_problem)]


class SettingsError(Exception):
    """A setting cannot be used; the message names the variable and a valid example."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the process itself, besides those of the planner. Times in seconds."""

    plan: PlanSettings = field(default_factory=PlanSettings)
    """Settings that decisions depend on; each has its own variable too."""
    admin_mig_config_map: str = ""
    """ConfigMap in the GPU Operator's namespace whose mig-parted entries are merged into ours; empty: none."""
    admin_plugin_config_map: str = ""
    """ConfigMap in the GPU Operator's namespace whose device-plugin entries are merged into ours; empty: none."""
    agent_namespace: str = "gpusharing-agent"
    """Namespace of the agent's pods; empty: our own namespace."""
    maintenance_keys: MaintenanceKeys = ()
    """Comma-separated keys: a label, annotation or taint with one means that somebody else maintains the Node."""
    lease_name: str = "gpusharing-operator"
    """Name of the Lease in our namespace that holds leader and claims."""
    lease_seconds: Period = 15.0
    """How long a lost leader blocks its successor."""
    renew_deadline: Period = 10.0
    """A leader that could not renew the Lease for this long ends its process at once."""
    retry_period: Period = 2.0
    """Time between two attempts to take or renew the Lease."""
    debounce: Seconds = 0.2
    """Time from the first change to the pass that handles all of them."""
    publish_period: Seconds = 2.0
    """A node that begins to change is shown after this time, and its next phases after twice that; phases that pass
    more quickly are never shown."""
    relist: Period = 600.0
    """Time after which policies are listed again even when nothing happened."""
    pending_period: Period = 60.0
    """Time between two counts of Pending GPU pods."""
    parallel: Annotated[int, Field(gt=0)] = 16
    """How many nodes are acted on at once."""
    log_format: Literal["json", "console"] = "json"
    """json or console."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error."""
    metrics_port: Port = 8080
    """Port of /metrics; 0 switches it off."""
    probe_port: Port = 8081
    """Port of /healthz and /readyz; 0 switches it off."""
    listen: str = "0.0.0.0"
    """Address of the two ports."""

    @property
    def sources(self) -> SourceSettings:
        """The settings of the sources."""
        theirs = AdminMaps(self.admin_plugin_config_map, self.admin_mig_config_map)
        return SourceSettings(self.plan, theirs, self.agent_namespace, frozenset(self.maintenance_keys))


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Read every GPUSHARING_<NAME>. Raises SettingsError for a value of the wrong kind or an unknown name."""
    texts = {name.removeprefix(PREFIX): text for name, text in environment.items() if name.startswith(PREFIX)}
    plan, shell = _variables(PlanSettings), _variables(Settings)
    known = plan.keys() | shell.keys()
    if unknown := sorted(texts.keys() - known):
        names = ", ".join(PREFIX + name for name in sorted(known))
        raise SettingsError(f"{PREFIX}{unknown[0]} is not a setting; the known ones are {names}")
    try:
        planner = _PLAN.validate_python({plan[name]: texts[name] for name in texts if name in plan})
        given = {shell[name]: texts[name] for name in texts if name in shell}
        settings = _SHELL.validate_python({**given, "plan": planner})
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None
    _check_lease(settings)
    _check_cap(settings)
    _check_marks(settings)
    _check_admin_maps(settings)
    return settings


_PLAN, _SHELL = TypeAdapter(PlanSettings), TypeAdapter(Settings)


def default_text(value: object) -> str:
    """A value in the form of its variable."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _variables(kind: type) -> dict[str, str]:
    """Names of variables, without the prefix, to names of fields."""
    return {item.name.upper(): item.name for item in fields(kind) if item.name != "plan"}


def _explain(error: ValidationError) -> str:
    """The first bad value for people: the variable, what is wrong with it, and a valid example."""
    first = error.errors(include_url=False)[0]
    name, text, context = str(first["loc"][0]), first["input"], first.get("ctx", {})
    if first["type"] == "literal_error":
        words = re.findall("'(.*?)'", context["expected"])
        why = f" is not one of {', '.join(words)}"
    else:
        why = WHY.get(first["type"]) or str(context.get("error", first["msg"]))
    defaults: object = PlanSettings() if hasattr(PlanSettings, name) else Settings()
    example = EXAMPLES.get(name) or default_text(getattr(defaults, name))
    variable = PREFIX + name.upper()
    return f"{variable}={text}{why}; for example {variable}={example}"


def _check_lease(settings: Settings) -> None:
    """A leader must be able to renew before it has to give up, and give up before others take over."""
    if not settings.retry_period < settings.renew_deadline < settings.lease_seconds:
        raise SettingsError(
            f"{PREFIX}RETRY_PERIOD={settings.retry_period:g}, {PREFIX}RENEW_DEADLINE={settings.renew_deadline:g} and"
            f" {PREFIX}LEASE_SECONDS={settings.lease_seconds:g} must each be larger than the one before;"
            " for example 2, 10 and 15"
        )


def _check_cap(settings: Settings) -> None:
    """Every node in flight has its claim on the Lease."""
    if settings.plan.max_in_flight > MOST_CLAIMS:
        raise SettingsError(
            f"{PREFIX}MAX_IN_FLIGHT={settings.plan.max_in_flight} is more than the {MOST_CLAIMS} nodes whose slots the"
            f" leader's Lease can hold; for example {PREFIX}MAX_IN_FLIGHT=100"
        )


def _check_marks(settings: Settings) -> None:
    """The marks that we set during a change must not be marks that keep us away."""
    for entry in settings.plan.neighbour_labels:
        key = entry.partition("=")[0]
        if key in settings.maintenance_keys:
            raise SettingsError(
                f"{PREFIX}MAINTENANCE_KEYS and {PREFIX}NEIGHBOUR_LABELS both name {key}: the operator would keep itself"
                " away from every node that it changes"
            )


def _check_admin_maps(settings: Settings) -> None:
    """Merged into itself, a ConfigMap of ours would keep every entry for ever and never be corrected."""
    ours = settings.plan.plugin_config_map, settings.plan.mig_config_map
    given = {
        "ADMIN_PLUGIN_CONFIG_MAP": settings.admin_plugin_config_map,
        "ADMIN_MIG_CONFIG_MAP": settings.admin_mig_config_map,
    }
    for name, value in given.items():
        if value in ours:
            raise SettingsError(
                f"{PREFIX}{name}={value} is the operator's own ConfigMap: name the one whose entries should be"
                " merged into it, or none"
            )

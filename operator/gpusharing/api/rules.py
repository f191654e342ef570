"""Rules of a policy beyond types and bounds, each with one message for both of its checkers.

The API server evaluates `cel`. `validation.py` checks the same in Python and answers with the same message, which says
what is wrong and shows a valid example.

Terms: docs/design/glossary.md#fence.
"""

from dataclasses import dataclass
from typing import Any

from gpusharing.api.names import REWRITTEN_LABELS, REWRITTEN_PREFIXES

LABEL_KEY = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
"""The form of a qualified name in Kubernetes: an optional DNS prefix and slash, then at most 63 characters."""
LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
"""The form of a label value in Kubernetes; its length is bounded elsewhere."""
PROFILE = r"^[1-9]g\.(0|[1-9][0-9]{0,3})gb([+]me|-me|[+]gfx|[+]me\.all)?$"
"""A GPU instance profile as NVML names it (mig-facts.yaml `naming`). Compute instance profiles such as
1c.3g.20gb do not match: the device plugin does not advertise them."""
DURATION = r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$"
"""Hours, minutes and seconds in this order, each at most once: the subset of Go's durations that people write."""
MAX_DURATION_HOURS = 168
"""A week: more is a typing error, and a node must not stay fenced forever."""
CRON = r"^[0-9*/,-]+ +[0-9*/,-]+ +[0-9A-Za-z*/,-]+ +[0-9A-Za-z*/,-]+ +[0-9A-Za-z*/,#-]+$"
"""The form of a cron expression with five fields. Whether they ever match a time is checked only when the operator
looks for the next one."""
ZONE = r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$"
"""The form of a name in the IANA time zone database. Whether the zone exists is checked only when it is used."""
PERCENT = "^(100|[1-9]?[0-9])%$"
PRICE = "^[0-9]{1,6}([.][0-9]{1,6})?$"
"""An amount of money as a string, because a float cannot hold it exactly. It has no sign, so it is never negative."""
CURRENCY = "^[A-Z]{3}$"
"""The form of an ISO 4217 code; whether there is such a currency does not matter, because nothing is converted."""
MAX_GPUS = 16
"""GPUs that one node may have; no system that NVIDIA lists has more, and CEL needs a bound."""
MAX_NAME = 50
"""The most characters of a policy's name: the name and a content hash must together fit into a label value of 63
characters."""


@dataclass(frozen=True, slots=True)
class ApiRule:
    """One rule of the API, as a CEL expression and as a message for people."""

    cel: str
    """CEL expression that is true when the value (`self`) is right."""
    message: str
    """What is wrong, with a valid example."""
    field: str = ""
    """Path of the field that a refusal names, relative to the place of the rule, for example `.mig`; empty for the
    place itself."""
    message_cel: str = ""
    """CEL expression for a message that names the wrong value. `message` is used if it fails; empty if there is
    none."""

    def manifest(self) -> dict[str, str]:
        """Return the rule as an item of x-kubernetes-validations."""
        item = {"rule": self.cel, "message": self.message}
        if self.message_cel:
            item["messageExpression"] = self.message_cel
        if self.field:
            item["fieldPath"] = self.field
        return item


def cel(*rules: ApiRule) -> dict[str, Any]:
    """Return the JSON schema extension that adds these rules to a field or a model."""
    return {"x-kubernetes-validations": [rule.manifest() for rule in rules]}


def _quoted(text: str) -> str:
    """Return `text` as a CEL string literal, raw if it has a backslash; it must not contain a single quote."""
    return f"r'{text}'" if "\\" in text else f"'{text}'"


def _rewritten(variable: str) -> str:
    names = ", ".join(_quoted(label) for label in REWRITTEN_LABELS)
    prefixes = (f"{variable}.startsWith({_quoted(prefix)})" for prefix in REWRITTEN_PREFIXES)
    return " || ".join([f"{variable} in [{names}]", *prefixes])


# --- nodeSelector ----------------------------------------------------------------------------------
_OWN_LABEL = "so nodes would leave the pool: select by a label of your own, for example gpusharing.dev/pool: b"
EMPTY_SELECTOR = ApiRule(
    "(has(self.matchLabels) && size(self.matchLabels) > 0)"
    " || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
    "an empty selector would select every node; for example matchLabels: {gpusharing.dev/pool: b}",
)
REWRITTEN_LABEL = ApiRule(
    f"self.all(key, !({_rewritten('key')}))",
    f"a mode change rewrites this label, {_OWN_LABEL}",
    message_cel=f"'a mode change rewrites ' + self.filter(key, {_rewritten('key')})[0] + ', {_OWN_LABEL}'",
)
REWRITTEN_KEY = ApiRule(f"!({_rewritten('self')})", REWRITTEN_LABEL.message)
LABEL_KEYS = ApiRule(
    f"self.all(key, key.matches({_quoted(LABEL_KEY)}))",
    "must be a label key, for example gpusharing.dev/pool",
)
EXPRESSION_VALUES = ApiRule(
    "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0"
    " : !has(self.values) || size(self.values) == 0",
    "operators In and NotIn require values; Exists and DoesNotExist allow none; "
    "for example {key: gpusharing.dev/pool, operator: In, values: [b]}",
    field=".values",
)

# --- mode and its block ----------------------------------------------------------------------------
MIG_NEEDS_BLOCK = ApiRule(
    "self.mode != 'MIG' || has(self.mig)",
    "mode MIG requires a mig block, for example mig: {layouts: [{profiles: {3g.40gb: 2}}]}",
    field=".mig",
)
TIME_SLICING_NEEDS_BLOCK = ApiRule(
    "self.mode != 'TimeSlicing' || has(self.timeSlicing)",
    "mode TimeSlicing requires a timeSlicing block, for example timeSlicing: {replicas: 4}",
    field=".timeSlicing",
)
BLOCK_NEEDS_MIG = ApiRule(
    "self.mode == 'MIG' || !has(self.mig)",
    "a mig block is allowed only with mode: MIG; change the mode or remove the block",
    field=".mig",
)
BLOCK_NEEDS_TIME_SLICING = ApiRule(
    "self.mode in ['TimeSlicing', 'MIG'] || !has(self.timeSlicing)",
    "a timeSlicing block is allowed only with mode: TimeSlicing or MIG; change the mode or remove the block",
    field=".timeSlicing",
)
MPS_NEEDS_BLOCK = ApiRule(
    "self.mode != 'MPS' || has(self.mps)",
    "mode MPS requires an mps block, for example mps: {replicas: 4}",
    field=".mps",
)
BLOCK_NEEDS_MPS = ApiRule(
    "self.mode == 'MPS' || !has(self.mps)",
    "an mps block is allowed only with mode: MPS, and NVIDIA's device plugin does not support MPS on MIG; change the"
    " mode or remove the block",
    field=".mps",
)

# --- mig --------------------------------------------------------------------------------------------
CONFIG_OR_LAYOUTS = ApiRule(
    "has(self.config) != has(self.layouts)",
    "set exactly one of config and layouts, for example config: all-balanced, or layouts: [{profiles: {3g.40gb: 2}}]",
)
SINGLE_PROFILE = ApiRule(
    "self.strategy != 'single' || !has(self.layouts) || self.layouts.all(entry,"
    " has(entry.profiles) && size(entry.profiles) == 1"
    " && entry.profiles.all(name, name in self.layouts[0].profiles))",
    "strategy single requires the same profile on every GPU, for example "
    "layouts: [{profiles: {1g.10gb: 7}}]; use strategy: mixed for several profiles",
    field=".strategy",
)
CONFIG_WITH_MIG = ApiRule(
    "self != 'all-disabled' && self != 'all-enabled'",
    "this configuration creates no MIG instances: use mode: Full, or another one, for example config: all-balanced",
)
SOME_PROFILES = ApiRule(
    "self.exists(entry, has(entry.profiles) && size(entry.profiles) > 0)",
    "no entry has profiles, so every GPU would stay whole: use mode: Full, "
    "or set profiles, for example layouts: [{profiles: {3g.40gb: 2}}]",
)
PROFILE_NAMES = ApiRule(
    f"self.all(name, name.matches({_quoted(PROFILE)}))",
    "must be a MIG profile that the device plugin advertises, for example 3g.40gb, 1g.10gb+me or 1g.24gb-me",
)
ALL_ALONE = ApiRule(
    "size(self) < 2 || self.all(entry, has(entry.devices))",
    "an entry without devices means all GPUs and must be the only one: list the GPUs of each entry, for example"
    " devices: [0, 1]",
)
LISTED_TWICE = "is listed twice: list each GPU only once, for example devices: [0, 1]"
EACH_GPU_ONCE = ApiRule(
    f"[{', '.join(map(str, range(MAX_GPUS)))}].all(gpu,"
    " size(self.filter(entry, has(entry.devices) && gpu in entry.devices)) < 2)",
    f"a GPU {LISTED_TWICE}",
)

# --- numbers and times ------------------------------------------------------------------------------
GPU_HOURLY_PRICE = ApiRule(
    f"self.matches({_quoted(PRICE)})",
    'must be a number in quotes, for example gpuHourlyPrice: "3.20"',
)
CURRENCY_CODE = ApiRule(
    f"self.matches({_quoted(CURRENCY)})",
    "must be a code with three capital letters, for example currency: USD",
)
REPLICAS = ApiRule(
    "self >= 2",
    "one share per GPU is a whole GPU: use mode: Full, or at least 2 shares, for example replicas: 4",
)
MAX_UNAVAILABLE = ApiRule(
    f"type(self) == int ? self >= 0 : self.matches({_quoted(PERCENT)})",
    'must be a number of nodes or a percentage up to 100, for example 1 or "25%"; 0 freezes the pool',
)
POSITIVE_DURATION = ApiRule(
    f"self.matches({_quoted(DURATION)})"
    f" && duration(self) > duration('0s') && duration(self) <= duration('{MAX_DURATION_HOURS}h')",
    f"must be a duration of more than 0 and at most {MAX_DURATION_HOURS}h, for example 15m or 1h30m",
)
NEVER = "Never"
"""The word for a wait without a limit."""
WAIT = r"^(Never|([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?)$"
POSITIVE_WAIT = ApiRule(
    f"self == {_quoted(NEVER)} || ({POSITIVE_DURATION.cel})",
    f"{POSITIVE_DURATION.message}, or Never",
)
SCHEDULE = ApiRule(
    f"self.matches({_quoted(CRON)})",
    'must have the five cron fields: minute, hour, day of month, month, day of week; for example "0 22 * * 1-5"',
)
TIME_ZONE = ApiRule(
    f"self.matches({_quoted(ZONE)})",
    "must be a name from the IANA time zone database, for example Europe/Berlin",
)

RULE_TIMEOUT = ApiRule(
    "self.behavior == 'WaitCompleted' || !has(self.timeout)",
    "a timeout is allowed only with behavior WaitCompleted, for example {behavior: WaitCompleted, timeout: 8h}; "
    "drain.timeout limits the other behaviors",
    field=".timeout",
)

# --- metadata -----------------------------------------------------------------------------------------
NAME_LENGTH = ApiRule(
    f"size(self.metadata.name) <= {MAX_NAME}",
    f"the name becomes part of label values on nodes, so it may have at most {MAX_NAME} characters, for example pool-b",
    field=".metadata.name",
)

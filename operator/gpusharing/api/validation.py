"""The API server's checks of a policy in Python, for objects that are older than a rule and for use without a server.

Every refusal is a Problem that names the field and shows a valid example; `rules.py` has the messages. maxUnavailable is read here too.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gpusharing.api import rules
from gpusharing.api.names import REWRITTEN_LABELS, REWRITTEN_PREFIXES, Mode
from gpusharing.api.nearest import nearest
from gpusharing.api.policy import GPUSharingPolicySpec, LabelSelector, Mig, Rollout, Selector, Window
from gpusharing.api.times import parse_duration

MAX_DURATION = timedelta(hours=rules.MAX_DURATION_HOURS)
MAX_VALUE = 60
"""The most characters of a value that a message shows."""
NEWER = "If the API server keeps it, the CRDs are newer than the operator: upgrade the operator too (helm upgrade)"
_UNION = "maxUnavailable"
"""The field with two types. pydantic appends the type that it tried to the path of its errors."""
_HINTS = {
    "mode": "for example mode: MIG",
    "matchLabels": "a label value; for example {gpusharing.dev/pool: b}",
    "devices": "the indexes of GPUs, for example devices: [0, 1]; leave it out to mean all GPUs",
    "replicas": rules.REPLICAS.message,
    "gpuHourlyPrice": rules.GPU_HOURLY_PRICE.message,
    "currency": rules.CURRENCY_CODE.message,
    "cost": 'for example cost: {gpuHourlyPrice: "3.20", currency: USD}',
    "maxUnavailable": rules.MAX_UNAVAILABLE.message,
    "timeout": rules.POSITIVE_DURATION.message,
    "actuation": rules.POSITIVE_DURATION.message,
    "verification": rules.POSITIVE_DURATION.message,
    "duration": rules.POSITIVE_DURATION.message,
    "soak": rules.POSITIVE_DURATION.message,
    "canary": "for example canary: {nodes: 1, soak: 10m}",
    "maxFailures": "a number of nodes, at least 1; for example maxFailures: 2",
    "approval": "for example approval: Manual",
    "whenPaused": "for example whenPaused: Hold",
    "schedule": rules.SCHEDULE.message,
    "timeZone": rules.TIME_ZONE.message,
    "windows": 'for example windows: [{schedule: "0 22 * * 1-5", duration: 6h, timeZone: Europe/Berlin}]',
    "blackouts": 'for example blackouts: [{schedule: "0 0 24 12 *", duration: 72h, timeZone: Europe/Berlin}]',
    "profiles": "instances on each GPU, 1 to 7; for example {3g.40gb: 2}",
    "layouts": "for example layouts: [{profiles: {3g.40gb: 2}}]",
    "strategy": "for example strategy: mixed",
    "config": "for example config: all-balanced",
    "behavior": "for example behavior: WaitCompleted",
    "operator": "for example {key: tier, operator: In, values: [batch]}",
    "order": "from -1000 to 1000, for example order: -1; pods with a lower order leave first",
    "products": "the product name from NVML with dashes for spaces, for example NVIDIA-H100-80GB-HBM3",
    "nodeSelector": rules.EMPTY_SELECTOR.message,
}
"""Valid examples, which pydantic's messages lack, by field name. The last field in the path of an error that has an
entry here is used."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a policy."""

    field: str
    """Path in the object, for example spec.mig.layouts[1].profiles."""
    message: str
    """What is wrong, with a valid example."""
    value: str = ""
    """The value of the field, as JSON; empty if it is not a string, number or boolean, or if there is none."""

    def __str__(self) -> str:
        return f"{self.field}{' ' if self.value else ''}{self.value}: {self.message}"


def validate_policy(raw: Mapping[str, Any]) -> GPUSharingPolicySpec | tuple[Problem, ...]:
    """Check the spec and the name of a raw GPUSharingPolicy as the API server does. Return its spec, or the problems.

    Types are taken literally, as in JSON ("4" is not a number), and a field that is null counts as absent. A field that we do not know is refused, even if it is null: the API server keeps one only if the CRDs are newer than the operator, and it may be a field that forbids drains.
    """
    spec = raw.get("spec")
    if not isinstance(spec, Mapping):
        return (Problem("spec", "a policy needs a spec with nodeSelector and mode"),)
    without = _without_nulls(spec)
    parsed, errors = _parse(without)
    if without != spec:  # the API server looks for unknown fields before it removes nulls
        errors += [item for item in _parse(spec)[1] if item["type"] == "extra_forbidden" and item["input"] is None]
    if parsed is not None and not errors:
        metadata = raw.get("metadata")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        is_long = isinstance(name, str) and len(name) > rules.MAX_NAME
        named = (Problem("metadata.name", rules.NAME_LENGTH.message),) if is_long else ()
        return _with_values((*named, *find_problems(parsed)), raw) or parsed
    meant = {item["loc"]: _find_meant(item["loc"]) for item in errors if item["type"] == "extra_forbidden"}
    typos = {(*location[:-1], name) for location, name in meant.items()}
    problems = [
        _problem(item["loc"], item["msg"], meant.get(item["loc"]))
        for item in errors
        if item["type"] != "missing" or item["loc"] not in typos
    ]
    return _with_values({problem.field: problem for problem in problems}.values(), raw)


def _parse(spec: Mapping[str, Any]) -> tuple[GPUSharingPolicySpec | None, list[ErrorDetails]]:
    try:
        return GPUSharingPolicySpec.model_validate_json(
            json.dumps(spec), strict=True, extra="forbid", by_alias=True, by_name=False
        ), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _with_values(problems: Iterable[Problem], raw: Mapping[str, Any]) -> tuple[Problem, ...]:
    return tuple(replace(problem, value=_value_at(problem.field, raw)) for problem in problems)


def _value_at(path: str, raw: Any) -> str:
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, list) and part.isdecimal() and int(part) < len(raw):
            raw = raw[int(part)]
        else:
            return ""
    if not isinstance(raw, str | int | float):
        return ""
    text = json.dumps(raw, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


def find_problems(spec: GPUSharingPolicySpec) -> Iterator[Problem]:
    """Yield what the API rules find wrong with a spec whose types and bounds are right."""
    yield from _selector_problems("spec.nodeSelector", spec.node_selector, of_nodes=True)
    mode, drain, rollout = spec.mode, spec.drain, spec.rollout
    for is_wrong, broken in (
        (mode is Mode.MIG and spec.mig is None, rules.MIG_NEEDS_BLOCK),
        (mode is not Mode.MIG and spec.mig is not None, rules.BLOCK_NEEDS_MIG),
        (mode is Mode.TIME_SLICING and spec.time_slicing is None, rules.TIME_SLICING_NEEDS_BLOCK),
        (mode not in (Mode.TIME_SLICING, Mode.MIG) and spec.time_slicing is not None, rules.BLOCK_NEEDS_TIME_SLICING),
        (mode is Mode.MPS and spec.mps is None, rules.MPS_NEEDS_BLOCK),
        (mode is not Mode.MPS and spec.mps is not None, rules.BLOCK_NEEDS_MPS),
    ):
        if is_wrong:
            yield Problem(f"spec{broken.field}", broken.message)
    if spec.mig is not None:
        yield from _mig_problems(spec.mig)
    for index, rule in enumerate(drain.rules):
        at = f"spec.drain.rules[{index}]"
        if rule.timeout is not None and rule.behavior != "WaitCompleted":
            yield Problem(f"{at}.timeout", rules.RULE_TIMEOUT.message)
        yield from _selector_problems(f"{at}.namespaceSelector", rule.namespace_selector)
        yield from _selector_problems(f"{at}.podSelector", rule.pod_selector)
    for at, window in _windows(rollout):
        if not re.fullmatch(rules.CRON, window.schedule):
            yield Problem(f"{at}.schedule", rules.SCHEDULE.message)
        if not re.fullmatch(rules.ZONE, window.time_zone):
            yield Problem(f"{at}.timeZone", rules.TIME_ZONE.message)
    waits = {f"spec.drain.rules[{index}].timeout": rule.timeout for index, rule in enumerate(drain.rules)}
    waits = {"spec.drain.jobs.timeout": drain.jobs.timeout, **waits}
    durations = {
        "spec.drain.timeout": drain.timeout,
        **{path: text for path, text in waits.items() if text != rules.NEVER},
        "spec.rollout.timeouts.actuation": rollout.timeouts.actuation,
        "spec.rollout.timeouts.verification": rollout.timeouts.verification,
        **{f"{at}.duration": window.duration for at, window in _windows(rollout)},
        "spec.rollout.canary.soak": rollout.canary.soak if rollout.canary is not None else None,
    }
    for path, text in durations.items():
        if text is not None and not timedelta(0) < parse_duration(text) <= MAX_DURATION:
            wrong = rules.POSITIVE_WAIT if path in waits else rules.POSITIVE_DURATION
            yield Problem(path, wrong.message)


def _windows(rollout: Rollout) -> Iterator[tuple[str, Window]]:
    for field, listed in (("windows", rollout.windows), ("blackouts", rollout.blackouts)):
        for index, window in enumerate(listed):
            yield f"spec.rollout.{field}[{index}]", window


def allowance(max_unavailable: int | str, total: int) -> int:
    """Return how many nodes of a pool of `total` may be unavailable at once (docs/design/drain.md#budget).

    A percentage rounds down but is at least 1 while the pool has a node. A number may be above `total`. An invalid value counts as 0, never as unlimited.
    """
    if isinstance(max_unavailable, bool) or total <= 0:
        return 0
    if isinstance(max_unavailable, int):
        return max(0, max_unavailable)
    if not re.fullmatch(rules.PERCENT, max_unavailable):
        return 0
    percent = int(max_unavailable.removesuffix("%"))
    return max(1, total * percent // 100) if percent else 0


def _selector_problems(at: str, selector: LabelSelector | Selector, *, of_nodes: bool = False) -> Iterator[Problem]:
    if of_nodes and not (selector.match_labels or selector.match_expressions):
        yield Problem(at, rules.EMPTY_SELECTOR.message)
    for key in selector.match_labels:
        if not re.fullmatch(rules.LABEL_KEY, key):
            yield Problem(f"{at}.matchLabels", f"{key}: {rules.LABEL_KEYS.message}")
        if of_nodes and is_rewritten(key):
            yield Problem(f"{at}.matchLabels", f"{key}: {rules.REWRITTEN_LABEL.message}")
    for index, row in enumerate(selector.match_expressions):
        if of_nodes and is_rewritten(row.key):
            yield Problem(f"{at}.matchExpressions[{index}].key", rules.REWRITTEN_KEY.message)
        if bool(row.values) != (row.operator in ("In", "NotIn")):
            yield Problem(f"{at}.matchExpressions[{index}].values", rules.EXPRESSION_VALUES.message)


def is_rewritten(label: str) -> bool:
    return label in REWRITTEN_LABELS or label.startswith(REWRITTEN_PREFIXES)


def _mig_problems(mig: Mig) -> Iterator[Problem]:
    at = "spec.mig"
    if (mig.config is None) == (mig.layouts is None):
        yield Problem(at, rules.CONFIG_OR_LAYOUTS.message)
    if mig.config in ("all-disabled", "all-enabled"):
        yield Problem(f"{at}.config", rules.CONFIG_WITH_MIG.message)
    if mig.layouts is None:
        return
    if not any(entry.profiles for entry in mig.layouts):
        yield Problem(f"{at}.layouts", rules.SOME_PROFILES.message)
    names = {name for entry in mig.layouts for name in entry.profiles}
    if mig.strategy == "single" and not (len(names) == 1 and all(entry.profiles for entry in mig.layouts)):
        yield Problem(f"{at}.strategy", rules.SINGLE_PROFILE.message)
    for index, entry in enumerate(mig.layouts):
        wrong = [name for name in entry.profiles if not re.fullmatch(rules.PROFILE, name)]
        if wrong:
            yield Problem(f"{at}.layouts[{index}].profiles", f"{wrong[0]}: {rules.PROFILE_NAMES.message}")
    if len(mig.layouts) > 1 and any(entry.devices is None for entry in mig.layouts):
        yield Problem(f"{at}.layouts", rules.ALL_ALONE.message)
    named: set[int] = set()
    for index, entry in enumerate(mig.layouts):
        for place, device in enumerate(entry.devices or ()):
            if device in named:
                yield Problem(f"{at}.layouts[{index}].devices[{place}]", f"GPU {device} {rules.LISTED_TWICE}")
            named.add(device)


def _without_nulls(value: Any) -> Any:
    """Remove null fields as the API server does, because no field of a policy is nullable. A null in a list stays."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(field) for name, field in value.items() if field is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _find_meant(location: tuple[int | str, ...]) -> str:
    """Return the known field beside an unknown one that is most like it, or the path of one with the same name."""
    *parents, name = [part for part in location if isinstance(part, str)]
    at, paths = ".".join(["spec", *parents]), list(_paths(GPUSharingPolicySpec, "spec"))
    beside = [path.rpartition(".")[2] for path in paths if path.rpartition(".")[0] == at]
    elsewhere = [path for path in paths if path.endswith(f".{name}")]
    return next(iter(nearest(name, beside) or elsewhere), "")


def _paths(kind: Any, at: str) -> Iterator[str]:
    if not isinstance(kind, type) or not issubclass(kind, BaseModel):
        for part in get_args(kind):
            yield from _paths(part, at)
        return
    for name, field in kind.model_fields.items():
        yield (path := f"{at}.{field.alias or name}")
        yield from _paths(field.annotation, path)


def _problem(location: Iterable[int | str], message: str, meant: str | None) -> Problem:
    """Convert an error of pydantic. `meant` is what an unknown field probably means, None for a known field."""
    path, hint, field = "spec", "", ""
    for part in location:
        if field == _UNION and isinstance(part, str):
            message = "the value matches neither of the allowed forms"
            continue
        if isinstance(part, int):
            path += f"[{part}]"
            continue
        path, field = f"{path}.{part}", part
        hint = _HINTS.get(part, hint)
    if meant is not None:
        remedy = f"did you mean {meant}?" if meant else "remove it."
        return Problem(path, f"there is no such field; {remedy} {NEWER}")
    return Problem(path, f"{message}: {hint}" if hint else message)

"""The revision of a policy: the identity of what a person asked for.

Whatever is remembered about a policy's changes names the revision that it was about: failures, and with them a halt,
rollbacks, deferrals, proofs and canaries. So an edit that asks for nothing new, such as a price or a pause,
changes none of them (docs/design/glossary.md#revision).
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from pydantic import BaseModel

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.validation import parse_duration

LENGTH = 12
"""The number of characters of a revision."""
INTENT = ("node_selector", "products", "priority", "mode", "mig", "time_slicing", "mps", "drain")
"""The fields of the spec that say what a person asks for; `rollout.timeouts` is the only other one."""
_DURATIONS = ("timeout", "actuation", "verification")


def find_revision(uid: str, spec: GPUSharingPolicySpec | None, *, resetting: bool = False) -> str:
    if spec is None:
        return ""
    intent = {name: _plain(getattr(spec, name)) for name in INTENT}
    asked = {**intent, "timeouts": _plain(spec.rollout.timeouts)}
    written = [uid, resetting, {name: value for name, value in asked.items() if value}]
    text = json.dumps(written, sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:LENGTH]


def _plain(value: Any, name: str = "") -> Any:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            # A field that a newer operator adds changes no revision while it has its default.
            field: plain
            for field in value.model_fields_set  # a field that is not set has its default
            if (plain := _plain(getattr(value, field), field))
            != _plain(fields[field].get_default(call_default_factory=True), field)
        }
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, str) and name in _DURATIONS and value != "Never":
        return int(parse_duration(value).total_seconds())
    return value

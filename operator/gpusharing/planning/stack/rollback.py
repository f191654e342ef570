"""Would a rollback drop fields of stored policies? The chart's pre-rollback hook asks.

Helm puts the older CRDs back, and the API server then drops what they do not know: a policy that may drain at night
only would drain by day. GPUNodes do not matter: operator and agent write them again.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpusharing.planning.vocabulary.values import value

SHOWN = 20
"""The most policies named one by one; the rest are counted."""

Schema = Mapping[str, Any]


@value
class Retreat:
    """The answer for the person who rolls back. `allowed`: no stored policy loses a field."""

    allowed: bool
    """Whether the rollback may go on."""
    text: str
    """Why, for the person; with the policies and fields that would be lost."""


@value
class Schemas:
    """Structural schemas of a policy's spec. `served`: of the CRD in the cluster; `own`: of the one to roll back to."""

    served: Schema
    """That of the CRD in the cluster."""
    own: Schema
    """That of the version to go back to."""


def find_retreat(specs: Mapping[str, object], schemas: Schemas, release: str, namespace: str) -> Retreat:
    """Refused while a policy has a field that the older CRD lacks, unless it only has the newer one's default.

    `specs`: spec by name of the policy, as the API server serves it; `release` and `namespace`: Helm's.
    """
    lost = {name: tuple(_lost(specs[name], schemas.served, schemas.own, "spec")) for name in sorted(specs)}
    lost = {name: paths for name, paths in lost.items() if paths}
    if not lost:
        return Retreat(True, "No policy has a field that the older version does not know.")
    return Retreat(False, _refusal(lost, release, namespace))


def explain_unblock(release: str, namespace: str) -> str:
    """What to do about the release after a refusal, and how to override one: a line for each command."""
    return "\n".join(
        [
            "Nothing was changed. Helm marks the release as pending-rollback and refuses to upgrade it until you run:",
            f"  kubectl -n {namespace} delete secret -l owner=helm,name={release},status=pending-rollback",
            "To roll back anyway, and lose those fields: helm rollback --no-hooks",
        ]
    )


def _refusal(lost: Mapping[str, Sequence[str]], release: str, namespace: str) -> str:
    lines = [f"  {name}: {', '.join(paths)}" for name, paths in list(lost.items())[:SHOWN]]
    if len(lost) > SHOWN:
        lines.append(f"  and {len(lost) - SHOWN} more")
    have = "policy has" if len(lost) == 1 else "policies have"
    return "\n".join(
        [
            f"NOT ROLLED BACK: {len(lost)} {have} fields that the version to roll back to does not know;"
            " its CRD would drop them:",
            *lines,
            "Take them out (kubectl edit gsp NAME) and try again, or stay with the newer version.",
            explain_unblock(release, namespace),
        ]
    )


def _lost(value: object, served: Schema, own: Schema, at: str) -> Iterator[str]:
    """Paths of what `own` would prune from `value`, in the order of the value."""
    if own.get("x-kubernetes-preserve-unknown-fields"):
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _lost(item, served.get("items", {}), own.get("items", {}), f"{at}[{index}]")
    elif isinstance(value, dict) and "additionalProperties" in own:
        for key, item in value.items():
            below = served.get("additionalProperties", {})
            yield from _lost(item, below, own["additionalProperties"], f"{at}.{key}")
    elif isinstance(value, dict):
        known, now = own.get("properties", {}), served.get("properties", {})
        for key, item in value.items():
            if key in known:
                yield from _lost(item, now.get(key, {}), known[key], f"{at}.{key}")
            elif not _is_default(item, now.get(key, {})):
                yield f"{at}.{key}"


def _is_default(value: object, schema: Schema) -> bool:
    """Whether the API server would set this value by default."""
    return "default" in schema and value == _filled(schema["default"], schema)


def _filled(value: object, schema: Schema) -> object:
    """The value with the defaults below it, as the API server fills them in."""
    if isinstance(value, list):
        return [_filled(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    below = schema.get("properties", {})
    filled = {key: child["default"] for key, child in below.items() if "default" in child} | value
    return {key: _filled(item, below.get(key, {})) for key, item in filled.items()}

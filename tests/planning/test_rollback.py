"""A rollback that would remove fields from stored policies is refused; nothing else keeps anybody from rolling back."""

from typing import Any

import pytest

from gpusharing.planning.stack.hooks import SHOWN, HookAnswer, find_retreat

OWN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "mode": {"type": "string"},
        "rollout": {"type": "object", "properties": {"paused": {"type": "boolean"}}},
        "layouts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "profiles": {"type": "object", "additionalProperties": {"type": "integer"}},
                    "devices": {"x-kubernetes-preserve-unknown-fields": True},
                },
            },
        },
        "labels": {
            "type": "object",
            "additionalProperties": {"type": "object", "properties": {"old": {"type": "string"}}},
        },
    },
}
WINDOWS: dict[str, Any] = {
    "default": {},
    "type": "object",
    "properties": {
        "zone": {"default": "UTC", "type": "string"},
        "hours": {
            "default": [{}],
            "type": "array",
            "items": {"type": "object", "properties": {"from": {"default": "00:00", "type": "string"}}},
        },
    },
}
SERVED: dict[str, Any] = {
    **OWN,
    "properties": {
        **OWN["properties"],
        "approval": {"type": "string"},
        "rollout": {
            "type": "object",
            "properties": {**OWN["properties"]["rollout"]["properties"], "windows": WINDOWS},
        },
    },
}
BY_DEFAULT = {"zone": "UTC", "hours": [{"from": "00:00"}]}


def asked(**specs: object) -> HookAnswer:
    return find_retreat(specs, SERVED, OWN, "share", "gpus")


KNOWN: dict[str, Any] = {
    "only what both know": {"mode": "MIG", "rollout": {"paused": True}},
    "any key of a map": {"layouts": [{"profiles": {"1g.10gb": 7}}], "labels": {"any": {"old": "x"}}},
    "what no schema describes": {"layouts": [{"devices": [{"deep": 1}]}]},
    "the newer version's default": {"rollout": {"windows": BY_DEFAULT}},
    "nothing that can be read": None,
}


@pytest.mark.parametrize("case", KNOWN)
def test_a_policy_may_be_rolled_back_that_has(case: str) -> None:
    assert asked(b=KNOWN[case]).allowed


LOST: dict[str, tuple[Any, str]] = {
    "a new field": ({"approval": "Manual"}, "spec.approval"),
    "a new field in an old one": (
        {"rollout": {"windows": {**BY_DEFAULT, "zone": "CET"}}},
        "spec.rollout.windows",
    ),
    "a new field in a list": ({"layouts": [{}, {"newer": 1}]}, "spec.layouts[1].newer"),
    "a new field in a map": ({"labels": {"any": {"newer": 1}}}, "spec.labels.any.newer"),
    "two of them": ({"approval": "Manual", "extra": 0}, "spec.approval, spec.extra"),
}


@pytest.mark.parametrize("case", LOST)
def test_refused_is_what_would_lose(case: str) -> None:
    spec, paths = LOST[case]
    retreat = asked(a={"mode": "MIG"}, b=spec)
    assert not retreat.allowed
    assert f"\n  b: {paths}\n" in retreat.text
    assert "\n  a: " not in retreat.text


def test_the_refusal_says_what_to_do_about_fields_and_release() -> None:
    told = asked(b={"approval": "Manual"}).text
    for words in (
        "NOT ROLLED BACK: 1 policy has fields",
        "kubectl edit gsp",
        "helm rollback --no-hooks",
        "kubectl -n gpus delete secret -l owner=helm,name=share,status=pending-rollback",
    ):
        assert words in told


def test_of_many_policies_only_some_are_named() -> None:
    told = asked(**{f"pool-{index:03}": {"approval": "Manual"} for index in range(SHOWN + 5)}).text
    assert told.count("\n  pool-") == SHOWN
    assert "\n  and 5 more\n" in told

"""DeviceTaintRules of ours: what is written, when one counts, and which Node it is joined to."""

from functools import partial
from typing import Any

import pytest

from gpusharing.api.times import from_rfc3339
from gpusharing.kube.dra import RULES_UNSERVED, rule_for, taint_rule_view, tell_unread
from gpusharing.kube.errors import Forbidden, NotFound, Unavailable
from gpusharing.kube.pods import pod_view

WHEN = "2026-11-20T10:00:00Z"


def stored(node: str = "gpu-07", **metadata: Any) -> dict[str, Any]:
    raw = rule_for(node)
    raw["metadata"] |= {"uid": "u1", "creationTimestamp": WHEN, **metadata}
    raw["spec"]["taint"]["timeAdded"] = WHEN
    return raw


def test_the_rule_of_a_node_closes_its_pool_to_new_pods_only_and_counts_from_its_creation() -> None:
    raw = stored()
    assert raw["spec"]["deviceSelector"] == {"driver": "gpu.nvidia.com", "pool": "gpu-07"}
    assert raw["spec"]["taint"]["effect"] == "NoSchedule"
    view = taint_rule_view(raw)
    assert (view.node, view.since) == ("gpu-07", from_rfc3339(WHEN))


@pytest.mark.parametrize(
    "change",
    [
        {"deviceSelector": {"driver": "gpu.nvidia.com", "pool": "gpu-08"}},
        {"deviceSelector": {"driver": "gpu.nvidia.com", "pool": "gpu-07", "device": "gpu-0"}},
        {"deviceSelector": None},
        {"taint": {"key": "gpusharing.dev/changing", "value": "true", "effect": "None"}},
        {"taint": {"key": "other", "value": "true", "effect": "NoSchedule"}},
    ],
)
def test_a_rule_that_somebody_changed_does_not_count(change: dict[str, Any]) -> None:
    raw = stored()
    raw["spec"] |= change
    assert taint_rule_view(raw).since is None


def test_a_rule_that_is_being_deleted_or_has_no_time_or_is_of_the_test_does_not_count() -> None:
    assert taint_rule_view(stored(deletionTimestamp=WHEN)).since is None
    assert taint_rule_view(stored(creationTimestamp="soon")).since is None
    test = {**stored(), "metadata": {"name": "gpusharing-taint-test", "uid": "u2"}}
    assert (taint_rule_view(test).node, taint_rule_view(test).since) == ("", None)


def test_only_a_kind_that_is_not_served_or_may_not_be_read_counts_as_unread() -> None:
    told = partial(tell_unread, kind="devicetaintrules", unserved=RULES_UNSERVED)
    assert "--runtime-config=resource.k8s.io/v1beta2=true" in told(NotFound("404"))
    assert "not allowed to list devicetaintrules" in told(Forbidden("403"))
    assert told(Unavailable("away")) == told(None) == ""


@pytest.mark.parametrize(
    ("spec", "evades"),
    [
        ({}, False),
        ({"schedulerName": "default-scheduler"}, False),
        ({"schedulerName": "kai-scheduler"}, True),
        ({"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpu"}]}, False),
        ({"resourceClaims": [{"name": "gpu", "resourceClaimName": "shared"}]}, True),
    ],
)
def test_a_pod_with_another_scheduler_or_a_claim_that_outlives_it_evades_rules(
    spec: dict[str, Any], evades: bool
) -> None:
    raw = {"metadata": {"name": "a", "namespace": "default", "uid": "u"}, "spec": spec}
    assert pod_view(raw, {}).evades_rules is evades

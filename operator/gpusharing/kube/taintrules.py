"""Converts DeviceTaintRules of ours, and adds them to the views of their Nodes (Kubernetes v1.36,
resource.k8s.io/v1beta2).

The scheduler gives no pod a device that a rule with effect NoSchedule selects. Pods that have the device keep it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from gpusharing.api.names import LABEL_MANAGED_BY, MANAGED_BY, PREFIX
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import DEVICE_TAINT_RULES, JSON
from gpusharing.kube.raw import section, text
from gpusharing.planning.snapshot.draviews import DRA_DRIVER, RULE_PREFIX, TaintRuleView
from gpusharing.planning.snapshot.views import NodeView

OURS = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
"""Selects the DeviceTaintRules with our label."""


def taint_rule(name: str, devices: Mapping[str, str]) -> JSON:
    """Return the manifest of a DeviceTaintRule of ours that keeps new pods off `devices`, a selector by driver, pool
    and device."""
    return {
        "apiVersion": DEVICE_TAINT_RULES.api_version,
        "kind": "DeviceTaintRule",
        "metadata": {"name": name, "labels": {LABEL_MANAGED_BY: MANAGED_BY}},
        "spec": {
            "deviceSelector": dict(devices),
            "taint": {"key": f"{PREFIX}changing", "value": "true", "effect": "NoSchedule"},
        },
    }


def rule_for(node: str) -> JSON:
    """Return the manifest of the DeviceTaintRule for all devices that NVIDIA's DRA driver publishes for a node."""
    return taint_rule(RULE_PREFIX + node, {"driver": DRA_DRIVER, "pool": node})


def taint_rule_view(raw: JSON) -> TaintRuleView:
    """Convert a raw DeviceTaintRule. Its `since` is the time of its creation if it has the device selector and the
    taint of `rule_for` and is not being deleted, else None. When the taint was added makes no difference."""
    view = TaintRuleView(text(raw, "metadata", "name"), text(raw, "metadata", "uid"), None)
    spec, wanted = section(raw, "spec"), rule_for(view.node)["spec"]
    taint = {key: value for key, value in section(spec, "taint").items() if key != "timeAdded"}
    right = section(spec, "deviceSelector") == wanted["deviceSelector"] and taint == wanted["taint"]
    if not right or "deletionTimestamp" in section(raw, "metadata"):
        return view
    return replace(view, since=from_rfc3339(text(raw, "metadata", "creationTimestamp")))


def with_rule(view: NodeView, rules: Mapping[str, TaintRuleView]) -> NodeView:
    """Return `view` with the time since which the DeviceTaintRule of its node keeps pods off, or None if that rule does
    not (`TaintRuleView.since`). The view is unchanged if there is no rule for the node. `rules` are ours, by name."""
    rule = rules.get(RULE_PREFIX + view.name)
    return view if rule is None else replace(view, rule_since=rule.since)


def with_rules(nodes: dict[str, NodeView], rules: Mapping[str, TaintRuleView]) -> dict[str, NodeView]:
    """Return `nodes`, by name, in which each view has its rule as in `with_rule`. Rules without a Node are ignored.
    Without any rule, `nodes` itself is returned, else a copy."""
    names: Iterable[str] = {rule.node for rule in rules.values()} & nodes.keys()
    return {**nodes, **{name: with_rule(nodes[name], rules) for name in names}} if rules else nodes


UNSERVED = (
    f"the API server does not serve DeviceTaintRules in {DEVICE_TAINT_RULES.api_version}"
    f" (--runtime-config={DEVICE_TAINT_RULES.api_version}=true)"
)
"""Why DeviceTaintRules cannot be read if the API server answers NotFound."""

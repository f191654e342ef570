"""Which nodes a recommendation is for: those that `-l SELECTOR` selects as in kubectl, those that a policy owns, or
all."""

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpusharing.api.names import ANNOTATION_APPROVE, ANNOTATION_RESUME
from gpusharing.api.selectors import Row, matches
from gpusharing.api.validation import is_rewritten
from gpusharing.kube.client import JSON, NODES, POLICIES
from gpusharing.kube.convert import node_view, policy_view
from gpusharing.kube.convert_pods import rows_of as expression_rows
from gpusharing.kube.raw import entries, section, text, texts
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.wanted.ownership import Owners, find_contenders
from kubectl_gpusharing.setup.likeness import LABEL_POOL, pool_name
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.prometheus.client import Prometheus, Series
from kubectl_gpusharing.usage.prometheus.matchers import state_label
from kubectl_gpusharing.usage.read.queries import labels_of_nodes
from kubectl_gpusharing.usage.read.series import exported_label

_OF_THE_OLD = (ANNOTATION_APPROVE, ANNOTATION_RESUME, "kubectl.kubernetes.io/last-applied-configuration")
_KEY = r"(?:[a-zA-Z0-9](?:[-a-zA-Z0-9.]*[a-zA-Z0-9])?/)?[a-zA-Z0-9](?:[-a-zA-Z0-9_.]*[a-zA-Z0-9])?"
_VALUE = r"(?:[a-zA-Z0-9](?:[-a-zA-Z0-9_.]*[a-zA-Z0-9])?)?"
_OPERATORS = {
    "in": "In", "=": "In", "==": "In", "notin": "NotIn", "!=": "NotIn", "": "Exists", "!": "DoesNotExist",
}  # fmt: skip
"""The operators of rows, by the words of a selector: those between key and values, or before a key alone."""


@dataclass(frozen=True, slots=True)
class NodeScope:
    """The nodes that a recommendation is for, and the policy that would select them."""

    name: str
    """Name of the policy."""
    where: str
    """The name of the set of nodes in messages."""
    selector: Mapping[str, Any]
    """`spec.nodeSelector` of the policy."""
    nodes: frozenset[str] | None = None
    """Names of the nodes, or None for all whose GPUs Prometheus knows."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """`spec` of the existing policy; empty if there is none."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Labels and annotations of that policy, because applying a policy without them may remove them."""
    unlabelled: bool = False
    """Whether the nodes still have to be given the label that the policy selects by."""
    remarks: tuple[str, ...] = ()
    """What a reader should know about the choice."""


def rows_of(selector: str) -> list[Row]:
    """Parse a label selector as `kubectl get nodes -l` accepts it and return its rows: key, operator and values, in the
    order of the selector. `=` and `==` become In with one value, `!=` becomes NotIn, a key alone becomes Exists, and a
    key after `!` DoesNotExist. Values in parentheses are trimmed and not checked. Empty parts between commas are
    ignored. Raises Trouble if it is empty or cannot be parsed."""
    rows: list[Row] = []
    for part in filter(None, (piece.strip() for piece in re.split(r",(?![^(]*\))", selector))):
        if match := re.fullmatch(rf"({_KEY})\s+(in|notin)\s*\(([^()]+)\)", part):
            rows.append((match[1], _OPERATORS[match[2]], tuple(map(str.strip, match[3].split(",")))))
        elif match := re.fullmatch(rf"({_KEY})\s*(==|=|!=)\s*({_VALUE})", part):
            rows.append((match[1], _OPERATORS[match[2]], (match[3],)))
        elif match := re.fullmatch(rf"(!?)\s*({_KEY})", part):
            rows.append((match[2], _OPERATORS[match[1]], ()))
        else:
            raise Trouble(
                f"-l {selector} is not a valid node selector; use one such as gpusharing.dev/pool=a or 'zone in (a,b)'"
            )
    if not rows:
        raise Trouble(f"-l {selector!r} is not a valid node selector; use one such as gpusharing.dev/pool=a")
    return rows


def scope_of(rows: Sequence[Row], nodes: frozenset[str], selector: str) -> NodeScope:
    """Return the scope of `nodes`, which `rows` selected, with a node selector and a name for its policy. In that
    selector, rows that demand a single value are `matchLabels` and all others `matchExpressions`. The name is made from
    the value of the pool label or else of the first label in `matchLabels`, as `pool_name` changes it; `pool` if that
    gives nothing. `selector` is what the user typed. If a change of mode would rewrite one of the labels, the policy
    selects a pool label instead, which the nodes do not have yet (`unlabelled`)."""
    equal = {key: values[0] for key, operator, values in rows if operator == "In" and len(values) == 1}
    name = pool_name(equal.get(LABEL_POOL) or next(iter(equal.values()), "")) or "pool"
    where = f"nodes with {selector}"
    if any(is_rewritten(key) for key, _, _ in rows):
        return NodeScope(name, where, {"matchLabels": {LABEL_POOL: name}}, nodes, unlabelled=True)
    others = [
        _filled(key=key, operator=operator, values=list(values))
        for key, operator, values in rows
        if operator != "In" or len(values) != 1
    ]
    return NodeScope(name, where, _filled(matchLabels=equal, matchExpressions=others), nodes)


def _filled(**parts: object) -> dict[str, Any]:
    """Return these parts of an object without those that are empty, 0 or None."""
    return {name: part for name, part in parts.items() if part}


def whole_fleet(card: str) -> NodeScope:
    """Return the scope of all nodes whose GPUs Prometheus knows. Its policy is called `pool_name(card)`, or
    `pool` if that is empty, and selects a pool label of that name, which the nodes do not have yet (`unlabelled`)."""
    name = pool_name(card) or "pool"
    return NodeScope(name, "all nodes in Prometheus", {"matchLabels": {LABEL_POOL: name}}, unlabelled=True)


def narrow(scope: NodeScope, nodes: int, card: str) -> tuple[NodeScope, tuple[str, ...]]:
    """Return the scope for those of its nodes that have GPUs of `card`, and remarks. `nodes` is the number of these
    nodes. If the scope has no other nodes, or if its nodes are not known (None), it is returned unchanged, without a
    remark. If `card` is empty, it is unchanged too, but a remark says that its policy selects more nodes.

    Otherwise its policy gets a new name and selects the pool label of that name, which the nodes do not have yet
    (`unlabelled` is set), without a remark; `scope.nodes` stays as it is. Raises Trouble instead if the scope is that
    of an existing policy, because a policy has one layout for all its nodes."""
    others = 0 if scope.nodes is None else len(scope.nodes) - nodes
    if others < 1:
        return scope, ()
    summary = (
        f"Prometheus has data on GPUs{card and f' of model {card}'} on {nodes} of the"
        f" {counted(len(scope.nodes or ()), 'node')} of {scope.where}"
    )
    if not card:
        return scope, (f"{summary}: the policy selects the {counted(others, 'other')}, too",)
    if scope.spec:
        raise Trouble(
            f"{summary}, and a policy has one layout for all its nodes. Choose nodes of one model instead of --policy:"
            " -l gpusharing.dev/pool=a"
        )
    name = pool_name(f"{scope.name}-{card}") or "pool"
    return replace(scope, name=name, selector={"matchLabels": {LABEL_POOL: name}}, unlabelled=True), ()


async def find_in_cluster(session: Session, typed: Namespace) -> NodeScope:
    """Return the scope that `--policy` or `-l` selects, as read from the API server. Without either flag, return the
    whole fleet and request nothing. `--policy` precedes `-l`. Raises Trouble if `-l` cannot be parsed, if an object
    cannot be read, if no node is selected, or if other policies own all nodes that the policy selects."""
    if typed.policy:
        policy = await session.get(POLICIES, typed.policy)
        return _of_policy(policy, *await session.lists(POLICIES, NODES))
    if not typed.nodes:
        return whole_fleet(typed.card)
    rows = rows_of(typed.nodes)
    nodes = _chosen(await session.all(NODES), {}, rows)
    if not nodes:
        raise Trouble(f"no node in {session.where} has the labels {typed.nodes}")
    return scope_of(rows, nodes, typed.nodes)


def _of_policy(raw: JSON, policies: Sequence[JSON], nodes: Sequence[JSON]) -> NodeScope:
    """Return the scope of the nodes that the policy `raw` selects, without those that other policies own; if there are
    any of these, a remark counts them. The scope has the spec of the policy, and its labels and annotations, under
    `labels` and `annotations`; a key is absent if it would be empty. Approvals and resumptions, which are only for
    the policy as it was, and kubectl's record of its last apply are left out. Raises Trouble if the policy selects no
    node, or if other policies own all of its nodes."""
    name, spec = text(raw, "metadata", "name"), section(raw, "spec")
    selector = section(spec, "nodeSelector")
    rows = expression_rows(entries(selector, "matchExpressions"))
    selected = _chosen(nodes, texts(section(selector, "matchLabels")), rows)
    if not selected:
        raise Trouble(f"policy {name} selects no node")
    owners = Owners(find_contenders(map(policy_view, policies)))
    views = [node_view(node) for node in nodes if text(node, "metadata", "name") in selected]
    lost = {view.name: owner for view in views if (owner := owners.owner(view)) not in ("", name)}
    others = f"other policies ({', '.join(sorted(set(lost.values())))}) own"
    if len(lost) == len(selected):
        raise Trouble(f"{others} every node that policy {name} selects: there is nothing to recommend for it")
    remark = f"{others} {len(lost)} of the {len(selected)} nodes that policy {name} selects, and these are left out"
    remarks = (remark,) if lost else ()
    labels, annotations = (texts(section(raw, "metadata", key)) for key in ("labels", "annotations"))
    lasting = {key: value for key, value in annotations.items() if key not in _OF_THE_OLD}
    metadata = _filled(labels=labels, annotations=lasting)
    where, left = f"policy {name}", selected - lost.keys()
    return NodeScope(name, where, selector, left, spec, metadata, remarks=remarks)


def _chosen(nodes: Sequence[JSON], wanted: Mapping[str, str], rows: Sequence[Row]) -> frozenset[str]:
    """Return the names of the nodes whose labels equal those in `wanted` and match all of `rows`. Without either, all
    nodes match."""
    return frozenset(
        text(raw, "metadata", "name")
        for raw in nodes
        if matches(texts(section(raw, "metadata", "labels")), wanted, rows)
    )


async def find_in_prometheus(
    prometheus: Prometheus, typed: Namespace, selector: str, end: float
) -> NodeScope:
    """Return the scope that `-l` selects, by the labels of nodes that kube-state-metrics exported at `end` (of nodes
    that it did not export then, in the day before it); without `-l`, the whole fleet. If `-l` excludes nodes by a label
    that no node in Prometheus has, a remark says so. Raises Trouble if `--policy` is given, if `-l` cannot be parsed,
    if the query fails, or if no node matches. Raises Trouble too if no node in Prometheus has a label that `-l` demands
    (`in`, `=` or the key alone). If Prometheus has no node at all, every label of `-l` counts as demanded."""
    if typed.policy:
        raise Trouble(
            "--policy needs access to the cluster: omit --prometheus (use --service for one in the cluster), or choose"
            " the nodes with -l"
        )
    if not typed.nodes:
        return whole_fleet(typed.card)
    rows = rows_of(typed.nodes)
    named = {key: state_label(key) for key, _, _ in rows}
    query = labels_of_nodes(selector, sorted(set(named.values())))
    labels = [_labels(series, named) for series in await prometheus.instant(query, end)]
    unseen = named.keys() - {key for _, of_node in labels for key in of_node}
    flag = f"(--metric-labels-allowlist=nodes=[{','.join(named)}])"
    demanded = {key for key, operator, _ in rows if operator in ("In", "Exists") or not labels}
    if lacking := [key for key in named if key in unseen & demanded]:
        raise Trouble(
            f"no node in Prometheus has the label {' or '.join(lacking)}. kube-state-metrics exports only the labels"
            f" that a flag lists: add them {flag}, or omit --prometheus, so that the labels are read from the cluster"
        )
    remarks = tuple(
        f"no node in Prometheus has the label {key}, so that part of -l {typed.nodes} excludes no node: either no"
        f" node has it, or kube-state-metrics does not export it {flag}"
        for key in named
        if key in unseen
    )
    nodes = frozenset(node for node, of_node in labels if matches(of_node, {}, rows))
    if not nodes:
        raise Trouble(f"no node in Prometheus has the labels {typed.nodes}")
    return replace(scope_of(rows, nodes, typed.nodes), remarks=remarks)


def _labels(series: Series, named: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the name of the node that a series is about, and its labels by their Kubernetes keys. `named` has the
    Prometheus label of each key; labels that the node does not have are left out."""
    return exported_label(series, "node"), {
        key: series.labels[label] for key, label in named.items() if series.labels.get(label)
    }

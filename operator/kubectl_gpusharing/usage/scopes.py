"""Which nodes is a recommendation for? Those that `-l SELECTOR` selects as in kubectl, those that a policy owns, or all.

Their labels are read from the cluster or, with --prometheus, from what kube-state-metrics exported.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpusharing.api.names import ANNOTATION_APPROVE, ANNOTATION_RESUME
from gpusharing.api.selectors import Row, matches
from gpusharing.api.validation import is_rewritten
from gpusharing.kube.client import JSON, NODES, POLICIES
from gpusharing.kube.convert import node_view, policy_view
from gpusharing.kube.pods import rows_of as expression_rows
from gpusharing.kube.raw import entries, section, text, texts
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.wanted.ownership import Owners, find_contenders
from kubectl_gpusharing.setup.handmade import LABEL_POOL, pool_name
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.prometheus import Prometheus
from kubectl_gpusharing.usage.queries import labels_of_nodes, state_label

_KEY = r"(?:[a-zA-Z0-9](?:[-a-zA-Z0-9.]*[a-zA-Z0-9])?/)?[a-zA-Z0-9](?:[-a-zA-Z0-9_.]*[a-zA-Z0-9])?"
_VALUE = r"(?:[a-zA-Z0-9](?:[-a-zA-Z0-9_.]*[a-zA-Z0-9])?)?"
_OPERATORS = {
    "in": "In", "=": "In", "==": "In", "notin": "NotIn", "!=": "NotIn", "": "Exists", "!": "DoesNotExist",
}  # fmt: skip
"""The operators of rows, by the words of a selector between key and values, or before a key alone."""


@dataclass(frozen=True, slots=True)
class NodeScope:
    """The nodes that a recommendation is for, and the policy that would select them."""

    name: str
    where: str
    """The name of the set of nodes in messages."""
    selector: Mapping[str, Any]
    nodes: frozenset[str] | None = None
    """The names of the nodes; None for all whose GPUs Prometheus knows."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """The `spec` of the existing policy; empty if there is none."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Labels and annotations of that policy, because applying a policy without them may remove them."""
    unlabelled: bool = False
    """Whether the nodes still have to be given the label that the policy selects by."""
    remarks: tuple[str, ...] = ()


def rows_of(selector: str) -> list[Row]:
    """Parse a label selector as `kubectl get nodes -l` accepts it. Raises Trouble, also if it is empty."""
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
    """Return the scope of `nodes`, which `rows` selected; a pool label replaces those that a mode rewrites."""
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
    return {name: part for name, part in parts.items() if part}


def whole_fleet(card: str) -> NodeScope:
    name = pool_name(card) or "pool"
    return NodeScope(name, "all nodes in Prometheus", {"matchLabels": {LABEL_POOL: name}}, unlabelled=True)


def narrow(scope: NodeScope, nodes: int, card: str) -> tuple[NodeScope, tuple[str, ...]]:
    """Return the scope for those `nodes` of its nodes that have GPUs of `card`, and remarks.

    Raises Trouble for some of the nodes of an existing policy, because it has one layout for all.
    """
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


async def find_in_cluster(session: Session, typed: Arguments) -> NodeScope:
    """Return the scope that `--policy` or `-l` selects in the cluster; without either, the whole fleet."""
    if typed.policy:
        raw = await session.get(POLICIES, typed.policy)
        policies, nodes = await session.lists(POLICIES, NODES)
        name, spec = text(raw, "metadata", "name"), section(raw, "spec")
        selector = section(spec, "nodeSelector")
        expressions = expression_rows(entries(selector, "matchExpressions"))
        selected = _chosen(nodes, texts(section(selector, "matchLabels")), expressions)
        if not selected:
            raise Trouble(f"policy {name} selects no node")
        owners = Owners(find_contenders(map(policy_view, policies)))
        views = [node_view(node) for node in nodes if text(node, "metadata", "name") in selected]
        lost = {view.name: owner for view in views if (owner := owners.owner(view)) not in ("", name)}
        others = f"other policies ({', '.join(sorted(set(lost.values())))}) own"
        if len(lost) == len(selected):
            raise Trouble(f"{others} every node that policy {name} selects: there is nothing to recommend for it")
        remark = f"{others} {len(lost)} of the {len(selected)} nodes that policy {name} selects, and these are left out"
        labels, annotations = (texts(section(raw, "metadata", key)) for key in ("labels", "annotations"))
        # Approvals and resumptions are only for the policy as it was.
        old = (ANNOTATION_APPROVE, ANNOTATION_RESUME, "kubectl.kubernetes.io/last-applied-configuration")
        lasting = {key: value for key, value in annotations.items() if key not in old}
        metadata = _filled(labels=labels, annotations=lasting)
        left, remarks = selected - lost.keys(), (remark,) if lost else ()
        return NodeScope(name, f"policy {name}", selector, left, spec, metadata, remarks=remarks)
    if not typed.selector:
        return whole_fleet(typed.card)
    rows = rows_of(typed.selector)
    selected = _chosen(await session.all(NODES), {}, rows)
    if not selected:
        raise Trouble(f"no node in {session.where} has the labels {typed.selector}")
    return scope_of(rows, selected, typed.selector)


def _chosen(nodes: Sequence[JSON], wanted: Mapping[str, str], rows: Sequence[Row]) -> frozenset[str]:
    return frozenset(
        text(raw, "metadata", "name")
        for raw in nodes
        if matches(texts(section(raw, "metadata", "labels")), wanted, rows)
    )


async def find_in_prometheus(prometheus: Prometheus, typed: Arguments, selector: str, end: float) -> NodeScope:
    """Return the scope that `-l` selects by the labels that kube-state-metrics exported at `end` or a day before."""
    if typed.policy:
        raise Trouble(
            "--policy needs access to the cluster: omit --prometheus (use --service for one in the cluster), or choose"
            " the nodes with -l"
        )
    if not typed.selector:
        return whole_fleet(typed.card)
    rows = rows_of(typed.selector)
    named = {key: state_label(key) for key, _, _ in rows}
    query = labels_of_nodes(selector, sorted(set(named.values())))
    labels = [
        (
            series.exported("node"),
            {key: series.labels[label] for key, label in named.items() if series.labels.get(label)},
        )
        for series in await prometheus.instant(query, end)
    ]
    unseen = named.keys() - {key for _, of_node in labels for key in of_node}
    flag = f"(--metric-labels-allowlist=nodes=[{','.join(named)}])"
    demanded = {key for key, operator, _ in rows if operator in ("In", "Exists") or not labels}
    if lacking := [key for key in named if key in unseen & demanded]:
        raise Trouble(
            f"no node in Prometheus has the label {' or '.join(lacking)}. kube-state-metrics exports only the labels"
            f" that a flag lists: add them {flag}, or omit --prometheus, so that the labels are read from the cluster"
        )
    remarks = tuple(
        f"no node in Prometheus has the label {key}, so that part of -l {typed.selector} excludes no node: either no"
        f" node has it, or kube-state-metrics does not export it {flag}"
        for key in named
        if key in unseen
    )
    nodes = frozenset(node for node, of_node in labels if matches(of_node, {}, rows))
    if not nodes:
        raise Trouble(f"no node in Prometheus has the labels {typed.selector}")
    return replace(scope_of(rows, nodes, typed.selector), remarks=remarks)

"""Label selectors as Kubernetes means them: of our policies, of their rules, and of PodDisruptionBudgets."""

from collections.abc import Iterable, Mapping

from gpusharing.api.policy import LabelSelector, Selector

Row = tuple[str, str, tuple[str, ...]]
"""One row of matchExpressions: key, operator, values."""


def selects(selector: Selector | LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether a selector of a policy matches these labels; an empty one matches everything."""
    rows = ((row.key, row.operator, row.values) for row in selector.match_expressions)
    return matches(labels, selector.match_labels, rows)


def matches(labels: Mapping[str, str], wanted: Mapping[str, str], rows: Iterable[Row] = ()) -> bool:
    """All of matchLabels and of matchExpressions must match; an empty selector matches everything.

    NotIn matches where the label is missing. An operator that we do not know matches: the caller foresees refusals by
    budgets, and one too many is better than one overlooked; our own CRDs admit no such operator.
    """
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(labels, row) for row in rows
    )


def _holds(labels: Mapping[str, str], row: Row) -> bool:
    key, operator, values = row
    match operator:
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case _:
            return True

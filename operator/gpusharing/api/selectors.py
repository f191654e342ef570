"""Label selectors as Kubernetes evaluates them. Policies select nodes with them, drain rules and PodDisruptionBudgets
select pods, and pods select nodes."""

from collections.abc import Iterable, Mapping

from gpusharing.api.policy import LabelSelector, Selector

Row = tuple[str, str, tuple[str, ...]]
"""One row of matchExpressions: key, operator and values."""
FIELD = "field "
"""Prefix of the key in a row about a field of a Node, such as its name. No label can have such a key."""

OPERATORS = frozenset({"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"})

MOST_DIGITS = 19
"""The number of digits of the largest 64-bit integer."""


def selects(selector: Selector | LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether a selector of a policy matches these labels. An empty selector matches everything."""
    rows = ((row.key, row.operator, row.values) for row in selector.match_expressions)
    return matches(labels, selector.match_labels, rows)


def matches(labels: Mapping[str, str], wanted: Mapping[str, str], rows: Iterable[Row] = ()) -> bool:
    """Whether the labels have all `wanted` values and match all `rows` of matchExpressions.

    An operator that we do not know matches: the caller predicts refusals by budgets, and one too many is better than one overlooked. Our own CRDs allow no such operator.
    """
    return all(labels.get(key) == value for key, value in wanted.items()) and all(holds(labels, row) for row in rows)


def holds(labels: Mapping[str, str], row: Row) -> bool:
    """Whether the labels match one row of matchExpressions. NotIn also matches if the label is missing.

    Gt and Lt, which only node affinity has, compare integers and match nothing else (`parse_int`).
    """
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
        case "Gt" | "Lt":
            here, there = parse_int(labels.get(key, "")), parse_int(values[0] if values else "")
            if here is None or there is None:
                return False
            return here > there if operator == "Gt" else here < there
        case _:
            return True


def parse_int(written: str) -> int | None:
    """Return the 64-bit integer that a string holds, as Go's ParseInt reads it, or None for any other string."""
    digits = written[1:] if written[:1] in ("+", "-") else written
    if not (digits.isascii() and digits.isdigit()) or len(digits.lstrip("0")) > MOST_DIGITS:
        return None
    number = int(digits[-MOST_DIGITS:]) * (-1 if written[0] == "-" else 1)
    return number if -(2**63) <= number < 2**63 else None

"""api/selectors.py: label selectors as Kubernetes means them."""

import pytest

from gpusharing.api.selectors import Row, matches

LABELS = {"app": "llm", "tier": "", "rank": "7"}
CASES: dict[str, tuple[dict[str, str], tuple[Row, ...], bool]] = {
    "nothing matches everything": ({}, (), True),
    "a label that is so": ({"app": "llm"}, (), True),
    "a label that is otherwise": ({"app": "web"}, (), False),
    "a label that is missing": ({"team": "a"}, (), False),
    "an empty value is a value": ({"tier": ""}, (), True),
    "In": ({}, (("app", "In", ("web", "llm")),), True),
    "In, and it is another": ({}, (("app", "In", ("web",)),), False),
    "In, and it is missing": ({}, (("team", "In", ("",)),), False),
    "NotIn": ({}, (("app", "NotIn", ("web",)),), True),
    "NotIn, and it is one of them": ({}, (("app", "NotIn", ("llm",)),), False),
    "NotIn, and it is missing": ({}, (("team", "NotIn", ("a",)),), True),
    "Exists": ({}, (("tier", "Exists", ()),), True),
    "Exists, and it does not": ({}, (("team", "Exists", ()),), False),
    "DoesNotExist": ({}, (("team", "DoesNotExist", ()),), True),
    "DoesNotExist, and it does": ({}, (("tier", "DoesNotExist", ()),), False),
    "Gt": ({}, (("rank", "Gt", ("6",)),), True),
    "Gt of its own": ({}, (("rank", "Gt", ("7",)),), False),
    "Lt": ({}, (("rank", "Lt", ("8",)),), True),
    "Lt, and it is missing": ({}, (("team", "Lt", ("8",)),), False),
    "Gt of a negative number": ({}, (("rank", "Gt", ("-8",)),), True),
    "Lt of a number with zeros before it": ({}, (("rank", "Lt", (f"{'0' * 30}8",)),), True),
    "Lt of a number beyond 64 bits": ({}, (("rank", "Lt", ("9" * 19,)),), False),
    "Lt of a number with more digits than Python reads": ({}, (("rank", "Lt", ("9" * 5000,)),), False),
    "Gt of no number": ({}, (("app", "Gt", ("1",)),), False),
    "an operator of a newer Kubernetes": ({}, (("app", "Like", ("l*",)),), True),
    "one of two rows": ({}, (("app", "Exists", ()), ("team", "Exists", ())), False),
    "rows, and a label that is otherwise": ({"app": "web"}, (("app", "Exists", ()),), False),
}


@pytest.mark.parametrize(("wanted", "rows", "answer"), CASES.values(), ids=CASES)
def test_all_parts_must_hold(wanted: dict[str, str], rows: tuple[Row, ...], answer: bool) -> None:
    assert matches(LABELS, wanted, rows) is answer

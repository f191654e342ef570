"""What the planner takes from validation: durations, allowances, labels, unknown fields (api/nearest.py), selectors."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.wording import lacks

from gpusharing.api.names import REWRITTEN_LABELS
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.selectors import Row, matches
from gpusharing.api.times import parse_duration
from gpusharing.api.validation import NEWER, Problem, allowance, is_rewritten, validate_policy


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15m", 900),
        ("1h30m", 5400),
        ("90s", 90),
        ("2h", 7200),
        ("1h1m1s", 3661),
        ("0s", 0),
        ("007m", 420),
        ("1m0.05s", 60.05),
    ],
)
def test_a_duration_is_its_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "15", "m", "1d", "1.5h", "-5m", ".5s", "1m1h", "1h1h", "15m\n", "1h 30m", "9999999h"]
)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="for example 15m or 1h30m"):
        parse_duration(text)


@given(st.integers(0, 999_999), st.integers(0, 59), st.integers(0, 59))
def test_every_duration_survives_being_written(hours: int, minutes: int, seconds: int) -> None:
    wanted = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == wanted


@pytest.mark.parametrize(
    ("max_unavailable", "total", "nodes"),
    [
        (1, 10, 1),
        (0, 10, 0),
        (3, 2, 3),
        ("25%", 4, 1),
        ("25%", 7, 1),
        ("25%", 8, 2),
        ("1%", 3, 1),
        ("1%", 0, 0),
        ("100%", 3, 3),
        ("0%", 10, 0),
        (5, 0, 0),
    ],
)
def test_a_percentage_rounds_down_but_moves_at_least_one_node(
    max_unavailable: int | str, total: int, nodes: int
) -> None:
    assert allowance(max_unavailable, total) == nodes


@pytest.mark.parametrize("nonsense", [-1, "1000a%", "101%", "-5%", "10", "", "%", "5%\n", "1.5%", True])
def test_nonsense_allows_nothing_instead_of_everything(nonsense: int | str) -> None:
    assert allowance(nonsense, 1000) == 0


@given(st.integers(1, 100), st.integers(1, 10_000))
def test_an_allowance_never_exceeds_the_percentage_except_for_the_first_node(percent: int, total: int) -> None:
    nodes = allowance(f"{percent}%", total)
    assert 1 <= nodes <= max(1, total * percent / 100)


@pytest.mark.parametrize(
    "label",
    [
        *REWRITTEN_LABELS,
        "nvidia.com/mig-1g.10gb.count",
        "nvidia.com/gpu.deploy.dcgm",
        "nvidia.com/gpu.slices.gi",
        "nvidia.com/gpu.engines.ofa",
    ],
)
def test_a_label_that_a_mode_change_writes_is_known(label: str) -> None:
    assert is_rewritten(label)


@pytest.mark.parametrize("label", ["nvidia.com/gpu.present", "nvidia.com/mig.capable", "gpusharing.dev/pool"])
def test_a_label_that_stays_may_be_selected(label: str) -> None:
    assert not is_rewritten(label)


LAYOUT = {"mode": "MIG", "mig": {"layouts": [{"profiles": {"3g.40gb": 2}}]}}


@pytest.mark.parametrize(
    ("newer", "field", "remedy"),
    [
        ({"billing": {}}, "spec.billing", "remove it."),
        ({"rollout": {"tempo": [{"schedule": "0 22 * * *"}]}}, "spec.rollout.tempo", "remove it."),
        ({"approval": "Manual"}, "spec.approval", "did you mean spec.rollout.approval?"),
        ({**LAYOUT, "replicas": 4}, "spec.replicas", "did you mean spec.timeSlicing.replicas?"),
        ({**LAYOUT, "mig": {"layouts": [{"profile": {"3g.40gb": 2}}]}}, "spec.mig.layouts[0].profile",
         "did you mean profiles?"),
        ({"rollout": {"window": []}}, "spec.rollout.window", "did you mean windows?"),
        ({"drain": {"rules": [{"behaviour": "Skip"}]}}, "spec.drain.rules[0].behaviour", "did you mean behavior?"),
    ],
)  # fmt: skip
def test_an_unknown_field_is_refused_once_with_its_path_and_the_nearest_field(
    newer: dict[str, object], field: str, remedy: str
) -> None:
    spec = {"nodeSelector": {"matchLabels": {"pool": "b"}}, "mode": "Full", **newer}
    verdict = validate_policy({"spec": spec})
    assert not isinstance(verdict, GPUSharingPolicySpec)
    assert [(problem.field, problem.message) for problem in verdict] == [
        (field, f"there is no such field; {remedy} {NEWER}")
    ]


def test_a_required_field_that_is_misspelt_is_not_also_missing() -> None:
    verdict = validate_policy({"spec": {"nodeselector": {"matchLabels": {"pool": "b"}}, "Mode": "Full"}})
    assert not isinstance(verdict, GPUSharingPolicySpec)
    assert [problem.field for problem in verdict] == ["spec.nodeselector", "spec.Mode"]


def test_a_required_field_that_is_wrong_is_reported_beside_the_misspelt_one() -> None:
    verdict = validate_policy({"spec": {"nodeSelector": {"matchLabels": {"pool": "b"}}, "mode": "Fll", "Mode": "Full"}})
    assert not isinstance(verdict, GPUSharingPolicySpec)
    assert [problem.field for problem in verdict] == ["spec.mode", "spec.Mode"]


def test_a_newer_status_is_nobodys_problem() -> None:
    spec = {"nodeSelector": {"matchLabels": {"pool": "b"}}, "mode": "Full"}
    assert isinstance(validate_policy({"spec": spec, "status": {"bill": 1}}), GPUSharingPolicySpec)


def test_python_names_are_not_wire_names() -> None:
    verdict = validate_policy({"spec": {"node_selector": {"match_labels": {"pool": "b"}}, "mode": "Full"}})
    assert not isinstance(verdict, GPUSharingPolicySpec)
    assert [problem.field for problem in verdict] == ["spec.node_selector"]


VALUES: dict[str, tuple[dict[str, object], str]] = {
    "a text": ({"mode": "Sideways"}, 'spec.mode "Sideways": '),
    "a number": ({"mode": "TimeSlicing", "timeSlicing": {"replicas": 1}}, "spec.timeSlicing.replicas 1: "),
    "one of a list": (
        {"mode": "Full", "drain": {"rules": [{"behavior": "Block"}, {"behavior": "Skip"}]}},
        'spec.drain.rules[1].behavior "Skip": '),
    "a long one": ({"mode": "x" * 99}, f'spec.mode "{"x" * 59}...: '),
    "nothing at all": ({}, "spec.mode: "),
    "a whole block": ({"mode": "Full", "drain": {"jobs": 7}}, "spec.drain.jobs 7: "),
    "a list where a block belongs": ({"mode": "Full", "drain": []}, "spec.drain: "),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "said"), VALUES.values(), ids=VALUES)
def test_what_is_refused_is_told_with_the_value_that_stands_there(spec: dict[str, object], said: str) -> None:
    verdict = validate_policy({"spec": {"nodeSelector": {"matchLabels": {"pool": "b"}}, **spec}})
    assert isinstance(verdict, tuple)
    assert str(verdict[0]).startswith(said), str(verdict[0])


@pytest.mark.parametrize("raw", [{}, {"spec": None}, {"spec": []}], ids=["no spec", "null", "a list"])
def test_an_object_without_a_spec_is_refused(raw: dict[str, object]) -> None:
    (problem,) = validate_policy(raw)
    assert isinstance(problem, Problem)
    assert problem.field == "spec"
    assert not lacks(problem.message, "nodeSelector", "mode")


def test_all_problems_are_told_at_once() -> None:
    verdict = validate_policy(
        {"spec": {"nodeSelector": {}, "mode": "MIG", "mps": {"replicas": 2}, "drain": {"timeout": "0s"}}}
    )
    assert not isinstance(verdict, GPUSharingPolicySpec)
    fields = [problem.field for problem in verdict]
    assert fields == ["spec.nodeSelector", "spec.mig", "spec.mps", "spec.drain.timeout"]


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

import pytest
from tests.build import at, make_pdb, make_pod

from gpusharing.planning.drain import evictions
from gpusharing.planning.snapshot.podviews import PdbView, PodView


@pytest.mark.parametrize(
    ("budget", "selected"),
    [
        pytest.param(make_pdb(match_labels={"app": "llm"}), True, id="all labels match"),
        pytest.param(make_pdb(match_labels={"app": "llm", "tier": "a"}), False, id="one label is missing"),
        pytest.param(make_pdb(namespace="team-b"), False, id="another namespace"),
        pytest.param(make_pdb(match_labels={}), False, id="no selector selects nothing"),
        pytest.param(make_pdb(match_labels={}, selects_all=True), True, id="an empty selector selects all"),
        pytest.param(make_pdb(namespace="team-b", selects_all=True), False, id="all of another namespace"),
        pytest.param(make_pdb(match_expressions=(("app", "In", ("x", "llm")),)), True, id="In"),
        pytest.param(make_pdb(match_expressions=(("app", "In", ("x",)),)), False, id="not In"),
        pytest.param(make_pdb(match_expressions=(("tier", "In", ("a",)),)), False, id="In without the label"),
        pytest.param(make_pdb(match_expressions=(("app", "NotIn", ("llm",)),)), False, id="NotIn refuses"),
        pytest.param(make_pdb(match_expressions=(("tier", "NotIn", ("a",)),)), True, id="NotIn without the label"),
        pytest.param(make_pdb(match_expressions=(("app", "Exists", ()),)), True, id="Exists"),
        pytest.param(make_pdb(match_expressions=(("app", "DoesNotExist", ()),)), False, id="DoesNotExist refuses"),
        pytest.param(make_pdb(match_expressions=(("tier", "DoesNotExist", ()),)), True, id="DoesNotExist"),
        pytest.param(
            make_pdb(match_labels={}, match_expressions=(("app", "Exists", ()),)), True, id="expressions alone"
        ),
    ],
)
def test_a_budget_selects_as_kubernetes_does(budget: PdbView, selected: bool) -> None:
    assert evictions.budgets_of(make_pod(), [budget]) == ((budget,) if selected else ())


@pytest.mark.parametrize(
    ("pod", "budget", "asked"),
    [
        pytest.param(make_pod(), make_pdb(), True, id="a running, ready pod"),
        pytest.param(make_pod(phase="Pending"), make_pdb(), False, id="a pending pod goes unasked"),
        pytest.param(make_pod(deleted_at=at(0)), make_pdb(), False, id="a terminating pod goes unasked"),
        pytest.param(make_pod(ready=False), make_pdb(), False, id="unready, the others are healthy enough"),
        pytest.param(make_pod(ready=False), make_pdb(current=1), True, id="unready, the others are not enough"),
        pytest.param(make_pod(ready=False), make_pdb(desired=0, current=0), True, id="unready, none desired"),
        pytest.param(make_pod(ready=False), make_pdb(current=1, always_allow_unhealthy=True), False, id="AlwaysAllow"),
    ],
)
def test_who_is_up_to_a_budget(pod: PodView, budget: PdbView, asked: bool) -> None:
    assert evictions.binding_budgets(pod, [budget]) == ((budget,) if asked else ())


def test_two_budgets_conflict_for_a_running_pod_even_an_unready_one() -> None:
    both = [make_pdb("b"), make_pdb("a")]
    assert [budget.name for budget in evictions.binding_budgets(make_pod(ready=False), both)] == ["a", "b"]
    assert [budget.name for budget in evictions.binding_budgets(make_pod(), both)] == ["a", "b"]
    assert evictions.binding_budgets(make_pod(phase="Pending"), both) == ()
    assert evictions.binding_budgets(make_pod(), both[:1]) == (both[0],)


@pytest.mark.parametrize(
    ("expected", "desired", "never"), [(3, 2, False), (3, 3, True), (1, 1, True), (0, 0, False), (2, 5, True)]
)
def test_a_budget_never_allows_when_every_pod_must_be_healthy(expected: int, desired: int, never: bool) -> None:
    assert evictions.never_allows(make_pdb(expected=expected, desired=desired)) is never

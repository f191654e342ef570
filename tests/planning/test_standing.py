"""How a pod stands in its drain: what the server said of it, which budgets and marks guard it, whether it may go now."""

from dataclasses import replace
from datetime import datetime

import pytest
from tests.build import NOW, at, make_gpunode, make_memory, make_pdb, make_pod, make_work
from tests.planning.drainpass import SCOPE
from tests.wording import lacks

from gpusharing.api.policy import Drain
from gpusharing.planning.drain import evictions
from gpusharing.planning.drain.pods import find_protection, looked
from gpusharing.planning.drain.standing import Standing, find_standings
from gpusharing.planning.snapshot.podviews import EvictionMemory, PdbView, PodView, Scope
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

SOON = at(9)
BOTH = [make_pdb("b"), make_pdb("a")]
STANDS: dict[str, tuple[PodView, EvictionMemory | None, list[PdbView], list[str], bool, bool]] = {
    "nobody asked for it, nothing guards it": (make_pod(), None, [], [], False, True),
    "one budget guards it, however little that allows": (make_pod(), None, [make_pdb(allowed=0)], ["llm"], False, True),
    "two budgets conflict": (make_pod(), None, BOTH, ["a", "b"], False, False),
    "it is pending: no budget is asked": (make_pod(phase="Pending"), None, BOTH, [], False, True),
    "it is leaving by itself": (make_pod(deleted_at=at(30)), None, BOTH, [], True, False),
    "its eviction was accepted": (make_pod(), make_memory(Reason.EVICTED, next_try=NOW), [], [], True, False),
    "its back-off lasts": (make_pod(), make_memory(Reason.EVICTION_ERROR, next_try=SOON), [], [], False, False),
    "its back-off is over": (make_pod(), make_memory(Reason.EVICTION_ERROR, next_try=NOW), [], [], False, True),
}  # fmt: skip


def stands(
    pod: PodView,
    memory: EvictionMemory | None,
    pdbs: list[PdbView],
    *,
    listed_at: datetime = NOW,
    cordoned: bool = True,
) -> Standing:
    work = make_work(pod, pdbs=pdbs, evictions={pod.uid: memory} if memory else {}, listed_at=listed_at)
    found = find_standings(work, Drain(), NOW, scope=SCOPE, cordoned=cordoned)
    (one,) = (*found.leaving, *found.remaining)
    assert one.leaves == (one in found.leaving)
    return one


@pytest.mark.parametrize(("pod", "memory", "pdbs", "budgets", "leaves", "due"), STANDS.values(), ids=STANDS.keys())
def test_a_pod_stands(
    pod: PodView, memory: EvictionMemory | None, pdbs: list[PdbView], budgets: list[str], leaves: bool, due: bool
) -> None:
    one = stands(pod, memory, pdbs)
    assert ([budget.name for budget in one.budgets], one.leaves, one.due) == (budgets, leaves, due)
    assert one.conflicts == (len(budgets) > 1)
    assert (one.budget is not None) == (len(budgets) == 1)
    assert one.answer == (None if memory is None else memory.reason)


def test_a_pod_that_was_asked_for_since_the_list_was_begun_is_not_due() -> None:
    lost = replace(make_memory(Reason.EVICTION_ERROR, next_try=NOW), asked_at=at(-1))
    assert not stands(make_pod(), lost, [], listed_at=at(-2)).due
    assert stands(make_pod(), lost, [], listed_at=NOW).due


def test_no_pod_is_due_on_a_node_that_is_not_ready() -> None:
    found = find_standings(make_work(make_pod()), Drain(), NOW, scope=replace(SCOPE, silent=True))
    assert [(one.leaves, one.due) for one in found.remaining] == [(False, False)]


def test_before_the_cordon_an_answer_counts_only_while_its_wait_lasts() -> None:
    over, lasting = make_memory(Reason.PDB, next_try=NOW), make_memory(Reason.PDB, next_try=SOON)
    assert stands(make_pod(), over, [], cordoned=False).answer is None
    assert stands(make_pod(), lasting, [], cordoned=False).answer is Reason.PDB
    assert stands(make_pod(), make_memory(Reason.EVICTED, next_try=NOW), [], cordoned=False).leaves


def test_pods_that_could_not_be_listed_are_unknown_and_not_none() -> None:
    found = find_standings(make_work(error="timed out"), Drain(), NOW, scope=SCOPE)
    assert (found.holders, found.error) == (-1, "timed out")


# --- budgets -----------------------------------------------------------------------------------------------------------


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


# --- marks that ask not to disturb a pod -------------------------------------------------------------------------------

KARPENTER, OURS = "karpenter.sh/do-not-disrupt", "gpusharing.dev/do-not-disrupt"
SAFE, CAPI = "cluster-autoscaler.kubernetes.io/safe-to-evict", "cluster.x-k8s.io/drain"
FOREVER, FREE = "forever", "free"
HELD: dict[str, tuple[str, str, float | str]] = {
    "Karpenter's mark": (KARPENTER, "true", FOREVER),
    "our own mark": (OURS, "true", FOREVER),
    "a mark in capitals": (OURS, "True", FOREVER),
    "a mark that says no": (KARPENTER, "false", FREE),
    "a duration that is not over": (KARPENTER, "5m", 300),
    "a duration of two units": (OURS, "1h30m", 5400),
    "a fraction, as Go writes it": (OURS, "1.5h", 5400),
    "a duration that is over": (OURS, "30s", FREE),
    "a duration that ends now": (OURS, "1m", FREE),
    "no time at all": (OURS, "0", FREE),
    "nonsense": (OURS, "abc", FOREVER),
    "a number without a unit": (OURS, "15", FOREVER),
    "a unit that Go does not have": (OURS, "5M", FOREVER),
    "a negative duration": (OURS, "-5m", FOREVER),
    "nothing": (OURS, "", FOREVER),
    "days, which Go does not have": (OURS, "2d", FOREVER),
    "longer than any clock": (OURS, "9" * 400 + "h", FOREVER),
    "not safe to evict": (SAFE, "false", FOREVER),
    "safe to evict": (SAFE, "true", FREE),
    "to be skipped": (CAPI, "skip", FOREVER),
    "to be skipped, in capitals": (CAPI, "Skip", FOREVER),
    "to be waited for": (CAPI, "wait-completed", FOREVER),
    "to be drained": (CAPI, "drain", FREE),
    "somebody else's mark": ("example.com/do-not-disrupt", "true", FREE),
}


@pytest.mark.parametrize(("key", "value", "until"), HELD.values(), ids=HELD.keys())
def test_how_long_a_mark_protects_a_pod_that_started_a_minute_ago(key: str, value: str, until: float | str) -> None:
    pod = make_pod(marks={key: value}, started=at(0))
    if until == FREE:
        assert find_protection(pod, at(60)) is None
        return
    found = protection(pod)
    assert found.until == (at(float(until)) if until != FOREVER else None)
    assert key in found.message
    assert value[:30] in found.message


def protection(pod: PodView, seconds: float | None = 60) -> Finding:
    found = find_protection(pod, None if seconds is None else at(seconds))
    assert found is not None
    return found


def test_the_mark_that_holds_longest_decides() -> None:
    assert protection(make_pod(marks={KARPENTER: "5m", OURS: "10m"}, started=at(0))).until == at(600)
    assert protection(make_pod(marks={KARPENTER: "5m", SAFE: "false"}, started=at(0))).until is None


def test_a_duration_counts_from_the_start_and_a_pod_that_has_not_started_is_protected() -> None:
    waiting = protection(make_pod(marks={KARPENTER: "5m"}, started=None), 9999)
    assert waiting.until is None
    assert "has not started" in waiting.message
    assert protection(make_pod(marks={KARPENTER: "5m"}, started=at(0)), None).until is None, (
        "the policy blocks on marks"
    )


def test_the_text_says_until_when_and_is_the_same_as_long_as_the_pod_is() -> None:
    pod = make_pod(marks={KARPENTER: "5m"}, started=at(0))
    first = protection(pod, 1)
    assert protection(pod, 299) == first
    assert not lacks(first.message, 'karpenter.sh/do-not-disrupt is "5m"', "2026-11-20T10:05:00Z")


def test_an_endless_value_is_cut() -> None:
    assert len(protection(make_pod(marks={OURS: "x\n" * 5000}), 0).message) < 200


# --- what several looks at a node add up to ----------------------------------------------------------------------------

GPU_PODS = Scope("gpu-operator")
ALL_PODS = replace(GPU_PODS, all_pods=True)
AGENT = make_gpunode("gpu-07")


def test_lists_without_a_holder_add_up() -> None:
    first = looked(None, make_work(listed_at=at(0), scope=ALL_PODS), AGENT)
    second = looked(first, make_work(listed_at=at(5), scope=ALL_PODS), AGENT)
    assert (second.empty_lists, second.scope) == ((at(0), at(5)), ALL_PODS)


def test_a_list_that_looked_for_gpu_pods_only_is_none_of_those_that_prove_a_node_empty_of_all_pods() -> None:
    first = looked(None, make_work(listed_at=at(0), scope=GPU_PODS), AGENT)
    second = looked(first, make_work(listed_at=at(5), scope=ALL_PODS), AGENT)
    assert (second.empty_lists, second.scope) == ((at(5),), ALL_PODS)


def test_lists_of_another_cordon_do_not_count_whatever_the_clock_says() -> None:
    cordoned = replace(GPU_PODS, cordoned_at=at(3600))
    before = looked(None, make_work(listed_at=at(0), scope=GPU_PODS), AGENT)
    first = looked(before, make_work(listed_at=at(5), scope=cordoned), AGENT)
    second = looked(first, make_work(listed_at=at(10), scope=cordoned), AGENT)
    assert second.empty_lists == (at(5), at(10))


def test_the_request_that_stood_when_the_node_was_found_empty_stays_known_as_long_as_it_is() -> None:
    later = replace(AGENT, request_id="later")
    first = looked(None, make_work(listed_at=at(0), scope=GPU_PODS), replace(AGENT, request_id="stood"))
    second = looked(first, make_work(listed_at=at(5), scope=GPU_PODS), later)
    assert (first.stood, second.stood) == ("stood", "stood")
    held = looked(second, make_work(make_pod(), listed_at=at(10), scope=GPU_PODS), later)
    assert looked(held, make_work(listed_at=at(15), scope=GPU_PODS), later).stood == "later"

"""The pools at a glance, from what the operator published (kubectl_gpusharing/pools/fleet.py, kubectl_gpusharing/pools/status.py,
kubectl_gpusharing/shell/drawing.py)."""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hack.customresources import GPUNODE, POLICY
from tests.build import NOW
from tests.cli.objects import ago, fleet, gpunode, history, policy, pools_of, until
from tests.cli.schema import read_schema
from tests.wording import lacks

from gpusharing.kube.client import JSON
from gpusharing.planning.report.transition import MAX_HISTORY
from kubectl_gpusharing.pools.fleet import State, state_of
from kubectl_gpusharing.pools.status import NODE_COLUMNS, POOL_COLUMNS, StatusColumn, describe
from kubectl_gpusharing.pools.status import as_data as typed_data
from kubectl_gpusharing.pools.timeline import find_estimate
from kubectl_gpusharing.shell.drawing import Glyph, Ink, PrintOptions, bar, length, plain
from kubectl_gpusharing.shell.markup import HTML_OPTIONS

WIDE, ALL = PrintOptions(), PrintOptions(wide=True)
as_data: Any = typed_data
"""Its type leaves out the fields of the records."""


def shown(policies: list[Any], nodes: list[Any], options: PrintOptions = WIDE) -> str:
    return plain(describe(*pools_of(policies, nodes), NOW, options))


def test_a_pool_in_a_change_shows_what_runs_what_waits_the_culprit_since_when_and_until_when() -> None:
    assert (
        shown(*fleet())
        == """\
1 pool needs attention: pool-b.
2 pools: 1 done, 1 blocked; 4 nodes: 2 done, 1 under way, 1 blocked; 32 GPUs with 2560 GB of memory

pool-b  MIG 2x3g.40gb  Draining  1/3 nodes, 24 GPUs, 1920 GB, 27/32 devices used
█▒!  █ 1 done  ▒ 1 under way  ! 1 blocked
pool-b-1: PDB team-b/ranker: waiting for 2 pods to leave
  NODE      PROGRESS  PHASE     REASON           PODS  CULPRIT               SINCE  DEADLINE
  pool-b-2  !·······  Blocked   AlreadyCordoned  2                           1h5m
  pool-b-1  ▒▒▒·····  Draining  PDB              2     team-b/ranker-7c4 +1  4m     in 11m

pool-c  Full 1x full  Synced  1/1 nodes, 8 GPUs, 640 GB, 8/8 devices used
█  █ 1 done
"""
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_no_line_is_longer_than_the_terminal_and_at_80_columns_culprit_since_and_deadline_are_there(width: int) -> None:
    text = shown(*fleet(), PrintOptions(width))
    assert max(map(len, text.splitlines())) <= width
    assert any("Draining" in line and "PDB" in line for line in text.splitlines())
    assert width < 80 or not lacks(text, "CULPRIT", "SINCE", "DEADLINE")


def test_a_terminal_without_unicode_gets_ascii_only() -> None:
    text = shown(*fleet(), PrintOptions(80, glyphs=False))
    assert text.isascii()
    assert "#>!  # 1 done  > 1 under way  ! 1 blocked" in text


def test_every_state_has_a_glyph_of_its_own_in_both_alphabets() -> None:
    assert len({state.value.drawn for state in State}) == len(State)
    assert len({state.value.ascii for state in State}) == len(State)


def test_wide_lists_all_nodes_and_what_they_are_divided_into() -> None:
    text = shown(*fleet(), ALL)
    assert "pool-b-0  ████████  Synced" in text
    assert "WANTED" in text
    assert "7x1g.10gb  Person" in text


@pytest.mark.parametrize(
    ("product", "told"),
    [
        ("NVIDIA-H100-80GB-HBM3, NVIDIA-A100-SXM4-80GB", "2 GPUs with 160 GB of memory"),
        ("NVIDIA-H100-80GB-HBM3, NVIDIA-L4", "2 GPUs"),
        ("NVIDIA-H100-80GB-HBM3, NVIDIA-X999", "2 GPUs"),
        ("", "2 GPUs"),
    ],
)
def test_memory_is_told_where_the_size_of_every_gpu_is_known(product: str, told: str) -> None:
    mixed = policy(nodes="1/1", gpus=2, used="0/1", product=product)
    assert f"1/1 nodes, {told}, 0/1 devices used\n".replace(" with", ",").replace(" of memory", "") in shown(
        [mixed], []
    )
    assert f"; {told}\n" in shown([mixed], [])
    assert "; 10 GPUs" in shown([mixed, policy("pool-c", gpus=8)], [])
    expected = 160 if "with" in told else None
    assert [one["memoryGB"] for one in as_data(*pools_of([mixed], []), "desk", NOW)["pools"]] == [expected]


def test_a_pool_that_waits_for_its_window_says_when_the_next_one_opens() -> None:
    waits = policy(nextWindow="2026-11-20T22:00:00Z")
    assert "\nnext window: 2026-11-20T22:00:00Z, in 12h\n" in shown(
        [waits], [gpunode("n-0", "Pending", "WindowClosed")]
    )
    assert "window" not in shown(*fleet())


@pytest.mark.parametrize("told", ["open", "open until 2026-11-20T22:00:00Z"])
def test_a_window_that_is_open_is_not_called_the_next_one(told: str) -> None:
    assert f"\nwindow: {told}\n" in shown([policy(nextWindow=told)], [])


PLAN = {"hash": "4a38df3", "disruption": "Reset", "nodeCount": 1, "pods": 2}
MANY = [gpunode(f"n-{number:02}", "Pending", "BudgetFull") for number in range(25)]
TOLD: dict[str, tuple[JSON | None, list[JSON], tuple[str, ...]]] = {
    "a paused pool, and how it goes on": (
        {**policy(), "spec": {"mode": "MIG", "rollout": {"paused": True}}},
        [],
        ("paused", "kubectl gpusharing resume pool-b"),
    ),
    "a plan that waits for an approval, with its hash": (
        {**policy(), "status": {**policy()["status"], "plan": PLAN}},
        [],
        ("plan 4a38df3", "Reset", "1 node", "2 pods"),
    ),
    "an edit that the operator has not seen": (policy(generation=3, observed=2), [], ("generation 3",)),
    "more than twenty nodes that wait, counted": (policy(), MANY, ("5 more nodes", "-o wide")),
    "nodes with GPUs and no policy": (policy(), [gpunode("gpu-99", policy="")], ("1 node", "gpu-99")),
    "the next command without any policy": (None, [], ("no GPUSharingPolicy", "kubectl gpusharing plan -f FILE")),
    "one GPU": (policy(nodes="1/1", gpus=1, used="0/1"), [], ("1/1 nodes, 1 GPU, 80 GB, 0/1 devices used",)),
}


@pytest.mark.parametrize(("raw", "nodes", "words"), TOLD.values(), ids=TOLD)
def test_it_tells(raw: JSON | None, nodes: list[JSON], words: tuple[str, ...]) -> None:
    assert not lacks(shown([raw] if raw else [], nodes), *words)


PERSON = gpunode("n-0", "Pending", "ApprovalNeeded", waitingFor="Person")
UNHEALTHY = gpunode("n-0", "Synced", "GPUUnhealthy", waitingFor="Person")
HEALTH: dict[str, tuple[JSON, list[JSON], State]] = {
    "a node failed": (policy(), [gpunode("n-0", "Failed"), gpunode("n-1", "Blocked")], State.FAILED),
    "a node is blocked": (policy(), [gpunode("n-0", "Blocked"), gpunode("n-1", "Draining")], State.BLOCKED),
    "a node waits for a person": (policy(status="ApprovalNeeded"), [PERSON], State.BLOCKED),
    "a GPU of a proven node is unhealthy": (policy(status="Synced"), [UNHEALTHY], State.BLOCKED),
    "the policy is refused": (policy(status="LayoutDoesNotFit"), [], State.BLOCKED),
    "a proven node is not Ready": (policy(status="NodeNotReady"), [gpunode("n-0")], State.BLOCKED),
    "a node changes": (policy(), [gpunode("n-0"), gpunode("n-1", "Draining")], State.MOVES),
    "a node has yet to change": (policy(status="Pending"), [gpunode("n-0", "Pending")], State.WAITS),
    "another policy has to finish first": (policy(status="Pending"), [gpunode("n-0")], State.WAITS),
    "the policy is being deleted": (policy(status="Deleting"), [gpunode("n-0")], State.WAITS),
    "the operator has not seen the policy": (policy(status=""), [], State.WAITS),
    "the operator has not seen an edit": (
        policy(generation=2, status="Synced"),
        [gpunode("n-0")],
        State.WAITS,
    ),
    "all is done": (policy(status="Synced"), [gpunode("n-0")], State.DONE),
}


@pytest.mark.parametrize("case", HEALTH)
def test_a_pool_is_as_well_as_its_worst_node_and_its_policy_where(case: str) -> None:
    raw, nodes, state = HEALTH[case]
    (pool,), _ = pools_of([raw], nodes)
    assert pool.state is state
    attention = state in (State.FAILED, State.BLOCKED)
    health = "1 pool needs attention: pool-b" if attention else "0 pools need attention"
    assert as_data([pool], [], "desk", NOW)["health"] == health
    assert shown([raw], nodes).startswith(f"{health}.\n1 pool: 1 {state.value.word}")


def test_a_proven_node_that_waits_for_a_person_is_in_the_table() -> None:
    text = shown([policy(status="Synced")], [UNHEALTHY, gpunode("n-1")])
    assert "n-0   ████████  Synced  GPUUnhealthy" in text
    assert "n-1" not in text


def test_the_worst_pool_comes_first_and_others_by_name() -> None:
    states = {"a": "Synced", "b": "Draining", "c": "Failed", "d": "Synced", "e": "Failed"}
    policies = [policy(name, status=phase) for name, phase in states.items()]
    nodes = [gpunode(f"{name}-0", phase, policy=name) for name, phase in states.items()]
    pools, _ = pools_of(policies, nodes)
    assert [pool.name for pool in pools] == ["c", "e", "b", "a", "d"]
    text = shown(policies, nodes)
    assert text.startswith("2 pools need attention: c, e.\n5 pools: 2 done, 1 under way, 2 failed; 5 nodes: ")


def event(minutes: float, reason: str, note: str, about: str = "pool-b", type_: str = "Normal") -> JSON:
    return {
        "metadata": {"name": f"{about}.{minutes}"},
        "eventTime": ago(minutes).replace("Z", ".000000Z"),
        "type": type_,
        "reason": reason,
        "note": note,
        "regarding": {"kind": "GPUSharingPolicy", "name": about},
    }


EVENTS = [
    event(1, "PodEvictionBlocked", "pool-b-1: PDB team-b/ranker", type_="Warning"),
    event(5, "DrainStarted", "pool-b-1: 2 GPU pods will be evicted"),
    event(30, "LayoutVerified", "pool-c-0: 1x full proven", about="pool-c"),
]


def test_events_are_below_the_pool_that_they_are_about_the_newest_last() -> None:
    pools, unowned = pools_of(*fleet(), EVENTS)
    lines = plain(describe(pools, unowned, NOW, WIDE)).splitlines()
    first = lines.index("  5m ago DrainStarted: pool-b-1: 2 GPU pods will be evicted")
    assert lines[first + 1] == "  1m ago PodEvictionBlocked: pool-b-1: PDB team-b/ranker"
    assert lines[first + 3].startswith("pool-c  Full 1x full")
    assert lines[-1] == "  30m ago LayoutVerified: pool-c-0: 1x full proven"
    told = as_data(pools, unowned, "desk", NOW)["pools"][0]["events"]
    assert [one["reason"] for one in told] == ["DrainStarted", "PodEvictionBlocked"]
    assert told[1] == {
        "eventTime": "2026-11-20T09:59:00.000000Z",
        "type": "Warning",
        "reason": "PodEvictionBlocked",
        "note": "pool-b-1: PDB team-b/ranker",
    }


def test_the_twenty_newest_events_are_shown_and_wide_shows_all() -> None:
    events = [event(minute, "Again", f"number {minute}") for minute in range(22)]
    pools, _ = pools_of([policy()], [], events)
    text = plain(describe(pools, [], NOW, WIDE))
    assert (text.count("Again"), "number 19\n" in text, "number 20" in text) == (20, True, False)
    assert plain(describe(pools, [], NOW, ALL)).count("Again") == 22


def test_events_that_were_not_read_are_no_empty_list() -> None:
    (unread,), _ = pools_of([policy()], [])
    (none,), _ = pools_of([policy()], [], [])
    told = as_data([unread, none], [], "desk", NOW)["pools"]
    assert [pool["events"] for pool in told] == [None, ()]


def test_table_and_columns_of_kubectl_use_the_same_words() -> None:
    columns = {resource.kind: {column.name.upper() for column in resource.columns} for resource in (POLICY, GPUNODE)}
    assert {column.title for column in NODE_COLUMNS} - {"NODE", "PROGRESS", "HEALTH", "MESSAGE"} <= columns["GPUNode"]
    assert {column.title for column in POOL_COLUMNS} - {"POOL"} <= columns["GPUSharingPolicy"]


@pytest.mark.parametrize(("shown", "record"), [(NODE_COLUMNS, "Node"), (POOL_COLUMNS, "Pool")])
def test_what_a_column_shows_is_in_json_and_its_schema(shown: Sequence[StatusColumn[Any]], record: str) -> None:
    known = read_schema()["$defs"][record]["properties"]
    assert [column.title for column in shown if column.key not in known] == []


SAID = {
    "a sentence about others": "waits until policy pool-x has ended",
    "a sentence with its own name": "@ was cordoned by someone else; to continue, run: kubectl uncordon @",
}


def on_screen_and_page(message: str, nodes: list[JSON]) -> list[str]:
    """A pool with this message in one line each."""
    pools = pools_of([policy(message=message)], nodes)
    return [" ".join(plain(describe(*pools, NOW, options)).split()) for options in (ALL, HTML_OPTIONS)]


@pytest.mark.parametrize("above", ["", "gpu-1"])
@pytest.mark.parametrize("what", SAID)
def test_what_several_nodes_share_is_said_once_with_all_their_names(what: str, above: str) -> None:
    names = [f"gpu-{number}" for number in range(1, 5)]
    nodes = [gpunode(name, "Blocked", "Waits", message=SAID[what].replace("@", name)) for name in names]
    message = f"{above}: {SAID[what].replace('@', above)}" if above else "something else"
    for flat in on_screen_and_page(message, nodes):
        assert flat.count(SAID[what].replace("@", "gpu-1")) == 1
        assert flat.count(SAID[what][2:20]) == 1
        assert any(all(name in line for name in names[1:]) for line in flat.split(". "))


@pytest.mark.parametrize("above", ["", "gpu-1"])
@pytest.mark.parametrize("pod", ["default/llm-@", "default/llm-@-a, default/llm-@-b", "a/b-@, ... (3 more)"])
def test_a_budget_of_pods_on_several_nodes_is_said_once_with_the_pods_of_each(pod: str, above: str) -> None:
    said = f"PDBNeverAllows default/llm: Pods {pod}. The budget allows 0 disruptions. Remedy: Scale the workload up."
    nodes = [
        gpunode(name, "Blocked", "PDBNeverAllows", message=said.replace("@", name), blockers=[said.replace("@", name)])
        for name in ("gpu-1", "gpu-2", "gpu-3")
    ]
    message = f"{above}: {said.replace('@', above)}" if above else "something else"
    for flat in on_screen_and_page(message, nodes):
        assert flat.count("The budget allows 0") == flat.count("Remedy") == 1
        others = ", ".join(f"{name} ({pod.replace('@', name)})" for name in ("gpu-2", "gpu-3"))
        assert f"The same holds for {others}." in flat


def test_the_same_holds_for_the_pods_of_the_message_that_is_shown_and_not_for_other_blockers() -> None:
    budget = "PDBNeverAllows default/chat: Pod default/chat-@. The budget allows 0 disruptions."
    stranded = "StrandedPods: Pods default/chat-@, default/inference-@. No node will have their resource."
    nodes = [
        gpunode(
            f"gpu-{name}",
            "Blocked",
            "PDBNeverAllows",
            message=budget.replace("@", name),
            blockers=[one.replace("@", name) for one in (budget.replace("The", "Remedy. The"), stranded)[-count:]],
        )
        for name, count in (("5", 2), ("6", 2), ("7", 1))
    ]
    pools = pools_of([policy(message=f"gpu-5: {nodes[0]['status']['transition']['message']}")], nodes)
    same = "The same holds for gpu-6 (default/chat-6), gpu-7 (default/chat-7)."
    assert same in " ".join(plain(describe(*pools, NOW, WIDE)).split())
    assert "inference" not in plain(describe(*pools, NOW, WIDE))
    for options in (ALL, HTML_OPTIONS):
        flat = " ".join(plain(describe(*pools, NOW, options)).split())
        assert same in flat
        assert all(f"default/inference-{number}" in flat for number in (5, 6, 7))


def test_a_message_about_a_node_whose_name_contains_another_is_not_shared() -> None:
    nodes = [gpunode(name, "Blocked", "Waits", message=f"waits until {name}0 has ended") for name in ("gpu-1", "gpu-2")]
    told = shown([policy()], nodes, ALL)
    assert not lacks(told, "gpu-1: waits until gpu-10 has ended\n", "gpu-2: waits until gpu-20 has ended\n")


def test_the_counts_of_a_policy_that_the_operator_has_not_seen_are_unknown_and_not_0() -> None:
    raw: JSON = {"metadata": {"name": "new", "generation": 1}, "spec": {"mode": "Full"}}
    pools, unowned = pools_of([raw, policy("pool-b", gpus=6)], [])
    told = {pool["name"]: (pool["gpus"], pool["pendingPods"]) for pool in as_data(pools, unowned, "desk", NOW)["pools"]}
    assert told["new"] == (None, None)
    assert (
        "0 " not in plain(describe([pool for pool in pools if pool.name == "new"], [], NOW, WIDE)).partition("\n\n")[2]
    )
    assert not lacks(plain(describe(pools, unowned, NOW, WIDE)), "6 GPUs", "1 new pool")


def test_what_is_wrong_with_nodes_without_a_policy_is_told() -> None:
    policies, nodes = fleet()
    odd = gpunode("gpu-99", policy="")
    odd["status"]["transition"] |= {
        "reason": "MigInvalid",
        "waitingFor": "Person",
        "message": "no policy selects this node, and so on",
    }
    fine = gpunode("gpu-98", policy="")
    fine["status"]["transition"] |= {"reason": "Unowned", "message": "no policy selects this node"}
    text = shown(policies, [*nodes, odd, fine])
    assert "gpu-99: no policy selects this node, and so on" in text
    assert "gpu-98: " not in text
    stuck = "1 node without a policy needs attention: gpu-99"
    assert text.startswith(f"1 pool needs attention: pool-b; {stuck}.\n")
    pools, unowned = pools_of([], [odd, fine])
    assert as_data(pools, unowned, "desk", NOW)["health"] == f"0 pools need attention; {stuck}"


def test_what_an_operator_of_another_version_says_is_shown_as_it_comes() -> None:
    raw = {"metadata": {"name": "new", "generation": 1}, "spec": {"mode": "Quantum"}, "status": {}}
    node = gpunode("n-0", "Teleporting", "Later", policy="new")
    text = shown([raw], [node])
    assert "new  Quantum  new" in text
    assert "Teleporting" in text
    assert state_of("Teleporting") is State.WAITS


def test_a_bar_with_more_nodes_than_room_shows_the_worst_of_each_cell() -> None:
    good, bad = Glyph("o", "o", Ink.GOOD), Glyph("x", "x", Ink.BAD)
    cells = bar([good] * 99 + [bad], WIDE, 10)
    assert plain([cells]) == "ooooooooox\n"


WAITING = gpunode("n-2", "Pending", "BudgetFull")


def estimate(*nodes: JSON) -> tuple[timedelta | None, str] | None:
    (pool,), _ = pools_of([policy()], nodes)
    return find_estimate(pool, NOW)


def test_the_time_that_is_left_follows_the_changes_of_before() -> None:
    took = history(("Cordoned", 30), ("Draining", 29), ("Synced", 20))
    nodes = [gpunode("n-0", history=took), gpunode("n-1", "Draining", "PDB"), WAITING]
    why = "about 16m left for 2 nodes: the last change took 10m"
    assert estimate(*nodes) == (timedelta(minutes=16), why)
    assert why in shown([policy()], nodes)


def test_what_a_change_in_flight_has_had_is_not_left() -> None:
    took = history(("Cordoned", 60), ("Synced", 50))
    begun = history(("Pending", 40), ("Cordoned", 6), ("Draining", 5))
    drains = gpunode("n-1", "Draining", "PDB", since=ago(5), history=begun)
    why = "about 14m left for 2 nodes: the last change took 10m"
    assert estimate(gpunode("n-0", history=took), drains, WAITING) == (timedelta(minutes=14), why)


def test_work_that_does_not_fit_into_the_open_window_says_so() -> None:
    took = history(("Cordoned", 30), ("Draining", 29), ("Synced", 20))
    nodes = [gpunode("n-0", history=took), gpunode("n-1", "Draining", "PDB"), WAITING]
    for minutes, fits in ((20, True), (10, False)):
        pool = policy(nextWindow=f"open until {ago(-minutes)}")
        assert ("about 16m left for 2 nodes:" in shown([pool], nodes)) == fits
        told = "about 16m of work left for 2 nodes, which does not fit into this window:"
        assert (told in shown([pool], nodes)) == (not fits)
        (data,) = as_data(*pools_of([pool], nodes), "desk", NOW)["pools"]
        assert data["secondsLeft"] == (960 if fits else None)
    alone = shown([policy(nextWindow=f"open until {ago(-1)}")], nodes[:2])
    assert "about 6m left for 1 node:" in alone, "a change ends after its window"
    assert "about 16m left for 2 nodes:" in shown([policy(nextWindow=ago(-5))], nodes), "the time when it opens"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_nodes_whose_names_differ_only_at_their_end_are_told_apart(width: int) -> None:
    names = [f"gke-production-europe-west4-h100-reserved-pool-2026-0c2f9a7e-{end}" for end in ("x4kq", "p7zd")]
    nodes = [gpunode(name, "Blocked", "Waits", history=history(("Cordoned", 9), ("Blocked", 5))) for name in names]
    told = plain(describe(*pools_of([policy()], nodes), NOW, PrintOptions(width), timeline=True))
    assert [len(re.findall(f"^  gke-.*{name[-4:]} ", told, re.MULTILINE)) for name in names] == [2, 2], told


UNFORESEEN: dict[str, JSON] = {
    "a person mends what failed": gpunode("n-1", "Failed", "ActuatorFailed"),
    "a person approves": gpunode("n-1", "Pending", "ApprovalNeeded", waitingFor="Person"),
    "a window opens": gpunode("n-1", "Pending", "WindowClosed", **until(720)),
    "something else may hold it once it has its configuration": gpunode("n-1", "Pending", "ConfigPropagating"),
    "others have the only slot": gpunode("n-1", "Pending", "BudgetFull", waitingFor="Others"),
    "it takes longer than any before it": gpunode("n-1", "Draining", "PDB", since=ago(11)),
}


@pytest.mark.parametrize("node", UNFORESEEN.values(), ids=UNFORESEEN)
def test_where_nobody_can_foresee_the_end_none_is_told(node: JSON) -> None:
    took = history(("Cordoned", 30), ("Synced", 20))
    assert estimate(gpunode("n-0", history=took), node) is None


WAY = ("Cordoned", "Draining", "VerifyingIdle", "Reconfiguring", "Verifying", "Uncordoning", "Synced")
STEPS = [(phase, 1000 * (2 - time) - 10 * step) for time in range(2) for step, phase in enumerate(WAY)]
AGAIN = history(("Cordoned", 200), ("Failed", 195), ("Reconfiguring", 5))
LASTED: dict[str, tuple[list[str], JSON, tuple[int, str]]] = {
    "was given up": (
        history(("Cordoned", 30), ("Aborting", 20), ("Pending", 15), ("Cordoned", 10), ("Synced", 7)),
        WAITING,
        (3, "3m"),
    ),
    "is kept by its end only in the history": (history(*STEPS[-MAX_HISTORY:]), WAITING, (60, "1h")),
    "was Failed for long": (
        history(("Cordoned", 300), ("Failed", 290), ("Reconfiguring", 20), ("Synced", 15)),
        gpunode("n-1", "Reconfiguring", "Waits", history=AGAIN),
        (5, "15m"),
    ),
}


@pytest.mark.parametrize(("before", "node", "told"), LASTED.values(), ids=LASTED)
def test_how_long_a_change_takes_is_not_told_by_the_time_in_which_one(
    before: list[str], node: JSON, told: tuple[int, str]
) -> None:
    """Minutes that are left, and what the last change took."""
    found = estimate(gpunode("n-0", history=before), node)
    assert found is not None
    assert (found[0], found[1].rpartition("the last change took ")[2]) == (timedelta(minutes=told[0]), told[1])


def test_data_says_when_the_next_window_is_and_whether_a_pool_is_paused() -> None:
    paused = policy(nextWindow="2026-11-20T22:00:00Z")
    paused["spec"]["rollout"]["paused"] = True
    (told,) = as_data(*pools_of([paused], []), "desk", NOW)["pools"]
    assert (told["nextWindow"], told["paused"]) == ("2026-11-20T22:00:00Z", True)
    assert [pool["paused"] for pool in as_data(*pools_of(*fleet()), "desk", NOW)["pools"]] == [False, False]


@pytest.mark.parametrize("wide", [False, True])
def test_nodes_whose_agents_read_a_simulator_are_told_before_all_else(wide: bool) -> None:
    policies, nodes = fleet()
    strange = gpunode("gpu-99", policy="")
    for raw in (nodes[0], nodes[3], strange):
        raw["status"]["observed"]["simulated"] = True
    first, *rest = shown(policies, [*nodes, strange], PrintOptions(wide=wide)).splitlines()
    assert first.startswith("SIMULATED: gpu-99, pool-b-0, pool-c-0 ")
    assert any(row.startswith("pool-b  MIG 2x3g.40gb") for row in rest)
    assert as_data(*pools_of(policies, [*nodes, strange]), "desk", NOW)["simulated"] == [
        "gpu-99",
        "pool-b-0",
        "pool-c-0",
    ]


def test_without_policies_simulated_nodes_are_told_too_and_real_gpus_are_not_called_simulated() -> None:
    node = gpunode("gpu-99", policy="")
    node["status"]["observed"]["simulated"] = True
    assert shown([], [node]).startswith("SIMULATED: gpu-99 has no real GPUs")
    assert as_data(*pools_of(*fleet()), "desk", NOW)["simulated"] == []


def test_data_has_the_pools_with_their_members() -> None:
    told = as_data(*pools_of(*fleet()), "desk", NOW)
    assert told["context"] == "desk"
    assert [pool["name"] for pool in told["pools"]] == ["pool-b", "pool-c"]
    assert told["pools"][0]["members"][1]["culprit"] == "team-b/ranker-7c4 +1"


AGES = [(0, "0s"), (59, "59s"), (90, "1m30s"), (300, "5m"), (3900, "1h5m"), (86400 * 41, "41d"), (-5, "0s")]


@pytest.mark.parametrize(("seconds", "text"), AGES)
def test_a_length_of_time_is_short_to_read(seconds: int, text: str) -> None:
    assert length(timedelta(seconds=seconds)) == text

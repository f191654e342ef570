"""What people type because kubectl has it: names, several of them, selectors, tables without headings, help, mistakes (kubectl_gpusharing/shell/arguments.py, kubectl_gpusharing/shell/running.py, kubectl_gpusharing/shell/terminal.py, hack/generate_schema.py)."""

import ast
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from hack.generate import ROOT
from hack.generate_schema import DOCUMENTS
from tests.cli.asking import ask
from tests.cli.desk import GPUNODES, POLICIES, Desk, wrong
from tests.cli.objects import policy
from tests.cli.schema import find_mistakes, read_schema
from tests.cli.test_free import NODES, PODS, container, node, pod
from tests.cli.test_steer_fleet import fleet
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.kube import client
from gpusharing.kube.raw import text
from kubectl_gpusharing.shell import documents
from kubectl_gpusharing.shell.arguments import FIELDS, VERBS, parse
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED, Trouble

NAME = "gpusharingpolicy.gpusharing.dev"


@pytest.fixture
def stocked(desk: Desk) -> Desk:
    desk.server.lists |= {
        NODES: [node("gpu-1", policy="pool-b"), node("gpu-2")],
        PODS: [pod("team-a/llm", "gpu-1", container(gpu=2)), pod("team-b/waits", "", container(gpu=9))],
    }
    return desk


# --- names --------------------------------------------------------------------------------------------------------

PRINTED = {
    "status": f"{NAME}/pool-b\n{NAME}/pool-c\n",
    "status pool-c": f"{NAME}/pool-c\n",
    "free --by node": "node/gpu-1\nnode/gpu-2\n",
    "free --by pod": "pod/llm\npod/waits\n",
    "free --by policy": f"{NAME}/pool-b\n",
    "free --by namespace": "namespace/team-a\nnamespace/team-b\n",
}


@pytest.mark.parametrize("typed", PRINTED)
def test_the_names_of_what_would_be_shown_are_printed(stocked: Desk, typed: str) -> None:
    said = stocked.type(*typed.split(), "-o", "name")
    assert (said.status, said.out, said.err) == (DONE, PRINTED[typed], "")


def test_resources_are_no_objects_and_have_no_names(stocked: Desk) -> None:
    assert "add --by node, policy, namespace or pod" in wrong(stocked, "free", "-o", "name")
    assert stocked.server.asked == []


def test_names_of_several_clusters_are_refused_because_they_would_not_say_which(desk: Desk) -> None:
    desk.write_kubeconfig(desk.url, ("east", "west"))
    assert "-o name answers for one context" in wrong(desk, "status", "--all-contexts", "-o", "name")


# --- several names, and selectors ----------------------------------------------------------------------------------


@virtually
async def test_several_policies_are_paused_one_after_the_other() -> None:
    cluster = fleet(a={"paused": False}, b={"paused": False}, c={"paused": True})
    told = await ask(cluster, "pause", "a", "b", "-o", "name")
    assert (told.status, told.out) == (DONE, f"{NAME}/a\n{NAME}/b\n")
    assert all(raw["spec"]["rollout"]["paused"] for raw in cluster.objects(client.POLICIES))


@virtually
async def test_a_name_that_is_wrong_keeps_no_other_from_being_paused() -> None:
    cluster = fleet(a={"paused": False}, b={"paused": False}, c={"paused": True})
    with pytest.raises(Trouble, match=r"^there is no gpusharingpolicies/x .*; c is already paused"):
        await ask(cluster, "pause", "x", "c", "b")
    paused = [raw["metadata"]["name"] for raw in cluster.objects(client.POLICIES) if raw["spec"]["rollout"]["paused"]]
    assert paused == ["b", "c"]


def test_several_pools_are_shown_in_the_order_of_their_names(desk: Desk) -> None:
    told = json.loads(desk.type("status", "pool-c", "pool-b", "pool-c", "-o", "json").out)
    assert [pool["name"] for pool in told["pools"]] == ["pool-c", "pool-b"]


@pytest.mark.parametrize("output", ["table", "wide", "json", "yaml", "name"])
def test_names_that_are_not_there_are_named_after_the_answer_about_the_others(desk: Desk, output: str) -> None:
    said = desk.type("status", "pool-x", "pool-b", "pool-b-1", "pool-y", "-o", output)
    assert (said.status, said.out) == (FAILED, desk.type("status", "pool-b", "pool-b-1", "-o", output).out)
    assert not lacks(said.err, "no gpusharingpolicies/pool-x", "no gpusharingpolicies/pool-y")
    assert said.err.count("\n") == 1
    assert "no gpusharingpolicies/pool-y" in wrong(desk, "status", "pool-x", "pool-y", "-o", output)
    assert "no gpusharingpolicies/pool-y" in wrong(desk, "status", "pool-b", "pool-y", "--watch")


def test_status_of_a_node_is_its_row_whatever_its_state(desk: Desk) -> None:
    told = json.loads(desk.type("status", "pool-b-1", "-o", "json").out)
    assert [one["name"] for pool in told["pools"] for one in pool["members"]] == ["pool-b-1"]
    assert told["nodesWithoutPolicy"] == []
    names = [text(raw, "metadata", "name") for raw in desk.server.lists[GPUNODES]]
    for name in names:
        lines = desk.type("status", name).out.splitlines()
        rows = [other for other in names if any(line.startswith(f"  {other} ") for line in lines)]
        assert rows == [name] or (rows == [] and lines == ["", f"1 node with GPUs and no policy: {name}"])


@pytest.mark.parametrize("output", ["table", "html"])
def test_the_totals_of_status_are_of_the_nodes_that_are_shown(desk: Desk, output: str) -> None:
    def shown(*names: str) -> str:
        return desk.type("status", *names, "-o", output).out

    assert "; 1 node: 1 under way; 8 GPUs with 640 GB of memory" in shown("pool-b-1")
    for names in (("pool-b-1", "pool-c-0"), ("pool-b-1", "pool-c")):
        assert "; 2 nodes: 1 done, 1 under way; 16 GPUs with 1280 GB of memory" in shown(*names)
    assert "; 3 nodes: 1 done, 1 under way, 1 blocked; 24 GPUs with 1920 GB of memory" in shown("pool-b")
    del desk.server.lists[GPUNODES][1]["status"]["observed"]
    assert "; 1 node: 1 under way; 0 GPUs, without those of 1 node without a report" in shown("pool-b-1")
    told = json.loads(desk.type("status", "pool-b-0", "pool-b-1", "-o", "json").out)
    assert [one["gpus"] for one in told["pools"][0]["members"]] == [8, None]


def test_status_of_a_name_that_is_both_a_policy_and_a_node_shows_both(desk: Desk) -> None:
    desk.server.lists[POLICIES].append(policy("pool-b-0"))
    told = json.loads(desk.type("status", "pool-b-0", "-o", "json").out)
    shown = {pool["name"]: [one["name"] for one in pool["members"]] for pool in told["pools"]}
    assert shown == {"pool-b-0": [], "pool-b": ["pool-b-0"]}
    assert "\n  pool-b-0 " in desk.type("status", "pool-b-0").out


@pytest.mark.parametrize("typed", ["pod llm", "pods/llm"])
def test_who_has_rights_in_one_namespace_and_forgot_it_is_told_how_to_choose_it(desk: Desk, typed: str) -> None:
    path = "/api/v1/namespaces/default/pods/llm"
    denied = 'pods "llm" is forbidden: User "ann" cannot get resource "pods" in API group "" in the namespace "default"'
    desk.server.refusals = {path: (403, denied)}
    assert not lacks(wrong(desk, "why", *typed.split()), "namespace default", "-n NAME")


def test_a_selector_is_for_the_server_and_leaves_nodes_of_others_out(desk: Desk) -> None:
    said = desk.type("status", "-l", "team=a", "-o", "json")
    assert json.loads(said.out)["nodesWithoutPolicy"] == []
    assert "team%3Da" in desk.server.queries[POLICIES]
    assert "labelSelector" not in desk.server.queries[GPUNODES]


@pytest.mark.parametrize(
    "words", [("-l", "team=a"), ("-l", "team=a", "-o", "html"), ("-l", "team=a", "--all-contexts")]
)
def test_where_no_policy_has_the_labels_it_says_so_and_not_that_there_is_none(desk: Desk, words: Sequence[str]) -> None:
    desk.server.lists[POLICIES] = []
    said = desk.type("status", *words)
    assert "no gpusharingpolicy has these labels" in said.out.lower()
    assert "here is no GPUSharingPolicy" not in said.out
    assert "here is no GPUSharingPolicy" in desk.type("status", *words[2:]).out


def test_names_and_a_selector_contradict_each_other(desk: Desk) -> None:
    assert "pass either names of policies or -l" in wrong(desk, "status", "pool-b", "--selector", "team=a")


# --- tables without headings ---------------------------------------------------------------------------------------


def test_tables_can_be_had_without_headings(stocked: Desk) -> None:
    told = stocked.type("free", "--by", "node").out.splitlines()
    bare = stocked.type("free", "--by", "node", "--no-headers").out.splitlines()
    headings = [line for line in told if line.startswith(("NODE", "WAITING POD"))]
    assert len(headings) == 2
    assert bare == [line for line in told if line not in headings]


# --- help and mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_a_verb_has_its_own_flags_exit_statuses_and_examples_that_can_be_typed(
    desk: Desk, name: str
) -> None:
    said, verb = desk.type(name, "--help"), VERBS[name]
    assert said == desk.type("help", name)
    text = said.out
    assert "kubectl gpusharing options" in text
    assert "--output" in text
    assert "--kubeconfig" not in text
    assert all(f"  {status:<4} {meaning}\n" in text for status, meaning in verb.exits.items())
    assert ("  2    " in text) == (2 in verb.exits)
    examples = re.findall(rf"^  kubectl gpusharing {name}(.*)$", text, re.MULTILINE)
    assert len(examples) == len(verb.examples) == 2
    for example in examples:
        words = shlex.split(example.partition(">")[0])
        assert parse([name, *words]).verb == name


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_gets_its_flags_and_nothing_else_from_the_command_line(name: str) -> None:
    verb = VERBS[name]
    options = ({**FIELDS[one].metadata["options"], **verb.differs.get(one, {})} for one in verb.flags)
    words = ["x"] * any(one.get("nargs") in (1, "+") for one in options)
    typed = parse(["-o", "json", "--context", "east", name, *words])
    assert typed.verb == name
    defaults = {one.name: verb.differs.get(one.name, {}).get("default", one.default) for one in FIELDS.values()}
    given = {one for one, default in defaults.items() if getattr(typed, one) != default}
    assert given <= {"output", "context", "names", "subjects", "files"}
    assert (typed.output, typed.context) == ("json", "east")


def test_options_are_the_flags_that_every_verb_has_and_help_alone_is_that_of_the_command(desk: Desk) -> None:
    said = desk.type("options")
    assert said.status == DONE
    assert all(flag in said.out for flag in ("--kubeconfig", "--namespace", "--no-headers", "--output"))
    assert "usage" not in said.out
    assert desk.type("help") == desk.type("--help")


def test_options_tell_which_verbs_draw_one_table_of_contexts_and_that_others_take_several_too(desk: Desk) -> None:
    said = " ".join(desk.type("options").out.split())
    *most, last = [name for name, verb in VERBS.items() if verb.fleet]
    fleet = f"{', '.join(most)} and {last}"
    assert (
        f"--contexts A,B several contexts: {fleet} show one table, most other verbs answer one after the other" in said
    )
    assert f"--all-contexts all contexts in the kubeconfig, shown in one table; works with {fleet}" in said


MISTAKES = {
    "stauts": ("stauts", "status", "See: kubectl gpusharing --help"),
    "help stauts": ("stauts", "status"),
    "status --wacth": ("--wacth", "--watch"),
    "status -o jsn": ("--output", "jsn", "json"),
    "doctor -o name": ("table, wide, json, yaml",),
    "plan -o html": ("--output cannot be html",),
    "advise --gpus-per-node 17": ("--gpus-per-node", "17", "1, 2, 3"),
    "ui --port http": ("--port", "'http'"),
    "approve pool-b hash more": ("too many: more",),
    "plan --fail-on=x --filname=y": ("--filname", "--filename"),
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_answered_with_the_nearest_word(desk: Desk, typed: str) -> None:
    said = desk.type(*typed.split())
    assert (said.status, said.out) == (FAILED, "")
    assert not lacks(said.err, *MISTAKES[typed])
    assert FAILED != CHANGES, "2 says that a plan has changes"


# --- documents -------------------------------------------------------------------------------------------------------


def test_the_schema_has_each_kind_that_a_verb_prints() -> None:
    """The others that print JSON are `import` and `advise -o yaml`: manifests for kubectl apply."""
    known = {name for name in vars(documents) if name.endswith("Data")}
    printed = set()
    for file in (ROOT / "operator/kubectl_gpusharing").rglob("*.py"):
        printed |= kinds_in(file) & known
    assert printed == {kind.__name__ for kind in DOCUMENTS}, "DOCUMENTS of hack/generate_schema.py"


def kinds_in(file: Path) -> set[str]:
    """The names that a module passes first to `answer` or `data`, as the kind of a FleetVerb, or first in a tuple."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    calls = [call for call in nodes if isinstance(call, ast.Call)]
    named = [call for call in calls if ast.unparse(call.func).endswith((".answer", ".data", "FleetVerb"))]
    names = {arg.id for call in named for arg in call.args if isinstance(arg, ast.Name)}
    firsts = (row.elts[0] for row in nodes if isinstance(row, ast.Tuple) and row.elts)
    names |= {first.id for first in firsts if isinstance(first, ast.Name)}
    return names | ({"FailureData"} if "(FailureData, " in file.read_text() else set())


def test_a_document_that_does_not_match_is_found() -> None:
    good = {"apiVersion": "cli.gpusharing.dev/v1alpha1", "kind": "CardList", "cards": ["a"]}
    assert find_mistakes(good) == []
    assert find_mistakes({**good, "cards": [1]}) == ["CardList.cards[0]: 1 is no string"]
    assert find_mistakes({**good, "more": 1}) == ["CardList.more is not in the schema"]
    assert find_mistakes({**good, "apiVersion": "v1"}) == [
        "CardList.apiVersion: 'v1' is not 'cli.gpusharing.dev/v1alpha1'"
    ]
    del good["cards"]
    assert find_mistakes(good) == ["CardList.cards is missing"]


def test_every_reference_in_the_schema_leads_somewhere() -> None:
    text = json.dumps(read_schema())
    names = {part.partition('"')[0] for part in text.split("#/$defs/")[1:]}
    assert names == {*read_schema()["$defs"]}

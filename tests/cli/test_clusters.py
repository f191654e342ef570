"""Several clusters in one table: `status`, `doctor` and `cost` with --contexts and --all-contexts (kubectl_gpusharing/shell/running.py, kubectl_gpusharing/shell/session.py, kube/login.py). Those that hang are in test_clusters_hung.py."""

import asyncio
import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hack.sim.fakecluster import FakeCluster
from tests.cli.asking import operated
from tests.cli.desk import GPUNODES, POLICIES, SECONDS, Desk, desk_at, wrong
from tests.cli.fakeprometheus import fake_prometheus, vector
from tests.cli.objects import gpunode, policy
from tests.cli.schema import read_stream
from tests.cli.test_cost import behind, service
from tests.fakes.virtualtime import virtual_now, virtually
from tests.wording import lacks

from gpusharing.kube.background import run_command
from gpusharing.kube.client import ACCESS_REVIEWS, NODES
from gpusharing.kube.client import GPUNODES as GPUNODES_KIND
from gpusharing.kube.client import POLICIES as POLICIES_KIND
from kubectl_gpusharing.pools import status
from kubectl_gpusharing.setup import doctor
from kubectl_gpusharing.shell.arguments import Arguments, parse
from kubectl_gpusharing.shell.documents import FailureData
from kubectl_gpusharing.shell.drawing import Column, PrintOptions, Span, plain
from kubectl_gpusharing.shell.running import Answer, FleetVerb, ask_clusters, describe_clusters
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED

NOBODY = "http://127.0.0.1:9"
"""Where nothing listens."""
IDENTITY = "/api/v1/namespaces/kube-system"
SOON = 0.5
"""Seconds that a cluster has here for its first answer."""


@contextmanager
def silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def identify(desk: Desk, uid: str) -> None:
    desk.server.objects[IDENTITY] = {"metadata": {"name": "kube-system", "uid": uid}}


@pytest.fixture
def west(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A second cluster, with one pool that is done and a node without a policy."""
    with desk_at(tmp_path_factory.mktemp("west")) as desk:
        quiet = policy("pool-w", mode="Full", layout="1x full", status="Synced", nodes="1/1", gpus=8, message="")
        nodes = [gpunode("w-0", policy="pool-w"), gpunode("w-1", policy="", phase="", reason="")]
        desk.server.lists = {POLICIES: [quiet], GPUNODES: nodes}
        yield desk


def asked(desk: Desk, *words: str, verb: FleetVerb = status.FLEET, first: float = SOON) -> list[Answer]:
    contexts = [one["name"] for one in json.loads(desk.kubeconfig.read_text())["contexts"]]
    typed = parse([*(words or ("status",)), "--kubeconfig", str(desk.kubeconfig)])
    return run_command(ask_clusters(verb, typed, contexts, first))


# --- the table ---------------------------------------------------------------------------------------------------


def test_one_table_has_every_cluster_and_a_dead_one_is_a_row_with_its_reason(desk: Desk, west: Desk) -> None:
    desk.write_clusters(east=desk.url, west=west.url, dead=NOBODY)
    said = desk.type("status", "--contexts", "east,dead,west")
    assert said.status == FAILED
    reason = said.err.removeprefix("error: 1 of 3 clusters did not respond. dead: ").rstrip("\n")
    assert not lacks(reason, "context dead", "respond")
    assert (
        said.out
        == f"""\
CLUSTER  POOL    MODE  LAYOUT     STATUS    NODES  GPUS  USED   MESSAGE
east     pool-b  MIG   2x3g.40gb  Draining  1/3    24    27/32  pool-b-1: PDB team-b/ranker: waiting for 2 pods to leave
east     pool-c  Full  1x full    Synced    1/1     8    8/8
dead                                                            no answer: {reason}
west     pool-w  Full  1x full    Synced    1/1     8    27/32
west: 1 node with GPUs and no policy: w-1.
"""
    )


def test_a_node_without_a_policy_that_waits_for_a_person_is_told_of_its_cluster(desk: Desk, west: Desk) -> None:
    west.server.lists[GPUNODES][1]["status"]["transition"]["waitingFor"] = "Person"
    desk.write_clusters(east=desk.url, west=west.url)
    said = desk.type("status", "--all-contexts")
    assert said.out.endswith("\nwest: 1 node without a policy needs attention: w-1.\n")


def test_all_contexts_are_those_of_the_kubeconfig_by_name(desk: Desk, west: Desk) -> None:
    desk.write_clusters(west=west.url, east=desk.url)
    said = desk.type("status", "--all-contexts")
    assert (said.status, said.err) == (DONE, "")
    assert [line.split()[0] for line in said.out.splitlines()[1:4]] == ["east", "east", "west"]


def test_flags_that_name_clusters_may_stand_before_the_verb_and_a_name_twice(desk: Desk) -> None:
    desk.write_clusters(east=desk.url)
    said = desk.type("--contexts", "east,east", "status")
    assert said.out == desk.type("status", "--all-contexts").out


def test_a_pool_that_a_cluster_does_not_have_is_its_reason(desk: Desk, west: Desk) -> None:
    desk.write_clusters(east=desk.url, west=west.url)
    said = desk.type("status", "pool-b", "--all-contexts")
    assert said.status == FAILED
    assert "pool-c" not in said.out
    assert not lacks(said.out, "no answer", "gpusharingpolicies/pool-b", "context west")


def test_a_cluster_without_policies_says_so(desk: Desk) -> None:
    desk.server.lists = {POLICIES: [], GPUNODES: []}
    desk.write_clusters(east=desk.url)
    assert desk.type("status", "--all-contexts").out.splitlines()[1].split(None, 1) == [
        "east",
        "there is no GPUSharingPolicy",
    ]


def test_simulated_nodes_are_named_above_the_table_with_their_cluster(desk: Desk) -> None:
    played = gpunode("pool-b-0")
    played["status"]["observed"]["simulated"] = True
    desk.server.lists[GPUNODES] = [played]
    desk.write_clusters(east=desk.url)
    assert desk.type("status", "--all-contexts").out.startswith("SIMULATED: east/pool-b-0 has no real GPUs")


@pytest.mark.parametrize(("output", "read"), [("json", read_stream), ("yaml", yaml.safe_load_all)])
def test_data_has_a_document_for_each_cluster_with_its_name(
    desk: Desk, west: Desk, output: str, read: Callable[[str], Iterable[Any]]
) -> None:
    identify(desk, "uid-east")
    desk.write_clusters(east=desk.url, west=west.url, dead=NOBODY)
    said = desk.type("status", "--all-contexts", "-o", output)
    assert said.status == FAILED
    dead, east, other = documents = list(read(said.out))
    assert [one["kind"] for one in documents] == ["Failure", "PoolList", "PoolList"]
    assert dead["context"] == "dead"
    assert "does not respond" in dead["error"]
    assert [one["name"] for one in east["pools"]] == ["pool-b", "pool-c"]
    assert (east["context"], east["clusterUID"]) == ("east", "uid-east")
    assert (other["context"], other["clusterUID"], other["nodesWithoutPolicy"]) == ("west", None, ["w-1"])
    named = desk.type("status", "--contexts", "west,east", "-o", output)
    assert [one["context"] for one in read(named.out)] == ["west", "east"]


def test_two_contexts_of_one_cluster_are_told_to_be_the_same(desk: Desk, west: Desk) -> None:
    identify(desk, "uid-1")
    identify(west, "uid-2")
    desk.write_clusters(admin=desk.url, viewer=desk.url, west=west.url)
    said = desk.type("status", "--all-contexts")
    assert said.status == DONE
    assert said.out.count("is the same cluster as") == 1
    assert "viewer: viewer" not in said.out
    assert not lacks(said.out, "viewer", "admin", "twice")


def test_who_may_not_read_the_identity_of_a_cluster_sees_its_pools(desk: Desk) -> None:
    desk.server.refusals[IDENTITY] = (403, 'User "me" cannot get resource "namespaces"')
    desk.write_clusters(admin=desk.url, viewer=desk.url)
    said = desk.type("status", "--all-contexts")
    assert (said.status, said.out.count("pool-b ")) == (DONE, 2)


def test_credentials_that_expired_are_the_reason_of_one_row(desk: Desk, west: Desk) -> None:
    west.server.refuses_all = (401, "Unauthorized")
    desk.write_clusters(east=desk.url, west=west.url)
    said = desk.type("status", "--all-contexts")
    assert said.status == FAILED
    assert "pool-b" in said.out
    assert not lacks(said.out, "credentials", "context west")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_on_a_terminal_the_last_column_is_broken_into_lines_and_loses_no_word(desk: Desk, width: int) -> None:
    desk.write_clusters(east=desk.url, dead=NOBODY)
    replies = asked(desk, first=SECONDS)
    (dead,) = (reply for reply in replies if reply.error)
    lines = plain(describe_clusters(status.FLEET, replies, PrintOptions(width))).splitlines()
    assert max(map(len, lines)) <= width
    start = lines[0].index("MESSAGE")
    assert "".join(dead.error.split()) in "".join("".join(line[start:].split()) for line in lines)


def test_of_two_columns_that_may_be_left_out_alike_the_right_one_makes_room() -> None:
    async def ask(_session: Session, _typed: Any) -> Any:
        raise AssertionError("nobody is asked")

    columns = (Column("POOL"), Column("SHORT", 1), Column("LONG", 1), Column("MESSAGE"))
    row = [Span("a" * 12), Span("short"), Span("b" * 20), Span("word " * 12)]
    verb = FleetVerb(columns, "", dict, ask)
    reply = Answer(DONE, [row], context="one")
    lines = plain(describe_clusters(verb, [reply], PrintOptions(70))).splitlines()
    assert "SHORT" in lines[0]
    assert "LONG" not in lines[0]
    assert " ".join(" ".join(line[lines[0].index("MESSAGE") :].split()) for line in lines[1:]).split() == ["word"] * 12
    assert len(lines) == 3, "the room of the column that is left out belongs to the message"


# --- time, and logging in ----------------------------------------------------------------------------------------


def test_a_cluster_that_accepts_and_never_answers_is_late_and_the_others_are_not(desk: Desk, west: Desk) -> None:
    with silent() as hung, silent() as other:
        desk.write_clusters(hung=hung, east=desk.url, other=other, west=west.url)
        found = {reply.context: reply for reply in asked(desk)}
    assert not lacks(found["hung"].error, "context hung", "0.5 s")
    assert found["other"].error
    assert (found["east"].error, found["west"].error) == ("", "")


def test_what_takes_too_long_after_the_first_answer_is_late_too(desk: Desk) -> None:
    async def for_ever(_session: Session, _typed: Any) -> Any:
        await asyncio.Event().wait()

    desk.write_clusters(east=desk.url)
    typed = Arguments(verb="status", kubeconfig=str(desk.kubeconfig))
    verb = FleetVerb((), "", FailureData, for_ever, seconds=0.1)
    (reply,) = asyncio.run(ask_clusters(verb, typed, ["east"], SECONDS))
    assert not lacks(reply.error, "0.1 s", "--context east")


def test_an_unexpected_error_of_one_cluster_hides_no_other_answer(desk: Desk) -> None:
    async def answer(session: Session, _typed: Any) -> Any:
        if session.where == "context west":
            raise KeyError("metadata")
        return Answer(DONE)

    desk.write_clusters(east=desk.url, west=desk.url)
    typed = parse(["status", "--kubeconfig", str(desk.kubeconfig)])
    east, west = asyncio.run(ask_clusters(FleetVerb((), "", FailureData, answer), typed, ["east", "west"], SECONDS))
    assert (east.context, east.error) == ("east", "")
    assert west.error == "unexpected error: KeyError: 'metadata'; please report it"


def with_programs(desk: Desk, **scripts: str) -> None:
    """Give each of these contexts a login program of its own, which runs this script of sh."""
    told = json.loads(desk.kubeconfig.read_text())
    version = {"apiVersion": "client.authentication.k8s.io/v1"}
    users = {name: {"exec": {**version, "command": "/bin/sh", "args": ["-c", text]}} for name, text in scripts.items()}
    told["users"] = [{"name": name, "user": user} for name, user in users.items()]
    for one in told["contexts"]:
        one["context"]["user"] = one["name"]
    desk.kubeconfig.write_text(json.dumps(told))


CREDENTIAL = json.dumps(
    {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "made"}}
)


def test_what_one_login_program_complains_of_is_no_reason_of_another_cluster(desk: Desk, west: Desk) -> None:
    desk.write_clusters(east=desk.url, west=west.url)
    ended = desk.folder / "ended"
    with_programs(
        desk,
        east=f"echo session of east is over >&2; touch {ended}; exit 1",
        west=f"until [ -e {ended} ]; do sleep 0.05; done; echo session of west is over >&2; exit 1",
    )
    east, other = asked(desk, first=SECONDS)
    assert "session of east is over" in east.error
    assert "session of west is over" in other.error
    assert "west" not in east.error.replace(str(desk.folder), "")
    assert "east" not in other.error.replace(str(desk.folder), "")


BROKEN = {
    "certificates that are none": {"certificate-authority-data": "bm9uZQ=="},
    "a file that is not there": {"certificate-authority": "/nowhere/ca.crt"},
}


@pytest.mark.parametrize("name", [*BROKEN, "a user that is not there"])
def test_a_context_that_cannot_be_used_is_a_row_like_a_dead_cluster(desk: Desk, name: str) -> None:
    desk.write_clusters(east=desk.url, broken="https://127.0.0.1:9")
    told = json.loads(desk.kubeconfig.read_text())
    if name in BROKEN:
        told["clusters"][1]["cluster"].update(BROKEN[name])
    else:
        told["contexts"][1]["context"]["user"] = "nobody"
    desk.kubeconfig.write_text(json.dumps(told))
    east, broken = asked(desk, first=SECONDS)
    assert not east.error
    assert str(desk.kubeconfig) in broken.error


# --- what is typed wrong -----------------------------------------------------------------------------------------

ONE_CONTEXT = ("--timeline and --events draw one context", "use --context NAME")
REFUSED = {
    "a context that is not there": (
        "status --contexts east,wets",
        ("there is no context wets in kubeconfig", "did you mean: west; there are: east, west"),
    ),
    "a context that is not there, of a verb without a table": (
        "plan --contexts east,wets",
        ("there is no context wets", "there are: east, west"),
    ),
    "no name": ("status --contexts ,", ("--contexts contains no context", "--contexts east,west")),
    "an empty name": ("doctor --contexts=", ("--contexts contains no context", "--contexts east,west")),
    "one and several": (
        "status --context east --contexts west",
        ("pass only one of --context", "--contexts east,west"),
    ),
    "some and all": ("status --all-contexts --contexts west", ("--contexts and --all-contexts", "such as")),
    "a watch": ("status --contexts west -w", ("--watch follows one context", "use --context west")),
    "a timeline": ("status --all-contexts --timeline", ONE_CONTEXT),
    "Events": ("status --all-contexts --events", ONE_CONTEXT),
    "a page": ("status --all-contexts -o html", ("-o html writes one page", "use --context NAME")),
    "CSV": ("cost --all-contexts -o csv", ("-o csv answers for one context", "use --context NAME")),
    "a Prometheus": (
        f"cost --all-contexts --prometheus {NOBODY}",
        ("--prometheus contacts no cluster", "leave out --all-contexts"),
    ),
    "a plan of all": (
        "plan --all-contexts",
        ("--all-contexts does not work with plan, only with status, doctor and cost", "use --context NAME"),
    ),
    "an approval of all": ("approve pool-b --all-contexts", ("does not work with approve", "--context")),
    "a bundle of all": ("support-bundle --all-contexts", ("is for one cluster", "use --context NAME")),
    "a flag of cost that cannot be used": (
        "cost --contexts east --currency euro",
        ("--currency euro", "for example USD"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_before_a_cluster_is_asked(desk: Desk, name: str) -> None:
    typed, told = REFUSED[name]
    desk.write_clusters(east=desk.url, west=desk.url)
    said = wrong(desk, *typed.split())
    assert all(one in said for one in told)
    assert desk.server.asked == []


def test_all_contexts_of_no_kubeconfig_are_not_those_of_a_pod(desk: Desk) -> None:
    desk.kubeconfig.unlink()
    said = desk.type("status", "--all-contexts", environment={"KUBECONFIG": "", "KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert (said.status, said.out) == (FAILED, "")
    assert "there is no kubeconfig at" in said.err


@pytest.mark.parametrize("contexts", [[{"context": {"cluster": "here", "user": "me"}}], []], ids=["no name", "none"])
def test_a_kubeconfig_without_a_context_that_has_a_name_is_named(desk: Desk, contexts: list[Any]) -> None:
    told = json.loads(desk.kubeconfig.read_text())
    desk.kubeconfig.write_text(json.dumps({**told, "contexts": contexts}))
    assert "has no contexts" in wrong(desk, "status", "--all-contexts")


# --- doctor and cost ---------------------------------------------------------------------------------------------


@virtually
async def test_doctor_has_a_row_for_each_finding_and_says_where_the_commands_are() -> None:
    typed = Arguments(verb="doctor", all_contexts=True)
    async with operated(1) as scene:
        cluster = scene.e.cluster
        cluster.patch(NODES, "gpu-1", {"metadata": {"labels": {"nvidia.com/device-plugin.config": "gone"}}})
        sick = await doctor.ask(Session(cluster.client("me"), "context sick", now=virtual_now), typed)
    well, sick = replace(sick, rows=(), remarks=(), context="well"), replace(sick, context="sick")
    told = plain(describe_clusters(doctor.FLEET, [well, sick], PrintOptions()))
    assert sick.status == FAILED
    assert len(sick.data["symptoms"]) > 1
    assert re.search(r"^well +nothing is wrong$", told, re.MULTILINE)
    assert re.search(r"^sick +ERROR +labels of Nodes: .*gone", told, re.MULTILINE)
    assert not lacks(told, "kubectl gpusharing doctor --context sick")


@virtually
async def test_doctor_says_in_which_cluster_nothing_is_installed() -> None:
    cluster = FakeCluster()
    cluster.uninstalled |= {ACCESS_REVIEWS, POLICIES_KIND, GPUNODES_KIND}
    found = await doctor.ask(Session(cluster.client("me"), "context bare", now=virtual_now), Arguments(verb="doctor"))
    told = plain(describe_clusters(doctor.FLEET, [replace(found, context="bare")], PrintOptions()))
    assert not lacks(told, "bare", "not installed")


def test_a_doctor_that_may_read_nothing_is_a_row(desk: Desk) -> None:
    desk.server.refuses_all = (403, 'User "me" cannot do that')
    desk.write_clusters(east=desk.url)
    said = desk.type("doctor", "--all-contexts")
    assert said.status == FAILED
    assert not lacks(said.out, "east no answer", "permission", "context east")


@pytest.fixture
def billed(desk: Desk) -> Iterator[Desk]:
    with fake_prometheus() as east, fake_prometheus() as west:
        for fake in (east, west):
            behind(fake, service("prometheus", app="prometheus-server"))
        west.answers["gpusharing_slice_seconds_total"] = vector(
            ({"node": "gpu-1", "policy": "pool-x", "namespace": "team-b", "resource": "nvidia.com/gpu"}, "43200")
        )
        desk.write_clusters(east=east.url, dead=NOBODY, west=west.url)
        yield desk


def test_the_bills_of_several_clusters_are_one_table(billed: Desk) -> None:
    said = billed.type("cost", "--contexts", "east,west", "--window", "1d")
    assert (said.status, said.err) == (DONE, "")
    assert (
        said.out
        == """\
CLUSTER  NAME    RESOURCE        GPU-HOURS  PART   COST       BASIS
east     team-a  nvidia.com/gpu  12.0       50.0%  USD 24.00  measured
east     (idle)  nvidia.com/gpu  12.0       50.0%  USD 24.00
west     team-b  nvidia.com/gpu  12.0       50.0%  USD 24.00  measured
west     (idle)  nvidia.com/gpu  12.0       50.0%  USD 24.00
east: 24.0 GPU-hours cost USD 48.00: held 24.00, idle 24.00, stranded 0.00, transition 0.00.
east: Service monitoring/prometheus:9090 of context east was queried because its labels are those of a
  Prometheus; use --service to choose another.
west: 24.0 GPU-hours cost USD 48.00: held 24.00, idle 24.00, stranded 0.00, transition 0.00.
west: Service monitoring/prometheus:9090 of context west was queried because its labels are those of a
  Prometheus; use --service to choose another.
"""
    )


def test_a_bill_without_one_of_its_clusters_is_an_error_and_shows_the_others(billed: Desk) -> None:
    said = billed.type("cost", "--all-contexts", "--window", "1d", "-o", "json")
    assert said.status == FAILED
    assert not lacks(said.err, "1 of 3 clusters", "dead", "context dead")
    dead, east, west = read_stream(said.out)
    assert "does not respond" in dead["error"]
    assert [one["context"] for one in (east, west)] == ["east", "west"]
    assert [one["totals"][0]["cost"] for one in (east, west)] == [48.00, 48.00]


def test_a_bill_that_is_not_whole_in_one_cluster_ends_with_2(desk: Desk) -> None:
    with fake_prometheus() as east, fake_prometheus() as west:
        del west.answers["(avg by (policy, currency) (gpusharing_policy_gpu_hourly_price"]
        desk.write_clusters(east=east.url, west=west.url)
        said = desk.type("cost", "--all-contexts", "--window", "1d", "--service", "monitoring/p:9090")
    assert said.status == CHANGES
    assert "west: PARTIAL: no price is known" in said.out

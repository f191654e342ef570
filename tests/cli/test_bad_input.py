"""Where there is nothing to ask, or nothing may be asked: one sentence of each verb, exit status 1, no traceback."""

import pytest
from hack.cluster.process import free_ports
from tests.cli.asking import ask, operated, writes
from tests.cli.desk import GPUNODES, POLICIES, Desk, wrong
from tests.embedded.scene import FULL
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from kubectl_gpusharing.shell.arguments import VERBS, Arguments
from kubectl_gpusharing.shell.troubles import DONE, FAILED, Trouble

ARGUMENTS = {"why": ["gpu-07"], "approve": ["p"], "pause": ["p"], "resume": ["p"]} | {
    verb: ["gpu-07"] for verb in ("retry", "abort", "skip")
}
ASKING = [verb for verb in VERBS if not Arguments(verb=verb).offline]


REFUSALS = {
    "nothing may be read": ((403, 'User "me" cannot do that'), 'User "me" cannot do that'),
    "nobody is known": ((401, "Unauthorized"), "expired or were rejected; log in again"),
}


@pytest.mark.parametrize("verb", ASKING)
@pytest.mark.parametrize(("answer", "told"), REFUSALS.values(), ids=REFUSALS)
def test_there_is_one_sentence_where(desk: Desk, answer: tuple[int, str], told: str, verb: str) -> None:
    desk.server.refuses_all = answer
    assert told in wrong(desk, verb, *ARGUMENTS.get(verb, ()))


STEERED_NODE = ("retry", "abort", "skip")
BEFOREHAND = ("doctor", "free", "import", "support-bundle")


@pytest.mark.parametrize("verb", sorted({*ASKING} - {*STEERED_NODE, *BEFOREHAND}))
def test_where_the_operator_is_not_installed_one_sentence_says_so_for(desk: Desk, verb: str) -> None:
    node = {"metadata": {"name": "gpu-07", "uid": "1", "resourceVersion": "1"}}
    desk.server.lists = {"/api/v1/nodes": [node]}
    assert "helm install gpusharing" in wrong(desk, verb, *ARGUMENTS.get(verb, ()))


@pytest.mark.parametrize("verb", ASKING)
def test_without_a_cluster_there_is_one_sentence_for(desk: Desk, verb: str) -> None:
    desk.kubeconfig.unlink()
    assert "error: there is no kubeconfig at" in wrong(desk, verb, *ARGUMENTS.get(verb, ()))


@pytest.mark.parametrize(
    ("typed", "name", "near"),
    [
        ("status pool-d", "gpusharingpolicies/pool-d", "pool-b"),
        ("plan pool-d", "gpusharingpolicies/pool-d", "pool-b"),
        ("pause pool-d", "gpusharingpolicies/pool-d", "pool-b"),
        ("why gpu-11", "gpunodes/gpu-11", "gpu-1"),
        ("retry gpu-11 --yes", "nodes/gpu-11", "gpu-1"),
    ],
)
@virtually
async def test_a_name_that_is_not_there_is_answered_with_the_nearest_ones(typed: str, name: str, near: str) -> None:
    async with operated(1, serving=FULL) as scene:
        with pytest.raises(Trouble) as raised:
            await ask(scene.e.cluster, *typed.split())
        assert writes(scene.e.cluster) == []
    assert not lacks(str(raised.value), name, "context test", near)


def test_who_may_see_published_nodes_only_gets_the_nearest_of_their_names(desk: Desk) -> None:
    desk.server.refusals = {"/api/v1/nodes": (403, "you may not list nodes")}
    said = wrong(desk, "why", "pool-b-l")
    assert not lacks(said, "gpunodes/pool-b-l", "desk", "pool-b-1")


@pytest.mark.parametrize("verb", STEERED_NODE)
def test_who_may_not_list_nodes_is_still_told_that_there_is_none(desk: Desk, verb: str) -> None:
    desk.server.refusals = {"/api/v1/nodes": (403, "you may not list nodes")}
    told = "error: there is no nodes/gpu-07 in context desk; you are not allowed to list the existing ones\n"
    assert wrong(desk, verb, "gpu-07") == told


@pytest.mark.parametrize(
    ("verb", "what", "kind"),
    [("pause", f"{POLICIES}/pool-b", "gpusharingpolicies"), ("skip", "/api/v1/nodes/pool-b-1", "nodes")],
)
def test_who_may_look_and_not_write_is_told_after_the_preview_that_nothing_was_done(
    desk: Desk, verb: str, what: str, kind: str
) -> None:
    (found,) = [one for one in desk.server.lists[POLICIES] if one["metadata"]["name"] == "pool-b"]
    node = {"metadata": {"name": "pool-b-1", "uid": "1", "resourceVersion": "1"}}
    desk.server.objects = {f"{POLICIES}/pool-b": found, "/api/v1/nodes/pool-b-1": node}
    refused = f'{kind} is forbidden: User "me" cannot patch resource "{kind}"'
    desk.server.refusals = {f"PATCH {what}": (403, refused)}
    said = desk.type(verb, what.rpartition("/")[2], "--yes")
    assert said.status == FAILED
    assert "Done." not in said.out
    assert not lacks(said.err, "permission", "context desk", f"patch {kind}")
    assert refused in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(("words", "right"), [("status", "list gpu"), ("skip gpu-07", "get nodes")])
def test_the_right_that_is_missing_is_named_and_no_role(desk: Desk, words: str, right: str) -> None:
    desk.server.refuses_all = (403, 'User "me" cannot do that')
    said = wrong(desk, *words.split())
    assert f"not allowed to {right}" in said
    assert "ClusterRole" not in said


def test_a_bundle_into_which_nothing_went_is_not_written(desk: Desk) -> None:
    path = desk.folder / "bundle.tar.gz"
    desk.server.refuses_all = (401, "Unauthorized")
    assert "log in again" in wrong(desk, "support-bundle", str(path))
    desk.server.refuses_all = (503, "too much to do")
    assert not lacks(wrong(desk, "support-bundle", str(path)), "context desk", "respond")
    (port,) = free_ports(1)  # where nobody listens
    desk.write_kubeconfig(f"http://127.0.0.1:{port}")
    assert not lacks(wrong(desk, "support-bundle", str(path)), "context desk", "respond")
    assert not path.exists()


def test_a_bundle_into_which_something_went_has_gaps(desk: Desk) -> None:
    desk.server.refusals = {GPUNODES: (403, 'User "me" cannot do that')}
    said = desk.type("support-bundle", str(desk.folder / "bundle.tar.gz"))
    assert (said.status, said.err) == (DONE, "")
    assert not lacks(said.out, "gpunodes.json", "list gpunodes")


@pytest.mark.parametrize("verb", ["cost", "recommend"])
def test_a_namespace_that_would_narrow_nothing_is_refused(desk: Desk, verb: str) -> None:
    assert not lacks(wrong(desk, verb, "-n", "team-a"), "-n", verb, "all namespaces")


@pytest.mark.parametrize("verb", ["import", "support-bundle"])
def test_a_file_of_two_clusters_is_refused(desk: Desk, verb: str) -> None:
    """One would be written over the other, or both applied to one cluster."""
    desk.write_kubeconfig(desk.url, ("east", "west"))
    assert "is for one cluster: use --context" in wrong(desk, verb, "--contexts", "east,west")
    assert [call for call in desk.server.asked if call.startswith("GET /api")] == []

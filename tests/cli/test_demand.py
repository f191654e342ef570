"""Which mode and layout the pods of a namespace ask for (kubectl_gpusharing/usage/advise.py)."""

import json
import re
from typing import Any

import pytest
import yaml
from hack.generate import ROOT
from hack.sim.fakecluster import FakeCluster
from tests.cli.asking import ask, reported
from tests.cli.desk import GPUNODES, Desk
from tests.cli.objects import DECLARED, UNDECLARED, gpunode
from tests.cli.test_advise import CASES as ANSWERED
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.api.names import LABEL_ISOLATION
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.validation import validate_policy
from gpusharing.kube.client import NAMESPACES
from gpusharing.planning.gpus.cards import CARDS
from gpusharing.planning.gpus.geometry import find_misfit, normalize, resource_name
from kubectl_gpusharing.setup.layouts import pick
from kubectl_gpusharing.shell.troubles import DONE, FAILED, Trouble
from kubectl_gpusharing.usage.advise import Advice, Demand, advise_for, read_demand

JSON = dict[str, Any]
H100 = pick("h100-80gb")
PODS = "/api/v1/namespaces/team-a/pods"
CLUSTER_POLICIES = "/apis/nvidia.com/v1/clusterpolicies"


def pod(name: str, asks: dict[str, int], *, qos: str = "Burstable", **more: Any) -> JSON:
    """A pod of team-a; `more`: priority, phase, labels, owner."""
    limits = {f"nvidia.com/{key}": str(count) for key, count in asks.items()}
    owners = [{"kind": more["owner"], "name": "x", "uid": "x", "controller": True}] if "owner" in more else []
    metadata = {"name": name, "namespace": "team-a", "uid": name, "ownerReferences": owners}
    return {
        "metadata": {**metadata, "labels": more.get("labels", {})},
        "spec": {
            "priority": more.get("priority", 0),
            "containers": [{"name": "main", "resources": {"limits": limits}}],
        },
        "status": {"phase": more.get("phase", "Running"), "qosClass": qos},
    }


def demand(*pods: JSON) -> Demand:
    return read_demand("team-a", pods)


def advised(*pods: JSON) -> Advice:
    found = advise_for(demand(*pods), H100)
    assert found is not None
    return found


BY_FLAGS = [advice for advice, *_ in ANSWERED.values()]


def some(count: int, asks: dict[str, int], **more: Any) -> list[JSON]:
    return [pod(f"p-{'-'.join(asks)}-{number}", asks, **more) for number in range(count)]


CASES: dict[str, tuple[list[JSON], str, dict[str, int], tuple[str, ...]]] = {
    "one instance each": (some(4, {"mig-3g.40gb": 1}), "MIG", {"3g.40gb": 2}, ("2 GPUs", "2x3g.40gb", "all")),
    "large and small ones": (
        [*some(2, {"mig-3g.40gb": 1}), *some(6, {"mig-1g.10gb": 1})],
        "MIG",
        {"3g.40gb": 1, "1g.10gb": 4},
        ("2 GPUs", "1x3g.40gb+4x1g.10gb", "all"),
    ),
    "sizes that no layout has at once": (
        [*some(5, {"mig-1g.10gb": 1}), *some(1, {"mig-7g.80gb": 1})],
        "MIG",
        {"1g.10gb": 7},
        ("1 GPU", "7x1g.10gb", "but 7g.80gb"),
    ),
    "two GPUs for one model": (
        [pod("llm-0", {"gpu": 2}), *some(3, {"gpu": 1})],
        "Full",
        {},
        ("llm-0", "more than one GPU"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_pods_that_ask_for(name: str) -> None:
    pods, mode, layout, told = CASES[name]
    found = advised(*pods)
    assert (str(found.mode), dict(found.layout)) == (mode, layout)
    assert not lacks(" ".join(found.why), *told)


UNSERVED = {
    "whole GPUs beside an instance": ([pod("m", {"mig-1g.10gb": 1}), *some(5, {"gpu": 1})], "MIG", "5 nvidia.com/gpu"),
    "shares of GPUs and of instances beside an instance": (
        [pod("m", {"mig-1g.10gb": 1}), *some(9, {"gpu.shared": 1}), pod("x", {"mig-1g.10gb.shared": 1})],
        "MIG",
        "9 nvidia.com/gpu.shared, 1 nvidia.com/mig-1g.10gb.shared",
    ),
    "a size that the layout has no room for": (
        CASES["sizes that no layout has at once"][0],
        "MIG",
        "1 nvidia.com/mig-7g.80gb",
    ),
    "instances beside two GPUs for one model": (
        [pod("llm", {"gpu": 2}), *some(20, {"mig-1g.10gb": 1})],
        "Full",
        "20 nvidia.com/mig-1g.10gb",
    ),
    "nothing else, beside an instance": (some(4, {"mig-3g.40gb": 1}), "MIG", ""),
    "nothing else, beside two GPUs for one model": (CASES["two GPUs for one model"][0], "Full", ""),
}


@pytest.mark.parametrize("name", UNSERVED)
def test_the_advice_names_the_requests_that_its_pool_would_leave_pending(name: str) -> None:
    pods, mode, left = UNSERVED[name]
    found = advised(*pods)
    assert str(found.mode) == mode
    assert ("no place for" in found.but) is bool(left)
    assert not left or not lacks(found.but, "no place", left)
    assert ("some request MIG instances" in found.why[0]) is (bool(left) and mode == "MIG")


@pytest.mark.parametrize("card", [card for card in CARDS if card.profiles], ids=lambda card: card.key)
def test_whatever_instances_are_named_the_policy_is_valid_and_its_layout_fits(card: Any) -> None:
    for one in card.profiles:
        for other in card.profiles:
            names = {resource_name(profile.name).partition("/")[2]: 2 for profile in (one, other)}
            found = advise_for(demand(pod("p", names)), card)
            assert found is not None
            assert isinstance(validate_policy(found.policy("p", "x")), GPUSharingPolicySpec)
            assert not find_misfit(found.layout, card.profiles)
            assert {one.name, other.name} & dict(found.layout).keys()
            assert found.layout == normalize(dict(found.layout))


@pytest.mark.parametrize("found", [BY_FLAGS, [advised(*pods) for pods, *_ in CASES.values()]], ids=["flags", "pods"])
def test_every_page_that_is_cited_is_there_with_its_anchor(found: list[Advice]) -> None:
    assert [why for one in found for why in one.why if "docs/" not in why] == [], "each cites a rule"
    texts = [text for one in found for text in (*one.why, one.but)]
    cited = {page for text in texts for page in re.findall(r"docs/[\w/.#-]+\w", text)}
    assert len(cited) > (4 if found is BY_FLAGS else 3)
    for page in cited:
        name, _, anchor = page.partition("#")
        text = (ROOT / name).read_text()
        assert not anchor or f'id="{anchor}"' in text, page


def test_a_pod_with_two_instances_is_told_that_no_program_spans_them() -> None:
    mig = {"mig-3g.40gb": 2}
    plain, joined = advised(*some(2, {"mig-3g.40gb": 1})), advised(pod("tensor", mig), *some(1, {"mig-3g.40gb": 1}))
    assert "NCCL" not in plain.but
    assert not lacks(joined.but, "tensor requests several instances", "NCCL")
    assert (joined.mode, joined.shares, joined.why[0]) == (plain.mode, plain.shares, plain.why[0].replace("2x", "3x"))


def test_pods_that_are_over_or_ask_for_no_gpu_do_not_count() -> None:
    found = demand(pod("a", {"gpu": 1}, phase="Succeeded"), pod("b", {}), pod("c", {"gpu": 1}))
    assert (found.pods, dict(found.devices)) == (1, {"nvidia.com/gpu": 1})


def test_several_containers_with_one_gpu_each_get_a_share_or_an_instance_each() -> None:
    """NVIDIA/k8s-device-plugin#1690: the plugin is asked for each container by itself."""
    raw = pod("voice", {"gpu": 1})
    raw["spec"]["containers"] *= 2
    found = demand(raw)
    assert advise_for(found, pick("l40s")) is None, "the questions decide, as for a pod with one container"
    assert not lacks(found.sentence, "team-a", "1 pod", "1 with several", "2 nvidia.com/gpu")


@pytest.mark.parametrize(("count", "several"), [(1, []), (2, ["p"])])
def test_an_init_container_gives_its_gpu_back_but_needs_whole_ones_too(count: int, several: list[str]) -> None:
    raw = pod("p", {"gpu": 1})
    raw["spec"]["initContainers"] = [{"name": "warm", "resources": {"limits": {"nvidia.com/gpu": str(count)}}}]
    found = demand(raw)
    assert (found.several, dict(found.devices)) == (several, {"nvidia.com/gpu": count})


@virtually
async def test_a_reported_namespace_of_pods_with_two_containers_is_not_advised_whole_gpus() -> None:
    words = ("advise", "-n", "team-a", "--card", "l40s", "--memory", "3Gi", "-o", "json", "--no-strangers", "--no-bill")
    told = await ask(reported("two-containers"), *words, "--gpu-operator", "v25.10.1")
    bursts = await ask(reported("two-containers"), *words, "--bursts")
    assert (told.data["mode"], bursts.data["mode"]) == ("MPS", "TimeSlicing")


PROMISED = {
    "most are of QoS Guaranteed": (some(2, {"gpu": 1}, qos="Guaranteed"), True),
    "most are of a priority above 0": (some(2, {"gpu": 1}, priority=1000), True),
    "half are of QoS Guaranteed": ([*some(1, {"gpu": 1}, qos="Guaranteed"), pod("x", {"gpu": 1})], False),
    "none is": (some(2, {"gpu": 1}), False),
}


@pytest.mark.parametrize("name", PROMISED)
def test_something_is_promised_where(name: str) -> None:
    pods, promised = PROMISED[name]
    assert demand(*pods).promised is promised


@pytest.mark.parametrize(
    "more",
    [{"owner": "Notebook"}, {"labels": {"notebook-name": "nb"}}, {"labels": {"component": "singleuser-server"}}],
    ids=["a Notebook of Kubeflow", "its label", "a server of JupyterHub"],
)
def test_notebooks_rest_in_between_as(more: dict[str, Any]) -> None:
    assert demand(*some(2, {"gpu": 1}, **more)).bursts
    assert not demand(*some(2, {"gpu": 1}, labels={"component": "worker"})).bursts


def test_what_the_pods_ask_for_is_told_in_a_sentence() -> None:
    found = demand(pod("a", {"gpu": 1}, qos="Guaranteed"), pod("b", {"mig-1g.10gb": 2}, owner="Notebook"))
    assert not lacks(
        found.sentence,
        "team-a",
        "2 pods",
        "1 of QoS Guaranteed",
        "1 notebook",
        "1 nvidia.com/gpu",
        "2 nvidia.com/mig-1g.10gb",
    )


# --- the program -----------------------------------------------------------------------------------------------


def with_h100(name: str) -> JSON:
    raw = gpunode(name)
    raw["status"]["observed"]["models"] = [{"product": "NVIDIA H100 80GB HBM3", "profiles": []}]
    return raw


def test_the_card_is_that_of_the_nodes_the_policy_can_be_applied_and_nothing_else_is_asked_for(desk: Desk) -> None:
    desk.server.lists = {PODS: some(4, {"mig-3g.40gb": 1}), GPUNODES: [with_h100("n-0")]}
    said = desk.type("advise", "-n", "team-a", "-o", "yaml")
    assert (said.status, said.err) == (DONE, "")
    assert set(desk.server.asked) == {f"GET {PODS}", f"GET {GPUNODES}", f"GET {CLUSTER_POLICIES}"}
    assert isinstance(validate_policy(yaml.safe_load(said.out)), GPUSharingPolicySpec)


def test_where_pods_do_not_tell_their_memory_the_flag_does(desk: Desk) -> None:
    desk.server.lists = {PODS: some(2, {"gpu": 1}, qos="Guaranteed")}
    without = desk.type("advise", "-n", "team-a", "--card", "h100-80gb")
    assert (without.status, without.out) == (FAILED, "")
    assert not lacks(without.err, "--memory", "--need", "not all pods")
    said = desk.type("advise", "-n", "team-a", "--card", "h100-80gb", "--memory", "15Gi", "-o", "json")
    told = json.loads(said.out)
    assert (told["mode"], told["layout"]) == ("MIG", {"1g.20gb": 4})
    assert "is promised" in told["why"][0]


def declaring(size: str, count: int) -> list[JSON]:
    pods = some(count, {"gpu": 1})
    for number, raw in enumerate(pods):
        raw["metadata"] |= {"name": f"p-{size}-{number}", "annotations": {"gpusharing.dev/gpu-memory": size}}
    return pods


def test_what_pods_declare_is_taken_with_the_headroom_that_it_has(desk: Desk) -> None:
    desk.server.lists = {PODS: [*declaring("24Gi", 4), *declaring("9Gi", 12)]}
    told = json.loads(desk.type("advise", "-n", "team-a", "--card", "h100-80gb", "-o", "json").out)
    assert (told["mode"], told["layout"], told["gpus"]) == ("MIG", {"3g.40gb": 1, "1g.10gb": 4}, 4)
    assert told["saving"]["gpus"] == 12
    desk.server.lists[PODS] += some(1, {"gpu": 1})
    said = desk.type("advise", "-n", "team-a", "--card", "h100-80gb")
    assert not lacks(said.err, "not all pods", "memory")


@pytest.mark.parametrize("size", UNDECLARED)
def test_an_annotation_that_means_no_memory_is_ignored_and_named(desk: Desk, size: str) -> None:
    desk.server.lists = {PODS: [*declaring("24Gi", 1), *declaring(size, 2)]}
    said = desk.type("advise", "-n", "team-a", "--card", "h100-80gb")
    assert (said.status, said.out) == (FAILED, "")
    assert not lacks(said.err, f"team-a/p-{size}-0", f"'{size}'")
    assert desk.type("advise", "-n", "team-a", "--card", "h100-80gb", "--memory", "15Gi", "--strangers").status == DONE


@pytest.mark.parametrize("size", DECLARED)
def test_a_declared_memory_is_read_as_recommend_reads_it(size: str) -> None:
    assert dict(demand(*declaring(size, 2)).sizes) == {DECLARED[size]: 2}


def test_a_declared_memory_is_for_each_device_as_the_flag_is(desk: Desk) -> None:
    raw = declaring("18Gi", 4)
    for one in raw:
        one["spec"]["containers"] *= 2
    desk.server.lists = {PODS: raw}
    words = ("advise", "-n", "team-a", "--card", "h100-80gb", "--promise", "-o", "json")
    declared, stated = (json.loads(desk.type(*words, *more).out) for more in ((), ("--memory", "15Gi")))
    assert declared["gpus"] == stated["gpus"] == 2


WRONG = {
    "no pod asks for a GPU": ([], [], "no pod in namespace team-a of context desk requests a GPU"),
    "nobody may say which card it is": (some(1, {"gpu": 1}), [], "advise needs --card"),
    "the card has no such instance": (some(1, {"mig-1g.5gb": 1}), ["--card", "h100-80gb"], "does not have nvidia"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence_where(desk: Desk, name: str) -> None:
    pods, flags, told = WRONG[name]
    desk.server.lists = {PODS: pods}
    said = desk.type("advise", "-n", "team-a", *flags)
    assert (said.status, said.out, said.err.count("\n")) == (FAILED, "", 1)
    assert told in said.err


@pytest.mark.parametrize("off", ["migManager", "dcgm"])
def test_what_the_cluster_does_not_run_for_the_mode_is_said_with_the_advice(desk: Desk, off: str) -> None:
    raw = {"metadata": {"name": "cluster-policy"}, "spec": {off: {"enabled": False}}}
    desk.server.lists = {PODS: some(4, {"mig-3g.40gb": 1}), CLUSTER_POLICIES: [raw]}
    said = desk.type("advise", "-n", "team-a", "--card", "h100-80gb", "-o", "json")
    told = json.loads(said.out)["but"]
    assert ("ClusterPolicy migManager.enabled is false" in told) is (off == "migManager")


# --- MPS ---------------------------------------------------------------------------------------------------------

DAEMON_SETS = "/apis/apps/v1/daemonsets"
ISOLATED = ("--no-promise", "--no-strangers", "--no-bill")
NEEDS = ("advise", "-n", "team-a", "--card", "t4", "--memory", "2Gi", "-o", "json", "--no-strangers", "--no-bill")


def mps_daemon(version: str, signalled: str) -> JSON:
    """The GPU Operator's DaemonSet of MPS daemons with this device plugin, whose config-manager looks for a process."""
    containers = [
        {
            "name": "mps-control-daemon-ctr",
            "image": f"example.com/k8s-device-plugin:{version}",
            "command": ["mps-control-daemon"],
        },
        {"name": "config-manager", "env": [{"name": "PROCESS_TO_SIGNAL", "value": signalled}]},
    ]
    owners = [{"kind": "ClusterPolicy", "name": "cluster-policy", "uid": "x"}]
    return {
        "metadata": {"name": "mps", "namespace": "gpu-operator", "uid": "x", "ownerReferences": owners},
        "spec": {"template": {"spec": {"hostPID": True, "containers": containers}}},
    }


DAEMONS: dict[str, tuple[list[JSON], str, str]] = {
    "the daemon looks for a name of another program": (
        [mps_daemon("v0.20.0", "/usr/bin/mps-control-daemon")],
        "TimeSlicing",
        "config-manager looks for a process named /usr/bin/mps-control-daemon",
    ),
    "the daemon is old enough": ([mps_daemon("v0.18.1", "/usr/bin/mps-control-daemon")], "MPS", ""),
    "the name was mended": ([mps_daemon("v0.20.0", "mps-control-daemon")], "MPS", ""),
    "no daemon is seen": ([], "TimeSlicing", "v25.10.2 up to at least v26.7.0"),
}


@pytest.mark.parametrize("name", DAEMONS)
def test_mps_is_advised_by_what_the_operator_itself_would_check_where(desk: Desk, name: str) -> None:
    """NVIDIA/k8s-device-plugin#1105 and #1118."""
    daemons, mode, said = DAEMONS[name]
    desk.server.lists = {PODS: some(2, {"gpu": 1}), DAEMON_SETS: daemons}
    told = json.loads(desk.type(*NEEDS).out)
    assert told["mode"] == mode
    text = " ".join((*told["why"], told["but"]))
    assert said in text
    assert ("MPSNotSwitchable" in text) == (mode == "TimeSlicing")
    assert ("--gpu-operator" in text) == (not daemons)
    assert ("daemonset/mps -c config-manager PROCESS_TO_SIGNAL" in told["but"]) == (
        mode == "TimeSlicing" and bool(daemons)
    )


def test_who_may_not_list_daemonsets_is_not_advised_mps_and_may_name_the_version(desk: Desk) -> None:
    desk.server.lists = {PODS: some(2, {"gpu": 1})}
    desk.server.refusals = {DAEMON_SETS: (403, "no")}
    told = json.loads(desk.type(*NEEDS).out)
    assert (told["mode"], "--gpu-operator VERSION" in " ".join(told["why"])) == ("TimeSlicing", True)
    modes = {one: json.loads(desk.type(*NEEDS, "--gpu-operator", one).out)["mode"] for one in ("v26.3.3", "v25.10.1")}
    assert modes == {"v26.3.3": "TimeSlicing", "v25.10.1": "MPS"}


# --- the guard for tenants ---------------------------------------------------------------------------------------


def labeled(level: str) -> FakeCluster:
    """A reported cluster of pods that are served by time-slicing, in a namespace with the label."""
    cluster = reported("two-containers")
    cluster.add(NAMESPACES, {"metadata": {"name": "team-a", "labels": {LABEL_ISOLATION: level}}})
    return cluster


@virtually
async def test_a_mode_that_the_label_of_the_namespace_excludes_is_not_advised() -> None:
    words = ("advise", "-n", "team-a", "--card", "h100-80gb", "--memory", "3Gi", "--bursts", "-o", "json", *ISOLATED)
    named = (*words, "--gpu-operator", "v25.10.1")
    found = {level: (await ask(labeled(level), *named)).data for level in ("hardware", "memory")}
    assert {level: one["mode"] for level, one in found.items()} == {"hardware": "MIG", "memory": "MPS"}
    assert "the namespace has the label gpusharing.dev/isolation=hardware: memory" in found["hardware"]["why"][0]
    assert found["memory"]["why"][0].startswith("the namespace has the label gpusharing.dev/isolation=memory, and")
    unknown = (await ask(labeled("memory"), *words)).data
    assert unknown["mode"] == "MIG", "the operator may refuse MPS there"


@virtually
async def test_a_label_with_another_value_is_refused_by_name() -> None:
    with pytest.raises(
        Trouble, match=r"team-a has the label gpusharing\.dev/isolation=hard, which is not an isolation level"
    ):
        await ask(labeled("hard"), "advise", "-n", "team-a", "--card", "t4", "--memory", "2Gi")

"""What one node by hand is as a policy (kubectl_gpusharing/setup/handmade.py), and which nodes are alike (kubectl_gpusharing/setup/handmade.py)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hack.cluster.nodes import LABEL_POOL
from tests.build import (
    NOW,
    make_cluster_policy,
    make_gpu,
    make_gpunode,
    make_node,
    make_partial,
    make_snapshot,
    make_stack,
)
from tests.recipes import MIG, PLUGIN

from gpusharing.api.gpunode import PartialInstance
from gpusharing.api.validation import validate_policy
from gpusharing.kube.sourcesettings import NO_MAPS, AdminMaps
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.nvidia import PlainStackView, StackView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.nodesymptoms import PluginEntries
from kubectl_gpusharing.setup.handmade import MAX_NAMES, Handmade, find_handmade, find_inexpressible, propose
from kubectl_gpusharing.setup.importing import AdminConfigMaps, find_steps, named_maps

STATE = "nvidia.com/mig.config.state"


# --- one node -------------------------------------------------------------------------------------------------------


def read(
    layout: Layout | None = None, entry: str = "version: v1", label: str = "all-disabled", **more: Any
) -> Handmade | str:
    """What a node with two such GPUs is, whose device plugin goes by this entry."""
    gpus = more.pop("gpus", (make_gpu(layout=layout), make_gpu(1, layout=more.pop("second", layout))))
    observed = make_gpunode(gpus=gpus).observed
    assert observed is not None
    stack: StackView = make_stack(plugin_configs={"theirs": entry}, **more)
    labels = {PLUGIN: "theirs", MIG: label, STATE: "success"} if label else {PLUGIN: "theirs"}
    plugin = PluginEntries("time-slicing-config", "gpu-operator", {"theirs": entry})
    node = make_node(labels=labels)
    snapshot = make_snapshot([node], gpunodes=[make_gpunode(gpus=gpus)], stack=stack)
    return find_handmade(node, observed, snapshot, plugin)


SEVEN: Layout = (("1g.10gb", 7),)
HALVES: Layout = (("3g.40gb", 2),)
ALL = "all-1g.10gb"
ONE_DIVIDED: dict[str, Any] = {
    "layout": SEVEN,
    "second": None,
    "label": "own",
    "admin_mig_file": "mig-configs: {own: [{devices: [0], mig-enabled: true, mig-devices: {1g.10gb: 7}},"
    " {devices: [1], mig-enabled: false}]}",
}
UNEQUAL: dict[str, Any] = {
    "layout": (("3g.40gb", 1), ("1g.10gb", 4)),
    "label": "own",
    "admin_mig_file": "mig-configs: {own: [{devices: all, mig-enabled: true, mig-devices: {3g.40gb: 1, 1g.10gb: 4}}]}",
}


def shared(counts: Mapping[str, int], kind: str = "timeSlicing", more: str = "") -> str:
    """An entry with strategy mixed that shares these resources, named without `nvidia.com/`."""
    rows = ", ".join(f"{{name: nvidia.com/{name}, replicas: {count}}}" for name, count in counts.items())
    return f"version: v1\nflags: {{migStrategy: mixed}}\nsharing: {{{kind}: {{{more}resources: [{rows}]}}}}"


SAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "whole GPUs": ({}, {"mode": "Full"}),
    "shares": ({"entry": shared({"gpu": 4})}, {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}),
    "shares under another name that nobody gets two of": (
        {"entry": shared({"gpu": 4}, more="renameByDefault: true, failRequestsGreaterThanOne: true, ")},
        {
            "mode": "TimeSlicing",
            "timeSlicing": {"replicas": 4, "renameByDefault": True, "failRequestsGreaterThanOne": True},
        },
    ),
    "MPS": ({"entry": shared({"gpu": 8}, "mps")}, {"mode": "MPS", "mps": {"replicas": 8}}),
    "a configuration that NVIDIA names": (
        {"layout": SEVEN, "label": ALL, "entry": "version: v1\nflags: {migStrategy: single}"},
        {"mode": "MIG", "mig": {"strategy": "single", "config": ALL}},
    ),
    "GPUs that differ": (
        {**ONE_DIVIDED, "entry": "version: v1\nflags: {migStrategy: mixed}"},
        {
            "mode": "MIG",
            "mig": {
                "strategy": "mixed",
                "layouts": [{"devices": [0], "profiles": {"1g.10gb": 7}}, {"devices": [1], "profiles": {}}],
            },
        },
    ),
}


@pytest.mark.parametrize("name", SAYS)
def test_a_policy_says(name: str) -> None:
    given, spec = SAYS[name]
    found = read(**given)
    assert isinstance(found, Handmade), found
    assert found.spec == spec


UNSAYABLE: dict[str, tuple[dict[str, Any], str]] = {
    "MIG that is served as whole GPUs": ({"layout": SEVEN, "label": ALL}, "migStrategy none"),
    "two numbers of shares": (
        {**UNEQUAL, "entry": shared({"mig-1g.10gb": 2, "mig-3g.40gb": 3})},
        "(nvidia.com/mig-1g.10gb: 2, nvidia.com/mig-3g.40gb: 3), but a policy sets one count",
    ),
    "shares of some resources": (
        {**ONE_DIVIDED, "entry": shared({"gpu": 4})},
        "leaves nvidia.com/mig-1g.10gb whole",
    ),
    "MPS on MIG": (
        {"layout": SEVEN, "label": ALL, "entry": shared({"mig-1g.10gb": 2}, "mps")},
        "does not support",
    ),
    "MPS that grants two shares": (
        {"entry": shared({"gpu": 8}, "mps", "failRequestsGreaterThanOne: false, ")},
        "always rejects requests",
    ),
    "instances that nos made": (
        {"layout": SEVEN, "label": "", "entry": "version: v1\nflags: {migStrategy: mixed}"},
        "Run: kubectl label node gpu-07 --overwrite nvidia.com/mig.config=all-1g.10gb",
    ),
    "instances that nos made and NVIDIA has no name for": (
        {"layout": (("3g.40gb", 1), ("1g.10gb", 4)), "label": ""},
        "Set it to an entry that has this layout",
    ),
    "a configuration that nobody knows": (
        {"label": "gone"},
        "mig.config is gone, of which it is unknown what it means, but its GPUs have 1x full: mig-manager would change them at its next start. Run: kubectl"
        " label node gpu-07 --overwrite nvidia.com/mig.config=all-disabled",
    ),
    "an entry that cannot be read": (
        {"entry": "["},
        "ConfigMap time-slicing-config, entry theirs, the device plugin cannot read it: it is not YAML (line 1: ",
    ),
    "one replica": (
        {"entry": shared({"gpu": 1})},
        "ConfigMap time-slicing-config, entry theirs, sharing.timeSlicing.resources[0].replicas: the device plugin"
        " rejects 1: it expects a whole number of at least 2",
    ),
    "a MIG instance without a compute instance": (
        {"gpus": (make_partial(PartialInstance(2, "3g.40gb"), layout={"3g.40gb": 1}),), "label": "all-3g.40gb"},
        "no policy can want what its GPUs have: GPU instance 2 (3g.40gb) of GPU 0 has no compute instance",
    ),
    "more shares than a policy may have": (
        {"entry": shared({"gpu": 16384})},
        "its device plugin uses too many replicas (nvidia.com/gpu: 16384); a policy allows 2 to 1024",
    ),
}


LENIENT = "failRequestsGreaterThanOne: false, "
WHOLE = shared({"gpu": 2}, "mps").replace("mixed", "none")
FIRST: dict[str, tuple[dict[str, Any], str]] = {  # of several objections the first is named
    "whole GPUs before MPS on MIG": ({"layout": SEVEN, "label": ALL, "entry": WHOLE}, "migStrategy none"),
    "numbers that differ before too many": (
        {**UNEQUAL, "entry": shared({"mig-1g.10gb": 2, "mig-3g.40gb": 16384})},
        "different replica counts",
    ),
    "too many before MPS that grants two": ({"entry": shared({"gpu": 16384}, "mps", LENIENT)}, "too many"),
    "MPS on MIG before MPS that grants two": (
        {"layout": SEVEN, "label": ALL, "entry": shared({"mig-1g.10gb": 2}, "mps", LENIENT)},
        "does not support",
    ),
}


@pytest.mark.parametrize(("given", "words"), [*UNSAYABLE.values(), *FIRST.values()], ids=[*UNSAYABLE, *FIRST])
def test_no_policy_says(given: dict[str, Any], words: str) -> None:
    found = read(**given)
    assert isinstance(found, str)
    assert words in found


PLAIN = replace(make_cluster_policy(), plain=PlainStackView("nvdp", "nvdp"))
ENTRIES: dict[str, tuple[dict[str, str], str]] = {
    "the only one": ({"any": shared({"gpu": 4})}, "nvidia.com/device-plugin.config=any"),
    "that called default": ({"default": shared({"gpu": 4}), "other": "version: v1"}, "TimeSlicing"),
    "none of several": ({"any": shared({"gpu": 4}), "other": "version: v1"}, "Full"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_without_a_label_nvidias_chart_takes_of_the_entries(name: str) -> None:
    entries, words = ENTRIES[name]
    observed = make_gpunode().observed
    assert observed is not None
    stack = make_stack(cluster_policy=PLAIN, plugin_configs=entries, admin_plugin_configs=entries)
    snapshot = make_snapshot([make_node()], stack=stack)
    found = find_handmade(make_node(), observed, snapshot, PluginEntries("theirs", "gpu-operator", entries))
    assert words in (found if isinstance(found, str) else found.spec["mode"])


def test_what_a_policy_cannot_say_is_named_by_its_path() -> None:
    text = "version: v1\nflags: {migStrategy: mixed, plugin: {passDeviceSpecs: true}}\nresources: {gpus: []}"
    assert find_inexpressible(text) == ("flags.plugin.passDeviceSpecs", "resources.gpus")
    assert find_inexpressible("[") == ()
    assert find_inexpressible(text + "\nsharing: {renameByDefault: true}") == find_inexpressible(text), (
        "the plugin ignores it"
    )
    found = read(entry=text)
    assert isinstance(found, Handmade)
    assert found.inexpressible == ("flags.plugin.passDeviceSpecs", "resources.gpus")


# --- groups and selectors --------------------------------------------------------------------------------------


def labelled(**labels: dict[str, str]) -> dict[str, NodeView]:
    return {
        name: replace(make_node(name), labels={"kubernetes.io/hostname": name, **own}) for name, own in labels.items()
    }


def listed(*hosts: str, operator: str = "In") -> dict[str, Any]:
    row = {"key": "kubernetes.io/hostname", "operator": operator, "values": list(hosts)}
    return {"matchExpressions": [row]}


def handmade(name: str, **more: Any) -> Handmade:
    return Handmade(name, ("NVIDIA-H100-80GB-HBM3",), 8, more.get("spec", {"mode": "Full"}), "1x full")


SLICES = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}


def selectors(members: list[str], nodes: dict[str, NodeView]) -> list[Any]:
    return [one.selector for one in propose(map(handmade, members), nodes)[0]]


POOL, WORKERS = "cloud.google.com/gke-nodepool", "ibm-cloud.kubernetes.io/worker-pool"
LABELS: dict[str, tuple[dict[str, NodeView], tuple[str, str] | None]] = {
    "a pool's name": (labelled(a={POOL: "x"}, b={POOL: "x"}, c={POOL: "y"}), (POOL, "x")),
    "a pool's name before any other": (
        labelled(a={POOL: "x", "a.example/b": "1"}, b={POOL: "x", "a.example/b": "1"}), (POOL, "x")),
    "the pool's name before its number": (
        labelled(a={WORKERS + "-id": "7f", WORKERS + "-name": "x"}, b={WORKERS + "-id": "7f", WORKERS + "-name": "x"}),
        (WORKERS + "-name", "x")),
    "the label that we tell people to use before their cloud's": (
        labelled(a={POOL: "x", LABEL_POOL: "y"}, b={POOL: "x", LABEL_POOL: "y"}), (LABEL_POOL, "y")),
    "no label that a node without GPUs carries too": (labelled(a={POOL: "x"}, b={POOL: "x"}, cpu={POOL: "x"}), None),
    "no label that a change rewrites": (
        labelled(a={"nvidia.com/gpu.sharing-strategy": "mps"}, b={"nvidia.com/gpu.sharing-strategy": "mps"}), None),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_nodes_are_told_apart_by(name: str) -> None:
    nodes, label = LABELS[name]
    nodes = {key: replace(one, resources={}) if key == "cpu" else one for key, one in nodes.items()}
    assert selectors(["a", "b"], nodes) == ([{"matchLabels": dict([label])}] if label else [listed("a", "b")])


POOLS = (
    "agentpool",
    "kubernetes.azure.com/agentpool",
    "eks.amazonaws.com/nodegroup",
    "alpha.eksctl.io/nodegroup-name",
    "karpenter.sh/nodepool",
    "kops.k8s.io/instancegroup",
    "doks.digitalocean.com/node-pool",
    "worker.gardener.cloud/pool",
    "example.com/gpu-pool",
)
CHANCE = (
    "topology.kubernetes.io/zone",
    "topology.ebs.csi.aws.com/zone",
    "topology.gke.io/zone",
    "csi.oci/zone",
    "topology.example.com/pool",
    "karpenter.sh/capacity-type",
    "karpenter.sh/nodepool-hash",
    "eks.amazonaws.com/nodegroup-image",
    "cluster.x-k8s.io/machine-name",
    "node.openshift.io/os_id",
    "example.com/address-pool",
    "example.com/team",
    "hostname",
)


@pytest.mark.parametrize("key", [*POOLS, *CHANCE])
def test_only_a_label_that_names_a_pool_is_a_selector(key: str) -> None:
    """What joins tomorrow with any other label may be meant for something else, and would be repartitioned."""
    nodes = labelled(a={key: "x"}, b={key: "x"}, c={})
    by_label = [{"matchLabels": {key: "x"}}]
    assert selectors(["a", "b"], nodes) == (by_label if key in POOLS else [listed("a", "b")])


def test_unlike_nodes_get_policies_of_their_own_and_names_that_nobody_has() -> None:
    nodes = labelled(a={POOL: "Big GPUs"}, b={}, c={})
    found, unnamed = propose([handmade("c"), handmade("b", spec=SLICES), handmade("a")], nodes, ["h100-80gb-full"])
    assert [(one.name, one.nodes) for one in found] == [
        ("big-gpus", ("a",)),
        ("h100-80gb-full-2", ("c",)),
        ("h100-80gb-time-slicing", ("b",)),
    ]
    assert unnamed == ()


def test_pools_in_the_same_state_stay_apart() -> None:
    nodes = labelled(a={POOL: "x"}, b={POOL: "y"}, c={POOL: "z"}, d={POOL: "x"})
    found, unnamed = propose(map(handmade, "abcd"), nodes)
    assert [(one.nodes, one.selector) for one in found] == [
        (("a", "d"), {"matchLabels": {POOL: "x"}}),
        (("b",), {"matchLabels": {POOL: "y"}}),
        (("c",), {"matchLabels": {POOL: "z"}}),
    ]
    assert unnamed == ()


def test_the_odd_nodes_of_a_pool_are_excluded_by_name_and_listed_by_name() -> None:
    nodes = labelled(a={POOL: "x"}, b={POOL: "x"}, c={POOL: "x"}, broken={POOL: "x"})
    found, _ = propose([handmade("a"), handmade("b"), handmade("c", spec=SLICES)], nodes)
    assert [one.selector for one in found] == [listed("a", "b"), listed("c")], "two are not more than two"
    more = nodes | labelled(d={POOL: "x"})
    found, _ = propose([*map(handmade, "abd"), handmade("c", spec=SLICES)], more)
    assert {one.name: one.selector for one in found} == {
        "pool-x": {"matchLabels": {POOL: "x"}, **listed("broken", "c", operator="NotIn")},
        "pool-x-2": listed("c"),
    }


def test_of_a_thousand_labelled_nodes_none_is_left_out_for_want_of_a_label() -> None:
    names = [f"n-{number:04}" for number in range(1000)]
    nodes = labelled(**{name: {POOL: "x"} for name in names})
    half = [handmade(name, spec=SLICES) if index % 2 else handmade(name) for index, name in enumerate(names)]
    found, unnamed = propose(half, nodes)
    assert unnamed == ()
    assert sorted(name for one in found for name in one.nodes) == names
    assert max(len(one.nodes) for one in found) == MAX_NAMES
    nameless = {name: replace(node, labels={**node.labels, POOL: ""}) for name, node in nodes.items()}
    assert len(propose(half, nameless)[0]) == len(found), "a value that is empty is one all the same"
    unlabelled = labelled(**{name: {} for name in names})
    assert propose(half, unlabelled) == ((), tuple(names)), "they are to be labelled"


@pytest.mark.parametrize("spoiled", ["c", "broken"])
def test_a_node_without_a_host_name_of_its_own_is_neither_listed_nor_excluded(spoiled: str) -> None:
    nodes = labelled(a={POOL: "x"}, b={POOL: "x"}, c={POOL: "x"}, broken={POOL: "x"})
    nodes[spoiled] = replace(nodes[spoiled], labels={POOL: "x"})
    found, unnamed = propose(map(handmade, "abc"), nodes)
    if spoiled == "broken":
        assert ([one.selector for one in found], unnamed) == ([listed("a", "b", "c")], ())
    else:
        assert [one.selector for one in found] == [{"matchLabels": {POOL: "x"}, **listed("broken", operator="NotIn")}]


def test_a_policy_is_named_after_its_pool() -> None:
    nodes = labelled(a={POOL: "Big GPUs"}, b={LABEL_POOL: "b"})
    spec = {"mode": "MPS", "mps": {"replicas": 4}}
    found, _ = propose([handmade("a"), handmade("b", spec=spec)], nodes)
    assert [one.name for one in found] == ["big-gpus", "pool-b"]


def test_a_second_policy_of_a_pool_with_a_long_name_has_a_name_that_the_crd_accepts() -> None:
    pool = f"{'x' * 47}-y-{'z' * 10}"
    nodes = labelled(a={LABEL_POOL: pool}, b={LABEL_POOL: pool}, c={LABEL_POOL: pool})
    spec = {"mode": "MPS", "mps": {"replicas": 4}}
    found, _ = propose([handmade("a"), handmade("b"), handmade("c", spec=spec)], nodes)
    assert {one.name for one in found} == {f"{'x' * 47}-y", f"{'x' * 47}-2"}
    assert not any(isinstance(validate_policy(one.manifest), tuple) for one in found)


def test_nodes_that_nothing_tells_apart_are_not_proposed() -> None:
    nodes = {name: replace(make_node(name), labels={}) for name in ("a", "b")}
    assert propose([handmade("a")], nodes) == ((), ("a",))


def test_the_name_that_the_crd_makes_up_is_nobodys_choice() -> None:
    policy = make_cluster_policy("theirs", mig_config_name="default-mig-parted-config")
    snapshot = make_snapshot(stack=make_stack(cluster_policy=policy))
    assert named_maps(snapshot) == AdminMaps("theirs", "")


def test_between_the_merge_and_the_pointer_somebody_waits_for_the_entries() -> None:
    snapshot = make_snapshot(stack=make_stack(cluster_policy=make_cluster_policy("theirs")))
    mig = "mig-configs: {all-disabled: [{devices: all, mig-enabled: false}], own: [{devices: all, mig-enabled: false}]}"
    entries = {"default": "version: v1", "ts.4": "version: v1"}
    given = AdminConfigMaps(PluginEntries("theirs", "gpu-operator", entries), "parted", mig)
    merge, wait, point = (command for _, command in find_steps(snapshot, given, NO_MAPS, NOW))
    assert merge.startswith("helm upgrade")
    assert wait == (
        "until kubectl get configmap gpusharing-device-plugin -n gpu-operator -o jsonpath='{.data.ts\\.4}' | grep -q ."
        " && kubectl get configmap gpusharing-mig-parted -n gpu-operator -o jsonpath='{.data.config\\.yaml}'"
        " | grep -qF own:; do sleep 2; done"
    )
    assert point.startswith("kubectl patch clusterpolicy")
    waiting, _ = (command for _, command in find_steps(snapshot, given, AdminMaps("theirs", "parted"), NOW))
    assert waiting == wait, "the chart merges them, and the operator has not written them yet"

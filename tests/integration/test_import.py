"""A fleet that somebody configured by hand, taken over by `kubectl gpusharing import | kubectl apply -f -`.
The other fleets: tests/cli/test_import.py."""

import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from hack.cluster import install
from hack.cluster.api import Object
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.nodes import create_nodes, node_manifest
from hack.cluster.process import wait_until
from tests.embedded.oracle import wanted_resources
from tests.integration import test_output as output
from tests.integration.nodelog import audit_policy, read_node_writes
from tests.integration.product import (
    AGENT_ACCOUNT,
    CLUSTER_POLICY,
    FACTOR,
    GPUNODES,
    NODES,
    POLICIES,
    SECONDS,
    SLICED,
    Product,
)
from tests.recipes import DOCUMENTED, H100, MIG, Recipe

from gpusharing.planning.wanted.migfile import MIG_KEY
from hack import launch

CLUSTER_POLICIES = CLUSTER_POLICY.rpartition("/")[0]
CONFIG_MAPS = "/api/v1/namespaces/gpu-operator/configmaps"
OURS = ("gpusharing-device-plugin", "gpusharing-mig-parted")
OUR_LABELS = {"gpusharing.dev/mode", "gpusharing.dev/policy"}
GFD_STARTED = "nvidia.com/gfd.timestamp"
GPUS = 2
person = output.person


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """NVIDIA's namespace and kinds, and nothing of ours; no ClusterPolicy yet."""
    directory = tmp_path_factory.mktemp("import")
    flags = (f"--audit-policy-file={audit_policy(directory)}",)
    with ControlPlane(options=Options(audit=True, apiserver_flags=flags)) as plane:
        install.install_gpu_operator(plane.api, cluster_policy=False)
        yield Product(plane, directory)


@pytest.fixture(scope="module")
def beforehand(bare: Product) -> dict[str, str]:
    """What `import`, `doctor` and `plan` say of two pools in the same state before anything of ours is there, to a user who may look at Nodes and at NVIDIA's kinds."""
    policy = {"metadata": {"name": "cluster-policy"}, "spec": DOCUMENTED.cluster_policy}
    bare.api.create(CLUSTER_POLICIES, {"apiVersion": "nvidia.com/v1", "kind": "ClusterPolicy", **policy})
    for name, data in DOCUMENTED.config_maps.items():
        bare.api.create(CONFIG_MAPS, {"metadata": {"name": name}, "data": dict(data)})
    early = ("early", "late")
    create_nodes(bare.api, [node_manifest(pool, product=H100, gpus=GPUS, pool=pool) for pool in early])
    kinds = {"": ["nodes"], "nvidia.com": ["clusterpolicies", "gpuclusters"]}
    rules = [{"apiGroups": [group], "resources": names, "verbs": ["list", "watch"]} for group, names in kinds.items()]
    role = {"metadata": {"name": "newcomer"}, "rules": rules}
    bare.api.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", role)
    newcomer = output.account(bare, "newcomer", "view", "newcomer")
    said = {verb: output.plugin(newcomer, verb) for verb in ("import", "doctor")}
    said["plan"] = output.plugin(newcomer, "plan", "-f", "-", stdin=output.manifest("early", "early", SLICED))
    maps = (f"{CONFIG_MAPS}/{name}" for name in DOCUMENTED.config_maps)
    bare.remove(*(f"{NODES}/{pool}" for pool in early), CLUSTER_POLICY, *maps)
    return said


@pytest.fixture(scope="module")
def product(bare: Product, beforehand: dict[str, str]) -> Iterator[Product]:
    plane = bare.plane
    launch.install_chart(plane.kubeconfig, "--set", "operator.replicaCount=0")
    options = ("--agent-interval", "1", *AGENT_ACCOUNT)
    with launch.node_software(plane.kubeconfig, bare.directory, FACTOR, *options):
        yield bare


class Fleet:
    def __init__(self, product: Product, recipe: Recipe) -> None:
        self.product, self.recipe = product, recipe
        self.began = product.mark()
        self.pools = {f"{pool}-{n}": one for pool, one in recipe.pools.items() for n in range(one.count)}

    def build(self) -> None:
        """ClusterPolicy, ConfigMaps and Nodes, as somebody applied them; ends when NVIDIA's programs rest."""
        api = self.product.api
        policy = {"metadata": {"name": "cluster-policy"}, "spec": self.recipe.cluster_policy}
        api.create(CLUSTER_POLICIES, {"apiVersion": "nvidia.com/v1", "kind": "ClusterPolicy", **policy})
        for name, data in self.recipe.config_maps.items():
            api.create(CONFIG_MAPS, {"metadata": {"name": name}, "data": dict(data)})
        create_nodes(api, [self._manifest(name) for name in self.pools])
        self.wait_settled()
        for name, pool in self.pools.items():
            if pool.forgotten:
                gone = {MIG: None, f"{MIG}.state": None}
                api.merge_patch(f"{NODES}/{name}", {"metadata": {"labels": gone}})

    def _manifest(self, name: str) -> Object:
        pool = self.pools[name]
        labels = {"gpusharing.dev/pool": name.partition("-")[0]} if not pool.forgotten else {}
        return node_manifest(name, product=pool.product, gpus=GPUS, labels={**labels, **pool.labels})

    def wait_settled(self) -> None:
        """Until every node offers what its pool is, and mig-manager rests."""
        for name, pool in self.pools.items():
            wanted = wanted_resources(dict(pool.spec), [pool.product] * GPUS)
            wait_until(partial(self._offers, name, wanted), SECONDS, f"{name} to offer {wanted}")
            wait_until(partial(self._rests, name), SECONDS, f"mig-manager on {name} to rest")

    def _rests(self, node: str) -> bool:
        return self.of_node(node).get(f"{MIG}.state", "success") == "success"

    def of_node(self, node: str) -> dict[str, str]:
        found: dict[str, str] = self.product.api.get(f"{NODES}/{node}")["metadata"]["labels"]
        return found

    def starts(self) -> dict[str, str]:
        return {name: self.of_node(name).get(GFD_STARTED, "") for name in self.pools}

    def wait_anew(self, before: dict[str, str]) -> None:
        """Until NVIDIA's operands, GFD the last of them, were started anew on every node, and serve again."""
        wait_until(
            lambda: all(before[name] != now for name, now in self.starts().items()), SECONDS, "GFD to start anew"
        )
        self.wait_settled()

    def _offers(self, node: str, wanted: dict[str, int]) -> bool:
        found = self.product.api.get(f"{NODES}/{node}")["status"]["allocatable"]
        return wanted == {key: int(n) for key, n in found.items() if key.startswith("nvidia.com/") and n != "0"}

    def wait_seen(self) -> None:
        for name in self.pools:
            wait_until(partial(self._is_seen, f"{GPUNODES}/{name}"), SECONDS, f"the agent of {name}")

    def _is_seen(self, path: str) -> bool:
        return self.product.exists(path) and "observed" in self.product.api.get(path).get("status", {})

    def labels(self) -> dict[str, dict[str, str]]:
        return {
            name: {
                key: value for key, value in self.of_node(name).items() if key not in OUR_LABELS and key != GFD_STARTED
            }
            for name in self.pools
        }

    def remove(self) -> None:
        api = self.product.api
        for path in (POLICIES, GPUNODES, NODES):
            self.product.remove(*(f"{path}/{one['metadata']['name']}" for one in api.list(path)))
        wait_until(lambda: api.list(POLICIES) == [], SECONDS, "the policies to go")
        self.product.remove(CLUSTER_POLICY, *(f"{CONFIG_MAPS}/{name}" for name in (*self.recipe.config_maps, *OURS)))


def commands(said: str, begins: str) -> list[list[str]]:
    """The commands in the comments of what was printed that begin so."""
    lines = (line for line in said.splitlines() if begins in line and line.startswith("#"))
    return [shlex.split(line[line.index(begins) :]) for line in lines]


@pytest.mark.parametrize("verb", ["import", "doctor", "plan"])
def test_before_the_installation_it_is_said_what_there_is(beforehand: dict[str, str], verb: str) -> None:
    output.same_as_golden(f"{verb}-before-installation", beforehand[verb])


def test_the_commands_that_import_prints_take_a_fleet_over(product: Product, person: Path) -> None:
    fleet = Fleet(product, DOCUMENTED)
    try:
        fleet.build()
        with product.operator("before"):
            fleet.wait_seen()
            said = output.plugin(person, "import")
            output.same_as_golden("import-documented", said)
            for _, *command in commands(said, "kubectl label node"):
                product.plane.kubectl(*command)
                wait_labelled(product, command[2])
        values = ",".join(command[-1] for command in commands(said, "helm upgrade"))
        launch.install_chart(product.plane.kubeconfig, "--set", f"operator.replicaCount=0,{values}".rstrip(","))
        with product.operator("after", **settings(values)):
            wait_until(lambda: merged(product, fleet.recipe, values), SECONDS, "the entries to be merged")
            before = fleet.starts()
            ((_, *command),) = commands(said, "kubectl patch clusterpolicy")
            product.plane.kubectl(*command)
            fleet.wait_anew(before)
            take_over(product, fleet, person)
    finally:
        fleet.remove()


def take_over(product: Product, fleet: Fleet, person: Path) -> None:
    """`import | plan` has nothing to change. `import | apply`: all Synced, one PATCH for each Node with labels of ours alone, and nobody is disturbed."""
    said = output.plugin(person, "import", errors=False)
    assert said.endswith("exit status 0\n"), said
    proposed = said.removesuffix("exit status 0\n")
    planned = output.plugin(person, "plan", "-f", "-", stdin=proposed)
    assert planned.endswith("exit status 0\n"), planned
    assert planned.count("nothing to change") == len(fleet.recipe.pools)
    assert "stays as it is" not in planned
    before, since = fleet.labels(), product.mark()
    product.plane.kubectl("apply", "-f", "-", stdin=proposed)
    policies = [str(one["metadata"]["name"]) for one in product.api.list(POLICIES)]
    assert len(policies) == len(fleet.recipe.pools)
    for one in policies:
        launch.wait_ready(product.api, one)
    assert fleet.labels() == before
    assert product.writes("pods/eviction", since=since) == []
    product.wait_logged()
    written = read_node_writes(product.plane.audit_log, fleet.began)
    assert {node: len(found) for node, found in written.items()} == dict.fromkeys(fleet.pools, 1)
    for (write,) in written.values():
        assert write.body["metadata"]["labels"].keys() == OUR_LABELS
        assert "spec" not in write.body
    assert {one["status"]["summary"]["status"] for one in product.api.list(POLICIES)} == {"Synced"}


VALUES = {"adminPluginConfigMap": "admin_plugin_config_map", "adminMigConfigMap": "admin_mig_config_map"}
"""The chart's values as the operator's settings: no pod of it runs here."""


def settings(values: str) -> dict[str, str]:
    pairs = (one.removeprefix("gpuOperator.").split("=") for one in filter(None, values.split(",")))
    return {VALUES[key]: value for key, value in pairs}


def merged(product: Product, recipe: Recipe, values: str) -> bool:
    """Our ConfigMaps have the entries of the admin's; that for mig-manager is written last."""
    if not all(product.exists(f"{CONFIG_MAPS}/{name}") for name in OURS):
        return False
    plugin, mig = (product.api.get(f"{CONFIG_MAPS}/{name}").get("data", {}) for name in OURS)
    wanted = recipe.config_maps.get(recipe.cluster_policy["devicePlugin"]["config"].get("name", ""), {})
    theirs = settings(values).get(VALUES["adminMigConfigMap"], "")
    entries = yaml.safe_load(recipe.config_maps[theirs][MIG_KEY])["mig-configs"] if theirs else {}
    held = (yaml.safe_load(mig.get(MIG_KEY, "")) or {}).get("mig-configs", {})
    return bool(plugin.keys() >= wanted.keys() and held.keys() >= entries.keys())


def wait_labelled(product: Product, node: str) -> None:
    def done() -> bool:
        found = product.api.get(f"{NODES}/{node}")["metadata"]["labels"].get(f"{MIG}.state")
        return bool(found == "success")

    wait_until(done, SECONDS, f"mig-manager on {node}")

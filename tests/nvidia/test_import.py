"""Fleets that somebody configured by hand, on NVIDIA's own programs: they are the judges of `import | apply`.
The recipes are those of rung 1 (tests/cli/test_import.py). SIMULATED: the GPUs, the kubelets, Node Feature Discovery, and the GPU Operator, which makes its operands' pods anew when ClusterPolicy changes and ships mig-parted entries of its own."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from hack.cluster.audit import read_requests, wait_logged
from hack.cluster.nodes import LABEL_POOL
from hack.nvidia.loop import OPERATOR, WAITS, NvidiaLoop, is_cordoned, mig_state
from hack.nvidia.operands import SELECTORS
from tests.embedded.oracle import wanted_resources
from tests.integration.test_import import VALUES, commands, settings
from tests.integration.test_output import plugin
from tests.nvidia.conftest import short_loop
from tests.recipes import BY_DEFAULT, BY_ENTRY, DOCUMENTED, H100, L40S, MIG, NOS, Recipe, RecipePool, parted

from gpusharing.planning.stack.effects import UPSTREAM_MIG_CONFIG
from gpusharing.planning.wanted.migfile import MIG_KEY
from hack import launch

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]

OPERANDS = "/api/v1/namespaces/gpu-operator"
CLUSTER_POLICIES = "/apis/nvidia.com/v1/clusterpolicies"
CLUSTER_POLICY = f"{CLUSTER_POLICIES}/cluster-policy"
POLICIES = "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies"
NODES = "/api/v1/nodes"
MODELS = {H100: "h100-80gb", L40S: "l40s"}
SHIPPED = {"all-1g.10gb": {"1g.10gb": 7}, "all-1g.20gb": {"1g.20gb": 4}, "all-3g.40gb": {"3g.40gb": 2}}
"""Of the entries that the GPU Operator itself brings those that recipes name (its assets/state-mig-manager)."""
FLEETS = {"documented": DOCUMENTED, "by-default": BY_DEFAULT, "by-entry": BY_ENTRY, "nos": NOS}
IN_CI = ("documented", "nos")
"""The fleets that `.ci/run` takes over: the quickest one that a person configured, and the one of another program."""
WELL = "exit status 0\n"


@dataclass
class Fleet:
    loop: NvidiaLoop
    recipe: Recipe
    pools: dict[str, RecipePool] = field(init=False)
    """By node."""

    def __post_init__(self) -> None:
        self.pools = machines(self.recipe)

    @property
    def with_mig(self) -> list[str]:
        return [name for name, pool in self.pools.items() if pool.product == H100]

    def build(self) -> None:
        """ClusterPolicy, ConfigMaps and labels as somebody applied them; ends when NVIDIA's programs serve them."""
        api, policy = self.loop.api, dict(self.recipe.cluster_policy)
        manager = {**policy["migManager"], "config": dict(policy["migManager"]["config"])}
        # What nobody says the kind itself fills in (docs/design/nvidia.md#d6).
        named = manager["config"].setdefault("name", UPSTREAM_MIG_CONFIG)
        maps = {UPSTREAM_MIG_CONFIG: {MIG_KEY: parted(SHIPPED)}} if named == UPSTREAM_MIG_CONFIG else {}
        for name, data in {**maps, **self.recipe.config_maps}.items():
            api.create(f"{OPERANDS}/configmaps", {"metadata": {"name": name}, "data": dict(data)})
        api.delete(CLUSTER_POLICY)
        spec = {**policy, "migManager": manager}
        made = {"apiVersion": "nvidia.com/v1", "kind": "ClusterPolicy", "metadata": {"name": "cluster-policy"}}
        api.create(CLUSTER_POLICIES, {**made, "spec": spec})
        self.roll()
        for name, pool in self.pools.items():
            group = None if pool.forgotten else name.partition("-")[0]
            self.label(name, {**pool.labels, LABEL_POOL: group})
        self.wait_settled()
        for name, pool in self.pools.items():
            if pool.forgotten:
                self.label(name, {MIG: None, f"{MIG}.state": None})

    def label(self, node: str, labels: dict[str, str | None]) -> None:
        """Somebody labels a Node; None takes a label away."""
        self.loop.api.merge_patch(f"{NODES}/{node}", {"metadata": {"labels": labels}})

    def roll(self) -> None:
        """What the GPU Operator does when ClusterPolicy changes: every operand's pod is made anew."""
        api = self.loop.api
        old = {pod["metadata"]["uid"] for pod in api.list(f"{OPERANDS}/pods")}
        self.loop.plane.kubectl("-n", "gpu-operator", "delete", "pods", "--all", "--wait=false")
        manager, *others = list(SELECTORS)[:3]
        wanted = {manager: len(self.with_mig), **dict.fromkeys(others, len(self.pools))}

        def anew() -> bool:
            pods = api.list(f"{OPERANDS}/pods")
            running = [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]
            apps = [pod["metadata"]["labels"]["app"] for pod in running]
            return not old & {pod["metadata"]["uid"] for pod in pods} and all(
                apps.count(app) == count for app, count in wanted.items()
            )

        self.loop.wait(anew, "the operands to be made anew")

    def wait_settled(self) -> None:
        """Until NVIDIA's programs serve what their owner asked for, and mig-manager rests."""
        for name, pool in self.pools.items():
            served = wanted_resources(dict(pool.spec), [pool.product] * 2)
            self.loop.wait(lambda n=name, s=served: self.loop.served(n) == s, f"{name} to offer {served}")
        for name in self.with_mig:
            self.loop.wait(lambda n=name: self._rests(n), f"mig-manager on {name}")

    def _rests(self, node: str) -> bool:
        return mig_state(self.loop, node) == "success" or MIG not in self.loop.labels(node)

    def instances(self) -> dict[str, list[object]]:
        """The instances of each node with their ids: another one would have another."""
        nodes = self.loop.nodes
        return {name: [gpu["instances"] for gpu in nodes[name].simulator.show()["gpus"]] for name in nodes}

    def computing(self) -> set[str]:
        return {
            one["name"]
            for node in self.loop.nodes.values()
            for one in node.simulator.show()["processes"]
            if one["name"].startswith("SIMULATED-")
        }

    def ask(self, left_out: int = 0, *, errors: bool = True) -> str:
        """What `import` says as soon as it leaves no node out, but so many of which nobody knows any more what mig-manager was told. A mig-manager that was started anew applies its label once more, and an agent may not have looked since: until then it says to run import again."""
        said = [""]

        def complete() -> bool:
            said.append(plugin(self.loop.plane.kubeconfig, "import", errors=errors))
            if not left_out:
                return said[-1].endswith(WELL)
            return len({command[3] for command in commands(said[-1], "kubectl label node")}) == left_out

        try:
            self.loop.wait(complete, "a policy for each node")
        except TimeoutError:
            assert complete(), said[-1]
        return said[-1]

    def merged(self, values: str) -> bool:
        held = [
            self.loop.api.get(f"{OPERANDS}/configmaps/gpusharing-{name}").get("data", {})
            for name in ("device-plugin", "mig-parted")
        ]
        theirs = settings(values)
        plugin_map, mig_map = (theirs.get(name, "") for name in VALUES.values())
        entries = yaml.safe_load(held[1].get(MIG_KEY, "")) or {}
        wanted = yaml.safe_load(self.recipe.config_maps[mig_map][MIG_KEY]) if mig_map else {"mig-configs": {}}
        return bool(
            held[0].keys() >= self.recipe.config_maps.get(plugin_map, {}).keys()
            and entries.get("mig-configs", {}).keys() >= wanted["mig-configs"].keys()
        )

    def expected(self) -> list[dict[str, Any]]:
        """The specs of the policies that the fleet is, without whom they select where no label says so."""
        found: dict[str, dict[str, Any]] = {}
        for name, pool in self.pools.items():
            group = name.partition("-")[0]
            selector = {} if pool.forgotten else {"nodeSelector": {"matchLabels": {LABEL_POOL: group}}}
            found[group] = {**selector, **pool.spec}
        return list(found.values())

    def node_writes(self) -> dict[str, int]:
        """How often the operator has written to each Node, in both of its lives."""
        wait_logged(self.loop.plane.audit_log, self.loop.api)
        asked = read_requests(self.loop.plane.audit_log, OPERATOR)
        written = (one for one in asked if one.is_write and one.resource == "nodes" and one.status < 300)
        return Counter(one.name for one in written)


def machines(recipe: Recipe) -> dict[str, RecipePool]:
    return {f"{group}-{n}": pool for group, pool in recipe.pools.items() for n in range(pool.count)}


@pytest.fixture(params=[pytest.param(one, marks=[] if one in IN_CI else [pytest.mark.thorough]) for one in FLEETS])
def fleet(request: pytest.FixtureRequest, nvidia_programs: None) -> Iterator[Fleet]:
    recipe = FLEETS[request.param]
    models = {name: MODELS[pool.product] for name, pool in machines(recipe).items()}
    with short_loop(*models, models=models) as loop:
        yield Fleet(loop, recipe)


def test_nvidias_programs_find_everything_in_place_when_a_fleet_is_taken_over(fleet: Fleet) -> None:
    fleet.build()
    loop, names = fleet.loop, list(fleet.pools)
    resources = {name: min(loop.served(name)) for name in (names[0], names[-1])}
    pods = {loop.run_pod(name, resource) for name, resource in resources.items()}
    before, working = fleet.instances(), fleet.computing()

    forgotten = [name for name, pool in fleet.pools.items() if pool.forgotten]
    said = fleet.ask(len(forgotten))
    for _, *command in commands(said, "kubectl label node"):
        loop.plane.kubectl(*command)
        loop.wait(lambda node=command[2]: mig_state(loop, node) == "success", f"mig-manager on {command[2]}")
    values = ",".join(command[-1] for command in commands(said, "helm upgrade"))
    loop.operator.stop()
    launch.install_chart(loop.plane.kubeconfig, "--set", f"operator.replicaCount=0,{values}".rstrip(","))
    folder = loop.operator.log.parent
    loop.operator = launch.operator(loop.plane.kubeconfig, folder, 1.0, **WAITS, **settings(values))
    with loop.operator:
        loop.wait(lambda: fleet.merged(values), "the entries to be merged")
        ((_, *command),) = commands(said, "kubectl patch clusterpolicy")
        loop.plane.kubectl(*command)
        fleet.roll()
        fleet.wait_settled()
        assert all(MIG in loop.labels(name) for name in forgotten)
        proposed = fleet.ask(errors=False).removesuffix(WELL)
        loop.plane.kubectl("apply", "-f", "-", stdin=proposed)
        specs = [one["spec"] for one in yaml.safe_load_all(proposed) if one]
        for policy in loop.api.list(POLICIES):
            launch.wait_ready(loop.api, str(policy["metadata"]["name"]))

    for wanted in fleet.expected():
        assert [wanted for spec in specs if spec.items() >= wanted.items()] == [wanted]
    assert len(specs) == len(fleet.recipe.pools)
    assert (fleet.instances(), fleet.computing()) == (before, working)
    assert working == {f"SIMULATED-{pod}" for pod in pods}
    assert loop.evicted() == []
    written = fleet.node_writes()
    assert written == dict.fromkeys(fleet.pools, 1), "each is told its policy and mode, and nothing else"
    for name, pool in fleet.pools.items():
        assert loop.labels(name).items() >= pool.labels.items(), "the names that they had"
        assert not is_cordoned(loop, name)

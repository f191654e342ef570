"""The shipped examples: valid, six modes, and workloads that find a node of the mode they select."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.generate import ROOT
from tests.build import make_gpu, make_policy, make_stack
from tests.configs import target_for

from gpusharing.api.names import LABEL_MODE
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.validation import validate_policy
from gpusharing.planning.wanted.target import Target

POLICIES = sorted((ROOT / "examples").glob("*.yaml"))
WORKLOADS = sorted((ROOT / "examples" / "workloads").glob("*.yaml"))

SERVED: dict[str, tuple[str, dict[str, int]]] = {
    "pool-a": ("mig", {"nvidia.com/mig-1g.20gb": 8}),
    "pool-b": ("mig", {"nvidia.com/mig-3g.40gb": 4}),
    "pool-c": ("full", {"nvidia.com/gpu": 2}),
    "pool-d": ("time-slicing", {"nvidia.com/gpu": 8}),
    "pool-e": ("mps", {"nvidia.com/gpu": 8}),
    "pool-f": ("mig-time-slicing", {"nvidia.com/mig-1g.10gb": 28}),
}
"""By policy: the routing label, and what a node with two H100 serves."""


def target_of(path: Path) -> Target:
    manifest = yaml.safe_load(path.read_text())
    assert manifest["metadata"]["name"] == path.stem
    spec = validate_policy(manifest)
    assert isinstance(spec, GPUSharingPolicySpec), spec
    policy = replace(make_policy(path.stem), spec=spec)
    target = target_for(policy, (make_gpu(0), make_gpu(1)), make_stack())
    assert isinstance(target, Target), target
    return target


def pod_of(document: Any) -> Any:
    return document["spec"].get("template", document)["spec"]


def test_there_is_one_example_for_each_mode() -> None:
    assert {path.stem for path in POLICIES} == SERVED.keys()
    assert {routing for routing, _ in SERVED.values()} == {
        "full", "mig", "mig-time-slicing", "mps", "time-slicing",
    }  # fmt: skip


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_two_h100_become_what_the_example_says(path: Path) -> None:
    target = target_of(path)
    assert (target.routing, dict(target.resources)) == SERVED[path.stem]


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_the_first_lines_name_the_resource_that_pods_ask_for(path: Path) -> None:
    (resource,) = target_of(path).resources
    assert f"{resource}: 1" in path.read_text().partition("apiVersion")[0]


@pytest.mark.parametrize("path", WORKLOADS, ids=lambda path: path.stem)
def test_a_workload_is_routed_to_a_mode_that_serves_what_it_asks_for(path: Path) -> None:
    pod = pod_of(yaml.safe_load(path.read_text()))
    (container,) = pod["containers"]
    routing = pod["nodeSelector"][LABEL_MODE]
    served = {name for mode, resources in SERVED.values() if mode == routing for name in resources}
    assert container["resources"]["limits"].keys() <= served

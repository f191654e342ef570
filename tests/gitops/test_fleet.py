"""The examples for many clusters: what they refer to is there, and both programs would find one overlay for each cluster. kustomize itself builds them on rung 2 (tests/docs/test_pages_cluster.py)."""

from typing import Any

import pytest
import yaml
from hack.generate import ROOT
from hack.sim.fakestore import merged

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.validation import validate_policy

FLEET = ROOT / "examples" / "many-clusters"
CLUSTERS = sorted(path.name for path in (FLEET / "clusters").iterdir())


def read(name: str) -> Any:
    return yaml.safe_load((FLEET / name).read_text())


def patched(policy: Any, cluster: str) -> Any:
    """The policy with the patches of a cluster whose target it is, merged as RFC 7386 says."""
    for patch in read(f"clusters/{cluster}/kustomization.yaml")["patches"]:
        target = patch["target"]
        if target.get("name") in (None, policy["metadata"]["name"]):
            policy = {**policy, "spec": merged(policy["spec"], yaml.safe_load(patch["patch"])["spec"])}
    return policy


def test_there_are_clusters_and_they_differ() -> None:
    assert CLUSTERS == ["east", "west"]
    one, other = ([patched(read(f"base/{name}"), cluster) for name in names()] for cluster in CLUSTERS)
    assert one != other


def names() -> list[str]:
    found: list[str] = read("base/kustomization.yaml")["resources"]
    return found


def test_the_base_has_every_file_that_is_there_and_is_the_one_of_the_examples() -> None:
    there = {path.name for path in (FLEET / "base").iterdir()}
    assert {*names(), "kustomization.yaml"} == there
    for name in names():
        assert read(f"base/{name}") == yaml.safe_load((ROOT / "examples" / name).read_text())


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_each_cluster_has_valid_policies(cluster: str) -> None:
    assert read(f"clusters/{cluster}/kustomization.yaml")["resources"] == ["../../base"]
    for name in names():
        assert isinstance(validate_policy(patched(read(f"base/{name}"), cluster)), GPUSharingPolicySpec)


def test_argo_cd_and_flux_find_the_overlay_of_a_cluster() -> None:
    template = read("argo-cd.yaml")["spec"]["template"]["spec"]
    for cluster in CLUSTERS:
        assert (ROOT / template["source"]["path"].replace("{{.name}}", cluster) / "kustomization.yaml").exists()
    assert (ROOT / read("flux.yaml")["spec"]["path"] / "kustomization.yaml").exists()


def test_nothing_that_is_gone_from_git_by_mistake_takes_a_policy_with_it() -> None:
    assert read("argo-cd.yaml")["spec"]["template"]["spec"]["syncPolicy"]["automated"]["prune"] is False
    assert read("flux.yaml")["spec"]["prune"] is False

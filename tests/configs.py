"""Device-plugin configurations, for tests/build.py and the tests."""

from collections.abc import Iterable

from gpusharing.api.names import RESOURCE_GPU
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.views import GpuView, Hardware, PolicyView
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing
from gpusharing.planning.wanted.target import PolicyTargets, Target, find_request


def plugins_of(policies: Iterable[PolicyView], cards: Iterable[GpuView], stack: StackView) -> dict[str, PluginConfig]:
    """What nodes with one of these cards need, by key."""
    gpus = list(cards)
    found: dict[str, PluginConfig] = {}
    for policy in policies:
        targets = (target_for(policy, [gpu], stack) for gpu in gpus)
        found |= {target.plugin_key: target.plugin for target in targets if isinstance(target, Target)}
    return found


def target_for(policy: PolicyView, gpus: Iterable[GpuView], stack: StackView) -> Target | Finding:
    """What gpu-07 with these GPUs becomes under a policy."""
    assert policy.spec is not None, "make_policy gives every policy a spec"
    targets = PolicyTargets(policy, find_request(policy.name, policy.spec), stack)
    return targets.find("gpu-07", Hardware.of(tuple(gpus)))


def make_shared(replicas: int, *, rename: bool = False, fails: bool = False, mps: bool = False) -> PluginConfig:
    """A configuration that shares whole GPUs; `fails`: requests for two shares are refused."""
    rows = ((RESOURCE_GPU, replicas),)
    return PluginConfig("none", Sharing(rows, rename, fails, "mps" if mps else "time-slicing"))

"""Targets of the planner for a node with two equal cards, and its opinion on the labels that GFD will write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hack.nvmlsim.models import find_model
from tests.build import make_gpu, make_gpunode, make_node, make_policy, make_stack
from tests.configs import target_for

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.views import GpuView
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.wanted import pluginconfig
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import Comparison, expected_gfd_labels


@dataclass(frozen=True)
class Setting:
    """A policy on a node."""

    text: str
    model: str
    spec: dict[str, Any]
    resources: dict[str, int] = field(default_factory=dict)
    """Written out once by hand, so that the prediction is not the only witness."""
    models: tuple[str, ...] = ()
    """Instead of two of `model`."""


def mig(strategy: str, *layouts: dict[str, int]) -> dict[str, Any]:
    """A MIG policy: one layout for all GPUs, or one per GPU; {} leaves a GPU whole."""
    if len(layouts) == 1:
        rows: list[dict[str, Any]] = [{"profiles": layouts[0]}]
    else:
        rows = [{"devices": [index], "profiles": layout} for index, layout in enumerate(layouts)]
    return {"mode": "MIG", "mig": {"strategy": strategy, "layouts": rows}}


def slices(replicas: int, *, rename: bool = False) -> dict[str, Any]:
    return {"timeSlicing": {"replicas": replicas, "renameByDefault": rename}}


def mps(replicas: int, *, rename: bool = False) -> dict[str, Any]:
    return {"mode": "MPS", "mps": {"replicas": replicas, "renameByDefault": rename}}


def slicing(replicas: int, *, rename: bool = False) -> dict[str, Any]:
    return {"mode": "TimeSlicing", **slices(replicas, rename=rename)}


def plan(setting: Setting) -> tuple[Target, str, Comparison]:
    """The planner's target for the node, the text of the plugin's configuration, and the verifier's case."""
    target, gpus = _judge(setting)
    assert isinstance(target, Target), target
    observed = make_gpunode(gpus=gpus).observed
    assert observed is not None, "make_gpunode reports unless told otherwise"
    case = Comparison(make_node(), observed, target, make_stack())
    return target, pluginconfig.render(target.plugin), case


def refusal(setting: Setting) -> Finding:
    refused, _ = _judge(setting)
    assert isinstance(refused, Finding), refused
    return refused


def plan_for(models: Sequence[str], spec: dict[str, Any]) -> tuple[Target, str, Comparison]:
    setting = Setting("", "", spec, models=tuple(models))
    return plan(setting)


def _judge(setting: Setting) -> tuple[Target | Finding, list[GpuView]]:
    spec = GPUSharingPolicySpec.model_validate(
        {"nodeSelector": {"matchLabels": {"gpusharing.dev/pool": "b"}}, **setting.spec}
    )
    products = [find_model(model).products[0] for model in setting.models or (setting.model,) * 2]
    gpus = [make_gpu(index, product=product) for index, product in enumerate(products)]
    return target_for(replace(make_policy(), spec=spec), gpus, make_stack()), gpus


def labels_as_predicted(labels: Mapping[str, str], case: Comparison) -> None:
    """Assert that GFD's labels are a set that the verifier expects."""
    possible = expected_gfd_labels(case.target, case.observed)
    shown = [{name: labels.get(name, "") for name in expected} for expected in possible]
    assert any(seen == expected for seen, expected in zip(shown, possible, strict=True)), (labels, possible)

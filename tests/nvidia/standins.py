"""What the planner, of a node with two equal cards, and our stand-ins for NVIDIA's programs (hack/sim) make of the same: here the real programs decide."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hack.nvidia import build
from hack.nvmlsim.models import find_model
from hack.sim import gfd, plugin
from hack.sim.gpu import SimulatedGPUs
from hack.sim.migparted import ApplyError, apply_layout, apply_mode, entries, present
from tests.build import make_gpu, make_gpunode, make_node, make_policy, make_stack
from tests.configs import target_for
from tests.nvidia.programs import entry_for

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.views import GpuView
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.wanted import migfile, pluginconfig
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import Comparison, expected_gfd_labels

NOT_PLAYED = re.compile(
    r"nvidia\.com/(gfd\.timestamp|cuda\..+|gpu\.machine|vgpu\..+|.+\.(memory|multiprocessors)|.+\.engines\..+)"
)
"""Labels that the stand-in says in its first lines not to write, or not exactly."""


def applied_layouts(models: Sequence[str], layouts: Sequence[Layout | None]) -> tuple[SimulatedGPUs, str]:
    """Simulated GPUs after the stand-in for mig-parted has applied one layout to each, and its error."""
    gpus = SimulatedGPUs("stand-in", [find_model(model).products[0] for model in models])
    rows = [{**entry_for(layout)[0], "devices": [index]} for index, layout in enumerate(layouts)]
    items = entries(migfile.render({"own": rows}), "own")
    try:
        apply_mode(items, gpus.look(), gpus)
        apply_layout(items, gpus.look(), gpus)
    except ApplyError as error:
        return gpus, str(error)
    return gpus, ""


def stand_in_parted(model: str, layout: Layout) -> tuple[bool, Layout | None]:
    """Whether the stand-in for mig-parted fails with this layout, and what it leaves on the GPU."""
    gpus, error = applied_layouts([model], [layout])
    return bool(error), present(gpus.look()[0])


def check_plugin(model: str, layouts: Sequence[Layout | None], config: str, served: Mapping[str, int]) -> None:
    """Assert that the stand-in for the device plugin advertises what the real one served."""
    gpus, error = applied_layouts([model] * len(layouts), layouts)
    assert not error
    assert build.DEVICE_PLUGIN.version == "v0.19.3"
    assert plugin.advertised(gpus.look(), plugin.parse_config(config), "0.19.3") == served


def check_gfd(
    models: Sequence[str], layouts: Sequence[Layout | None], config: str, seen: Sequence[Mapping[str, str]]
) -> None:
    """Assert that the label sets of the stand-in for GFD, one for each model, are those that the real one wrote."""
    gpus, error = applied_layouts(models, layouts)
    assert not error
    reading = gpus.read()
    ours = [_played(gfd.labels(reading, plugin.parse_config(config), 0, turn)) for turn in range(len(models))]
    theirs = [_played(labels) for labels in seen]
    assert {tuple(sorted(one.items())) for one in ours} == {tuple(sorted(one.items())) for one in theirs}


def _played(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if not NOT_PLAYED.fullmatch(name)}


@dataclass(frozen=True)
class Setting:
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


def _judge(setting: Setting) -> tuple[Target | Finding, list[GpuView]]:
    spec = GPUSharingPolicySpec.model_validate(
        {"nodeSelector": {"matchLabels": {"gpusharing.dev/pool": "b"}}, **setting.spec}
    )
    products = [find_model(model).products[0] for model in setting.models or (setting.model,) * 2]
    gpus = [make_gpu(index, product=product) for index, product in enumerate(products)]
    return target_for(replace(make_policy(), spec=spec), gpus, make_stack()), gpus


def labels_as_predicted(labels: Mapping[str, str], case: Comparison) -> None:
    possible = expected_gfd_labels(case.target, case.observed)
    shown = [{name: labels.get(name, "") for name in expected} for expected in possible]
    assert any(seen == expected for seen, expected in zip(shown, possible, strict=True)), (labels, possible)

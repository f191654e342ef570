"""What our stand-ins for NVIDIA's programs (hack/sim) make of the same: here the real programs decide."""

import re
from collections.abc import Mapping, Sequence

from hack.nvidia import build
from hack.nvmlsim.models import find_model
from hack.sim import gfd, plugin
from hack.sim.gpu import SimulatedGPUs
from hack.sim.migparted import ApplyError, apply_layout, apply_mode, entries, present
from tests.nvidia.programs import entry_for

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.wanted import migfile

NOT_PLAYED = re.compile(
    r"nvidia\.com/(gfd\.timestamp|cuda\..+|gpu\.machine|vgpu\..+|.+\.(memory|multiprocessors)|.+\.engines\..+)"
)
"""Labels that the stand-in says in its first lines not to write, or not exactly."""


def applied_layouts(model: str, *layouts: Layout | None) -> tuple[SimulatedGPUs, str]:
    """Simulated GPUs after the stand-in for mig-parted has applied one layout to each, and its error."""
    gpus = SimulatedGPUs("stand-in", [find_model(model).products[0]] * len(layouts))
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
    gpus, error = applied_layouts(model, layout)
    return bool(error), present(gpus.look()[0])


def check_plugin(model: str, layouts: Sequence[Layout | None], config: str, served: Mapping[str, int]) -> None:
    """Assert that the stand-in for the device plugin advertises what the real one served."""
    gpus, error = applied_layouts(model, *layouts)
    assert not error
    assert build.DEVICE_PLUGIN.version == "v0.19.3"
    assert plugin.advertised(gpus.look(), plugin.parse_config(config), "0.19.3") == served


def check_gfd(model: str, layouts: Sequence[Layout | None], config: str, labels: Mapping[str, str]) -> None:
    """Assert that the stand-in for GFD writes the labels that the real one wrote."""
    gpus, error = applied_layouts(model, *layouts)
    assert not error
    assert _played(gfd.labels(gpus.read(), plugin.parse_config(config), 0)) == _played(labels)


def check_gfd_of(
    models: Sequence[str], layouts: Sequence[Layout | None], config: str, seen: Sequence[Mapping[str, str]]
) -> None:
    """Assert that the stand-in's label sets of a node with these cards are those that the real GFD wrote."""
    gpus = SimulatedGPUs("stand-in", [find_model(model).products[0] for model in models])
    for index, layout in enumerate(layouts):
        if layout is not None:
            gpus.set_mig_mode(index, True)
            for profile, count in layout:
                for _ in range(count):
                    gpus.create(index, profile)
    reading = gpus.read()
    ours = [_played(gfd.labels(reading, plugin.parse_config(config), 0, turn)) for turn in range(len(models))]
    theirs = [_played(labels) for labels in seen]
    assert {tuple(sorted(one.items())) for one in ours} == {tuple(sorted(one.items())) for one in theirs}


def _played(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if not NOT_PLAYED.fullmatch(name)}

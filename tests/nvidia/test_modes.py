"""Each model through all its modes: config-manager brings what we render, device plugin and GFD do as we predict."""

from typing import Any

import pytest
from hack.cluster.controlplane import ControlPlane
from hack.nvmlsim.models import find_model
from tests.nvidia.configured import ConfiguredNode
from tests.nvidia.conftest import MakeSandbox
from tests.nvidia.programs import gfd_labels, served_in, set_layouts
from tests.nvidia.standins import (
    Setting,
    check_gfd,
    check_plugin,
    labels_as_predicted,
    mig,
    mps,
    plan,
    slices,
    slicing,
)
from tests.nvidia.test_layouts import MODELS, WITHOUT_MIG

from gpusharing.planning.gpus.geometry import generated_layouts
from gpusharing.planning.wanted.target import counts_without_suffixes

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]


def modes_of(model: str) -> dict[str, dict[str, Any]]:
    """One policy for each mode that the card has, in an order in which MIG comes and goes."""
    modes: dict[str, dict[str, Any]] = {"Full": {"mode": "Full"}}
    named = generated_layouts(find_model(model).profiles)
    if balanced := named.get("all-balanced"):
        smallest = find_model(model).profiles[0]
        modes["MIG single"] = mig("single", {smallest.name: smallest.max_count})
        modes["MIG mixed"] = mig("mixed", dict(balanced))
        modes["MIG with time-slicing"] = mig("mixed", dict(balanced)) | slices(3)
    return modes | {"TimeSlicing": slicing(4), "MPS": mps(4)}


@pytest.mark.parametrize("model", [*MODELS, *WITHOUT_MIG])
def test_a_node_goes_through_all_modes_and_serves_and_labels_what_was_predicted(
    model: str, plane: ControlPlane, make_sandbox: MakeSandbox
) -> None:
    modes = modes_of(model)
    assert len(modes) == (6 if find_model(model).profiles else 3)
    plans = [plan(Setting(text, model, spec)) for text, spec in modes.items()]
    keys = {target.plugin_key: config for target, config, _ in plans}
    assert len(keys) == len(plans), "each mode has a configuration of its own"
    sandbox = make_sandbox(model, model)
    node = ConfiguredNode(plane, sandbox, f"modes-{model}", keys, next(iter(keys)))
    try:
        for target, config, case in plans:
            set_layouts(sandbox, *target.layouts)
            node.label(target.plugin_key)
            node.wait_for(target.plugin_key)
            loaded = node.link.read_text()
            expected = counts_without_suffixes(target.resources)
            assert served_in(sandbox, target.mode, loaded, len(expected)) == expected
            check_plugin(model, target.layouts, loaded, expected)
            assert loaded == config
            labels = gfd_labels(sandbox, loaded)
            labels_as_predicted(labels, case)
            check_gfd([model] * 2, target.layouts, loaded, [labels])
    finally:
        node.program.stop()

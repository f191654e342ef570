"""The SIMULATED GPUs refuse what NVIDIA's MIG user guide says a driver refuses."""

import pytest
from hack.sim.gpu import InUse, NoFreePlace, NotSupported, SimulatedGPUs

from gpusharing.planning.gpus.cards import CARDS, Card
from gpusharing.planning.gpus.geometry import find_misfit, maximal_layouts, place

H100, A100, T4 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "Tesla T4"
WITH_PLACEMENTS = [card for card in CARDS if card.products and any(p.starts for p in card.profiles)]


def divided(product: str = H100) -> SimulatedGPUs:
    gpus = SimulatedGPUs("gpu-01", [product])
    gpus.set_mig_mode(0, on=True)
    return gpus


@pytest.mark.parametrize("card", WITH_PLACEMENTS, ids=lambda card: str(card.key))
def test_every_maximal_layout_can_be_created_at_the_placements_that_the_planner_finds(card: Card) -> None:
    gpus = divided(card.products[0])
    for layout in maximal_layouts(card.profiles):
        assert not find_misfit(layout, card.profiles)
        for profile, start in place(layout, card.profiles):
            gpus.create(0, profile, start)
        assert len(gpus.read().gpus[0].instances) == sum(count for _, count in layout)
        gpus.destroy_all(0)


def test_the_order_of_creation_matters() -> None:
    gpus = divided()
    for profile in ("1g.10gb", "2g.20gb", "3g.40gb"):
        gpus.create(0, profile)
    with pytest.raises(NoFreePlace):
        gpus.create(0, "1g.10gb")
    gpus.destroy_all(0)
    for profile in ("3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"):
        gpus.create(0, profile)
    assert len(gpus.read().gpus[0].instances) == 4


@pytest.mark.parametrize(
    ("profiles", "start"),
    [(["1g.10gb+me", "1g.10gb+me"], None), (["4g.40gb", "3g.40gb", "1g.10gb"], None), (["2g.20gb"], 1)],
    ids=["two with media engines", "nothing is left", "a start that the profile does not have"],
)
def test_what_does_not_fit_is_refused(profiles: list[str], start: int | None) -> None:
    gpus = divided()
    *first, last = profiles
    for profile in first:
        gpus.create(0, profile)
    with pytest.raises(NoFreePlace):
        gpus.create(0, last, start)


@pytest.mark.parametrize(
    "profiles",
    [["1g.24gb", "1g.24gb+me.all"], ["1g.24gb+me.all", "1g.24gb+gfx"], ["2g.48gb+me.all", "1g.24gb+me.all"]],
    ids=" then ".join,
)
def test_next_to_all_media_engines_there_are_only_instances_without_any(profiles: list[str]) -> None:
    gpus = SimulatedGPUs("gpu-01", ["NVIDIA RTX PRO 6000 Blackwell Server Edition"])
    gpus.set_mig_mode(0, True)
    first, second = profiles
    gpus.create(0, first)
    with pytest.raises(NoFreePlace):
        gpus.create(0, second)
    gpus.destroy_all(0)
    gpus.create(0, "1g.24gb-me")
    gpus.create(0, "1g.24gb+me.all")


def test_a_profile_of_another_card_or_a_card_without_mig_is_not_supported() -> None:
    with pytest.raises(NotSupported, match=r"no profile 1g\.18gb"):
        divided().create(0, "1g.18gb")
    with pytest.raises(NotSupported, match="has no MIG"):
        SimulatedGPUs("gpu-01", [T4]).set_mig_mode(0, on=True)
    with pytest.raises(NotSupported, match="MIG mode is off"):
        SimulatedGPUs("gpu-01", [H100]).create(0, "1g.10gb")
    with pytest.raises(ValueError, match=r"not in planning/gpus/cards\.py"):
        SimulatedGPUs("gpu-01", ["NVIDIA X1"])


def test_a_hopper_refuses_a_mode_change_while_anyone_is_there() -> None:
    gpus = SimulatedGPUs("gpu-01", [H100])
    with gpus.client(), pytest.raises(InUse, match="another client"):
        gpus.set_mig_mode(0, on=True)
    gpus.add_process(0, "python3", 42)
    with pytest.raises(InUse, match="by 1 process"):
        gpus.set_mig_mode(0, on=True)
    gpus.remove_process(42)
    assert gpus.set_mig_mode(0, on=True) == "Applied"
    gpus.create(0, "1g.10gb")
    with pytest.raises(InUse, match="destroy its 1 instance first"):
        gpus.set_mig_mode(0, on=False)


def test_an_ampere_keeps_the_mode_pending_until_a_reset() -> None:
    gpus = SimulatedGPUs("gpu-01", [A100])
    with gpus.client():
        assert gpus.set_mig_mode(0, on=True) == "Pending"
        with pytest.raises(InUse):
            gpus.reset(0)
    (gpu,) = gpus.read().gpus
    assert (gpu.mig_mode, gpu.mig_mode_pending) == ("Disabled", "Enabled")
    gpus.reset()
    assert gpus.read().gpus[0].mig_mode == "Enabled"
    assert gpus.set_mig_mode(0, on=False) == "Applied"  # nobody is there: the driver resets by itself


def test_a_reboot_takes_instances_and_the_mode_of_newer_cards() -> None:
    gpus = SimulatedGPUs("gpu-01", [H100, A100])
    for index, profile in enumerate(("1g.10gb", "1g.5gb")):
        gpus.set_mig_mode(index, on=True)
        gpus.create(index, profile)
    gpus.reboot()
    assert [(g.mig_mode, g.instances) for g in gpus.read().gpus] == [("Disabled", ()), ("Enabled", ())]


def test_an_instance_in_use_stays_and_the_others_go() -> None:
    gpus = divided()
    used = gpus.create(0, "3g.40gb")
    gpus.create(0, "1g.10gb")
    gpus.add_process(0, "python3", 42, used.uuid)
    with pytest.raises(InUse, match="has 1 instance in use"):
        gpus.destroy_all(0)
    assert gpus.read().gpus[0].instances == (used,)

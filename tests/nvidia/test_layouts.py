"""Every layout on every MIG model: mig-parted makes of it what our geometry says, and nothing else; and several GPUs, what is in use, pending modes, failures midway."""

from collections.abc import Iterator, Sequence

import pytest
from hack.cluster.process import wait_until
from hack.nvidia import build
from hack.nvidia.sandbox import Sandbox
from hack.nvmlsim.layout import MAX_GPUS
from hack.nvmlsim.models import find_model, simulated_cards
from tests.agent.nvml_machine import SECONDS, Agent
from tests.build import make_gpu
from tests.nvidia.conftest import MakeSandbox
from tests.nvidia.programs import Done, MigParted, entry_for
from tests.nvidia.standins import stand_in_parted

from gpusharing.api.policy import MigLayout
from gpusharing.kube.actuatorlogs import failure_in
from gpusharing.planning.gpus.geometry import (
    Layout,
    describe,
    find_misfit,
    generated_layouts,
    legal_layouts,
    maximal_layouts,
    normalize,
)
from gpusharing.planning.snapshot.views import GpuView
from gpusharing.planning.wanted import migfile
from gpusharing.planning.wanted.target import find_mistaken

pytestmark = pytest.mark.nvidia

MODELS = (
    "a30", "a100-40gb", "a100-80gb", "h100-80gb", "h200-141gb", "b200-180gb", "rtx-pro-6000-blackwell",
)  # fmt: skip
MISTAKES_NAMES = build.MIG_PARTED.version == "v0.13.1"
"""Whether this version looks a profile up by name on the first card that has it."""
WITHOUT_MIG = ("v100-16gb", "t4", "l40s")


def make_gpus(model: str, number: int) -> list[GpuView]:
    return [make_gpu(index, product=find_model(model).products[0]) for index in range(number)]


class Machine:
    """As many equal GPUs as a simulated machine can have: one run of mig-parted answers for many layouts."""

    def __init__(self, make_sandbox: MakeSandbox, model: str) -> None:
        self.gpus = make_gpus(model, MAX_GPUS)
        self.sandbox: Sandbox = make_sandbox(*[model] * MAX_GPUS)

    def put(self, layouts: Sequence[Layout]) -> tuple[Done, Done, tuple[Layout | None, ...]]:
        """Put one layout on each GPU, as we render a policy's own layouts, and MIG off on those that are left.

        Returns how apply and assert ended, and what mig-parted exports then.
        """
        rows = [MigLayout(devices=[index], profiles=dict(layout)) for index, layout in enumerate(layouts)]
        if rest := list(range(len(layouts), MAX_GPUS)):
            rows.append(MigLayout(devices=rest, profiles={}))
        parted = MigParted(self.sandbox, {"own": migfile.entry_of(rows)})
        return parted.apply("own"), parted.check("own"), exported(parted, self.gpus)


def exported(parted: MigParted, gpus: Sequence[GpuView]) -> tuple[Layout | None, ...]:
    found = migfile.resolve(parted.export(), gpus)
    assert isinstance(found, tuple), found
    return found


def batches(layouts: Sequence[Layout]) -> Iterator[tuple[Layout, ...]]:
    for start in range(0, len(layouts), MAX_GPUS):
        yield tuple(layouts[start : start + MAX_GPUS])


@pytest.fixture(scope="module")
def one_file() -> dict[str, migfile.Entry]:
    """The named entries as we render them for a cluster that has all these models."""
    return migfile.well_known_entries({find_model(model).products[0]: make_gpus(model, 1) for model in MODELS})


@pytest.mark.parametrize("model", MODELS)
def test_each_named_layout_is_applied_asserted_and_exported_as_the_same(
    model: str, one_file: dict[str, migfile.Entry], make_sandbox: MakeSandbox
) -> None:
    gpus = make_gpus(model, 2)
    parted = MigParted(make_sandbox(model, model), one_file)
    names = generated_layouts(find_model(model).profiles).keys()
    assert {name for name, entry in one_file.items() if isinstance(migfile.resolve(entry, gpus), tuple)} == names
    for name in names:
        applied = parted.apply(name)
        assert (applied.status, parted.check(name).status) == (0, 0), (name, applied.output)
        assert exported(parted, gpus) == migfile.well_known(gpus, name) == migfile.resolve(one_file[name], gpus)


@pytest.mark.parametrize("model", MODELS)
def test_a_named_layout_of_other_cards_alone_is_applied_successfully_and_changes_nothing(
    model: str, one_file: dict[str, migfile.Entry], make_sandbox: MakeSandbox
) -> None:
    gpus = make_gpus(model, 2)
    parted = MigParted(make_sandbox(model, model), one_file)
    parted.apply("all-balanced")
    before = exported(parted, gpus)
    names = one_file.keys() - generated_layouts(find_model(model).profiles).keys()
    for name in sorted(names):
        assert isinstance(migfile.well_known(gpus, name), str), name
        applied = parted.apply(name)
        assert (applied.status, applied.last_line) == (0, "MIG configuration applied successfully"), name
    assert exported(parted, gpus) == before
    assert len(names) > 20


TWO_MODELS = (("h100-80gb", "a100-80gb"), ("a30", "h200-141gb"), ("h100-80gb", "a100-40gb"))


@pytest.mark.parametrize("models", TWO_MODELS, ids=" and ".join)
def test_on_a_node_with_two_models_a_named_layout_means_on_each_what_it_means_there(
    models: tuple[str, str], one_file: dict[str, migfile.Entry], make_sandbox: MakeSandbox
) -> None:
    gpus = [make_gpu(index, product=find_model(model).products[0]) for index, model in enumerate(models)]
    meanings = {name: migfile.resolve(entry, gpus) for name, entry in one_file.items()}
    parted, applied = MigParted(make_sandbox(*models), one_file), 0
    for name, meaning in meanings.items():
        if isinstance(meaning, tuple) and not (MISTAKES_NAMES and find_mistaken(gpus, meaning)):
            done = parted.apply(name)
            assert (done.status, parted.check(name).status) == (0, 0), (name, done.output)
            assert exported(parted, gpus) == meaning == migfile.well_known(gpus, name)
            applied += 1
    assert applied >= 3


def test_a_profile_name_that_is_another_profile_on_the_other_card_of_a_node_is_mistaken_before_v0_15(
    one_file: dict[str, migfile.Entry], make_sandbox: MakeSandbox
) -> None:
    models = ("h100-80gb", "a100-40gb")  # 1g.10gb is one eighth of the one and one quarter of the other
    gpus = [make_gpu(index, product=find_model(model).products[0]) for index, model in enumerate(models)]
    meaning = migfile.resolve(one_file["all-1g.10gb"], gpus)
    assert meaning == ((("1g.10gb", 7),), (("1g.10gb", 4),))
    assert find_mistaken(gpus, meaning) == (gpus[1], gpus[0], "1g.10gb")
    parted = MigParted(make_sandbox(*models), one_file)
    applied = parted.apply("all-1g.10gb")
    if MISTAKES_NAMES:
        assert applied.status == 1
        assert "Unsupported MIG Device specified 1g.10gb, expected 1g.5gb instead" in applied.output
    else:
        assert (applied.status, parted.check("all-1g.10gb").status) == (0, 0), applied.output
        assert exported(parted, gpus) == meaning


@pytest.mark.parametrize("model", MODELS)
def test_each_own_layout_up_to_the_maximal_ones_is_applied_asserted_and_exported_as_the_same(
    model: str, make_sandbox: MakeSandbox
) -> None:
    profiles = find_model(model).profiles
    layouts = [layout for layout in legal_layouts(profiles) if layout]
    assert {*maximal_layouts(profiles)} < {*layouts}
    machine = Machine(make_sandbox, model)
    for batch in batches(layouts):
        whole = (None,) * (MAX_GPUS - len(batch))
        assert [stand_in_parted(model, layout) for layout in batch] == [(False, layout) for layout in batch]
        applied, asserted, found = machine.put(batch)
        assert (applied.status, asserted.status) == (0, 0), applied.output
        assert found == (*batch, *whole)


def foreign_layouts(model: str) -> list[Layout]:
    """The named and the maximal layouts of every other card, without those of this one."""
    mine = find_model(model).profiles
    own = {*generated_layouts(mine).values(), *maximal_layouts(mine)}
    found: dict[Layout | None, None] = {}
    for card in simulated_cards():
        found |= dict.fromkeys([*generated_layouts(card.profiles).values(), *maximal_layouts(card.profiles)])
    return [layout for layout in found if layout and layout not in own]


@pytest.mark.parametrize("model", MODELS)
def test_on_every_layout_of_other_cards_our_verdict_is_the_hardwares(model: str, make_sandbox: MakeSandbox) -> None:
    profiles = find_model(model).profiles
    misfits = {layout: find_misfit(layout, profiles) for layout in foreign_layouts(model)}
    legal = [layout for layout, misfit in misfits.items() if not misfit]
    unknown = [layout for layout, misfit in misfits.items() if "has no profile" in misfit]
    unknown.append(normalize({profiles[0].name: 1, "1g.99gb": 1}))
    machine = Machine(make_sandbox, model)
    machine.put([maximal_layouts(profiles)[0]] * MAX_GPUS)
    for batch in batches(unknown):  # the trap: success, and empty GPUs, which were full at first
        applied, asserted, found = machine.put(batch)
        assert (applied.status, applied.last_line) == (0, "MIG configuration applied successfully")
        assert (asserted.status, found[: len(batch)]) == (1, ((),) * len(batch))
        assert {stand_in_parted(model, layout) for layout in batch} == {(False, ())}
    for batch in batches(legal):
        applied, asserted, found = machine.put(batch)
        assert (applied.status, asserted.status) == (0, 0), applied.output
        assert found[: len(batch)] == batch
    assert len(unknown) > 100


def just_too_full(model: str) -> list[Layout]:
    """The edge of what is legal: layouts that fit when any one instance is taken away."""
    profiles = find_model(model).profiles
    legal = {*legal_layouts(profiles)}
    one_more = {more(layout, profile.name, 1) for layout in legal for profile in profiles} - legal
    return sorted(one for one in one_more if all(more(one, name, -1) in legal for name, _ in one))


def more(layout: Layout, profile: str, number: int) -> Layout:
    return normalize({**dict(layout), profile: dict(layout).get(profile, 0) + number})


@pytest.mark.parametrize("model", MODELS)
def test_a_layout_with_one_instance_too_many_fails_and_leaves_the_gpu_empty(
    model: str, make_sandbox: MakeSandbox
) -> None:
    profiles = find_model(model).profiles
    foreign = [one for one in foreign_layouts(model) if "does not fit" in find_misfit(one, profiles)]
    layouts = list(dict.fromkeys([*just_too_full(model), *foreign]))
    parted = MigParted(make_sandbox(model), {str(n): entry_for(one) for n, one in enumerate(layouts)})
    for number, layout in enumerate(layouts):
        assert "does not fit" in find_misfit(layout, profiles), describe(layout)
        applied = parted.apply(str(number))
        assert applied.status == 1, describe(layout)
        assert "all orderings failed" in applied.last_line
        (gpu,) = parted.sandbox.simulator.show()["gpus"]
        assert (gpu["mig"]["current"], gpu["instances"]) == (True, []), describe(layout)
        assert stand_in_parted(model, layout) == (True, ()), describe(layout)


@pytest.mark.parametrize("model", WITHOUT_MIG)
def test_on_a_card_without_mig_a_layout_for_all_gpus_is_applied_successfully_and_nothing_happens(
    model: str, make_sandbox: MakeSandbox
) -> None:
    layouts = foreign_layouts(model)
    chosen = layouts[:: len(layouts) // 8]
    parted = MigParted(make_sandbox(model), {str(n): entry_for(one) for n, one in enumerate(chosen)})
    for number, layout in enumerate(chosen):
        assert "has no profile" in find_misfit(layout, find_model(model).profiles)
        applied, asserted = parted.apply(str(number)), parted.check(str(number))
        assert (applied.status, asserted.status) == (0, 1), applied.output
        assert parted.sandbox.simulator.show()["gpus"][0]["instances"] == []
    named = MigParted(parted.sandbox, {"own": [{**entry_for(chosen[0])[0], "devices": [0]}]})
    refused = named.apply("own")
    assert refused.status == 1
    assert "non MIG-capable GPU" in refused.last_line


# --- what is not about geometry --------------------------------------------------------------------------------


def test_nvidias_mig_parted_stops_at_an_instance_in_use_after_its_neighbor_is_gone(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    parted = MigParted(sandbox, {"halves": entry_for((("3g.40gb", 2),)), "seven": entry_for((("1g.10gb", 7),))})
    parted.apply("halves")
    created_last = 1  # the id of the lower half: the driver takes the upper one first
    sandbox.simulator.add_process(0, 4711, "python3", gpu_instance=created_last, compute_instance=0)
    refused = parted.apply("seven")
    assert refused.status == 1
    assert "all orderings failed" in refused.last_line, "the sum, not the cause"
    assert "ERROR_IN_USE" in refused.output
    assert [instance["id"] for instance in sandbox.simulator.show()["gpus"][0]["instances"]] == [created_last]
    sandbox.simulator.remove_process(4711)
    assert parted.apply("seven").status == 0


def test_a_gpu_is_divided_anew_while_the_agent_reads_another_and_not_while_it_reads_that_one(
    make_sandbox: MakeSandbox,
) -> None:
    sandbox = make_sandbox("h100-80gb", "h100-80gb")
    machine, halves, thirds = sandbox.simulator, entry_for((("3g.40gb", 2),)), entry_for((("2g.20gb", 3),))
    rows = [{**entry[0], "devices": [index]} for index, entry in enumerate((halves, thirds))]
    parted = MigParted(sandbox, {"before": halves, "after": rows})
    assert parted.apply("before").status == 0
    with Agent(machine) as agent:
        for command, hangs_at, status in (("read", 1, 1), ("read-without 1", 0, 0)):
            agent.ask("read")  # knows the cards
            machine.inject("nvmlDeviceGetComputeMode", "hang", gpu=hangs_at)
            agent.tell(*command.split())
            wait_until(lambda: machine.show()["faults"][0]["hits"] > 0, SECONDS, "the agent to have NVML open")
            done = parted.apply("after")
            machine.clear_faults()
            agent.answer()
            assert done.status == status, done.output
            assert ("ERROR_IN_USE" in done.output) == (status != 0)
            profiles = [[one["profile"] for one in gpu["instances"]] for gpu in machine.show()["gpus"]]
            assert profiles == [["3g.40gb"] * 2, ["3g.40gb"] * 2 if status else ["2g.20gb"] * 3]
            assert parted.check("after").status == status


def test_a_mode_is_not_changed_while_the_agent_reads_another_gpu(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb", "h100-80gb")
    machine, halves = sandbox.simulator, entry_for((("3g.40gb", 2),))
    rows = [{**entry[0], "devices": [index]} for index, entry in enumerate((halves, entry_for(None)))]
    parted = MigParted(sandbox, {"first": rows, "both": halves})
    assert parted.apply("first").status == 0
    with Agent(machine) as agent:
        machine.inject("nvmlDeviceGetComputeMode", "hang", gpu=0)
        agent.tell("read-without", "1")
        wait_until(lambda: machine.show()["faults"][0]["hits"] > 0, SECONDS, "the agent to have NVML open")
        refused = parted.apply("both")
        machine.clear_faults()
        agent.answer()
        assert refused.status == 1, refused.output
        assert not machine.show()["gpus"][1]["mig"]["current"]
    assert parted.apply("both").status == 0


def test_amperes_pending_mode_is_applied_by_resetting_all_gpus(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("a100-40gb", "a100-40gb")
    sandbox.simulator.set_gpu(None, explicit_reset=1)
    parted = MigParted(sandbox, {"all-balanced": entry_for((("3g.20gb", 1), ("2g.10gb", 1), ("1g.5gb", 2)))})
    assert parted.apply("all-balanced").status == 0
    assert parted.check("all-balanced").status == 0
    sandbox.simulator.set_gpu(None, explicit_reset=0, mig_current=0, mig_pending=0)
    for gpu in (0, 1):
        sandbox.simulator.set_gpu(gpu, passthrough=1)
    failed = parted.apply("all-balanced")
    assert failed.status == 1
    assert "error resetting all GPUs" in failed.last_line


def test_a_held_hopper_is_not_changed_and_the_failure_is_told(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    sandbox.simulator.set_gpu(0, busy=1)
    parted = MigParted(sandbox, {"seven": entry_for((("1g.10gb", 7),))})
    failed = parted.apply("seven")
    assert failed.status == 1
    assert "unable to apply MIG config with MIG mode disabled" in failed.last_line
    assert sandbox.simulator.show()["gpus"][0]["mig"] == {"current": False, "pending": False}


def test_nvidias_mig_parted_leaves_the_gpu_on_and_empty_when_a_create_fails_midway(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    sandbox.simulator.inject("nvmlDeviceCreateGpuInstance", "UNKNOWN", skip=3)
    parted = MigParted(sandbox, {"seven": entry_for((("1g.10gb", 7),))})
    assert parted.apply("seven").status == 1
    gpu = sandbox.simulator.show()["gpus"][0]
    assert (gpu["mig"]["current"], gpu["instances"]) == (True, [])


def test_go_nvlib_warns_of_each_gpu_from_v0_15_on_and_the_reason_of_a_failure_is_found_all_the_same(
    make_sandbox: MakeSandbox,
) -> None:
    parted = MigParted(make_sandbox("h100-80gb"), {"too-full": entry_for((("3g.40gb", 2), ("1g.10gb", 1)))})
    failed = parted.apply("too-full")
    warnings = [line for line in failed.output.splitlines() if "WARNING" in line]
    assert {"unable to detect IOMMU FD" in line for line in warnings} == (
        set() if build.MIG_PARTED.version == "v0.13.1" else {True}
    )
    assert "ERROR_INSUFFICIENT_RESOURCES; Error applying" in failure_in(failed.output)

"""The control tool: what people type."""

import json
from pathlib import Path

import pytest
from hack.nvmlsim import build
from hack.nvmlsim.__main__ import main


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NVMLSIM_STATE", str(tmp_path / "machine"))
    return tmp_path / "machine"


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict[str, object]]]:
    capsys.readouterr()
    assert main(["show", "--json"]) == 0
    machine: dict[str, list[dict[str, object]]] = json.loads(capsys.readouterr().out)
    return machine


def test_a_machine_is_made_and_says_that_it_is_simulated(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "--model", "a30", "--model", "t4", "--gpus", "2"]) == 0
    assert capsys.readouterr().out.startswith("SIMULATED machine, driver 580.159.03, 4 GPUs")
    names = [gpu["name"] for gpu in shown(capsys)["gpus"]]
    assert names == ["NVIDIA A30", "NVIDIA A30", "Tesla T4", "Tesla T4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--model", "b100"], "'b100' names no card: choose from a30, "),
        (["create", "--model", "a100"], "'a100' names several cards: choose from a100-40gb, a100-80gb"),
        (["create", "--model", "t4", "--gpus", "17"], "a simulated machine has 1 to 16 GPUs, not 17"),
        (["set", "lots=1"], "there is no field 'lots' to set: choose from"),
        (["set", "lost"], "'lost' is not of the form field=value"),
        (["set", "1g.99gb:id=3"], "NVIDIA H100 80GB HBM3 has no profile 1g.99gb"),
        (["reset", "0000:ff:00.0"], "there is no GPU 0000:ff:00.0: the machine has 0, 0000:17:00.0"),
        (["inject", "process", "1", "--gpu", "3"], "there is no GPU 3: the machine has 1 GPU, from 0 on"),
        (["inject", "process", "1", "--name", "n" * 96], "n… has 96 bytes, the file has room for 95"),
        (["set", f"devices={'/' * 256}"], "has 256 bytes, the file has room for 255"),
        (["create", "--model", "t4", "--driver", "5" * 80], "has 80 bytes, the file has room for 79"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_choice(
    arguments: list[str], message: str, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["create", "--model", "h100-80gb"]) == 0
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_without_a_state_file_the_tool_says_how_to_name_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NVMLSIM_STATE", raising=False)
    assert main(["show"]) == 1
    assert "export NVMLSIM_STATE=FILE" in capsys.readouterr().err


def test_fields_faults_processes_and_resets_reach_the_machine(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["create", "--model", "a100-40gb", "--gpus", "2"])
    assert main(["set", "--gpu", "1", "lost=1", "mig_pending=1"]) == 0
    assert main(["inject", "fault", "nvmlInit", "hang", "--count", "1"]) == 0
    assert main(["inject", "process", "4711", "--name", "python"]) == 0
    assert main(["inject", "event", "xid", "79", "--gpu", "1"]) == 0
    machine = shown(capsys)
    assert [gpu["lost"] for gpu in machine["gpus"]] == [False, True]
    assert machine["faults"][0]["fault"] == "hang"
    assert machine["processes"][0]["pid"] == 4711
    assert main(["reset", "1"]) == 0
    assert main(["reset", "0,1"]) == 1
    assert "GPU 0 is in use" in capsys.readouterr().err
    assert main(["inject", "process", "4711", "--end"]) == 0
    assert main(["inject", "clear"]) == 0
    assert main(["reboot"]) == 0
    machine = shown(capsys)
    assert machine["gpus"][1]["mig"] == {"current": True, "pending": True}
    assert (machine["faults"], machine["processes"]) == ([], [])


def test_what_containers_see_is_set_like_everything_else(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["create", "--model", "t4"])
    assert main(["set", f"capabilities={tmp_path}", f"devices={tmp_path}"]) == 0
    assert main(["inject", "process", "7", "--graphics", "--pid-namespace", "4026531836"]) == 0
    assert main(["inject", "fault", "nvmlDeviceGetHandleByIndex", "IRQ_ISSUE", "--gpu", "0"]) == 0
    assert main(["reload"]) == 0
    machine = shown(capsys)
    assert machine["processes"][0]["graphics"] is True
    assert machine["processes"][0]["pid_namespace"] == 4026531836
    assert machine["faults"][0]["fault"] == "IRQ_ISSUE"


@pytest.mark.tools
def test_env_prints_what_a_shell_can_take(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["create", "--model", "t4"])
    capsys.readouterr()
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"export NVMLSIM_STATE={state}",
        f"export LD_LIBRARY_PATH={build.library_directory()}",
    ]

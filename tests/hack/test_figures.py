"""`make report`: what is measured goes into one file, and from there onto the page. Nothing is measured here."""

import subprocess
from pathlib import Path

import pytest
from hack.faultproxy.calls import Incoming
from hack.faultproxy.faults import RandomRefusals
from hack.figures import page
from hack.figures.__main__ import FLEET, MEASUREMENTS, MeasurementError, in_process, main
from hack.figures.fleet import STEPS, pool_size
from hack.figures.page import NAMES, TABLES, Figures
from tests.wording import lacks

from hack import generate

PLACES = "\n".join(f"<!-- figures {name}: words -->\n<!-- end of figures -->\n" for name in TABLES)
IDLE = Figures([["idle", "operator", 5000, 60.04, 0.512, 98.4, 0, 12]], "a word", "2026-11-27, 2 cores")


def test_the_page_shows_the_saved_figures_and_says_what_was_not_measured() -> None:
    shown = page.written(f"Before.\n{PLACES}After.\n", {"idle": IDLE})
    assert "| idle | operator | 5,000 | 60 | 0.512 | 98.4 | 0 | 12 |\n" in shown
    assert "- *idle*: 2026-11-27, 2 cores; a word\n" in shown
    assert shown.count("is not measured yet: `make report ONLY=") == len(NAMES) - 1
    assert shown.startswith("Before.\n")
    assert shown.endswith("After.\n")
    assert page.written(shown, {"idle": IDLE}) == shown, "a second time nothing changes"
    assert page.written(shown, {}) != shown


def test_cells_are_rounded_and_a_missing_number_is_a_dash() -> None:
    cells = (None, 5000, 1234.5, 12.345, "a|b")
    assert [page.shown(cell) for cell in cells] == ["–", "5,000", "1,234", "12.3", "a\\|b"]


def test_a_page_without_a_place_for_each_table_is_refused() -> None:
    with pytest.raises(ValueError, match="one place for each table: fleet, blocked"):
        page.written(PLACES.replace("figures day", "figures night"), {})


def test_every_figure_has_the_columns_of_its_table() -> None:
    saved = page.load()
    assert set(saved) <= set(NAMES) == set(MEASUREMENTS)
    widths = {name: len(columns) for names, columns in TABLES.values() for name in names}
    assert {name for name, figures in saved.items() for row in figures.rows if len(row) != widths[name]} == set()


def test_a_measurement_alone_leaves_the_others_and_one_that_fails_keeps_its_earlier_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "measured.json"
    page.merge("roll", Figures([["roll", "operator"]]), file)
    page.merge("idle", IDLE, file)

    def measure(name: str) -> Figures:
        if name == "idle":
            raise TimeoutError("the operator did not fall silent")
        return Figures([[name, "new"]])

    assert main(["--only", "idle,roll,start", "--file", str(file)], measure) == 1
    assert page.load(file) == {"start": Figures([["start", "new"]]), "idle": IDLE, "roll": Figures([["roll", "new"]])}
    assert not lacks(
        capsys.readouterr().out,
        "idle: failed",
        "TimeoutError: the operator did not fall silent",
        "make report ONLY=idle",
    )


@pytest.mark.parametrize(
    ("body", "status", "printed"),
    [
        ("print(*range(9), sep='\\n'); raise SystemExit(3)", 3, "4\n5\n6\n7\n8"),
        ("", 0, "no line"),
        ("print('[1]')", 0, r"\[1\]"),
    ],
    ids=["failed", "silent", "something else"],
)
def test_a_process_without_figures_is_named_with_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, status: int, printed: str
) -> None:
    (tmp_path / "broken.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = rf"^python -m broken now ended with exit status {status}, without figures\. Its .* printed {printed}$"
    with pytest.raises(MeasurementError, match=said):
        in_process("broken", "now")


def test_every_figure_of_the_fleet_is_adopt_or_a_step_after_it() -> None:
    assert {"adopt", *STEPS} == set(FLEET)


@pytest.mark.parametrize("nodes", ["30", "0", "-100", "abc", "1e3", "²", "25050"])
def test_a_fleet_whose_pools_have_no_node_or_too_many_is_refused(nodes: str) -> None:
    with pytest.raises(ValueError, match=f"^NODES={nodes} is not a number from 50 to 25049: use NODES=1000$"):
        pool_size({"NODES": nodes})
    assert [pool_size({"NODES": nodes}) for nodes in ("50", "1049", "25049", "")] == [1, 20, 500, 100]


def test_the_command_says_what_is_wrong_with_the_number_of_nodes_and_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NODES", "abc")
    file = tmp_path / "measured.json"
    assert main(["--only", "faulty,idle", "--file", str(file)], pytest.fail) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert not lacks(err, "NODES=abc", "50 to 25049", "NODES=1000")
    assert not file.exists()
    other = Figures([["healthy"]])
    assert main(["--only", "faulty", "--file", str(file)], lambda _: other) == 0, "no fleet, so no NODES"
    assert page.load(file) == {"faulty": other}


def test_the_commit_of_figures_is_the_last_one_of_the_operator_and_says_if_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.test", "-c", "commit.gpgsign=false")
        return subprocess.check_output(["git", *who, *arguments], cwd=tmp_path, text=True).strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert page.operator_commit(tmp_path) == "unknown", "no checkout"
    git("init", "-q")
    for name in ("operator", "docs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("1")
        git("add", ".")
        git("commit", "-q", "-m", name)
    commit = git("rev-parse", "HEAD^")[:12]
    assert page.operator_commit(tmp_path) == commit
    (tmp_path / "docs" / "x").write_text("2")
    assert page.operator_commit(tmp_path) == commit
    (tmp_path / "operator" / "x").write_text("2")
    assert page.operator_commit(tmp_path) == f"{commit}-dirty"


def test_an_unknown_measurement_is_named_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "idle,idel"], pytest.fail) == 2
    assert "no measurement 'idel'; choose from adopt, " in capsys.readouterr().out


def test_a_page_that_is_older_than_its_figures_is_named(tmp_path: Path) -> None:
    files = {page.PAGE: page.written(PLACES, {})}
    list(generate.write(files, tmp_path))
    newer = {page.PAGE: page.written(PLACES, {"idle": IDLE})}
    assert list(generate.find_problems(newer, tmp_path)) == [f"{page.PAGE} differs from what its source generates"]


def test_a_proxy_refuses_about_the_share_of_calls_that_it_was_told() -> None:
    call = Incoming("GET", "/api/v1/nodes", "", b"", "", "", 0, 0)
    fault = RandomRefusals(0, "all", share=0.05)
    assert 60 < sum(fault.concerns(call) for _ in range(2000)) < 140

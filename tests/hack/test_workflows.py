"""The hosted workflows: checked by actionlint, built from its module; they run nothing that is not named by commit."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.ci import PARTS
from hack.cluster import toolchain
from hack.generate import ROOT

FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yaml"))
VERBS = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
BROKEN = """
on: push
jobs:
  one:
    runs-on: ubuntu-24.04
    steps:
      - run: echo ${{ github.nothing }}
"""


def lint(actionlint: Path, *files: Path) -> tuple[int, str]:
    """Exit status and words of actionlint, which would call shellcheck and pyflakes where they happen to be."""
    command = [str(actionlint), "-shellcheck=", "-pyflakes=", "-no-color", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.tools
def test_actionlint_finds_nothing_in_the_workflows_but_does_in_a_broken_one(tmp_path: Path, actionlint: Path) -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yaml", "codeql.yaml", "release.yaml", "scorecard.yaml"]
    assert lint(actionlint, *WORKFLOWS) == (0, "")
    broken = tmp_path / "broken.yaml"
    broken.write_text(BROKEN)
    status, said = lint(actionlint, broken)
    assert status == 1
    assert 'property "nothing" is not defined' in said


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_named_by_commit_with_its_version_beside(path: Path) -> None:
    used = re.findall(r"uses: (?!\./)(\S+)(.*)$", path.read_text(), re.MULTILINE)
    assert used
    pinned = re.compile(r"[\w-]+/[\w-]+(?:/[\w-]+)?@[0-9a-f]{40}")
    assert [one for one, _ in used if not pinned.fullmatch(one)] == []
    assert [one for one, version in used if not re.fullmatch(r"  # v\d+\.\d+\.\d+", version)] == []


def test_all_workflows_name_the_same_commit_of_an_action() -> None:
    uses = (one for path in WORKFLOWS for one in re.findall(r"uses: ([\w-]+/[\w-]+)\S*@(\S+)", path.read_text()))
    used = set(uses)
    assert len({repository for repository, _ in used}) == len(used)


def test_who_may_write_is_said_by_job_and_the_rest_may_read() -> None:
    for path in WORKFLOWS:
        assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}, path.name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_they_run_of_ours_is_there(path: Path) -> None:
    text = "\n".join(step.get("run", "") for job in jobs(path).values() for step in job.get("steps", ()))
    assert set(re.findall(r"\bmake ([a-z0-9-]+)", text)) <= VERBS
    modules = re.findall(r"python -m (hack[\w.]*)", text)
    places = {name: ROOT / name.replace(".", "/") for name in modules}
    assert [
        name
        for name, place in places.items()
        if not (place.with_suffix(".py").is_file() or (place / "__main__.py").is_file())
    ] == []
    called = [job["uses"] for job in jobs(path).values() if "uses" in job]
    assert [name for name in called if not (ROOT / name).is_file()] == []


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


def test_each_part_of_ci_is_a_check_of_its_own_and_all_must_pass_before_the_commit_is_recorded() -> None:
    ci = jobs(FOLDER / "ci.yaml")
    assert tuple(ci["checks"]["strategy"]["matrix"]["part"]) == PARTS
    assert ci["passed"]["needs"] == "checks"


def test_a_release_needs_all_of_ci_at_its_commit_and_publishes_the_image_tested_there() -> None:
    release = jobs(FOLDER / "release.yaml")
    assert release["ci"] == {"uses": "./.github/workflows/ci.yaml"}
    assert release["release"]["needs"] == "ci"
    assert release["files"]["needs"] == "release"
    given = {step["with"]["name"] for step in steps_with("ci.yaml", "actions/upload-artifact")}
    taken = [step["with"] for step in steps_with("release.yaml", "actions/download-artifact")]
    assert given == {"images", "tested"}
    assert {"name": "tested", "path": "build"} in taken


def steps_with(name: str, action: str) -> list[dict[str, Any]]:
    """The steps of a workflow that use this action, in all of its jobs."""
    steps = [step for job in jobs(FOLDER / name).values() for step in job.get("steps", ())]
    return [step for step in steps if str(step.get("uses", "")).startswith(f"{action}@")]


def test_the_release_workflow_leaves_every_decision_to_our_program() -> None:
    """Each of its steps is one command, without pipes, conditions and expansions of the shell."""
    steps = [step for job in jobs(FOLDER / "release.yaml").values() for step in job.get("steps", ())]
    scripts = [step["run"].strip() for step in steps if "run" in step]
    assert scripts
    assert [text for text in scripts if re.search(r"\n|\||;|&&|\$\(|\$\{|\bif\b", text)] == []


@pytest.fixture(scope="module")
def actionlint() -> Path:
    return toolchain.program("actionlint")


GITHUB = ROOT / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
INPUTS = {"textarea", "input", "dropdown", "checkboxes"}
LINK = re.compile(r"\]\(([^)#]+)")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_has_what_github_asks_of_one(path: Path) -> None:
    form = read(path)
    assert form["name"]
    assert form["description"]
    asked = [part for part in form["body"] if part["type"] in INPUTS]
    assert len({part["id"] for part in asked}) == len(asked) > 0
    assert {part["type"] for part in form["body"]} <= INPUTS | {"markdown"}
    assert all(part["attributes"]["label"] for part in asked)
    for text in (part["attributes"]["value"] for part in form["body"] if part["type"] == "markdown"):
        pages = [link.removeprefix("../blob/main/") for link in LINK.findall(text)]
        assert [page for page in pages if not (ROOT / page).exists() and page != "../security/advisories/new"] == []


def test_a_report_of_a_fault_asks_for_a_support_bundle() -> None:
    (bundle,) = [part for part in read(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")["body"] if part.get("id") == "bundle"]
    assert bundle["validations"]["required"]
    assert "kubectl gpusharing support-bundle" in bundle["attributes"]["description"]


def test_every_path_that_has_an_owner_exists() -> None:
    rows = [line.split() for line in (GITHUB / "CODEOWNERS").read_text().splitlines() if line and line[0] != "#"]
    assert rows[0][0] == "*"
    assert [path for path, *_ in rows[1:] if not (ROOT / path.lstrip("/")).is_dir()] == []
    assert all(owner.startswith("@") for _, *owners in rows for owner in owners)


def test_updates_are_proposed_for_every_module_and_lock() -> None:
    updates = {one["package-ecosystem"]: one for one in read(GITHUB / "dependabot.yml")["updates"]}
    assert set(updates) == {"pip", "github-actions", "gomod"}
    modules = {f"/{path.parent.relative_to(ROOT)}" for path in (ROOT / "hack").glob("**/go.mod")}
    assert set(updates["gomod"]["directories"]) == modules - {"/hack/nvidia/dra-driver/nvfm"}, "that is a stub"

"""What the hosting site reads of the repository: owners, forms for issues, updates."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.generate import ROOT

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

"""A release before it is published (hack/release): what it consists of, and what forbids it.
Pushing, signing and installing are played on real nodes: tests/e2e/test_release.py."""

import io
import json
import re
import tarfile
import tomllib
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import trove_classifiers
from hack.generate import ROOT
from hack.images.advisories import AdvisoryError
from hack.images.contents import DEBIAN, PYPI, Origin, document
from hack.images.layers import archive, configuration, pack
from hack.krew import PATH as KREW
from hack.release import gate, notes, package
from hack.release.__main__ import main
from hack.release.chart import CHART
from hack.release.gate import Candidate, find_obstacles, read_accepted, scan
from hack.release.index import ArchivedImage, LayoutError, read_archive, write_layout
from hack.release.prepare import SUMS, Prepared, PrepareError, make_empty, prepare, read_prepared, read_usable, sums
from hack.release.publish import PublishError, log_in, read_platforms
from tests.images.test_advisories import H2, SSL, advisory
from tests.wording import lacks

SOURCE = "https://example.test/team/x"
COMMIT = "a" * 40
NOW = datetime(2026, 12, 1, tzinfo=UTC)
LOG = """# Changelog

## Unreleased

## 0.1.0 - 2026-12-01

Introduction.

### Added

- One. More.
- Two

## 0.0.9
"""


# --- one source of the version ----------------------------------------------------------------------------


def test_chart_and_krew_have_the_version_of_the_python_package() -> None:
    about = (CHART / "Chart.yaml").read_text()
    assert f"\nversion: {package.version()}\n" in about
    assert f'\nappVersion: "{package.version()}"\n' in about
    assert f"  version: v{package.version()}\n" in (ROOT / KREW).read_text()


def test_another_version_than_the_projects_is_refused_with_the_place_to_change(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match=r"pyproject\.toml says version = .* and not 7\.0\.0: change it there"):
        prepare("7.0.0", out=tmp_path)


def test_a_folder_with_a_release_is_emptied_and_a_new_one_is_made(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "deep" / "out", tmp_path / "elsewhere"
    make_empty(out)
    assert list(out.iterdir()) == []
    prepared_in(out)
    (out / "NOTES").touch()
    (elsewhere / "kept").mkdir(parents=True)
    (out / "image").symlink_to(elsewhere)
    make_empty(out)
    assert list(out.iterdir()) == []
    assert (elsewhere / "kept").is_dir(), "a link is removed, and not what it leads to"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["README.md"], "is not a prepared release (it has README.md)"),
        (["NOTES", "README.md", "files"], "is not a prepared release (it has README.md)"),
        (["files"], "is not a prepared release (it has no NOTES)"),
    ],
    ids=["something else", "a release and something else", "a folder of that name"],
)
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], reason: str
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").touch()
    assert main(["prepare", package.version(), "--out", str(tmp_path)]) == 1
    assert not lacks(capsys.readouterr().err, str(tmp_path), reason)
    assert sorted(path.parent.name for path in tmp_path.glob("*/kept")) == names


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("kept")
    with pytest.raises(PrepareError, match=r"out is not a folder: name another one with --out"):
        make_empty(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "kept"


def test_an_archive_is_used_again_only_if_it_must_be_of_this_checkout(tmp_path: Path) -> None:
    dirty = f"{COMMIT}-dirty"
    origin = Origin("x", "0.1.0", "Shares.", "Apache-2.0", COMMIT, 0, SOURCE)
    path = write_archive(tmp_path, "amd64", revision=COMMIT, source=SOURCE)
    assert read_usable(path, origin) is None, "its bill of materials is missing"
    path.with_suffix(".spdx.json").write_text("{}")
    assert read_usable(path, origin) == read_archive(path)
    assert read_usable(path, replace(origin, revision="b" * 40)) is None
    assert read_usable(path, replace(origin, source="")) is None
    assert read_usable(tmp_path / "gone.tar", origin) is None
    path = write_archive(tmp_path, "amd64", revision=dirty, source=SOURCE)
    assert read_usable(path, replace(origin, revision=dirty)) is None, "of changes that may be others"


def test_a_checkout_with_changes_is_said_before_anything_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMAGE_REVISION", f"{COMMIT}-dirty")
    assert main(["prepare", "7.0.0", "--out", str(tmp_path)]) == 1
    assert not lacks(capsys.readouterr().err, "not published", COMMIT, "uncommitted changes")


def test_a_wrong_time_of_the_commit_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    prepared_in(tmp_path)
    assert main(["prepare", package.version(), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("SOURCE_DATE_EPOCH=today is not a number of seconds")
    assert (tmp_path / "release.json").exists()


# --- the Python package -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("package")
    return package.build(package.write_source(folder / "source", SOURCE), folder / "out", 1_763_676_000)


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as opened:
        (name,) = [name for name in opened.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_string(opened.read(name).decode())


def test_the_sdist_has_what_the_wheel_is_built_from_and_nothing_else(built: tuple[Path, Path]) -> None:
    wheel, sdist = built
    with tarfile.open(sdist) as tar, zipfile.ZipFile(wheel) as opened:
        packed = {name.partition("/")[2] for name in tar.getnames()}
        modules = {
            f"operator/{name}" for name in opened.namelist() if name.startswith(("gpusharing/", "kubectl_gpusharing/"))
        }
    assert modules <= packed
    assert packed - modules == {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}


def test_its_metadata_says_where_it_comes_from_and_what_it_runs_on(built: tuple[Path, Path]) -> None:
    said = metadata(built[0])
    urls = [row.partition(", ")[2] for row in said.get_all("Project-URL", [])]
    assert len(urls) == 4
    assert all(url.startswith(SOURCE) for url in urls)
    classifiers = set(said.get_all("Classifier", []))
    assert classifiers <= trove_classifiers.classifiers
    assert "Programming Language :: Python :: 3.11" in classifiers
    assert said["Description-Content-Type"] == "text/markdown"


def test_no_link_of_its_readme_is_relative(built: tuple[Path, Path]) -> None:
    readme = str(metadata(built[0]).get_payload())
    targets = re.findall(r"\]\(([^)]+)\)", readme)
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith("https://")] == []
    assert f"({SOURCE}/raw/v{package.version()}/docs/images/" in readme


def test_a_link_is_absolute_at_the_tag_and_others_stay_as_they_are() -> None:
    text = "[a](docs/a.md#b) ![p](p.svg) [t](#tests) [w](https://w.test/x) [two\nlines](b.md) `f(x)[0](y)`"
    assert package.with_absolute_links(text, "https://s", "v1").splitlines() == [
        "[a](https://s/blob/v1/docs/a.md#b) ![p](https://s/raw/v1/p.svg) [t](https://s/blob/v1/README.md#tests)"
        " [w](https://w.test/x) [two",
        "lines](https://s/blob/v1/b.md) `f(x)[0](https://s/blob/v1/y)`",
    ]


def test_without_an_address_the_package_names_none(tmp_path: Path) -> None:
    folder = package.write_source(tmp_path / "source", "")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert "urls" not in project
    assert project["optional-dependencies"]["cli"]
    assert (folder / "README.md").read_text() == (ROOT / "README.md").read_text()


def test_a_relative_folder_is_that_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = package.write_source(tmp_path / "source", SOURCE)
    monkeypatch.chdir(tmp_path)
    package.build(source, Path("out"), 1_763_676_000)
    assert [path.suffix for path in sorted((tmp_path / "out").iterdir())] == [".whl", ".gz"]


def test_equal_sources_give_equal_bytes(built: tuple[Path, Path], tmp_path: Path) -> None:
    again = package.build(package.write_source(tmp_path / "s", SOURCE), tmp_path / "out", 1_763_676_000)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in built]


# --- notes ------------------------------------------------------------------------------------------------


def test_the_changelog_can_be_released_as_it_is() -> None:
    assert notes.find_flaw(notes.CHANGELOG.read_text(), package.version()) == ""


def test_notes_are_the_section_of_the_version_and_the_annotation_has_first_sentences() -> None:
    text = notes.read_notes(LOG, "0.1.0")
    assert text.startswith("Introduction.")
    assert text.endswith("- Two")
    assert notes.changes(text) == [{"kind": "added", "description": "One."}, {"kind": "added", "description": "Two"}]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (LOG.replace("0.1.0", "0.1.01"), "has no changes for 0.1.0: add a section ## 0.1.0"),
        (LOG.replace("### Added", ""), "has no changes for 0.1.0"),
        (LOG.replace("- Two", "- Two\n" * 80), "has 85 lines, and at most 80 are read"),
    ],
    ids=["no section", "no heading in it", "too long"],
)
def test_a_changelog_that_cannot_be_the_notes_says_why(log: str, said: str) -> None:
    assert said in notes.find_flaw(log, "0.1.0")


# --- the image of both platforms --------------------------------------------------------------------------


def write_archive(folder: Path, architecture: str, **labels: str) -> Path:
    """A small image as `make images` writes it."""
    (folder / "tree").mkdir(exist_ok=True)
    (folder / "tree" / "program").write_text(architecture)
    layer = pack("all", folder / "tree", 0)
    marks = {f"org.opencontainers.image.{key}": value for key, value in labels.items()}
    config = configuration(architecture, [layer], {"User": "65532:65532"}, marks, "2026-12-01T00:00:00Z")
    path = folder / f"{architecture}.tar"
    path.write_bytes(archive("localhost/x:1", config, [layer], marks, 0)[0])
    return path


@pytest.fixture
def images(tmp_path: Path) -> list[ArchivedImage]:
    paths = [write_archive(tmp_path, name, version="0.1.0", revision=COMMIT, title=name) for name in ("arm64", "amd64")]
    return [read_archive(path) for path in paths]


def test_one_index_has_both_platforms_with_the_digests_that_were_tested(
    images: list[ArchivedImage], tmp_path: Path
) -> None:
    digest = write_layout(images, tmp_path / "layout")
    assert read_platforms(tmp_path / "layout", digest) == [
        (image.architecture, image.manifest["digest"]) for image in reversed(images)
    ]
    assert write_layout(images[::-1], tmp_path / "other") == digest, "their order does not count"
    index = json.loads((tmp_path / "layout" / "blobs" / digest.replace(":", "/")).read_text())
    assert index["annotations"] == {
        "org.opencontainers.image.revision": COMMIT,
        "org.opencontainers.image.version": "0.1.0",
    }, "what differs between the platforms is not said of the index"


@pytest.mark.parametrize("content", [None, b"no tar", b""], ids=["missing", "no tar", "empty"])
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.tar"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LayoutError, match=r"x\.tar is no image that `make images` wrote"):
        read_archive(path)


@pytest.mark.parametrize("lacking", ["mediaType", "size", "platform", "platform.architecture"])
def test_an_image_with_an_incomplete_index_is_refused_with_what_it_lacks(tmp_path: Path, lacking: str) -> None:
    whole, spoiled = write_archive(tmp_path, "amd64"), tmp_path / "spoiled.tar"
    with tarfile.open(whole) as before, tarfile.open(spoiled, "w") as after:
        for member in before:
            data = extracted.read() if (extracted := before.extractfile(member)) else b""
            if member.name == "index.json":
                index = json.loads(data)
                entry, (*parents, last) = index["manifests"][0], lacking.split(".")
                for parent in parents:
                    entry = entry[parent]
                del entry[last]
                data = json.dumps(index).encode()
                member.size = len(data)
            after.addfile(member, io.BytesIO(data))
    with pytest.raises(
        LayoutError, match=rf"spoiled\.tar is no image .*: it lacks '{lacking.split('.')[-1]}': run make images"
    ):
        read_archive(spoiled)


# --- what forbids it --------------------------------------------------------------------------------------


@pytest.fixture
def candidate(images: list[ArchivedImage]) -> Candidate:
    passed = [COMMIT, *(image.sha256 for image in images)]
    return Candidate("0.1.0", COMMIT, passed, LOG, "registry.test/team", SOURCE, images)


def test_one_commit_that_passed_with_notes_and_its_own_images_may_be_published(candidate: Candidate) -> None:
    assert list(find_obstacles(candidate)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"registry": ""}, "the chart names no registry: prepare it with REGISTRY="),
        ({"source": package.UNKNOWN_SOURCE}, "the package names no repository: prepare it with SOURCE="),
        ({"passed": []}, f"CI has not passed at {COMMIT} (no run passed): run .ci/run"),
        ({"passed": ["b" * 40]}, f"(the last run that passed was at {'b' * 40})"),
        ({"changelog": "# Changelog\n"}, "CHANGELOG.md has no changes for 0.1.0"),
        (
            {"changelog": LOG.replace("## Unreleased\n", "## Unreleased\n\n- Three.\n")},
            "CHANGELOG.md has 1 entry under Unreleased, which the commit contains: say in the section 0.1.0",
        ),
    ],
    ids=["no registry", "no repository", "no CI", "CI of another commit", "no notes", "entries without a version"],
)
def test_what_is_missing_forbids_it(candidate: Candidate, change: dict[str, Any], said: str) -> None:
    assert said in next(find_obstacles(replace(candidate, **change)))


def test_an_image_that_ci_did_not_run_forbids_it(candidate: Candidate) -> None:
    (problem,) = find_obstacles(replace(candidate, passed=candidate.passed[:2]))
    assert not lacks(problem, "amd64", f"IMAGE_SOURCE={SOURCE} .ci/run")


def test_a_checkout_without_a_commit_forbids_it(candidate: Candidate) -> None:
    unknown, *_ = find_obstacles(replace(candidate, commit="unknown"))
    assert not lacks(unknown, "commit is unknown", "40 hexadecimal digits")


def test_changes_that_no_commit_has_and_images_of_another_commit_forbid_it(candidate: Candidate) -> None:
    dirty, ci, *others = find_obstacles(replace(candidate, commit=f"{COMMIT}-dirty"))
    assert not lacks(dirty, COMMIT, "uncommitted changes")
    assert "CI has not passed" in ci
    assert [re.match(r"the image for (\w+) is 0\.1\.0 at commit a+, and not", one) is not None for one in others] == [
        True,
        True,
    ]


RECENT = {"modified": "2026-11-30T10:00:00.5Z"}
COVERED = [advisory("PyPI", "other", **RECENT), advisory("Debian:13", "other", **RECENT)]


@pytest.fixture
def bill(tmp_path: Path) -> Path:
    origin = Origin("gpu-sharing-operator", "0.1.0", "Shares.", "Apache-2.0", COMMIT, 0)
    path = tmp_path / "x.spdx.json"
    path.write_text(json.dumps(document(origin, "amd64", f"sha256:{'1' * 64}", [H2, SSL])))
    return path


def write(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(entries))
    return path


def test_recent_advisories_about_other_packages_forbid_nothing(bill: Path, tmp_path: Path) -> None:
    parts = gate.read_parts_of(bill)
    assert {(part.ecosystem, part.source, part.source_version) for part in parts} == {
        (PYPI, "h2", H2.version),
        (DEBIAN, "openssl", SSL.version),
    }
    assert scan([bill], [write(tmp_path / "osv.json", COVERED)], {}, NOW) == []


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], ["the advisories have none about Debian", "the advisories have none about PyPI"]),
        (COVERED[:1], ["the advisories have none about Debian: add https://"]),
        (
            [COVERED[0], {**COVERED[1], "modified": "2026-11-20T10:00:00Z"}],
            ["the newest advisory about Debian is of 2026-11-20, more than 7 days ago: fetch them anew"],
        ),
        ([COVERED[0], {**COVERED[1], "modified": "soon"}], ["the advisories have none about Debian"]),
    ],
    ids=["empty", "one ecosystem", "old", "without a time"],
)
def test_advisories_that_would_find_nothing_forbid_it(
    bill: Path, tmp_path: Path, entries: list[dict[str, Any]], said: list[str]
) -> None:
    problems = scan([bill], [write(tmp_path / "osv.json", entries)], {}, NOW)
    assert len(problems) == len(said)
    assert all(problem.startswith(start) for problem, start in zip(problems, said, strict=True))


def test_no_file_and_a_missing_file_forbid_it(bill: Path, tmp_path: Path) -> None:
    (none,) = scan([bill], [], {}, NOW)
    assert "no file of advisories" in none
    (missing,) = scan([bill], [tmp_path / "gone.json"], {}, NOW)
    assert "gone.json" in missing


def test_an_advisory_that_names_a_part_forbids_it_unless_it_is_accepted(bill: Path, tmp_path: Path) -> None:
    hit = {**advisory("Debian:13", "openssl", {"introduced": "0"}), "summary": "bad"}
    exports = tmp_path / "all.zip"
    with zipfile.ZipFile(exports, "w") as packed:
        for number, entry in enumerate([*COVERED, hit]):
            packed.writestr(f"{number}.json", json.dumps(entry))
    (problem,) = scan([bill], [exports], {}, NOW)
    assert not lacks(
        problem, f"libssl3t64 {SSL.version}", "A-1 (bad)", "no fixed version", "deploy/accepted-advisories.txt"
    )
    assert scan([bill], [exports], {"A-1": "not reachable"}, NOW) == []


def test_an_accepted_advisory_has_a_reason() -> None:
    assert read_accepted("# comment\n\nA-1 the image has no shell\n") == {"A-1": "the image has no shell"}
    assert read_accepted(gate.ACCEPTED.read_text()) == {}
    with pytest.raises(AdvisoryError, match="A-2 has no reason; a valid line: "):
        read_accepted("A-2\n")


# --- the steps --------------------------------------------------------------------------------------------


def prepared_in(out: Path) -> Prepared:
    made = Prepared("0.1.0", "registry.test/team", SOURCE, f"sha256:{'1' * 64}")
    (out / "files").mkdir(parents=True)
    (out / "files" / "x.tgz").write_text("x")
    (out / "files" / SUMS).write_text(sums(out / "files"))
    (out / "release.json").write_text(json.dumps(made.__dict__))
    return made


def test_what_was_prepared_is_read_back_and_a_changed_file_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PrepareError, match=r"nothing is prepared in .*: make release VERSION="):
        read_prepared(out)
    assert prepared_in(out) == read_prepared(out)
    (out / "files" / "x.tgz").write_text("y")
    with pytest.raises(PrepareError, match=r"are not those in SHA256SUMS: make release VERSION=0\.1\.0"):
        read_prepared(out)


def test_nothing_is_published_while_something_forbids_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    prepared_in(out)
    for name in ("amd64", "arm64"):
        made = write_archive(tmp_path, name, version="0.1.0", revision="b" * 40)
        made.rename(out / "files" / f"gpu-sharing-operator-0.1.0-{name}.tar")
    (out / "files" / SUMS).write_text(sums(out / "files"))
    assert main(["publish", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "the image for amd64 is 0.1.0 at commit b" in said.err
    assert "no file of advisories" in said.err
    assert re.search(r"^\d+ reasons not to publish 0\.1\.0$", said.err, re.MULTILINE)


def test_a_login_names_the_variables_that_are_missing() -> None:
    with pytest.raises(PublishError, match="set REGISTRY_USER and REGISTRY_PASSWORD to log in"):
        log_in({"REGISTRY": "registry.test/team"})

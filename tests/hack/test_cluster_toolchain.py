"""hack/cluster/toolchain.py: where builds go, when they are done again, and what is said when one cannot be."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hack.cache import UnavailableError, alone, cache_root, make_once, state_root
from hack.cluster import toolchain
from hack.cluster.toolchain import ToolRecipe
from tests.wording import lacks

GO = """#!/bin/sh
case "$*" in
  "env GOVERSION") echo {version} ;;
  *) echo run >> {folder}/runs; {build} ;;
esac
"""
BUILD = 'sleep 0.2; echo built > "$GOBIN/tool"'
RECIPE = ToolRecipe("tool", "v1.0.0", ("source",), ("go", "install", "example.com/tool"), ("tool",), calls=("alias",))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on PATH, before programs that every machine has."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def fake_go(folder: Path, *, version: str = "go1.26.8", build: str = BUILD) -> Path:
    """Put a program `go` there that plays the Go command; returns the file that has a line per build."""
    go = folder / "go"
    go.write_text(GO.format(version=version, build=build, folder=folder))
    go.chmod(0o755)
    return folder / "runs"


def refusal(cache: Path) -> str:
    with pytest.raises(UnavailableError) as raised:
        toolchain.build_once(RECIPE, cache)
    return str(raised.value)


CACHE_CASES = [
    pytest.param({"HOME": "/h"}, "/h/.cache/gpu-sharing-operator", id="the home's .cache by default"),
    pytest.param({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/gpu-sharing-operator", id="XDG_CACHE_HOME when set"),
    pytest.param({"XDG_CACHE_HOME": "/x", "GPUSHARING_CACHE": "/g"}, "/g/gpu-sharing-operator", id="ours first"),
]


@pytest.mark.parametrize(("environ", "expected"), CACHE_CASES)
def test_programs_are_cached_outside_the_checkout(environ: dict[str, str], expected: str) -> None:
    assert cache_root(environ) == Path(expected)


def test_state_goes_to_the_runtime_folder_only_where_it_can_be_written(tmp_path: Path) -> None:
    assert state_root({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "gpu-sharing-operator"
    absent = {"XDG_RUNTIME_DIR": str(tmp_path / "absent"), "GPUSHARING_CACHE": "/g"}
    assert state_root(absent) == Path("/g/gpu-sharing-operator/run")


def test_a_change_of_source_version_or_command_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    others = [
        replace(RECIPE, version="v1.0.1"),
        replace(RECIPE, inputs=("changed",)),
        replace(RECIPE, command=(*RECIPE.command, "-race")),
    ]
    assert len({recipe.directory(tmp_path) for recipe in (RECIPE, *others)}) == 4
    assert RECIPE.directory(tmp_path).name.startswith("tool-v1.0.0-")


def test_the_control_plane_is_stamped_with_the_version_that_go_mod_pins() -> None:
    recipe = toolchain.controlplane_recipe()
    flags = next(argument for argument in recipe.command if argument.startswith("-ldflags="))
    assert f"k8s.io/component-base/version.gitVersion={recipe.version}" in flags
    assert f"k8s.io/client-go/pkg/version.gitVersion={recipe.version}" in flags
    assert "gitMajor=1" in flags


def test_a_go_mod_without_kubernetes_is_refused_with_the_command_that_restores_it() -> None:
    with pytest.raises(UnavailableError, match="git checkout"):
        toolchain.kubernetes_version("module x\nrequire k8s.io/kubectl v0.36.3\n")


def folders(cache: Path) -> list[str]:
    return [path.name.rpartition("-")[0] for path in cache.iterdir() if path.is_dir()]


def test_two_builders_at_once_build_once_and_leave_nothing_else_behind(folder: Path) -> None:
    runs = fake_go(folder)
    cache = folder / "cache"
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: toolchain.build_once(RECIPE, cache), range(2)))
    assert made == [RECIPE.directory(cache)] * 2
    assert runs.read_text() == "run\n"
    assert (made[0] / "alias").read_text() == "built\n"
    assert folders(cache) == ["tool-v1.0.0"]


def test_the_next_build_sweeps_what_a_killed_one_left_and_leaves_the_living_alone(folder: Path) -> None:
    fake_go(folder)
    cache = folder / "cache"
    for name in ("tool", "other", "lively"):
        (cache / f".{name}-build-x" / "out").mkdir(parents=True)
    (cache / ".other-v1-x.lock").touch()
    with alone(cache / ".lively-v1-x.lock", "building lively"):
        toolchain.build_once(RECIPE, cache)
    assert sorted(folders(cache)) == [".lively-build", "tool-v1.0.0"]


def test_whoever_waits_is_told_for_whom_and_in_the_end_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "lock"
    with alone(lock, "building tool"):
        with pytest.raises(UnavailableError) as raised, alone(lock, "building tool", patience=0):
            pytest.fail("it is held")
        me = f"rocess {os.getpid()}"
        assert not lacks(capsys.readouterr().err, f"p{me}", "tool")
        assert not lacks(str(raised.value), f"P{me}", "tool", "0 minutes", f"(kill {os.getpid()})")
    with alone(lock, "building tool", patience=0):
        assert lock.read_text() == str(os.getpid())


def test_a_cache_that_cannot_be_written_is_named_with_the_variable_that_moves_it(folder: Path) -> None:
    fake_go(folder)
    (folder / "file").touch()
    for cache in (folder / "file", folder / "file" / "below"):
        with pytest.raises(UnavailableError, match="export GPUSHARING_CACHE=FOLDER"):
            toolchain.build_once(RECIPE, cache)


def test_an_error_that_is_not_about_the_cache_is_not_blamed_on_it(tmp_path: Path) -> None:
    def make(_: Path) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    with pytest.raises(ConnectionResetError):
        make_once(tmp_path / "cache" / "tool-v1", "tool", make)
    assert folders(tmp_path / "cache") == []


@pytest.mark.parametrize("name", [None, "out/tool"], ids=["no name", "the name of a file below it"])
def test_a_cache_that_is_full_is_named(name: str | None, tmp_path: Path) -> None:
    def make(out: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", name and str(out / name))

    with pytest.raises(UnavailableError, match=r"No space left on device.*export GPUSHARING_CACHE=FOLDER"):
        make_once(tmp_path / "cache" / "tool-v1", "tool", make)


def test_without_go_the_message_says_what_why_and_how(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    said = refusal(folder / "cache")
    assert not lacks(said, "tool v1.0.0", "Go >= 1.21", "`go`")


def test_a_go_that_is_too_old_is_named_with_its_version(folder: Path) -> None:
    fake_go(folder, version="go1.19.2")
    assert "is go1.19.2: install Go" in refusal(folder / "cache")


FAILURES = {
    "no network": ("go: x@v1: Get y: dial tcp 127.0.0.1:9: connect: refused", "check the network and `go env GOPROXY`"),
    "a full disk": ("link: write /tmp/x: no space left on device", "make room in "),
    "a read-only cache of Go": ("open /go/pkg/mod/cache: read-only file system", "make the folders that"),
    "a toolchain that may not be fetched": (
        "go: go.mod requires go >= 1.26 (running go 1.22)",
        "export GOTOOLCHAIN=auto",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_build_is_one_sentence_and_is_tried_again_next_time(folder: Path, failure: str) -> None:
    told, remedy = FAILURES[failure]
    runs = fake_go(folder, build=f"echo 'go: downloading x' >&2; echo '{told}' >&2; exit 1")
    for _ in range(2):
        said = refusal(folder / "cache")
        assert remedy in said
        assert len(said.splitlines()) == 1
        assert said.endswith(", then run: python -m hack.cluster.toolchain tool")
    assert runs.read_text() == "run\nrun\n"
    assert folders(folder / "cache") == []


def test_a_build_that_fails_for_another_reason_shows_the_last_lines_of_go(folder: Path) -> None:
    fake_go(folder, build="seq 20 >&2; echo 'go: downloading x' >&2; exit 1")
    assert refusal(folder / "cache").splitlines()[1:] == [f"  {number}" for number in range(9, 21)]


def test_the_user_s_build_settings_for_another_project_do_not_reach_ours(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOFLAGS", "-mod=vendor")
    monkeypatch.setenv("GOOS", "plan9")
    fake_go(folder, build='echo "$GOFLAGS/$GOOS/$GOWORK" > "$GOBIN/tool"')
    made = toolchain.build_once(RECIPE, folder / "cache")
    assert (made / "tool").read_text() == "-mod=mod//off\n"


def test_kubebuilder_assets_with_all_programs_need_no_build(tmp_path: Path) -> None:
    for name in toolchain.CONTROLPLANE_CALLS:
        (tmp_path / name).touch(mode=0o755)
    absent = str(tmp_path / "absent")
    found = toolchain.control_plane_programs({"KUBEBUILDER_ASSETS": str(tmp_path), "GPUSHARING_CACHE": absent})
    assert found.kube_controller_manager == tmp_path / "kube-controller-manager"
    assert not os.path.exists(absent)


def test_the_minor_is_what_the_api_server_of_kubebuilder_assets_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    for name in toolchain.CONTROLPLANE_CALLS:
        (tmp_path / name).touch(mode=0o755)
    server = tmp_path / "kube-apiserver"
    server.write_text("#!/bin/sh\necho Kubernetes v1.30.14\n")
    assert toolchain.control_plane_minor() == 30
    server.write_text("#!/bin/sh\necho Kubernetes v0.0.0\n")
    with pytest.raises(UnavailableError, match="names no version of Kubernetes"):
        toolchain.control_plane_minor()


def test_kubebuilder_assets_that_point_nowhere_are_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert toolchain.main([]) == 1
    said = capsys.readouterr().err
    assert not lacks(said, f"KUBEBUILDER_ASSETS={tmp_path}", "etcd", "kube-apiserver")
    assert len(said.splitlines()) == 1


def test_an_unknown_tool_is_refused_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert toolchain.main(["kvok"]) == 2
    assert "choose from controlplane, kwok, helm" in capsys.readouterr().err

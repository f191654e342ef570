"""hack/cluster/toolchain.py: where builds go, when they are done again, and what is said when one cannot be."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hack.cluster import toolchain
from hack.cluster.paths import cache_root, state_root
from hack.cluster.toolchain import ToolchainError, ToolRecipe

GO = """#!/bin/sh
case "$*" in
  "env GOVERSION") echo {version} ;;
  *) echo run >> {folder}/runs; {build} ;;
esac
"""
BUILD = 'sleep 0.2; echo built > "$GOBIN/tool"'
RECIPE = ToolRecipe(
    "tool", "v1.0.0", ("source",), ("go", "install", "example.com/tool"), ("tool",), calls=("alias",)
)


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


CACHE_CASES = [
    pytest.param({"HOME": "/h"}, "/h/.cache/gpu-sharing-operator", id="the home's .cache by default"),
    pytest.param(
        {"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/gpu-sharing-operator", id="XDG_CACHE_HOME when set"
    ),
    pytest.param(
        {"XDG_CACHE_HOME": "/x", "GPUSHARING_CACHE": "/g"}, "/g/gpu-sharing-operator", id="ours first"
    ),
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
    with pytest.raises(ToolchainError, match="git checkout"):
        toolchain.kubernetes_version("module x\nrequire k8s.io/kubectl v0.36.3\n")


def test_two_builders_at_once_build_once_and_leave_nothing_else_behind(folder: Path) -> None:
    runs = fake_go(folder)
    cache = folder / "cache"
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: toolchain.build_once(RECIPE, cache), range(2)))
    assert made == [RECIPE.directory(cache)] * 2
    assert runs.read_text() == "run\n"
    assert (made[0] / "alias").read_text() == "built\n"
    assert [path for path in cache.iterdir() if path.is_dir()] == [made[0]]


def test_without_go_the_message_says_what_why_and_how(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(ToolchainError, match="no `go` on PATH") as raised:
        toolchain.build_once(RECIPE, folder / "cache")
    assert "tool v1.0.0" in str(raised.value)
    assert "export KUBEBUILDER_ASSETS=" in str(raised.value)


def test_a_go_that_is_too_old_is_named_with_its_version(folder: Path) -> None:
    fake_go(folder, version="go1.19.2")
    with pytest.raises(ToolchainError, match=r"go1\.19\.2"):
        toolchain.build_once(RECIPE, folder / "cache")


def test_a_failed_build_shows_its_last_lines_and_is_tried_again_next_time(folder: Path) -> None:
    runs = fake_go(folder, build="echo 'go: downloading x' >&2; echo 'dial tcp: no route' >&2; exit 1")
    for _ in range(2):
        with pytest.raises(ToolchainError, match="no route") as raised:
            toolchain.build_once(RECIPE, folder / "cache")
        assert "downloading" not in str(raised.value)
        assert "python -m hack.cluster.toolchain tool" in str(raised.value)
    assert runs.read_text() == "run\nrun\n"
    assert not RECIPE.directory(folder / "cache").exists()


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
    found = toolchain.control_plane_programs(
        {"KUBEBUILDER_ASSETS": str(tmp_path), "GPUSHARING_CACHE": absent}
    )
    assert found.kube_controller_manager == tmp_path / "kube-controller-manager"
    assert not os.path.exists(absent)


def test_kubebuilder_assets_that_point_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="no etcd and no kube-apiserver") as raised:
        toolchain.control_plane_programs({"KUBEBUILDER_ASSETS": str(tmp_path)})
    assert "setup-envtest use -p path" in str(raised.value)


def test_an_unknown_tool_is_refused_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert toolchain.main(["kvok"]) == 2
    assert "choose from controlplane, kwok, helm" in capsys.readouterr().err

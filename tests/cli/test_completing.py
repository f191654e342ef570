"""What may come next, as kubectl asks for it (kubectl_gpusharing/shell/completing.py)."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hack.cluster import toolchain
from tests.cli.desk import POLICIES, Desk

from kubectl_gpusharing.shell.arguments import HELPERS, VERBS
from kubectl_gpusharing.shell.completing import FILES, NO_FILES, main, suggest
from kubectl_gpusharing.shell.troubles import DONE

HERE = {
    "gpusharingpolicies": ["pool-b", "pool-c"],
    "gpunodes": ["gpu-07", "gpu-08", "spare"],
    "pod": ["llm-0", "train-0"],
    "node": ["gpu-07", "gpu-08"],
    "gsp": ["pool-b", "pool-c"],
    "team-a": ["web-0"],
    "contexts": ["east", "west"],
    "namespaces": ["default", "team-a"],
    "hashes": ["4a38df3"],
}
NEXT = {
    "": sorted([*HELPERS, *VERBS]),
    "re": ["recommend", "resume", "retry"],
    "status ": ["pool-b", "pool-c"],
    "plan pool-c": ["pool-c"],
    "why gpu": ["gpu-07", "gpu-08"],
    "skip s": ["spare"],
    "status -o ": ["html", "json", "name", "table", "wide", "yaml"],
    "-o json st": ["status"],
    "status --wa": ["--watch"],
    "pause pool-b --when-paused H": ["Hold"],
    "layouts h1": ["h100-80gb", "h100-nvl-94gb"],
    "recommend --no": ["--no-color", "--no-headers"],
    "doctor ": [],
    "--context ": ["east", "west"],
    "status --contexts east,w": ["east,west"],
    "free -n t": ["team-a"],
    "status pool-b ": ["pool-c"],
    "pause -y pool-b ": ["pool-c"],
    "approve pool-b ": ["4a38df3"],
    "approve pool-b 4a38df3 ": [],
    "why pod/l": ["pod/llm-0"],
    "why pod l": ["llm-0"],
    "status node/gpu": ["node/gpu-07", "node/gpu-08"],
    "retry node gpu": ["gpu-07", "gpu-08"],
    "pause gsp/": ["gsp/pool-b", "gsp/pool-c"],
    "why gpu-07 team-a/": ["team-a/web-0"],
    "help pl": ["plan"],
    "recommend --policy ": ["pool-b", "pool-c"],
    "lint ": None,
    "plan -f ": None,
    "--kubeconfig ": None,
}


@pytest.mark.parametrize("typed", NEXT)
def test_after_these_words_may_come(typed: str) -> None:
    assert suggest(typed.split(" "), HERE.__getitem__) == NEXT[typed]


def complete(desk: Desk, *words: str) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kubectl_complete-gpusharing", *words])
        said = desk.call(main)
    assert (said.status, said.err) == (DONE, "")
    return said.out.splitlines()


def test_names_come_from_the_cluster_and_no_files_besides_which_are_left_to_the_shell(desk: Desk) -> None:
    assert complete(desk, "status", "pool") == ["pool-b", "pool-c", ":4"]
    assert complete(desk, "lint", "") == [FILES]


def test_pods_come_from_the_namespace_that_is_typed(desk: Desk) -> None:
    pods = "/api/v1/namespaces/team-a/pods"
    desk.server.lists[pods] = [{"metadata": {"name": "web-0", "namespace": "team-a"}}]
    assert complete(desk, "why", "-n", "team-a", "pod/") == ["pod/web-0", NO_FILES]
    assert complete(desk, "why", "team-a/w") == ["team-a/web-0", NO_FILES]
    assert complete(desk, "why", "pod/") == [NO_FILES], "none in the namespace of the context"


def test_the_hash_is_the_one_of_the_policy_before_it(desk: Desk) -> None:
    first, second = desk.server.lists[POLICIES]
    first["status"]["plan"], second["status"]["plan"] = {"hash": "4a38df3"}, {"hash": "ffffff0"}
    assert complete(desk, "approve", first["metadata"]["name"], "") == ["4a38df3", NO_FILES]


def test_contexts_come_from_the_kubeconfig_without_a_call_and_the_one_that_is_typed_is_asked(desk: Desk) -> None:
    desk.write_kubeconfig(desk.url, ("east", "west"))
    assert complete(desk, "status", "--context", "") == ["east", "west", NO_FILES]
    assert desk.server.asked == []
    assert complete(desk, "--context", "west", "status", "") == ["pool-b", "pool-c", ":4"]
    assert complete(desk, "--context=nowhere", "status", "") == [":4"]


def test_a_cluster_that_refuses_suggests_nothing(desk: Desk) -> None:
    desk.server.refusals = {POLICIES: (403, "you may not")}
    assert complete(desk, "status", "") == [":4"]


# --- through kubectl ---------------------------------------------------------------------------------------------

TYPED = {
    "gpushar": ["gpusharing"],
    "gpusharing status pool-": ["pool-b", "pool-c"],
    "gpusharing status --wa": ["--watch"],
    "gpusharing status -o ": ["html", "json", "name", "table", "wide", "yaml"],
    "gpusharing --context west plan pool-c": ["pool-c"],
}


@pytest.fixture(scope="module")
def kubectl() -> Path:
    return toolchain.control_plane_programs().kubectl


@pytest.mark.cluster
@pytest.mark.parametrize("typed", TYPED)
def test_kubectls_own_completion_says_after(desk: Desk, kubectl: Path, typed: str) -> None:
    """What the shell asks kubectl at each Tab (cobra, `__complete`), and how it finds ours: on the PATH. That of a plugin's own name has what it is behind a tab."""
    desk.write_kubeconfig(desk.url, ("east", "west"))
    programs = os.pathsep.join((str(Path(sys.executable).parent), "/usr/bin", "/bin"))

    def says() -> tuple[list[str], str]:
        command = [str(kubectl), "__complete", *typed.split(" ")]
        environment = desk.environment(PATH=programs)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        *found, directive = done.stdout.splitlines()
        return [one.partition("\t")[0] for one in found], directive

    # A busy machine may need more than the 3 seconds after which a Tab offers no names.
    deadline = time.monotonic() + 30
    while (seen := says())[0] != TYPED[typed] and time.monotonic() < deadline:
        continue
    assert seen == (TYPED[typed], NO_FILES), "NO_FILES: no files of the directory besides"

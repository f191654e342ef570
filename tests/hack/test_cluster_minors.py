"""hack/cluster/minors.py: the go.mod of another minor of Kubernetes, and what is refused. It fetches nothing."""

import re

import pytest
from hack.cache import UnavailableError
from hack.cluster.minors import control_plane, go_mod, main
from hack.generate import ROOT

KUBERNETES = """module k8s.io/kubernetes

go 1.22.0

require (
	github.com/spf13/cobra v1.7.0
	go.etcd.io/etcd/client/v3 v3.5.10
	k8s.io/api v0.0.0
)

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/kubectl => ./staging/src/k8s.io/kubectl
)
"""


def test_the_staging_modules_and_etcd_are_those_of_that_version() -> None:
    lines = go_mod("v1.30.14", KUBERNETES).splitlines()
    assert [line for line in lines if line.startswith(("require", "replace"))] == [
        "require github.com/spf13/cobra v1.7.0",
        "require go.etcd.io/etcd/server/v3 v3.5.10",
        "require k8s.io/component-base v0.30.14",
        "require k8s.io/kubectl v0.30.14",
        "require k8s.io/kubernetes v1.30.14",
        "replace k8s.io/api => k8s.io/api v0.30.14",
        "replace k8s.io/kubectl => k8s.io/kubectl v0.30.14",
    ]


def test_a_version_that_pins_no_etcd_is_refused() -> None:
    with pytest.raises(UnavailableError, match="requires no go"):
        go_mod("v1.99.0", "require github.com/spf13/cobra v1.7.0")


@pytest.mark.parametrize("minor", ["", "1.30.14", "v1.30", "latest"])
def test_only_a_minor_version_is_taken(minor: str) -> None:
    with pytest.raises(UnavailableError, match="is not a minor version of Kubernetes"):
        control_plane(minor)


def test_without_a_version_the_program_says_how_to_write_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "write it as in VERSION=1.30" in capsys.readouterr().err


def test_the_tests_of_another_minor_exist_and_exercise_all_admission_policies() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    variables = dict(re.findall(r"^([A-Z_]+) = (.*)$", makefile, re.MULTILINE))
    paths = variables["ON_ANOTHER_MINOR"].replace("$(ADMISSION)", variables["ADMISSION"]).split()
    for path in paths:
        file, _, name = path.partition("::")
        assert f"def {name or 'test_'}" in (ROOT / file).read_text(), path
    admission = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "chart").glob("test_*admission*.py")}
    effects = {
        "tests/chart/test_effects.py",
        "tests/integration/test_isolation.py",
        "tests/integration/test_repair_mps.py",
    }
    assert admission | effects <= {path.partition("::")[0] for path in paths}

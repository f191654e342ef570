"""`python -m hack.cluster.minors 1.30` builds the newest patch release of that minor, and prints the programs' folder.

hack/controlplane pins one version only. The go.mod of another one is derived from what that release requires itself,
and Go checks the sums against its checksum database.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from hack.cache import UnavailableError, cache_root, make_once, say
from hack.cluster.toolchain import CONTROLPLANE_CALLS, CONTROLPLANE_SOURCE, ToolRecipe, build_environment, version_flags
from hack.compiler import failure, find_go, run_go

MINUTES = 10
"""The time that a build takes on two cores."""


def control_plane(minor: str) -> Path:
    """Return the folder with the programs of the newest patch release of a minor version such as `1.30`."""
    if not re.fullmatch(r"1\.\d+", minor):
        raise UnavailableError(f"VERSION={minor} is not a minor version of Kubernetes: write it as in VERSION=1.30")
    version, requirements = _release(minor)
    files = {"go.mod": go_mod(version, requirements), "main.go": (CONTROLPLANE_SOURCE / "main.go").read_text()}
    digest = hashlib.sha256("\0".join(files.values()).encode()).hexdigest()[:12]
    return make_once(
        cache_root() / f"kubernetes-{version}-{digest}", "kubernetes", lambda out: _build(version, files, out)
    )


def go_mod(version: str, requirements: str) -> str:
    """Return a go.mod that builds this version, with the staging modules published with it."""
    staging = re.findall(r"^\s*(?:replace )?(k8s\.io/\S+) => \./staging/", requirements, re.MULTILINE)
    published = f"v0.{version.removeprefix('v1.')}"
    direct = {
        "github.com/spf13/cobra": _required("github.com/spf13/cobra", requirements),
        "go.etcd.io/etcd/server/v3": _required("go.etcd.io/etcd/client/v3", requirements),
        "k8s.io/component-base": published,
        "k8s.io/kubectl": published,
        "k8s.io/kubernetes": version,
    }
    go = re.search(r"^go (\S+)$", (CONTROLPLANE_SOURCE / "go.mod").read_text(), re.MULTILINE)
    assert go is not None
    lines = ["module gpusharing.dev/hack/controlplane", f"go {go[1]}"]
    lines += [f"require {module} {wanted}" for module, wanted in direct.items()]
    lines += [f"replace {module} => {module} {published}" for module in staging]
    return "\n".join(lines) + "\n"


def _required(module: str, requirements: str) -> str:
    match = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", requirements, re.MULTILINE)
    if match is None:
        raise UnavailableError(f"this version of Kubernetes requires no {module}, so it cannot be built here")
    return match[1]


def _release(minor: str) -> tuple[str, str]:
    module = f"k8s.io/kubernetes@v{minor}"
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [find_go("Kubernetes"), "mod", "download", "-json", module],
            cwd=folder, env=_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
    if result.returncode != 0:
        again = f"python -m hack.cluster.minors {minor}"
        raise failure(f"{module} cannot be fetched", result.stdout + result.stderr, again)
    answer = json.loads(result.stdout)
    return answer["Version"], Path(answer["GoMod"]).read_text()


def _build(version: str, files: dict[str, str], out: Path) -> None:
    again = f"python -m hack.cluster.minors {version.removeprefix('v').rpartition('.')[0]}"
    program = CONTROLPLANE_CALLS[0]
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        flags = ("-trimpath", f"-ldflags={version_flags(version)}")
        for command in (["mod", "tidy"], ["build", *flags, "-o", str(out / program), "."]):
            what = f"Kubernetes {version} (go {command[0]})"
            run_go(what, command, Path(folder), _environment(), minutes=MINUTES, again=again)
    for name in CONTROLPLANE_CALLS[1:]:
        (out / name).symlink_to(program)


def _environment() -> dict[str, str]:
    return build_environment(ToolRecipe("kubernetes", "", (), (), ()))


def main(arguments: list[str]) -> int:
    try:
        print(control_plane(arguments[0] if arguments else ""))
    except UnavailableError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

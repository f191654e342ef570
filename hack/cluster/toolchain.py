"""The programs that a control plane needs, built once from pinned Go modules into the user's cache.

`python -m hack.cluster.toolchain [TOOL...]` builds what is missing, by default WITHOUT_A_NAME, and prints the folders.
"""

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.cache import UnavailableError, cache_root, make_once, say
from hack.compiler import need_compiler, run_go

KWOK_VERSION = "v0.8.0"
HELM_VERSION = "v4.3.1"
HELM3_VERSION = "v3.22.0"
KIND_VERSION = "v0.32.0"
"""The version of kind whose default node image has our minor version of Kubernetes; hack/kind.yaml names that image."""
ACTIONLINT_VERSION = "v1.7.12"
CONTAINERD_VERSION = "v2.2.9"
SOURCES = Path(__file__).resolve().parent.parent
CONTROLPLANE_SOURCE = SOURCES / "controlplane"
CONTROLPLANE_CALLS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")


@dataclass(frozen=True)
class Programs:
    """The paths of the programs of one Kubernetes control plane, all of one version."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kube_scheduler: Path
    kubectl: Path


@dataclass(frozen=True)
class ToolRecipe:
    name: str
    version: str
    inputs: tuple[str, ...]
    command: tuple[str, ...]
    programs: tuple[str, ...]
    cwd: Path | None = None
    minutes: int = 2
    calls: tuple[str, ...] = ()
    """Names under which a multi-call program is linked."""
    cgo: bool = False
    """Whether the tool is linked with C and therefore needs a C compiler."""
    builder: str = "hack.cluster.toolchain"
    """Our module that builds the tool, named in the error if the build fails."""

    def directory(self, root: Path) -> Path:
        """Return the path of the folder below the cache `root` in which the finished build is, or would be."""
        text = "\0".join((*self.inputs, *self.command, *self.calls, platform.system(), platform.machine()))
        return root / f"{self.name}-{self.version}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def built(self) -> bool:
        """Whether the folder of the finished build (`directory`) is in the cache."""
        return self.directory(cache_root()).is_dir()


def kubernetes_version(go_mod: str) -> str:
    """Return the version of k8s.io/kubernetes that the content of a go.mod pins, such as `v1.36.3`."""
    match = re.search(r"^\s*(?:require\s+)?k8s\.io/kubernetes\s+(v\d+\.\d+\.\d+)\s*$", go_mod, re.MULTILINE)
    if not match:
        raise UnavailableError(
            f"hack/controlplane/go.mod pins no k8s.io/kubernetes; restore it: git checkout -- {CONTROLPLANE_SOURCE}"
        )
    return match[1]


def version_flags(version: str) -> str:
    """Return the linker flags that stamp Kubernetes' version, without which clients see v0.0.0 and refuse features."""
    major, minor, _ = version.removeprefix("v").split(".")
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(
        ["-s -w", *(f"-X {package}.{key}={value}" for package in packages for key, value in stamps.items())]
    )


def controlplane_recipe() -> ToolRecipe:
    """Return the recipe for etcd, control plane and kubectl as one multi-call program: one link, not five."""
    return _kubernetes_recipe("controlplane", 5, CONTROLPLANE_CALLS)


def kubelet_recipe() -> ToolRecipe:
    return _kubernetes_recipe("kubelet", 2, ())


def _kubernetes_recipe(name: str, minutes: int, calls: tuple[str, ...]) -> ToolRecipe:
    source = SOURCES / name
    files = {file: (source / file).read_text() for file in ("go.mod", "go.sum", "main.go")}
    version = kubernetes_version(files["go.mod"])
    flags = ("-trimpath", f"-ldflags={version_flags(version)}")
    return ToolRecipe(
        name=name,
        version=version,
        inputs=tuple(files.values()),
        command=("go", "build", *flags, "-o", f"{{out}}/{name}", "."),
        programs=(name,),
        cwd=source,
        minutes=minutes,
        calls=calls,
    )


def install_recipe(name: str, version: str, *packages: str) -> ToolRecipe:
    """Return the recipe for the programs that `go install package@version` builds, one of each package."""
    programs = tuple(package.rpartition("/")[2] for package in packages)
    wanted = (f"{package}@{version}" for package in packages)
    return ToolRecipe(name, version, (), ("go", "install", "-trimpath", *wanted), programs)


def containerd_recipe() -> ToolRecipe:
    """Return the recipe for containerd, its client `ctr` and its shim. Debian 12 packages containerd 1.6, which ignores
    the CDI devices that a kubelet passes on for ResourceClaims."""
    names = ("containerd", "ctr", "containerd-shim-runc-v2")
    packages = (f"github.com/containerd/containerd/v2/cmd/{name}" for name in names)
    return install_recipe("containerd", CONTAINERD_VERSION, *packages)


def helm3_recipe() -> ToolRecipe:
    """Return the recipe of Helm 3, with our minor of Kubernetes: it assumes 1.20 otherwise."""
    minor = kubernetes_version((CONTROLPLANE_SOURCE / "go.mod").read_text()).split(".")[1]
    packages = ("chartutil", "lint/rules")
    known = [f"-X helm.sh/helm/v3/pkg/{package}.k8sVersionMinor={minor}" for package in packages]
    module = f"helm.sh/helm/v3/cmd/helm@{HELM3_VERSION}"
    command = ("go", "install", "-trimpath", f"-ldflags={' '.join(['-s -w', *known])}", module)
    return ToolRecipe("helm", HELM3_VERSION, (), command, ("helm",))


def module_recipe(source: Path, leading: str, programs: tuple[str, ...], minutes: int = 2) -> ToolRecipe:
    """Return the recipe that builds all tools of our module in the folder `source`, whose go.mod pins them."""
    files = tuple((source / file).read_text() for file in ("go.mod", "go.sum"))
    version = re.search(rf"\s{re.escape(leading)} (v\S+)", files[0])
    if version is None:
        raise UnavailableError(f"{source}/go.mod pins no {leading}; restore it: git checkout -- {source}")
    command = ("go", "build", "-trimpath", "-ldflags=-s -w", "-o", "{out}/", "tool")
    return ToolRecipe(source.name, version[1], files, command, programs, source, minutes)


RECIPES: Mapping[str, Callable[[], ToolRecipe]] = {
    "controlplane": controlplane_recipe,
    "kwok": lambda: install_recipe("kwok", KWOK_VERSION, "sigs.k8s.io/kwok/cmd/kwok"),
    "helm": lambda: install_recipe("helm", HELM_VERSION, "helm.sh/helm/v4/cmd/helm"),
    "helm3": helm3_recipe,
    "kubelet": kubelet_recipe,
    "containerd": containerd_recipe,
    "kind": lambda: install_recipe("kind", KIND_VERSION, "sigs.k8s.io/kind"),
    "actionlint": lambda: install_recipe(
        "actionlint", ACTIONLINT_VERSION, "github.com/rhysd/actionlint/cmd/actionlint"
    ),
    # `go install` refuses a module whose go.mod has replace directives.
    "charttools": lambda: module_recipe(SOURCES / "charttools", "helm.sh/helm/v3", ("helm-unittest", "ct")),
    "releasetools": lambda: module_recipe(
        SOURCES / "releasetools", "github.com/sigstore/cosign/v3", ("crane", "cosign"), minutes=4
    ),
    "krewtools": lambda: module_recipe(SOURCES / "krewtools", "sigs.k8s.io/krew", ("krew", "validate-krew-manifest")),
    "olmtools": lambda: module_recipe(SOURCES / "olmtools", "github.com/operator-framework/api", ("operator-verify",)),
}
WITHOUT_A_NAME = ("controlplane", "kwok", "helm")
"""The tools that are built if none is named: rungs 0 to 2 need them."""


def ensure(name: str, root: Path | None = None) -> Path:
    """Return the path of a tool, which is built if it is not cached. Raises UnavailableError."""
    return build_once(RECIPES[name](), root or cache_root())


def build_once(recipe: ToolRecipe, root: Path) -> Path:
    """Return the folder of the recipe's programs, which are built once. Raises UnavailableError."""
    return make_once(recipe.directory(root), recipe.name, lambda out: _build(recipe, out))


def control_plane_programs(environ: Mapping[str, str] = os.environ) -> Programs:
    """Return the control plane's programs: those in $KUBEBUILDER_ASSETS, and ours for all others."""
    assets = environ.get("KUBEBUILDER_ASSETS")
    existing = find_assets(Path(assets)) if assets else {}
    missing = [name for name in CONTROLPLANE_CALLS if name not in existing]
    built = ensure("controlplane", cache_root(environ)) if missing else Path()
    paths = {name: existing.get(name, built / name) for name in CONTROLPLANE_CALLS}
    return Programs(**{name.replace("-", "_"): path for name, path in paths.items()})


def control_plane_minor() -> int:
    """Return the minor version, such as 36, that kube-apiserver itself names."""
    program = control_plane_programs().kube_apiserver
    said = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"\bv1\.(\d+)\.", said)
    if match is None:
        raise UnavailableError(f"{program} --version names no version of Kubernetes")
    return int(match[1])


def find_assets(directory: Path) -> dict[str, Path]:
    """Return the CONTROLPLANE_CALLS in a folder of setup-envtest, which ships etcd, kube-apiserver and kubectl."""
    programs = {name: directory / name for name in CONTROLPLANE_CALLS if os.access(directory / name, os.X_OK)}
    lacking = [name for name in ("etcd", "kube-apiserver") if name not in programs]
    if lacking:
        raise UnavailableError(
            f"KUBEBUILDER_ASSETS={directory} has no {' and no '.join(lacking)}: set it to a folder "
            "that `setup-envtest use -p path` prints, or unset it to build all programs."
        )
    return programs


def program(name: str) -> Path:
    """Return the path of a tool's program, or of the first one if the tool has several."""
    return ensure(name) / RECIPES[name]().programs[0]


def _build(recipe: ToolRecipe, out: Path) -> None:
    what = f"{recipe.name} {recipe.version}"
    if recipe.cgo:
        need_compiler(what)
    run_go(
        what,
        [argument.replace("{out}", str(out)) for argument in recipe.command[1:]],
        recipe.cwd or out,
        {**build_environment(recipe), "GOBIN": str(out)},
        minutes=recipe.minutes,
        again=f"python -m {recipe.builder} {recipe.name}",
    )
    for call in recipe.calls:
        (out / call).symlink_to(recipe.programs[0])


def build_environment(recipe: ToolRecipe) -> dict[str, str]:
    environ = {key: value for key, value in os.environ.items() if key not in ("GOOS", "GOARCH")}
    mode = "-mod=mod" if recipe.cwd is None else "-mod=readonly"
    return {**environ, "GOWORK": "off", "GOFLAGS": mode, "CGO_ENABLED": str(int(recipe.cgo))}


def main(arguments: Sequence[str]) -> int:
    """Build the named tools, or WITHOUT_A_NAME, and print the folder of each."""
    unknown = [name for name in arguments if name not in RECIPES]
    if unknown:
        say(f"unknown tool {unknown[0]!r}: choose from {', '.join(RECIPES)}")
        return 2
    try:
        for name in arguments or WITHOUT_A_NAME:
            plane = name == "controlplane"
            print(control_plane_programs().etcd.parent if plane else ensure(name), flush=True)
    except UnavailableError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

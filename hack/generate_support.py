"""The page that says which versions were run, which were only read, and what is refused.

Its facts are the pins (go.mod files, hack/cluster/toolchain.py, hack/nvidia/build.py), the versions that the stand-ins
simulate (hack/sim/settings.py), the first lines of docs/design/nvidia.md, the chart and the reasons of the product.
"""

import re
from collections.abc import Iterable
from typing import get_args

from gpusharing.planning.vocabulary.reasons import Reason
from hack.cluster import toolchain
from hack.generate_pages import HEAD, table
from hack.nvidia import build
from hack.sim.settings import MigManagerVersion, PluginVersion

ROOT = toolchain.SOURCES.parent
NVIDIA_PAGE = "docs/design/nvidia.md"
CHART = "deploy/helm/gpu-sharing-operator/Chart.yaml"
TEXT = """What the tests run, what was only read in source, and what is refused. No test runs a version that these
tables do not name. The rungs are those of the [test ladder](../design/faults.md#rungs). All GPUs are SIMULATED on
them, except on rung 5. [Where NVIDIA's programs differ](nvidia-differences.md) compares their versions, and [what was
not tried](not-tried.md) lists what no test can play."""
REFUSED = (
    Reason.UNSUPPORTED_STACK,
    Reason.MIG_MANAGER_TOO_OLD,
    Reason.PLUGIN_TOO_OLD,
    Reason.MPS_NOT_SWITCHABLE,
    Reason.UNSAFE_DRIVER,
)
"""The reasons for refusing a version of a program or a kind of installation."""
OTHER_MINORS = (
    (
        "v1.30.14",
        "29 November 2026",
        "contract of the API server, CRDs, rollouts, the admission policies of the chart, and the guard for tenants as it"
        " refuses (430 tests); on 27 November further tests of rung 2, among them changes of mode, drains, alerts,"
        " migration and dead leaders (106 tests)",
        "the role `view` of 1.30 does not grant events of events.k8s.io, so the plugin names them as missing (2 tests);"
        " `doctor` warns that the simulated kubelets, which call themselves v1.36.3, are newer than the API server (2"
        " tests); the scheduler words a refusal differently (1 test); the rights that an agent uses were not compared,"
        " because the test needs tokens that are bound to Nodes (1 test); skipped: DeviceClasses, MutatingAdmissionPolicy"
        " and DeviceTaintRules, which 1.30 does not serve (23 tests)",
    ),
    (
        "v1.34.4",
        "29 November 2026",
        "contract of the API server, CRDs, rollouts, all admission policies of the chart, and the guard for tenants in the"
        " form that this minor gets by itself and, switched on, in v1beta1 (442 tests)",
        "skipped: DeviceClasses with extendedResourceName, which 1.34 keeps only with a feature gate (10 tests), and"
        " DeviceTaintRules (1 test)",
    ),
    (
        "v1.37.2",
        "29 November 2026",
        "contract of the API server, CRDs, rollouts, all admission policies of the chart, and the guard for tenants in"
        " both its forms (453 tests); on 27 November further tests of rung 2, among them changes of mode, drains, the"
        " plugin's output and migration (52 tests)",
        "the scheduler words a refusal differently (1 test)",
    ),
)
"""The tests that were run on minors other than the pinned one, and when. Add a row here after each such run."""
TITLES = {
    "device-plugin": "device plugin, GPU Feature Discovery, config-manager, MPS control daemon",
    "mig-parted": "mig-parted and mig-manager",
    "dra-driver": "chart and kubelet plugin of the DRA driver, with a stub of go-nvfm",
}
"""The programs in each of NVIDIA's releases, by the folder of ours that pins the release."""


def support() -> dict[str, str]:
    newest, *older = build.MIG_PARTED_PINS
    releases = [(build.DEVICE_PLUGIN, "3, 4"), (build.mig_parted(newest), "3, 4")]
    releases += [(build.mig_parted(version), "3, by `make test-nvidia-old`") for version in older]
    nvidia = [
        (TITLES[release.folder], release.version, rungs, f"`hack/nvidia/{release.folder}/{release.pins}`")
        for release, rungs in (*releases, (build.DRA_DRIVER, "3, 4"))
    ]
    sentence = (ROOT / NVIDIA_PAGE).read_text().partition("Read in ")[2].partition("*Seen* means")[0]
    run = {("mig-parted", version) for version in build.MIG_PARTED_PINS}
    run.add(("k8s-device-plugin", build.DEVICE_PLUGIN.version))
    only_read = [row for row in re.findall(r"([a-z0-9-]+)\s(v\d+\.\d+\.\d+)", sentence) if row not in run]
    oldest = re.search(r'^kubeVersion: ">=(\d+\.\d+)\.0-0"$', (ROOT / CHART).read_text(), re.MULTILINE)
    assert oldest is not None
    body = [
        "## Run by the tests",
        "",
        *table(("Program", "Version", "Rungs", "Pinned in"), [*_kubernetes(), *nvidia]),
        "",
        "## Other minors of Kubernetes",
        "",
        "`make test-kubernetes VERSION=1.30` plays a few tests of rung 2 on the newest patch of another minor, with",
        "`ARGS=tests/integration` all of them. All programs but the control plane's are those of the table above.",
        "",
        *table(("Version", "Played", "Passed", "Did not pass"), OTHER_MINORS),
        "",
        "## Simulated",
        "",
        "Rungs 1 and 2 have SIMULATED stand-ins for NVIDIA's programs, which behave as these versions do.",
        "",
        *table(
            ("Program", "Versions"),
            [
                ("mig-manager", _versions(get_args(MigManagerVersion))),
                ("device plugin, GPU Feature Discovery, MPS control daemon", _versions(get_args(PluginVersion))),
                ("kubelet plugin of the DRA driver", build.DRA_DRIVER.version),
            ],
        ),
        "",
        "## Only read",
        "",
        "Their source was read for [what NVIDIA's programs do](../design/nvidia.md). No test runs them.",
        "",
        *table(("Program", "Version"), only_read),
        "",
        "## Refused",
        "",
        f"Helm installs the chart on Kubernetes {oldest[1]} or newer only. The operator refuses the rest before it drains",
        "a node, and names the [reason](reasons.md):",
        "",
        *table(
            ("Reason", "What it means", "What to do"),
            [(f"`{reason}`", reason.when, reason.remedy or "") for reason in REFUSED],
        ),
    ]
    page = HEAD.format(source="hack/generate_support.py", title="Versions: run, read, refused", text=TEXT)
    return {"docs/reference/support.md": page + "\n" + "\n".join(body) + "\n"}


def _versions(versions: Iterable[str]) -> str:
    return ", ".join(f"v{version}" for version in sorted(versions, reverse=True))


def _kubernetes() -> list[tuple[str, str, str, str]]:
    mods = {name: (toolchain.SOURCES / name / "go.mod").read_text() for name in ("controlplane", "kubelet")}
    etcd = re.search(r"go\.etcd\.io/etcd/server/v3 (v\S+)", mods["controlplane"])
    assert etcd is not None
    here, tools = "`hack/{}/go.mod`", "`hack/cluster/toolchain.py`"
    return [
        (
            "kube-apiserver, kube-controller-manager, kube-scheduler, kubectl",
            toolchain.kubernetes_version(mods["controlplane"]), "2, 3, 4", here.format("controlplane"),
        ),
        ("kubelet", toolchain.kubernetes_version(mods["kubelet"]), "4", here.format("kubelet")),
        ("containerd, with CDI", toolchain.CONTAINERD_VERSION, "4", tools),
        ("etcd", etcd[1], "2, 3, 4", here.format("controlplane")),
        ("kwok, as SIMULATED kubelets", toolchain.KWOK_VERSION, "2, 3", tools),
        ("Helm", f"{toolchain.HELM_VERSION}, {toolchain.HELM3_VERSION}", "2", tools),
    ]  # fmt: skip

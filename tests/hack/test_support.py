"""The page of versions: each pin is on it, and no version is both run and only read."""

import re

from hack.cluster import toolchain
from hack.generate_support import support
from hack.nvidia import build


def sections() -> dict[str, str]:
    """Return the text of each section by its title."""
    (page,) = support().values()
    return dict(part.split("\n", 1) for part in page.split("\n## ")[1:])


def test_each_version_that_the_tests_run_is_on_the_page() -> None:
    run = sections()["Run by the tests"]
    pinned = {
        build.DEVICE_PLUGIN.version,
        *build.MIG_PARTED_PINS,
        toolchain.KWOK_VERSION,
        toolchain.HELM_VERSION,
        build.DRA_DRIVER.version,
    }
    pinned |= {toolchain.RECIPES[name]().version for name in ("controlplane", "kubelet", "containerd")}
    assert {version for version in pinned if version not in run} == set()


def test_what_was_only_read_is_not_what_is_run() -> None:
    read = re.findall(r"^\| ([a-z0-9-]+) \| (v\S+) \|$", sections()["Only read"], re.MULTILINE)
    assert [name for name, _ in read] == ["k8s-device-plugin", "gpu-operator", "k8s-driver-manager"]
    assert build.DEVICE_PLUGIN.version not in dict(read).values()


def test_the_reasons_that_a_version_gives_have_a_remedy() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", sections()["Refused"], re.MULTILINE)
    assert {"MigManagerTooOld", "PluginTooOld"} < {name for name, _ in rows}

"""How the behavior of NVIDIA's programs differs by version, according to their change logs and to tests with the real programs (docs/design/faults.md#rung-3).

The device plugin's resource patterns are unanchored up to 0.19: instances of `1g.10gb+me`, `1g.24gb+gfx` or
`1g.24gb-me` are served under the plain name `nvidia.com/mig-1g.10gb` (k8s-device-plugin PR 1807; seen with 0.19.3).

On a node with two card models, mig-parted before 0.15 looks up a profile by name on the first card that has it,
although 1g.10gb is not the same profile on an H100 and on an A100 40GB (docs/reference/nvidia-differences.md; seen with
0.13.1, gone with 0.15.1).

From 0.18.2 on, config-manager takes the fallback before it has read the label, and signals its program afterwards (PR
"Fix race condition in config-manager when label is unset"; seen with 0.19.3). The GPU Operator's MPS daemon is not
reached by that signal. Before 0.20, config-manager panics at a process without a command line, such as the host's
kernel threads (k8s-device-plugin issue 1726). It also looks for /usr/bin/mps-control-daemon where the daemon runs as
mps-control-daemon (PR 1827; gpu-operator v25.3 to v26.7, assets/state-mps-control-daemon). So the daemon keeps the
fallback. It follows labels only if both faults are corrected, by plugin 0.20 and by PROCESS_TO_SIGNAL with the daemon's
name (docs/design/nvidia.md#b5). Without that variable, config-manager looks for the device plugin (v0.19.3,
cmd/config-manager DefaultProcessToSignal). In NVIDIA's chart without the GPU Operator, config-manager is started before
the daemon, which therefore usually reads the configuration that the label names.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, MpsDaemonView
from gpusharing.planning.snapshot.views import CardView
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

SUFFIXES_SINCE = (0, 20)
"""The first version of the device plugin that advertises a profile with a suffix under a name of its own."""
OWN_NAMES_SINCE = (0, 15)
"""The first version of mig-parted that looks up a profile name on each card separately."""
CLIENTS_SINCE = (0, 15)
"""The first version of mig-parted whose mig-manager pauses nvidia.com/gpu.deploy.client."""
FALLBACK_FIRST_SINCE = (0, 18, 2)
"""The first version of the device plugin whose config-manager starts with the fallback configuration."""
DEAF_SINCE = (25, 10, 2)
"""The first version of the GPU Operator whose MPS daemon is not notified of a label."""
LAST_READ = (26, 7, 0)
"""The last release of the GPU Operator whose MPS DaemonSet was read; it is affected too. Its main branch has had the
right name since 2026-09-30, so a later release may not be affected (v26.7.1 and v26.7.2 were not read)."""
SKIPS_THREADS_SINCE = (0, 20)
"""The first version of the device plugin whose config-manager skips processes without a command line."""
EXACT_NAMES_UNTIL = (0, 20)
"""The last version of the device plugin whose config-manager compares whole process names. Its main branch, as of
November 2026, compares only the part after the last slash."""
SKIPS_THREADS = "v0.20.0"
"""The version SKIPS_THREADS_SINCE in the form that ClusterPolicy uses."""
RELEASED_DAEMON = MpsDaemonView(
    "v0.19.3", "mps-control-daemon", "/usr/bin/mps-control-daemon", sees_host=True
)
"""The MPS daemon as released since DEAF_SINCE, for advice that is given without a cluster (GO v26.7.0 assets/state-mps-control-daemon)."""
WRAPPERS = frozenset({"sh", "ash", "bash", "dash", "busybox", "env", "tini", "dumb-init"})
"""Programs that start the one named by their arguments, so that the process name of the daemon is unknown."""
ADVICE = "device plugins before v0.20 advertise a profile with a suffix, such as +me, under its name without the suffix"

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?\b")
_PLAIN = re.compile(r"\d+g\.\d+gb")
_NAME = re.compile(r"(nvidia\.com/mig-\d+g\.\d+gb)[.-](?:me|gfx).*?(\.shared)?")


def find_too_old(
    strategy: str,
    gpus: Sequence[CardView],
    layouts: Sequence[Layout | None],
    cluster_policy: ClusterPolicyView,
) -> Finding | None:
    """Return why the versions of NVIDIA's programs that ClusterPolicy names would apply or advertise these layouts wrongly.

    Versions that are unknown count as new enough. `layouts` has one entry for each of `gpus`.
    """
    plugin, parted = cluster_policy.plugin_version, cluster_policy.mig_manager_version
    if strategy == "mixed" and merges_suffixes(plugin) and (profile := find_suffixed(layouts)):
        return Finding(Reason.PLUGIN_TOO_OLD, f"{profile} with device plugin {plugin}: {ADVICE}")
    if _is_before(parted, OWN_NAMES_SINCE) and (mistaken := find_mistaken(gpus, layouts)) is not None:
        gpu, first, name = mistaken
        return Finding(
            Reason.MIG_MANAGER_TOO_OLD,
            f"mig-manager {parted} would confuse {name} on GPU {gpu.index} ({gpu.product}) with {name} on GPU"
            f" {first.index} ({first.product}) and fail; upgrade mig-manager to v0.15, or use another profile",
        )
    return None


def find_mistaken(
    gpus: Sequence[CardView], layouts: Sequence[Layout | None]
) -> tuple[CardView, CardView, str] | None:
    """Return the first GPU for which mig-parted before 0.15 would choose the wrong profile, the earlier GPU whose profile that is, and the name of both.

    Raises ValueError unless there is one layout for each GPU.
    """
    first: dict[str, tuple[CardView, int | None]] = {}
    for gpu, layout in zip(gpus, layouts, strict=True):
        wanted = dict(layout or ())
        for profile in gpu.profiles:
            other, profile_id = first.setdefault(profile.name, (gpu, profile.profile_id))
            if profile_id != profile.profile_id and profile.name in wanted:
                return gpu, other, profile.name
    return None


def is_readable(version: str) -> bool:
    """Whether this begins with a version, such as `v25.10.1-rc1`. If not, as with an image that has only a digest, it counts as new enough."""
    return _VERSION.match(version) is not None


def pauses_clients(version: str) -> bool:
    """Whether this version of mig-manager pauses nvidia.com/gpu.deploy.client (docs/design/nvidia.md#a1). True if it cannot be parsed."""
    return not _is_before(version, CLIENTS_SINCE)


def merges_suffixes(version: str) -> bool:
    """Whether this version of the device plugin advertises profiles with a suffix under the plain name. False if it is unknown."""
    return _is_before(version, SUFFIXES_SINCE)


def find_deafness(daemon: MpsDaemonView) -> str:
    """Return why this MPS daemon would not read the configuration that a label names; empty if it would, or if that is unknown."""
    if _is_before(daemon.version, FALLBACK_FIRST_SINCE):
        return ""
    if daemon.sees_host and _is_before(daemon.version, SKIPS_THREADS_SINCE):
        return (
            "config-manager crashes when it reads the host's kernel threads (NVIDIA/k8s-device-plugin#1726)"
        )
    wanted, name = daemon.signalled or "", daemon.program
    if _numbers(daemon.version)[:2] > EXACT_NAMES_UNTIL:
        wanted, name = wanted.rpartition("/")[2], name.rpartition("/")[2]
    if not _is_named(daemon) or wanted == name:
        return ""
    # The GPU Operator had the same names with device plugins before FALLBACK_FIRST_SINCE, whose daemons do read the
    # configuration.
    names = (daemon.program, daemon.signalled)
    if not is_readable(daemon.version) and names == (RELEASED_DAEMON.program, RELEASED_DAEMON.signalled):
        return ""
    if not daemon.signalled:
        return f"config-manager has no value in PROCESS_TO_SIGNAL, but the daemon is called {daemon.program}"
    return (
        f"config-manager looks for a process named {daemon.signalled}, but the daemon is called {daemon.program}"
        " (NVIDIA/k8s-device-plugin#1827)"
    )


@value
class MpsRemedy:
    """The steps by which a person can make an MPS daemon follow labels."""

    needs_plugin: bool
    """Whether the device plugin first has to be upgraded to SKIPS_THREADS or newer."""
    command: str
    """Tells config-manager the process name of the daemon. Empty if that name is not known."""

    @property
    def text(self) -> str:
        steps = []
        if self.needs_plugin:
            steps.append(f"set devicePlugin.version in ClusterPolicy to {SKIPS_THREADS} or newer")
        if self.command:
            steps.append(f"run `{self.command}`")
        return (
            "The remedy restarts all MPS daemons in the cluster and ends their clients:"
            f" {', then '.join(steps)}"
        )


def find_remedy(daemon: MpsDaemonView) -> MpsRemedy:
    """Return the steps that make this MPS daemon follow labels. Call it only if `find_deafness` returns a reason.

    The command is included even if the name is right now, because the GPU Operator may restore its own.
    """
    return MpsRemedy(
        needs_plugin=daemon.sees_host and _is_before(daemon.version, SKIPS_THREADS_SINCE),
        command=f"kubectl -n {daemon.namespace} set env daemonset/{daemon.name} -c config-manager"
        f" PROCESS_TO_SIGNAL={daemon.program}"
        if _is_named(daemon)
        else "",
    )


def find_deaf_release(gpu_operator: str) -> str | None:
    """Return why labels cannot switch MPS on with this release of the GPU Operator; empty if they can, None if that is unknown.

    What `find_deafness` says about an installed DaemonSet is more reliable.
    """
    if not is_readable(gpu_operator) or _numbers(gpu_operator) > LAST_READ:
        return None
    return (
        "" if _is_before(gpu_operator, DEAF_SINCE) else f"GPU Operator {gpu_operator} is newer than v25.10.1"
    )


def _is_named(daemon: MpsDaemonView) -> bool:
    return bool(daemon.program) and daemon.program.rpartition("/")[2] not in WRAPPERS


def _is_before(version: str, since: tuple[int, ...]) -> bool:
    return is_readable(version) and _numbers(version)[: len(since)] < since


def _numbers(version: str) -> tuple[int, ...]:
    match = _VERSION.match(version)
    return () if match is None else tuple(int(part or 0) for part in match.groups())


def find_suffixed(layouts: Sequence[Layout | None]) -> str:
    names = (name for layout in layouts for name, _ in layout or ())
    return next((name for name in names if not _PLAIN.fullmatch(name)), "")


def counts_without_suffixes(resources: Mapping[str, int]) -> dict[str, int]:
    """Return the predicted counts as device plugins before v0.20 would advertise them."""
    counts: Counter[str] = Counter()
    for name, count in resources.items():
        match = _NAME.fullmatch(name)
        counts[match[1] + (match[2] or "") if match else name] += count
    return dict(counts)

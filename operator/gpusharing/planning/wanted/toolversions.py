"""What NVIDIA's programs do differently by version: data, from their change logs and rung 3.

The device plugin's resource patterns are unanchored up to 0.19: instances of `1g.10gb+me`, `1g.24gb+gfx` or
`1g.24gb-me` are served under the plain name `nvidia.com/mig-1g.10gb` (k8s-device-plugin PR 1807; seen with 0.19.3).

On a node with two models mig-parted before 0.15 looks a profile up by name on the first card that has it: 1g.10gb is
one thing on an H100 and another on an A100 40GB (docs/reference/nvidia-differences.md; seen with 0.13.1, gone with
0.15.1).

From 0.18.2 on config-manager takes the fallback before it has read the label, and signals its program afterwards (PR
"Fix race condition in config-manager when label is unset"; seen with 0.19.3). The GPU Operator's MPS daemon is not
reached by that signal: before 0.20 config-manager panics at a process without a command line, as the kernel's threads
of the host are (k8s-device-plugin issue 1726), and it looks for /usr/bin/mps-control-daemon where the daemon runs as
mps-control-daemon (PR 1827; gpu-operator v25.3 to v26.7, assets/state-mps-control-daemon). So the daemon keeps the
fallback. It follows labels where both faults are mended: plugin 0.20, and PROCESS_TO_SIGNAL with the daemon's name
(docs/design/nvidia.md#b5). In NVIDIA's chart alone config-manager is started before the daemon, which mostly reads what
the label names.
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
"""First version that serves a profile with a suffix under a name of its own."""
OWN_NAMES_SINCE = (0, 15)
"""First version of mig-parted that gives each card its own profile of a name."""
FALLBACK_FIRST_SINCE = (0, 18, 2)
"""First version whose config-manager starts with the fallback."""
DEAF_SINCE = (25, 10, 2)
"""First version of the GPU Operator whose MPS daemon learns of no label, up to v26.7 at least."""
SKIPS_THREADS_SINCE = (0, 20)
"""First version whose config-manager skips processes without a command line."""
SKIPS_THREADS = "v0.20.0"
"""The version SKIPS_THREADS_SINCE as ClusterPolicy names it."""
RELEASED_DAEMON = MpsDaemonView(
    "v0.19.3", "mps-control-daemon", "/usr/bin/mps-control-daemon", sees_host=True
)
"""The MPS daemon of the releases since DEAF_SINCE, for advice without a cluster (GO v26.7.0
assets/state-mps-control-daemon)."""
ADVICE = "device plugins before v0.20 serve profiles with a suffix under the plain name"

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?\b")
_PLAIN = re.compile(r"\d+g\.\d+gb")
_NAME = re.compile(r"(nvidia\.com/mig-\d+g\.\d+gb)[.-](?:me|gfx).*?(\.shared)?")


def find_too_old(
    strategy: str,
    gpus: Sequence[CardView],
    layouts: Sequence[Layout | None],
    cluster_policy: ClusterPolicyView,
) -> Finding | None:
    """Return why these layouts, one per GPU, would come out wrong with the versions that ClusterPolicy names, or None
    if they would not."""
    plugin, parted = cluster_policy.plugin_version, cluster_policy.mig_manager_version
    if strategy == "mixed" and merges_suffixes(plugin) and (profile := find_suffixed(layouts)):
        return Finding(Reason.PLUGIN_TOO_OLD, f"{profile} with device plugin {plugin}: {ADVICE}")
    if _is_before(parted, OWN_NAMES_SINCE) and (mistaken := find_mistaken(gpus, layouts)) is not None:
        gpu, first, name = mistaken
        return Finding(
            Reason.MIG_MANAGER_TOO_OLD,
            f"mig-manager {parted} would take {name} of GPU {gpu.index} ({gpu.product}) for {name} of GPU"
            f" {first.index} ({first.product}), and fail; upgrade mig-manager to v0.15, or use another profile",
        )
    return None


def find_mistaken(
    gpus: Sequence[CardView], layouts: Sequence[Layout | None]
) -> tuple[CardView, CardView, str] | None:
    """Return the first GPU for which mig-parted before 0.15 would take another profile, the earlier GPU that has it,
    and the name that both profiles share. None if there is no such GPU."""
    first: dict[str, tuple[CardView, int | None]] = {}
    for gpu, layout in zip(gpus, layouts, strict=True):
        wanted = dict(layout or ())
        for profile in gpu.profiles:
            other, profile_id = first.setdefault(profile.name, (gpu, profile.profile_id))
            if profile_id != profile.profile_id and profile.name in wanted:
                return gpu, other, profile.name
    return None


def merges_suffixes(version: str) -> bool:
    """Whether this version of the device plugin (as ClusterPolicy names it, `v0.19.3-ubi9`) serves profiles with a
    suffix under the plain name. False if the version is unknown."""
    return _is_before(version, SUFFIXES_SINCE)


def find_deafness(daemon: MpsDaemonView) -> str:
    """Return why this MPS daemon would not read the configuration that a label names. Empty if it would, or if that is
    unknown."""
    if _VERSION.match(daemon.version) is None or _is_before(daemon.version, FALLBACK_FIRST_SINCE):
        return ""
    if not daemon.signalled:  # it has no config-manager
        return ""
    if daemon.sees_host and _is_before(daemon.version, SKIPS_THREADS_SINCE):
        return "config-manager panics at the threads of the host's kernel (NVIDIA/k8s-device-plugin#1726)"
    if daemon.signalled == daemon.program or _base(daemon.signalled) != _base(daemon.program):
        return ""  # the name of a program behind a shell is not known here
    return (
        f"config-manager looks for a process {daemon.signalled}, but the daemon is called {daemon.program}"
        " (NVIDIA/k8s-device-plugin#1827)"
    )


@value
class MpsRemedy:
    """What a person does so that an MPS daemon follows labels."""

    needs_plugin: bool
    """Whether the device plugin has to be SKIPS_THREADS or newer before `command` helps."""
    command: str
    """The command that gives config-manager the name of the daemon. Empty if that name is not known."""

    @property
    def text(self) -> str:
        """What the steps do to running clients, and all steps in their order, as a sentence without its full stop."""
        steps = []
        if self.needs_plugin:
            steps.append(f"set devicePlugin.version of ClusterPolicy to {SKIPS_THREADS} or newer")
        if self.command:
            steps.append(f"run `{self.command}`")
        return (
            "The remedy restarts all MPS daemons of the cluster and ends their clients:"
            f" {', then '.join(steps)}"
        )


def find_remedy(daemon: MpsDaemonView) -> MpsRemedy:
    """Return what lets this MPS daemon follow labels. Only for a daemon of which `find_deafness` says that it does
    not.

    The command is part of it even where the name is right already, because the GPU Operator writes its own value again
    when ClusterPolicy is edited.
    """
    known = _base(daemon.signalled) == _base(daemon.program)  # not the name of a shell around the daemon
    return MpsRemedy(
        needs_plugin=daemon.sees_host and _is_before(daemon.version, SKIPS_THREADS_SINCE),
        command=f"kubectl -n {daemon.namespace} set env daemonset/{daemon.name} -c config-manager"
        f" PROCESS_TO_SIGNAL={daemon.program}"
        if known
        else "",
    )


def find_deaf_release(gpu_operator: str) -> str | None:
    """Return why no label can switch MPS on with this version of the GPU Operator as it is installed; empty if a label
    can. None if the text is no version."""
    if _VERSION.match(gpu_operator) is None:
        return None
    return (
        "" if _is_before(gpu_operator, DEAF_SINCE) else f"GPU Operator {gpu_operator} is newer than v25.10.1"
    )


def _base(program: str) -> str:
    return program.rpartition("/")[2]


def _is_before(version: str, since: tuple[int, ...]) -> bool:
    """Whether the version is older than `since`. False if it cannot be read."""
    match = _VERSION.match(version)
    return match is not None and tuple(int(part or 0) for part in match.groups())[: len(since)] < since


def find_suffixed(layouts: Sequence[Layout | None]) -> str:
    """Return the first profile with a suffix in these layouts; empty when there is none."""
    names = (name for layout in layouts for name, _ in layout or ())
    return next((name for name in names if not _PLAIN.fullmatch(name)), "")


def counts_without_suffixes(resources: Mapping[str, int]) -> dict[str, int]:
    """Return these predicted counts as device plugins before v0.20 advertise them: profiles with a suffix count under
    the plain name."""
    counts: Counter[str] = Counter()
    for name, count in resources.items():
        match = _NAME.fullmatch(name)
        counts[match[1] + (match[2] or "") if match else name] += count
    return dict(counts)

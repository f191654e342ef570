"""What does a policy make of a node with certain GPUs, or why can it not? All functions are pure.

How the behavior of NVIDIA's programs differs by version is known from their change logs and from tests with the real
programs (docs/design/faults.md#rung-3).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime
from functools import lru_cache

from gpusharing.api.gpunode import NO_COMPUTE
from gpusharing.api.names import RESOURCE_GPU, RESOURCE_GPU_SHARED, RESOURCE_MIG_PREFIX, Mode
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.gpus.cards import bare_product, find_card
from gpusharing.planning.gpus.geometry import Layout, describe, normalize, resource_name, tell_misfit
from gpusharing.planning.snapshot.nvidia import MIG_MANAGER_SWITCH, ClusterPolicyView, MpsDaemonView, StackView
from gpusharing.planning.snapshot.records import CLOCK_ERROR, EARLIEST
from gpusharing.planning.snapshot.views import CardView, Hardware, NodeView, ObservedView, PolicyView
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted import migfile, pluginconfig
from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing


@value
class Target:
    """What a node should become: settings of the changing components, and readings of the proving ones."""

    mode: Mode
    layouts: tuple[Layout | None, ...]
    """The layout of each GPU, in the order of their indexes, or None for a GPU with MIG off."""
    mig_config: str
    """Value of nvidia.com/mig.config. Empty if the operator does not set it, as for cards without MIG."""
    plugin_key: str
    """Value of nvidia.com/device-plugin.config. Empty if the label must be absent."""
    plugin: PluginConfig
    configured: datetime | None
    """Since when our ConfigMaps have contained exactly this configuration, or None if they do not."""
    resources: Mapping[str, int] = field(init=False, compare=False)
    """The exact allocatable count of each resource of the device plugin. Any other resource must be absent or 0."""

    text: str = field(init=False, compare=False)
    """The layouts for people, such as `2x3g.40gb`, `4x shared` or `1x full`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "resources", predict_resources(self.layouts, self.plugin))
        object.__setattr__(self, "text", describe_layouts(self.layouts, self.plugin.replicas))

    @property
    def routing(self) -> str:
        return routing_label(self.mode, time_slicing=self.plugin.sharing is not None)

    @property
    def with_mig(self) -> bool:
        return self.layouts.count(None) < len(self.layouts)


@value
class Request:
    """What a policy asks of every node: the part of a target that does not depend on the node."""

    spec: GPUSharingPolicySpec = field(compare=False)
    mig_config: str
    """Name of the mig-parted configuration for nodes that support MIG."""
    entry: migfile.Entry | None
    """Our own mig-parted entry of that name, or None if the policy has no spec.mig.layouts."""
    plugins: Mapping[str, str]
    """The YAML of those device-plugin configurations that do not depend on the cards, by key."""


def find_request(policy: str, spec: GPUSharingPolicySpec) -> Request:
    mig, slicing, layouts = spec.mig, spec.time_slicing, spec.mig.layouts if spec.mig is not None else None
    entry = migfile.entry_of(layouts) if layouts is not None else None
    if spec.mode is not Mode.MIG or mig is None:
        mig_config = migfile.ALL_DISABLED
    elif entry is not None:
        mig_config = pluginconfig.key_for(policy, migfile.entry_text(entry))
    else:
        mig_config = mig.config or ""
    foreseen: list[Layout | None] = [None]
    if spec.mode is Mode.MIG and mig is not None:
        foreseen = [normalize(row.profiles) if row.profiles else None for row in layouts or ()]
        if mig.strategy == "single":
            foreseen = [(("any", 1),)]  # every profile is advertised as nvidia.com/gpu
    configs = [plugin_config(spec, foreseen)]
    if spec.mode is Mode.MIG and slicing is not None and layouts is None and foreseen == []:
        configs = []  # it depends on the cards, and is added when the first node has a target
    if spec.mode in (Mode.MIG, Mode.MPS):
        configs.append(PluginConfig())  # that of the intermediate target
    plugins = {pluginconfig.key_for(policy, text): text for text in map(pluginconfig.render, configs)}
    return Request(spec, mig_config, entry, plugins)


MOST_KINDS = 256
"""The most targets that are kept for one policy. When there are more, all are computed anew."""


@value(eq=False)
class PolicyTargets:
    """The targets of one policy in one cluster, each computed once for each kind of hardware."""

    policy: PolicyView
    request: Request | Finding
    stack: StackView
    known: dict[tuple[tuple[CardView, ...], str | None], Target] = field(default_factory=dict)
    """The targets by hardware and by the file that mig-manager generated there; None for the intermediate target."""

    def find(self, node: str, hardware: Hardware) -> Target | Finding:
        """Return the target of `node`, or a Finding that says why it cannot have one.

        `hardware` must have at least one GPU, sorted by index. A Finding names the node, so it is not kept.
        """
        kind = hardware.cards, self.stack.generated_mig_file(node)
        if (known := self.known.get(kind)) is not None:
            return known
        found = self._find(node, hardware.cards)
        return found if isinstance(found, Finding) else self._keep(kind, found)

    def _keep(self, kind: tuple[tuple[CardView, ...], str | None], target: Target) -> Target:
        if len(self.known) >= MOST_KINDS:
            self.known.clear()
        self.known[kind] = target
        return target

    def _find(self, node: str, gpus: tuple[CardView, ...]) -> Target | Finding:
        request, policy, stack = self.request, self.stack.cluster_policy, self.stack
        if isinstance(request, Finding):
            return request
        spec = request.spec
        listed = {bare_product(product) for product in spec.products}
        if listed and (other := next((gpu.product for gpu in gpus if bare_product(gpu.product) not in listed), "")):
            text = f"{node} has {other}, which spec.products does not list ({', '.join(spec.products)})"
            return Finding(Reason.PRODUCT_SKIPPED, text)
        layouts = _find_layouts(request, node, gpus, stack)
        if isinstance(layouts, Finding):
            return layouts
        clients = spec.mps.replicas if spec.mode is Mode.MPS and spec.mps is not None else 0
        for gpu in gpus if clients else ():
            card = find_card(gpu.product)
            if card is not None and clients > card.mps_max_clients:  # docs/design/hardware.md#mps-served
                text = f"{node}: {gpu.product} serves at most {card.mps_max_clients} MPS clients"
                return Finding(Reason.MPS_TOO_MANY_CLIENTS, f"{text}, but spec.mps.replicas is {clients}")
        if spec.mig is not None and policy is not None and not stack.by_dra:
            too_old = find_too_old(spec.mig.strategy, gpus, layouts, policy)
            if too_old is not None:
                return replace(too_old, message=f"{node}: {too_old.message}")
        return self._make(spec.mode, gpus, layouts, request.mig_config, plugin_config(spec, layouts))

    def stop(self, hardware: Hardware) -> Target:
        """Return the intermediate target (mode Full) without which mig-manager and the MPS daemon would race (b.5)."""
        gpus = hardware.cards
        if (known := self.known.get((gpus, None))) is not None:
            return known
        whole = self._make(Mode.FULL, gpus, (None,) * len(gpus), migfile.ALL_DISABLED, PluginConfig())
        return self._keep((gpus, None), whole)

    def _make(
        self,
        mode: Mode,
        gpus: Sequence[CardView],
        layouts: tuple[Layout | None, ...],
        mig_config: str,
        plugin: PluginConfig,
    ) -> Target:
        policy, content = self.stack.cluster_policy, pluginconfig.render(plugin)
        key = "" if self.stack.by_dra else pluginconfig.key_for(self.policy.name, content)
        runs = policy is None or not policy.is_off(MIG_MANAGER_SWITCH)
        if policy is not None and policy.plain is not None:
            # Another ConfigMap than ours may lack `all-disabled`.
            runs = runs and self.stack.serves_our_mig_file
        # A policy of mode MIG without mig-manager is refused elsewhere (`find_objection`).
        runs = runs or (self.policy.spec is not None and self.policy.spec.mode is Mode.MIG)
        if not runs or not any(gpu.mig_capable for gpu in gpus):
            mig_config = ""
        since = configured_since((key, content), mig_config, layouts, gpus, self.stack)
        return Target(mode, layouts, mig_config, key, plugin, since)


def routing_label(mode: Mode, *, time_slicing: bool) -> str:
    if mode is Mode.MIG and time_slicing:
        return "mig-time-slicing"
    return {Mode.FULL: "full", Mode.MIG: "mig", Mode.MPS: "mps", Mode.TIME_SLICING: "time-slicing"}[mode]


def plugin_config(spec: GPUSharingPolicySpec, layouts: Sequence[Layout | None]) -> PluginConfig:
    if spec.mode is Mode.MPS and spec.mps is not None:
        # failRequestsGreaterThanOne is MPS's own default, because two shares of one GPU are no more than one share.
        return PluginConfig(
            "none", Sharing(((RESOURCE_GPU, spec.mps.replicas),), spec.mps.rename_by_default, True, "mps")
        )
    strategy = spec.mig.strategy if spec.mode is Mode.MIG and spec.mig is not None else "none"
    slicing = spec.time_slicing
    if slicing is None:
        return PluginConfig(strategy)
    rows = tuple((name, slicing.replicas) for name in sorted(predict_resources(layouts, PluginConfig(strategy))))
    sharing = Sharing(rows, slicing.rename_by_default, slicing.fail_requests_greater_than_one)
    return PluginConfig(strategy, sharing)


def _find_layouts(
    request: Request, node: str, gpus: Sequence[CardView], stack: StackView
) -> tuple[Layout | None, ...] | Finding:
    spec = request.spec
    if spec.mode is not Mode.MIG or spec.mig is None:
        return (None,) * len(gpus)
    if incapable := next((gpu for gpu in gpus if not gpu.mig_capable), None):
        text = f"{node}: {incapable.product} does not support MIG; use mode TimeSlicing or Full"
        return Finding(Reason.NOT_MIG_CAPABLE, text)
    if (name := spec.mig.config) is not None:
        meaning = migfile.resolve_name(name, node, gpus, stack)
        if isinstance(meaning, str):
            return Finding(Reason.CONFIG_UNKNOWN, f"{node}: spec.mig.config {name} is not usable: {meaning}")
    else:
        indexes = {gpu.index for gpu in gpus}
        assigned = {index for row in spec.mig.layouts or () for index in row.devices or ()}
        if surplus := sorted(assigned - indexes):
            text = f"spec.mig.layouts names GPU {', '.join(map(str, surplus))}"
            return Finding(Reason.LAYOUT_TOO_MANY_GPUS, f"{node} has {counted(len(gpus), 'GPU')}, but {text}")
        meaning = migfile.resolve(request.entry or [], gpus)
        if isinstance(meaning, str):
            return Finding(
                Reason.LAYOUT_INCOMPLETE,
                f"{node}: spec.mig.layouts must name every GPU, but {meaning}; add for example "
                "{devices: [" + ", ".join(map(str, sorted(indexes - assigned))) + "], profiles: {}}",
            )
    # The last layout and profiles that were checked, because the GPUs of a node are mostly alike.
    fitted: tuple[Layout | None, object] = (None, None)
    for gpu, layout in zip(gpus, meaning, strict=True):
        if layout is None or fitted == (layout, gpu.profiles):
            continue
        fitted = (layout, gpu.profiles)
        if (unfit := _find_unfit(layout, gpu)) is not None:
            return replace(unfit, message=f"{node} GPU {gpu.index}{unfit.message}")
    profiles = {tuple(name for name, _ in layout or ()) for layout in meaning}
    uniform = len(profiles) == 1 and len(profiles.pop()) == 1
    if spec.mig.strategy == "single" and not uniform:
        text = f"{node}: spec.mig.strategy single needs one and the same profile on every GPU; use mixed"
        return Finding(Reason.LAYOUT_NOT_UNIFORM, text)
    return meaning


def _find_unfit(layout: Layout, gpu: CardView) -> Finding | None:
    """Return why the card cannot have the layout, or None if it can. The message begins after the name of the GPU."""
    if layout == ():
        return Finding(Reason.LAYOUT_EMPTY, ": with MIG on but no MIG instances, pods could not use it")
    if not gpu.profiles:
        message = f": neither the driver nor the operator's table lists MIG profiles for {gpu.product}"
        return Finding(Reason.HARDWARE_UNKNOWN, message)
    if not (misfit := tell_misfit(layout, gpu.profiles)):
        return None
    unknown = not {name for name, _ in layout} <= {profile.name for profile in gpu.profiles}
    reason = Reason.PROFILE_NOT_SUPPORTED if unknown else Reason.LAYOUT_DOES_NOT_FIT
    return Finding(reason, f" ({gpu.product}): {misfit}")


def predict_resources(layouts: Sequence[Layout | None], plugin: PluginConfig) -> dict[str, int]:
    """Return the counts that the device plugin will advertise for these layouts (docs/design/nvidia.md#b6, b.7)."""
    counts: Counter[str] = Counter()
    for layout in layouts:
        if layout is None:
            counts[RESOURCE_GPU] += 1
            continue
        for profile, count in layout:
            if profile.startswith(NO_COMPUTE):
                continue
            counts[RESOURCE_GPU if plugin.mig_strategy == "single" else resource_name(profile)] += count
    if plugin.sharing is None:
        return dict(counts)
    replicas = dict(plugin.sharing.replicas)
    shared: dict[str, int] = {}
    for name, count in counts.items():
        served = f"{name}.shared" if plugin.sharing.rename and name in replicas else name
        shared[served] = count * replicas.get(name, 1)
    return shared


@lru_cache(maxsize=1024)
def describe_layouts(layouts: tuple[Layout | None, ...], replicas: int = 1) -> str:
    """Return the layouts of a node's GPUs for people, such as `2x3g.40gb (4 GPUs), 1x full (4 GPUs)`."""
    texts: Counter[str] = Counter()
    shared = f"{replicas}x shared" if replicas > 1 else ""
    for layout in layouts:
        if layout is None:
            texts[shared or "1x full"] += 1
        else:
            texts[f"{describe(layout) if layout else 'MIG empty'} {shared}".rstrip()] += 1
    if len(texts) == 1:
        return next(iter(texts))
    return ", ".join(f"{text} ({counted(count, 'GPU')})" for text, count in texts.items())


def is_plugin_resource(name: str) -> bool:
    """Whether the device plugin may advertise this under a configuration of ours; `is_gpu_resource` accepts more."""
    return name in (RESOURCE_GPU, RESOURCE_GPU_SHARED) or name.startswith(RESOURCE_MIG_PREFIX)


# --- since when the configuration has been written ---------------------------------------------------------


def known_times(times: Mapping[str, datetime], now: datetime) -> dict[str, datetime]:
    """Return the times at which entries were written, by key, without those in the future.

    Such a time means that the clock has been set back. The clocks of an operator and its successor may differ by 2 *
    CLOCK_ERROR.
    """
    return {key: moment for key, moment in times.items() if moment <= now + 2 * CLOCK_ERROR}


def configured_since(
    plugin: tuple[str, str],
    mig_config: str,
    layouts: Sequence[Layout | None],
    gpus: Sequence[CardView],
    stack: StackView,
) -> datetime | None:
    """Return since when our ConfigMaps have contained exactly what a node needs, or None if they do not.

    They are compared by content and not by name (ADR 16). `plugin` is a key and its YAML. EARLIEST if it needs no entry.
    """
    key, text = plugin
    if key and stack.plugin_configs.get(key) != text:
        return None
    keys = [key] if key else []
    if mig_config and stack.serves_our_mig_file:
        entry = migfile.parse(stack.mig_file).get(mig_config)
        if entry is None or not migfile.is_rendered(stack.mig_file):
            return None  # mig-parted refuses the whole file
        if migfile.resolve(entry, gpus) != tuple(layouts):
            return None
        keys.append(mig_config)
    if not stack.written.keys() >= set(keys):
        return None
    return max((stack.written[name] for name in keys), default=EARLIEST)


# --- the way back ------------------------------------------------------------------------------------------


def under_deletion(policy: PolicyView, *, resets: bool) -> PolicyView:
    """Return the policy as the planner should see it during a deletion: of mode Full, if it `resets` its nodes.

    Until its nodes are reset, it is like any other policy, but it gets no new ones (docs/design/transition.md#reset).
    Unchanged are a policy without our finalizer, whose object will be gone in a moment, and one with force-release,
    because a person has given up its nodes.
    """
    if not (policy.deleting and policy.finalizer and resets) or policy.force_release:
        return policy
    full = {"mode": Mode.FULL, "mig": None, "time_slicing": None, "mps": None}
    spec = None if policy.spec is None else policy.spec.model_copy(update=full)
    return replace(policy, deleting=False, resetting=True, spec=spec)


def without_default_label(target: Target, stack: StackView) -> Target:
    """Return the target without the device-plugin label if the default entry has the same effect.

    Removing the label restarts the plugin, so it is part of the change.
    """
    key = pluginconfig.default_entry(stack)
    text = stack.plugin_configs.get(key) if key else pluginconfig.NEUTRAL
    default = pluginconfig.parse(text) if text is not None else None
    if default is None or not default.same_effect(target.plugin, with_mig=target.with_mig):
        return target
    return replace(target, plugin_key="")


def find_last_proven(node: NodeView, observed: ObservedView, stack: StackView) -> Target | str:
    """Return the target that the last proof's record describes, or why none (docs/design/transition.md#rollback)."""
    record, gpus, whole = node.verified, observed.gpus, (None,) * len(observed.gpus)
    if record is None:
        return "the node has no earlier proven layout"
    if record.gpus != len(gpus):
        return f"the last proof covered {counted(record.gpus, 'GPU')}, but NVML lists {len(gpus)}"
    key, content, plugin = "", "", None
    if stack.by_dra:
        plugin = PluginConfig("mixed")
    else:
        # If somebody edited or removed the entry, the content that this process has read before is about to be written.
        key, read = record.plugin_config, (stack.plugin_configs, stack.seen_plugin_configs)
        texts = [entries[key] for entries in read if key in entries]
        content = next((text for text in texts if pluginconfig.is_named_after(text, key)), "")
        plugin = pluginconfig.parse(content) if content else None
    if plugin is None:
        return f"the device plugin's configuration {record.plugin_config} no longer exists"
    layouts: tuple[Layout | None, ...] | str = whole
    if record.mig_config not in ("", migfile.ALL_DISABLED):
        layouts = migfile.resolve_name(record.mig_config, node.name, gpus, stack)
    elif not record.mig_config and observed.hardware.layouts != whole:
        layouts = "MIG is on, and the record names no mig-manager configuration that switches it off"
    if isinstance(layouts, str):
        return f"the mig-parted configuration {record.mig_config} is no longer usable: {layouts}"
    if (text := describe_layouts(layouts, plugin.replicas)) != record.layout:
        return f"{record.mig_config or 'the recorded configuration'} now means {text}, but {record.layout} was proven"
    if plugin.sharing is not None and plugin.sharing.strategy == "mps":
        mode = Mode.MPS
    elif layouts != whole:
        mode = Mode.MIG
    else:
        mode = Mode.TIME_SLICING if plugin.sharing is not None else Mode.FULL
    since = configured_since((key, content), record.mig_config, layouts, gpus, stack)
    return Target(mode, layouts, record.mig_config, key, plugin, since)


# --- what differs between versions of NVIDIA's programs -----------------------------------------------------


SUFFIXES_SINCE = (0, 20)
"""The first version of the device plugin that gives a profile with a suffix a name of its own. Its resource patterns
are unanchored up to 0.19: instances of `1g.10gb+me`, `1g.24gb+gfx` or `1g.24gb-me` are served under the plain name
`nvidia.com/mig-1g.10gb` (k8s-device-plugin PR 1807; seen with 0.19.3)."""
OWN_NAMES_SINCE = (0, 15)
"""The first version of mig-parted that looks up a profile name on each card separately. On a node with two card models,
mig-parted before 0.15 looks up a profile by name on the first card that has it, although 1g.10gb is not the same
profile on an H100 and on an A100 40GB (docs/reference/nvidia-differences.md; seen with 0.13.1, gone with 0.15.1)."""
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
MPS_FALSE_SINCE = (0, 20)
"""The first version of the device plugin that accepts failRequestsGreaterThanOne: false under MPS."""
EXACT_NAMES_UNTIL = (0, 20)
"""The last version of the device plugin whose config-manager compares whole process names. Its main branch, as of
November 2026, compares only the part after the last slash."""
SKIPS_THREADS = "v0.20.0"
"""The version SKIPS_THREADS_SINCE in the form that ClusterPolicy uses."""
RELEASED_DAEMON = MpsDaemonView("v0.19.3", "mps-control-daemon", "/usr/bin/mps-control-daemon", sees_host=True)
"""The MPS daemon as released since DEAF_SINCE (gpu-operator v26.7.0 assets/state-mps-control-daemon)."""
WRAPPERS = frozenset({"sh", "ash", "bash", "dash", "busybox", "env", "tini", "dumb-init"})
"""Programs that start the one named by their arguments. The process name of the daemon is then unknown."""
ADVICE = "device plugins before v0.20 advertise a profile with a suffix, such as +me, under its name without the suffix"

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?\b")
_PLAIN = re.compile(r"\d+g\.\d+gb")
_NAME = re.compile(r"(nvidia\.com/mig-\d+g\.\d+gb)[.-](?:me|gfx).*?(\.shared)?")


def find_too_old(
    strategy: str, gpus: Sequence[CardView], layouts: Sequence[Layout | None], cluster_policy: ClusterPolicyView
) -> Finding | None:
    """Return why the known versions of NVIDIA's programs would apply or advertise these layouts of `gpus` wrongly."""
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


def find_mistaken(gpus: Sequence[CardView], layouts: Sequence[Layout | None]) -> tuple[CardView, CardView, str] | None:
    """Return the first GPU for which mig-parted before 0.15 would choose another's profile, that other, and the name.

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
    """Whether this begins with a version, such as `v25.10.1-rc1`; an image may have only a digest."""
    return _VERSION.match(version) is not None


def pauses_clients(version: str) -> bool:
    """Whether this or an unknown mig-manager pauses nvidia.com/gpu.deploy.client (docs/design/nvidia.md#a1)."""
    return not _is_before(version, CLIENTS_SINCE)


def merges_suffixes(version: str) -> bool:
    """Whether this device plugin is known to advertise profiles with a suffix under the plain name."""
    return _is_before(version, SUFFIXES_SINCE)


def rejects_shares(version: str) -> bool:
    """Whether this device plugin is known to reject several shares under MPS whatever its configuration says."""
    return _is_before(version, MPS_FALSE_SINCE)


def find_deafness(daemon: MpsDaemonView) -> str:
    """Return why this MPS daemon would not read the configuration that a label names.

    Empty if it would, or if that is unknown. From 0.18.2 on, config-manager takes the fallback before it has read the
    label, and signals its program afterwards (PR "Fix race condition in config-manager when label is unset"; seen with
    0.19.3). The GPU Operator's MPS daemon is not reached by that signal. Before 0.20, config-manager panics at a
    process without a command line, such as the host's kernel threads (k8s-device-plugin issue 1726). It also looks for
    /usr/bin/mps-control-daemon where the daemon runs as mps-control-daemon (PR 1827; gpu-operator v25.3 to v26.7,
    assets/state-mps-control-daemon). So the daemon keeps the fallback. It follows labels only if both faults are
    corrected, by plugin 0.20 and by PROCESS_TO_SIGNAL with the daemon's name (docs/design/nvidia.md#b5). Without that
    variable, config-manager looks for the device plugin (v0.19.3, cmd/config-manager DefaultProcessToSignal). In
    NVIDIA's chart without the GPU Operator, config-manager is started before the daemon, which therefore usually reads
    the configuration that the label names.
    """
    if _is_before(daemon.version, FALLBACK_FIRST_SINCE):
        return ""
    if needs_newer_plugin(daemon):
        return "config-manager crashes when it reads the host's kernel threads (NVIDIA/k8s-device-plugin#1726)"
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


def needs_newer_plugin(daemon: MpsDaemonView) -> bool:
    """Whether the device plugin needs SKIPS_THREADS or newer before this MPS daemon can follow labels."""
    return daemon.sees_host and _is_before(daemon.version, SKIPS_THREADS_SINCE)


def find_remedy(daemon: MpsDaemonView) -> tuple[str, Command | None]:
    """Return the steps after which this deaf MPS daemon follows labels, and the command for its name, if it is known."""
    where = f"-n {daemon.namespace} set env daemonset/{daemon.name} -c config-manager"
    # It ends the clients of every MPS daemon, as the text says, and nothing else.
    named = _is_named(daemon)
    command = Command.of(f"kubectl {where} PROCESS_TO_SIGNAL={daemon.program}", effects=()) if named else None
    upgrade = f"set devicePlugin.version in ClusterPolicy to {SKIPS_THREADS} or newer"
    steps = [upgrade] * needs_newer_plugin(daemon) + [f"run `{command}`"] * named
    text = "The remedy restarts all MPS daemons in the cluster and ends their clients"
    return f"{text}: {', then '.join(steps)}", command


def explain_deafness(daemon: MpsDaemonView) -> Finding | None:
    """Return why no label can enable MPS, and the remedy; None if one can, or if that is unknown."""
    if not (why := find_deafness(daemon)):
        return None
    text, command = find_remedy(daemon)
    message = f"no label can enable MPS with {daemon.plugin}: {why}. {text}"
    return Finding(Reason.MPS_NOT_SWITCHABLE, message, commands=(command,) if command is not None else ())


def find_deaf_release(gpu_operator: str) -> str | None:
    """Return why labels cannot switch MPS on with this GPU Operator; empty if they can, None if that is unknown."""
    if not is_readable(gpu_operator) or _numbers(gpu_operator) > LAST_READ:
        return None
    return "" if _is_before(gpu_operator, DEAF_SINCE) else f"GPU Operator {gpu_operator} is newer than v25.10.1"


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

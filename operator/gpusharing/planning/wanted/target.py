"""Computes what a policy makes of a node with certain GPUs, or why it cannot. All functions are pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from datetime import UTC, datetime
from functools import lru_cache, partial

from gpusharing.api.names import RESOURCE_GPU, RESOURCE_GPU_SHARED, RESOURCE_MIG_PREFIX, Mode
from gpusharing.api.policy import GPUSharingPolicySpec, MigLayout
from gpusharing.planning.gpus.cards import bare_product, find_card
from gpusharing.planning.gpus.geometry import (
    Layout,
    Legal,
    describe,
    find_fit,
    normalize,
    resource_name,
)
from gpusharing.planning.snapshot.memo import AnswersByKind
from gpusharing.planning.snapshot.records import CLOCK_ERROR, Verified
from gpusharing.planning.snapshot.stackviews import MIG_MANAGER_SWITCH, StackView
from gpusharing.planning.snapshot.views import (
    CardView,
    Hardware,
    NodeView,
    ObservedView,
    PolicyView,
    routing_label,
)
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted import migfile, pluginconfig, toolversions
from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing

CLOCKS_APART = 2 * CLOCK_ERROR
"""The largest possible difference between the clocks of an operator and of its successor."""


ALWAYS = datetime.fromtimestamp(0, UTC)
"""Since when a node has been configured that needs no entry of ours."""


def known_times(times: Mapping[str, datetime], now: datetime) -> dict[str, datetime]:
    """Return the times at which entries were written, by key, without times that are more than CLOCKS_APART in the
    future. A later time means that the clock has been set back since then. The entry is then written again, so that
    nodes do not wait for it longer than usual."""
    return {key: moment for key, moment in times.items() if moment <= now + CLOCKS_APART}


def configured_since(
    plugin: tuple[str, str],
    mig_config: str,
    layouts: Sequence[Layout | None],
    gpus: Sequence[CardView],
    stack: StackView,
) -> datetime | None:
    """Return since when our ConfigMaps have contained exactly what a node needs, by content and not by name (ADR 16):
    the later of the two times of writing. None if an entry is missing, has other content, or has no recorded time,
    or if our mig-parted file is not exactly as we render it. The mig-parted entry and file are not checked if
    mig-manager does not read our file, or if `mig_config` is empty. ALWAYS if the node needs neither entry.

    `plugin` is the key and the YAML of the device plugin's configuration; the key is empty if it needs none. `layouts`
    are those that `mig_config` must give the GPUs.
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
    return max((stack.written[name] for name in keys), default=ALWAYS)


@value
class Target:
    """What a node should become, as settings of the components that make the change and as readings of those that
    prove it."""

    mode: Mode
    """The mode of the GPUs."""
    routing: str
    """Value of the routing label."""
    layouts: tuple[Layout | None, ...]
    """The layout of each GPU, in the order of their indexes, or None for a GPU with MIG off."""
    mig_config: str
    """Value of nvidia.com/mig.config. Empty if the operator does not set it, as for cards without MIG."""
    plugin_key: str
    """Value of nvidia.com/device-plugin.config. Empty if the label must be absent."""
    plugin: PluginConfig
    """The effect of that configuration on the device plugin."""
    resources: Mapping[str, int]
    """The exact allocatable count of each resource of the device plugin. A resource that is not listed must be absent
    or 0."""
    text: str
    """The layouts for people, such as `2x3g.40gb`, `4x shared` or `1x full`."""
    configured: datetime | None
    """Since when our ConfigMaps have contained exactly this configuration, or None if they do not."""

    @property
    def with_mig(self) -> bool:
        """Whether at least one GPU has MIG on."""
        return self.layouts.count(None) < len(self.layouts)


@value
class Wish:
    """What a policy asks of every node: the part of a target that does not depend on the node."""

    policy: str
    """Name of the policy."""
    spec: GPUSharingPolicySpec = field(compare=False)
    """The whole spec. It is ignored when two Wishes are compared."""
    mig_config: str
    """Name of the mig-parted configuration for nodes that support MIG."""
    entry: migfile.Entry | None
    """Our own mig-parted entry of that name, or None if the policy has no spec.mig.layouts."""
    plugins: Mapping[str, str]
    """The YAML of those device-plugin configurations that do not depend on the cards, by key."""


def find_wish(policy: str, spec: GPUSharingPolicySpec) -> Wish:
    """Return what the policy `policy` with this spec asks of every node. In mode MIG its `mig_config` is
    spec.mig.config or, if the policy has layouts, a name made of `policy` and a hash of their `entry`. In other modes
    it is all-disabled. `plugins` has, by key, the YAML of the device-plugin configurations that do not depend on the
    cards (`_foreseen`)."""
    entry = (
        migfile.entry_of(spec.mig.layouts) if spec.mig is not None and spec.mig.layouts is not None else None
    )
    if spec.mode is not Mode.MIG or spec.mig is None:
        mig_config = migfile.ALL_DISABLED
    elif entry is not None:
        mig_config = pluginconfig.key_for(policy, migfile.entry_text(entry))
    else:
        mig_config = spec.mig.config or ""
    plugins = {pluginconfig.key_for(policy, text): text for text in map(pluginconfig.render, _foreseen(spec))}
    return Wish(policy, spec, mig_config, entry, plugins)


def _find_target(
    request: Wish, node: str, stack: StackView, gpus: Sequence[CardView], _generated: str
) -> Target | Finding:
    """Return what `node` with these GPUs should become, or a Finding that names the node: a product is not in
    spec.products (PRODUCT_SKIPPED), a layout is impossible, a card serves too few MPS clients, or, in mode MIG with a
    ClusterPolicy and without DRA, a program of NVIDIA is too old. The first of these that applies, in this order, is
    returned. The last argument, mig-manager's generated file, is ignored here; it only distinguishes nodes in the
    cache."""
    spec = request.spec
    if spec.products and (other := _unlisted_product(spec, gpus)):
        return Finding(
            Reason.PRODUCT_SKIPPED,
            f"{node} has {other}, which spec.products does not list ({', '.join(spec.products)})",
        )
    layouts = _wanted_layouts(request, node, stack, gpus)
    if isinstance(layouts, Finding):
        return layouts
    if (refused := _too_many_clients(spec, node, gpus)) is not None:
        return refused
    if spec.mig is not None and stack.cluster_policy is not None and not stack.by_dra:
        too_old = toolversions.find_too_old(spec.mig.strategy, gpus, layouts, stack.cluster_policy)
        if too_old is not None:
            return replace(too_old, message=f"{node}: {too_old.message}")
    mig_config = request.mig_config if _has_mig_manager(spec, gpus, stack) else ""
    plugin = plugin_config(spec, layouts)
    return _target(
        request.policy, spec.mode, gpus, stack, mig_config=mig_config, layouts=layouts, plugin=plugin
    )


def _target(
    policy: str,
    mode: Mode,
    gpus: Sequence[CardView],
    stack: StackView,
    *,
    mig_config: str,
    layouts: tuple[Layout | None, ...],
    plugin: PluginConfig,
) -> Target:
    """Return the target with this mode, these layouts and this device-plugin configuration, from which its other fields
    are derived. `policy` is used only in `plugin_key`, a name made of it and a hash of the configuration. `plugin_key`
    is empty where NVIDIA's DRA driver takes the device plugin's place."""
    replicas = plugin.sharing.replicas[0][1] if plugin.sharing else 1
    content = pluginconfig.render(plugin)
    key = "" if stack.by_dra else pluginconfig.key_for(policy, content)
    return Target(
        mode=mode,
        routing=routing_label(mode, time_slicing=plugin.sharing is not None),
        layouts=layouts,
        mig_config=mig_config,
        plugin_key=key,
        plugin=plugin,
        resources=predict_resources(layouts, plugin),
        text=describe_layouts(layouts, replicas),
        configured=configured_since((key, content), mig_config, layouts, gpus, stack),
    )


def _too_many_clients(spec: GPUSharingPolicySpec, node: str, gpus: Sequence[CardView]) -> Finding | None:
    """Return a Finding (MPS_TOO_MANY_CLIENTS) about the first card that supports fewer MPS clients than the policy asks
    for (docs/design/hardware.md#mps-served). None if there is none, or if the mode is not MPS. Cards that are not in
    our table are not checked."""
    if spec.mode is not Mode.MPS or spec.mps is None:
        return None
    for gpu in gpus:
        card = find_card(gpu.product)
        if card is not None and spec.mps.replicas > card.mps_max_clients:
            return Finding(
                Reason.MPS_TOO_MANY_CLIENTS,
                f"{node}: {gpu.product} serves at most {card.mps_max_clients} MPS clients,"
                f" but spec.mps.replicas is {spec.mps.replicas}",
            )
    return None


def _has_mig_manager(spec: GPUSharingPolicySpec, gpus: Sequence[CardView], stack: StackView) -> bool:
    """Whether the label mig.config must be set: a GPU supports MIG, and mig-manager runs. Without a ClusterPolicy,
    mig-manager counts as running. Alongside NVIDIA's device-plugin chart it must also read our ConfigMap, because
    another one may lack `all-disabled`. In mode MIG it is enough that a GPU supports MIG, because a policy of that mode
    without mig-manager is refused elsewhere (acceptance.py)."""
    policy = stack.cluster_policy
    runs = policy is None or not policy.is_off(MIG_MANAGER_SWITCH)
    if policy is not None and policy.plain is not None:
        runs = runs and stack.serves_our_mig_file
    return any(gpu.mig_capable for gpu in gpus) and (spec.mode is Mode.MIG or runs)


@value(eq=False)
class Targets:
    """The targets of one policy in one cluster. Each target is computed once for each kind of hardware, because
    thousands of nodes have the same few kinds of cards."""

    policy: PolicyView
    """The policy whose targets these are."""
    request: Wish
    """What the policy asks of every node."""
    stack: StackView
    """NVIDIA's components and our ConfigMaps."""
    answers: AnswersByKind = field(default_factory=AnswersByKind)
    """The cache of targets."""

    def find(self, node: str, hardware: Hardware) -> Target | Finding:
        """Return the target of `node`, or a Finding that says why it cannot have one. `hardware` must have at least
        one GPU, sorted by index. Targets are cached for all nodes with the same GPUs and the same file generated by
        mig-manager. A Finding names the node, so it is not cached."""
        question = partial(_find_target, self.request, node, self.stack)
        generated = self.stack.generated_mig_file(node)
        return self.answers.ask(
            question, hardware.cards, generated, lasts=lambda target: isinstance(target, Target)
        )

    def stop(self, hardware: Hardware) -> Target:
        """Return the intermediate target between MPS and MIG, which is mode Full (whole GPUs without sharing) under
        every policy. Without it, mig-manager and the MPS daemon would race (b.5). The target is cached for all
        nodes with the same GPUs."""
        return self.answers.ask(self._stop, hardware.cards)

    def _stop(self, cards: tuple[CardView, ...]) -> Target:
        """Return the target of mode Full for these cards, as `stop` describes it, without the cache. `mig_config` is
        all-disabled, or empty if `_has_mig_manager` says that the label need not be set."""
        mig_config = migfile.ALL_DISABLED if _has_mig_manager(self.request.spec, cards, self.stack) else ""
        whole = (None,) * len(cards)
        policy, plugin = self.request.policy, PluginConfig()
        return _target(
            policy, Mode.FULL, cards, self.stack, mig_config=mig_config, layouts=whole, plugin=plugin
        )


def _unlisted_product(spec: GPUSharingPolicySpec, gpus: Sequence[CardView]) -> str:
    """Return the product of the first GPU that spec.products does not list, or an empty string if all are listed.
    Spaces and dashes count as equal, and the suffixes that GFD appends to a product are ignored."""
    listed = {bare_product(product) for product in spec.products}
    return next((gpu.product for gpu in gpus if bare_product(gpu.product) not in listed), "")


def plugin_config(spec: GPUSharingPolicySpec, layouts: Sequence[Layout | None]) -> PluginConfig:
    """Return the device plugin's configuration in the mode of the spec, for a node with these layouts. Time-slicing
    applies to every resource that the layouts give under the MIG strategy, sorted by name, and the spec says whether
    containers may request only one share. MPS applies to nvidia.com/gpu, and containers may always request only one.
    The MIG strategy is `none` unless the mode is MIG."""
    if spec.mode is Mode.MPS and spec.mps is not None:
        # failRequestsGreaterThanOne is MPS's own default, because two shares of one GPU are no more than one share.
        return PluginConfig(
            "none", Sharing(((RESOURCE_GPU, spec.mps.replicas),), spec.mps.rename_by_default, True, "mps")
        )
    strategy = spec.mig.strategy if spec.mode is Mode.MIG and spec.mig is not None else "none"
    slicing = spec.time_slicing
    if slicing is None:
        return PluginConfig(strategy)
    names = sorted(predict_resources(layouts, PluginConfig(strategy)))
    sharing = Sharing(
        tuple((name, slicing.replicas) for name in names),
        slicing.rename_by_default,
        slicing.fail_requests_greater_than_one,
    )
    return PluginConfig(strategy, sharing)


def _foreseen(spec: GPUSharingPolicySpec) -> tuple[PluginConfig, ...]:
    """Return the device-plugin configurations that a policy needs on any node: its own and, in modes MIG and MPS, that
    of the intermediate target. Its own is left out if it depends on the cards, which is the case for time-slicing
    of a named MIG configuration with strategy mixed. It is then added when the first node has a target."""
    stop = (PluginConfig(),) if spec.mode in (Mode.MIG, Mode.MPS) else ()
    layouts: list[Layout | None] = [None]
    if spec.mode is Mode.MIG and spec.mig is not None:
        if spec.mig.layouts is None and spec.time_slicing is not None and spec.mig.strategy == "mixed":
            return stop
        rows = spec.mig.layouts or ()
        layouts = [normalize(row.profiles) if row.profiles else None for row in rows]
        if spec.mig.strategy == "single":
            layouts = [(("any", 1),)]  # every profile is advertised as nvidia.com/gpu
    return (plugin_config(spec, layouts), *stop)


def _wanted_layouts(
    request: Wish, node: str, stack: StackView, gpus: Sequence[CardView]
) -> tuple[Layout | None, ...] | Finding:
    """Return the layout that the policy asks for on each of `gpus`, None for MIG off, or a Finding that says why the
    node cannot have them: a GPU without MIG support (NOT_MIG_CAPABLE, checked first), a named configuration that does
    not fit, layouts of the policy that name other GPUs than the node has (LAYOUT_TOO_MANY_GPUS) or not all of them
    (LAYOUT_INCOMPLETE), or a layout that is not legal. Unless the mode is MIG, all layouts are None and there is no
    Finding."""
    spec = request.spec
    if spec.mode is not Mode.MIG or spec.mig is None:
        return (None,) * len(gpus)
    if incapable := next((gpu for gpu in gpus if not gpu.mig_capable), None):
        return Finding(
            Reason.NOT_MIG_CAPABLE,
            f"{node}: {incapable.product} does not support MIG; use mode TimeSlicing or Full",
        )
    if spec.mig.config is not None:
        layouts = _named(spec.mig.config, node, stack, gpus)
    else:
        layouts = _own(spec.mig.layouts or (), request.entry or [], node, gpus)
    return layouts if isinstance(layouts, Finding) else _legal(layouts, spec, node, gpus)


def _named(
    name: str, node: str, stack: StackView, gpus: Sequence[CardView]
) -> tuple[Layout | None, ...] | Finding:
    """Return the layouts that the configuration `name` (spec.mig.config) gives the GPUs, with None for a GPU with MIG
    off. If it gives none, return a Finding CONFIG_UNKNOWN with the reason that `migfile.resolve_name` returns."""
    meaning = migfile.resolve_name(name, node, gpus, stack)
    if isinstance(meaning, str):
        return Finding(Reason.CONFIG_UNKNOWN, f"{node}: spec.mig.config {name} is not usable: {meaning}")
    return meaning


def _own(
    layouts: Sequence[MigLayout], entry: migfile.Entry, node: str, gpus: Sequence[CardView]
) -> tuple[Layout | None, ...] | Finding:
    """Return the layouts that spec.mig.layouts gives the GPUs, with None for a GPU with MIG off. Return a Finding with
    LAYOUT_TOO_MANY_GPUS if it names GPUs that the node does not have, or with LAYOUT_INCOMPLETE if it leaves some of
    the node's GPUs out."""
    named = {index for row in layouts if row.devices != "all" for index in row.devices}
    here = {gpu.index for gpu in gpus}
    if beyond := sorted(named - here):
        return Finding(
            Reason.LAYOUT_TOO_MANY_GPUS,
            f"{node} has {counted(len(gpus), 'GPU')}, but spec.mig.layouts names GPU {', '.join(map(str, beyond))}",
        )
    meaning = migfile.resolve(entry, gpus)
    if isinstance(meaning, str):
        return Finding(
            Reason.LAYOUT_INCOMPLETE,
            f"{node}: spec.mig.layouts must name every GPU, but {meaning}; add for example "
            "{devices: [" + ", ".join(map(str, sorted(here - named))) + "], profiles: {}}",
        )
    return meaning


def _legal(
    layouts: tuple[Layout | None, ...], spec: GPUSharingPolicySpec, node: str, gpus: Sequence[CardView]
) -> tuple[Layout | None, ...] | Finding:
    """Return `layouts` unchanged, or a Finding about the first card that cannot have its layout (`_find_unfit`). Under
    strategy single, also return a Finding (LAYOUT_NOT_UNIFORM) unless every GPU has MIG instances of one and the same
    profile. Raises ValueError unless there is one layout for each GPU."""
    fitted: tuple[Layout | None, object] = (None, None)
    for gpu, layout in zip(gpus, layouts, strict=True):
        if layout is None or fitted == (layout, gpu.profiles):
            continue
        fitted = (layout, gpu.profiles)
        if (refused := _find_unfit(layout, gpu)) is not None:
            return replace(refused, message=f"{node} GPU {gpu.index}{refused.message}")
    profiles = {tuple(name for name, _ in layout or ()) for layout in layouts}
    uniform = len(profiles) == 1 and len(profiles.pop()) == 1
    if spec.mig is not None and spec.mig.strategy == "single" and not uniform:
        return Finding(
            Reason.LAYOUT_NOT_UNIFORM,
            f"{node}: spec.mig.strategy single needs one and the same profile on every GPU; use mixed",
        )
    return layouts


def _find_unfit(layout: Layout, gpu: CardView) -> Finding | None:
    """Return a Finding that says why the card cannot have the layout, or None if it can. The reason is LAYOUT_EMPTY,
    HARDWARE_UNKNOWN (no profiles are known for the card), PROFILE_NOT_SUPPORTED or LAYOUT_DOES_NOT_FIT. The message
    begins after the name of the GPU, which the caller puts in front."""
    if layout == ():
        return Finding(Reason.LAYOUT_EMPTY, ": with MIG on but no MIG instances, pods could not use it")
    if not gpu.profiles:
        message = f": neither the driver nor the operator's table lists MIG profiles for {gpu.product}"
        return Finding(Reason.HARDWARE_UNKNOWN, message)
    fit = find_fit(layout, gpu.profiles)
    if isinstance(fit, Legal):
        return None
    unknown = not {name for name, _ in layout} <= {profile.name for profile in gpu.profiles}
    reason = Reason.PROFILE_NOT_SUPPORTED if unknown else Reason.LAYOUT_DOES_NOT_FIT
    return Finding(reason, f" ({gpu.product}): {fit.message}")


def predict_resources(layouts: Sequence[Layout | None], plugin: PluginConfig) -> dict[str, int]:
    """Return the allocatable resources, by name with their counts, that the device plugin will advertise for these
    layouts (docs/design/nvidia.md#b6, b.7). Under strategy single, MIG instances count as nvidia.com/gpu. Under any
    other, `none` included, each profile is a resource of its own. A shared resource counts once for each replica, and
    its name ends with `.shared` if it is renamed."""
    counts: Counter[str] = Counter()
    for layout in layouts:
        if layout is None:
            counts[RESOURCE_GPU] += 1
            continue
        for profile, count in layout:
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
    """Return the layouts of a node's GPUs for people, such as `2x3g.40gb`. If they differ, each comes with its number
    of GPUs, in the order in which they first occur: `2x3g.40gb (4 GPUs), 1x full (4 GPUs)`. MIG without instances is
    `MIG empty`. If `replicas` is above 1, for example 4, `4x shared` replaces `1x full` and is appended to MIG layouts.
    Empty without GPUs. The result is cached."""
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
    """Whether NVIDIA's device plugin may advertise this resource name under a configuration of ours: nvidia.com/gpu,
    nvidia.com/gpu.shared, or a name that begins with nvidia.com/mig-.

    `api.names.is_gpu_resource` accepts more names. Resources that another plugin serves on the node must not count as a
    difference from the target.
    """
    return name in (RESOURCE_GPU, RESOURCE_GPU_SHARED) or name.startswith(RESOURCE_MIG_PREFIX)


# --- for a policy that is being deleted ----------------------------------------------------------------


# A policy with spec.deletionPolicy Reset is deleted in these steps (docs/design/transition.md#reset): each node that it
# owns is drained as usual, whole GPUs are proven, our labels and records are removed, and at the end our finalizer.
# Until then it is like any other policy, with mode Full, but it gets no nodes that it does not own yet.
_FULL = {"mode": Mode.FULL, "mig": None, "time_slicing": None, "mps": None}
"""The fields of a spec that make it one of mode Full."""


def under_deletion(policy: PolicyView, *, resets: bool) -> PolicyView:
    """Return the policy as the planner should see it. A policy that is being deleted and `resets` its nodes
    (deletionPolicy Reset) is returned marked as `resetting` in place of `deleting`; its spec, if readable, has mode
    Full. Any other policy is returned unchanged.

    Also unchanged are a policy without our finalizer, whose object will be gone in a moment, and one with
    force-release, because a person has given up its nodes.
    """
    if not (policy.deleting and policy.finalizer and resets) or policy.force_release:
        return policy
    spec = None if policy.spec is None else policy.spec.model_copy(update=_FULL)
    return replace(policy, deleting=False, resetting=True, spec=spec)


def without_default_label(target: Target, stack: StackView) -> Target:
    """Return the target without the device-plugin label (`plugin_key` is empty) if the plugin's default configuration
    has the same effect. Without a default entry, the plugin shares nothing. Otherwise return the target unchanged, also
    if the default entry is missing or would be refused.

    Removing the label restarts the plugin, so it is part of the change.
    """
    key = pluginconfig.default_entry(stack)
    text = stack.plugin_configs.get(key) if key else pluginconfig.NEUTRAL
    default = pluginconfig.parse(text) if text is not None else None
    if default is None or not default.same_effect(target.plugin, with_mig=target.with_mig):
        return target
    return replace(target, plugin_key="")


# --- the last proven configuration ---------------------------------------------------------------------


def find_last_proven(node: NodeView, observed: ObservedView, stack: StackView) -> Target | str:
    """Return the target that the record of the last proof describes (docs/design/transition.md#rollback), or a clause
    for people that says why not: there is no record, it has no layout or another number of GPUs (0 counts as unknown
    and is not compared), its device-plugin configuration is lost (not checked with DRA), or its mig-parted
    configuration now gives the GPUs no layouts, or layouts whose text for people differs from the recorded one."""
    record, gpus = node.verified, observed.gpus
    if record is None:
        return "the node has no earlier proven layout"
    if not record.layout:
        return "an older version of the operator recorded the last proof without its layout"
    if record.gpus not in (0, len(gpus)):
        return f"the last proof covered {counted(record.gpus, 'GPU')}, but NVML lists {len(gpus)}"
    key = "" if stack.by_dra else record.plugin_config
    content, plugin = ("", PluginConfig("mixed")) if stack.by_dra else _find_plugin(key, stack)
    if plugin is None:
        return f"the device plugin's configuration {record.plugin_config} no longer exists"
    layouts = _find_layouts(record, node, observed, stack)
    if isinstance(layouts, str):
        return f"the mig-parted configuration {record.mig_config} is no longer usable: {layouts}"
    text = describe_layouts(layouts, plugin.sharing.replicas[0][1] if plugin.sharing else 1)
    if text != record.layout:
        return f"{record.mig_config or 'the recorded configuration'} now means {text}, but {record.layout} was proven"
    mode = _find_mode(layouts, plugin)
    return Target(
        mode=mode,
        routing=routing_label(mode, time_slicing=plugin.sharing is not None),
        layouts=layouts,
        mig_config=record.mig_config,
        plugin_key=key,
        plugin=plugin,
        resources=predict_resources(layouts, plugin),
        text=text,
        configured=configured_since((key, content), record.mig_config, layouts, gpus, stack),
    )


def _find_plugin(key: str, stack: StackView) -> tuple[str, PluginConfig | None]:
    """Return the YAML and the effect of the device-plugin configuration with this key. An entry counts only if its
    content has the hash that the key ends with. If the configuration is lost, they are an empty string and None; only
    the effect is None if the plugin would not start with the configuration. If somebody edited or removed the entry,
    the content that this process has read before is used, because it is about to be written again."""
    for entries in (stack.plugin_configs, stack.seen_plugin_configs):
        content = entries.get(key)
        if content is not None and pluginconfig.is_named_after(content, key):
            return content, pluginconfig.parse(content)
    return "", None


def _find_layouts(
    record: Verified, node: NodeView, observed: ObservedView, stack: StackView
) -> tuple[Layout | None, ...] | str:
    """Return the layouts that the recorded mig-manager configuration gives the GPUs, or a clause for people that says
    why it gives none. For `all-disabled`, each is None without a check. If no configuration was recorded, each is None
    too if MIG is off on all GPUs now; otherwise a clause says that it is on."""
    whole = (None,) * len(observed.gpus)
    if record.mig_config == migfile.ALL_DISABLED:
        return whole
    if record.mig_config:
        return migfile.resolve_name(record.mig_config, node.name, observed.gpus, stack)
    if observed.hardware.layouts != whole:
        return "MIG is on, and the record names no mig-manager configuration that switches it off"
    return whole


def _find_mode(layouts: tuple[Layout | None, ...], plugin: PluginConfig) -> Mode:
    """Return the mode that these layouts and this device-plugin configuration amount to. It is MPS if the plugin shares
    by MPS, whatever the layouts are. Otherwise it is MIG if any GPU has a layout, also with time-slicing. Otherwise it
    is TimeSlicing if the plugin shares, else Full. None in `layouts` stands for a GPU without MIG."""
    if plugin.sharing is not None and plugin.sharing.strategy == "mps":
        return Mode.MPS
    if layouts.count(None) < len(layouts):
        return Mode.MIG
    return Mode.TIME_SLICING if plugin.sharing is not None else Mode.FULL

"""What would NVIDIA's programs do to each GPU node after a change of the installation?

Every command that is printed and every write of the operator's own that concerns NVIDIA's installation asks here.
What these programs do with labels and ConfigMaps: docs/design/nvidia.md a2, b2, b4, b5, d1 and d2.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from gpusharing.api.names import (
    LABEL_DEPLOY_CLIENT,
    LABEL_DEPLOY_PREFIX,
    LABEL_GPU_PRODUCT,
    LABEL_GPU_REPLICAS,
    LABEL_MIG_CAPABLE,
    LABEL_MIG_CONFIG,
    LABEL_PLUGIN_CONFIG,
    LABEL_WORKLOAD_CONFIG,
    RESOURCE_GPU,
    RESOURCE_MIG_PREFIX,
    WORKLOAD_CONTAINER,
)
from gpusharing.planning.gpus.geometry import Layout, generated_layouts
from gpusharing.planning.snapshot.nvidia import MIG_MANAGER_SWITCH, PLUGIN_SWITCH, ClusterPolicyView, Program, StackView
from gpusharing.planning.snapshot.views import (
    ClusterSnapshot,
    GPUNodeView,
    GpuView,
    Hardware,
    NodeView,
    ObservedView,
    PlanSettings,
)
from gpusharing.planning.stack.mps import find_serving
from gpusharing.planning.vocabulary.commands import Change, Command, Effect, Effects, Loss
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.wanted.assess import has_gpu
from gpusharing.planning.wanted.migfile import ALL_DISABLED, Entry, outcome, parse, parse_admin, resolve, well_known
from gpusharing.planning.wanted.ownership import Owners, find_contenders
from gpusharing.planning.wanted.pluginconfig import STRATEGIES, PluginConfig
from gpusharing.planning.wanted.target import describe_layouts, predict_resources
from gpusharing.planning.wanted.verify import advertised, effective_plugin_config, find_entry, served, tell_counts

MIG_MANAGER, PLUGIN, OPERANDS, DRIVER = (
    f"{LABEL_DEPLOY_PREFIX}{operand}" for operand in ("mig-manager", "device-plugin", "operands", "driver")
)
"""Programs by the labels that switch them on a node; OPERANDS switches all of them (docs/design/nvidia.md#d2)."""
PLUGIN_POINTER, MIG_POINTER, STRATEGY = "devicePlugin.config.name", "migManager.config.name", "mig.strategy"
UPSTREAM_MIG_CONFIG = "default-mig-parted-config"
"""The default that the CRD filled in for migManager.config.name up to v25.10.1. So nobody chose it
(docs/design/nvidia.md#d6)."""
PRE_INSTALLED = "pre-installed"
"""The value of the driver's deploy label if a driver is installed on the host. NVIDIA's driver manager sets it."""
HOST_PROGRAMS = ("driver.enabled", "toolkit.enabled")
_FIELDS = {
    PLUGIN_POINTER: "plugin_config_name",
    "devicePlugin.config.default": "plugin_default",
    "devicePlugin.version": "plugin_version",
    STRATEGY: "mig_strategy",
    MIG_POINTER: "mig_config_name",
    "migManager.version": "mig_manager_version",
}
SERVE_CLAIMS = Change(fields=(("resources.gpus.enabled", True),))
"""NVIDIA's DRA driver gives GPUs to ResourceClaims. The field is that of its own chart."""
START_MIG_MANAGER = Change(fields=((MIG_MANAGER_SWITCH, True),), restarts=(MIG_MANAGER,))
RESTART_PLUGIN = Change(restarts=(PLUGIN,))
REQUIRE_CLIENT = Change(fields=(("nodeSelector", True),), restarts=(PLUGIN,))
"""NVIDIA's device-plugin chart gets the nodeSelector with which mig-manager can pause it (docs/design/nvidia.md#a1)."""
RESTART_ALL = Change(restarts=(MIG_MANAGER, PLUGIN, DRIVER))
UNPLUG = Change(fields=((PLUGIN_SWITCH, False),))
FREE_STRATEGY = Change(fields=((STRATEGY, None),))
SHOW_LABELS = Command.of("kubectl get nodes -L", LABEL_MIG_CONFIG)
"""The command that is printed where a command that starts mig-manager must not be."""
UNKNOWN = "nothing is known of its GPUs"
INVALID = "-MIG-INVALID"
"""The end of GFD's product label where strategy single refuses the layouts (docs/design/nvidia.md#b6)."""


UNEXPECTED = (Effect("every GPU node", Loss.GPUS, UNKNOWN, known=False),)


Foresee: TypeAlias = Callable[[Change, ClusterSnapshot], Mapping[str, str]]
"""What each node's own change would wait for after a change of the installation; empty for one that would begin."""
UNFORESEEN = "it is unknown whether its policy would change it then"


def find_effects(
    change: Change, snapshot: ClusterSnapshot, foresee: Foresee | None = None, *, unread: bool = False
) -> tuple[Effect, ...]:
    """Return what nodes would or may lose by the change, sorted by node, whether or not a policy owns them.

    Only with `foresee`, which is asked at most once, can a node's devices count as replaced by its own policy. `unread`
    says that the snapshot has no nodes because they could not be read.
    """
    later = after(change, snapshot)
    if unread:
        starts = {Loss.GPUS: MIG_MANAGER, Loss.DEVICES: PLUGIN}
        losses = [loss for loss, program in starts.items() if _starts(program, change, snapshot, later, "")]
        losses += [Loss.DEVICES] * (change == SERVE_CLAIMS)
        return tuple(Effect("every GPU node", loss, UNKNOWN, known=False) for loss in losses)
    return tuple(
        sorted(
            [
                *_find_gpu_losses(change, snapshot, later),
                *_find_device_losses(change, snapshot, later, foresee),
                *_find_other_losses(change, snapshot),
            ],
            key=lambda effect: (effect.node, effect.loss),
        )
    )


def after(change: Change, snapshot: ClusterSnapshot) -> ClusterSnapshot:
    stack, nodes = snapshot.stack, dict(snapshot.nodes)
    if (policy := stack.cluster_policy) is not None and change.fields:
        switches = {path: bool(value) for path, value in change.fields if path not in _FIELDS}
        fields: dict[str, Any] = {_FIELDS[path]: value or "" for path, value in change.fields if path in _FIELDS}
        policy = replace(policy, switches={**policy.switches, **switches}, **fields)
        ours = policy.mig_config_name == snapshot.settings.mig_config_map
        stack = replace(stack, cluster_policy=policy, serves_our_mig_file=ours)
    for name in nodes.keys() & set(change.nodes) if change.labels else ():
        labels = {**nodes[name].labels, **dict(change.labels)}
        nodes[name] = replace(nodes[name], labels={key: value for key, value in labels.items() if value is not None})
    return replace(snapshot, stack=stack, nodes=nodes)


def _starts(program: str, change: Change, now: ClusterSnapshot, later: ClusterSnapshot, name: str) -> bool:
    if program in change.restarts and (not change.nodes or name in change.nodes):
        return True
    before, then = now.stack.cluster_policy, later.stack.cluster_policy
    if before is not None and then is not None and _pod_spec(program, before) != _pod_spec(program, then):
        return True
    if name not in change.nodes:
        return False
    configured = LABEL_MIG_CONFIG if program == MIG_MANAGER else LABEL_PLUGIN_CONFIG
    starters = {program, OPERANDS, LABEL_WORKLOAD_CONFIG, configured}
    labels = now.nodes[name].labels if name in now.nodes else {}
    return any(key in starters and labels.get(key) != value for key, value in change.labels)


def _pod_spec(program: str, policy: ClusterPolicyView) -> object:
    """Return the fields of ClusterPolicy with which the GPU Operator makes the program's pods."""
    if program == MIG_MANAGER:
        return policy.is_off(MIG_MANAGER_SWITCH), policy.mig_config_name, policy.mig_manager_version
    fields = (policy.plugin_config_name, policy.plugin_default, policy.mig_strategy, policy.plugin_version)
    return policy.is_off(PLUGIN_SWITCH), *fields


# --- mig-manager -------------------------------------------------------------------------------------------------
# Each start of its pod applies the configuration that the Node's label names, without a drain (docs/design/nvidia.md
# a2), also to GPUs that somebody divided with nvidia-smi under NVIDIA's default label all-disabled.


def _find_gpu_losses(change: Change, now: ClusterSnapshot, later: ClusterSnapshot) -> Iterator[Effect]:
    stack, gpunodes = later.stack, later.gpunodes
    off = stack.cluster_policy is not None and stack.cluster_policy.is_off(MIG_MANAGER_SWITCH)
    new_file = stack.serves_our_mig_file and not now.stack.serves_our_mig_file
    known: dict[tuple[str, Hardware], tuple[str, str, bool]] = {}
    for name, node in sorted(later.nodes.items()):
        if not _starts(MIG_MANAGER, change, now, later, name):
            continue
        observed, config = later.observed(name), node.labels.get(LABEL_MIG_CONFIG, "")
        lacks = new_file and is_unresolved(node, later)
        why, label, is_known = "", "", True
        # Past the point of no return a node is drained, and its label asks for what its policy wants.
        drained = node.fence is not None and node.fence.stage == "actuating"
        if off or drained or not _may_run(node, gpunodes, stack):
            pass
        elif observed is None or (unread := why_unread(observed, fresh=name in now.agents)):
            # Behind the start-up taint no workload has begun that could lose anything.
            if node.labels.get(LABEL_MIG_CAPABLE) != "false" and node.gate is None:
                instances = [one for one in sorted(node.resources) if one.startswith(RESOURCE_MIG_PREFIX)]
                advertised = f"; it advertises {some(instances)}" if instances else ""
                why, is_known = unread if observed else f"no agent has read its GPUs{advertised}", False
        else:
            key = config, observed.hardware
            if key not in known:
                known[key] = compare_config(*key, stack)
            why, same, is_known = known[key]
            entries = parse(stack.mig_file) if stack.serves_our_mig_file else {}
            if not is_known and entries and config not in entries:
                why, same, is_known = "", "", True  # mig-manager fails and touches no GPU (docs/design/nvidia.md#a3-2)
            if find_foreign_file(later):  # it may not have the name that our file gives the layout
                same = ""
            label = same and f"{LABEL_MIG_CONFIG}={same}"
        if why or lacks:
            yield Effect(name, Loss.GPUS, why, label, is_known, config if lacks else "")


def runs_mig_manager(node: NodeView, gpunodes: Mapping[str, GPUNodeView]) -> bool:
    """Whether mig-manager runs on the node, or may run there later; it does not on nodes without GPUs."""
    return node.name in gpunodes or node.labels.get(MIG_MANAGER, "") not in ("", "false")


def _may_run(node: NodeView, gpunodes: Mapping[str, GPUNodeView], stack: StackView) -> bool:
    labels, manager, policy = node.labels, node.labels.get(MIG_MANAGER), stack.cluster_policy
    in_containers = labels.get(LABEL_WORKLOAD_CONFIG, "") in ("", WORKLOAD_CONTAINER)
    # Without a ClusterPolicy nobody writes deploy labels.
    if policy is not None and (_is_off(node, MIG_MANAGER, policy) or not (manager or in_containers)):
        return False
    if runs_mig_manager(node, gpunodes):
        return True
    # A mig-manager that is switched off may have no deploy label yet. It gets none on nodes of virtual machines.
    return in_containers and labels.get(LABEL_MIG_CAPABLE) == "true" and MIG_MANAGER not in labels


def find_foreign_file(snapshot: ClusterSnapshot) -> str:
    """Return the ConfigMap of mig-manager's configurations whose entries are not known; empty if they are."""
    stack, policy = snapshot.stack, snapshot.stack.cluster_policy
    if policy is None or stack.serves_our_mig_file or stack.admin_mig_file:
        return ""
    return "" if policy.mig_config_name == UPSTREAM_MIG_CONFIG else policy.mig_config_name


def _is_off(node: NodeView, program: str, policy: ClusterPolicyView) -> bool:
    """Whether a deploy label keeps the program off the node; NVIDIA's chart has none for its device plugin."""
    labels = (program, OPERANDS) if policy.plain is None else (MIG_MANAGER,) if program == MIG_MANAGER else ()
    return any(node.labels.get(label) == "false" for label in labels)


def why_unread(observed: ObservedView, *, fresh: bool) -> str:
    """Return why a report does not show how the GPUs are divided now, or empty; `fresh`: the agent is Ready."""
    if observed.error:
        return f"its agent cannot read the GPUs: {observed.error}"
    if not fresh:
        return "its agent is not Ready, so its GPUs may have changed since the last report"
    if observed.quiet:
        return "its agent is not reading the GPUs at the moment"
    if not all(gpu.product for gpu in observed.gpus):  # NVML has never answered for it
        return "its agent could not read all GPUs yet"
    if any(gpu.mig_enabled and gpu.instances_withheld for gpu in observed.gpus):
        return "its agent is not allowed to list MIG instances"
    return ""


def compare_config(config: str, hardware: Hardware, stack: StackView) -> tuple[str, str, bool]:
    """Return how the GPUs differ from the label's value, a configuration that they have, and whether that is known."""
    gpus = [gpu for gpu in hardware.gpus if gpu.mig_capable]  # mig-parted skips the others
    layouts = tuple(gpu.layout for gpu in gpus)
    # The GPU Operator may write all-disabled at any time where the label is missing (docs/design/nvidia.md#d1).
    later = _meaning(config or ALL_DISABLED, gpus, stack, outcome)
    if later == layouts:
        return "", "", True
    label = f"{LABEL_MIG_CONFIG} is {config or f'not set, which the GPU Operator takes for {ALL_DISABLED}'}"
    usual = generated_layouts(gpus[0].profiles) if gpus else {}
    ours = [*parse_admin(stack.admin_mig_file)[0], *(parse(stack.mig_file) if stack.serves_our_mig_file else ())]
    same = (name for name in (ALL_DISABLED, *usual, *ours) if _meaning(name, gpus, stack, resolve) == layouts)
    is_known = not isinstance(later, str)
    unknown = "" if is_known else ", of which it is unknown what it means"
    return f"{label}{unknown}, but its GPUs have {describe_layouts(layouts)}", next(same, ""), is_known


def is_as_labeled(node: NodeView, hardware: Hardware, stack: StackView) -> bool:
    """Whether the GPUs have what the node's label for mig-manager means."""
    return not compare_config(node.labels.get(LABEL_MIG_CONFIG, ""), hardware, stack)[0]


def _meaning(
    config: str,
    gpus: Sequence[GpuView],
    stack: StackView,
    of: Callable[[Entry, Sequence[GpuView]], tuple[Layout | None, ...] | str],
) -> tuple[Layout | None, ...] | str:
    if config == ALL_DISABLED:  # also on cards whose profiles are unknown
        return (None,) * len(gpus)
    entry = find_mig_entry(config, stack)
    return of(entry, gpus) if entry else well_known(gpus, config)


def find_mig_entry(config: str, stack: StackView) -> Entry | None:
    """Return the entry of this name in the admin's file or else in ours."""
    return parse_admin(stack.admin_mig_file)[0].get(config) or parse(stack.mig_file).get(config)


def is_unresolved(node: NodeView, snapshot: ClusterSnapshot) -> bool:
    """Whether mig-manager, if it reads our file, fails or does nothing on the node for lack of what its label names.

    An entry must be for the node's GPUs, and have the meaning that its name has in NVIDIA's own.
    """
    stack, observed, config = snapshot.stack, snapshot.observed(node.name), node.labels.get(LABEL_MIG_CONFIG, "")
    policy = stack.cluster_policy
    if (
        not config
        or not runs_mig_manager(node, snapshot.gpunodes)
        or (policy is not None and _is_off(node, MIG_MANAGER, policy))
    ):
        return False
    entry = parse(stack.mig_file).get(config)
    if entry and config in {ALL_DISABLED, *parse_admin(stack.admin_mig_file)[0]}:
        return False
    if observed is None:
        return True
    if not (gpus := [gpu for gpu in observed.gpus if gpu.mig_capable]):
        return False  # mig-parted applies an entry only to GPUs that its rows match (docs/design/nvidia.md#a8)
    meaning, usual = resolve(entry or [], gpus), well_known(gpus, config)
    return isinstance(meaning, str) or not (isinstance(usual, str) or meaning == usual)


# --- the device plugin, with which the MPS daemon restarts ----------------------------------------------------------


def _find_device_losses(
    change: Change, now: ClusterSnapshot, later: ClusterSnapshot, foresee: Foresee | None
) -> Iterator[Effect]:
    policy = now.stack.cluster_policy
    if policy is None:
        installed = (PLUGIN_SWITCH, True) in change.fields
        for name, node in sorted(now.nodes.items()):
            if installed and node.other_plugin:
                yield Effect(name, Loss.DEVICES, f"{node.other_plugin} serves its GPUs, and two device plugins would")
        return
    started = [name for name in sorted(now.nodes) if _starts(PLUGIN, change, now, later, name)]
    if not started:
        return
    owners, policies = Owners(find_contenders(now.policies)), {one.name: one for one in now.policies}
    daemons = now.operands.get(Program.MPS_DAEMON, {})
    serving = {*find_serving(now.nodes, now.gpunodes, now.agents, daemons, now.stack)}
    off = later.stack.cluster_policy is not None and later.stack.cluster_policy.is_off(PLUGIN_SWITCH)
    if off and policy.is_off(PLUGIN_SWITCH):
        return
    starts_plugin = policy.is_off(PLUGIN_SWITCH) and not off
    # config-manager cannot start without any key (docs/design/nvidia.md#b4).
    then_policy = later.stack.cluster_policy
    moves = then_policy is not None and not _reads_ours(policy, now.settings) and _reads_ours(then_policy, now.settings)
    unwritten = moves and not later.stack.plugin_configs
    foreseen: Mapping[str, str] | None = None if foresee is not None else {}
    for name in started:
        node, then = now.nodes[name], later.nodes[name]
        owner = policies.get(owners.owner(node))
        will_run = not off and not _is_off(then, PLUGIN, policy)
        if not will_run and _is_off(node, PLUGIN, policy):
            continue
        if starts_plugin and node.other_plugin:
            yield Effect(name, Loss.DEVICES, f"{node.other_plugin} serves its GPUs, and two device plugins would")
        elif not will_run:
            yield from _find_unplugged(node, now.observed(name), later.stack)
        elif missing := find_missing(then, later):
            lost, is_known = _find_lost(node, now, then, later)
            yield Effect(
                name,
                Loss.DEVICES,
                f"{LABEL_PLUGIN_CONFIG} is {missing}, without which its device plugin shares and divides nothing, or does"
                " not start",
                known=bool(lost) and is_known,
                missing=missing,
            )
        elif unwritten and served(node):
            yield Effect(
                name,
                Loss.DEVICES,
                f"its device plugin could not start while {now.settings.plugin_config_map} has no entry",
            )
        else:
            lost, is_known = _find_lost(node, now, then, later)
            client = node.labels.get(LABEL_DEPLOY_CLIENT, "")
            # The node's policy waits for the change if it wants what the change brings about.
            mig = owner.spec.mig if owner is not None and owner.spec is not None else None
            waits = STRATEGY in dict(change.fields) and mig is not None and mig.strategy != policy.mig_strategy
            if lost and waits and foreseen is None and foresee is not None:
                foreseen = foresee(change, now)
            held = (foreseen or {}).get(name, UNFORESEEN) if lost and waits else None
            if change == REQUIRE_CLIENT and client != "true" and has_gpu(node) and not lost:
                offers = tell_counts(served(node)) if served(node) else "its device plugin"
                label = "" if "paused-for-" in client else f"{LABEL_DEPLOY_CLIENT}=true"
                yield Effect(name, Loss.DEVICES, offers, label)
            elif lost and held == "":
                yield Effect(name, Loss.REPLACED, lost, known=is_known)
            elif lost:
                label = "" if name in serving or change == REQUIRE_CLIENT else _find_entry(node, now, later)
                yield Effect(name, Loss.DEVICES, f"{lost}; {held}" if held and is_known else lost, label, is_known)
        if name in serving and will_run:
            yield Effect(name, Loss.CLIENTS, "its MPS daemon restarts, which ends all its clients")


def find_missing(node: NodeView, snapshot: ClusterSnapshot) -> str:
    """Return the entry that the node's label names and that our ConfigMap, if it is the one in use, lacks."""
    stack, key = snapshot.stack, node.labels.get(LABEL_PLUGIN_CONFIG, "")
    ours = stack.cluster_policy is not None and _reads_ours(stack.cluster_policy, snapshot.settings)
    return key if ours and key not in stack.plugin_configs else ""


def _reads_ours(policy: ClusterPolicyView, settings: PlanSettings) -> bool:
    return policy.plugin_config_name == settings.plugin_config_map


def read_config(node: NodeView, snapshot: ClusterSnapshot) -> PluginConfig | None:
    """Return what the device plugin of the node does at its next start. None if that is unknown, or it cannot start."""
    stack, policy = snapshot.stack, snapshot.stack.cluster_policy
    if policy is None:
        return None
    if not policy.plugin_config_name:  # there is no config-manager then
        return PluginConfig(STRATEGIES.get(policy.mig_strategy) or "none")
    if not _reads_ours(policy, snapshot.settings):
        theirs = stack.admin_plugin_configs
        entry = find_entry(node.labels.get(LABEL_PLUGIN_CONFIG, ""), replace(stack, plugin_configs=theirs))
        if not entry and policy.plain is not None and len(theirs) == 1:  # NVIDIA's chart uses the only entry (b.4)
            policy = replace(policy, plugin_default=next(iter(theirs)))
        if entry and entry not in theirs:
            return None
        stack = replace(stack, cluster_policy=policy, plugin_configs=theirs)
    return effective_plugin_config(node, stack)


def _find_lost(node: NodeView, now: ClusterSnapshot, then: NodeView, later: ClusterSnapshot) -> tuple[str, bool]:
    """Return the devices that the node would no longer advertise, for people, and whether that is known."""
    observed, config, coming = now.observed(node.name), read_config(node, now), read_config(then, later)
    layouts, offers = find_layouts(node, observed), served(node)
    before, after_ = now.stack.cluster_policy, later.stack.cluster_policy
    if before is None or after_ is None:
        return "", True
    foreign = coming is None and not _reads_ours(after_, now.settings)
    if foreign and before.plugin_config_name != after_.plugin_config_name:
        return f"it is unknown what its entry in {after_.plugin_config_name} says", False
    if foreign and before.mig_strategy == after_.mig_strategy:
        return "", True  # an entry that we cannot read stays in use
    refused = coming is None and not foreign and not find_missing(then, later)
    if coming is None:
        # Before config-manager has read the label, it takes the default (docs/design/nvidia.md#b4).
        unlabeled = {key: value for key, value in then.labels.items() if key != LABEL_PLUGIN_CONFIG}
        fallback = PluginConfig(STRATEGIES.get(after_.mig_strategy) or "none")
        coming = read_config(replace(then, labels=unlabeled), later) or fallback
    unread = observed is None or observed.error or node.name not in now.agents
    divides = coming.mig_strategy != "none" or (config is not None and config.mig_strategy == "single")
    if unread and divides and (why := _find_contradiction(node)):
        return why, False
    if layouts is not None:
        offers = offers or (advertise(layouts, config) if config is not None else {})
        offered = {} if refused else advertise(layouts, coming)
        return ", ".join(f"{n} {name}" for name, n in sorted(offers.items()) if offered.get(name, 0) < n), True
    starts_now = config is not None or not _reads_ours(before, now.settings)
    if not starts_now or (config is not None and config.mig_strategy == coming.mig_strategy):
        return "", True
    product = node.labels.get(LABEL_GPU_PRODUCT, "")
    if product.endswith(INVALID):  # there is nothing to lose
        return "", True
    if "-MIG-" in product:
        return product, True
    # Under strategy none, GFD describes a GPU with MIG on as a whole one.
    whole = product and (config is None or config.mig_strategy != "none")
    if whole or node.labels.get(LABEL_MIG_CAPABLE) == "false" or not has_gpu(node):
        return "", True
    return UNKNOWN, False


def _find_entry(node: NodeView, now: ClusterSnapshot, later: ClusterSnapshot) -> str:
    """Return a label that names an entry with which the node loses nothing, before and after the change; or nothing."""
    policy = now.stack.cluster_policy
    if policy is None or not (_reads_ours(policy, now.settings) or not policy.plugin_config_name):
        return ""  # the plugin would not find it yet
    present = read_config(node, now)
    for key in sorted(later.stack.plugin_configs):
        labeled = replace(node, labels={**node.labels, LABEL_PLUGIN_CONFIG: key})
        configs = [read_config(labeled, stage) for stage in (now, later)]
        shared = any(config is None or present is None or config.sharing != present.sharing for config in configs)
        if not shared and not any(_find_lost(node, now, labeled, stage)[0] for stage in (now, later)):
            return f"{LABEL_PLUGIN_CONFIG}={key}"
    return ""


def _find_contradiction(node: NodeView) -> str:
    """Return how the node's label and its offers contradict each other, as after MIG was changed by hand or halfway."""
    config, offers = node.labels.get(LABEL_MIG_CONFIG, ""), served(node)
    divided = "-MIG-" in node.labels.get(LABEL_GPU_PRODUCT, "") or any(
        name.startswith(RESOURCE_MIG_PREFIX) for name in offers
    )
    if not offers or divided or config in ("", ALL_DISABLED):
        return ""
    return f"{LABEL_MIG_CONFIG} is {config}, but it advertises whole GPUs, which no agent has read lately"


def find_layouts(node: NodeView, observed: ObservedView | None) -> tuple[Layout | None, ...] | None:
    """Return how the GPUs are divided, by the agent's report or else by what the node advertises; None if unknown.

    Without a report, all instances of a profile are given as those of one GPU.
    """
    readable = observed is not None and observed.gpus and not observed.error
    if observed and readable and not any(gpu.instances_withheld for gpu in observed.hardware.kinds):
        return observed.hardware.layouts
    if not (counts := advertised(node)):
        return None
    _, divided, profile = node.labels.get(LABEL_GPU_PRODUCT, "").removesuffix("-SHARED").partition("-MIG-")
    layouts: list[Layout | None] = []
    for resource, shares in counts.items():
        name = resource.removesuffix(".shared")
        replicas = node.labels.get(LABEL_GPU_REPLICAS if name == RESOURCE_GPU else f"{name}.replicas", "")
        known = replicas.isascii() and replicas.isdecimal() and 0 < int(replicas) < 10**6
        count = shares // int(replicas) if known else shares
        if name.startswith(RESOURCE_MIG_PREFIX):
            layouts.append(((name.removeprefix(RESOURCE_MIG_PREFIX), count),))
        else:
            layouts += [((profile, count),)] if divided else [None] * count
    return tuple(layouts)


def advertise(layouts: Sequence[Layout | None], config: PluginConfig) -> dict[str, int]:
    """Return the counts that the device plugin would advertise; none if it would refuse the layouts (b.6)."""
    if config.mig_strategy == "none":
        return predict_resources((None,) * len(layouts), config)
    if config.mig_strategy == "single" and any(layout is not None for layout in layouts):
        profiles = {tuple(name for name, _ in layout or ()) for layout in layouts}
        if len(profiles) != 1 or any(len(names) != 1 for names in profiles):
            return {}
    return predict_resources(layouts, config)


def _find_unplugged(node: NodeView, observed: ObservedView | None, stack: StackView) -> Iterator[Effect]:
    """Yield what a node loses that has no device plugin any more; pods of one that the DRA driver serves, too."""
    offers = {name: count for name, count in node.resources.items() if name in served(replace(node, devices=None))}
    moved = stack.by_dra and node.devices is not None and _is_idle(observed)
    if offers and not moved:
        yield Effect(node.name, Loss.DEVICES, tell_counts(offers))


def _is_idle(observed: ObservedView | None) -> bool:
    """Whether no pod is known to hold a device of the device plugin."""
    held = observed.allocated if observed is not None else None
    return held is not None and not any(held.values())


def has_driver(node: NodeView) -> bool:
    return bool(node.resources) or node.labels.get(DRIVER) == PRE_INSTALLED


def _find_other_losses(change: Change, now: ClusterSnapshot) -> Iterator[Effect]:
    """Yield what a driver or toolkit of the GPU Operator's own and NVIDIA's DRA driver take from nodes."""
    policy = now.stack.cluster_policy
    # The upgrade controller goes by the hash of the driver's DaemonSet (gpu-operator#2527).
    drains = policy is not None and policy.plain is None and not policy.is_off("driver.enabled")
    hosted = [path.partition(".")[0] for path, value in change.fields if path in HOST_PROGRAMS and value is True]
    for name, node in sorted(now.nodes.items()):
        for what in hosted if has_driver(node) else ():
            yield Effect(name, Loss.DEVICES, f"its host brings its own {what}")
        if drains and DRIVER in change.restarts and node.labels.get(DRIVER) == "true":
            yield Effect(name, Loss.PODS, "the GPU Operator replaces its driver")
        # NVIDIA's DRA driver knows nothing of pods that hold GPUs through a device plugin.
        offers = served(replace(node, devices=None)) if change == SERVE_CLAIMS else {}
        if offers and not _is_idle(now.observed(name)):
            held = tell_counts(offers)
            yield Effect(name, Loss.DEVICES, f"pods may hold its {held}, and ResourceClaims would get the same GPUs")


# --- the changes that messages ask for, and in words ------------------------------------------------------------------


def tell_effects(effects: Sequence[Effect]) -> str:
    """Return what nodes would lose and what to do about it, in clauses that begin with a semicolon."""
    changes = [effect for effect in effects if effect.loss is Loss.GPUS and effect.why]
    read = [change for change in changes if change.known or change.label]
    unknown = [f"{change.node} ({change.why})" for change in changes if change not in read]
    unnamed = [change.node for change in changes if change.known and not change.label]
    # Beside a command, every node that loses devices by it is named.
    lost = [f"{one.node} ({one.why})" for one in effects if one.loss is Loss.DEVICES and not one.label]
    replaced = [f"{one.node} ({one.why})" for one in effects if one.loss is Loss.REPLACED]
    drained = [effect.node for effect in effects if effect.loss is Loss.PODS]
    text = ""
    if read:
        may = "would" if all(change.known for change in read) else "may"
        differing = some([f"{change.node} ({change.why})" for change in read])
        text += f"; mig-manager {may} change GPUs at its start on {differing}"
    if unnamed:
        text += (
            f"; no configuration has the layout of {some(unnamed)}: put an entry with it into a ConfigMap of your own"
            f" (chart value gpuOperator.adminMigConfigMap) and name the entry in {LABEL_MIG_CONFIG}, or drain the node"
            " and remove its MIG instances first"
        )
    if unknown:
        text += (
            f"; it is unknown what mig-manager would change at its start on {some(unknown)}: the operator's agent has"
            " to read the GPUs there first. Where it never can, keep mig-manager off the node (with the GPU Operator, by"
            f" its label {MIG_MANAGER}=false)"
        )
    if lost:
        text += f"; devices would go on {', '.join(lost)}"
    if replaced:
        text += f"; {', '.join(replaced)} lose these devices at once, and get those of their policy by its change"
    text += tell_clients(effects)
    if drained:
        text += (
            f"; the GPU Operator then replaces the driver of {some(drained, 20)}, and drains one node after another,"
            " unless driver.upgradePolicy.autoUpgrade is false"
        )
    return text


def tell_clients(effects: Iterable[Effect]) -> str:
    nodes = [one.node for one in effects if one.loss is Loss.CLIENTS]
    ends = "would end; drain these nodes first, or choose a maintenance window"
    return f"; all MPS clients on {', '.join(nodes)} {ends}" if nodes else ""


def tell_strategy_users(effects: Sequence[Effect], fixed: str) -> str:
    """Return why mig.strategy, whose value is `fixed`, must not be removed yet, and what comes first."""
    users = [effect for effect in effects if effect.loss is Loss.DEVICES and not effect.label]
    if not users:
        return ""
    them = "this node" if len(users) == 1 else "these nodes"
    unknown = [user.node for user in users if not user.known and not user.missing]
    wait = f"wait until the agent of {some(unknown)} has reported, and " if unknown else ""
    return (
        "; do not remove it while nodes depend on it, because they would lose their MIG devices:"
        f" {some([f'{user.node} ({user.why or user.missing})' for user in users])}."
        f" First {wait}let label {LABEL_PLUGIN_CONFIG} of {them} name an entry with flags.migStrategy: {fixed},"
        f" or set spec.mig.strategy to {fixed}"
    )


def starts_mig_manager(change: Change) -> bool:
    return MIG_MANAGER in change.restarts or not {MIG_POINTER, MIG_MANAGER_SWITCH}.isdisjoint(dict(change.fields))


def label_nodes(
    nodes: Sequence[str], label: str, value: str | None, snapshot: ClusterSnapshot
) -> tuple[Effects, Command | None]:
    """Return the effects of a label's value on these nodes, None removing it, and the command, unless it would harm."""
    effects = find_effects(Change(labels=((label, value),), nodes=tuple(nodes)), snapshot)
    words = (f"{label}-",) if value is None else ("--overwrite", f"{label}={value}")
    return effects, Command.if_safe("kubectl label node", *nodes, *words, effects=effects)


def effects_of(change: Change, stack: StackView) -> tuple[Effect, ...]:
    """Return the effects that `with_effects` has found. If it did not expect the change, every node may lose anything."""
    return () if stack.effects is None else stack.effects.get(change, UNEXPECTED)

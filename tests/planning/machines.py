"""SIMULATED node software, pure: mig-manager, device plugin with GFD, and agent of one node, one small step at a time.
mig-manager steps as docs/design/nvidia.md#a3 has it and can fail or hang as in a.7. Resources and GFD labels come from the simulator's own model of the plugin (hack/sim), so a prediction of the planner is checked by other code."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Literal

from hack.sim import gfd
from hack.sim.plugin import PluginError, advertised, choose_key, parse_config
from tests.build import H100, make_gpu

from gpusharing.agent.library import GPU, Instance, MigMode, Model, Reading
from gpusharing.api import names
from gpusharing.api.gpunode import NO_COMPUTE, PartialInstance
from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.gpus.health import HEALTHY, Vitals
from gpusharing.planning.snapshot.nvidia import Operand, Program, StackView
from gpusharing.planning.snapshot.views import GPUNodeView, GpuView, NodeView, ObservedView
from gpusharing.planning.wanted import migfile

Temper = Literal["works", "fails", "hangs", "forgets"]
"""mig-manager's mood: it works; it ends in `failed`; it stays `pending` for ever (a.7 bug 1); it succeeds and leaves the operands paused (a.7 bug 2)."""
SERVER = "nvidia-cuda-mps-server"
Labels = Mapping[str, str | None]


@dataclass
class NodeMachine:
    """The GPUs of one node and what NVIDIA's software on it is doing."""

    name: str
    products: tuple[str, ...] = (H100,)
    layouts: list[Layout | None] = field(default_factory=list)
    temper: Temper = "works"
    running: str = ""
    """The configuration that mig-manager applies now."""
    seen: str | None = None
    """The last value of mig.config that made it run."""
    serial: int = 0
    loaded: tuple[str | None, str, tuple[Layout | None, ...]] | None = None
    """What the plugin serves: key (another one reloads it, whatever it says), configuration text and layouts."""
    started: int = 1000
    """When GFD began, seconds since 1970."""
    clients: int | None = None
    """Clients per GPU that the MPS daemon serves."""
    exclusive: bool = False
    """The GPUs are in compute mode EXCLUSIVE_PROCESS."""
    mps_serial: int = 0
    mps_pod: bool = False
    mps_dead: bool = False
    """Its daemon was killed: nothing is cleaned up when the pod goes."""
    stray: bool = False
    """A process that belongs to no pod computes on GPU 0."""
    away: bool = False
    """mig-manager reboots the node: it is not Ready until its next step."""
    vitals: Vitals = HEALTHY
    """How GPU 0 is."""

    def __post_init__(self) -> None:
        self.layouts = self.layouts or [None] * len(self.products)

    # --- mig-manager --------------------------------------------------------------------------------------

    @property
    def operand(self) -> Operand:
        return Operand("gpu-operator", f"mig-manager-{self.name}", f"uid-mig-{self.name}-{self.serial}", True)

    @property
    def operands(self) -> dict[Program, Operand]:
        daemon = self.mps_daemon
        pods = {Program.MIG_MANAGER: self.operand}
        return pods if daemon is None else {**pods, Program.MPS_DAEMON: daemon}

    @property
    def devices(self) -> tuple[str, ...]:
        """What the agent reads of the UUIDs of the devices; not told."""
        return ()

    def restart(self) -> None:
        """Delete the mig-manager pod: the next one runs once at its start."""
        self.serial += 1
        self.running, self.seen = "", None

    def delete_pod(self, uid: str) -> None:
        """One of `operands` is deleted, and its controller makes the next one."""
        if uid == self.operand.uid:
            self.restart()
        else:
            self.restart_serving()

    def restart_serving(self) -> None:
        """Delete the other pod of `operands`."""
        self.stop_mps()

    def mig_manager(self, node: NodeView, stack: StackView) -> Labels:
        """One step: begin a run when the label asks for one, or end the run."""
        if not any(gpu.mig_capable for gpu in self.gpus()):
            return {}
        config = node.labels.get(names.LABEL_MIG_CONFIG)
        if self.running:
            return self._end_run(stack)
        if config is None or config == self.seen:
            return {}
        self.seen = config
        wanted = self.wanted(config, stack)
        if wanted is None:
            return {names.LABEL_MIG_STATE: "failed", **_operands(stack, "true")}
        if wanted == tuple(map(with_compute, self.layouts)):
            return {names.LABEL_MIG_STATE: "success", **_operands(stack, "true")}
        self.running = config
        return {names.LABEL_MIG_STATE: "pending", **_operands(stack, names.PAUSED_FOR_MIG)}

    def _end_run(self, stack: StackView) -> Labels:
        wanted = self.wanted(self.running, stack)
        if self.temper == "hangs":
            return {}
        self.running = ""
        if self.temper == "fails" or wanted is None:
            return {names.LABEL_MIG_STATE: "failed", **_operands(stack, "true")}
        if stack.cluster_policy is not None and stack.cluster_policy.with_reboot and self.switches(wanted):
            self.layouts = [None if layout is None else () for layout in wanted]
            self.seen, self.away = (None, True)  # the pod starts anew with the node, and MIG mode is as it should be
            return {names.LABEL_MIG_STATE: "rebooting"}
        for index, (now, then) in enumerate(zip(self.layouts, wanted, strict=True)):
            if now and then and not with_compute(now):  # it clears only what has compute instances, and finds no room
                self.layouts[index] = ()
                return {names.LABEL_MIG_STATE: "failed", **_operands(stack, "true")}
            if with_compute(now) != then:
                self.layouts[index] = then
        if self.temper == "forgets":
            return {names.LABEL_MIG_STATE: "success"}
        return {names.LABEL_MIG_STATE: "success", **_operands(stack, "true")}

    def switches(self, wanted: Sequence[Layout | None]) -> bool:
        """Whether a GPU would change its MIG mode, which takes a reset or, where ClusterPolicy says so, a reboot."""
        return any((a is None) != (b is None) for a, b in zip(self.layouts, wanted, strict=True))

    def wanted(self, config: str, stack: StackView) -> tuple[Layout | None, ...] | None:
        """What a configuration makes of these GPUs; None where there is none of this name or it does not fit."""
        entry = migfile.parse(stack.mig_file).get(config)
        found = migfile.resolve(entry, self.gpus()) if entry else None
        return found if isinstance(found, tuple) else None

    # --- the MPS control daemon -----------------------------------------------------------------------------

    @property
    def mps_daemon(self) -> Operand | None:
        uid = f"uid-mps-{self.name}-{self.mps_serial}"
        return Operand("gpu-operator", f"mps-{self.name}", uid, True) if self.mps_pod else None

    def mps(self, node: NodeView, stack: StackView) -> None:
        """One step: its pod comes and goes with GFD's label, and keeps the configuration it started with (b.5)."""
        wanted = node.labels.get(names.LABEL_MPS_CAPABLE) == "true" and not _is_paused(node)
        if self.mps_pod and not wanted:
            self.stop_mps()
        elif wanted and not self.mps_pod:
            default = stack.cluster_policy.plugin_default if stack.cluster_policy is not None else ""
            text = stack.plugin_configs.get(node.labels.get(names.LABEL_PLUGIN_CONFIG, default), "")
            self.mps_pod, self.mps_dead = True, False
            self.mps_serial += 1
            self.clients = parse_config(text).clients
            self.exclusive = self.exclusive or self.clients is not None

    def stop_mps(self) -> None:
        """Its pod is deleted; a daemon that still lives sets the compute mode back."""
        if self.clients is not None:
            self.exclusive = False
        self.mps_pod, self.mps_dead, self.clients = False, False, None

    def kill_mps(self) -> None:
        """Its daemon dies, its pod stays, and the plugin notices nothing."""
        self.mps_dead, self.clients = self.mps_pod, None

    # --- device plugin and GFD ----------------------------------------------------------------------------

    def plugin(self, node: NodeView, stack: StackView, now: datetime) -> NodeView:
        """One step: serve what configuration and GPUs say; nothing while paused or without its key (b.4)."""
        if _is_paused(node):
            self.loaded = None
            return node if not node.resources else replace(node, resources={})
        default = stack.cluster_policy.plugin_default if stack.cluster_policy is not None else ""
        key = choose_key(node.labels.get(names.LABEL_PLUGIN_CONFIG), list(stack.plugin_configs), default)
        text = None if key is None else stack.plugin_configs[key] if key else "version: v1"
        layouts = tuple(self.layouts)
        if text is not None and self.loaded != (key, text, layouts):
            self.loaded = (key, text, layouts)
            self.started = max(self.started + 1, int(now.timestamp()))
        resources, labels = _serve(self.products, layouts, text, self.started)
        if text is not None and parse_config(text).clients and not (self.clients or self.mps_dead):
            resources = {}  # it waits for the daemon
        node = patched(node, gfd.changes(node.labels, labels))
        return node if dict(node.resources) == resources else replace(node, resources=resources)

    # --- agent --------------------------------------------------------------------------------------------

    def agent(self, gpunode: GPUNodeView, pods: int, allocated: Mapping[str, int]) -> GPUNodeView:
        """One turn: read and answer, unless silence was asked and promised already."""
        last = gpunode.observed
        request = gpunode.request_id
        if last and gpunode.quiet and last.quiet and last.request_id == request and not last.error:
            return gpunode
        processes = ("stray",) if self.stray else ("python",) if pods else ()
        seen = ObservedView(
            request,
            gpunode.quiet,
            "",
            self.gpus(processes),
            dict(allocated),
            pods,
            simulated=True,
            devices=self.devices,
        )
        return gpunode if seen == last else replace(gpunode, observed=seen)

    def gpus(self, processes: tuple[str, ...] = ()) -> tuple[GpuView, ...]:
        """The GPUs as the agent reads them; processes compute on GPU 0."""
        servers = (SERVER,) if self.clients else ()
        return tuple(
            _view(
                index,
                product,
                self.layouts[index],
                self.exclusive and self.layouts[index] is None,
                (*(() if index else processes), *servers),
                HEALTHY if index else self.vitals,
            )
            for index, product in enumerate(self.products)
        )


@lru_cache(maxsize=4096)
def _view(
    index: int, product: str, layout: Layout | None, exclusive: bool, processes: tuple[str, ...], vitals: Vitals
) -> GpuView:
    mode = "ExclusiveProcess" if exclusive else "Default"
    gpu = make_gpu(index, product=product, layout=layout, compute_mode=mode, processes=processes)
    bare = (name.removeprefix(NO_COMPUTE) for name, _ in layout or () if name.startswith(NO_COMPUTE))
    gpu = replace(gpu, partial=tuple(PartialInstance(number, profile) for number, profile in enumerate(bare)))
    return replace(gpu, vitals=vitals)


def _operands(stack: StackView, value: str) -> dict[str, str]:
    """mig-manager pauses the labels that a node has: beside NVIDIA's chart that is one (docs/design/nvidia.md#a1)."""
    if stack.cluster_policy is not None and stack.cluster_policy.plain is not None:
        return {names.LABEL_DEPLOY_CLIENT: value}
    return {names.LABEL_DEPLOY_PREFIX + operand: value for operand in names.DEPLOY_PAUSABLE}


def _is_paused(node: NodeView) -> bool:
    """By the label of the GPU Operator's device plugin, or by that which NVIDIA's chart requires."""
    keys = (f"{names.LABEL_DEPLOY_PREFIX}device-plugin", names.LABEL_DEPLOY_CLIENT)
    return any(names.PAUSED_FOR_MIG in node.labels.get(key, "") for key in keys)


def unmaintained(node: NodeView) -> NodeView:
    """The node when somebody else's work ends: medik8s then removes the label that it and we set alike."""
    ended = node.foreign.startswith("medik8s")
    free = replace(node, foreign="", foreign_waits=False, foreign_queued=False)
    return patched(free, {names.LABEL_NO_REMEDIATION: None}) if ended else free


def patched(node: NodeView, labels: Labels) -> NodeView:
    """The node after a label patch; the same object when nothing changes."""
    after = {key: value for key, value in {**node.labels, **labels}.items() if value is not None}
    return node if after == dict(node.labels) else replace(node, labels=after)


@lru_cache(maxsize=4096)
def _serve(
    products: tuple[str, ...], layouts: tuple[Layout | None, ...], text: str | None, started: int
) -> tuple[dict[str, int], dict[str, str]]:
    if text is None or not products:
        return {}, {}
    config = parse_config(text)
    reading = _reading(products, layouts)
    try:
        resources = advertised(reading.gpus, config)
    except PluginError:
        resources = {}
    try:
        return resources, gfd.labels(reading, config, started)
    except PluginError:
        return resources, {}


def with_compute(layout: Layout | None) -> Layout | None:
    """What mig-parted compares: a GPU instance without compute instance does not count."""
    return None if layout is None else tuple(row for row in layout if not row[0].startswith(NO_COMPUTE))


def _reading(products: tuple[str, ...], layouts: tuple[Layout | None, ...]) -> Reading:
    gpus = tuple(
        _gpu(index, product, layout) for index, (product, layout) in enumerate(zip(products, layouts, strict=True))
    )
    models = tuple(map(_model, dict.fromkeys(products)))
    every = tuple({profile.name: profile for model in models for profile in model.profiles}.values())
    # The simulated GFD looks every profile up on the last model of the node.
    return Reading("", (*models[:-1], replace(models[-1], profiles=every)), gpus)


def _gpu(index: int, product: str, layout: Layout | None) -> GPU:
    view = make_gpu(index, product=product, layout=layout)
    mode: MigMode = "Enabled" if view.mig_enabled else "Disabled" if view.mig_capable else "NotSupported"
    profiles = Counter(dict(with_compute(layout) or ())).elements()
    instances = tuple(Instance(profile, -1, 0, n, f"MIG-{index}-{n}") for n, profile in enumerate(profiles))
    return GPU(index, f"GPU-{index:08x}", product, mode, mode, "Default", instances, (), None, None)


def _model(product: str) -> Model:
    card = find_card(product)
    assert card is not None, "machines have cards of the table"
    return Model(product, mig_capable=bool(card.profiles), mig_mode_change="Live", profiles=card.profiles)

"""A World in which each pod holds a MIG device of a certain GPU, so that a change may leave the pods of others alone.
The kubelet's device manager gives a device to one pod until the pod is gone (docs/design/drain.md#p21); mig-manager makes the instances of a GPU anew only if their counts are wrong, or those of all GPUs if one has the wrong MIG mode. What is made anew at the same place has the same UUID (docs/adr/0093-only-the-gpus-that-change.md)."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Self

from tests.build import H100, make_policy
from tests.planning import podkinds, rules
from tests.planning.machines import Labels, NodeMachine, with_compute
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.api.gpunode import NO_COMPUTE
from gpusharing.planning.gpus.geometry import Layout, normalize, resource_name
from gpusharing.planning.snapshot.actions import Action, Actuate, Release
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.podviews import Holder
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, PolicyView

HALVES, SEVENTHS, THIRDS = {"3g.40gb": 2}, {"1g.10gb": 7}, {"2g.20gb": 3}


def layouts(
    *profiles: Mapping[str, int],
    scope: str = "Changed",
    away: str = "100%",
    rollout: Mapping[str, object] = MappingProxyType({}),
    **fields: object,
) -> PolicyView:
    """A policy that gives each GPU, by index, its own profiles, and evicts from those that change alone."""
    rows = [{"profiles": dict(one), "devices": [index]} for index, one in enumerate(profiles)]
    drain = {"scope": scope, "strandedPods": "Allow", **fields}
    return make_policy(mig={"layouts": rows}, drain=drain, rollout={"maxUnavailable": away, **rollout})


@dataclass
class GpuMachine(NodeMachine):
    """Four GPUs whose instances have names that depend on their places."""

    products: tuple[str, ...] = (H100,) * 4
    made: list[int] = field(default_factory=lambda: [0] * 4)
    """How often the instances of each GPU were moved to other places."""
    held: dict[str, tuple[int, str]] = field(default_factory=dict)
    """The GPU and the device of each pod, by UID."""
    names_of: dict[str, str] = field(default_factory=dict)
    """`namespace/name` of the pods that the kubelet knows, by UID."""
    computes: bool = True
    loses_mode: bool = False
    """A GPU loses its MIG mode before the next run, which then makes all instances anew at their places. The driver refuses that while a process is on one of them."""
    collides: bool = True
    """The agent, where it may read, does so at the very moment when mig-manager changes the GPUs."""
    opens: frozenset[int] = frozenset()
    """The GPUs that the agent reads at present."""
    silent: bool = False
    """The kubelet does not tell the agent who holds what."""
    serves: bool = True
    """Whether NVIDIA's device plugin comes back once mig-manager has paused it."""
    blind_for: str = ""
    """The request that an agent which has started since does not read the GPUs for, because it is answered."""
    unnamed: set[str] = field(default_factory=set)
    elsewhere: dict[str, int] = field(default_factory=dict)
    """The GPU that a pod uses without having asked for it, by UID."""
    misread: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """By GPU, what NVML says of it at present that is not so, as fields of its view."""
    late: bool = False
    """The agent does not get to report at present."""
    own: dict[int, str] = field(default_factory=dict)
    """The name of a person's process on a GPU, by the index of the GPU."""
    ours: bool = False
    """A change of the operator's is under way, which has asked the agent to keep off."""

    def mig_manager(self, node: NodeView, stack: StackView) -> Labels:
        self.ours = node.fence is not None
        return super().mig_manager(node, stack)

    def _is_held_open(self, wanted: Sequence[Layout | None]) -> bool:
        """An open NVML makes a change of the MIG mode fail, and one that has opened an instance its destruction (docs/design/nvidia.md#a9)."""
        changed = {index for index, layout in enumerate(wanted) if layout != self.layouts[index]}
        affected = self.opens if self.loses_mode or self.switches(wanted) else self.opens & changed
        return self.ours and self.collides and bool(affected)

    def _end_run(self, stack: StackView) -> Labels:
        temper, wanted = self.temper, self.wanted(self.running, stack) or ()
        anew = {index for index, (a, b) in enumerate(zip(self.layouts, wanted, strict=False)) if with_compute(a) != b}
        in_use = self.computes and any(self.loses_mode or gpu in anew for gpu, _ in self.held.values())
        if in_use or (wanted and self._is_held_open(wanted)):
            self.temper = "fails"
        labels = super()._end_run(stack)
        self.temper, self.loses_mode = temper, False
        return labels

    def plugin(self, node: NodeView, stack: StackView, now: datetime) -> NodeView:
        after = super().plugin(node, stack, now)
        return after if self.serves or not after.resources else replace(after, resources=node.resources)

    def move(self, uid: str) -> None:
        """The pod holds another device of its GPU, as no kubelet should let it."""
        gpu, _ = self.held[uid]
        self.held[uid] = gpu, self.device(gpu, "another")

    def displace(self, gpu: int) -> None:
        """Somebody makes the instances of a GPU anew at other places, where no process keeps the driver from it."""
        self.made[gpu] += 1

    def strip(self, gpu: int) -> bool:
        """Somebody destroys the compute instance of one instance that no pod has (`nvidia-smi mig -dci`); False without one."""
        layout, held = dict(self.layouts[gpu] or ()), set(self.held.values())
        for profile, count in layout.items():
            if not profile.startswith(NO_COMPUTE) and (gpu, self.device(gpu, f"{profile}-{count - 1}")) not in held:
                bare = NO_COMPUTE + profile
                self.layouts[gpu] = normalize({**layout, profile: count - 1, bare: layout.get(bare, 0) + 1})
                return True
        return False

    def device(self, gpu: int, slot: str) -> str:
        return f"{gpu}-{self.made[gpu]}-{slot}"

    def agent(self, gpunode: GPUNodeView, pods: int, allocated: Mapping[str, int]) -> GPUNodeView:
        """As the others, with who holds what if the request asks for that, also while NVML is closed."""
        if self.late:
            return gpunode
        after = super().agent(gpunode, 0, allocated)
        closed = after.answer is not None and after.answer.quiet
        left = frozenset(gpunode.quiet_gpus or range(4)) if closed else frozenset()
        self.opens = frozenset(range(4)) - left
        if (seen := after.observed) is None:
            return after
        holders = None
        if gpunode.holders and not self.silent and gpunode.request_id != self.blind_for:
            holders = tuple(
                Holder(self.names_of[uid], "" if uid in self.unnamed else uid, (gpu,), device)
                for uid, (gpu, device) in sorted(self.held.items())
            )
        busy = {gpu for gpu, _ in self.held.values()} if self.computes else set()
        busy |= {gpu for uid, gpu in self.elsewhere.items() if uid in self.held}
        on = dict.fromkeys(busy, ("python",)) | {gpu: (name,) for gpu, name in self.own.items()}
        gpus, keys = seen.gpus, seen.devices
        if seen != gpunode.observed:  # NVML was read
            gpus = tuple(replace(gpu, processes=on.get(gpu.index, gpu.processes)) for gpu in gpus)
            gpus = tuple(replace(gpu, **self.misread.get(gpu.index, {})) for gpu in gpus)
            keys = tuple(f"GPU-{index}-{made}" for index, made in enumerate(self.made))
        told = replace(seen, gpus=gpus, holders=holders, devices=keys)
        return gpunode if told == gpunode.observed else replace(after, observed=told)


@dataclass
class GpuWorld(World):
    """Its pods are bound to devices by a kubelet."""

    stood: dict[str, tuple[list[int], dict[str, tuple[int, str]]]] = field(default_factory=dict)
    """By node, its `made` and `held` at the last point of no return."""

    def machine(self, node: str) -> GpuMachine:
        machine = self.machines[node]
        assert isinstance(machine, GpuMachine)
        return machine

    def copy(self) -> Self:
        twin = super().copy()
        for name, machine in twin.machines.items():
            assert isinstance(machine, GpuMachine)
            twin.machines[name] = replace(
                machine,
                made=list(machine.made),
                held=dict(machine.held),
                names_of=dict(machine.names_of),
                unnamed=set(machine.unnamed),
                elsewhere=dict(machine.elsewhere),
                misread=dict(machine.misread),
                own=dict(machine.own),
            )
        twin.stood = dict(self.stood)
        return twin

    def add_pod(
        self,
        node: str,
        kind: str = "a pod of a ReplicaSet",
        *,
        app: str = "llm",
        pinned: bool = False,
        gpu: int | None = None,
    ) -> bool:
        if not super().add_pod(node, kind, app=app, pinned=pinned):
            return False
        uid, pod = list(self.pods[node].items())[-1]
        machine = self.machine(node)
        taken = Counter(machine.held.values())
        for index, layout in enumerate(machine.layouts):
            for profile, count in with_compute(layout) or ():
                for slot in range(count):
                    device = machine.device(index, f"{profile}-{slot}")
                    free = not taken[index, device] and gpu in (None, index)
                    if free and (not pod.resources or resource_name(profile) in pod.resources or gpu is not None):
                        if pod.resources:
                            self.pods[node][uid] = replace(pod, resources={resource_name(profile): 1})
                            machine.held[uid] = index, device
                            machine.names_of[uid] = pod.ref
                        return True
        del self.pods[node][uid]
        return False

    def kubelet(self, node: str) -> None:
        super().kubelet(node)
        machine, alive = self.machine(node), self.pods[node]
        gone = [uid for uid in machine.held if uid not in alive or alive[uid].phase in ("Succeeded", "Failed")]
        for uid in gone:
            del machine.held[uid]

    def is_touched(self, node: str, uid: str, gpus: Collection[int]) -> bool:
        held = self.machine(node).held.get(uid)
        return not gpus or held is None or held[0] in gpus

    def carry_out(self, action: Action) -> None:
        if isinstance(action, Actuate) and action.node.fence is not None and action.node.fence.stage == "fenced":
            machine = self.machine(action.node.name)
            self.stood[machine.name] = list(machine.made), dict(machine.held)
        if isinstance(action, Release) and action.verified is not None and rules.emptied(action.node.fence):
            machine, gpus = self.machine(action.node.name), rules.emptied(action.node.fence)
            made, held = self.stood[machine.name]
            moved = [gpu for gpu in range(4) if gpu not in gpus and machine.made[gpu] != made[gpu]]
            others = [uid for uid, one in held.items() if one[0] not in gpus and machine.held.get(uid, one) != one]
            rules.hold(not moved and not others, f"(w) proven while GPUs {moved} and pods {others} have other devices")
        super().carry_out(action)


def gpu_world(policy: PolicyView, *nodes: str) -> GpuWorld:
    world = GpuWorld()
    for name in nodes:
        world.add_node(name, GpuMachine(name))
    world.set_policy(policy)
    world.settle()
    assert all(node.labels.get(names.LABEL_MIG_STATE) == "success" for node in world.nodes.values())
    return world


def gpus_of(world: GpuWorld, node: str) -> dict[str, int]:
    """The GPU of each pod that is still there, by UID."""
    alive = world.pods[node]
    held = world.machine(node).held
    return {uid: gpu for uid, (gpu, _) in held.items() if uid in alive and podkinds.holds_gpu(alive[uid])}

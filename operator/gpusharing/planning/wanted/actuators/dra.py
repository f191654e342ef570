"""How are nodes changed where mig-manager divides the GPUs and NVIDIA's DRA driver publishes them?"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.planning.snapshot.nvidia import Operand, Program
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import NodeView, ObservedView
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators.actuator import ActuatorCase, Trace, Unfinished, Written
from gpusharing.planning.wanted.actuators.labels import Labels, steady_from, tell_late
from gpusharing.planning.wanted.draobjects import find_unrequestable
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import (
    Checked,
    Comparison,
    Source,
    agent_checks,
    compute_mode_checks,
    find_slice_mismatch,
    mig_checks,
)

PLUGIN = "NVIDIA's DRA kubelet plugin"
"""The program that publishes the devices, for messages."""


class Dra(Labels):
    """mig-manager, which divides the GPUs, and the kubelet plugin of NVIDIA's DRA driver.

    The driver looks for MIG devices only when its kubelet plugin starts, so each run replaces the plugin's pod once
    mig-manager is done. Its ResourceSlices outlive the pod, so they prove nothing before the new pod is Ready. The
    fence names the pod to replace in `daemon_uid`.
    """

    needs = frozenset({"mig-manager", "driver", "container-toolkit"})
    sources = (Source.AGENT, Source.NVML, Source.MIG_MANAGER, Source.OPERANDS, Source.SLICES)

    def obstacles(self, case: ActuatorCase, target: Target) -> Iterator[Finding]:
        yield from super().obstacles(case, target)
        if self.needs_run(case, target) and (missing := _find_plugin_missing(case, again=False)):
            where = f"label {Program.KUBELET_PLUGIN.label}={Program.KUBELET_PLUGIN}"
            pods = f"check the pods with {where} in namespace {case.settings.gpu_operator_namespace}"
            yield Finding(Reason.ACTUATOR_MISSING, f"{missing}; {pods}")
        if not _is_published(case.node) and (text := find_slice_mismatch(case.node, target.layouts, None)):
            yield Finding(Reason.ACTUATOR_MISSING, text)
        if found := find_unrequestable(target.layouts, case.stack):
            yield Finding.of(found, Reason.ACTUATOR_MISSING)

    def needs_run(self, case: ActuatorCase, target: Target) -> bool:
        observed = case.observed
        differs = bool(find_slice_mismatch(case.node, target.layouts, observed))
        return super().needs_run(case, target) or (_is_published(case.node) and differs)

    def find_missing(self, case: ActuatorCase, goal: Target, again: bool) -> str:
        return super().find_missing(case, goal, again) or _find_plugin_missing(case, again=again)

    def write(self, case: ActuatorCase, fence: Fence, goal: Target, idle: ObservedView | None, again: bool) -> Written:
        pod = case.operands.get(Program.KUBELET_PLUGIN)
        fence, labels = super().write(case, fence, goal, idle, again)
        return replace(fence, daemon_uid=pod.uid if pod is not None else "", gfd_timestamp=""), labels

    def find_old(self, case: ActuatorCase, fence: Fence) -> tuple[Operand, str] | None:
        if (old := super().find_old(case, fence)) is not None:
            return old
        pod = case.operands.get(Program.KUBELET_PLUGIN)
        if pod is None or pod.uid != fence.daemon_uid or super().find_trouble(case, fence) is not None:
            return None
        return pod, PLUGIN

    def find_trouble(self, case: ActuatorCase, fence: Fence) -> Unfinished | None:
        if (trouble := super().find_trouble(case, fence)) is not None:
            return trouble
        pod, due, slices = case.operands.get(Program.KUBELET_PLUGIN), _publishes_by(case, fence), case.node.name
        cure = f"restarting {PLUGIN}"
        # Only the operator replaces the pod, and only for a node that has a target.
        if pod is not None and pod.uid == fence.daemon_uid and not pod.deleting:
            old = f"has not been restarted since the change, so the ResourceSlices of {slices} are outdated"
            return Unfinished(Finding(Reason.ACTUATION_IN_PROGRESS, f"{PLUGIN} {old}"), final=True, cure=cure)
        if due is None:
            old = (
                f"is restarting; the ResourceSlices of {slices} are from before the change{tell_late(case, fence, pod)}"
            )
            return Unfinished(Finding(Reason.ACTUATION_IN_PROGRESS, f"{PLUGIN} {old}"), final=False)
        gpunode, observed = case.gpunode, case.observed
        if case.now < due or gpunode is None or observed is None or observed.quiet or observed.error:
            return None
        # The pod may have started before the GPUs were divided. Only the agent's answer for the proof of this change counts.
        asked = gpunode.request_id.startswith(f"{fence.op}:verify:") and observed.request_id == gpunode.request_id
        wrong = find_slice_mismatch(case.node, observed.hardware.layouts, observed) if asked else ""
        return Unfinished(Finding(Reason.ALLOCATABLE_MISMATCH, wrong), final=True, cure=cure) if wrong else None

    def find_lost(self, case: ActuatorCase, fence: Fence) -> Written | None:
        return None  # nothing reads the device plugin's label

    def next_look(self, case: ActuatorCase, fence: Fence) -> datetime | None:
        moments = super().next_look(case, fence), _publishes_by(case, fence)
        return min((moment for moment in moments if moment is not None and moment > case.now), default=None)

    def checks(self, compared: Comparison) -> Checked:
        yield from agent_checks(compared)
        yield from mig_checks(compared)
        yield from compute_mode_checks(compared)
        if text := find_slice_mismatch(compared.node, compared.target.layouts, compared.observed):
            yield Source.SLICES, Finding(Reason.ALLOCATABLE_MISMATCH, text)

    def find_down(self, case: ActuatorCase, target: Target) -> Trace | None:
        pod = case.operands.get(Program.KUBELET_PLUGIN)
        driver, name = case.stack.dra.driver, case.node.name
        if pod is None and (driver is None or not driver.labelled):
            return None  # its pods are not seen
        claim, limit = f"the ResourceSlices of {name} offer its devices", case.settings.sign_grace
        if pod is not None and pod.ready:
            if (until := steady_from(case, pod, claim)) is None:
                return None
            text = f"{PLUGIN} started a moment ago on {name}, and may not keep running"
            return Trace(claim, limit, Finding(Reason.ACTUATOR_MISSING, text, until))
        where = f"label {Program.KUBELET_PLUGIN.label}={Program.KUBELET_PLUGIN}"
        text = (
            f"{claim}, but {PLUGIN}, which published them, is not running there, so no pod with a claim can start; check"
            f" the pods with {where}"
        )
        return Trace(claim, limit, Finding(Reason.ACTUATOR_MISSING, text))

    def tell_left(self, node: NodeView) -> str:
        return ""  # mig-manager's label then means whole GPUs, and nothing reads the other labels


def _is_published(node: NodeView) -> bool:
    """Whether the driver has published all devices of the node, and nothing but GPUs and MIG devices.

    Otherwise it is not running, is about to publish, or serves a GPU in another way, so a drain would not help.
    """
    return node.devices is not None and not node.devices.missing and not node.devices.others


def _find_plugin_missing(case: ActuatorCase, *, again: bool) -> str:
    pod = case.operands.get(Program.KUBELET_PLUGIN)
    there = pod is not None and (again or pod.ready)
    return "" if there else f"no Ready pod of {PLUGIN} runs on {case.node.name}"


def _publishes_by(case: ActuatorCase, fence: Fence) -> datetime | None:
    """Return when the new pod, if it is Ready, has published; it becomes Ready shortly before."""
    pod = case.operands.get(Program.KUBELET_PLUGIN)
    if pod is None or pod.uid == fence.daemon_uid or not pod.ready:
        return None
    return (pod.ready_since or fence.stage_since) + timedelta(seconds=case.settings.restart_grace)


DRA = Dra()

"""May a change of a node begin, apart from its pods? The first closed gate decides.

A node that waits for a gate is not touched, and in particular not cordoned.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import chain
from typing import TypeAlias

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.planning.drain.pods import holds_gpu
from gpusharing.planning.gpus.drivers import find_driver_flaw, find_hanging
from gpusharing.planning.snapshot.memory import DRIFTS, WITHDRAWN
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, ObservedView, PolicyView
from gpusharing.planning.stack.effects import RESTART_PLUGIN, is_as_labeled, tell_clients
from gpusharing.planning.stack.mps import add_repair
from gpusharing.planning.stack.plugins import explain_plugin
from gpusharing.planning.stack.requirements import (
    explain_failed_upgrade,
    explain_workloads,
    find_bare_host,
    find_disabled,
)
from gpusharing.planning.transition.attempts import (
    add_retry,
    find_driver_trace,
    find_quiet,
    goes_back,
    is_new_value,
    standing_deferral,
    was_corrected,
    was_rolled_back,
)
from gpusharing.planning.transition.fencing import tell_foreign
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Blocker, Finding
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed, find_owned
from gpusharing.planning.wanted.target import Target, describe_layouts, find_last_proven
from gpusharing.planning.wanted.verify import (
    Comparison,
    find_exclusive,
    find_leftover,
    find_missing,
    find_withheld,
    is_told_mps,
    keep_names,
    served,
    tell_stuck,
)

Gate: TypeAlias = tuple[Reason, str | Finding | None]
"""A reason, and what closes the gate: empty or None if it is open. A Finding has its own reason."""
PATIENCE = 5
"""After this many abandoned attempts, the verdict asks a person to look."""


def find_gate(case: NodeCase, assessed: Assessed) -> Finding | None:
    return first_closed(start_gates(case, assessed))


def first_closed(*gates: Iterable[Gate]) -> Finding | None:
    """Return why the first closed gate is closed, or None if all are open; no later gate is computed."""
    return next((Finding.of(closed, reason) for reason, closed in chain(*gates) if closed), None)


def start_gates(case: NodeCase, assessed: Assessed) -> Iterator[Gate]:
    """Yield the gates of a change that has not begun.

    First whether anybody may touch the node, then whether the change could be made and proven, then whether it should
    be now.
    """
    node, name, observed, proof = case.node, case.node.name, case.observed, case.node.verified
    skip = node.labels.get(names.LABEL_SKIP)
    if names.is_skip(skip):
        include = Command.of(f"kubectl annotate gpunode {name} --overwrite {names.LABEL_SKIP}=false")
        message = f"label {names.LABEL_SKIP}={skip} excludes {name} from changes. To include it again, run: {include}"
        yield Reason.SKIP_LABEL, Finding(Reason.SKIP_LABEL, message, commands=(include,))
    if node.deleting:
        yield Reason.NODE_NOT_READY, f"{name} is being deleted"
    if not node.ready:
        yield Reason.NODE_NOT_READY, f"{name} is not Ready"
    if node.upgrade_failed:
        yield Reason.DRIVER_UPGRADE_FAILED, explain_failed_upgrade(node, case.stack.cluster_policy)
    if node.foreign:
        lasts = case.find_doubt(find_driver_trace(case))
        yield Reason.FOREIGN_MAINTENANCE, lasts or f"{tell_foreign(node)}; waiting until it has finished"
    if node.unschedulable:
        uncordon = Command.of("kubectl uncordon", name)
        message = (
            f"{name} was cordoned by someone else, so no change starts on it. To continue, run (with the right to"
            f" {uncordon.right}): {uncordon}"
        )
        yield Reason.ALREADY_CORDONED, Finding(Reason.ALREADY_CORDONED, message, commands=(uncordon,))
    yield Reason.ACTUATOR_BUSY, find_quiet(case)  # a driver upgrade is reported as foreign maintenance
    yield from service_gates(case)
    if not case.agent_ready:
        effect = ". Without it a change could not be proven, so none starts; check the DaemonSet gpusharing-agent"
        yield Reason.AGENT_NOT_READY, case.no_agent(effect)
    if observed is None or observed.quiet:
        yield Reason.OBSERVATION_PENDING, "waiting for the agent to read the GPUs"
    elif observed.error:
        yield Reason.AGENT_ERROR, f"the agent cannot read the GPUs: {observed.error}"
    yield Reason.AGENT_LACKS_RIGHTS, find_withheld(assessed.target, assessed.observed)
    yield Reason.GPU_MISSING, find_missing(node, assessed.observed)
    yield Reason.INSTANCES_LEFT, find_leftover(assessed.observed.gpus, assessed.target.layouts)
    withdrawn = tell_stuck(node, case.stack)
    if (unhealthy := case.unhealthy) is not None:
        yield Reason.GPU_UNHEALTHY, unhealthy.message
    if case.found_layouts != assessed.target.layouts:  # sharing and labels may be changed under any driver
        allowed, refuse = case.settings.unsafe_drivers, case.settings.refuse_unsafe_drivers
        version = assessed.observed.driver_version
        yield Reason.UNSAFE_DRIVER, find_driver_flaw(version, allowed, refuse_affected=refuse)
    # No label of ours resets the compute mode, and only a change to MPS works despite it.
    if assessed.target.mode is not Mode.MPS and not is_told_mps(node, case.stack):
        yield Reason.COMPUTE_MODE, find_exclusive(assessed.observed.hardware)
    if assessed.drift is None:
        yield from _rollback_gate(case, assessed)
    yield from target_gates(case, assessed)
    yield Reason.ACTUATOR_MISSING, next(case.actuator.obstacles(case, assessed.target), None)
    asked = proof is not None and is_new_value(node.retry, proof.retry)
    drift = None if asked else assessed.drift
    if drift is not None:  # it may pass: plugin restarts and reboots heal themselves
        if (until := _settles_until(case, DRIFTS)) is not None:
            message = f"{name} has drifted from its last proven state: {drift.message}"
            yield Reason.DRIFTED, Finding(Reason.DRIFTED, message, until, commands=drift.commands)
        if was_corrected(case, assessed.policy):
            writers = node.label_rewriters.items()
            history = "".join(f"; {who} was the last to write {label}" for label, who in writers)
            answered = proof.retry if proof is not None else ""
            message = f"{name} drifted again after it was corrected: {drift.message}{history}"
            found = Finding(Reason.DRIFT_RETURNED, message, commands=drift.commands)
            yield found.reason, add_retry(found, name, answered, ". To have it corrected once more, run")
    if withdrawn:  # a restart of the device plugin ends within the same grace
        if (until := _settles_until(case, WITHDRAWN)) is not None:
            waits = Finding(Reason.OBSERVATION_PENDING, f"{withdrawn}. It may just restart", until)
            yield waits.reason, waits
        yield Reason.GPU_UNHEALTHY, f"{withdrawn}. A change would not help, so none starts"
    yield Reason.BLOCKED, _find_futile(case, assessed, drift)
    yield from _rollback_gate(case, assessed)
    if (deferred := standing_deferral(case, assessed.policy)) is not None:
        reason = Reason.NEEDS_ATTENTION if deferred.count >= PATIENCE else Reason.DEFERRED
        message = (
            f"attempt {deferred.count} was abandoned ({deferred.reason}); the next starts at {deferred.until:%H:%M:%S}Z"
        )
        waits = Finding(reason, message, deferred.until)
        yield reason, add_retry(waits, name, deferred.retry, ". To start it now, run")
    if assessed.spec.rollout.paused:
        yield Reason.PAUSED, f"{tell_pause(assessed.policy)}, so no more nodes start a change"
    yield from propagation_gates(case, assessed)


def _settles_until(case: NodeCase, seen: tuple[str, str]) -> datetime | None:
    since, grace = case.seen_since.get(seen), timedelta(seconds=case.settings.drift_grace)
    return (since or case.now) + grace if since is None or case.now < since + grace else None


def service_gates(case: NodeCase) -> Iterator[Gate]:
    """Yield the gates on whether a change could be served and proven at all (docs/design/nvidia.md#d2).

    They need no assessment, so they also explain why a node has none.
    """
    node, here = case.node, alone(case)
    if node.other_plugin:  # an admin may have switched operands off for it
        yield Reason.FOREIGN_DEVICE_PLUGIN, explain_plugin(node.other_plugin, [node])
    for text, command in explain_workloads([node], here):
        message = f"{text}. To use them for containers: {command}" if command is not None else text
        commands = (command,) if command is not None else ()
        yield Reason.WORKLOAD_CONFIG, Finding(Reason.WORKLOAD_CONFIG, message, commands=commands)
    needs = case.actuator.needs
    if node.keeps_off("mig-manager") and not _needs_mig_manager(case):
        needs -= {"mig-manager"}
    yield Reason.OPERANDS_DISABLED, find_disabled(node, needs, here)
    words = case.observed.error if case.observed and case.agent_ready else ""
    if case.agent_trouble is not None:
        words = case.agent_trouble.message
    yield Reason.DRIVER_DISABLED, find_bare_host(node, words, case.stack)


def alone(case: NodeCase) -> ClusterSnapshot:
    name = case.node.name
    return ClusterSnapshot(
        nodes={name: case.node},
        gpunodes={} if case.gpunode is None else {name: case.gpunode},
        policies=(),
        stack=case.stack,
        agents=frozenset({name} if case.agent_ready else ()),
        settings=case.settings,
    )


def _needs_mig_manager(case: NodeCase) -> bool:
    if case.stack.by_dra and case.stack.cluster_policy is None:  # no deploy label chooses its nodes (d.3)
        return False
    if (assessed := case.assessed) is None:
        return case.spec is not None and case.spec.mode is Mode.MIG
    return any(case.actuator.needs_mig_manager(case, target) for target in (assessed.goal, assessed.target))


def find_other_divider(
    node: NodeView, observed: ObservedView | None, work: NodeWork, stack: StackView
) -> Blocker | None:
    """Return that somebody else seems to divide the node's GPUs: the last gate, because it needs a LIST of the pods.

    Instances that neither the node's configuration nor its last proof explains may be hand-made. Beside a pod that runs
    with devices of another plugin, they may be what it runs on, and a change would remove them.
    """
    if observed is None or not any(observed.hardware.layouts):
        return None
    answered = node.verified.retry if node.verified is not None else ""
    pods = [pod for pod in work.pods if pod.phase == "Running" and pod.other_devices and not holds_gpu(pod)]
    if not pods or is_new_value(node.retry, answered):
        return None
    last, layouts = find_last_proven(node, observed, stack), observed.hardware.layouts
    proven = isinstance(last, Target) and last.layouts == layouts
    if proven or is_as_labeled(node, observed.hardware, stack):
        return None
    used = some(sorted({name for pod in pods for name in pod.other_devices}))
    # The command comes first, because the rest of a long message is cut.
    found = add_retry(
        Finding(Reason.DIVIDED_ELSEWHERE, "Somebody else seems to divide the GPUs"),
        node.name,
        answered,
        ". To have the instances replaced all the same, run",
    )
    seen = f"{used} is not NVIDIA's, and nothing of the operator or mig-manager explains {describe_layouts(layouts)}"
    refs = tuple(sorted(pod.ref for pod in pods))
    return Blocker(Reason.DIVIDED_ELSEWHERE, refs, message=f"{found.message}. Seen: {seen}")


def target_gates(case: NodeCase, assessed: Assessed) -> Iterator[Gate]:
    """Yield the gates on whether the target may be applied, which count again before every run."""
    if case.settings.refuse_unsafe_drivers and not goes_back(case):
        # The layout would hang the pods that come back (docs/design/hardware.md#mixed-nodes).
        yield Reason.UNSAFE_DRIVER, find_hanging(assessed.observed.driver_version, assessed.target.layouts)
    yield Reason.LABEL_OWNED_ELSEWHERE, find_owned(case.node, assessed, case.actuator)
    objection = next(case.actuator.objections(case, assessed.target), None)
    if objection is not None and objection.reason is Reason.MPS_NOT_SWITCHABLE:
        clients = tell_clients((case.stack.effects or {}).get(RESTART_PLUGIN, ()))
        objection = add_repair(objection, case.stack, case.settings)
        objection = replace(objection, message=f"{objection.message}{clients}")
    yield Reason.MPS_NOT_SWITCHABLE, objection


def propagation_gates(case: NodeCase, assessed: Assessed) -> Iterator[Gate]:
    """Yield the gates on whether the configuration has reached the node (docs/design/nvidia.md#b4)."""
    since, goal = assessed.target.configured, assessed.goal.configured
    if since is None or goal is None:
        if error := case.stack.write_error:
            yield Reason.CONFIG_NOT_WRITTEN, f"the node's configuration could not be written: {error}"
        yield Reason.CONFIG_PROPAGATING, "the configuration is about to be written"
        return
    wait = case.settings.config_propagation
    if (ready := max(since, goal) + timedelta(seconds=wait)) > case.now:
        message = f"the kubelet may take {wait:.0f} s to deliver the new configuration to the node"
        yield Reason.CONFIG_PROPAGATING, Finding(Reason.CONFIG_PROPAGATING, message, ready)


def tell_pause(policy: PolicyView) -> str:
    return policy.pause or "spec.rollout.paused is true"


def _rollback_gate(case: NodeCase, assessed: Assessed) -> Iterator[Gate]:
    proof = case.node.verified
    if proof is None or not was_rolled_back(case.node, assessed.policy):
        return
    if not is_new_value(case.node.retry, proof.retry):
        lost = f". It no longer matches {proof.layout}: {assessed.drift.message}" if assessed.drift else ""
        message = (
            f"{assessed.target.text} failed, and the node was rolled back to {proof.layout}: {proof.failure}{lost}"
        )
        commands = assessed.drift.commands if assessed.drift else ()
        found = Finding(Reason.ROLLED_BACK, message, commands=commands)
        yield found.reason, add_retry(found, case.node.name, proof.retry, ". To try again, run")


def _find_futile(case: NodeCase, assessed: Assessed, drift: Finding | None) -> Finding | None:
    """Return what still differs on a node where a change would write nothing new and disturb pods for nothing."""
    target, mismatch, proof = assessed.target, assessed.mismatch, case.node.verified
    if drift is not None and (assessed.disruption.cordons or not served(case.node)):
        # It was proven under another name with the same meaning. That name does not count once a person asked for another
        # try (`drift` is None then): our own name restarts the device plugin, which disturbs no pod and may help.
        target = keep_names(Comparison(case.node, assessed.observed, target, case.stack))
    if mismatch is None or _writes_anew(case, target):
        return None
    if proof is not None and _writes_anew(case, assessed.target):
        lead = (
            "; the operator could only give the node's configuration its own name, for which it drains the node. To have"
            " it do so, run"
        )
        return add_retry(mismatch, case.node.name, proof.retry, lead)
    return replace(mismatch, message=f"{mismatch.message}; no label that the operator sets would fix that")


def _writes_anew(case: NodeCase, target: Target) -> bool:
    written, labels = case.actuator.find_labels(case.node, target), case.node.labels
    changes = any(labels.get(label, "") != text for label, text in written.items())
    return changes or case.actuator.needs_run(case, target)

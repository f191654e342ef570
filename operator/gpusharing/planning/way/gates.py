"""May a change of this node begin? An ordered chain over everything but its pods; the first no is the answer.

None of these has touched the node: it is not cordoned while it waits here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Mode
from gpusharing.planning.gpus.drivers import find_flaw
from gpusharing.planning.proof.verify import (
    effective_plugin_config,
    find_exclusive,
    find_missing,
    find_withheld,
)
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.way.attempts import may_correct_at_once, standing_deferral, was_corrected
from gpusharing.planning.way.migmanager import found_layouts, is_ready, needs_run
from gpusharing.planning.way.quiet import find_quiet
from gpusharing.planning.way.verdict import NodeCase
from gpusharing.planning.words.reasons import Reason


@dataclass(frozen=True, slots=True)
class Gate:
    """Why not now, and when to ask again (None: when something changes)."""

    reason: Reason
    message: str
    until: datetime | None = None


def find_gate(case: NodeCase) -> Gate | None:
    """The first gate in the order of GATES that is closed; None: the node may start."""
    for gate in GATES:
        if (closed := gate(case)) is not None:
            return closed
    return None


def _target(case: NodeCase) -> Target:
    target = case.assessment.target if case.assessment else None
    assert target is not None, "gates judge nodes with a target"
    return target


def _alive(case: NodeCase) -> Gate | None:
    if case.node.deleting:
        return Gate(Reason.NODE_NOT_READY, f"{case.node.name} is being deleted")
    if not case.node.ready:
        return Gate(Reason.NODE_NOT_READY, f"{case.node.name} is not Ready")
    return None


def _foreign(case: NodeCase) -> Gate | None:
    if not case.node.foreign:
        return None
    return Gate(
        Reason.FOREIGN_MAINTENANCE, f"{case.node.foreign} works on {case.node.name}; waiting until it is done"
    )


def _cordon(case: NodeCase) -> Gate | None:
    if not case.node.unschedulable:
        return None
    return Gate(
        Reason.ALREADY_CORDONED,
        f"{case.node.name} was cordoned by somebody else and is left alone; kubectl uncordon {case.node.name} to go on",
    )


def _at_work(case: NodeCase) -> Gate | None:
    """Somebody else works on the driver or the GPUs, and the agent is quiet."""
    quiet = find_quiet(case)
    return None if quiet is None else Gate(quiet.reason, quiet.message, quiet.until)


_NEEDED = tuple(names.LABEL_DEPLOY_PREFIX + operand for operand in names.DEPLOY_NEEDED)


def operands(case: NodeCase) -> Gate | None:
    """Closed where an admin keeps NVIDIA's operands off the node: nothing would serve or show what it becomes
    (docs/design/nvidia.md#d2)."""
    name, labels = case.node.name, case.node.labels
    workload = labels.get(names.LABEL_WORKLOAD_CONFIG) or names.WORKLOAD_CONTAINER
    if workload != names.WORKLOAD_CONTAINER:
        return Gate(
            Reason.WORKLOAD_CONFIG,
            f"{names.LABEL_WORKLOAD_CONFIG} is {workload}: the GPUs of {name} are not for containers;"
            f" to change that: kubectl label node {name} {names.LABEL_WORKLOAD_CONFIG}-",
        )
    for label in _NEEDED:
        if labels.get(label) == "false":
            return Gate(
                Reason.OPERANDS_DISABLED,
                f"{label} is false: the GPU Operator keeps off {name} what would serve and show the change;"
                f" to change that: kubectl label node {name} {label}-",
            )
    return None


def _agent(case: NodeCase) -> Gate | None:
    if not case.agent_ready:
        return Gate(
            *case.no_agent(
                ": nothing starts that could not be proven; look at the DaemonSet gpusharing-agent"
            )
        )
    observed = case.gpunode.observed if case.gpunode else None
    if observed is None or observed.quiet:
        return Gate(Reason.OBSERVATION_PENDING, "waiting for the agent to read the GPUs")
    if observed.error:
        return Gate(Reason.AGENT_ERROR, f"the agent cannot read the GPUs: {observed.error}")
    return None


def _missing(case: NodeCase) -> Gate | None:
    observed = case.gpunode.observed if case.gpunode else None
    mismatch = find_missing(case.node, observed) if observed is not None else None
    return None if mismatch is None else Gate(mismatch.reason, mismatch.message)


def _rights(case: NodeCase) -> Gate | None:
    """What could not be proven afterwards does not begin."""
    observed = case.gpunode.observed if case.gpunode else None
    mismatch = find_withheld(observed) if observed is not None else None
    if observed is None or mismatch is None:
        return None
    matters = _target(case).with_mig or any(gpu.mig_enabled for gpu in observed.gpus)
    return Gate(mismatch.reason, mismatch.message) if matters else None


def _health(case: NodeCase) -> Gate | None:
    ailment = case.ailment
    return None if ailment is None else Gate(Reason.GPU_UNHEALTHY, ailment.message)


def _driver(case: NodeCase) -> Gate | None:
    """Only repartitioning is dangerous; sharing and NVIDIA's labels may change under any driver."""
    observed, settings = case.gpunode.observed if case.gpunode else None, case.settings
    if observed is None or found_layouts(case) == _target(case).layouts:
        return None
    flaw = find_flaw(
        observed.driver_version, settings.unsafe_drivers, refuse_affected=settings.refuse_unsafe_drivers
    )
    return Gate(Reason.UNSAFE_DRIVER, flaw) if flaw else None


def _leftovers(case: NodeCase) -> Gate | None:
    """A compute mode that nobody holds: no label of ours sets it back, and every change but one to MPS fails on it."""
    observed = case.gpunode.observed if case.gpunode else None
    mismatch = find_exclusive(observed.gpus) if observed is not None else None
    if mismatch is None or _target(case).mode is Mode.MPS:
        return None
    config = effective_plugin_config(case.node, case.stack)
    if config is not None and config.sharing is not None and config.sharing.strategy == "mps":
        return None
    return Gate(mismatch.reason, mismatch.message)


def _actuator(case: NodeCase) -> Gate | None:
    target = _target(case)
    if not target.mig_config:
        if found_layouts(case) == target.layouts:
            return None
        policy = case.stack.cluster_policy
        plain = policy is not None and policy.plain is not None
        why = "there is no mig-manager" if plain else "ClusterPolicy migManager.enabled is false"
        return Gate(
            Reason.ACTUATOR_MISSING, f"MIG is on, and {why}: nobody on {case.node.name} would switch it off"
        )
    if case.node.labels.get(names.LABEL_MIG_STATE, "") == "rebooting":  # however long that takes
        return Gate(Reason.ACTUATOR_BUSY, "mig-manager is at work on its own (state rebooting)")
    if not is_ready(case) and needs_run(case, target):
        return Gate(
            Reason.ACTUATOR_MISSING,
            f"no Ready mig-manager pod on {case.node.name}; look at pods with label app=nvidia-mig-manager"
            f" in namespace {case.settings.gpu_operator_namespace}",
        )
    return None


def propagation(case: NodeCase) -> Gate | None:
    """Closed until the configuration that the labels will name had time to reach the node
    (docs/design/nvidia.md#b4)."""
    target = _target(case)
    since = target.configured
    if since is not None and (goal := case.goal(target)) is not target:
        since = None if goal.configured is None else max(since, goal.configured)
    if since is None and case.stack.write_error:
        return Gate(Reason.CONFIG_NOT_WRITTEN, f"the configuration is missing: {case.stack.write_error}")
    if since is None:
        return Gate(Reason.CONFIG_PROPAGATING, "the configuration is about to be written")
    ready = since + timedelta(seconds=case.settings.config_propagation)
    if ready > case.now:
        return Gate(
            Reason.CONFIG_PROPAGATING,
            f"the kubelet may take {case.settings.config_propagation:.0f} s to bring the new configuration to the node",
            ready,
        )
    return None


def _drift(case: NodeCase) -> Gate | None:
    assessment = case.assessment
    if assessment is None or not assessment.drift or assessment.mismatch is None:
        return None
    if may_correct_at_once(case):
        return None
    since = case.drifting_since
    grace = timedelta(seconds=case.settings.drift_grace)
    if since is None or case.now < since + grace:
        return Gate(
            Reason.DRIFTED,
            f"{case.node.name} no longer is as it was proven: {assessment.mismatch.message}",
            (since or case.now) + grace,
        )
    if was_corrected(case):
        return Gate(
            Reason.DRIFT_RETURNED,
            f"{case.node.name} drifted again after it was put right: {assessment.mismatch.message}",
        )
    return None


def _futile(case: NodeCase) -> Gate | None:
    """Labels and layout are right already, so a drain would disturb pods and then change nothing."""
    target, labels = _target(case), case.node.labels
    mismatch = case.assessment.mismatch if case.assessment else None
    if mismatch is None or labels.get(names.LABEL_PLUGIN_CONFIG) != target.plugin_key:
        return None
    if needs_run(case, target):
        return None
    return Gate(mismatch.reason, f"{mismatch.message}; no label of ours would change that")


def _deferred(case: NodeCase) -> Gate | None:
    deferred = standing_deferral(case)
    if deferred is None:
        return None
    return Gate(
        Reason.DEFERRED,
        f"try {deferred.count} was given up ({deferred.reason}); next try at {deferred.until:%H:%M:%S}Z, or at once"
        f" with kubectl annotate node {case.node.name} {names.ANNOTATION_RETRY}=now",
        deferred.until,
    )


def _paused(case: NodeCase) -> Gate | None:
    spec = case.assessment.policy.spec if case.assessment else None
    if spec is not None and spec.rollout.paused:
        return Gate(Reason.PAUSED, "spec.rollout.paused is true: no further node starts")
    return None


GATES: tuple[Callable[[NodeCase], Gate | None], ...] = (
    _alive,
    _foreign,
    _cordon,
    _at_work,
    operands,
    _agent,
    _rights,
    _missing,
    _health,
    _driver,
    _leftovers,
    _actuator,
    _drift,
    _futile,
    _deferred,
    _paused,
    propagation,
)
"""First wins; a test pins the order."""

CORDONING = frozenset({DisruptionClass.GPU_PODS, DisruptionClass.RESET, DisruptionClass.REBOOT})
"""Classes that need an idle, cordoned node."""

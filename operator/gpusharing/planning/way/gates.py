"""May a change of this node begin? An ordered chain over everything but its pods; the first no is the answer.

None of these has touched the node: it is not cordoned while it waits here.
"""

from collections.abc import Callable
from datetime import timedelta

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Mode
from gpusharing.planning.gpus.drivers import find_flaw
from gpusharing.planning.proof.assess import Assessed
from gpusharing.planning.proof.verify import (
    effective_plugin_config,
    find_exclusive,
    find_missing,
    find_withheld,
)
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.way.attempts import may_correct_at_once, standing_deferral, was_corrected
from gpusharing.planning.way.migmanager import found_layouts, is_ready, needs_run
from gpusharing.planning.way.quiet import find_quiet
from gpusharing.planning.way.verdict import NodeCase
from gpusharing.planning.words.findings import Finding
from gpusharing.planning.words.reasons import Reason


def find_gate(case: NodeCase, assessed: Assessed) -> Finding | None:
    """The first gate in the order of GATES that is closed; None: the node may start. `assessed`: the case's."""
    for gate in GATES:
        if (closed := gate(case, assessed)) is not None:
            return closed
    return None


def _alive(case: NodeCase, assessed: Assessed) -> Finding | None:
    if case.node.deleting:
        return Finding(Reason.NODE_NOT_READY, f"{case.node.name} is being deleted")
    if not case.node.ready:
        return Finding(Reason.NODE_NOT_READY, f"{case.node.name} is not Ready")
    return None


def _foreign(case: NodeCase, assessed: Assessed) -> Finding | None:
    if not case.node.foreign:
        return None
    return Finding(
        Reason.FOREIGN_MAINTENANCE, f"{case.node.foreign} works on {case.node.name}; waiting until it is done"
    )


def _cordon(case: NodeCase, assessed: Assessed) -> Finding | None:
    if not case.node.unschedulable:
        return None
    return Finding(
        Reason.ALREADY_CORDONED,
        f"{case.node.name} was cordoned by somebody else and is left alone; kubectl uncordon {case.node.name} to go on",
    )


def _at_work(case: NodeCase, assessed: Assessed) -> Finding | None:
    """Somebody else works on the driver or the GPUs, and the agent is quiet."""
    return find_quiet(case)


_NEEDED = tuple(names.LABEL_DEPLOY_PREFIX + operand for operand in names.DEPLOY_NEEDED)


def operands(node: NodeView) -> Finding | None:
    """Closed where an admin keeps NVIDIA's operands off the node: nothing would serve or show what it becomes
    (docs/design/nvidia.md#d2)."""
    name, labels = node.name, node.labels
    workload = labels.get(names.LABEL_WORKLOAD_CONFIG) or names.WORKLOAD_CONTAINER
    if workload != names.WORKLOAD_CONTAINER:
        return Finding(
            Reason.WORKLOAD_CONFIG,
            f"{names.LABEL_WORKLOAD_CONFIG} is {workload}: the GPUs of {name} are not for containers;"
            f" to change that: kubectl label node {name} {names.LABEL_WORKLOAD_CONFIG}-",
        )
    for label in _NEEDED:
        if labels.get(label) == "false":
            return Finding(
                Reason.OPERANDS_DISABLED,
                f"{label} is false: the GPU Operator keeps off {name} what would serve and show the change;"
                f" to change that: kubectl label node {name} {label}-",
            )
    return None


def _operands(case: NodeCase, assessed: Assessed) -> Finding | None:
    return operands(case.node)


def _agent(case: NodeCase, assessed: Assessed) -> Finding | None:
    if not case.agent_ready:
        return Finding(
            *case.no_agent(
                ": nothing starts that could not be proven; look at the DaemonSet gpusharing-agent"
            )
        )
    observed = case.gpunode.observed if case.gpunode else None
    if observed is None or observed.quiet:
        return Finding(Reason.OBSERVATION_PENDING, "waiting for the agent to read the GPUs")
    if observed.error:
        return Finding(Reason.AGENT_ERROR, f"the agent cannot read the GPUs: {observed.error}")
    return None


def _missing(case: NodeCase, assessed: Assessed) -> Finding | None:
    return find_missing(case.node, assessed.observed)


def _rights(case: NodeCase, assessed: Assessed) -> Finding | None:
    """What could not be proven afterwards does not begin."""
    withheld = find_withheld(assessed.observed)
    matters = assessed.target.with_mig or any(gpu.mig_enabled for gpu in assessed.observed.gpus)
    return withheld if matters else None


def _health(case: NodeCase, assessed: Assessed) -> Finding | None:
    ailment = case.ailment
    return None if ailment is None else Finding(Reason.GPU_UNHEALTHY, ailment.message)


def _driver(case: NodeCase, assessed: Assessed) -> Finding | None:
    """Only repartitioning is dangerous; sharing and NVIDIA's labels may change under any driver."""
    settings = case.settings
    if found_layouts(case) == assessed.target.layouts:
        return None
    flaw = find_flaw(
        assessed.observed.driver_version,
        settings.unsafe_drivers,
        refuse_affected=settings.refuse_unsafe_drivers,
    )
    return Finding(Reason.UNSAFE_DRIVER, flaw) if flaw else None


def _leftovers(case: NodeCase, assessed: Assessed) -> Finding | None:
    """A compute mode that nobody holds: no label of ours sets it back, and every change but one to MPS fails on it."""
    exclusive = find_exclusive(assessed.observed.gpus)
    if exclusive is None or assessed.target.mode is Mode.MPS:
        return None
    config = effective_plugin_config(case.node, case.stack)
    if config is not None and config.sharing is not None and config.sharing.strategy == "mps":
        return None
    return exclusive


def _actuator(case: NodeCase, assessed: Assessed) -> Finding | None:
    target = assessed.target
    if not target.mig_config:
        if found_layouts(case) == target.layouts:
            return None
        policy = case.stack.cluster_policy
        plain = policy is not None and policy.plain is not None
        why = "there is no mig-manager" if plain else "ClusterPolicy migManager.enabled is false"
        return Finding(
            Reason.ACTUATOR_MISSING, f"MIG is on, and {why}: nobody on {case.node.name} would switch it off"
        )
    if case.node.labels.get(names.LABEL_MIG_STATE, "") == "rebooting":  # however long that takes
        return Finding(Reason.ACTUATOR_BUSY, "mig-manager is at work on its own (state rebooting)")
    if not is_ready(case) and needs_run(case, target):
        return Finding(
            Reason.ACTUATOR_MISSING,
            f"no Ready mig-manager pod on {case.node.name}; look at pods with label app=nvidia-mig-manager"
            f" in namespace {case.settings.gpu_operator_namespace}",
        )
    return None


def propagation(case: NodeCase, assessed: Assessed) -> Finding | None:
    """Closed until the configuration that the labels will name had time to reach the node
    (docs/design/nvidia.md#b4)."""
    since = assessed.target.configured
    if since is not None and (goal := assessed.goal) is not assessed.target:
        since = None if goal.configured is None else max(since, goal.configured)
    if since is None and case.stack.write_error:
        return Finding(Reason.CONFIG_NOT_WRITTEN, f"the configuration is missing: {case.stack.write_error}")
    if since is None:
        return Finding(Reason.CONFIG_PROPAGATING, "the configuration is about to be written")
    ready = since + timedelta(seconds=case.settings.config_propagation)
    if ready > case.now:
        return Finding(
            Reason.CONFIG_PROPAGATING,
            f"the kubelet may take {case.settings.config_propagation:.0f} s to bring the new configuration to the node",
            ready,
        )
    return None


def _drift(case: NodeCase, assessed: Assessed) -> Finding | None:
    if not assessed.drift or assessed.mismatch is None:
        return None
    if may_correct_at_once(case):
        return None
    since = case.drifting_since
    grace = timedelta(seconds=case.settings.drift_grace)
    if since is None or case.now < since + grace:
        return Finding(
            Reason.DRIFTED,
            f"{case.node.name} no longer matches what was proven: {assessed.mismatch.message}",
            (since or case.now) + grace,
        )
    if was_corrected(case, assessed.policy):
        return Finding(
            Reason.DRIFT_RETURNED,
            f"{case.node.name} drifted again after it was corrected: {assessed.mismatch.message}",
        )
    return None


def _futile(case: NodeCase, assessed: Assessed) -> Finding | None:
    """Labels and layout are right already, so a drain would disturb pods and then change nothing."""
    target, labels, mismatch = assessed.target, case.node.labels, assessed.mismatch
    if mismatch is None or labels.get(names.LABEL_PLUGIN_CONFIG) != target.plugin_key:
        return None
    if needs_run(case, target):
        return None
    return Finding(mismatch.reason, f"{mismatch.message}; no label of ours would change that")


def _deferred(case: NodeCase, assessed: Assessed) -> Finding | None:
    deferred = standing_deferral(case, assessed.policy)
    if deferred is None:
        return None
    return Finding(
        Reason.DEFERRED,
        f"attempt {deferred.count} was given up ({deferred.reason}); the next one is at {deferred.until:%H:%M:%S}Z,"
        f" or at once with kubectl annotate node {case.node.name} {names.ANNOTATION_RETRY}=now",
        deferred.until,
    )


def _paused(case: NodeCase, assessed: Assessed) -> Finding | None:
    if assessed.spec.rollout.paused:
        return Finding(Reason.PAUSED, "spec.rollout.paused is true: no further node starts")
    return None


GATES: tuple[Callable[[NodeCase, Assessed], Finding | None], ...] = (
    _alive,
    _foreign,
    _cordon,
    _at_work,
    _operands,
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

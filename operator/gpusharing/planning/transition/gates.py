"""Whether a change of a node may begin: GATES check everything except the pods, and the first closed gate decides.

A node that waits for a gate is not touched, and in particular not cordoned.

Terms: docs/design/glossary.md#drift.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.planning.gpus.drivers import find_driver_flaw, find_hanging
from gpusharing.planning.snapshot.stackviews import StartChange
from gpusharing.planning.stack.migstart import find_start_changes
from gpusharing.planning.stack.mpsrepair import explain_repair
from gpusharing.planning.stack.otherplugins import explain_plugin
from gpusharing.planning.stack.requirements import (
    DEPLOY_NEEDED,
    find_bare_host,
    find_disabled,
    find_other_workload,
)
from gpusharing.planning.transition.attempts import (
    goes_back,
    is_new_value,
    retry_command,
    standing_deferral,
    was_corrected,
    was_rolled_back,
)
from gpusharing.planning.transition.marks import tell_foreign
from gpusharing.planning.transition.quiet import find_quiet
from gpusharing.planning.transition.verdict import FencedCase, NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.assess import Assessed, find_owned
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import (
    Comparison,
    find_exclusive,
    find_missing,
    find_withheld,
    is_told_mps,
    keep_names,
)


@value
class Gate:
    """What keeps a change of a node from beginning."""

    find: Callable[[NodeCase, Any], str | Finding]
    """Returns the message that says why the gate is closed, or an empty string if it is open. A Finding is returned
    instead if time opens the gate, or if the cause has a reason of its own."""
    reason: Reason
    """The reason why the change does not begin, unless the Finding has one of its own."""


def _skipped(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that the node's skip label keeps changes from beginning, with the command that removes it.
    Empty if there is no such label, or if its value is one that does not count (`names.is_skip`). `assessed` is
    ignored."""
    name, skip = case.node.name, case.node.labels.get(names.LABEL_SKIP)
    if not names.is_skip(skip):
        return ""
    return (
        f"label {names.LABEL_SKIP}={skip} excludes {name} from changes. To include it again, run:"
        f" kubectl annotate gpunode {name} --overwrite {names.LABEL_SKIP}=false"
    )


def _going(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that the Node is being deleted, or an empty string if it is not. `assessed` is ignored."""
    return f"{case.node.name} is being deleted" if case.node.deleting else ""


def _unready(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that the node is not Ready, or an empty string if it is. `assessed` is ignored."""
    return "" if case.node.ready else f"{case.node.name} is not Ready"


def _foreign(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that names who else maintains the node, or an empty string if nobody does. Work that only
    waits for its turn counts too. `assessed` is ignored."""
    return f"{tell_foreign(case.node)}; waiting until it has finished" if case.node.foreign else ""


def _cordoned(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that somebody else cordoned the node, with the command that lifts the cordon, or an empty
    string if it is not cordoned. Every cordon counts as somebody else's, because this gate is checked before a change
    begins. `assessed` is ignored."""
    name = case.node.name
    if not case.node.unschedulable:
        return ""
    return (
        f"{name} was cordoned by someone else, so no change starts on it. To continue, run (with the right to patch"
        f" Nodes): kubectl uncordon {name}"
    )


def _at_work(case: NodeCase, assessed: Assessed) -> str | Finding:
    """Return why the agent must keep NVML closed, because somebody else works on the driver or the GPUs, or an empty
    string if nobody does. `find_quiet` decides. `assessed` is ignored."""
    return find_quiet(case) or ""


def _served_by_others(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that another device plugin serves the node, or an empty string if none does. `assessed` is
    ignored."""
    return explain_plugin(case.node.other_plugin, [case.node.name]) if case.node.other_plugin else ""


def _not_for_containers(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that the node is meant for workloads other than containers, such as virtual machines, or an
    empty string if it is not (`find_other_workload`). `assessed` is ignored."""
    return find_other_workload(case.node, case.stack.cluster_policy)


def _switched_off(case: NodeCase, assessed: Assessed) -> str:
    """Return a message, with the remedy, if a label of the node, or a missing one, keeps a program off the node that
    the actuator needs for every mode (`find_disabled`). The driver and the container toolkit do not count, because they
    may be installed on the host. Empty if no such program is kept off; a pause that ends by itself does not count."""
    node, gpunode = case.node, case.gpunode
    changes: Sequence[StartChange] = ()
    if DEPLOY_NEEDED["operands"] in node.held_off:
        gpunodes = {} if gpunode is None else {node.name: gpunode}
        agents = {node.name} if case.agent_ready else set[str]()
        changes = find_start_changes({node.name: node}, gpunodes, case.stack, agents)
    return find_disabled(node, case.actuator, case.stack.cluster_policy, changes)


def _bare_host(case: NodeCase, assessed: Assessed) -> str | Finding:
    """Return which of NVIDIA's programs the host lacks and ClusterPolicy does not install, or an empty string if none
    is known to be missing. Always empty on a node that advertises GPUs. `assessed` is ignored. `find_bare_host` infers
    the answer from what Kubernetes says about the agent's pod or, if the pod is fine, from the error that a Ready agent
    reports."""
    observed = case.gpunode.observed if case.gpunode else None
    words = observed.error if observed and case.agent_ready else ""
    if case.agent_trouble is not None:
        words = case.agent_trouble.message
    return find_bare_host(case.node, words, case.stack.cluster_policy) or ""


def _no_agent(case: NodeCase, assessed: Assessed) -> str | Finding:
    """Return why no agent is Ready on the node, or an empty string if one is. `assessed` is ignored."""
    if case.agent_ready:
        return ""
    return case.no_agent(
        ". Without it a change could not be proven, so none starts; check the DaemonSet gpusharing-agent"
    )


def _unread(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that the operator waits for the agent to read the GPUs, if the agent has not read them yet or
    keeps NVML closed, else an empty string. Neither the age of the last reading nor an error in it matters. `assessed`
    is ignored."""
    observed = case.gpunode.observed if case.gpunode else None
    return "waiting for the agent to read the GPUs" if observed is None or observed.quiet else ""


def _unreadable(case: NodeCase, assessed: Assessed) -> str:
    """Return the error that keeps the agent from reading the GPUs. Empty if the agent reports none, or has not reported
    yet. `assessed` is ignored."""
    observed = case.gpunode.observed if case.gpunode else None
    return f"the agent cannot read the GPUs: {observed.error}" if observed and observed.error else ""


def _withheld(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that NVML does not show the agent all MIG instances of a GPU, so that a layout could not be
    proven. Empty if it shows all, or if the target has no MIG and no GPU has MIG on. `find_withheld` decides from
    `assessed`; `case` is ignored."""
    return find_withheld(assessed.target, assessed.observed)


def _missing(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that the agent finds fewer GPUs than were last proven on the node. Empty if it does not, or if
    nothing was proven there. `find_missing` decides, with the number of GPUs that the node's proof records."""
    return find_missing(case.node, assessed.observed)


def _unhealthy(case: NodeCase, assessed: Assessed) -> str:
    """Return which GPU is unhealthy and why, or an empty string if none is known to be. `assessed` is ignored."""
    unhealthy = case.unhealthy
    return "" if unhealthy is None else unhealthy.message


def _unsafe_driver(case: NodeCase, assessed: Assessed) -> str:
    """Return why GPUs must not be repartitioned under the node's driver. `find_driver_flaw` decides with the settings
    about unsafe drivers. Empty if nothing is known against the driver, or if the layouts that the node has are those of
    the target: sharing and NVIDIA's labels may be changed under any driver."""
    settings = case.settings
    if case.found_layouts == assessed.target.layouts:
        return ""
    return find_driver_flaw(
        assessed.observed.driver_version,
        settings.unsafe_drivers,
        refuse_affected=settings.refuse_unsafe_drivers,
    )


def _hangs_pods(case: NodeCase, assessed: Assessed) -> str:
    """Return why the layout would hang the pods that come back after the change (docs/design/hardware.md#mixed-nodes).
    Empty if the layout would not hang them, if the settings allow unsafe drivers, or if the node is being rolled back
    to such a layout."""
    if not case.settings.refuse_unsafe_drivers or (isinstance(case, FencedCase) and goes_back(case)):
        return ""
    return find_hanging(assessed.observed.driver_version, assessed.target.layouts)


def _owned_elsewhere(case: NodeCase, assessed: Assessed) -> str:
    """Return a message about the first label that the change would set or remove although another program also sets it
    (`find_owned`), or an empty string if there is no such label."""
    return find_owned(case.node, assessed, case.actuator)


def _left_exclusive(case: NodeCase, assessed: Assessed) -> str | Finding:
    """Return the objection of `find_exclusive`: the compute mode of a whole GPU keeps processes out, or the agent is
    not allowed to read it. Empty if there is no objection, or if the node has MPS or will get it. No label of ours
    resets the mode, and only a change to MPS works despite it."""
    if assessed.target.mode is Mode.MPS or is_told_mps(case.node, case.stack):
        return ""
    return find_exclusive(assessed.observed.hardware)


def _unreachable(case: NodeCase, assessed: Assessed) -> str | Finding:
    """Return why the actuator can never reach the target in this installation, or an empty string if it can. That is
    the first of the actuator's `objections` that applies. If the cause is an MPS daemon that follows no label
    (MPSNotSwitchable), which the operator may repair itself, the message says why it has not been repaired."""
    obstacle = next(case.actuator.objections(case, assessed.target), None)
    if obstacle is None or obstacle.reason is not Reason.MPS_NOT_SWITCHABLE:
        return obstacle or ""
    return replace(obstacle, message=f"{obstacle.message}{explain_repair(case.stack, case.settings)}")


def _hindered(case: NodeCase, assessed: Assessed) -> str | Finding:
    """Return what keeps the actuator from changing the node, or an empty string if nothing does. That is the first of
    the actuator's `obstacles` that applies."""
    return next(case.actuator.obstacles(case, assessed.target), None) or ""


def _drifted(case: NodeCase, assessed: Assessed) -> str | Finding:
    """Return the Finding (Drifted) that the drift has not lasted for the whole grace period yet, with the end of that
    period. The period begins when this process first saw the difference, or now if it has not seen it before; then it
    is not over in this pass, however short it is. Empty if there is no drift, if the period is over, or if a person
    asked for the drift to be corrected at once. A difference that passes quickly is no reason to drain a node."""
    drift = _drift(case, assessed)
    if drift is None:
        return ""
    since, grace = case.drifting_since, timedelta(seconds=case.settings.drift_grace)
    if since is not None and case.now >= since + grace:
        return ""
    message = f"{case.node.name} has drifted from its last proven state: {drift.message}"
    return Finding(Reason.DRIFTED, message, (since or case.now) + grace)


def _drifted_again(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that the node drifted again after a correction, with the program that last wrote each of its
    labels, if known. Empty if there is no drift, or if it may be corrected. Drift is corrected once per generation of a
    policy, and again when a person asks for another try."""
    drift = _drift(case, assessed)
    if drift is None or not was_corrected(case, assessed.policy):
        return ""
    writers = case.node.label_rewriters.items()
    history = "".join(f"; {who} was the last to write {label}" for label, who in writers)
    return f"{case.node.name} drifted again after it was corrected: {drift.message}{history}"


def _drift(case: NodeCase, assessed: Assessed) -> Finding | None:
    """Return how the node drifted, or None if it did not drift or a person asked for the drift to be corrected at
    once."""
    verified = case.node.verified
    asked = verified is not None and is_new_value(case.node.retry, verified.retry)
    return None if asked else assessed.drift


def _futile(case: NodeCase, assessed: Assessed) -> str | Finding:
    """If a change of the node would write nothing new, return the Finding about what still differs on it, with its own
    reason. That is so if the actuator needs no run, and every label that it writes has its value already. Empty if
    there is no difference, or if a change would help. A drain would disturb the node's pods without changing anything.

    On a node that has drifted, another name with the same meaning counts as that value if the change would drain the
    node, because the node was proven under that name; the message then has the command that asks for the change all the
    same. It does not count once a person asked for another try, because the operator's own name has the device plugin
    restarted. A plugin restart disturbs no pod, and the new name may help."""
    target, mismatch, proof = assessed.target, assessed.mismatch, case.node.verified
    if _drift(case, assessed) is not None and assessed.disruption.cordons:
        target = keep_names(Comparison(case.node, assessed.observed, target, case.stack))
    if mismatch is None or _writes_anew(case, target):
        return ""
    message = f"{mismatch.message}; no label that the operator sets would fix that"
    if proof is not None and _writes_anew(case, assessed.target):
        message = (
            f"{mismatch.message}; the operator could only give the node's configuration its own name, for which it"
            f" drains the node. To have it do so, run: {retry_command(case.node.name, proof.retry)}"
        )
    return Finding(mismatch.reason, message)


def _writes_anew(case: NodeCase, target: Target) -> bool:
    """Whether a change to this target needs a run of the actuator or would give a label of the node another value."""
    written, labels = case.actuator.find_labels(case.node, target), case.node.labels
    changes = any(labels.get(label, "") != text for label, text in written.items())
    return changes or case.actuator.needs_run(case, target)


def _rolled_back(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that the change failed on the node and was rolled back, with the cause, or an empty string if
    that did not happen. The gate is closed because the change would fail again. It opens when a person asks for
    another try or the policy gets a new generation."""
    proof, retry = case.node.verified, case.node.retry
    if proof is None or not was_rolled_back(case.node, assessed.policy):
        return ""
    if is_new_value(retry, proof.retry):
        return ""
    lost = f". It no longer matches {proof.layout}: {assessed.drift.message}" if assessed.drift else ""
    return (
        f"{assessed.target.text} failed, and the node was rolled back to {proof.layout}: {proof.failure}{lost}."
        f" To try again, run: {retry_command(case.node.name, proof.retry)}"
    )


def _stays_back(case: NodeCase, assessed: Assessed) -> str:
    return "" if assessed.drift else _rolled_back(case, assessed)


PATIENCE = 5
"""After this many abandoned attempts, the verdict asks a person to look."""


def _deferred(case: NodeCase, assessed: Assessed) -> str | Finding:
    """Return the Finding that the back-off after an abandoned attempt is not over, with the time at which it ends, or
    an empty string if there is no such back-off (`standing_deferral`). The reason is Deferred, or NeedsAttention after
    PATIENCE or more abandoned attempts."""
    deferred = standing_deferral(case, assessed.policy)
    if deferred is None:
        return ""
    return Finding(
        Reason.NEEDS_ATTENTION if deferred.count >= PATIENCE else Reason.DEFERRED,
        f"attempt {deferred.count} was abandoned ({deferred.reason}); the next starts at {deferred.until:%H:%M:%S}Z."
        f" To start it now, run: {retry_command(case.node.name, deferred.retry)}",
        deferred.until,
    )


def _paused(case: NodeCase, assessed: Assessed) -> str:
    """Return the message that the policy is paused, or an empty string if it is not. What pauses it is named by
    `tell_pause`."""
    paused = assessed.spec.rollout.paused
    return f"{tell_pause(case)}, so no more nodes start a change" if paused else ""


def tell_pause(case: NodeCase) -> str:
    """Return a clause that names what pauses the policy of a node: the chart's value `paused` unless it is `false`,
    else the policy's own field. Whether the policy is paused is not checked."""
    word = case.settings.paused
    return f"the chart's value paused is {word}" if word != "false" else "spec.rollout.paused is true"


def _not_written(case: NodeCase, assessed: Assessed) -> str:
    """Return why the configuration that the labels would name cannot be written, or an empty string if it exists or no
    write has failed."""
    error = case.stack.write_error
    missing = error and _configured(assessed) is None
    return f"the node's configuration could not be written: {error}" if missing else ""


def _on_its_way(case: NodeCase, assessed: Assessed) -> str | Finding:
    """Return the message that the configuration is not written yet, or a Finding (ConfigPropagating) that it may not
    have reached the node yet, with the time by which it will have reached the node. Empty once that time has passed."""
    since, wait = _configured(assessed), case.settings.config_propagation
    if since is None:
        return "the configuration is about to be written"
    ready = since + timedelta(seconds=wait)
    if ready <= case.now:
        return ""
    message = f"the kubelet may take {wait:.0f} s to deliver the new configuration to the node"
    return Finding(Reason.CONFIG_PROPAGATING, message, ready)


def _configured(assessed: Assessed) -> datetime | None:
    """Return when the configurations that the labels will name were written; the latest time counts. They are the
    target's and, in a change with two steps, the intermediate stop's. None if one of them is not written yet, ALWAYS if
    no entry is needed."""
    since, goal = assessed.target.configured, assessed.goal
    if since is None or goal is assessed.target:
        return since
    return None if goal.configured is None else max(since, goal.configured)


PROPAGATION = (
    Gate(_not_written, Reason.CONFIG_NOT_WRITTEN),
    Gate(_on_its_way, Reason.CONFIG_PROPAGATING),
)
"""The gates that are closed until the configuration that the labels will name has had time to reach the node
(docs/design/nvidia.md#b4). A change that has begun checks these gates again before every run."""

AIM = (
    Gate(_hangs_pods, Reason.UNSAFE_DRIVER),
    Gate(_owned_elsewhere, Reason.LABEL_OWNED_ELSEWHERE),
    Gate(_unreachable, Reason.MPS_NOT_SWITCHABLE),  # or another objection of the actuator
)
"""Objections to the target. They are checked before a change, during the drain and before every run, because in the
meantime the policy may have been edited, the driver replaced, the GPU Operator upgraded, or a NodeFeatureRule
added."""

SERVABLE = (
    Gate(_served_by_others, Reason.FOREIGN_DEVICE_PLUGIN),  # an admin may have switched operands off for it
    Gate(_not_for_containers, Reason.WORKLOAD_CONFIG),
    Gate(_switched_off, Reason.OPERANDS_DISABLED),
    Gate(_bare_host, Reason.DRIVER_DISABLED),  # or another program that the host lacks
)
"""The gates that are closed on a node where a change could be neither served nor proven (docs/design/nvidia.md#d2).
They need no assessment, so they also explain why a node has no assessment."""

GATES = (
    Gate(_skipped, Reason.SKIP_LABEL),
    Gate(_going, Reason.NODE_NOT_READY),
    Gate(_unready, Reason.NODE_NOT_READY),
    Gate(_foreign, Reason.FOREIGN_MAINTENANCE),
    Gate(_cordoned, Reason.ALREADY_CORDONED),
    Gate(_at_work, Reason.ACTUATOR_BUSY),  # a driver upgrade is reported as foreign maintenance
    *SERVABLE,
    Gate(_no_agent, Reason.AGENT_NOT_READY),  # or why none is
    Gate(_unread, Reason.OBSERVATION_PENDING),
    Gate(_unreadable, Reason.AGENT_ERROR),
    Gate(_withheld, Reason.AGENT_LACKS_RIGHTS),
    Gate(_missing, Reason.GPU_MISSING),
    Gate(_unhealthy, Reason.GPU_UNHEALTHY),
    Gate(_unsafe_driver, Reason.UNSAFE_DRIVER),
    Gate(_left_exclusive, Reason.COMPUTE_MODE),  # or a mode that the agent may not read
    Gate(_stays_back, Reason.ROLLED_BACK),  # until a person wants another try
    *AIM,
    Gate(_hindered, Reason.ACTUATOR_MISSING),  # or another obstacle of the actuator
    Gate(_drifted, Reason.DRIFTED),
    Gate(_drifted_again, Reason.DRIFT_RETURNED),
    Gate(_futile, Reason.BLOCKED),  # reported with the reason of the difference
    Gate(_rolled_back, Reason.ROLLED_BACK),
    Gate(_deferred, Reason.DEFERRED),
    Gate(_paused, Reason.PAUSED),
    *PROPAGATION,
)
"""The first closed gate wins. The first gates ask whether anybody may touch the node, the next
whether the change could be made and proven, and the last whether it should be made now."""


def find_gate(case: NodeCase, assessed: Assessed | None, gates: Sequence[Gate] = GATES) -> Finding | None:
    """Return why the first closed one of `gates`, in the given order, is closed, or None if all are open. The Finding
    has the gate's reason unless it has one of its own; no later gate is asked. `assessed` is the assessment of `case`;
    it may be None only for the gates of SERVABLE."""
    for gate in gates:
        if closed := gate.find(case, assessed):
            return Finding.of(closed, gate.reason)
    return None

"""Which reasons can the operator report, with urgency, kind and group?

`docs/reference/reasons.md` is generated from this file. A reason is one CamelCase word for tools, with the situation in
which it is used and what a person should do about it.
"""

from collections.abc import Iterable
from enum import IntEnum, StrEnum, auto
from typing import Literal, Self

from gpusharing.api.names import Phase

Group = Literal["Node", "Hardware", "Health", "Proof", "Drain", "Accepted", "Ready", "Stalled"]
"""Where a reason is seen. It is on a node (its hardware, health, proof or drain), or on a condition of a policy."""

Keeper = Literal[
    "", "policy", "node", "pods", "foreign", "kubelet", "kube-apiserver", "ClusterPolicy", "ConfigMap", "operator",
    "agent", "GPUs", "mig-manager", "device-plugin", "gpu-feature-discovery", "mps-control-daemon",
]  # fmt: skip
"""The kind of object, or the program, that holds a node back. `foreign` stands for whoever else maintains the node."""


class Passes(IntEnum):
    """How the situation that a reason describes comes to an end."""

    BY_A_PERSON = 0
    LATER = 1
    """When others are done or a back-off is over, which takes minutes to hours."""
    SOON = 2
    """Automatically, within seconds or minutes."""
    DONE = 3
    """Never: nothing is awaited."""


class Mark(StrEnum):
    """Properties that some reasons share."""

    PENDING = auto()
    """A node that waits for this reason is Pending rather than Blocked. The situation ends automatically or the author
    of the policy wants it."""
    OUTSIDE = auto()
    """A selected node with this reason does not concern its policy, as long as no change has begun there."""
    MOMENTARY = auto()
    """The situation may be over in a moment, so a node in flight keeps its goal. Whatever deploys the GPU Operator
    restores a deleted ClusterPolicy."""
    UNSUPPORTED = auto()
    """A node with this reason cannot serve its policy as it is."""
    STALLS = auto()
    """A person has to resolve the situation on each affected node, whatever the other nodes do."""
    STATUS = auto()
    """The column STATUS of a policy shows this reason in place of the node's phase."""
    EVENT = auto()
    """A Warning Event reports that a node now has this reason."""
    NO_BLOCKER_EVENT = auto()
    """No Event reports a blocker with this reason. No pod is to blame, or the situation is reported otherwise."""
    PAST_RETURN = auto()
    """A node with this reason passed its point of no return earlier. So no Event says that it passes it now."""
    TURNS_BACK = auto()
    """A failed change may be rolled back for this reason. Reasons that leave the state of the node unknown do not have
    this mark: the change may still be proven then, but a rollback could not be."""
    ENDS_MPS = auto()
    """Correcting the situation restarts the node's MPS control daemon, which ends its clients."""
    RETRIED = auto()
    """A new value of gpusharing.dev/retry on the Node ends the situation at once."""
    NOT_RETRIED = auto()
    """The node is held until a person has examined the fence itself, even if a retry is requested."""
    ANSWER = auto()
    """A response to an eviction or deletion that is worth remembering. After a lost connection, the next LIST shows
    what happened."""
    FORCIBLE = auto()
    """A response after which a DELETE may follow. A budget refused the eviction, or the server could not decide."""
    DENIED = auto()
    """A response that only a person can change and that no DELETE overrides."""


_PERSON, _LATER, _SOON, _DONE = Passes.BY_A_PERSON, Passes.LATER, Passes.SOON, Passes.DONE


class Reason(StrEnum):
    """All reasons, by group. The attributes are the columns of the reason's row.

    A reason is never removed or given a second meaning. Reasons with the same `passes` are defined in order, the
    longest first.
    """

    _value_: str
    group: Group
    passes: Passes
    keeper: Keeper
    """The object or program that keeps a node with this reason waiting."""
    marks: frozenset[Mark]
    urgency: tuple[Passes, int]
    """Sort key that puts reasons that need a person first, then the reasons that last longest."""
    when: str
    remedy: str
    """What a person should do next. Empty if there is nothing to do."""

    def __new__(
        cls, columns: tuple[str, Group, Passes, Keeper, *tuple[Mark, ...]], when: str, remedy: str = ""
    ) -> Self:
        member = str.__new__(cls, columns[0])
        member._value_, member.group, member.passes, member.keeper = columns[:4]
        member.marks = frozenset(columns[4:])
        member.urgency = member.passes, len(cls.__members__)
        member.when, member.remedy = when, remedy
        return member

    @property
    def waiting_phase(self) -> Phase:
        return Phase.PENDING if Mark.PENDING in self.marks else Phase.BLOCKED

    # A row: word, group, passes, keeper, marks; then when it is used, and the remedy. Formatted, it would be longer.
    # fmt: off
    # --- Node: why a node is where it is
    FENCE_UNREADABLE = (("FenceUnreadable", "Node", _PERSON, "node", Mark.EVENT, Mark.NOT_RETRIED),
        "The operator cannot read the Node, or the annotation gpusharing.dev/fence on it, so it leaves the node as it "
        "is. The message says which.",
        "For the annotation: check the GPUs. With the right to patch Nodes, remove gpusharing.dev/fence and what it "
        "added, and uncordon. For the Node: report a bug, with the operator's log.")
    ORPHAN_FENCE = (("OrphanFence", "Node", _PERSON, "node", Mark.EVENT, Mark.NOT_RETRIED),
        "The node was past the point of no return when its policy was deleted or its Node object was recreated. It "
        "stays cordoned because its layout is unproven.",
        "Create a policy that selects the node; the operator then finishes the change. Or check the node's GPUs "
        "and run the command in the message, which needs the right to patch Nodes and lifts the operator's cordon.")
    ACTUATOR_FAILED = (("ActuatorFailed", "Node", _PERSON, "mig-manager", Mark.TURNS_BACK),
        "mig-manager reported that it could not apply the configuration, so the node stays cordoned.",
        "Read the log of the mig-manager pod on the node, then set gpusharing.dev/retry on the GPUNode to a new value.")
    ACTUATOR_STUCK = (("ActuatorStuck", "Node", _PERSON, "mig-manager", Mark.TURNS_BACK),
        "mig-manager or the device plugin did not finish in time, and restarting the pod did not help.",
        "Read the log of the mig-manager pod on the node, then set gpusharing.dev/retry on the GPUNode to a new value.")
    KEPT_GPUS_CHANGED = (("KeptGPUsChanged", "Node", _PERSON, "pods", Mark.EVENT),
        "A change that was to empty some of the node's GPUs has touched another one, or what a pod holds there, so the "
        "node stays cordoned. The message names the GPUs and the pods that may be affected.",
        "Check those pods. Then set gpusharing.dev/retry on the GPUNode to gpu-pods, which drains the pods of all GPUs.")
    INTERNAL_ERROR = (("InternalError", "Node", _PERSON, "kube-apiserver", Mark.ANSWER, Mark.DENIED),
        "The API server rejected a request from the operator as malformed, and repeating the request would not help.",
        "Report this message. It points to a bug in this operator or in an admission webhook.")
    NODE_NOT_JUDGED = (("NodeNotJudged", "Node", _PERSON, "node"),
        "The planner hit an unexpected error on this node, so the operator leaves the node exactly as it is. Other "
        "nodes are not affected.",
        "Report this message as a bug in this operator. Undoing the last edit of the Node may help.")
    DRIVER_UPGRADE_FAILED = (("DriverUpgradeFailed", "Node", _PERSON, "foreign", Mark.STALLS, Mark.STATUS, Mark.EVENT),
        "NVIDIA's driver upgrade failed on the node (label nvidia.com/gpu-driver-upgrade-state is upgrade-failed). It "
        "does not go on until the driver pod there is up to date and Ready, or a person starts it again, so the operator "
        "does not start a change.",
        "Repair the driver pod on the node, then run the command in the message.")
    FOREIGN_MAINTENANCE = (("ForeignMaintenance", "Node", _PERSON, "foreign"),
        "Another controller is maintaining the node, or has been asked to: its marker or NodeMaintenance "
        "object takes precedence over the change.",
        "Let that maintenance finish. The change starts automatically when the marker or object is gone.")
    ALREADY_CORDONED = (("AlreadyCordoned", "Node", _PERSON, "node"),
        "Someone else cordoned the node, so the operator does not touch it.",
        "Uncordon the node once you are ready for the operator to change it.")
    UNSAFE_DRIVER = (("UnsafeDriver", "Node", _PERSON, "GPUs", Mark.TURNS_BACK),
        "The node's driver is unsafe: repartitioning GPUs can corrupt data or hang a GPU (CVE-2026-24197), pods hang on"
        " nodes that have both MIG instances and whole GPUs, or an administrator has listed the driver as unsafe.",
        "Update the driver to the version in the message. To accept the risk instead, set the chart value "
        "operator.refuseUnsafeDrivers to false.")
    OPERANDS_DISABLED = (("OperandsDisabled", "Node", _PERSON, "node"),
        "An nvidia.com/gpu.deploy.* label keeps the device plugin or GPU Feature Discovery off the node, or mig-manager "
        "although MIG has to be changed there. A change could neither take effect nor be proven, so the operator does "
        "not start one.",
        "Run the command in the message if the node should serve GPUs, or narrow the node selector.")
    FOREIGN_DEVICE_PLUGIN = (("ForeignDevicePlugin", "Node", _PERSON, "foreign"),
        "A device plugin from HAMi, Volcano, OpenShift or a cloud provider serves the node's GPUs. It ignores the labels that "
        "this operator writes, so a change could neither take effect nor be proven. The operator does not start one.",
        "Follow the instructions in the message to hand the node over to NVIDIA's plugin, or narrow the node selector.")
    DIVIDED_ELSEWHERE = (("DividedElsewhere", "Node", _PERSON, "foreign"),
        "The GPUs have MIG instances that neither the node's configuration nor an earlier proof explains, and a pod "
        "runs with devices of another device plugin. A change would remove what that pod may run on, so none starts.",
        "Find out what makes the instances, and exclude the node from the policy; or run the command in the message.")
    WORKLOAD_CONFIG = (("WorkloadConfig", "Node", _PERSON, "node", Mark.UNSUPPORTED),
        "The label nvidia.com/gpu.workload.config reserves the node's GPUs for virtual machines. The operator does not "
        "start a change.",
        "Run the command in the message if the node should run containers, or narrow the node selector.")
    ACTUATOR_MISSING = (("ActuatorMissing", "Node", _PERSON, "mig-manager"),
        "No ready mig-manager pod runs on the node, so nothing could apply the change. With NVIDIA's DRA driver, its "
        "pod or a DeviceClass may be missing instead.",
        "Check the DaemonSet that the message names, its node selector and its pods.")
    MPS_NOT_SWITCHABLE = (("MPSNotSwitchable", "Node", _PERSON, "device-plugin", Mark.TURNS_BACK),
        "With device plugin 0.18.2 or later, the GPU Operator's MPS daemon starts with the fallback configuration, and "
        "config-manager cannot notify it afterwards. The daemon would never read the configuration that the node's "
        "label names, so the operator does not start a change to MPS.",
        "With device plugin v0.20 or later, set PROCESS_TO_SIGNAL of config-manager to the daemon's name, as the "
        "message shows. This restarts all MPS daemons and ends their clients. Or choose another mode. A node past its "
        "point of no return stays cordoned until you do, or is rolled back if rollout.onFailure is Rollback.")
    TAINT_NOT_TOLERATED = (("TaintNotTolerated", "Node", _PERSON, "ClusterPolicy"),
        "The node has the taint gpusharing.dev/unproven, and at least one of these does not tolerate it: the agent,"
        " NVIDIA's pods or the Node Feature Discovery worker. Until all of them run there, the node cannot be proven"
        " and keeps the taint.",
        "Run the command in the message.")
    MPS_DAEMON_NOT_READY = (("MPSDaemonNotReady", "Node", _PERSON, "mps-control-daemon", Mark.TURNS_BACK),
        "The node is to leave MPS, but its MPS daemon does not run. Only a daemon that ends cleanly sets the GPUs back "
        "from compute mode EXCLUSIVE_PROCESS, so the operator does not start the change.",
        "Restart the daemon's pod, or reset the GPUs, with the commands in the message.")
    AGENT_NOT_READY = (("AgentNotReady", "Node", _PERSON, "agent"),
        "No ready agent pod runs on the node, so a change could not be proven. The operator does not start one.",
        "Check the gpu-sharing-operator agent's pod on the node.")
    AGENT_REFUSED = (("AgentRefused", "Node", _PERSON, "agent"),
        "The API server rejects the pods of the agent's DaemonSet because of PodSecurity, a missing RuntimeClass, a "
        "quota or a webhook. The message quotes the response. The operator does not start a change on the node.",
        "Run the command in the message, or fix the cause that it names.")
    AGENT_NOT_STARTED = (("AgentNotStarted", "Node", _PERSON, "agent"),
        "The agent's pod on the node does not start: its image cannot be pulled or is for another architecture, the "
        "container runtime rejects it, or the container exits at once. The operator does not start a change.",
        "Fix the cause that the message names.")
    AGENT_ERROR = (("AgentError", "Node", _PERSON, "agent"),
        "The agent is running but cannot read the GPUs. The message quotes the error.",
        "Check the NVIDIA driver on the node, for example with nvidia-smi.")
    AGENT_LACKS_RIGHTS = (("AgentLacksRights", "Node", _PERSON, "agent"),
        "NVML does not let the agent's container read the MIG instances or the compute mode, which the operator needs "
        "to prove a layout.",
        "Grant the agent's container the same rights as NVIDIA's own operands (docs/reference/agent-fields.md).")
    INSTANCES_LEFT = (("InstancesLeft", "Node", _PERSON, "GPUs"),
        "A GPU has MIG instances without a compute instance, as nvidia-smi mig -dci leaves them. No pod can use them, and "
        "mig-parted, which looks at compute instances only, would leave them or fail because of them. The operator does "
        "not start a change.",
        "Run the command in the message on the node. It disturbs no pod.")
    CONFIG_NOT_WRITTEN = (("ConfigNotWritten", "Node", _PERSON, "ConfigMap"),
        "The API server rejects the ConfigMap that the node needs. The message quotes its response.",
        "Grant the permission that the message names, or fix what the API server rejects.")
    SUPERSEDED = (("Superseded", "Node", _PERSON, "policy"),
        "The policy does not own the node, or no longer does: another policy has a higher priority or owned the node "
        "first, or the node selector no longer matches.",
        "Narrow one of the two node selectors, or give this policy a strictly higher priority.")
    FROZEN = (("Frozen", "Node", _PERSON, "policy", Mark.PENDING),
        "rollout.maxUnavailable is 0 or invalid, so the operator does not start a change.",
        "Set rollout.maxUnavailable to a number or a percentage above 0.")
    PAUSED = (("Paused", "Node", _PERSON, "policy", Mark.PENDING),
        "rollout.paused or the chart's value paused is set, or the ConfigMap gpusharing-stop exists, so no further "
        "change will start. rollout.whenPaused decides what happens to nodes in flight; the ConfigMap ends their "
        "changes.",
        "Set rollout.paused to false, or end what the message names: the chart's value paused, or the ConfigMap "
        "gpusharing-stop in the operator's namespace, by deleting it.")
    HALTED = (("Halted", "Node", _PERSON, "policy"),
        "The number of nodes that failed after the point of no return in this revision of the policy has reached "
        "rollout.maxFailures. No further change will start.",
        "Find out why the nodes failed (status.failures). Then run the command in the message, raise "
        "rollout.maxFailures, or change what the policy asks for. Other edits, such as a pause, do not end a halt.")
    APPROVAL_NEEDED = (("ApprovalNeeded", "Node", _PERSON, "policy", Mark.PENDING),
        "rollout.approval is Manual, and the current plan has not been approved.",
        "Review status.plan, then run the command in the message.")
    ROLLED_BACK = (("RolledBack", "Node", _PERSON, "node", Mark.STALLS, Mark.STATUS, Mark.EVENT, Mark.RETRIED),
        "The change failed after the point of no return, and the node was rolled back to its last proven layout "
        "(rollout.onFailure is Rollback). The node serves that layout, counts as failed, and is not tried again in "
        "this revision of the policy.",
        "Fix the cause that the message names, then run the command in the message, or change what the policy asks "
        "for.")
    SKIP_LABEL = (("SkipLabel", "Node", _PERSON, "node"),
        "The Node has the label gpusharing.dev/skip, with true or any other value but false, so the operator does not "
        "change it. The node still counts as part of its pool.",
        "Run the command in the message once you are ready for the operator to change the node.")
    LABEL_OWNED_ELSEWHERE = (("LabelOwnedElsewhere", "Node", _PERSON, "node", Mark.TURNS_BACK),
        "Another controller manages the label that the change would write, nvidia.com/mig.config or "
        "nvidia.com/device-plugin.config, and would restore its own value. The operator does not start a change.",
        "Follow the instructions in the message, for example by removing the label from a NodeFeatureRule.")
    NEEDS_ATTENTION = (("NeedsAttention", "Node", _PERSON, "node", Mark.RETRIED),
        "Five or more attempts were abandoned before anything changed. The operator will try again after a delay. "
        "Other nodes are not affected.",
        "Remove what blocked the node (see the message). To start the next attempt at once, set gpusharing.dev/retry "
        "on the GPUNode to a new value.")
    INVALID_WINDOW = (("InvalidWindow", "Node", _PERSON, "policy"),
        "A schedule or time zone in rollout.windows or rollout.blackouts is invalid, so the operator does not start a "
        "change.",
        "Correct the field that the message names.")
    WINDOW_TOO_SHORT = (("WindowTooShort", "Node", _PERSON, "policy"),
        "No window is open long enough for a change, which may take drain.timeout plus the duration of the slowest of "
        "the last 20 changes.",
        "Lengthen a window or shorten drain.timeout. If the message names the blackouts, shorten those.")
    CANARY_TOO_LARGE = (("CanaryTooLarge", "Node", _PERSON, "policy"),
        "rollout.canary asks for more nodes than the pool has, so the canary could never be proven. The operator does "
        "not change any node in service.",
        "Lower rollout.canary.nodes as the message says, or add nodes to the pool.")
    CANARY_NOT_SERVING = (("CanaryNotServing", "Node", _PERSON, "policy"),
        "A canary, one of the nodes that were changed first (rollout.canary), no longer serves the layout that was "
        "proven there: it is not Ready, is cordoned, has drifted, or has an unhealthy GPU. Until that is resolved,"
        " the operator changes no other node, but it corrects a canary that has drifted.",
        "Check the node that the message names. The rollout continues when the node serves its layout again or has "
        "left the pool. Once the policy asks for something else, it starts with new canaries.")
    DRIFT_RETURNED = (("DriftReturned", "Node", _PERSON, "node", Mark.STALLS, Mark.STATUS, Mark.EVENT, Mark.RETRIED),
        "The node drifted again after the operator had corrected it in this revision of the policy. Something else "
        "keeps changing it.",
        "Stop the program that writes the node's label nvidia.com/mig.config or nvidia.com/device-plugin.config; the "
        "message names its field manager if it is known. Then set gpusharing.dev/retry on the GPUNode to a new value.")
    CORDON_KEPT = (("CordonKept", "Node", _PERSON, "node", Mark.EVENT),
        "The operator has finished with the node but leaves it cordoned, because a person or another controller also "
        "needs the cordon, gpusharing.dev/hold-cordon is set, or gpusharing.dev/force-release released the node as it "
        "was.",
        "Uncordon the node once nobody else needs the cordon.")
    CALL_FAILED = (("CallFailed", "Node", _LATER, "kube-apiserver", Mark.EVENT, Mark.NO_BLOCKER_EVENT),
        "A call to the API server about this node is failing; the message quotes the response. Other nodes are not "
        "affected. After the point of no return, the node becomes Failed when its deadline passes.",
        "Fix the cause that the message names, for example an admission webhook, a missing permission or a corrupt "
        "object. The call is retried automatically.")
    NODE_UNREACHABLE = (("NodeUnreachable", "Node", _LATER, "kubelet"),
        "The kubelet does not respond, so it is unknown whether the pods on the node are still running.",
        "Bring the node back online, or delete the Node object if the machine is gone.")
    NODE_NOT_READY = (("NodeNotReady", "Node", _LATER, "kubelet"),
        "The node is not Ready, or its Node object is being deleted. The operator neither starts nor proves a change "
        "on it.",
        "Find out why with kubectl describe node.")
    UNCORDONED_EXTERNALLY = (("UncordonedExternally", "Node", _LATER, "node"),
        "Someone uncordoned the node before the point of no return, so the change was abandoned and the node restored.",
        "No action is needed if that was intended. The next attempt starts after a delay, or at once if "
        "gpusharing.dev/retry on the GPUNode is set to a new value.")
    CORDON_RESTORED = (("CordonRestored", "Node", _SOON, "operator", Mark.EVENT, Mark.PAST_RETURN),
        "Someone uncordoned the node after the point of no return. The operator cordoned it again, because the layout "
        "is unproven.",
        "Wait until the layout is proven; the operator then uncordons the node. If someone uncordons it earlier, the "
        "operator cordons it again.")
    DEVICE_TAINT_FAILED = (("DeviceTaintFailed", "Node", _SOON, "operator", Mark.EVENT),
        "The node was fenced by a DeviceTaintRule that does not keep every GPU pod off it. The operator cordons it.",
        "Remove the cause in the message, or set the chart value dra.deviceTaints to false.")
    DRAIN_TIMEOUT = (("DrainTimeout", "Node", _LATER, "pods"),
        "The drain took longer than drain.timeout, so the node was restored. Pods that were already evicted are not "
        "moved back.",
        "Remove what blocked the drain (see the message). The next attempt starts automatically after a delay.")
    JOBS_TIMEOUT = (("JobsTimeout", "Node", _LATER, "pods"),
        "Pods that should run to completion took longer than drain.jobs.timeout or their rule's timeout, so the node "
        "was restored.",
        "Raise the timeout, set drain.jobs.onTimeout to Evict, or delete the pods yourself. The next attempt starts"
        " automatically after a delay.")
    GPU_STILL_BUSY = (("GPUStillBusy", "Node", _LATER, "GPUs", Mark.EVENT),
        "No pod has a GPU allocated any more, but a process on the node is still using one.",
        "End that process on the node. It does not belong to a pod that requested a GPU.")
    WIDER_DRAIN_NEEDED = (("WiderDrainNeeded", "Node", _LATER, "GPUs", Mark.EVENT),
        "A change has begun, and what is seen of the node now, or asked for since, would disturb more pods than it may. No "
        "label is written and no pod is evicted until that is over or the deadline ends the change.",
        "No action is needed if the message names something that passes. If the node is Failed, its message has the "
        "command for another try, and one for a try that empties more of the node, which says so in its value.")
    ROLLING_BACK = (("RollingBack", "Node", _LATER, "mig-manager", Mark.PAST_RETURN),
        "The change failed after the point of no return, and the node is being rolled back to its last proven layout "
        "(rollout.onFailure is Rollback). It stays cordoned until that layout is proven again.",
        "No action is needed now. If the rollback fails too, the node stays cordoned as Failed, and its message shows "
        "the command for another attempt.")
    DEFERRED = (("Deferred", "Node", _LATER, "node", Mark.PENDING, Mark.RETRIED),
        "An earlier attempt was abandoned before anything changed. The operator will try again after a delay.",
        "Remove what blocked the node (see the message). To start the next attempt at once, set gpusharing.dev/retry "
        "on the GPUNode to a new value.")
    BUDGET_FULL = (("BudgetFull", "Node", _LATER, "policy"),
        "No further node may become unavailable: rollout.maxUnavailable or the operator-wide cap is reached, or the "
        "operator's own pod needs one of the last schedulable nodes.",
        "Wait, or raise the limit that the message names.")
    WAITS_FOR_WAVE = (("WaitsForWave", "Node", _LATER, "policy"),
        "The node is proven and is waiting to return to service together with the other nodes that ran the same gang, "
        "so that other pods cannot occupy part of the space that the gang needs. It waits for at most "
        "rollout.timeouts.verification.")
    ABORT_REQUESTED = (("AbortRequested", "Node", _LATER, "node"),
        "Someone asked the operator to abandon this change before the point of no return (gpusharing.dev/abort).",
        "No action is needed: the operator will try again after a delay. To prevent that, set the "
        "annotation gpusharing.dev/skip=true on the GPUNode.")
    CANARY_SOAK = (("CanarySoak", "Node", _LATER, "policy", Mark.PENDING),
        "The first nodes of the change (rollout.canary) are not all proven, or have not served for the soak time.",
        "Wait until they are proven and have served for the soak time.")
    WINDOW_CLOSED = (("WindowClosed", "Node", _LATER, "policy", Mark.PENDING),
        "The operator does not start a change now, because the current time is outside rollout.windows or within "
        "rollout.blackouts, or too little of the window is left.",
        "Wait until the time in the message, or change rollout.windows or rollout.blackouts.")
    ACTUATOR_BUSY = (("ActuatorBusy", "Node", _LATER, "mig-manager"),
        "mig-manager is still working on an earlier configuration, or is rebooting the node.")
    DRIFTED = (("Drifted", "Node", _LATER, "node", Mark.PENDING, Mark.STATUS, Mark.EVENT, Mark.RETRIED),
        "The node no longer has its last proven layout. The operator corrects this once, as a normal change.")
    CONFIG_PROPAGATING = (("ConfigPropagating", "Node", _SOON, "kubelet", Mark.PENDING),
        "The ConfigMap was written a moment ago and may not have reached the node yet, or the DeviceClass that the "
        "message names is about to be created.")
    ACTUATION_IN_PROGRESS = (("ActuationInProgress", "Node", _SOON, "mig-manager"),
        "The labels are written, and mig-manager or the device plugin is applying them.")
    OBSERVATION_PENDING = (("ObservationPending", "Node", _SOON, "agent", Mark.PENDING),
        "The agent has not yet answered the latest request, and older readings do not count as proof; or the operator's "
        "data about the cluster is more than 150 s old; or the kubelet offers none of the devices that it counts, as "
        "while the device plugin restarts.")
    MIG_INVALID = (("MigInvalid", "Node", _PERSON, "device-plugin"),
        "No policy owns the node, and its label nvidia.com/gpu.product ends in -MIG-INVALID: strategy single refuses "
        "GPUs that are divided differently, so the device plugin does not start.",
        "Set the strategy to mixed, or divide all GPUs of the node alike.")
    COMPUTE_INSTANCES = (("ComputeInstances", "Node", _PERSON, "mig-manager"),
        "No policy owns the node, and its MIG configuration has compute instances that are smaller than their GPU "
        "instances, such as 1c.3g.40gb. The device plugin exits at these.",
        "Name only profiles of GPU instances in that configuration.")
    MIG_NOT_SERVED = (("MigNotServed", "Node", _PERSON, "device-plugin"),
        "No policy owns the node, and its GPUs have MIG on, but with strategy none the device plugin advertises them "
        "as whole GPUs.",
        "Drain the node, then switch MIG off or set the strategy to mixed.")
    MIG_CONFIG_DIFFERS = (("MigConfigDiffers", "Node", _PERSON, "mig-manager"),
        "No policy owns the node, and its GPUs are divided otherwise than its label nvidia.com/mig.config says, so "
        "mig-manager would change them at its next start.",
        "Set the label to the layout that the GPUs have, with the command that kubectl gpusharing doctor prints.")
    MIG_CONFIG_UNSET = (("MigConfigUnset", "Node", _PERSON, "mig-manager"),
        "No policy owns the node, and its GPUs are divided although it has no label nvidia.com/mig.config.",
        "Set the label to the layout that the GPUs have, with the command that kubectl gpusharing doctor prints.")
    SETTLING = (("Settling", "Node", _SOON, "operator"),
        "Either the node was cordoned a moment ago, and pods that the scheduler was binding may still appear, or the "
        "operator is listing the node's pods once more before it treats them as gone.")
    ADOPTABLE = (("Adoptable", "Node", _SOON, "operator"),
        "The node already has the layout that the policy asks for, so the operator adopts it without disruption.")
    PRODUCT_SKIPPED = (("ProductSkipped", "Node", _DONE, "", Mark.OUTSIDE),
        "The node's card is not listed in spec.products, so the operator leaves the node alone.",
        "Add the product to spec.products if it belongs to the pool.")
    UNOWNED = (("Unowned", "Node", _DONE, ""),
        "No policy selects the node, so it keeps its current layout.")
    SYNCED = (("Synced", "Node", _DONE, ""),
        "The node has the layout that its policy asks for, and this has been proven. Also used as the reason for "
        "Ready=True on a policy.")

    # --- Hardware: what is wanted does not suit the card
    NO_GPU = (("NoGPU", "Hardware", _PERSON, "GPUs", Mark.OUTSIDE, Mark.UNSUPPORTED),
        "The node has no NVIDIA GPU.",
        "Narrow the node selector, or check the driver if the node should have a GPU.")
    HARDWARE_UNKNOWN = (("HardwareUnknown", "Hardware", _PERSON, "GPUs", Mark.UNSUPPORTED),
        "Neither the driver nor the operator's own table shows what this card supports, so a layout cannot be checked.",
        "Update the driver, or use a card that is listed in docs/reference/gpus.md, which also says how to add one.")
    NOT_MIG_CAPABLE = (("NotMigCapable", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "The policy asks for MIG, but the card does not support it.",
        "Narrow the node selector, name the right cards in spec.products, or choose another mode.")
    PROFILE_NOT_SUPPORTED = (("ProfileNotSupported", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "The card does not support a MIG profile that the policy asks for. The message lists the profiles that it does "
        "support.",
        "Use a profile that the card supports.")
    LAYOUT_DOES_NOT_FIT = (("LayoutDoesNotFit", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "The card supports each of the profiles, but they do not fit on one GPU together. The message shows the "
        "nearest layout that does.",
        "Use the layout in the message or another one that fits.")
    LAYOUT_INCOMPLETE = (("LayoutIncomplete", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "spec.mig.layouts does not list every GPU on the node, and mig-manager would leave the others as they are.",
        "List the index of every GPU, or leave devices out to mean all GPUs.")
    LAYOUT_TOO_MANY_GPUS = (("LayoutTooManyGPUs", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "spec.mig.layouts names a GPU index that the node does not have.",
        "Remove the index, or keep such nodes out of the pool.")
    LAYOUT_NOT_UNIFORM = (("LayoutNotUniform", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "Strategy single requires the same profile on every GPU of the node.",
        "Use strategy mixed, or one profile on all GPUs.")
    LAYOUT_EMPTY = (("LayoutEmpty", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "The MIG configuration turns MIG on but creates no MIG instances, so pods could not use the GPU.",
        "Choose a MIG configuration that creates MIG instances, or use mode Full.")
    MPS_TOO_MANY_CLIENTS = (("MPSTooManyClients", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "spec.mps.replicas is higher than the device plugin allows on this card: 48, or 16 below compute capability "
        "7.5.",
        "Lower spec.mps.replicas.")
    GPU_MISSING = (("GPUMissing", "Hardware", _PERSON, "GPUs"),
        "NVML lists fewer GPUs than at the node's last proof. A GPU did not come back after a reboot, or was removed.",
        "Check dmesg on the node and repair the node, or run the command in the message if the GPU was removed for "
        "good.")
    CARD_DIFFERS = (("CardDiffers", "Accepted", _DONE, ""),
        "The MIG profiles that the card reports differ from those in the operator's table. The operator uses what the "
        "card reports.",
        "No action is needed on the cluster. Please report this message to the project, so that the operator's table "
        "can be corrected.")
    PROFILES_FROM_TABLE = (("ProfilesFromTable", "Accepted", _DONE, ""),
        "The driver lists no MIG profiles for the card, so the operator uses those in its own table "
        "(docs/reference/gpus.md).",
        "No action is needed unless a layout that should fit is rejected. In that case, update the driver.")
    FORCE_DELETE_OFF = (("ForceDeleteOff", "Accepted", _DONE, ""),
        "drain.onTimeout is ForceDelete, but the operator is not allowed to delete pods, so the setting is treated as "
        "Abort: at drain.timeout the node is restored, and no pod is deleted.",
        "To allow it to delete pods at the end of a drain, run the command in the message. Otherwise set "
        "drain.onTimeout to Abort.")
    MIG_MODE_PENDING = (("MigModePending", "Hardware", _PERSON, "GPUs", Mark.TURNS_BACK),
        "The current MIG mode of a GPU differs from the mode that takes effect at its next reset (Ampere), and this "
        "operator did not cause the difference.",
        "Reset the GPU or reboot the node.")
    COMPUTE_MODE = (("ComputeMode", "Hardware", _PERSON, "GPUs", Mark.TURNS_BACK),
        "GPUs are not in compute mode Default, because an MPS daemon was killed and left EXCLUSIVE_PROCESS behind.",
        "Run the command in the message on the node; it resets all of these GPUs.")

    # --- Health: GPUUnhealthy on the node, the others on the GPUNode condition Healthy (planning/gpus/health.py)
    GPU_UNHEALTHY = (("GPUUnhealthy", "Health", _PERSON, "GPUs"),
        "A GPU on the node is unhealthy, so the operator does not reconfigure the node and leaves its pods alone.",
        "Follow the instructions in the message. The change starts automatically when the GPU is healthy again.")
    GPU_LOST = (("GPULost", "Health", _PERSON, "GPUs"),
        "A GPU fell off the bus (NVML: GPU is lost).", "Drain and reboot the node.")
    GPU_UNREADABLE = (("GPUUnreadable", "Health", _PERSON, "GPUs", Mark.MOMENTARY),
        "NVML returns an error for one GPU (for example about its power or its interrupt) but can read the others.",
        "Check dmesg on the node, repair the cause, then reboot the node.")
    GPU_RESET_REQUIRED = (("GPUResetRequired", "Health", _PERSON, "GPUs"),
        "NVML denies access to a GPU until it is reset.", "Drain the node, then reset the GPU or reboot the node.")
    ROW_REMAP_FAILED = (("RowRemapFailed", "Health", _PERSON, "GPUs"),
        "A memory row could not be remapped.", "Replace the card.")
    RECOVERY_NEEDED = (("RecoveryNeeded", "Health", _PERSON, "GPUs"),
        "The driver recommends a recovery action for a GPU (NVML field 230).",
        "Follow the instructions in the message.")
    ROW_REMAP_PENDING = (("RowRemapPending", "Health", _PERSON, "GPUs"),
        "A memory row remapping is pending and needs a GPU reset.",
        "Drain the node, then reset the GPU or reboot the node.")
    XID_SEEN = (("XIDSeen", "Health", _PERSON, "GPUs"),
        "The agent received a critical XID error, and the driver is too old (before R565) to recommend a recovery "
        "action.",
        "Drain the node, reset the GPU or reboot the node, then delete the agent's pod.")
    ECC_UNCORRECTED = (("ECCUncorrected", "Health", _PERSON, "GPUs"),
        "A GPU has had uncorrected ECC errors since the driver was loaded.",
        "Drain the node, then reset the GPU or reboot the node.")
    DEVICE_UNHEALTHY = (("DeviceUnhealthy", "Health", _PERSON, "GPUs"),
        "NVML reports no problem, but the device plugin calls devices of the node unhealthy: allocatable is smaller "
        "than capacity. The node keeps serving the others, and is neither drained nor changed.",
        "Read the log of the device plugin on the node and repair the cause. Then restart the plugin's pod.")
    NO_TROUBLE = (("NoTrouble", "Health", _DONE, ""),
        "Neither NVML nor the device plugin reports a problem with any GPU of the node.")

    # --- Proof: what does not agree yet after a change, or no longer does
    OPERANDS_PAUSED = (("OperandsPaused", "Proof", _LATER, "mig-manager", Mark.TURNS_BACK),
        "mig-manager left NVIDIA's operands paused (label nvidia.com/gpu.deploy.* = paused-for-mig-change).",
        "Wait. The operator restarts mig-manager, which usually resumes the operands.")
    MPS_NOT_RUNNING = (("MPSNotRunning", "Proof", _LATER, "mps-control-daemon", Mark.TURNS_BACK, Mark.ENDS_MPS),
        "The GPUs are not in compute mode EXCLUSIVE_PROCESS, so the MPS control daemon does not serve them. Or they are, "
        "but the daemon that left them so does not run, and no MPS client can start.",
        "If this persists, check the pods with the label app=nvidia-device-plugin-mps-control-daemon.")
    LAYOUT_MISMATCH = (("LayoutMismatch", "Proof", _LATER, "GPUs", Mark.TURNS_BACK),
        "The agent reports that the GPUs are not partitioned as the policy specifies.")
    ALLOCATABLE_MISMATCH = (("AllocatableMismatch", "Proof", _LATER, "device-plugin", Mark.TURNS_BACK, Mark.ENDS_MPS),
        "The node does not advertise the resource names and counts that the mode requires. With NVIDIA's DRA driver, "
        "its ResourceSlices list other devices.",
        "If this persists, read the log of the device plugin on the node. If the plugin read its configuration while "
        "someone was editing it, delete its pod so that it reads the configuration again.")
    LABEL_MISMATCH = (("LabelMismatch", "Proof", _LATER, "gpu-feature-discovery", Mark.TURNS_BACK, Mark.ENDS_MPS),
        "The labels set by GPU Feature Discovery do not match what the mode requires.",
        "If this persists, read the log of gpu-feature-discovery on the node.")

    # --- Drain: why a pod does not leave; if one is known before the cordon, the node is not cordoned
    PDB_CONFLICT = (("PDBConflict", "Drain", _PERSON, "pods"),
        "Two PodDisruptionBudgets select the pod, and the API server rejects every eviction of such a pod.",
        "Change the selectors so that only one PodDisruptionBudget selects the pod.")
    PDB_NEVER_ALLOWS = (("PDBNeverAllows", "Drain", _PERSON, "pods"),
        "The PodDisruptionBudget allows no disruption even when every pod is healthy.",
        "Scale the workload up, or set the PodDisruptionBudget's maxUnavailable to at least 1 and remove its "
        "minAvailable (null in a patch), because the API server accepts only one of the two.")
    UNMANAGED = (("Unmanaged", "Drain", _PERSON, "pods"),
        "The pod has no controller that would start it elsewhere, so an eviction would delete it for good.",
        "Delete the pod yourself, or set drain.unmanagedPods to Evict.")
    GPU_DAEMON_SET = (("GPUDaemonSet", "Drain", _PERSON, "pods"),
        "A DaemonSet that is not part of the GPU Operator uses a GPU, and an evicted pod would come straight back.",
        'Set the node selector nvidia.com/gpu.deploy.client: "true" on the DaemonSet, or keep it off the node.')
    STATIC_GPU_POD = (("StaticGPUPod", "Drain", _PERSON, "pods"),
        "A static pod uses a GPU, and deleting it through the API does not stop it.",
        "Remove the pod's manifest from the node.")
    DRA_CLAIM = (("DRAClaim", "Drain", _PERSON, "pods"),
        "The pod has a ResourceClaim that cannot be read, or it uses a GPU through a ResourceClaim for the "
        "gpu.nvidia.com driver in a cluster where the device plugin manages the GPUs. The operator does not change the "
        "node while the pod is there.",
        "Delete or move the pod yourself. Let either the device plugin or NVIDIA's DRA driver manage the GPUs in a "
        "cluster, not both.")
    PROTECTED_NAMESPACE = (("ProtectedNamespace", "Drain", _PERSON, "pods"),
        "The pod is in a namespace where the operator evicts no pods (chart value operator.protectedNamespaces).",
        "Delete or move the pod yourself, or remove its namespace from operator.protectedNamespaces.")
    OWN_POD = (("OwnPod", "Drain", _PERSON, "pods"),
        "All pods have to leave this node, but the operator itself runs on it and never evicts its own pod.",
        "Move the operator to a node outside the pool with operator.nodeSelector or operator.affinity.")
    TOLERATES_CORDON = (("ToleratesCordon", "Drain", _PERSON, "pods"),
        "The pod tolerates the cordon, or its pod template names this node, so its controller would start it here "
        "again after every eviction.",
        "Remove the toleration of node.kubernetes.io/unschedulable, or spec.nodeName, from the pod template of its "
        "controller, or scale the controller down.")
    RULE_BLOCKS = (("RuleBlocks", "Drain", _PERSON, "pods"),
        "A rule in the policy (drain.rules, behavior Block) forbids evicting the pod. The message names the rule.",
        "Wait until the pod is gone, move it yourself, or change the rule.")
    NAMESPACE_UNREADABLE = (("NamespaceUnreadable", "Drain", _PERSON, "pods"),
        "A rule in the policy depends on labels of the pod's namespace, which the operator cannot read, so it leaves "
        "the node alone.",
        "Allow the operator to get namespaces (the chart grants this), or remove namespaceSelector from the rule.")
    LOCAL_STORAGE = (("LocalStorage", "Drain", _PERSON, "pods"),
        "The pod has files in an emptyDir on the node's disk that it would lose, and drain.localStorage is Block.",
        "Save the files that are needed and delete the pod yourself, or set drain.localStorage to Evict.")
    STRANDED_PODS = (("StrandedPods", "Drain", _PERSON, "pods"),
        "Once all planned changes are made, the pod would be unable to start again: no node would advertise the "
        "resource that it requests, too few devices of that resource would remain, the change rewrites a node "
        "label that the pod requires, or the device plugin or KAI-Scheduler would refuse the pod.",
        "Change the pod's request, let its node affinity accept both the old and the new value of the label (operator "
        "In), keep enough of the requested devices on other nodes, or set drain.strandedPods to Allow.")
    DRAIN_HELD = (("DrainHeld", "Drain", _PERSON, "pods", Mark.STALLS, Mark.EVENT),
        "drain.timeout has expired and drain.onTimeout is Hold, so the node stays cordoned and keeps using its slot"
        " while the drain continues.",
        "Remove what blocks the pods (see status.transition.blockers), or run kubectl gpusharing abort NODE "
        "to abandon the change.")
    FORCE_DELETE_FAILED = (("ForceDeleteFailed", "Drain", _PERSON, "kube-apiserver", Mark.ANSWER, Mark.FORCIBLE),
        "drain.onTimeout is ForceDelete, but the API server did not delete the pod. The message quotes its response. "
        "The operator keeps trying as long as the pod's grace period would still end before the drain does.",
        "Fix the cause that the message names, for example a webhook or an admission policy that denies the deletion.")
    TERMINATING_STUCK = (("TerminatingStuck", "Drain", _PERSON, "pods"),
        "The pod should have ended more than 60 s ago but still exists, and may still be using the GPU.",
        "Find out which controller should remove the finalizers that the message names, or why the kubelet cannot "
        "stop the container.")
    FORBIDDEN = (("Forbidden", "Drain", _PERSON, "kube-apiserver", Mark.ANSWER, Mark.DENIED),
        "The API server does not allow the operator to evict the pod.",
        "Grant the permission that the message names, or remove the admission policy that denies the eviction.")
    LIST_FAILED = (("ListFailed", "Drain", _PERSON, "kube-apiserver"),
        "The operator could not list the pods on the node or their PodDisruptionBudgets, so it makes no decision about "
        "the node.",
        "Read the API server's response in the message. The operator lists the pods again in the next pass.")
    EVICTION_ERROR = (("EvictionError", "Drain", _PERSON, "kube-apiserver", Mark.ANSWER, Mark.FORCIBLE),
        "The API server could not decide whether to allow the eviction. The message quotes its response. The operator"
        " keeps trying until drain.timeout, and until then the node keeps using its slot.",
        "Check the PodDisruptionBudget of the pod and the API server's response.")
    DO_NOT_DISRUPT = (("DoNotDisrupt", "Drain", _LATER, "pods"),
        "An annotation or label on the pod asks controllers to leave it alone: do-not-disrupt, safe-to-evict or "
        "cluster.x-k8s.io/drain. As long as the pod is protected, the node is not cordoned.",
        "Wait until the pod ends or its protection expires, remove the annotation or label, or set drain.protectedPods "
        "to Ignore.")
    JOBS_RUNNING = (("JobsRunning", "Drain", _LATER, "pods", Mark.NO_BLOCKER_EVENT),
        "The node is cordoned, and the drain waits for pods that run to completion: those of Jobs, and those that a "
        "rule with WaitCompleted matches. Until they are done, no other pod with the same order is evicted.",
        "No action is needed. drain.jobs.timeout and the rule's timeout limit the wait, and drain.jobs.onTimeout "
        "decides what happens then.")
    PDB = (("PDB", "Drain", _LATER, "pods", Mark.ANSWER, Mark.FORCIBLE),
        "The PodDisruptionBudget currently allows no disruption.",
        "Get the unready pods running again or allow their eviction (unhealthyPodEvictionPolicy: AlwaysAllow), scale "
        "the workload up, or let the PodDisruptionBudget allow more disruptions.")
    PDB_NOT_OBSERVED = (("PDBNotObserved", "Drain", _LATER, "pods", Mark.FORCIBLE),
        "The PodDisruptionBudget changed more than 60 s ago, and its controller has not processed the change yet.",
        "If this persists, check kube-controller-manager.")
    GRACE_TOO_LONG = (("GraceTooLong", "Drain", _LATER, "pods"),
        "A PodDisruptionBudget blocks the eviction of the pod, and drain.onTimeout ForceDelete does not help, because "
        "the pod's grace period plus a margin (10 s, or a quarter of drain.timeout if that is shorter) is at least as "
        "long as drain.timeout.",
        "Make drain.timeout more than 10 s longer than the pod's terminationGracePeriodSeconds, or let the "
        "PodDisruptionBudget allow the eviction.")
    NAMESPACE_TERMINATING = (("NamespaceTerminating", "Drain", _LATER, "pods", Mark.ANSWER),
        "The pod's namespace is being deleted, and the pod with it.",
        "If this persists, find out what keeps the namespace from being removed.")
    PDB_IN_USE = (("PDBInUse", "Drain", _SOON, "pods", Mark.PENDING, Mark.NO_BLOCKER_EVENT),
        "The operator's own evictions use up the PodDisruptionBudget: those of nodes that are drained first, or of pods "
        "that are being replaced. A replacement that is not Ready after ten minutes counts as broken, and the reason "
        "is then PDB.")
    HOLDER_UNKNOWN = (("HolderUnknown", "Drain", _SOON, "agent", Mark.PENDING, Mark.NO_BLOCKER_EVENT),
        "Only some of the node's GPUs are to be emptied, and the agent does not report yet which GPU the pod holds, so "
        "the pod is not evicted. If this lasts, see the log of the node's agent, or set drain.scope to Node.")
    FORCE_DELETE = (("ForceDelete", "Drain", _SOON, "pods", Mark.NO_BLOCKER_EVENT, Mark.ANSWER),
        "drain.timeout is about to expire, the pod's eviction is still blocked, and drain.onTimeout is ForceDelete. "
        "The operator deletes the pod despite its PodDisruptionBudgets, with the pod's own grace period.")
    THROTTLED = (("Throttled", "Drain", _SOON, "kube-apiserver", Mark.ANSWER),
        "The API server asks all clients to slow down; no PodDisruptionBudget is to blame.")
    PODS_LEAVING = (("PodsLeaving", "Drain", _SOON, "pods", Mark.ANSWER),
        "Nothing blocks the drain. Pods are terminating within their grace period.")
    EVICTED = (("Evicted", "Drain", _SOON, "pods", Mark.ANSWER),
        "The API server accepted the eviction. The pod counts as gone once a LIST no longer shows it.")

    # --- Accepted: whether the policy can be carried out at all
    INVALID_SPEC = (("InvalidSpec", "Accepted", _PERSON, "policy"),
        "A field in the policy would be invalid on any cluster. The message names it.",
        "Correct the field.")
    POLICY_NOT_JUDGED = (("PolicyNotJudged", "Accepted", _PERSON, "ClusterPolicy"),
        "The planner hit an unexpected error on this policy, so the operator leaves its nodes exactly as they are. "
        "Other policies are not affected.",
        "Report this message as a bug in this operator. Undoing the last edit of the policy may help.")
    UNSUPPORTED_STACK = (("UnsupportedStack", "Accepted", _PERSON, "ClusterPolicy"),
        "NVIDIA's DRA stack manages the GPUs in this cluster. It lacks something that every change needs, or it does "
        "not support the policy's mode. The message says which.",
        "Run the command in the message. To share a GPU among pods, use nodes whose GPUs the device plugin manages.")
    CLUSTER_POLICY_MISSING = (("ClusterPolicyMissing", "Accepted", _PERSON, "ClusterPolicy", Mark.MOMENTARY),
        "The operator finds neither a ClusterPolicy nor the device plugin from NVIDIA's chart. Either they are not "
        "installed, or the operator cannot see them.",
        "Install the NVIDIA GPU Operator, or set gpuOperator.namespace to the namespace of NVIDIA's device-plugin "
        "chart.")
    SEVERAL_CLUSTER_POLICIES = (("SeveralClusterPolicies", "Accepted", _PERSON, "ClusterPolicy", Mark.MOMENTARY),
        "There are several ClusterPolicies, and the GPU Operator has not reported which of them it ignores.",
        "Remove the ones that you do not want; the message names all of them.")
    SEVERAL_STACKS = (("SeveralStacks", "Accepted", _PERSON, "ClusterPolicy", Mark.MOMENTARY),
        "Two DaemonSets run a device plugin, or two run mig-manager, on the same nodes. One of them does not follow "
        "the operator, or both partition the same GPUs.",
        "Remove the one that you do not want; the message names both.")
    GPU_OPERATOR_ELSEWHERE = (("GPUOperatorElsewhere", "Accepted", _PERSON, "ClusterPolicy", Mark.MOMENTARY),
        "NVIDIA's pods run in another namespace than the chart value gpuOperator.namespace names, so they cannot mount "
        "the operator's ConfigMaps. Nodes in the middle of a change keep their goal and wait.",
        "Set the chart value as the message says, or move the GPU Operator there.")
    PLUGIN_CONFIG_NOT_OURS = (("PluginConfigNotOurs", "Accepted", _PERSON, "ClusterPolicy"),
        "ClusterPolicy devicePlugin.config.name is not set to the operator's ConfigMap, or NVIDIA's software runs in "
        "another namespace.",
        "Run the command in the message once, or set the chart value that it names.")
    CONFIG_MAP_TAKEN = (("ConfigMapTaken", "Accepted", _PERSON, "ConfigMap"),
        "A ConfigMap with a name that the operator uses contains entries that the operator did not create, so the "
        "operator does not write to it.",
        "Run one of the commands in the message to hand the ConfigMap over or to remove it.")
    PLUGIN_DISABLED = (("PluginDisabled", "Accepted", _PERSON, "ClusterPolicy"),
        "ClusterPolicy devicePlugin.enabled is false, so nothing would serve the GPUs after a change. No node is "
        "drained.",
        "Run the command in the message once. If another device plugin serves the GPUs on purpose, delete the policy.")
    FEATURE_DISCOVERY_DISABLED = (("FeatureDiscoveryDisabled", "Accepted", _PERSON, "ClusterPolicy"),
        "ClusterPolicy gfd.enabled is false, and without the labels of GPU Feature Discovery no change could be "
        "proven. No node is drained.",
        "Run the command in the message once.")
    MIG_MANAGER_DISABLED = (("MigManagerDisabled", "Accepted", _PERSON, "ClusterPolicy"),
        "The policy asks for MIG, but ClusterPolicy migManager.enabled is false, so nothing would act on the label "
        "nvidia.com/mig.config.",
        "Run the command in the message once.")
    MIG_MANAGER_MISSING = (("MigManagerMissing", "Accepted", _PERSON, "ClusterPolicy"),
        "The policy asks for MIG, but no mig-manager runs alongside NVIDIA's device-plugin chart.",
        "Install mig-manager v0.15 or newer alongside that chart, or the NVIDIA GPU Operator in its place, or use mode "
        "Full, TimeSlicing or MPS.")
    PLUGIN_NOT_PAUSED = (("PluginNotPaused", "Accepted", _PERSON, "device-plugin"),
        "The policy asks for MIG, but mig-manager cannot pause the device plugin from NVIDIA's chart, which would keep "
        "the GPUs in use during a change.",
        "Label the GPU nodes and run the command in the message once.")
    FEATURE_DISCOVERY_MISSING = (("FeatureDiscoveryMissing", "Accepted", _PERSON, "ClusterPolicy"),
        "NVIDIA's device-plugin chart runs without GPU Feature Discovery, so a change could not be proven. The "
        "operator does not start one.",
        "Run the command in the message once.")
    DRIVER_DISABLED = (("DriverDisabled", "Accepted", _PERSON, "ClusterPolicy", Mark.UNSUPPORTED),
        "The agent finds no NVIDIA driver on a node that advertises no GPUs, and ClusterPolicy driver.enabled is "
        "false. That setting alone is normal where hosts bring their own driver.",
        "Install the driver on the host. If hosts are not meant to bring their own driver, run the command in the "
        "message.")
    TOOLKIT_DISABLED = (("ToolkitDisabled", "Accepted", _PERSON, "ClusterPolicy", Mark.UNSUPPORTED),
        "The container runtime on a node that advertises no GPUs is not configured for NVIDIA's runtime, and "
        "ClusterPolicy toolkit.enabled is false. That setting alone is normal where hosts bring their own NVIDIA "
        "Container Toolkit.",
        "Install the toolkit on the host. If hosts are not meant to bring their own toolkit, run the command in the "
        "message.")
    MIG_STRATEGY_SET = (("MigStrategySet", "Accepted", _PERSON, "ClusterPolicy"),
        "ClusterPolicy mig.strategy is set for the whole cluster and would override the policy's strategy.",
        "Run the command in the message once. If other nodes would lose their MIG devices, the message has no command "
        "but names them and says what to do first.")
    LAYOUTS_NEED_CONFIG_MAP = (("LayoutsNeedConfigMap", "Accepted", _PERSON, "ClusterPolicy"),
        "spec.mig.layouts requires ClusterPolicy migManager.config.name to be set to the operator's ConfigMap.",
        "Run the command in the message once, or use a named configuration in spec.mig.config.")
    CONFIG_UNKNOWN = (("ConfigUnknown", "Accepted", _PERSON, "policy", Mark.UNSUPPORTED),
        "There is no mig-parted configuration with this name for the card. The message lists the names that exist.",
        "Use one of these names, or spec.mig.layouts.")
    PLUGIN_TOO_OLD = (("PluginTooOld", "Accepted", _PERSON, "device-plugin", Mark.UNSUPPORTED, Mark.TURNS_BACK),
        "The device plugin is older than v0.20 and advertises instances of profiles with a suffix (+me, +gfx, -me)"
        " under the profile's name without the suffix, so a pod cannot choose which kind it gets.",
        "Upgrade the device plugin, use profiles without a suffix, or set spec.mig.strategy to single.")
    MIG_MANAGER_TOO_OLD = (("MigManagerTooOld", "Accepted", _PERSON, "mig-manager", Mark.UNSUPPORTED),
        "mig-manager before v0.15 confuses profiles that have the same name on different cards of a node and would "
        "fail. Alongside NVIDIA's device-plugin chart, it also cannot pause the device plugin.",
        "Upgrade mig-manager. Under the GPU Operator, you can instead use a profile that only one card of the node "
        "has, or one that is identical on all of them.")
    APPROVAL_TOO_LARGE = (("ApprovalTooLarge", "Accepted", _PERSON, "policy"),
        "spec.rollout.approval is Manual, and the plan names more nodes than the leader's Lease has room for, about "
        "26,000 over all policies. An approval would be forgotten when the first node is done.",
        "Split the pool into several policies that are approved one after the other, or set approval: Automatic.")
    NO_NODES = (("NoNodes", "Accepted", _LATER, "policy"),
        "The node selector matches no node.",
        "Label the nodes of the pool, or correct spec.nodeSelector.")
    VALID = (("Valid", "Accepted", _DONE, ""),
        "The policy can be applied to every node that it owns.")

    # --- Ready and Reconciling
    NOT_ACCEPTED = (("NotAccepted", "Ready", _PERSON, "policy"),
        "The policy cannot be applied. The Accepted condition explains why.",
        "Fix the problem that the message of the Accepted condition describes.")
    ROLLOUT_IN_PROGRESS = (("RolloutInProgress", "Ready", _SOON, "operator"),
        "Nodes are being changed or are waiting for their turn.")
    DELETING = (("Deleting", "Ready", _SOON, "policy"),
        "The policy is being deleted or is gone. Changes in flight are first finished or rolled back.",
        "To release the policy at once, set the annotation gpusharing.dev/force-release=true on it. Nodes that are "
        "cordoned at that time stay cordoned.")

    # --- Stalled: no progress without a person
    KIND_NOT_SERVED = (("KindNotServed", "Stalled", _PERSON, "kube-apiserver", Mark.STALLS, Mark.STATUS),
        "The CRD of the GPUNodes was deleted, so no agent can report, and the operator can neither start a change nor "
        "prove one. A node in the middle of a change stays as it is.",
        "Install the CRD again with the command in the message. The change goes on by itself.")
    NODES_FAILED = (("NodesFailed", "Stalled", _PERSON, "node"),
        "Nodes failed after the point of no return. They stay cordoned and keep using their slots.",
        "Read status.failures. When the cause is fixed, set gpusharing.dev/retry on the GPUNode to a new value.")
    BLOCKED = (("Blocked", "Stalled", _PERSON, "node"),
        "Every node that still has to change is blocked; kubectl get gpunodes shows what blocks each of them.",
        "Remove what blocks the nodes; each node's message says what to do.")
    NO_PROGRESS = (("NoProgress", "Stalled", _PERSON, "operator"),
        "In pass after pass, the planner lists the pods on nodes that could start a change, but it never starts a"
        " change on any of them.",
        "Report this as a bug, with the output of kubectl gpusharing support-bundle. Deleting the operator's pod or "
        "raising rollout.maxUnavailable may let the rollout continue.")
    PROGRESSING = (("Progressing", "Stalled", _DONE, "operator"),
        "No action is needed.")

    # fmt: on


BY_WORD = {reason.value: reason for reason in Reason}


def most_urgent(reasons: Iterable[Reason]) -> Reason:
    """Return the most urgent of these reasons, for places that show only one.

    A reason that waits for a person comes first, then the one that lasts longest. Raises ValueError if there are none.
    """
    return min(reasons, key=lambda reason: reason.urgency)

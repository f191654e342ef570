"""Every reason that the operator reports: one CamelCase word for tools, the situation in which it is used, and what a
person should do about it.

A reason is never removed or given a second meaning. `docs/reference/reasons.md` is generated from this file. If
several reasons apply and only one can be shown, `most_urgent` chooses: first those that wait for a person, then those
that last longest. Reasons with the same `passes` are therefore defined in order, longest first.
"""

from collections.abc import Iterable

from gpusharing.planning.vocabulary.reasonkinds import Mark, Passes, Worded

_PERSON, _LATER, _SOON, _DONE = Passes.BY_A_PERSON, Passes.LATER, Passes.SOON, Passes.DONE


class Reason(Worded):
    """All reasons, by group."""

    # A row: word, group, passes, keeper, marks; then when it is used, and the remedy. Formatted, it would be longer.
    # fmt: off
    # --- Node: why a node is where it is
    FENCE_UNREADABLE = (("FenceUnreadable", "Node", _PERSON, "node", Mark.EVENT, Mark.NOT_RETRIED),
        "The annotation gpusharing.dev/fence on the Node cannot be read, so the node is left exactly as it is.",
        "Check the GPUs of the node. Then remove the annotation gpusharing.dev/fence and uncordon the node.")
    ORPHAN_FENCE = (("OrphanFence", "Node", _PERSON, "node", Mark.EVENT, Mark.NOT_RETRIED),
        "The node was past the point of no return when its policy was deleted or its Node was recreated. It stays "
        "cordoned because its layout is unproven.",
        "Create a policy that selects the node. Or check its GPUs, remove the annotation gpusharing.dev/fence and "
        "uncordon it.")
    ACTUATOR_FAILED = (("ActuatorFailed", "Node", _PERSON, "mig-manager", Mark.TURNS_BACK),
        "mig-manager reported that it could not apply the configuration; the node stays cordoned.",
        "Read the log of the mig-manager pod on the node, then set a new value of gpusharing.dev/retry on the Node.")
    ACTUATOR_STUCK = (("ActuatorStuck", "Node", _PERSON, "mig-manager", Mark.TURNS_BACK),
        "mig-manager or the device plugin did not finish in time, and restarting the pod did not help.",
        "Read the log of the mig-manager pod on the node, then set a new value of gpusharing.dev/retry on the Node.")
    INTERNAL_ERROR = (("InternalError", "Node", _PERSON, "kube-apiserver", Mark.ANSWER, Mark.DENIED),
        "The API server refused a request of the operator as malformed. It is not repeated blindly.",
        "Report the message: it is a bug in this operator or in an admission webhook.")
    NODE_NOT_JUDGED = (("NodeNotJudged", "Node", _PERSON, "node"),
        "Something on this node made the planner fail. The node is left exactly as it is; the other nodes go on.",
        "Report the message: it is a bug in this operator. Undoing the last edit of the node may help.")
    FOREIGN_MAINTENANCE = (("ForeignMaintenance", "Node", _PERSON, "foreign"),
        "Another controller maintains the node, or has been asked to: its marker or NodeMaintenance was there first.",
        "Let that maintenance finish; the change starts automatically when the marker or object is gone.")
    ALREADY_CORDONED = (("AlreadyCordoned", "Node", _PERSON, "node"),
        "Somebody else cordoned the node, so the operator does not touch it.",
        "Uncordon the node when it may be changed.")
    UNSAFE_DRIVER = (("UnsafeDriver", "Node", _PERSON, "GPUs", Mark.TURNS_BACK),
        "Repartitioning GPUs under the node's driver can corrupt data or hang a GPU (CVE-2026-24197), the driver hangs "
        "pods on nodes with MIG instances beside whole GPUs, or an administrator listed the driver as unsafe.",
        "Update the driver to the version in the message. The chart value operator.refuseUnsafeDrivers=false accepts "
        "the risk instead.")
    OPERANDS_DISABLED = (("OperandsDisabled", "Node", _PERSON, "node"),
        "A label nvidia.com/gpu.deploy.* keeps the device plugin or GPU Feature Discovery off the node, so no "
        "change could be served or proven. No change starts.",
        "Run the command in the message if the node is to serve GPUs, or narrow the node selector.")
    FOREIGN_DEVICE_PLUGIN = (("ForeignDevicePlugin", "Node", _PERSON, "foreign"),
        "HAMi's, Volcano's or a cloud's own device plugin serves the GPUs of the node. It does not follow our labels, "
        "so a change could be neither served nor proven. No change starts.",
        "Do what the message says to hand the node over to NVIDIA's plugin, or narrow the node selector.")
    WORKLOAD_CONFIG = (("WorkloadConfig", "Node", _PERSON, "node", Mark.UNSUPPORTED),
        "The label nvidia.com/gpu.workload.config gives the GPUs of the node to virtual machines. No change starts.",
        "Run the command in the message if the node is for containers, or narrow the node selector.")
    ACTUATOR_MISSING = (("ActuatorMissing", "Node", _PERSON, "mig-manager"),
        "No ready mig-manager pod runs on the node, so nothing could apply the change.",
        "Check the mig-manager DaemonSet of the GPU Operator, its node selector and its pods.")
    MPS_NOT_SWITCHABLE = (("MPSNotSwitchable", "Node", _PERSON, "device-plugin", Mark.TURNS_BACK),
        "The GPU Operator's MPS daemon would not read the configuration that a label names: from device plugin 0.18.2 "
        "on it starts with the fallback, and its config-manager cannot notify it afterwards. No change to MPS begins.",
        "Do what the message says, which restarts all MPS daemons and ends their clients: give config-manager the "
        "daemon's name in PROCESS_TO_SIGNAL, with device plugin v0.20 or newer. Or choose another mode. A node past "
        "its point of no return waits for that, cordoned, or goes back if rollout.onFailure says so.")
    TAINT_NOT_TOLERATED = (("TaintNotTolerated", "Node", _PERSON, "ClusterPolicy"),
        "The node has the taint gpusharing.dev/unproven, and the agent, NVIDIA's pods or the worker of Node Feature "
        "Discovery does not tolerate it. Unless all of them run there, the node cannot be proven and keeps the taint.",
        "Run the command in the message.")
    AGENT_NOT_READY = (("AgentNotReady", "Node", _PERSON, "agent"),
        "No ready agent pod runs on the node, so nothing could prove the change. No change starts.",
        "Check the pod of the gpu-sharing-operator agent on the node.")
    AGENT_REFUSED = (("AgentRefused", "Node", _PERSON, "agent"),
        "The API server refuses the pods of the agent's DaemonSet: PodSecurity, no RuntimeClass, a quota or a "
        "webhook. The message quotes its answer. No change starts.",
        "Run the command in the message, or correct what it says.")
    AGENT_NOT_STARTED = (("AgentNotStarted", "Node", _PERSON, "agent"),
        "The agent's pod on the node does not start: its image cannot be pulled or is for another architecture, the "
        "runtime refuses it, or it ends at once. No change starts.",
        "Correct what the message names.")
    AGENT_ERROR = (("AgentError", "Node", _PERSON, "agent"),
        "The agent runs but cannot read the GPUs; the message quotes the error.",
        "Check the NVIDIA driver on the node, for example with nvidia-smi.")
    AGENT_LACKS_RIGHTS = (("AgentLacksRights", "Node", _PERSON, "agent"),
        "NVML does not let the agent's container read what the proof needs, MIG instances or the compute mode.",
        "Give the agent's container the rights of NVIDIA's own operands (docs/reference/agent-fields.md).")
    CONFIG_NOT_WRITTEN = (("ConfigNotWritten", "Node", _PERSON, "ConfigMap"),
        "The API server does not let the operator write the ConfigMap that the node needs; the message quotes its "
        "answer.",
        "Grant the right that the message names, or correct what it complains about.")
    SUPERSEDED = (("Superseded", "Node", _PERSON, "policy"),
        "The policy does not own the node, or no longer does: another one has a higher priority or owned it first, or "
        "the selector no longer matches.",
        "Narrow one of the two node selectors, or give this policy a strictly higher priority.")
    FROZEN = (("Frozen", "Node", _PERSON, "policy", Mark.PENDING),
        "rollout.maxUnavailable is 0 or cannot be read, so no node may start.",
        "Set rollout.maxUnavailable to a number or a percentage above 0.")
    PAUSED = (("Paused", "Node", _PERSON, "policy", Mark.PENDING),
        "rollout.paused is true: no further node starts. rollout.whenPaused says what becomes of nodes in flight.",
        "Set rollout.paused to false.")
    HALTED = (("Halted", "Node", _PERSON, "policy"),
        "The number of nodes that failed after the point of no return in this generation of the policy has reached "
        "rollout.maxFailures. No further node starts.",
        "Find out why they failed (status.failures). Then run the command in the message, or change the policy.")
    APPROVAL_NEEDED = (("ApprovalNeeded", "Node", _PERSON, "policy", Mark.PENDING),
        "rollout.approval is Manual, and the current plan is not approved.",
        "Look at status.plan, then run the command in the message.")
    ROLLED_BACK = (("RolledBack", "Node", _PERSON, "node", Mark.STALLS, Mark.STATUS, Mark.EVENT, Mark.RETRIED),
        "The change failed after the point of no return, and the node went back to what was proven on it last "
        "(rollout.onFailure Rollback). It serves that, counts as failed, and is not tried again in this generation.",
        "Remove the cause that the message names, then run its command, or change the policy.")
    SKIP_LABEL = (("SkipLabel", "Node", _PERSON, "node"),
        "The Node has the label gpusharing.dev/skip=true: no change begins there. It still counts in its pool.",
        "Remove the label when the node may be changed.")
    LABEL_OWNED_ELSEWHERE = (("LabelOwnedElsewhere", "Node", _PERSON, "node", Mark.TURNS_BACK),
        "Another controller keeps the label that the change would write, nvidia.com/mig.config or "
        "nvidia.com/device-plugin.config, and would put its own value back. No change starts.",
        "Do what the message says, such as removing the label from a NodeFeatureRule.")
    NEEDS_ATTENTION = (("NeedsAttention", "Node", _PERSON, "node", Mark.RETRIED),
        "Five attempts or more were given up before anything changed. The next one follows after a wait; other nodes "
        "go on.",
        "Remove what blocked the node (see the message). A new value of gpusharing.dev/retry on the Node starts the "
        "next attempt at once.")
    INVALID_WINDOW = (("InvalidWindow", "Node", _PERSON, "policy"),
        "A schedule or time zone of rollout.windows or rollout.blackouts cannot be followed, so no node may start.",
        "Correct the field that the message names.")
    WINDOW_TOO_SHORT = (("WindowTooShort", "Node", _PERSON, "policy"),
        "No window is open for as long as a change may take: drain.timeout and the slowest of the last 20 changes.",
        "Lengthen a window or shorten drain.timeout; where the message names the blackouts, shorten those.")
    CANARY_TOO_LARGE = (("CanaryTooLarge", "Node", _PERSON, "policy"),
        "rollout.canary asks for more nodes than the pool has, so it could never be proven. No node in service starts.",
        "Lower rollout.canary.nodes as the message says, or add nodes to the pool.")
    CANARY_NOT_SERVING = (("CanaryNotServing", "Node", _PERSON, "policy"),
        "A node that was changed first (rollout.canary) no longer serves what was proven there: it is not Ready, "
        "cordoned, drifted, or one of its GPUs is unhealthy. No other node starts; a canary that has drifted is "
        "corrected.",
        "Look at the node that the message names. When it serves again, or has left the pool, the rollout goes on; an "
        "edit of the policy begins with new canaries.")
    DRIFT_RETURNED = (("DriftReturned", "Node", _PERSON, "node", Mark.STALLS, Mark.STATUS, Mark.EVENT, Mark.RETRIED),
        "The node drifted again after it was corrected for this generation; something else changes it.",
        "Stop what else writes the node's mig.config or device-plugin labels; the message names its field manager "
        "where that is known. Then set gpusharing.dev/retry on the Node.")
    CORDON_KEPT = (("CordonKept", "Node", _PERSON, "node", Mark.EVENT),
        "The operator is done with the node, which stays cordoned because the cordon is not ours alone: a person or "
        "another controller needs it, gpusharing.dev/hold-cordon keeps it, or gpusharing.dev/force-release left it.",
        "Uncordon the node when nobody else needs the cordon.")
    CALL_FAILED = (("CallFailed", "Node", _LATER, "kube-apiserver", Mark.EVENT, Mark.NO_BLOCKER_EVENT),
        "A call to the API server about this node fails; the message quotes the answer. This node waits, the others "
        "go on. After the point of no return the node is Failed once its time is up.",
        "Remove what the message names: an admission webhook, a missing right, a damaged object. The call is retried "
        "automatically.")
    NODE_UNREACHABLE = (("NodeUnreachable", "Node", _LATER, "kubelet"),
        "The kubelet does not answer, so it is unknown whether the pods of the node still run.",
        "Bring the node back, or delete the Node object if the machine is gone.")
    NODE_NOT_READY = (("NodeNotReady", "Node", _LATER, "kubelet"),
        "The node is not Ready, or its Node is being deleted; a change does not start on it and is not proven on it.",
        "Find out why with kubectl describe node.")
    UNCORDONED_EXTERNALLY = (("UncordonedExternally", "Node", _LATER, "node"),
        "Somebody lifted our cordon before the point of no return, so the change was given up and the node restored.",
        "Nothing, if that was intended. The next attempt follows after a wait, or at once with a new value of "
        "gpusharing.dev/retry on the Node.")
    CORDON_RESTORED = (("CordonRestored", "Node", _SOON, "operator", Mark.EVENT, Mark.PAST_RETURN),
        "Somebody lifted our cordon after the point of no return; it was put back, because the layout is unproven.",
        "Wait for the proof; then the node is uncordoned. If somebody lifts the cordon again, the operator puts it "
        "back.")
    DRAIN_TIMEOUT = (("DrainTimeout", "Node", _LATER, "pods"),
        "The drain took longer than drain.timeout; the node was restored. Pods that were evicted stay where they "
        "went.",
        "Remove what blocked the drain (see the message). The next attempt follows automatically after a wait.")
    JOBS_TIMEOUT = (("JobsTimeout", "Node", _LATER, "pods"),
        "Pods that were to run to completion took longer than jobs.timeout or the timeout of their rule; the node was "
        "restored.",
        "Raise the timeout, set drain.jobs.onTimeout to Evict, or end the pods yourself. The next attempt follows "
        "automatically after a wait.")
    GPU_STILL_BUSY = (("GPUStillBusy", "Node", _LATER, "GPUs", Mark.EVENT),
        "No pod holds a GPU any more, but a process on the node is still using one.",
        "End the process on the node. It belongs to no pod that asked for a GPU.")
    ROLLING_BACK = (("RollingBack", "Node", _LATER, "mig-manager", Mark.PAST_RETURN),
        "The change failed after the point of no return, and the node goes back to what was proven on it last "
        "(rollout.onFailure Rollback). It stays cordoned until that is proven again.",
        "Nothing. If the way back fails too, the node stays cordoned as Failed, and its message has the command for "
        "another attempt.")
    DEFERRED = (("Deferred", "Node", _LATER, "node", Mark.PENDING, Mark.RETRIED),
        "An earlier attempt was given up before anything changed. The next one follows after a wait.",
        "Remove what blocked the node (see the message). A new value of gpusharing.dev/retry on the Node starts the "
        "next attempt at once.")
    BUDGET_FULL = (("BudgetFull", "Node", _LATER, "policy"),
        "No further node may be unavailable: rollout.maxUnavailable or the operator-wide cap is reached, or the "
        "operator's own pod needs the last nodes.",
        "Wait, or raise the limit that the message names.")
    WAITS_FOR_WAVE = (("WaitsForWave", "Node", _LATER, "policy"),
        "The node is proven, and waits to return to service together with the others that ran the same gang, so that "
        "no other pod takes the place of half a gang. It waits at most rollout.timeouts.verification.")
    ABORT_REQUESTED = (("AbortRequested", "Node", _LATER, "node"),
        "A person asked for this change to be given up before the point of no return (gpusharing.dev/abort on the "
        "Node).",
        "Nothing. The next attempt follows after a wait; the label gpusharing.dev/skip=true on the Node prevents it.")
    CANARY_SOAK = (("CanarySoak", "Node", _LATER, "policy", Mark.PENDING),
        "The first nodes of the change (rollout.canary) are not all proven yet, or have not served for the soak time.",
        "Wait until they are proven and have served for the soak time.")
    WINDOW_CLOSED = (("WindowClosed", "Node", _LATER, "policy", Mark.PENDING),
        "No node starts now: it is outside rollout.windows, in rollout.blackouts, or too little of the window is left.",
        "Wait until the time in the message, or change rollout.windows.")
    ACTUATOR_BUSY = (("ActuatorBusy", "Node", _LATER, "mig-manager"),
        "mig-manager is still working on an earlier configuration, or is rebooting the node.")
    DRIFTED = (("Drifted", "Node", _LATER, "node", Mark.PENDING, Mark.STATUS, Mark.EVENT, Mark.RETRIED),
        "The node is no longer as it was last proven; it is corrected once, as a normal change.")
    CONFIG_PROPAGATING = (("ConfigPropagating", "Node", _SOON, "kubelet", Mark.PENDING),
        "The ConfigMap was written a moment ago and may not have reached the node yet.")
    ACTUATION_IN_PROGRESS = (("ActuationInProgress", "Node", _SOON, "mig-manager"),
        "The labels are written; mig-manager or the device plugin is applying them.")
    OBSERVATION_PENDING = (("ObservationPending", "Node", _SOON, "agent", Mark.PENDING),
        "The agent has not yet answered the latest request; older readings prove nothing. Or what the operator knows "
        "of the cluster is more than 150 s old.")
    SETTLING = (("Settling", "Node", _SOON, "operator"),
        "The node was cordoned a moment ago, and pods that the scheduler was just binding may still appear. Or its "
        "pods are listed once more before they count as gone.")
    ADOPTABLE = (("Adoptable", "Node", _SOON, "operator"),
        "The node is already as wanted; it is taken over without disruption.")
    PRODUCT_SKIPPED = (("ProductSkipped", "Node", _DONE, "", Mark.OUTSIDE),
        "The node's card is not in spec.products; the node is left alone.",
        "Add the product to spec.products if it belongs to the pool.")
    UNOWNED = (("Unowned", "Node", _DONE, ""),
        "No policy selects the node; it keeps its present layout.")
    SYNCED = (("Synced", "Node", _DONE, ""),
        "Everything is as wanted, and proven. Also the reason for Ready=True on a policy.")

    # --- Hardware: what is wanted does not suit the card
    NO_GPU = (("NoGPU", "Hardware", _PERSON, "GPUs", Mark.OUTSIDE, Mark.UNSUPPORTED),
        "The node has no NVIDIA GPU.",
        "Narrow the node selector, or check the driver if the node should have one.")
    HARDWARE_UNKNOWN = (("HardwareUnknown", "Hardware", _PERSON, "GPUs", Mark.UNSUPPORTED),
        "Neither the driver nor our table says what this card offers, so a layout cannot be checked.",
        "Update the driver, or use a card from docs/reference/gpus.md, which also says how to add one.")
    NOT_MIG_CAPABLE = (("NotMigCapable", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "The policy asks for MIG, and the card does not support it.",
        "Narrow the node selector or name the cards in spec.products, or choose another mode.")
    PROFILE_NOT_SUPPORTED = (("ProfileNotSupported", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "The card does not offer a wanted MIG profile; the message lists what it offers.",
        "Use a profile that the card offers.")
    LAYOUT_DOES_NOT_FIT = (("LayoutDoesNotFit", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "The card offers each profile, but they do not fit together; the message shows the nearest legal layout.",
        "Use the layout in the message or another one that fits.")
    LAYOUT_INCOMPLETE = (("LayoutIncomplete", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "spec.mig.layouts does not name every GPU of the node; mig-manager would leave the others as they are.",
        "Name every GPU index, or use devices: all.")
    LAYOUT_TOO_MANY_GPUS = (("LayoutTooManyGPUs", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "spec.mig.layouts names a GPU index that the node does not have.",
        "Remove the index, or keep such nodes out of the pool.")
    LAYOUT_NOT_UNIFORM = (("LayoutNotUniform", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "Strategy single needs the same profile on every GPU of the node.",
        "Use strategy mixed, or one profile on all GPUs.")
    LAYOUT_EMPTY = (("LayoutEmpty", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "The configuration switches MIG on but creates no instance, so the GPU would serve nothing.",
        "Choose a configuration with instances, or mode Full.")
    MPS_TOO_MANY_CLIENTS = (("MPSTooManyClients", "Hardware", _PERSON, "policy", Mark.UNSUPPORTED),
        "spec.mps.replicas is more than the device plugin serves on this card: 48, or 16 below compute capability 7.5.",
        "Lower spec.mps.replicas.")
    GPU_MISSING = (("GPUMissing", "Hardware", _PERSON, "GPUs"),
        "NVML lists fewer GPUs than were proven on the node: one did not come back after a reboot, or was removed.",
        "Read dmesg on the node and repair it, or run the command in the message if the GPU is gone permanently.")
    CARD_DIFFERS = (("CardDiffers", "Accepted", _DONE, ""),
        "The MIG profiles that the card reports differ from those in our table. What the card reports is used.",
        "Nothing on the cluster; report the message, so that the table can be corrected.")
    PROFILES_FROM_TABLE = (("ProfilesFromTable", "Accepted", _DONE, ""),
        "The driver lists no MIG profiles for the card, so those of our table are used (docs/reference/gpus.md).",
        "Nothing, unless a layout is refused that should fit: then update the driver.")
    FORCE_DELETE_OFF = (("ForceDeleteOff", "Accepted", _DONE, ""),
        "The policy says drain.onTimeout ForceDelete, but the operator may not delete pods. It acts as Abort: at "
        "drain.timeout the node is restored, and nothing is deleted.",
        "Run the command in the message if pods may be deleted at the end of a drain, or set drain.onTimeout to Abort.")
    MIG_MODE_PENDING = (("MigModePending", "Hardware", _PERSON, "GPUs", Mark.TURNS_BACK),
        "The MIG mode in force differs from the one after the next GPU reset (Ampere), outside any change of ours.",
        "Reset the GPU or reboot the node.")
    COMPUTE_MODE = (("ComputeMode", "Hardware", _PERSON, "GPUs", Mark.TURNS_BACK),
        "A GPU is not in compute mode Default: an MPS daemon was killed and left EXCLUSIVE_PROCESS behind.",
        "Run nvidia-smi -i INDEX -c 0 on the node.")

    # --- Health: GPUUnhealthy on the node, the others on the GPUNode condition Healthy (planning/gpus/health.py)
    GPU_UNHEALTHY = (("GPUUnhealthy", "Health", _PERSON, "GPUs"),
        "A GPU of the node is not healthy; the node is not reconfigured. Its pods are left alone.",
        "Do what the message says; the change starts automatically when the GPU is healthy again.")
    GPU_LOST = (("GPULost", "Health", _PERSON, "GPUs"),
        "A GPU fell off the bus (NVML: GPU is lost).", "Drain and reboot the node.")
    GPU_UNREADABLE = (("GPUUnreadable", "Health", _PERSON, "GPUs"),
        "NVML returns an error for one GPU (about its power or its interrupt, for example); the others are read.",
        "Read dmesg on the node and repair it, then reboot.")
    GPU_RESET_REQUIRED = (("GPUResetRequired", "Health", _PERSON, "GPUs"),
        "NVML refuses a GPU until it is reset.", "Drain the node, then reset the GPU or reboot.")
    ROW_REMAP_FAILED = (("RowRemapFailed", "Health", _PERSON, "GPUs"),
        "A memory row could not be remapped.", "Replace the card.")
    RECOVERY_NEEDED = (("RecoveryNeeded", "Health", _PERSON, "GPUs"),
        "The driver names a recovery action for a GPU (NVML field 230).", "Do what the message says.")
    ROW_REMAP_PENDING = (("RowRemapPending", "Health", _PERSON, "GPUs"),
        "A remapped memory row waits for a GPU reset.", "Drain the node, then reset the GPU or reboot.")
    XID_SEEN = (("XIDSeen", "Health", _PERSON, "GPUs"),
        "The agent received a critical XID error, and the driver is too old (before R565) to say what to do about it.",
        "Drain the node, reset the GPU or reboot, then delete the agent's pod.")
    ECC_UNCORRECTED = (("ECCUncorrected", "Health", _PERSON, "GPUs"),
        "A GPU has had uncorrected ECC errors since the driver was loaded.",
        "Drain the node, then reset the GPU or reboot.")
    NO_TROUBLE = (("NoTrouble", "Health", _DONE, ""), "NVML reports nothing that makes a GPU of the node unhealthy.")

    # --- Proof: what does not agree yet after a change, or no longer does
    OPERANDS_PAUSED = (("OperandsPaused", "Proof", _LATER, "mig-manager", Mark.TURNS_BACK),
        "mig-manager left NVIDIA's operands paused (label nvidia.com/gpu.deploy.* = paused-for-mig-change).",
        "Wait: the operator restarts mig-manager, which usually ends it.")
    MPS_NOT_RUNNING = (("MPSNotRunning", "Proof", _LATER, "mps-control-daemon", Mark.TURNS_BACK, Mark.ENDS_MPS),
        "The GPUs are not in compute mode EXCLUSIVE_PROCESS, so the MPS control daemon does not serve them.",
        "If it lasts, look at the pods with label app=nvidia-device-plugin-mps-control-daemon.")
    LAYOUT_MISMATCH = (("LayoutMismatch", "Proof", _LATER, "GPUs", Mark.TURNS_BACK),
        "According to the agent, the GPUs are not divided as wanted.")
    ALLOCATABLE_MISMATCH = (("AllocatableMismatch", "Proof", _LATER, "device-plugin", Mark.TURNS_BACK, Mark.ENDS_MPS),
        "The node does not advertise the resource names and counts that the mode calls for.",
        "If it lasts, read the log of the device plugin on the node. A plugin that read its configuration "
        "while somebody was editing it reads it again when its pod is deleted.")
    LABEL_MISMATCH = (("LabelMismatch", "Proof", _LATER, "gpu-feature-discovery", Mark.TURNS_BACK, Mark.ENDS_MPS),
        "The labels of GPU Feature Discovery do not say what the mode calls for.",
        "If it lasts, read the log of gpu-feature-discovery on the node.")

    # --- Drain: why a pod does not leave; if one is known before the cordon, the node is not cordoned
    PDB_CONFLICT = (("PDBConflict", "Drain", _PERSON, "pods"),
        "Two PodDisruptionBudgets select the pod; the API server refuses every eviction of such a pod.",
        "Change the selectors so that one PodDisruptionBudget selects the pod.")
    PDB_NEVER_ALLOWS = (("PDBNeverAllows", "Drain", _PERSON, "pods"),
        "The PodDisruptionBudget allows no disruption even when every pod is healthy.",
        "Scale the workload up, or set its maxUnavailable to at least 1.")
    UNMANAGED = (("Unmanaged", "Drain", _PERSON, "pods"),
        "The pod has no controller that would start it elsewhere, so an eviction would delete it for good.",
        "Delete the pod yourself, or set drain.unmanagedPods to Evict.")
    GPU_DAEMON_SET = (("GPUDaemonSet", "Drain", _PERSON, "pods"),
        "A DaemonSet that is not part of the GPU Operator holds a GPU; an evicted pod would come straight back.",
        'Give the DaemonSet the node selector nvidia.com/gpu.deploy.client: "true", or keep it off the '
        "node.")
    STATIC_GPU_POD = (("StaticGPUPod", "Drain", _PERSON, "pods"),
        "A static pod holds a GPU; deleting it through the API does not stop it.",
        "Remove its manifest from the node.")
    DRA_CLAIM = (("DRAClaim", "Drain", _PERSON, "pods"),
        "The pod holds a GPU through a ResourceClaim of driver gpu.nvidia.com, or through one that cannot "
        "be read. The DRA driver manages such GPUs, so the node is not changed while the pod is there.",
        "Use this operator on nodes that serve GPUs through the device plugin.")
    PROTECTED_NAMESPACE = (("ProtectedNamespace", "Drain", _PERSON, "pods"),
        "The pod's namespace is one in which nothing is evicted (value operator.protectedNamespaces).",
        "Delete or move the pod yourself, or take its namespace out of operator.protectedNamespaces.")
    OWN_POD = (("OwnPod", "Drain", _PERSON, "pods"),
        "The operator itself runs on the node, and all pods have to leave; it never evicts itself.",
        "Give the operator a node outside the pool: set operator.nodeSelector or operator.affinity.")
    TOLERATES_CORDON = (("ToleratesCordon", "Drain", _PERSON, "pods"),
        "The pod tolerates the cordon, or its template names this node, and its controller starts it again here, so "
        "evictions would never end.",
        "Remove the toleration of node.kubernetes.io/unschedulable, or spec.nodeName, from its controller, or scale "
        "the controller down.")
    RULE_BLOCKS = (("RuleBlocks", "Drain", _PERSON, "pods"),
        "A rule of the policy (drain.rules, behavior Block) keeps the pod; the message says which.",
        "Wait until the pod is gone, move it yourself, or change the rule.")
    NAMESPACE_UNREADABLE = (("NamespaceUnreadable", "Drain", _PERSON, "pods"),
        "A rule of the policy needs labels of the pod's namespace, which cannot be read; the node is left alone.",
        "Grant the operator get on namespaces (its chart does), or take namespaceSelector out of the rule.")
    LOCAL_STORAGE = (("LocalStorage", "Drain", _PERSON, "pods"),
        "The pod keeps files in an emptyDir on the node's disk, which it would lose, and drain.localStorage is Block.",
        "Save what the pod needs and delete it yourself, or set drain.localStorage to Evict.")
    STRANDED_PODS = (("StrandedPods", "Drain", _PERSON, "pods"),
        "When all planned changes are done, the pod could not start again: no node would offer its resource name, too "
        "few devices of it would remain, or the change rewrites a node label that the pod requires.",
        "Change the pod's request, let its node affinity accept the old and the new value of the label (operator In), "
        "keep such devices on other nodes, or set drain.strandedPods to Allow.")
    DRAIN_HELD = (("DrainHeld", "Drain", _PERSON, "pods", Mark.STALLS, Mark.EVENT),
        "drain.timeout is over and drain.onTimeout is Hold: the node stays cordoned and keeps its slot, and the drain "
        "goes on.",
        "Remove what keeps the pods (see status.transition.blockers), or uncordon the node to give the change up.")
    FORCE_DELETE_FAILED = (("ForceDeleteFailed", "Drain", _PERSON, "kube-apiserver", Mark.ANSWER, Mark.FORCIBLE),
        "drain.onTimeout is ForceDelete, and the API server did not delete the pod; the message quotes its answer. "
        "The operator tries again for as long as the pod's grace period can still end with the drain.",
        "Read the message: a webhook or an admission policy may refuse the deletion.")
    TERMINATING_STUCK = (("TerminatingStuck", "Drain", _PERSON, "pods"),
        "The pod should have ended more than 60 s ago and still exists; it may still hold the GPU.",
        "Find out what should remove the finalizers in the message, or why the kubelet cannot end the container.")
    FORBIDDEN = (("Forbidden", "Drain", _PERSON, "kube-apiserver", Mark.ANSWER, Mark.DENIED),
        "The API server does not let the operator evict the pod.",
        "Grant the right that the message names, or remove the policy that refuses.")
    LIST_FAILED = (("ListFailed", "Drain", _PERSON, "kube-apiserver"),
        "The pods of the node or their PodDisruptionBudgets could not be listed, and the operator decides nothing "
        "without them.",
        "Read the API server's answer in the message. The operator lists them again in the next pass.")
    EVICTION_ERROR = (("EvictionError", "Drain", _PERSON, "kube-apiserver", Mark.ANSWER, Mark.FORCIBLE),
        "The API server could not decide on the eviction; the message quotes its answer. The drain goes on trying, "
        "and keeps its slot until drain.timeout.",
        "Check the PodDisruptionBudget of the pod and the API server's answer.")
    DO_NOT_DISRUPT = (("DoNotDisrupt", "Drain", _LATER, "pods"),
        "A mark on the pod asks controllers to leave it alone: do-not-disrupt, safe-to-evict or cluster.x-k8s.io/drain."
        " The node is not cordoned meanwhile.",
        "Wait for the pod or the end of its mark, remove the mark, or set drain.protectedPods to Ignore.")
    JOBS_RUNNING = (("JobsRunning", "Drain", _LATER, "pods", Mark.NO_BLOCKER_EVENT),
        "The node is cordoned and waits for pods that run to completion: those of Jobs, and those of rules with "
        "WaitCompleted. Until then no pod of their order is evicted.",
        "Nothing. jobs.timeout and the rule's timeout limit the wait, and drain.jobs.onTimeout says what follows.")
    PDB = (("PDB", "Drain", _LATER, "pods", Mark.ANSWER, Mark.FORCIBLE),
        "The PodDisruptionBudget allows no disruption at the moment.",
        "Bring the unready pods back or let them go (unhealthyPodEvictionPolicy: AlwaysAllow), scale up, or raise "
        "maxUnavailable.")
    PDB_NOT_OBSERVED = (("PDBNotObserved", "Drain", _LATER, "pods", Mark.FORCIBLE),
        "The PodDisruptionBudget changed and its controller has not processed that yet; shown after 60 s.",
        "If it lasts, check kube-controller-manager.")
    GRACE_TOO_LONG = (("GraceTooLong", "Drain", _LATER, "pods"),
        "A PodDisruptionBudget refuses the eviction of the pod, and drain.onTimeout ForceDelete cannot help: its grace "
        "period plus 10 s (in a short drain: a quarter of it) is not shorter than drain.timeout.",
        "Set drain.timeout more than 10 s longer than the pod's terminationGracePeriodSeconds, or make room in its "
        "PodDisruptionBudget.")
    NAMESPACE_TERMINATING = (("NamespaceTerminating", "Drain", _LATER, "pods", Mark.ANSWER),
        "The pod's namespace is being deleted; the pod goes with it.",
        "If it lasts, find out what keeps the namespace from being removed.")
    FORCE_DELETE = (("ForceDelete", "Drain", _SOON, "pods", Mark.NO_BLOCKER_EVENT, Mark.ANSWER),
        "The time of the drain is nearly over, the pod's eviction is still refused, and drain.onTimeout is "
        "ForceDelete: the pod is deleted, with its own grace period, despite its PodDisruptionBudgets.")
    THROTTLED = (("Throttled", "Drain", _SOON, "kube-apiserver", Mark.ANSWER),
        "The API server asks all clients to slow down; no PodDisruptionBudget is to blame.")
    PODS_LEAVING = (("PodsLeaving", "Drain", _SOON, "pods", Mark.ANSWER),
        "Nothing blocks; terminating pods are using their grace period.")
    EVICTED = (("Evicted", "Drain", _SOON, "pods", Mark.ANSWER),
        "The API server accepted the eviction; the pod is gone when a LIST no longer shows it.")

    # --- Accepted: whether the policy can be carried out at all
    INVALID_SPEC = (("InvalidSpec", "Accepted", _PERSON, "policy"),
        "A field of the policy is wrong on every cluster; the message names it.",
        "Correct the field.")
    POLICY_NOT_JUDGED = (("PolicyNotJudged", "Accepted", _PERSON, "ClusterPolicy"),
        "Something in this policy made the planner fail. Its nodes are left exactly as they are; other policies go on.",
        "Report the message: it is a bug in this operator. Undoing the last edit of the policy may help.")
    UNSUPPORTED_STACK = (("UnsupportedStack", "Accepted", _PERSON, "ClusterPolicy"),
        "NVIDIA's DRA stack (GPUCluster) serves the GPUs here, so the labels of this operator would have no effect.",
        "Use this operator where the device plugin of the GPU Operator serves the GPUs.")
    CLUSTER_POLICY_MISSING = (("ClusterPolicyMissing", "Accepted", _PERSON, "ClusterPolicy", Mark.MOMENTARY),
        "There is no ClusterPolicy and no device plugin of NVIDIA's chart: neither is installed, or the operator "
        "cannot see it.",
        "Install the NVIDIA GPU Operator, or name the namespace of NVIDIA's device-plugin chart.")
    SEVERAL_CLUSTER_POLICIES = (("SeveralClusterPolicies", "Accepted", _PERSON, "ClusterPolicy", Mark.MOMENTARY),
        "There are several ClusterPolicies, and the GPU Operator has not said which of them it ignores.",
        "Remove the one that you do not want; the message names them.")
    PLUGIN_CONFIG_NOT_OURS = (("PluginConfigNotOurs", "Accepted", _PERSON, "ClusterPolicy"),
        "ClusterPolicy devicePlugin.config.name does not name our ConfigMap, or NVIDIA runs in another namespace.",
        "Run the command in the message once, or set the chart value that it names.")
    CONFIG_MAP_TAKEN = (("ConfigMapTaken", "Accepted", _PERSON, "ConfigMap"),
        "A ConfigMap with the name of one of ours holds entries that the operator did not make; nothing is written.",
        "Run one of the commands in the message: hand the ConfigMap over, or remove it.")
    PLUGIN_DISABLED = (("PluginDisabled", "Accepted", _PERSON, "ClusterPolicy"),
        "ClusterPolicy devicePlugin.enabled is false: nothing would serve the GPUs after a change. No node is drained.",
        "Run the command in the message once. Where another device plugin serves the GPUs on purpose, delete the "
        "policy.")
    FEATURE_DISCOVERY_DISABLED = (("FeatureDiscoveryDisabled", "Accepted", _PERSON, "ClusterPolicy"),
        "ClusterPolicy gfd.enabled is false: without its labels no change could be proven. No node is drained.",
        "Run the command in the message once.")
    MIG_MANAGER_DISABLED = (("MigManagerDisabled", "Accepted", _PERSON, "ClusterPolicy"),
        "The policy wants MIG, but ClusterPolicy migManager.enabled is false: nothing would act on our label.",
        "Run the command in the message once.")
    MIG_MANAGER_MISSING = (("MigManagerMissing", "Accepted", _PERSON, "ClusterPolicy"),
        "The policy wants MIG, but no mig-manager runs beside NVIDIA's device-plugin chart.",
        "Install mig-manager v0.15 or newer beside that chart, or the NVIDIA GPU Operator in its place, or use mode "
        "Full, TimeSlicing or MPS.")
    PLUGIN_NOT_PAUSED = (("PluginNotPaused", "Accepted", _PERSON, "device-plugin"),
        "The policy wants MIG, but mig-manager cannot pause NVIDIA's device-plugin chart, which would keep the GPUs in "
        "use during a change.",
        "Label the GPU nodes and run the command in the message once.")
    FEATURE_DISCOVERY_MISSING = (("FeatureDiscoveryMissing", "Accepted", _PERSON, "ClusterPolicy"),
        "NVIDIA's device-plugin chart runs without GPU Feature Discovery, so no change could be proven.",
        "Run the command in the message once.")
    DRIVER_DISABLED = (("DriverDisabled", "Accepted", _PERSON, "ClusterPolicy", Mark.UNSUPPORTED),
        "The agent finds no NVIDIA driver on a node without GPUs to offer, and ClusterPolicy driver.enabled is false. "
        "That alone is normal where hosts bring the driver.",
        "Install the driver on the host, or, if no host is to bring its own, run the command in the message.")
    TOOLKIT_DISABLED = (("ToolkitDisabled", "Accepted", _PERSON, "ClusterPolicy", Mark.UNSUPPORTED),
        "A node without GPUs to offer has a container runtime that does not know NVIDIA's, and ClusterPolicy "
        "toolkit.enabled is false. That alone is normal where hosts bring the NVIDIA Container Toolkit.",
        "Install it on the host, or, if no host is to bring its own, run the command in the message.")
    MIG_STRATEGY_SET = (("MigStrategySet", "Accepted", _PERSON, "ClusterPolicy"),
        "ClusterPolicy mig.strategy is set for the whole cluster and would override the policy.",
        "Run the command in the message once.")
    LAYOUTS_NEED_CONFIG_MAP = (("LayoutsNeedConfigMap", "Accepted", _PERSON, "ClusterPolicy"),
        "spec.mig.layouts needs ClusterPolicy migManager.config.name to name our ConfigMap.",
        "Run the command in the message once, or use a named configuration in spec.mig.config.")
    CONFIG_UNKNOWN = (("ConfigUnknown", "Accepted", _PERSON, "policy", Mark.UNSUPPORTED),
        "No mig-parted configuration of this name exists for the card; the message lists those that do.",
        "Use one of the names listed, or spec.mig.layouts.")
    PLUGIN_TOO_OLD = (("PluginTooOld", "Accepted", _PERSON, "device-plugin", Mark.UNSUPPORTED, Mark.TURNS_BACK),
        "The device plugin is older than v0.20 and serves instances of profiles with a suffix (+me, +gfx, -me) under "
        "the plain name, so a pod cannot say which of the two it wants.",
        "Upgrade the device plugin, use profiles without a suffix, or spec.mig.strategy single.")
    MIG_MANAGER_TOO_OLD = (("MigManagerTooOld", "Accepted", _PERSON, "mig-manager", Mark.UNSUPPORTED),
        "mig-manager before v0.15 confuses profiles of the same name on different cards of a node and would fail. "
        "Beside NVIDIA's device-plugin chart it cannot pause the device plugin either.",
        "Upgrade mig-manager. Under the GPU Operator, a profile that only one card of the node has also works, as does "
        "one that is the same on both.")
    NO_NODES = (("NoNodes", "Accepted", _LATER, "policy"),
        "The node selector selects no node.",
        "Label the nodes of the pool or correct spec.nodeSelector.")
    VALID = (("Valid", "Accepted", _DONE, ""),
        "The policy can be carried out on every node that it owns.")

    # --- Ready and Reconciling
    NOT_ACCEPTED = (("NotAccepted", "Ready", _PERSON, "policy"),
        "The policy cannot be carried out; the condition Accepted says why.",
        "Correct what the message of the condition Accepted names.")
    ROLLOUT_IN_PROGRESS = (("RolloutInProgress", "Ready", _SOON, "operator"),
        "Nodes are being changed, or wait for their turn.")
    DELETING = (("Deleting", "Ready", _SOON, "policy"),
        "The policy is being deleted or is gone; nodes in flight are brought to a safe end first.",
        "To release it at once, set the annotation gpusharing.dev/force-release=true on the policy. Every cordon stays "
        "then.")

    # --- Stalled: no progress without a person
    NODES_FAILED = (("NodesFailed", "Stalled", _PERSON, "node"),
        "Nodes failed past the point of no return; they stay cordoned and keep their slots.",
        "Read status.failures. When the cause is gone, set a new value of gpusharing.dev/retry on the Node.")
    BLOCKED = (("Blocked", "Stalled", _PERSON, "node"),
        "Every node that is left to change is blocked; kubectl get gpunodes shows by what.",
        "Remove what blocks them; the message of each node says what to do.")
    NO_PROGRESS = (("NoProgress", "Stalled", _PERSON, "operator"),
        "The planner looks at the pods of nodes that might start in pass after pass, and starts none.",
        "Report the bug, with the output of kubectl gpusharing support-bundle. Deleting the operator's pod, or a "
        "greater rollout.maxUnavailable, may let the rollout go on.")
    PROGRESSING = (("Progressing", "Stalled", _DONE, "operator"),
        "Nothing needs a person.")

    # fmt: on


BY_WORD = {reason.value: reason for reason in Reason}
"""Every reason by its word. Look-ups may fail for words that another version of the operator wrote."""


def most_urgent(reasons: Iterable[Reason]) -> Reason:
    """Return the most urgent of these reasons, for places that show only one. Raises ValueError if there are none."""
    return min(reasons, key=lambda reason: reason.urgency)

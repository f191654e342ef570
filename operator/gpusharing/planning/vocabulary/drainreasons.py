"""The reasons of a drain: why a pod does not leave. `reasons.py` takes them over, in this order."""

from gpusharing.planning.vocabulary.reasonkinds import Passes

_PERSON, _LATER, _SOON = Passes.BY_A_PERSON, Passes.LATER, Passes.SOON

# fmt: off
PDB_CONFLICT = ("PDBConflict", "Drain", _PERSON,
    "Two PodDisruptionBudgets select the pod; the API server refuses every eviction of such a pod.",
    "Change the selectors so that one PodDisruptionBudget selects the pod.")
PDB_NEVER_ALLOWS = ("PDBNeverAllows", "Drain", _PERSON,
    "The PodDisruptionBudget allows no disruption even when every pod is healthy.",
    "Scale the workload up, or set its maxUnavailable to at least 1.")
UNMANAGED = ("Unmanaged", "Drain", _PERSON,
    "The pod has no controller that would start it elsewhere.",
    "Delete the pod yourself, or set drain.unmanagedPods to Evict.")
GPU_DAEMON_SET = ("GPUDaemonSet", "Drain", _PERSON,
    "A DaemonSet that is not part of the GPU Operator holds a GPU; an evicted pod would come straight back.",
    'Give the DaemonSet the node selector nvidia.com/gpu.deploy.client: "true", or keep it off the '
    "node.")
STATIC_GPU_POD = ("StaticGPUPod", "Drain", _PERSON,
    "A static pod holds a GPU; deleting it through the API does not stop it.",
    "Remove its manifest from the node.")
DRA_CLAIM = ("DRAClaim", "Drain", _PERSON,
    "The pod holds a GPU through a ResourceClaim of driver gpu.nvidia.com, or through one that cannot "
    "be read. Such GPUs are managed by the DRA driver.",
    "Use this operator on nodes that serve GPUs through the device plugin.")
PROTECTED_NAMESPACE = ("ProtectedNamespace", "Drain", _PERSON,
    "The pod's namespace is one in which nothing is evicted (value operator.protectedNamespaces).",
    "Delete or move the pod yourself, or take its namespace out of operator.protectedNamespaces.")
OWN_POD = ("OwnPod", "Drain", _PERSON,
    "The operator itself runs on the node, and all pods have to leave; it never evicts itself.",
    "Give the operator a node outside the pool: set operator.nodeSelector or operator.affinity.")
TOLERATES_CORDON = ("ToleratesCordon", "Drain", _PERSON,
    "The pod tolerates the cordon, or its template names this node, and its controller starts it again here, so "
    "evictions would never end.",
    "Remove the toleration of node.kubernetes.io/unschedulable, or spec.nodeName, from its controller, or scale the "
    "controller down.")
RULE_BLOCKS = ("RuleBlocks", "Drain", _PERSON,
    "A rule of the policy (drain.rules, behavior Block) keeps the pod; the message says which.",
    "Wait until the pod is gone, move it yourself, or change the rule.")
NAMESPACE_UNREADABLE = ("NamespaceUnreadable", "Drain", _PERSON,
    "A rule of the policy needs labels of the pod's namespace, which cannot be read; the node is left alone.",
    "Grant the operator get on namespaces (its chart does), or take namespaceSelector out of the rule.")
LOCAL_STORAGE = ("LocalStorage", "Drain", _PERSON,
    "The pod keeps files in an emptyDir on the node's disk, which it would lose, and drain.localStorage is Block.",
    "Save what the pod needs and delete it yourself, or set drain.localStorage to Evict.")
STRANDED_PODS = ("StrandedPods", "Drain", _PERSON,
    "When all planned changes are done, the pod could not start again: no node would offer its resource name, too few "
    "devices of it would remain, or the change rewrites a node label that the pod requires.",
    "Change the pod's request, let its node affinity accept the old and the new value of the label (operator In), keep "
    "the devices elsewhere, or set drain.strandedPods to Allow.")
DRAIN_HELD = ("DrainHeld", "Drain", _PERSON,
    "drain.timeout is over and drain.onTimeout is Hold: the node stays cordoned and keeps its slot, and the drain "
    "goes on.",
    "Remove what keeps the pods (see Blockers), or lift the cordon to give the change up.")
FORCE_DELETE_FAILED = ("ForceDeleteFailed", "Drain", _PERSON,
    "drain.onTimeout is ForceDelete, and the API server did not carry out the deletion of the pod; its words are in "
    "the message. The operator tries again for as long as the pod's grace period can still end with the drain.",
    "Check the message: a webhook or an admission policy may refuse it.")
TERMINATING_STUCK = ("TerminatingStuck", "Drain", _PERSON,
    "The pod should have ended more than 60 s ago and still exists; it may still hold the GPU.",
    "Find out what should remove the finalizers in the message, or why the kubelet cannot end the container.")
FORBIDDEN = ("Forbidden", "Drain", _PERSON,
    "The API server does not let us evict the pod.",
    "Grant the right that the message names, or remove the policy that refuses.")
LIST_FAILED = ("ListFailed", "Drain", _PERSON,
    "The pods of the node or their PodDisruptionBudgets could not be listed; nothing is decided without them.",
    "Check the message; the next pass tries again.")
EVICTION_ERROR = ("EvictionError", "Drain", _PERSON,
    "The API server could not decide on the eviction; its words are in the message. The drain goes on trying, and "
    "keeps its slot until drain.timeout.",
    "Check the PodDisruptionBudget of the pod and the API server's message.")
DO_NOT_DISRUPT = ("DoNotDisrupt", "Drain", _LATER,
    "A mark on the pod asks not to disturb it: do-not-disrupt, safe-to-evict or cluster.x-k8s.io/drain. The node is "
    "not cordoned meanwhile.",
    "Wait for the pod or the end of its mark, remove the mark, or set drain.protectedPods to Ignore.")
JOBS_RUNNING = ("JobsRunning", "Drain", _LATER,
    "The node is cordoned and waits for pods that run to completion: those of Jobs, and those of rules with "
    "WaitCompleted. Until then no pod of their order is evicted.",
    "Nothing; jobs.timeout and the rule's timeout limit the wait, and drain.jobs.onTimeout says what follows.")
PDB = ("PDB", "Drain", _LATER,
    "The PodDisruptionBudget allows no disruption at the moment.",
    "Bring the unready pods back or let them go (unhealthyPodEvictionPolicy: AlwaysAllow), scale up, or raise "
    "maxUnavailable.")
PDB_NOT_OBSERVED = ("PDBNotObserved", "Drain", _LATER,
    "The PodDisruptionBudget changed and its controller has not processed that yet; shown after 60 s.",
    "If it lasts, check kube-controller-manager.")
GRACE_TOO_LONG = ("GraceTooLong", "Drain", _LATER,
    "A PodDisruptionBudget refuses the eviction of the pod, and drain.onTimeout ForceDelete cannot help: its grace "
    "period plus 10 s (in a short drain: a quarter of it) is not shorter than drain.timeout.",
    "Set drain.timeout more than 10 s longer than the pod's terminationGracePeriodSeconds, or make room in its "
    "PodDisruptionBudget.")
NAMESPACE_TERMINATING = ("NamespaceTerminating", "Drain", _LATER,
    "The pod's namespace is being deleted; the pod goes with it.",
    "If it lasts, find out what keeps the namespace from being removed.")
FORCE_DELETE = ("ForceDelete", "Drain", _SOON,
    "The time of the drain is nearly over, the pod's eviction is still refused, and drain.onTimeout is ForceDelete: "
    "the pod is deleted, with its own grace period, despite its PodDisruptionBudgets.")
THROTTLED = ("Throttled", "Drain", _SOON,
    "The API server asks all clients to slow down; no PodDisruptionBudget is to blame.")
PODS_LEAVING = ("PodsLeaving", "Drain", _SOON,
    "Nothing blocks; terminating pods are using their grace period.")
EVICTED = ("Evicted", "Drain", _SOON,
    "The API server accepted the eviction; the pod is gone when a LIST no longer shows it.")
# fmt: on

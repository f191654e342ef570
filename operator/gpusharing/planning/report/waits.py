"""For every wait that is shown: who keeps the node if no pod does, and until when (docs/design/drain.md#rule-14).

A wait that the clock ends has a time. Any other wait says who ends it: a person, or others.
"""

from datetime import UTC, datetime, timedelta

from gpusharing.api.names import Phase
from gpusharing.api.times import NEVER, to_rfc3339
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import culprit
from gpusharing.planning.vocabulary.reasonkinds import Passes
from gpusharing.planning.vocabulary.reasons import Reason

PERSON, OTHERS = "person", "others"
"""What DEADLINE shows if no clock ends the wait."""
DAY = timedelta(days=1)
"""A deadline that is further than this from the beginning of its phase is shown with its date."""

_SERVER, _OPERATOR, _AGENT, _GPUS = "kube-apiserver", "operator", "agent", "GPUs"
_MIG_MANAGER, _PLUGIN, _GFD, _MPS = (
    "mig-manager",
    "device-plugin",
    "gpu-feature-discovery",
    "mps-control-daemon",
)
_PODS, _STACK, _CONFIG, _KUBELET = "pods", "ClusterPolicy", "ConfigMap", "kubelet"
_POLICY, _NODE, _FOREIGN = "policy", "node", "foreign"

_OTHERS = {
    _POLICY: (
        Reason.SUPERSEDED, Reason.FROZEN, Reason.PAUSED, Reason.HALTED, Reason.APPROVAL_NEEDED, Reason.INVALID_WINDOW,
        Reason.WINDOW_TOO_SHORT, Reason.WINDOW_CLOSED, Reason.CANARY_SOAK, Reason.BUDGET_FULL, Reason.WAITS_FOR_WAVE,
        Reason.NO_NODES, Reason.INVALID_SPEC, Reason.NOT_ACCEPTED, Reason.DELETING, Reason.CONFIG_UNKNOWN,
        Reason.CANARY_TOO_LARGE, Reason.CANARY_NOT_SERVING,
    ),
    _NODE: (
        Reason.FENCE_UNREADABLE, Reason.ORPHAN_FENCE, Reason.NODE_NOT_JUDGED, Reason.ALREADY_CORDONED,
        Reason.WORKLOAD_CONFIG, Reason.OPERANDS_DISABLED, Reason.ROLLED_BACK, Reason.SKIP_LABEL, Reason.NEEDS_ATTENTION,
        Reason.DEFERRED, Reason.DRIFTED, Reason.DRIFT_RETURNED, Reason.CORDON_KEPT, Reason.UNCORDONED_EXTERNALLY,
        Reason.ABORT_REQUESTED, Reason.NODES_FAILED, Reason.BLOCKED, Reason.LABEL_OWNED_ELSEWHERE,
    ),
    _FOREIGN: (Reason.FOREIGN_MAINTENANCE, Reason.FOREIGN_DEVICE_PLUGIN),
    _KUBELET: (Reason.NODE_UNREACHABLE, Reason.NODE_NOT_READY, Reason.CONFIG_PROPAGATING),
    _AGENT: (
        Reason.AGENT_NOT_READY, Reason.AGENT_REFUSED, Reason.AGENT_NOT_STARTED, Reason.AGENT_ERROR,
        Reason.AGENT_LACKS_RIGHTS, Reason.OBSERVATION_PENDING,
    ),
    _MIG_MANAGER: (
        Reason.ACTUATOR_FAILED, Reason.ACTUATOR_STUCK, Reason.ACTUATOR_MISSING, Reason.ACTUATOR_BUSY,
        Reason.ACTUATION_IN_PROGRESS, Reason.OPERANDS_PAUSED, Reason.ROLLING_BACK, Reason.MIG_MANAGER_TOO_OLD,
    ),
    _PLUGIN: (Reason.ALLOCATABLE_MISMATCH, Reason.PLUGIN_TOO_OLD, Reason.MPS_NOT_SWITCHABLE),
    _GFD: (Reason.LABEL_MISMATCH,),
    _MPS: (Reason.MPS_NOT_RUNNING,),
    _GPUS: (
        Reason.GPU_STILL_BUSY, Reason.UNSAFE_DRIVER, Reason.GPU_MISSING, Reason.MIG_MODE_PENDING, Reason.COMPUTE_MODE,
        Reason.LAYOUT_MISMATCH, Reason.NO_GPU, Reason.HARDWARE_UNKNOWN,
    ),
    _STACK: (Reason.TAINT_NOT_TOLERATED,),
    _CONFIG: (Reason.CONFIG_NOT_WRITTEN, Reason.CONFIG_MAP_TAKEN),
    _SERVER: (
        Reason.CALL_FAILED, Reason.INTERNAL_ERROR, Reason.LIST_FAILED, Reason.THROTTLED, Reason.FORBIDDEN,
        Reason.EVICTION_ERROR, Reason.FORCE_DELETE_FAILED,
    ),
    _OPERATOR: (
        Reason.SETTLING, Reason.ADOPTABLE, Reason.CORDON_RESTORED, Reason.PROGRESSING, Reason.ROLLOUT_IN_PROGRESS,
        Reason.NO_PROGRESS,
    ),
}  # fmt: skip
_BY_GROUP = {"Hardware": _POLICY, "Accepted": _STACK, "Health": _GPUS, "Drain": _PODS}
_KEEPS = {reason: who for who, reasons in _OTHERS.items() for reason in reasons}
_AFTER_PODS = (Reason.DRAIN_TIMEOUT, Reason.JOBS_TIMEOUT)


def is_wait(verdict: Verdict) -> bool:
    """Something still has to happen to this node: a person, somebody else or the clock decides when."""
    return verdict.reason.passes is not Passes.DONE or verdict.reason is Reason.PROGRESSING


def who_keeps(verdict: Verdict, node: NodeView) -> str:
    """The first pod that keeps the node and how many more, otherwise the object or program that keeps it; empty: there
    is no wait."""
    if not is_wait(verdict):
        return ""
    if found := culprit(verdict.blockers) or verdict.leaving or verdict.keeper:
        return found
    who = _KEEPS.get(verdict.reason) or _BY_GROUP.get(verdict.reason.group, "")
    if verdict.reason in _AFTER_PODS:
        who = _PODS
    if who == _POLICY:
        return f"gsp/{verdict.policy}" if verdict.policy else who
    if who == _NODE:
        return f"node/{node.name}"
    return (node.foreign or who) if who == _FOREIGN else who


def until_when(verdict: Verdict, since: datetime) -> str:
    """When the clock ends the wait: a time of day in UTC, with its date if it is more than a day after `since`, when
    the phase began. Otherwise who ends it; empty: there is no wait."""
    if not is_wait(verdict):
        return ""
    if verdict.phase is Phase.FAILED or verdict.reason is Reason.DRAIN_HELD or verdict.stands:
        return PERSON
    deadline = verdict.deadline
    if deadline is not None and deadline != NEVER:
        return to_rfc3339(deadline) if deadline - since > DAY else f"{deadline.astimezone(UTC):%H:%M:%SZ}"
    foreign = verdict.reason is Reason.FOREIGN_MAINTENANCE
    return PERSON if verdict.reason.passes is Passes.BY_A_PERSON and not foreign else OTHERS

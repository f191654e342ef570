"""The words of reasons that a policy's rollout gives: which nodes may start, and when. `reasons.py` lists them all."""

from gpusharing.planning.vocabulary.reasonkinds import Passes, Words

_PERSON, _LATER = Passes.BY_A_PERSON, Passes.LATER

# fmt: off
FROZEN: Words = ("Frozen", "Node", _PERSON,
    "rollout.maxUnavailable is 0 or cannot be read, so no node may start.",
    "Set rollout.maxUnavailable to a number or a percentage above 0.")
PAUSED: Words = ("Paused", "Node", _PERSON,
    "rollout.paused is true: no further node starts. rollout.whenPaused says what becomes of nodes in flight.",
    "Set rollout.paused to false.")
HALTED: Words = ("Halted", "Node", _PERSON,
    "The number of nodes that failed after the point of no return in this generation of the policy has reached "
    "rollout.maxFailures. No further node starts.",
    "Find out why (status.failures); then run the command in the message, or change the policy.")
APPROVAL_NEEDED: Words = ("ApprovalNeeded", "Node", _PERSON,
    "rollout.approval is Manual, and the current plan is not approved.",
    "Look at status.plan, then run the command in the message.")
SKIP_LABEL: Words = ("SkipLabel", "Node", _PERSON,
    "The Node has the label gpusharing.dev/skip=true: no change begins there. It still counts in its pool.",
    "Remove the label when the node may be changed.")
NEEDS_ATTENTION: Words = ("NeedsAttention", "Node", _PERSON,
    "Five attempts or more were given up before anything changed. The next one follows after a wait; other nodes go "
    "on.",
    "Remove what blocked (see the message); gpusharing.dev/retry on the Node starts the next attempt at once.")
LABEL_OWNED_ELSEWHERE: Words = ("LabelOwnedElsewhere", "Node", _PERSON,
    "Another controller keeps the label that the change would write, nvidia.com/mig.config or "
    "nvidia.com/device-plugin.config, and would put its own value back. No change starts.",
    "Do what the message says, such as removing the label from a NodeFeatureRule.")
ABORT_REQUESTED: Words = ("AbortRequested", "Node", _LATER,
    "A person asked for this change to be given up before the point of no return (gpusharing.dev/abort on the Node).",
    "Nothing; the next attempt follows after a wait. gpusharing.dev/skip=true on the Node keeps it from starting.")
CANARY_TOO_LARGE: Words = ("CanaryTooLarge", "Node", _PERSON,
    "rollout.canary asks for more nodes than the pool has, so it could never be proven. No node in service starts.",
    "Lower rollout.canary.nodes as the message says, or add nodes to the pool.")
CANARY_NOT_SERVING: Words = ("CanaryNotServing", "Node", _PERSON,
    "A node that was changed first (rollout.canary) no longer serves what was proven there: it is not Ready, cordoned, "
    "drifted, or one of its GPUs is unhealthy. No other node starts; a canary that has drifted is corrected.",
    "Look at the node that the message names. When it serves again, or has left the pool, the rollout goes on; an edit "
    "of the policy begins with new canaries.")
CANARY_SOAK: Words = ("CanarySoak", "Node", _LATER,
    "The first nodes of the change (rollout.canary) are not all proven yet, or have not served for the soak time.",
    "Wait for them.")
INVALID_WINDOW: Words = ("InvalidWindow", "Node", _PERSON,
    "A schedule or time zone of rollout.windows or rollout.blackouts cannot be followed, so no node may start.",
    "Correct the field that the message names.")
WINDOW_TOO_SHORT: Words = ("WindowTooShort", "Node", _PERSON,
    "No window is open for as long as a change may take: drain.timeout and the slowest of the last 20 changes.",
    "Lengthen a window or shorten drain.timeout; where the message names the blackouts, shorten those.")
ROLLED_BACK: Words = ("RolledBack", "Node", _PERSON,
    "The change failed after the point of no return, and the node went back to what was proven on it last "
    "(rollout.onFailure Rollback). It serves that, counts as failed, and is not tried again in this generation.",
    "Remove the cause that the message names, then run its command, or change the policy.")
ROLLING_BACK: Words = ("RollingBack", "Node", _LATER,
    "The change failed after the point of no return, and the node goes back to what was proven on it last "
    "(rollout.onFailure Rollback). It stays cordoned until that is proven again.",
    "Nothing; when it fails too, the node is held as Failed, and its message has the command for another try.")
DEFERRED: Words = ("Deferred", "Node", _LATER,
    "An earlier attempt was given up before anything changed; the next one waits.",
    "Remove what blocked; gpusharing.dev/retry on the Node starts the next attempt at once.")
BUDGET_FULL: Words = ("BudgetFull", "Node", _LATER,
    "No further node may be unavailable: rollout.maxUnavailable or the operator-wide cap is reached, or the operator's "
    "own pod needs the last nodes.",
    "Wait, or raise the limit that the message names.")
WINDOW_CLOSED: Words = ("WindowClosed", "Node", _LATER,
    "No node starts now: it is outside rollout.windows, in rollout.blackouts, or too little of the window is left.",
    "Wait until the time in the message, or change rollout.windows.")
# fmt: on

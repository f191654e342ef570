"""What we record on Nodes and on the leader Lease: the only memory of a change. `kube/fence.py` writes it as text."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from gpusharing.api.names import DisruptionClass
from gpusharing.api.times import NEVER, from_rfc3339
from gpusharing.planning.vocabulary.values import value

CLOCK_ERROR = timedelta(seconds=1)
"""How far a time that we write may be from the API server's: one clock counts to half a second and half of what a call
took (kube/clock.py), here up to a second."""
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(text: object) -> datetime:
    if (moment := from_rfc3339(text)) is None:
        raise ValueError("not a time with a time zone")
    if not EARLIEST <= moment <= NEVER:
        raise ValueError("not a time between 1970 and 9999")
    return moment


Moment = Annotated[datetime, BeforeValidator(_moment)]
"""A time that is written as text; not so far away that adding to it overflows, which would stop other nodes too."""
Number = Annotated[int, Field(ge=0, le=10**10)]
"""A count, bounded for the same reason. In seconds that is 317 years."""
_WRITTEN = ConfigDict(alias_generator=to_camel, strict=True)
"""As text: camelCase keys, and no conversion between types."""


@value
class SpecVersion:
    """One generation of the spec of one policy. A generation alone says nothing: every policy counts from 1, also one
    that is recreated under its name."""

    __pydantic_config__ = _WRITTEN

    uid: str
    """UID of the policy; empty: an older operator did not record it."""
    generation: int
    """Its metadata.generation; 0: of none in particular."""


UNRECORDED = SpecVersion("", 0)
"""That of a record which names no policy and no generation."""


@value
class Fence:
    """Our record on a Node of the change in flight. It is the only memory of that change.

    The PATCH that cordons, where the change needs a cordon, also writes it. Every run of the actuators (each goes
    through the point of no return, PNR) and the steps that a field names rewrite it, and the release removes it.
    """

    __pydantic_config__ = _WRITTEN

    op: str
    """Identifies the change; the ids of its requests to the agent begin with it. Stays the same until the release."""
    policy: str
    """The policy whose change it is. Each run sets the policy that drives the node at that time; on a Failed node that
    another policy owns by now, that owner replaces it."""
    version: SpecVersion
    """The version of the policy's spec that the change follows: that at the fence, and after each run or turn back that
    at that time. Until the next run it is not that of a policy which took the node over meanwhile."""
    node_uid: str
    """UID of the Node that was fenced. A Node with another UID has only inherited the annotation."""
    prior_unschedulable: bool
    """Whether the node was cordoned before the fence: that cordon is not ours to lift."""
    added: tuple[str, ...]
    """Keys of the labels and annotations for the neighbours (docs/design/drain.md#c6) that we set and remove again;
    empty once the node is yielded, which removes them."""
    disruption: DisruptionClass
    """The worst class of disruption that the change has had so far; it only rises."""
    from_layout: str
    """What the GPUs were divided into at the fence, for people; does not change."""
    to_layout: str
    """What the change leads to, for people; from the PNR on what the run leads to, which may be a stop on the way.
    Where the text of the target differs from it, a configuration has got another meaning since."""
    stage: Literal["fenced", "yielded", "actuating"]
    """`fenced` before the PNR, `actuating` after it, `yielded` while somebody else maintains the node that we had
    fenced."""
    step: Number
    """Number, from 1, of the step that the last run belongs to; before the PNR 1."""
    steps: Number
    """How many steps there are: 2 where the way leads through a stop, else 1. Each run sets it."""
    attempt: Number
    """1 for a new aim and after each retry that a person asks for; each cure of mig-manager adds 1."""
    since: Moment
    """When the node was fenced, or when we restored our cordon after the PNR: earlier LISTs prove nothing, and pods
    created later were started despite the cordon."""
    stage_since: Moment
    """When the stage began; after the PNR, when the last run began."""
    deadline: Moment
    """Before the PNR the end of the time for pods to leave; after it the time from which the node counts as Failed.
    Each run sets a new one, and so does the record of a run that is owed."""
    drift: bool = False
    """Whether the change corrects drift, which is allowed once per generation; false after a run that follows another
    policy or generation."""
    from_mode: str = ""
    """Value of the routing label before the fence; an abort restores it. Empty: there was none."""
    target_mig_config: str = ""
    """Value of `nvidia.com/mig.config` that the run leads to; empty before the PNR, and where mig-manager is not
    needed."""
    target_plugin_config: str = ""
    """Value of `nvidia.com/device-plugin.config` that the run leads to; empty before the PNR."""
    gfd_timestamp: str = ""
    """GFD's start time before the run that changed the plugin's configuration: only a later start time proves that
    change. Empty where the run did not change it."""
    daemon_uid: str = ""
    """UID of the MPS daemon's pod that this run deletes; as long as that pod exists, it is still to be deleted. Empty:
    none."""
    restart_uid: str = ""
    """UID of the mig-manager pod that this run deletes; as long as that pod exists, it is still to be deleted. Empty:
    none."""
    retry: str = ""
    """The value of the retry annotation at the fence, at the last run or at the record of one that is owed; another
    value on the Node asks for a new attempt."""
    began: Moment | None = None
    """When the change first passed the PNR, or did so again after a failure; None before that, and in fences of older
    operators."""
    planned: DisruptionClass = DisruptionClass.NONE
    """The class of disruption that the plan showed; `disruption` may have risen since. None: not recorded."""
    failed_version: SpecVersion | None = None
    """The version of the spec that an earlier run of this change followed which failed after the PNR; None: none
    did."""
    failed: Moment | None = None
    """When a pass first found that the last run had failed after the PNR; None: none did, or an older operator did not
    record it. At or after `deadline`, it failed by the clock, even if the clock has been set back since."""
    rolls_back: bool = False
    """Whether the change of this generation failed and the node goes back to what was proven on it last. True until the
    policy is edited or a person sets another value of the retry annotation."""
    failure: str = ""
    """Why the node goes back, for people; empty: it does not."""
    owed: str = ""
    """What a run that has yet to begin leads to; it begins when the node is proven idle again. Empty: no run is
    owed."""
    jobs: bool = False
    """Whether, before the PNR, pods that run to completion are waited for; `deadline` is then the end of that wait."""
    newcomer: bool = False
    """Whether the node waited behind the start-up taint, had never been given back after a proof and had no GPU pod:
    nobody counted on it, so the change takes no slot of its policy's budget."""
    wave: str = ""
    """Name of the wave, the same on all nodes that started together because they share a gang; empty: it started
    alone."""
    mates: tuple[str, ...] = ()
    """Nodes of that gang that did not fit into the budget and so come next; at most 20 are recorded."""
    proven: Moment | None = None
    """When the node was found proven while it waits for the others of its wave, or, in stage `yielded`, for somebody
    else's work to end; None: not proven yet, or it does not wait."""
    revision: str = ""
    """Revision of the policy's spec that the change follows (`wanted/revision.py`), set with `version`. Empty: not
    recorded."""
    turned: bool = False
    """Whether the change began under another policy or revision than its last run."""
    approved: str = ""
    """The target that a person approved for the change, in the form of `owed`. Empty: no approval was needed, or it was
    not recorded."""
    unknown: str = ""
    """JSON object of the keys that a newer operator wrote and this one does not know; they are kept. Empty: none."""


@value
class Deferred:
    """An abort leaves it on the Node: the next attempt waits until `until`. The next release without one removes it.

    A node that is given back after a failure, to begin again, gets one that only records the failure, without a wait.
    """

    __pydantic_config__ = _WRITTEN

    count: Number
    """How many changes of this policy and generation were aborted so far; each doubles the wait, from 5 minutes. 0:
    there is no wait."""
    until: Moment
    """When the next attempt may begin."""
    reason: str
    """Why the last attempt was given up, for people."""
    version: SpecVersion
    """The version of the spec whose change was given up; another one does not wait. Without a UID, any policy of this
    generation waits."""
    retry: str = ""
    """The value of the retry annotation at the time; another value ends the wait."""
    failed_version: SpecVersion | None = None
    """The version of the spec in which the change failed after the PNR before it was given up; None: it did not."""


@value
class Verified:
    """What was proven on a Node last; every release after a proof and every adoption leaves it there."""

    __pydantic_config__ = _WRITTEN

    policy: str
    """Name of the policy that asked for what was proven."""
    mig_config: str
    """Value of `nvidia.com/mig.config` at the proof; empty where mig-manager is not needed."""
    plugin_config: str
    """Value of `nvidia.com/device-plugin.config`."""
    corrected_generation: int = 0
    """The policy generation in which drift was already corrected once; 0: never."""
    retry: str = ""
    """The value of the retry annotation at the time; another value allows one more correction."""
    layout: str = ""
    """The layout that the two values meant at the proof; an admin may give them another meaning. Empty: not
    recorded."""
    gpus: Number = 0
    """How many GPUs the node had: if it has fewer, one is missing. 0: not recorded."""
    version: SpecVersion = UNRECORDED
    """The version of the spec that our last change followed. Its UID is that of `policy`, also where no change of ours
    made the node as it is."""
    changed_at: Moment | None = None
    """When our last change was proven here; None: there was none, or an older operator made it."""
    took: Number = 0
    """Seconds from the PNR of that change, or of its first run after a failure, to its proof; 0: not known."""
    planned: DisruptionClass = DisruptionClass.NONE
    """The class of disruption that the plan of this change showed. None: not recorded."""
    failed_version: SpecVersion | None = None
    """The version of the spec in which this change failed after the PNR before it was proven; None: it did not."""
    rolled_back: bool = False
    """Whether the change of `version` failed and this is what the node went back to; `changed_at` and `took` are
    then those of the last change that reached its target."""
    failure: str = ""
    """Why the node went back, for people; empty: it did not."""
    revision: str = ""
    """Revision of the policy's spec that this change followed (`wanted/revision.py`). Empty: not recorded."""
    apart: bool = False
    """Whether the change says nothing about a canary for which the pool is too small: nobody counted on the node yet
    (`newcomer`), or the change began under another spec (`turned`). Also false where an older operator wrote the
    record."""
    mates: tuple[str, ...] = ()
    """`mates` of the fence of that change: they come next once it has ended too. Empty: it left nobody behind, the node
    went back, or an older operator wrote the record."""


@value
class FailedNode:
    """A node failed after the point of no return. It is kept on the leader Lease, as the Node may go: a node whose
    kubelet does not come back is replaced."""

    __pydantic_config__ = _WRITTEN

    node: str
    """Name of the Node, for people."""
    version: SpecVersion
    """The version of the spec whose change failed; it counts for `rollout.maxFailures` of that one."""
    gone: bool = False
    """Whether the Node was deleted before its change was proven or found to have failed."""

    @property
    def display_name(self) -> str:
        """The node, for a message."""
        return f"{self.node} (deleted in the middle of its change)" if self.gone else self.node


@value
class Claim:
    """A slot of the disruption budget, held on the leader Lease from before the fence is written until it is gone."""

    __pydantic_config__ = _WRITTEN

    node_uid: str
    """UID of the Node that holds the slot; a Node with another UID under the same name does not hold it."""
    policy: str
    """Name of the policy in whose budget the slot counts."""
    op: str
    """The change that the slot is for: `op` of the fence."""
    wave: str = ""
    """`wave` of the fence that is to come: after a crash a successor starts the node in the same wave. Empty: none."""
    version: SpecVersion | None = None
    """The version of the spec whose change is at its point of no return or past it, and unproven: if the Node goes now,
    that change has failed (docs/adr/0044-what-was-seen-is-written-down.md). None: not there yet, or proven."""

    @staticmethod
    def of(node_uid: str, fence: Fence) -> "Claim":
        """The slot of a change that begins or is in flight."""
        claim = Claim(node_uid, fence.policy, fence.op, fence.wave)
        if fence.stage != "actuating" or fence.proven is not None or fence.node_uid != node_uid:
            return claim
        return replace(claim, version=fence.version)

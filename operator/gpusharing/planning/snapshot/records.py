"""What we record on Nodes and on the leader Lease: the only memory of a change. `kube/fence.py` writes it as text.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#claim, docs/design/glossary.md#wave,
docs/design/glossary.md#drift, docs/design/glossary.md#slot, docs/design/glossary.md#gang,
docs/design/glossary.md#point-of-no-return, docs/design/glossary.md#class, docs/design/glossary.md#newcomer.
"""

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
    """Return the time that `text` says, for pydantic. Raises ValueError if it is no time with a time zone, or one
    before 1970 or after 9999."""
    if (moment := from_rfc3339(text)) is None:
        raise ValueError("not a time with a time zone")
    if not EARLIEST <= moment <= NEVER:
        raise ValueError("not a time between 1970 and 9999")
    return moment


Moment = Annotated[datetime, BeforeValidator(_moment)]
"""A time that is written as text. Its bounds keep additions from overflowing, which would stop other nodes too."""
Number = Annotated[int, Field(ge=0, le=10**10)]
"""A count, bounded so that adding to it cannot overflow. As seconds the bound is 317 years."""
_WRITTEN = ConfigDict(alias_generator=to_camel, strict=True)
"""How a record is written as text: camelCase keys, and no conversion between types."""


@value
class SpecVersion:
    """One generation of the spec of one policy. A generation alone says nothing: every policy counts from 1, also one
    that is recreated under its name."""

    __pydantic_config__ = _WRITTEN

    uid: str
    """UID of the policy. Empty if an older operator did not record it."""
    generation: int
    """metadata.generation of the policy, or 0 for no generation in particular."""


UNRECORDED = SpecVersion("", 0)
"""The version in a record that names no policy and no generation."""


@value
class Fence:
    """Our record on a Node of the change in flight. It is the only memory of that change.

    The PATCH that cordons, where the change needs a cordon, also writes it. Every run of the actuators (each goes
    through the point of no return, PNR) and the steps that a field names rewrite it, and the release removes it.
    """

    __pydantic_config__ = _WRITTEN

    op: str
    """Id of the change, with which the ids of its requests to the agent begin. It stays the same until the release."""
    policy: str
    """The policy whose change it is. Each run sets the policy that drives the node at that time. If the node has
    failed and another policy owns it by now, that owner replaces it."""
    version: SpecVersion
    """The version of the policy's spec that the change follows. It is set when the fence is written, and by each run
    and turn back. If another policy takes the node over meanwhile, it is not that policy's version until the next
    run."""
    node_uid: str
    """UID of the Node that was fenced. A Node with another UID has only inherited the annotation."""
    prior_unschedulable: bool
    """Whether the node was cordoned before the fence: that cordon is not ours to lift."""
    added: tuple[str, ...]
    """Keys of the labels and annotations for the neighbors (docs/design/drain.md#c6) that we set and remove again.
    Empty once the node is yielded, which removes them."""
    disruption: DisruptionClass
    """The worst class of disruption that the change has had so far. It only gets worse."""
    from_layout: str
    """How the GPUs were divided when the fence was written, for people. It does not change."""
    to_layout: str
    """The layout that the change leads to, for people. After the PNR it is what the run leads to, which may be a stop
    on the way. If the text of the target differs from it, a configuration has got another meaning since."""
    stage: Literal["fenced", "yielded", "actuating"]
    """`fenced` before the PNR, `actuating` after it, `yielded` while somebody else maintains the node that we had
    fenced."""
    step: Number
    """Number, from 1, of the step that the last run belongs to. Before the PNR it is 1."""
    steps: Number
    """How many steps there are: 2 if the change leads through a stop on the way, else 1. Each run sets it."""
    attempt: Number
    """Number of the attempt: 1 for a new aim and after each retry that a person asks for; each cure of mig-manager
    adds 1."""
    since: Moment
    """When the node was fenced, or when we restored our cordon after the PNR: earlier LISTs prove nothing, and pods
    created later were started despite the cordon."""
    stage_since: Moment
    """When the stage began; after the PNR, when the last run began."""
    deadline: Moment
    """Before the PNR, when the time for pods to leave ends; after it, the time from which the node counts as Failed.
    Each run sets a new one, and so does the record of a run that is owed."""
    drift: bool = False
    """Whether the change corrects drift, which is allowed once per generation. False after a run that follows another
    policy or generation."""
    from_mode: str = ""
    """Value of the routing label before the fence, which an abort restores. Empty if there was none."""
    target_mig_config: str = ""
    """Value of `nvidia.com/mig.config` that the run leads to; empty before the PNR, and where mig-manager is not
    needed."""
    target_plugin_config: str = ""
    """Value of `nvidia.com/device-plugin.config` that the run leads to; empty before the PNR."""
    gfd_timestamp: str = ""
    """GFD's start time before the run that changed the plugin's configuration: only a later start time proves that
    change. Empty where the run did not change it."""
    daemon_uid: str = ""
    """UID of the MPS daemon's pod that this run deletes. As long as that pod exists, it is still to be deleted. Empty
    if there is none."""
    restart_uid: str = ""
    """UID of the mig-manager pod that this run deletes. As long as that pod exists, it is still to be deleted. Empty
    if there is none."""
    retry: str = ""
    """The value of the retry annotation when the fence was written, at the last run, or at the record of one that is
    owed. Another value on the Node asks for a new attempt."""
    began: Moment | None = None
    """When the change first passed the PNR, or did so again after a failure; None before that, and in fences of older
    operators."""
    planned: DisruptionClass = DisruptionClass.NONE
    """The class of disruption that the plan showed; `disruption` may have got worse since. DisruptionClass.NONE if it
    was not recorded."""
    failed_version: SpecVersion | None = None
    """The version of the spec that an earlier run of this change followed when it failed after the PNR, or None if
    none failed."""
    failed: Moment | None = None
    """When a pass first found that the last run had failed after the PNR. None if it has not failed, or if an older
    operator did not record it. A time at or after `deadline` means that it failed by the clock, even if the clock
    was set back since."""
    rolls_back: bool = False
    """Whether the change of this generation failed and the node goes back to what was proven on it last. True until the
    policy is edited or a person sets another value of the retry annotation."""
    failure: str = ""
    """Why the node goes back, for people. Empty if it does not go back."""
    owed: str = ""
    """The target of a run that has yet to begin, which it does when the node is proven idle again. Empty if no run is
    owed."""
    jobs: bool = False
    """Whether, before the PNR, pods that run to completion are waited for; `deadline` is then the end of that wait."""
    newcomer: bool = False
    """Whether the node waited behind the start-up taint, had never been returned to service after a proof and had no
    GPU pod. Nobody counted on it, so the change takes no slot of its policy's budget."""
    wave: str = ""
    """Name of the wave, the same on all nodes that started together because they share a gang. Empty if the node
    started alone."""
    mates: tuple[str, ...] = ()
    """Nodes of that gang that did not fit into the budget and so come next; at most 20 are recorded."""
    proven: Moment | None = None
    """When the node was found proven while it waits for the others of its wave, or, in stage `yielded`, for somebody
    else's work to end. None if it is not proven yet, or does not wait."""
    revision: str = ""
    """Revision of the policy's spec that the change follows (`wanted/revision.py`), set with `version`. Empty if it
    was not recorded."""
    turned: bool = False
    """Whether the change began under another policy or revision than its last run."""
    approved: str = ""
    """The target that a person approved for the change, in the form of `owed`. Empty if no approval was needed, or if
    it was not recorded."""
    unknown: str = ""
    """JSON object of the keys that a newer operator wrote and this one does not know; they are written back unchanged.
    Empty if there are none."""


@value
class Deferred:
    """The record that an abort leaves on the Node, so that the next attempt waits until `until`. The next release
    without one removes it.

    A node that is returned to service after a failure, to begin again, gets one that only records the failure, without
    a wait.
    """

    __pydantic_config__ = _WRITTEN

    count: Number
    """How many changes of this policy and generation were aborted so far. Each doubles the wait, from 5 minutes. 0 if
    there is no wait."""
    until: Moment
    """When the next attempt may begin."""
    reason: str
    """Why the last attempt was given up, for people."""
    version: SpecVersion
    """The version of the spec whose change was given up; another version does not wait. Without a UID, any policy of
    this generation waits."""
    retry: str = ""
    """The value of the retry annotation at that time; another value ends the wait."""
    failed_version: SpecVersion | None = None
    """The version of the spec in which the change failed after the PNR before it was given up, or None if it did not
    fail."""


@value
class Verified:
    """The record of what was proven on a Node last. Every release after a proof and every adoption writes it."""

    __pydantic_config__ = _WRITTEN

    policy: str
    """Name of the policy that asked for what was proven."""
    mig_config: str
    """Value of `nvidia.com/mig.config` at the proof; empty where mig-manager is not needed."""
    plugin_config: str
    """Value of `nvidia.com/device-plugin.config`."""
    corrected_generation: int = 0
    """The policy generation in which drift was already corrected once, or 0 if it never was."""
    retry: str = ""
    """The value of the retry annotation at that time; another value allows one more correction."""
    layout: str = ""
    """The layout that the two values meant at the proof; an admin may give them another meaning. Empty if it was not
    recorded."""
    gpus: Number = 0
    """How many GPUs the node had; if it has fewer now, one is missing. 0 if it was not recorded."""
    version: SpecVersion = UNRECORDED
    """The version of the spec that our last change followed. Its UID is that of `policy`, even if no change of ours
    made the node as it is."""
    changed_at: Moment | None = None
    """When our last change was proven here, or None if there was none, or an older operator made it."""
    took: Number = 0
    """Seconds from the PNR of that change, or of its first run after a failure, to its proof. 0 if it is unknown."""
    planned: DisruptionClass = DisruptionClass.NONE
    """The class of disruption that the plan of this change showed. DisruptionClass.NONE if it was not recorded."""
    failed_version: SpecVersion | None = None
    """The version of the spec in which this change failed after the PNR before it was proven, or None if it did not
    fail."""
    rolled_back: bool = False
    """Whether the change of `version` failed and this is what the node went back to; `changed_at` and `took` are
    then those of the last change that reached its target."""
    failure: str = ""
    """Why the node went back, for people. Empty if it did not go back."""
    revision: str = ""
    """Revision of the policy's spec that this change followed (`wanted/revision.py`). Empty if it was not recorded."""
    apart: bool = False
    """Whether the change says nothing about a canary for which the pool is too small, because nobody counted on the
    node yet (`newcomer`), or because the change began under another spec (`turned`). False if an older operator
    wrote the record."""
    mates: tuple[str, ...] = ()
    """`mates` of the fence of that change, which come next once the change has ended too. Empty if no node was left
    behind, if the node went back, or if an older operator wrote the record."""


@value
class FailedNode:
    """The record that a node failed after the point of no return. It is kept on the leader Lease, because the Node may
    be deleted: a node whose kubelet does not come back is replaced."""

    __pydantic_config__ = _WRITTEN

    node: str
    """Name of the Node, for people."""
    version: SpecVersion
    """The version of the spec whose change failed; it counts for `rollout.maxFailures` of that one."""
    gone: bool = False
    """Whether the Node was deleted before its change was proven or found to have failed."""

    @property
    def display_name(self) -> str:
        """The name of the node for a message, which says so if the node was deleted in the middle of its change."""
        return f"{self.node} (deleted in the middle of its change)" if self.gone else self.node


@value
class Claim:
    """A slot of the disruption budget, held on the leader Lease from before the fence is written until the fence is
    gone."""

    __pydantic_config__ = _WRITTEN

    node_uid: str
    """UID of the Node that holds the slot; a Node with another UID under the same name does not hold it."""
    policy: str
    """Name of the policy in whose budget the slot counts."""
    op: str
    """The change that the slot is for: `op` of the fence."""
    wave: str = ""
    """`wave` of the fence that is to come, so that after a crash a successor starts the node in the same wave. Empty
    if there is none."""
    version: SpecVersion | None = None
    """The version of the spec whose change is at its point of no return or past it, and unproven: if the Node goes
    now, that change has failed (docs/adr/0044-what-was-seen-is-written-down.md). None before that, and once it is
    proven."""

    @staticmethod
    def of(node_uid: str, fence: Fence) -> "Claim":
        """Return the claim of a change that begins or is in flight. It has a `version` only if the change has reached
        its point of no return and is unproven, and only if the fence is of this Node."""
        claim = Claim(node_uid, fence.policy, fence.op, fence.wave)
        if fence.stage != "actuating" or fence.proven is not None or fence.node_uid != node_uid:
            return claim
        return replace(claim, version=fence.version)

"""What we leave on Nodes and on the leader Lease: the only memory of a change. `kube/fence.py` writes it as text."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from gpusharing.api.names import DisruptionClass
from gpusharing.api.times import NEVER, from_rfc3339
from gpusharing.planning.words.values import value

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(text: object) -> datetime:
    if (moment := from_rfc3339(text)) is None:
        raise ValueError("not a time with a time zone")
    if not EARLIEST <= moment <= NEVER:
        raise ValueError("not a time between 1970 and 9999")
    return moment


Moment = Annotated[datetime, BeforeValidator(_moment)]
"""A field that is written as text. It is limited so that a duration can be added to it: an overflow would stop other
nodes too."""
Number = Annotated[int, Field(ge=0, le=10**10)]
"""A count, limited for the same reason. In seconds that is 317 years."""
_WRITTEN = ConfigDict(alias_generator=to_camel, strict=True)
"""As text: camelCase keys, and no value is converted from another type."""


@value
class Fence:
    """Our record on a Node of the change in flight. It is the only memory of that change.

    It is written with the cordon, rewritten at every run of the actuators (each goes through the point of no return,
    PNR) and at the steps that a field names, and removed by the release.
    """

    __pydantic_config__ = _WRITTEN

    op: str
    """Identifies the change, and begins every request to the agent that belongs to it; stays the same to its end."""
    policy: str
    """The policy of the change. Each run records the policy that drives the node then; for a Failed node that another
    policy owns by now, it is replaced by that owner."""
    generation: int
    """The generation of the policy's spec that the change follows: at the fence, and updated at each run."""
    node_uid: str
    """Of the Node that was fenced. A Node of another UID has only inherited the annotation."""
    prior_unschedulable: bool
    """Somebody had cordoned the node before: that cordon is not ours to lift."""
    added: tuple[str, ...]
    """Labels and annotations for the neighbours (docs/design/drain.md#c6) that we set and remove again; empty once the
    node is yielded, which removes them."""
    disruption: DisruptionClass
    """The worst class of disruption that the change ever had; it only rises."""
    from_layout: str
    """What the GPUs were divided into at the fence, for people."""
    to_layout: str
    """The goal of the change, for people; from the PNR on the goal of the run, which may be a stop on the way. If the
    target no longer reads the same, a configuration has changed its meaning."""
    stage: Literal["fenced", "yielded", "actuating"]
    """`fenced` before the PNR, `actuating` after it, `yielded` while somebody else maintains the node that we had
    fenced."""
    step: Number
    """Number of the step that the last run belongs to, or the first one will; from 1."""
    steps: Number
    """The number of steps; 2 if the way leads through a stop."""
    attempt: Number
    """1 for a new aim and after each retry that a person requests; one more with each cure of mig-manager."""
    since: Moment
    """When the node was fenced, or our cordon put back after the PNR: earlier LISTs prove nothing, and pods created
    later were started in spite of the cordon."""
    stage_since: Moment
    """When the stage began; after the PNR, when the last run began."""
    deadline: Moment
    """Before the PNR the end of the time for pods to leave; after it the moment from which the node counts as Failed.
    Each run sets it again, and so does the record of a run that is owed."""
    drift: bool = False
    """The change corrects drift, which is allowed once per generation; false from the first run for another policy or
    generation."""
    from_mode: str = ""
    """Routing label before the fence; an abort restores it. Empty: there was none."""
    target_mode: str = ""
    """Routing label of the run's goal; empty before the PNR. For people and tools that read the annotation: no version
    of the operator reads it, because a release takes the label from the proven target."""
    target_mig_config: str = ""
    """Value of `nvidia.com/mig.config` that the run leads to; empty before the PNR, and where mig-manager is not
    needed."""
    target_plugin_config: str = ""
    """Value of `nvidia.com/device-plugin.config` that the run leads to; empty before the PNR."""
    gfd_timestamp: str = ""
    """GFD's start time before the run that changed the configuration of the plugin, which only a later one proves;
    empty if the run changed none."""
    daemon_uid: str = ""
    """The MPS daemon's pod that this run deletes; while that very pod lives, it is still to be deleted. Empty: none."""
    restart_uid: str = ""
    """The mig-manager pod that this run deletes; while that very pod lives, it is still to be deleted. Empty: none."""
    retry: str = ""
    """The value of the retry annotation that was last answered: by the fence, by a run or by one that is owed."""
    policy_uid: str = ""
    """UID of the policy at the fence or at the last run: another policy of this name counts its attempts from the
    start. Empty: not recorded."""
    began: Moment | None = None
    """When the change first passed the PNR; None before that, and in fences of older operators."""
    planned: DisruptionClass = DisruptionClass.NONE
    """The class of disruption that the plan showed, which may have risen since. None: not recorded."""
    failed_generation: int = 0
    """The generation of the policy in which this change has failed after the PNR; 0: it has not."""
    failed: Moment | None = None
    """When the last run was first seen to have failed after the PNR; None: it was not, or an older operator saw it. At
    or after `deadline`: it failed by the clock, whatever the clock says since."""
    rolls_back: bool = False
    """The change of this generation has failed, and the node goes back to what was proven on it last. True until the
    policy is edited or a person sets another value of the retry annotation."""
    failure: str = ""
    """Why it goes back, for people; empty: it does not."""
    owed: str = ""
    """The goal of a run that has yet to begin; it begins when the node is proven idle again. Empty: none is owed."""
    jobs: bool = False
    """Before the PNR, the drain waits for pods that end by themselves, and `deadline` is the end of that wait."""
    newcomer: bool = False
    """The node waited behind the start-up taint, had never been given back after a proof and had no GPU pod: nobody
    counted on it, so the change takes no slot of its policy's budget."""
    wave: str = ""
    """The same on all nodes that started together because they share a gang; empty: it started by itself."""
    mates: tuple[str, ...] = ()
    """Nodes of that gang which the budget did not let start with it and which start next; at most 20 are recorded."""
    proven: Moment | None = None
    """When the node was found proven while it waits for its wave; None: not yet, or it does not wait."""
    revision: str = ""
    """The revision of the policy's spec that the change follows (`wanted/revision.py`), set when `generation` is.
    Empty: not recorded."""
    turned: bool = False
    """It began under another policy or revision than those of the last run."""
    approved: str = ""
    """The goal that a person approved, in the form of `owed`. Empty: no approval was needed, or it was not
    recorded."""
    unknown: str = ""
    """JSON object of the keys that a newer operator wrote and this one does not know: kept as they are. Empty: none."""


@value
class Deferred:
    """Left on a Node by an abort: the next try waits until `until`. Removed by the next release without one.

    A node that is given back after a failure, to start over, gets one that causes no wait and records the failure.
    """

    __pydantic_config__ = _WRITTEN

    count: Number
    """Aborts of this policy in this generation so far; each doubles the wait, from 5 minutes. 0: no wait."""
    until: Moment
    """The next try may begin then."""
    reason: str
    """Why the last try was given up, for people."""
    generation: int
    """The generation of the policy's spec whose change was given up; another one does not wait."""
    retry: str = ""
    """The value of the retry annotation at the time; another one ends the wait."""
    policy_uid: str = ""
    """UID of the policy whose change it was: a policy of another UID does not wait. Empty in records of older
    operators: any policy."""
    failed_generation: int = 0
    """The generation of the policy in which the change failed after the PNR before it was given up; 0: it did not."""


@value
class Verified:
    """Left on a Node by every release after a proof and by every adoption: what was last proven there."""

    __pydantic_config__ = _WRITTEN

    policy: str
    """The policy that asked for it."""
    mig_config: str
    """Value of `nvidia.com/mig.config`; empty where mig-manager is not needed."""
    plugin_config: str
    """Value of `nvidia.com/device-plugin.config`."""
    corrected_generation: int = 0
    """The policy generation in which drift was already corrected once; 0: never."""
    retry: str = ""
    """The value of the retry annotation at the time; another one allows one more correction."""
    layout: str = ""
    """The meaning of the two values at the time, which an admin may change. Empty: not recorded."""
    gpus: Number = 0
    """On how many GPUs: fewer mean that one is missing. 0: not recorded."""
    policy_uid: str = ""
    """UID of the policy whose generation it is: a recreated policy of this name counts from the start. Empty: not
    recorded."""
    changed_at: Moment | None = None
    """When the last change of ours was proven here; None: there was none, or an older operator made it."""
    took: Number = 0
    """Seconds from its PNR to its proof; 0: not recorded."""
    generation: int = 0
    """The generation of the policy that this change followed; 0: not recorded."""
    planned: DisruptionClass = DisruptionClass.NONE
    """The class of disruption that its plan showed. None: not recorded."""
    failed_generation: int = 0
    """The generation of the policy in which it failed after the PNR before it was proven; 0: it did not fail."""
    rolled_back: bool = False
    """The change of `generation` failed, and the node went back to what this records. `changed_at` and `took` are
    those of the last change that reached its target."""
    failure: str = ""
    """Why it went back, for people; empty: it did not."""
    revision: str = ""
    """The revision of the policy's spec that this change followed (`wanted/revision.py`). Empty: not recorded."""
    apart: bool = False
    """The change says nothing about a canary that is too large for the pool: nobody counted on the node yet
    (`newcomer`), or it began under another spec (`turned`). Also False if an older operator wrote the record."""


@value
class Claim:
    """A slot of the disruption budget, held on the leader Lease from before the fence until the fence is gone."""

    __pydantic_config__ = _WRITTEN

    node_uid: str
    """A Node of another UID that has the name does not hold the slot."""
    policy: str
    """The policy whose budget the slot counts in."""
    op: str
    """The change that it is for, as in the fence."""
    wave: str = ""
    """The wave of the coming fence: an operator that continues after a crash starts the node in the same wave. Empty:
    none."""

    @staticmethod
    def of(node_uid: str, fence: Fence) -> "Claim":
        """The slot of a change that begins or is in flight."""
        return Claim(node_uid, fence.policy, fence.op, fence.wave)

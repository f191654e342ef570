"""The records that we keep on Nodes and on the leader's Lease. The records are the only memory of a change.
`kube/fence.py` reads and writes them as JSON.

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
"""How far a time that we write may be from the API server's clock."""
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
"""The earliest time that a record may contain."""


def _moment(text: object) -> datetime:
    if (moment := from_rfc3339(text)) is None:
        raise ValueError("not a time with a time zone")
    if not EARLIEST <= moment <= NEVER:
        raise ValueError("not a time between 1970 and 9000")
    return moment


Moment = Annotated[datetime, BeforeValidator(_moment)]
"""A time that is written as an RFC 3339 string."""
Number = Annotated[int, Field(ge=0, le=10**10)]
"""A count, bounded so that additions cannot overflow."""
_WRITTEN = ConfigDict(alias_generator=to_camel, strict=True)
"""How a record is written as JSON: camelCase keys, and no conversion between types."""


@value
class SpecVersion:
    """What one policy asks for, as records refer to it."""

    __pydantic_config__ = _WRITTEN

    uid: str
    revision: str
    """Revision of the policy (`snapshot/revision.py`), or empty if the record is about no revision in particular."""


UNRECORDED = SpecVersion("", "")
"""The version in a record that names no policy and no revision."""


@value
class Fence:
    """The record of the change in flight, which we write to the Node."""

    __pydantic_config__ = _WRITTEN

    op: str
    policy: str
    version: SpecVersion
    node_uid: str
    prior_unschedulable: bool
    added: tuple[str, ...]
    """Keys of the labels and annotations that we set for other controllers (docs/design/drain.md#c6) and have to remove again. Empty once the node is yielded, because yielding removes them."""
    disruption: DisruptionClass
    """It never gets better."""
    from_layout: str
    """It is never changed."""
    to_layout: str
    stage: Literal["fenced", "yielded", "actuating"]
    """`fenced` before the PNR, `actuating` after it, and `yielded` while somebody else maintains the node that we had fenced."""
    step: Number
    steps: Number
    attempt: Number
    since: Moment
    stage_since: Moment
    deadline: Moment
    drift: bool = False
    from_mode: str = ""
    """Empty if there was none."""
    target_mig_config: str = ""
    """Value of `nvidia.com/mig.config` that the latest run has set. Empty before the PNR, and if mig-manager is not needed."""
    target_plugin_config: str = ""
    """Value of `nvidia.com/device-plugin.config` that the latest run has set. Empty before the PNR."""
    gfd_timestamp: str = ""
    """Empty if the run did not change it."""
    daemon_uid: str = ""
    """Empty if there is none."""
    restart_uid: str = ""
    """Empty if there is none."""
    retry: str = ""
    began: Moment | None = None
    """None before that."""
    planned: DisruptionClass = DisruptionClass.NONE
    """The class of disruption that the plan showed; `disruption` may have become worse since."""
    failed_version: SpecVersion | None = None
    """None if none failed."""
    failed: Moment | None = None
    """None if it has not failed. A time at or after `deadline` means that the run failed by its deadline, even if the clock has been set back since."""
    rolls_back: bool = False
    failure: str = ""
    """Empty if it is not."""
    owed: str = ""
    """Empty if no such run is pending."""
    jobs: bool = False
    """`deadline` is then the end of that wait."""
    newcomer: bool = False
    """Whether the node had the start-up taint, had never been returned to service after a proof, and had no GPU pod."""
    wave: str = ""
    """Empty if the node started alone."""
    mates: tuple[str, ...] = ()
    proven: Moment | None = None
    """When the node was found proven, if it now waits for the other nodes of its wave or, in stage `yielded`, for other maintenance to end. None if it is not proven yet or does not wait."""
    turned: bool = False
    approved: str = ""
    """The target that a person approved for the change, in the same form as `owed`. Empty if no approval was needed, or if it was not recorded."""
    tainted: bool = False
    unknown: str = ""
    """Empty if there are none."""

    @property
    def cordons(self) -> bool:
        """Whether the change keeps the node cordoned: it needs an idle node, and no DeviceTaintRule keeps pods off."""
        return self.disruption.cordons and not self.tainted

    @property
    def closed(self) -> str:
        """How pods are kept off the node during a change that needs an idle node, as a participle for messages."""
        return "closed to GPU pods by a DeviceTaintRule" if self.tainted else "cordoned"


@value
class Deferred:
    """The record that a change was given up, written to the Node."""

    __pydantic_config__ = _WRITTEN

    count: Number
    """The first wait is 5 minutes, and each further one doubles it. 0 if there is no wait."""
    until: Moment
    reason: str
    version: SpecVersion
    retry: str = ""
    failed_version: SpecVersion | None = None
    """The version of the spec in which the change failed after the PNR before it was given up, or None if it did not fail."""


@value
class Verified:
    """The record of what was last proven on a Node."""

    __pydantic_config__ = _WRITTEN

    policy: str
    mig_config: str
    """Value of `nvidia.com/mig.config` at the proof. Empty if mig-manager was not needed."""
    plugin_config: str
    """Value of `nvidia.com/device-plugin.config` at the proof."""
    corrected_revision: str = ""
    """Empty if it never was."""
    retry: str = ""
    layout: str = ""
    """Empty if it was not recorded."""
    gpus: Number = 0
    version: SpecVersion = UNRECORDED
    """Its UID is that of `policy`, even if the node was adopted without a change; its revision is then empty, or that of a policy from which this one took the change over."""
    changed_at: Moment | None = None
    """None if there was none."""
    took: Number = 0
    planned: DisruptionClass = DisruptionClass.NONE
    failed_version: SpecVersion | None = None
    """The version of the spec in which this change failed after the PNR before it was proven, or None if it did not fail."""
    rolled_back: bool = False
    """Whether the change of `version` failed and the node was rolled back to what is recorded here. `changed_at` and `took` then describe the latest change that reached its target."""
    failure: str = ""
    """Empty if it was not."""
    apart: bool = False
    """Whether the change must not count as a canary: the node was a `newcomer` on which nobody depended, or the change began under another spec (`turned`)."""
    mates: tuple[str, ...] = ()
    """`mates` from the fence of that change. Empty if there were none, or if the node was rolled back."""


@value
class FailedNode:
    """The record that the change of a node failed after the point of no return."""

    __pydantic_config__ = _WRITTEN

    node: str
    version: SpecVersion
    """The failure counts against `rollout.maxFailures` of that version."""
    gone: bool = False


@value
class Claim:
    """A slot of the disruption budget."""

    __pydantic_config__ = _WRITTEN

    node_uid: str
    policy: str
    op: str
    """The change that the slot is for: `op` of the fence."""
    wave: str = ""
    """`wave` of the fence that will be written, so that after a crash the next leader starts the node in the same wave. Empty if there is none."""
    version: SpecVersion | None = None
    """If the Node is deleted now, that change counts as failed (docs/adr/0044-what-was-seen-is-written-down.md). None before that point, and after the proof."""

    @staticmethod
    def of(node_uid: str, fence: Fence) -> "Claim":
        """Return the claim for the change that `fence` records on the Node with `node_uid`."""
        claim = Claim(node_uid, fence.policy, fence.op, fence.wave)
        if fence.stage != "actuating" or fence.proven is not None or fence.node_uid != node_uid:
            return claim
        return replace(claim, version=fence.version)

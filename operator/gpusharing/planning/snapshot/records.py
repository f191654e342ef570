"""What does the operator write about a node and read again: fence, proof and failure?

These records on Nodes and on the leader's Lease, as JSON (`kube.fence`), are the only memory of a change.
"""

import json
from base64 import b85encode
from collections.abc import Collection, Mapping
from dataclasses import field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from gpusharing.api.names import DisruptionClass
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.times import NEVER, from_rfc3339, parse_duration
from gpusharing.planning.vocabulary.values import value

CLOCK_ERROR = timedelta(seconds=1)
"""How far a time of ours may be from the API server's clock, known to half a second plus half a call (kube.clock)."""
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
"""The earliest time that a record may contain."""


def _moment(text: object) -> datetime:
    if (moment := from_rfc3339(text)) is None:
        raise ValueError("not a time with a time zone")
    if not EARLIEST <= moment <= NEVER:
        raise ValueError("not a time between 1970 and 9000")
    return moment


Moment = Annotated[datetime, BeforeValidator(_moment)]
"""A time as an RFC 3339 string. The bounds keep additions from overflowing, which would stop other nodes too."""
Number = Annotated[int, Field(ge=0, le=10**10)]
"""A count, bounded so that additions cannot overflow. Taken as seconds, the bound is 317 years."""
_WRITTEN = ConfigDict(alias_generator=to_camel, strict=True)
"""How a record is written as JSON: camelCase keys, and no conversion between types."""


@value
class SpecVersion:
    """What one policy asks for, as records refer to it.

    An edit that asks for nothing new, such as a price or a pause, keeps the revision, and so changes no failures,
    rollbacks, deferrals, proofs and canaries (docs/design/glossary.md#revision).
    """

    __pydantic_config__ = _WRITTEN

    uid: str
    revision: str
    """Revision of the policy (`find_revision`), or empty if the record is about no revision in particular."""


UNRECORDED = SpecVersion("", "")


@value
class Fence:
    """The record of the change in flight on the Node: its only memory, which the release removes."""

    __pydantic_config__ = _WRITTEN

    op: str
    """Id of the change, which stays the same until the release. The ids of its requests to the agent begin with it."""
    policy: str
    """The policy that drove the node at the latest run, or that owns it since it failed."""
    version: SpecVersion
    """The version of the policy's spec that the change follows, set by the fence, each run and a rollback."""
    node_uid: str
    """UID of the Node that was fenced. A Node with another UID was recreated with a copy of the annotation."""
    prior_unschedulable: bool
    """Whether the node was cordoned before the fence. That cordon is not ours to lift."""
    added: tuple[str, ...]
    """Keys of the labels and annotations that we set for others and remove again (docs/design/drain.md#c6)."""
    disruption: DisruptionClass
    """What must be gone for the change. It is written before the cordon; only a person's edit or retry widens it."""
    to_layout: str
    """The layout that the change or, after the PNR, the current run leads to, for people."""
    stage: Literal["fenced", "yielded", "actuating"]
    """`fenced` before the PNR, `actuating` after it, and `yielded` to somebody else's maintenance."""
    step: Number
    """Number of the step that the latest run belongs to, counted from 1."""
    steps: Number
    """2 if the change goes through an intermediate layout, else 1."""
    attempt: Number
    """1 for a new target and after each retry that a person requests; each repair of a stuck mig-manager adds 1."""
    since: Moment
    """When the node was fenced, or our cordon restored. Pods created later started despite the cordon."""
    stage_since: Moment
    """When the stage began or, after the PNR, when the latest run began."""
    deadline: Moment
    """The time by which the pods must have left or, after the PNR, from which the node counts as Failed."""
    drift: bool = False
    """Whether the change corrects drift, which is allowed once per revision."""
    from_mode: str = ""
    """Value of the routing label before the fence, which is restored if the change is given up."""
    target_mig_config: str = ""
    """Value of `nvidia.com/mig.config` that the latest run has set; empty before, and if mig-manager is not needed."""
    target_plugin_config: str = ""
    """Value of `nvidia.com/device-plugin.config` that the latest run has set. Empty before the PNR."""
    gfd_timestamp: str = ""
    """GFD's start before a run that changed the plugin's configuration, else empty; only a later one proves the run."""
    daemon_uid: str = ""
    """UID of the MPS daemon's pod, or of the DRA driver's, that this run has to delete while it exists."""
    restart_uid: str = ""
    """UID of the mig-manager pod that this run has to delete while it exists. Empty if there is none."""
    retry: str = ""
    """The retry annotation at the fence, the latest run, or an owed run. Another value requests a new attempt."""
    began: Moment | None = None
    """When the change first passed the PNR, or passed it again after a failure. None before that."""
    planned: DisruptionClass = DisruptionClass.NONE
    """The class of disruption that the plan showed; a person may have widened `disruption` since."""
    failed_version: SpecVersion | None = None
    """The version of the spec that an earlier run of this change followed when it failed after the PNR."""
    failed: Moment | None = None
    """When a pass first found that the latest run had failed after the PNR, else None. At or after `deadline` it means
    a failure by the deadline, even if the clock has been set back since."""
    rolls_back: bool = False
    """Whether the node is being rolled back to the layout last proven on it. The change of this revision failed."""
    failure: str = ""
    """Why the node is being rolled back, for people."""
    owed: str = ""
    """The target of a run that begins as soon as the node is proven idle again."""
    jobs: bool = False
    """Whether the change waits for pods that run to completion; `deadline` is then the end of that wait."""
    newcomer: bool = False
    """Whether the change uses no slot: nobody depends on a node with the start-up taint, no proof and no GPU pod."""
    wave: str = ""
    """Id of the wave, the same on all nodes that started together because they share a gang."""
    mates: tuple[str, ...] = ()
    """Nodes with pods of the same gangs that did not fit into the budget and should come next, at most 20."""
    proven: Moment | None = None
    """When the node was proven, if it now waits for its wave or for other maintenance to end; else None."""
    turned: bool = False
    """Whether the change began under a different policy or revision from that of its latest run."""
    approved: str = ""
    """The target that a person approved, in the form of `owed`. Empty if no approval was needed."""
    gpus: tuple[Number, ...] = ()
    """Indexes of the GPUs that a change of class ChangedGPUs empties, sorted; else empty."""
    kept: tuple[tuple[str, str], ...] = ()
    """What such a change must leave as it was on the other GPUs when it passed the PNR (`transition.kept`)."""
    tainted: bool = False
    """Whether a DeviceTaintRule keeps GPU pods off the node in place of a cordon."""
    unknown: str = ""
    """JSON object with the keys that a newer operator wrote, which are written back unchanged."""

    @property
    def cordons(self) -> bool:
        """Whether the change keeps the node cordoned: pods must leave and no DeviceTaintRule keeps others off."""
        return self.disruption.cordons and not self.tainted

    def covers(self, disruption: DisruptionClass, gpus: Collection[int]) -> bool:
        """Whether the change empties all that one of this class needs, or with ChangedGPUs all of these GPUs."""
        partly = DisruptionClass.CHANGED_GPUS
        if self.disruption is partly and disruption is partly:
            return set(gpus) <= set(self.gpus)
        return disruption.empties <= self.disruption.empties

    @property
    def closed(self) -> str:
        """How the change that needs an idle node keeps pods off, as a participle for messages."""
        return "closed to GPU pods by a DeviceTaintRule" if self.tainted else "cordoned"


@value
class Deferred:
    """The record on the Node, until a later release, that a change was given up. Without a wait it notes a failure."""

    __pydantic_config__ = _WRITTEN

    count: Number
    """How many changes of this revision have been given up so far. 0 if there is no wait."""
    until: Moment
    reason: str
    version: SpecVersion
    """The version of the spec that was given up. Changes of other versions do not wait."""
    retry: str = ""
    """The retry annotation at that time. Another value ends the wait."""
    failed_version: SpecVersion | None = None
    """The version of the spec in which the change failed after the PNR before it was given up, or None."""


@value
class Verified:
    """The record of what was last proven on a Node. Every release after a proof and every adoption writes it."""

    __pydantic_config__ = _WRITTEN

    policy: str
    mig_config: str
    """Value of `nvidia.com/mig.config` at the proof. Empty if mig-manager was not needed."""
    plugin_config: str
    corrected_revision: str = ""
    """The revision of the policy in which drift was last corrected. Empty if it never was."""
    retry: str = ""
    """The retry annotation at that time. Another value allows one more correction of drift."""
    layout: str = field(kw_only=True)
    """The layout that the two values meant at the proof; an admin may change their meaning later."""
    gpus: Number = field(kw_only=True)
    """How many GPUs the node had at the proof. If it has fewer now, one is missing."""
    version: SpecVersion = UNRECORDED
    """The version of the spec that our latest change followed. Its UID is that of `policy`; its revision is empty after
    an adoption without a change, or that of a policy from which this one took the change over."""
    changed_at: Moment | None = None
    """When our latest change was proven on this node. None if there was none."""
    took: Number = 0
    """Seconds from the PNR of that change (its first run after a failure) to its proof; 0 if unknown."""
    planned: DisruptionClass = DisruptionClass.NONE
    failed_version: SpecVersion | None = None
    """The version of the spec in which this change failed after the PNR before it was proven, or None."""
    rolled_back: bool = False
    """Whether the change of `version` failed and the node was rolled back to what is recorded here. `changed_at` and
    `took` then describe the latest change that reached its target."""
    failure: str = ""
    apart: bool = False
    """Whether the change is no canary: its node was a `newcomer`, or it began under another spec (`turned`)."""
    mates: tuple[str, ...] = ()
    """The `mates` in the fence of that change. Empty if the node was rolled back."""


@value
class FailedNode:
    """The record that a change failed after the PNR. It is on the Lease, because the Node may be replaced."""

    __pydantic_config__ = _WRITTEN

    node: str
    version: SpecVersion
    """The version of the spec. The failure counts against `rollout.maxFailures` of that version."""
    gone: bool = False
    """Whether the Node was deleted before its change was proven or found to have failed."""


@value
class Claim:
    """A slot of the disruption budget, on the leader's Lease from before the fence is written until it is gone."""

    __pydantic_config__ = _WRITTEN

    node_uid: str
    """UID of the Node. Another Node under the same name does not hold the slot."""
    policy: str
    """The policy in whose budget the slot counts."""
    op: str
    """The change that the slot is for: `op` of the fence."""
    wave: str = ""
    """The `wave` of the fence, so that after a crash the next leader starts the node in the same wave."""
    version: SpecVersion | None = None
    """The version of a change that is past its PNR and not proven, else None. If the Node is deleted now, it counts as
    failed (docs/adr/0044-what-was-seen-is-written-down.md)."""

    @staticmethod
    def of(node_uid: str, fence: Fence) -> "Claim":
        claim = Claim(node_uid, fence.policy, fence.op, fence.wave)
        if fence.stage != "actuating" or fence.proven is not None or fence.node_uid != node_uid:
            return claim
        return replace(claim, version=fence.version)


LEASE_ROOM = 256 * 1024
"""How many characters all annotations of an object may have together (apimachinery v0.36.3
pkg/api/validation/objectmeta.go, TotalAnnotationSizeLimitB). A Lease with more is refused as a whole."""


@value
class ApprovedChange:
    """Nodes of an approved plan that get the same layout with the same disruption."""

    __pydantic_config__ = _WRITTEN

    disruption: DisruptionClass
    target: str
    """In the form of `Fence.owed`, and of a change of some GPUs also which."""
    nodes: str
    """The nodes as digests (`digest_of`), one after the other: thousands must fit onto the Lease."""


@value
class Consent:
    """What a person has agreed to in one policy, on the Lease: written when it is said, and compared from then on."""

    __pydantic_config__ = _WRITTEN

    revision: str
    """The revision that all of this is about. In another one only the hashes are left."""
    approved: str = ""
    """Hash of the plan that was approved last. The next plan's hash depends on it, so no hash serves twice."""
    changes: tuple[ApprovedChange, ...] = ()
    resumed: str = ""
    """Hash of the halt that was resumed last. The next halt's hash depends on it."""
    seen: str = ""
    """Digests of the failed nodes that the person had seen, and that are still failed."""


DIGEST = 5
"""How many characters the digest of a node has."""


@lru_cache(maxsize=16384)
def digest_of(uid: str) -> str:
    return b85encode(sha256(uid.encode()).digest()[:4]).decode()


def digests_in(text: str) -> set[str]:
    return {text[start : start + DIGEST] for start in range(0, len(text), DIGEST)}


LENGTH = 12
INTENT = ("node_selector", "products", "priority", "mode", "mig", "time_slicing", "mps", "drain")
"""The fields of the spec that say what a person asks for. `rollout.timeouts` is the only other one."""
_DURATIONS = ("timeout", "actuation", "verification")


def find_revision(uid: str, spec: GPUSharingPolicySpec | None, *, resetting: bool = False) -> str:
    if spec is None:
        return ""
    intent = {name: _plain(getattr(spec, name)) for name in INTENT}
    asked = {**intent, "timeouts": _plain(spec.rollout.timeouts)}
    written = [uid, resetting, {name: value for name, value in asked.items() if value}]
    text = json.dumps(written, sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:LENGTH]


def _plain(value: Any, name: str = "") -> Any:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            # A field that a newer operator adds changes no revision while it has its default.
            field: plain
            for field in value.model_fields_set  # a field that is not set has its default
            if (plain := _plain(getattr(value, field), field))
            != _plain(fields[field].get_default(call_default_factory=True), field)
        }
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, str) and name in _DURATIONS and value != "Never":
        return int(parse_duration(value).total_seconds())
    return value

"""Every node before and after the planned changes, to find the pods that could not run afterwards
(drain/stranded.py).

Terms: docs/design/glossary.md#fence.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from gpusharing.api.names import LABEL_MODE, LABEL_POLICY, LABEL_SKIP, Phase, is_skip
from gpusharing.api.selectors import FIELD
from gpusharing.planning.drain.holders import has_finished
from gpusharing.planning.drain.stranded import Afterwards, FutureNode, claimed
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.transition.members import Member
from gpusharing.planning.vocabulary.reasonkinds import Passes
from gpusharing.planning.wanted.assess import Assessed, Assessment
from gpusharing.planning.wanted.gfdlabels import future_labels
from gpusharing.planning.wanted.verify import served


def find_afterwards(snapshot: ClusterSnapshot, members: Mapping[str, Member]) -> Afterwards:
    """Return the cluster as it will be when all planned changes are done, together with the devices that Pending pods
    request. The nodes are computed when they are first needed.

    A node that has no target, cannot be judged or is skipped stays as it is. If the verdict in `members` says that the
    node is Blocked until a person acts, only the devices that the node has both with and without its change count
    (`_doubt`). A node about which the computation raises an error is left out.
    """

    def places() -> Iterator[FutureNode]:
        """Yield all nodes. A node whose computation raises an exception is left out without a log line."""
        for name, node in snapshot.nodes.items():
            with suppress(
                Exception
            ):  # an error about one node must not hide the others (transition/guard.py)
                member = members.get(name)
                place = _place(node, member.assessment if member is not None else None, snapshot)
                verdict = member.verdict if member is not None else None
                held = verdict is not None and verdict.phase is Phase.BLOCKED and verdict.reason
                yield _doubt(place, node) if held and held.passes is Passes.BY_A_PERSON else place

    return Afterwards(places, snapshot.pending_devices)


def _doubt(place: FutureNode, node: NodeView) -> FutureNode:
    """Return the node with fewer devices in `after`, because its change may not take place. For each resource name,
    `after` becomes the smaller of two numbers: the devices that the node would have after the change, and its present
    devices or the devices that its pods hold, whichever is larger. If the node is cordoned or not Ready, it has no
    present devices except those that its pods hold."""
    keeps = place.before if node.ready and not node.unschedulable else {}
    least = {
        name: min(count, max(keeps.get(name, 0), place.in_use.get(name, 0)))
        for name, count in place.after.items()
    }
    return replace(place, after=least)


def is_skipped(node: NodeView) -> bool:
    """Whether the skip label, which only a person removes, keeps a change from beginning on the node. False if the
    node has a fence that can be read, because that change continues."""
    return node.fence is None and is_skip(node.labels.get(LABEL_SKIP))


def _place(node: NodeView, assessment: Assessment | None, snapshot: ClusterSnapshot) -> FutureNode:
    """Return the node before and after its change, or as it is if it has no target or is skipped. Once the change has
    begun, both states are the changed one. Unknown holdings count as none, and so do those of pods that are being
    deleted. Pods can run afterwards on a node that is not being deleted, if the change cordons it or it is Ready and
    not cordoned."""
    now, fence = served(node), node.fence
    assessed = assessment if isinstance(assessment, Assessed) and not is_skipped(node) else None
    after = now if assessed is None else assessed.target.resources
    emptied = assessed is not None and (fence or assessed).disruption.cordons
    return FutureNode(
        node.name,
        before=now if fence is None else after,
        after=after,
        in_use=find_holdings(node, snapshot, remaining=True) or {},
        emptied=emptied,
        open=not node.deleting and (emptied or (node.ready and not node.unschedulable)),
        devices=node.devices.names if node.devices is not None else {},
        find_labels=partial(_labels, node, assessed),
    )


def _labels(node: NodeView, assessed: Assessed | None) -> tuple[Mapping[str, str], ...]:
    """Return the label sets that the node may have after its change, each with the node's name added as the field
    metadata.name. Without a target, the present labels are the only set. If the node has no fence and already matches
    its target, only the routing label and the policy label change. Otherwise `future_labels` gives the sets."""
    label_sets: tuple[Mapping[str, str], ...] = (node.labels,)
    if assessed is not None:
        target, policy = assessed.target, assessed.policy.name
        if node.fence is None and assessed.mismatch is None:
            label_sets = ({**node.labels, LABEL_MODE: target.routing, LABEL_POLICY: policy},)
        else:
            label_sets = future_labels(node, target, assessed.observed, policy)
    return tuple({**labels, f"{FIELD}metadata.name": node.name} for labels in label_sets)


def find_holdings(
    node: NodeView, snapshot: ClusterSnapshot, *, remaining: bool = False
) -> Mapping[str, int] | None:
    """Return how many devices of each resource name the pods of the node hold, or None if that is unknown.

    If the node's pods were just listed, those that have not finished are counted: what they request, and the devices of
    NVIDIA's DRA driver that their ResourceClaims hold, each once. Otherwise the agent's report is used, which is up to
    30 s old; if that driver publishes devices for the node, the result is None, because the agent does not count these.
    `remaining`: leave out pods that are being deleted, and return None in place of the agent's report during a change,
    because the change may have ended some pods since the report.
    """
    work = snapshot.work.get(node.name)
    if work is not None and not work.error:
        counts, devices = Counter[str](), set[str]()
        for pod in work.pods:
            if not has_finished(pod) and not (remaining and pod.deleted_at is not None):
                counts.update(pod.resources)
                devices.update(pod.devices)
        return counts + claimed(node.devices.names if node.devices is not None else {}, devices)
    unknown = node.devices is not None or (remaining and node.fence is not None)
    gpunode = None if unknown else snapshot.gpunodes.get(node.name)
    return gpunode.observed.allocated if gpunode is not None and gpunode.observed is not None else None

"""Every node before and after the planned changes, to find the pods that could not run afterwards (drain/stranded.py)."""

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
    """Return the cluster as it will be when all planned changes are done; nodes whose state cannot be computed are left out."""

    def places() -> Iterator[FutureNode]:
        for name, node in snapshot.nodes.items():
            with suppress(
                Exception
            ):  # an error about one node must not hide the others (transition/guard.py)
                member = members.get(name)
                place = _place(node, member.assessment if member is not None else None, snapshot)
                verdict = member.verdict if member is not None else None
                blocked = verdict is not None and verdict.phase is Phase.BLOCKED and verdict.reason
                if blocked and blocked.passes is Passes.BY_A_PERSON:
                    # The change may not take place, so only devices that the node has either way count.
                    keeps = place.before if node.ready and not node.unschedulable else {}
                    least = {
                        resource: min(count, max(keeps.get(resource, 0), place.in_use.get(resource, 0)))
                        for resource, count in place.after.items()
                    }
                    place = replace(place, after=least)
                yield place

    return Afterwards(places, snapshot.pending_devices)


def is_skipped(node: NodeView) -> bool:
    """Whether the skip label keeps a change from beginning on the node; a change that has begun continues."""
    return node.fence is None and is_skip(node.labels.get(LABEL_SKIP))


def _place(node: NodeView, assessment: Assessment | None, snapshot: ClusterSnapshot) -> FutureNode:
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

    Without a LIST of its pods, the agent's report counts, which is up to 30 s old and knows no devices of NVIDIA's DRA driver. `remaining` leaves out pods that are being deleted, and distrusts that report during a change.
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

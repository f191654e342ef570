"""Gangs of a World: JobSets, of which every rank ends when one does (kubernetes-sigs/jobset#574)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.planning.podkinds import must_leave
from tests.planning.server import GRACE

from gpusharing.planning.snapshot.podviews import Gang, GangMember, GangView, PodView

if TYPE_CHECKING:
    from tests.planning.world import World


def is_alive(pod: PodView) -> bool:
    return pod.phase not in ("Succeeded", "Failed")


def members(world: "World", gang: Gang) -> tuple[GangMember, ...]:
    return tuple(
        GangMember(node, world.readable(pod))
        for node, pods in sorted(world.pods.items())
        for pod in sorted(pods.values(), key=lambda one: one.ref)
        if pod.gang == gang and is_alive(pod)
    )


def find(world: "World", pods: Iterable[PodView], *, reboot: bool) -> tuple[GangView, ...]:
    """What the operator reads of the gangs of a node's pods: of those that must leave, GPU or not if it may reboot."""
    leaving = (pod for pod in pods if must_leave(pod, reboot=reboot))
    gangs = {pod.gang.ref: pod.gang for pod in leaving if pod.gang is not None}
    return tuple(GangView(gang, tuple(map(_as_read, members(world, gang)))) for _, gang in sorted(gangs.items()))


def _as_read(member: GangMember) -> GangMember:
    """A member as the operator reads it, which asks nobody for the claims of pods elsewhere (kube/gangs.py)."""
    return GangMember(member.node, replace(member.pod, dra="none"))


def end_broken(world: "World", node: str) -> None:
    """The JobSet's controller deletes the ranks of this node when another one is leaving."""
    for uid, pod in world.pods[node].items():
        if pod.gang is None or pod.deleted_at is not None:
            continue
        if any(member.pod.deleted_at is not None for member in members(world, pod.gang)):
            world.pods[node][uid] = replace(pod, deleted_at=world.now + GRACE)


def start_alone(world: "World") -> bool:
    """Each node without a change gets a gang of its own: a worker with a GPU, and a driver without one. Returns whether one came to two nodes at least."""
    started = 0
    for node in [name for name, view in world.nodes.items() if view.fence is None]:
        came = [world.add_pod(node, kind, app="free") for kind in ("a rank of a JobSet", "a rank without a GPU")]
        for uid in list(world.pods[node])[-sum(came) :] if any(came) else ():
            pod = world.pods[node][uid]
            world.pods[node][uid] = replace(pod, gang=make_gang(f"run-{node}"))
        started += all(came)
    return started > 1


def make_gang(name: str = "train", *, kind: str = "JobSet", namespace: str = "team-a") -> Gang:
    return Gang(kind, namespace, name, f"jobset.sigs.k8s.io/jobset-name={name}")


def make_gang_view(members: Mapping[str, Sequence[PodView]], gang: Gang | None = None) -> GangView:
    rows = tuple(GangMember(node, pod) for node, pods in sorted(members.items()) for pod in pods)
    return GangView(gang or make_gang(), rows)

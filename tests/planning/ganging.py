"""Gangs for tests of the planner."""

from collections.abc import Mapping, Sequence

from gpusharing.planning.snapshot.podviews import Gang, GangMember, GangView, PodView


def make_gang(name: str = "train", *, kind: str = "JobSet", namespace: str = "team-a") -> Gang:
    return Gang(kind, namespace, name, f"jobset.sigs.k8s.io/jobset-name={name}")


def make_gang_view(members: Mapping[str, Sequence[PodView]], gang: Gang | None = None) -> GangView:
    rows = tuple(GangMember(node, pod) for node, pods in sorted(members.items()) for pod in pods)
    return GangView(gang or make_gang(), rows)

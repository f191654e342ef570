"""KAI-Scheduler's fractions of GPUs, which no request of a pod shows (docs/design/drain.md#g10).

KAI keeps each GPU that it divides with a reservation pod, which asks for one `nvidia.com/gpu` and has no controller.
The pods that share the GPU ask for none. All have its group as a label. KAI deletes the reservation pod after the last
of them. If it goes first, KAI deletes the running pods of the group, whatever their budgets say.

Source: kai-scheduler/KAI-Scheduler v0.17.0, pkg/common/constants/constants.go (GPUGroup) and syncForPods of
pkg/binder/binding/resourcereservation/resource_reservation.go. Run:ai's own scheduler uses the same label.
"""

from collections.abc import Mapping

from gpusharing.api.names import RESOURCE_GPU
from gpusharing.planning.snapshot.podviews import PodView

LABELS = frozenset({"runai-gpu-group", "kai-gpu-group"})
"""The label with the group of a GPU. A pod with fractions of several GPUs has `LABEL/GROUP` for each (v0.17.0,
MultiGpuGroupLabelPrefix). The second name is the one that KAI's maintainers announced (NVIDIA/KAI-Scheduler#464)."""


def group_names(labels: Mapping[str, str]) -> frozenset[str]:
    """Return the groups that labels of a pod name; empty for a pod without KAI."""
    return frozenset(value for key, value in labels.items() if key.partition("/")[0] in LABELS and value)


def gpu_groups(pod: PodView) -> frozenset[str]:
    """Return the groups of the GPUs that the pod reserves or has a fraction of; empty for a pod without KAI."""
    return group_names(pod.labels)


def is_reservation(pod: PodView) -> bool:
    """Whether this is KAI's own pod that reserves a GPU for a group.

    It is the only pod of a group that requests a whole GPU: KAI refuses fractions for pods that do.
    """
    return pod.owner is None and RESOURCE_GPU in pod.resources and bool(gpu_groups(pod))

"""The fraction of a GPU that a pod asks KAI-Scheduler for, which no request of its containers shows. Pure.

Source: kai-scheduler/KAI-Scheduler v0.17.0, pkg/common/constants/constants.go and api/node_info/node_info.go (MIG).
"""

from gpusharing.api.selectors import parse_int
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import part, text, texts
from gpusharing.planning.vocabulary.lengths import counted

NOTE = (
    "KAI-Scheduler takes this fraction from a whole GPU of a node without MIG: from a free nvidia.com/gpu, or from one"
    " that it has reserved, which counts as held although it may have room"
)


def find_fraction(raw: JSON) -> tuple[str, int]:
    """Return the fraction that a Pod asks KAI-Scheduler for, in words, and of how many GPUs. Empty and 0 if it asks for
    none, or if the default scheduler binds it."""
    annotations = texts(part(raw, "metadata", "annotations"))
    memory, devices = annotations.get("gpu-memory", ""), annotations.get("gpu-fraction-num-devices", "1")
    share = annotations.get("gpu-fraction", f"{memory} MiB" if memory else "")
    if not share or text(raw, "spec", "schedulerName") in ("", "default-scheduler"):
        return "", 0
    count = max(1, parse_int(devices) or 1)
    return (
        f"{share} of {'a GPU' if count == 1 else 'each of ' + counted(count, 'GPU')} from KAI-Scheduler",
        count,
    )

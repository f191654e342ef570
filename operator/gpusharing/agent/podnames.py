"""Finds the name of a pod by its UID, in the names of the folders in which the kubelet keeps the logs of pods.

The cgroup of a process shows the UID of its pod. The kubelet's podresources name pods without UIDs, and the agent may not read pods: a token that may list them would show a thief what runs on every node. The kubelet calls the folder of a pod's logs NAMESPACE_NAME_UID (kubernetes v1.36.3 pkg/kubelet/kuberuntime/helpers.go, BuildPodLogsDirectory; none of the three can contain a `_`). Only the names of these folders are read.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gpusharing.agent.library import PodID

PAUSE = 5.0
"""Seconds between two listings of the folders, because one reading may look up many UIDs that have no folder."""


class PodNames:
    """Finds the pods of this node by UID, in the kubelet's podLogsDir; with None, no name is ever found."""

    def __init__(self, logs: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._logs = logs
        self._clock = clock
        self._known: dict[str, PodID] = {}
        self._listed_at = -PAUSE

    def of(self, uid: str) -> PodID:
        """Return the pod with this UID, without a name if no folder shows it."""
        if uid not in self._known and self._clock() - self._listed_at >= PAUSE:
            folders: list[str] = []
            with suppress(OSError):
                folders = [] if self._logs is None else os.listdir(self._logs)
            # Kubernetes names are ASCII. A name that is not even UTF-8 comes with surrogates, which no label can hold.
            parts = (folder.split("_") for folder in folders if folder.isascii())
            self._known = {part[2]: PodID(part[2], part[0], part[1]) for part in parts if len(part) == 3}
            self._listed_at = self._clock()
        return self._known.get(uid) or PodID(uid)

"""Finds the name of a pod by its UID, in the names of the folders in which the kubelet keeps the logs of pods.

The cgroup of a process shows the UID of its pod. The kubelet's podresources name pods without UIDs, and the agent may
not read pods: a token that may list them would show a thief what runs on every node. The kubelet calls the folder of a
pod's logs NAMESPACE_NAME_UID (kubernetes v1.36.3 pkg/kubelet/kuberuntime/helpers.go, BuildPodLogsDirectory; none of the
three can contain a `_`). Only the names of these folders are read.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from gpusharing.agent.library import PodID

_PARTS = 3
PAUSE = 5.0
"""Seconds between two listings of the folders, because one reading may look up many UIDs that have no folder."""


class PodNames:
    """Finds the pods of this node by UID."""

    def __init__(self, logs: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`logs` is the kubelet's podLogsDir, /var/log/pods by default; with None, no name is ever found. `clock`
        returns monotonic seconds."""
        self._logs = logs
        self._clock = clock
        self._known: dict[str, PodID] = {}
        self._listed_at = -PAUSE

    def of(self, uid: str) -> PodID:
        """Return the pod with this UID, without a name if no folder shows it. For a UID that the last listing did not
        show, the folders are listed again, but at most every PAUSE seconds."""
        if uid not in self._known and self._clock() - self._listed_at >= PAUSE:
            self._known, self._listed_at = self._listed(), self._clock()
        return self._known.get(uid) or PodID(uid)

    def _listed(self) -> dict[str, PodID]:
        """Return the pods that the folders name, by UID. Folders with names of another form, or not in ASCII, are
        skipped. Empty if the folders cannot be listed or there is no log folder (`logs` is None)."""
        try:
            folders = [] if self._logs is None else os.listdir(self._logs)
        except OSError:
            return {}
        # Kubernetes names are ASCII. A name that is not even UTF-8 comes with surrogates, which no label can hold.
        named = (folder.split("_") for folder in folders if folder.isascii())
        return {part[2]: PodID(part[2], part[0], part[1]) for part in named if len(part) == _PARTS}

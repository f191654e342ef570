"""Why does mig-manager fail on a node, according to the log of its pod?

Its labels do not say why (docs/design/nvidia.md#a3). Without the right to read logs, or with a kubelet that does not
answer, only the reason is missing: the verdict points to the log instead.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from gpusharing.api.names import LABEL_MIG_STATE
from gpusharing.kube.client import KubeClient
from gpusharing.kube.clock import Backoff
from gpusharing.kube.errors import CallFailed
from gpusharing.kube.fanout import Workers
from gpusharing.planning.snapshot.nvidia import Operand
from gpusharing.planning.snapshot.views import NodeView

LINES = 200
"""How many lines of a log are read; after its first error, mig-parted writes fewer for eight GPUs."""
PATIENCE = 2.0
"""Seconds to wait for a log. The API server asks the kubelet, which may be gone, and the pass waits for the answer."""
RETRY = timedelta(seconds=30)
"""The wait until a log that gave no reason is read again; doubled each time."""
LONGEST = timedelta(minutes=10)
"""The longest wait between two reads, because a Failed node may wait for a person for weeks."""
MOST_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class _Known:
    """The last reading of a pod's log."""

    attempt: str
    """UID of the pod and number of the attempt, written `UID/attempt`."""
    reason: str
    """Empty if the log has none or could not be read."""
    pause: Backoff
    again: datetime
    """When to read the log again if there is no reason."""


@dataclass(slots=True)
class ActuatorLogs:
    """Reads the logs of mig-manager's pods, and remembers for each node why mig-manager fails there."""

    client: KubeClient
    _known: dict[str, _Known] = field(default_factory=dict)

    async def read(
        self, nodes: Mapping[str, NodeView], pods: Mapping[str, Operand], now: datetime, workers: Workers
    ) -> dict[str, str]:
        """Return why mig-manager failed, as far as known, by name of each fenced node with the state `failed`.

        A slow read may end after this call, and its error (Unauthorized, ServerAway) be raised by a later one, in a
        group.
        """
        failed = {
            name: f"{pods[name].uid}/{node.fence.attempt}"
            for name, node in nodes.items()
            if node.fence is not None and name in pods and node.labels.get(LABEL_MIG_STATE) == "failed"
        }
        for name in self._known.keys() - failed.keys():
            del self._known[name]
        keys = {
            f"/log/{name}": name
            for name, attempt in failed.items()
            if (known := self._known.get(name)) is None
            or known.attempt != attempt
            or (not known.reason and now >= known.again)
        }

        async def read(key: str) -> None:
            name = keys[key]
            reason = await self._read(pods[name])
            before = self._known.get(name)
            pause = Backoff(RETRY.total_seconds(), LONGEST.total_seconds(), lambda: 1.0)
            if before is not None and before.attempt == failed[name]:
                pause = before.pause
            again = now + timedelta(seconds=pause.after_failure())
            self._known[name] = _Known(failed[name], reason, pause, again)

        await workers.each(keys, read)
        return {name: known.reason for name, known in self._known.items() if known.reason}

    async def _read(self, pod: Operand) -> str:
        try:
            async with asyncio.timeout(PATIENCE):
                return failure_in(await self.client.log(pod.namespace, pod.name, LINES))
        except (CallFailed, TimeoutError):
            return ""


LOGGED = re.compile(r'level=(error|fatal) msg="((?:[^"\\]|\\.)*)"')


def failure_in(log: str) -> str:
    """Return the first error and the last line of the last run of mig-manager; empty without an error."""
    found = LOGGED.findall(log.rpartition("Updating to MIG config")[2])  # the first line of a run
    rows = [(level, text.replace('\\"', '"').replace("\\n", " ").strip()) for level, text in found]
    # mig-manager's own summary after mig-parted's last line adds nothing.
    rows = [row for row in rows if not row[1].startswith("Error: failed to apply MIG configuration")] or rows
    if not rows:
        return ""
    # The first error is the cause. The last fatal line sums up ("...: all orderings failed"); earlier ones come from
    # mig-parted's checks ("selected configuration not applied").
    cause = next((text for level, text in rows if level == "error"), "")
    return "; ".join(dict.fromkeys(filter(None, (cause, rows[-1][1]))))[:MOST_CHARACTERS]

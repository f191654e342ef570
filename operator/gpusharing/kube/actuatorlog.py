"""Why mig-manager failed. Its labels do not say why (docs/design/nvidia.md#a3); only the log of its pod does.

Read once per failure, and only then. Without the right, or with a kubelet that does not answer, only the reason is
lost: the verdict points to the log instead.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from gpusharing.api.names import LABEL_MIG_STATE
from gpusharing.kube.client import KubeClient
from gpusharing.kube.crew import Crew
from gpusharing.kube.errors import KubeError, ServerAway, Unauthorized
from gpusharing.planning.snapshot.stackviews import Operand
from gpusharing.planning.snapshot.views import NodeView

LINES = 200
"""More lines than one run of mig-parted writes for eight GPUs after its first error."""
PATIENCE = 2.0
"""Seconds: the API server asks the kubelet, which may be gone, and the pass waits."""
RETRY = timedelta(seconds=30)
"""The wait until a log that gave no reason is read again; doubles each time."""
LONGEST = timedelta(minutes=10)
"""A Failed node may wait for a person for weeks."""
MAX_TEXT = 400

_LINE = re.compile(r'level=(error|fatal) msg="((?:[^"\\]|\\.)*)"')
_RUN = "Updating to MIG config"
"""mig-manager's first line of a run."""
_SUM = "Error: failed to apply MIG configuration"
"""mig-manager's own line after mig-parted's: says nothing more."""


def failure_in(log: str) -> str:
    """mig-parted's first error and its last line in the last run; empty when the log has none.

    The cause comes first, with the name of NVML's code; the last line sums up ("...: all orderings failed").
    """
    found = _LINE.findall(log.rpartition(_RUN)[2])
    rows = [(level, text.replace('\\"', '"').replace("\\n", " ").strip()) for level, text in found]
    rows = [row for row in rows if not row[1].startswith(_SUM)] or rows
    if not rows:
        return ""
    # A fatal line ends a mig-parted; earlier ones are its checks ("selected configuration not applied").
    cause = next((text for level, text in rows if level == "error"), "")
    return "; ".join(dict.fromkeys(filter(None, (cause, rows[-1][1]))))[:MAX_TEXT]


@dataclass(frozen=True, slots=True)
class _Known:
    """What the log of a pod said about an attempt."""

    key: str
    """Which pod and attempt."""
    text: str
    """The reason; empty: none was found, or there was no answer."""
    tries: int
    again: datetime
    """When to ask again if there is no reason."""


@dataclass(slots=True)
class ActuatorLogs:
    """The reasons of the present failures, by node."""

    client: KubeClient
    _known: dict[str, _Known] = field(default_factory=dict)
    """By node."""

    async def read(
        self, nodes: Mapping[str, NodeView], pods: Mapping[str, Operand], now: datetime, crew: Crew
    ) -> dict[str, str]:
        """Read the logs of nodes where mig-manager says `failed` in a change of ours and the reason is not known yet.

        Raises:
            ExceptionGroup: what ends a pass, see Crew.
        """
        failed = {
            name: f"{pods[name].uid}/{node.fence.attempt}"
            for name, node in nodes.items()
            if node.fence is not None and name in pods and node.labels.get(LABEL_MIG_STATE) == "failed"
        }
        for name in self._known.keys() - failed.keys():
            del self._known[name]
        due = [name for name, key in failed.items() if self._is_due(name, key, now)]
        keys = {f"/log/{name}": name for name in due}

        async def read(key: str) -> None:
            name = keys[key]
            self._known[name] = self._next(name, failed[name], await self._read(pods[name]), now)

        await crew.each(keys, read)
        return {name: known.text for name, known in self._known.items() if known.text}

    def _is_due(self, name: str, key: str, now: datetime) -> bool:
        known = self._known.get(name)
        return known is None or known.key != key or (not known.text and now >= known.again)

    def _next(self, name: str, key: str, text: str, now: datetime) -> _Known:
        known = self._known.get(name)
        tries = known.tries + 1 if known is not None and known.key == key else 1
        return _Known(key, text, tries, now + min(LONGEST, RETRY * 2 ** min(tries - 1, 10)))

    async def _read(self, pod: Operand) -> str:
        try:
            async with asyncio.timeout(PATIENCE):
                return failure_in(await self.client.log(pod.namespace, pod.name, LINES))
        except (Unauthorized, ServerAway):
            raise
        except (KubeError, TimeoutError):
            return ""

"""Why mig-manager failed, read from the log of its pod: its labels do not say why (docs/design/nvidia.md#a3).

A log is read once per failure, and again after a growing wait if it gave no reason. Without the right to read logs, or
with a kubelet that does not answer, only the reason is missing: the verdict points to the log instead.

Terms: docs/design/glossary.md#fence.
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
"""How many lines of a log are read. mig-parted writes fewer in one run for eight GPUs after its first error."""
PATIENCE = 2.0
"""Seconds to wait for a log. The API server asks the kubelet, which may be gone, and the pass waits for the answer."""
RETRY = timedelta(seconds=30)
"""The wait until a log that gave no reason is read again. It doubles each time."""
LONGEST = timedelta(minutes=10)
"""The longest wait between two reads, because a Failed node may wait for a person for weeks."""
MAX_TEXT = 400
"""The most characters of a reason."""

_LINE = re.compile(r'level=(error|fatal) msg="((?:[^"\\]|\\.)*)"')
_RUN = "Updating to MIG config"
"""mig-manager's first line of a run."""
_SUM = "Error: failed to apply MIG configuration"
"""mig-manager's own summary after mig-parted's last line, which adds nothing."""


def failure_in(log: str) -> str:
    """Return why the last run recorded in `log` failed: the texts of its first error line and of its last error or
    fatal line, joined by "; ", or only the latter if the two are equal or the run has no error line. Cut to MAX_TEXT
    characters. Empty if the run has neither an error nor a fatal line. A run begins after the text _RUN; if `log` does
    not contain it, all of `log` counts as one run. Only lines with the level error or fatal and a quoted `msg` are
    read, and escaped line breaks in their texts become spaces.

    Lines with mig-manager's own summary (_SUM) are skipped, unless the run has no other error or fatal line. The first
    error is the cause; the last line sums up ("...: all orderings failed").
    """
    found = _LINE.findall(log.rpartition(_RUN)[2])
    rows = [(level, text.replace('\\"', '"').replace("\\n", " ").strip()) for level, text in found]
    rows = [row for row in rows if not row[1].startswith(_SUM)] or rows
    if not rows:
        return ""
    # The last fatal line is the error of mig-parted; earlier ones come from its checks ("selected configuration not
    # applied").
    cause = next((text for level, text in rows if level == "error"), "")
    return "; ".join(dict.fromkeys(filter(None, (cause, rows[-1][1]))))[:MAX_TEXT]


@dataclass(frozen=True, slots=True)
class _Known:
    """The result of reading a pod's log for one attempt."""

    key: str
    """UID of the pod and number of the attempt, written `UID/attempt`."""
    text: str
    """The reason; empty if the log has none or could not be read."""
    tries: int
    """How many times the log was read for this attempt."""
    again: datetime
    """When to read the log again, if there is no reason."""


@dataclass(slots=True)
class ActuatorLogs:
    """Reads the logs of mig-manager's pods, and remembers for each node why mig-manager fails there."""

    client: KubeClient
    _known: dict[str, _Known] = field(default_factory=dict)
    """The last reading for each node where mig-manager fails, by node name."""

    async def read(
        self, nodes: Mapping[str, NodeView], pods: Mapping[str, Operand], now: datetime, crew: Crew
    ) -> dict[str, str]:
        """Return why mig-manager failed, by node name, for each fenced node whose label nvidia.com/mig.config.state is
        `failed`. Nodes for which the reason is not known are left out.

        Logs that are due at `now` (`_is_due`) are read first, concurrently by `crew`. A slow read may end after this
        call; a later call then returns its reason. Until then, the reason of an earlier attempt on the node is
        returned, if there is one. `pods` holds mig-manager's pod on each node. Reasons of nodes that no longer fail, or
        have no such pod at present, are forgotten. A log that cannot be read for another reason than those below gives
        no reason and is read again later.

        Raises:
            ExceptionGroup: with Unauthorized or ServerAway from a read, perhaps from one of an earlier call.
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
            """Read the log of the node that the key `/log/NODE` stands for, and store the result in `_known`. Raises
            Unauthorized and ServerAway."""
            name = keys[key]
            self._known[name] = self._next(name, failed[name], await self._read(pods[name]), now)

        await crew.each(keys, read)
        return {name: known.text for name, known in self._known.items() if known.text}

    def _is_due(self, name: str, key: str, now: datetime) -> bool:
        """Whether the log for node `name` must be read now: its last reading was not for the attempt `key`
        (`UID/attempt`), or it gave no reason and the wait is over at `now`. Reads nothing itself."""
        known = self._known.get(name)
        return known is None or known.key != key or (not known.text and now >= known.again)

    def _next(self, name: str, key: str, text: str, now: datetime) -> _Known:
        """Return what to remember for node `name` after its log was read for the attempt `key` and gave the reason
        `text`, or an empty string. Stores nothing. The wait before the next read is RETRY after the first read for a
        `key` (`UID/attempt`), and doubles with each further one, up to LONGEST."""
        known = self._known.get(name)
        tries = known.tries + 1 if known is not None and known.key == key else 1
        return _Known(key, text, tries, now + min(LONGEST, RETRY * 2 ** min(tries - 1, 10)))

    async def _read(self, pod: Operand) -> str:
        """Return the reason that `failure_in` finds in the last LINES lines of the log of `pod`. Empty if the log gives
        none or cannot be read within PATIENCE seconds. Only Unauthorized and ServerAway are raised; other KubeErrors
        count as a log without a reason."""
        try:
            async with asyncio.timeout(PATIENCE):
                return failure_in(await self.client.log(pod.namespace, pod.name, LINES))
        except (Unauthorized, ServerAway):
            raise
        except (KubeError, TimeoutError):
            return ""

"""How many pods and slices did each GPU have at one time, at most, since the last full hour of UTC?"""

from collections.abc import Callable, Mapping
from datetime import datetime

from gpusharing.agent.library import Reading
from gpusharing.agent.podresources import Holdings, base
from gpusharing.kube.clock import wall_time

HOUR = 3600


class HourPeaks:
    """The peaks of each GPU in the current hour: they also show what comes and goes between two scrapes."""

    def __init__(self, clock: Callable[[], datetime] = wall_time) -> None:
        self._clock = clock
        self._most: Mapping[str, tuple[int, int]] = {}
        """Replaced, never changed, because scrapes run in threads of their own."""
        self._source: tuple[int, Reading, Holdings] | None = None

    @property
    def most(self) -> Mapping[str, tuple[int, int]]:
        """Pods and slices by the UUID of the GPU; empty if nothing was counted in this hour yet."""
        most, source = self._most, self._source
        return most if source is not None and source[0] == self._hour() else {}

    def turn(self, reading: Reading, holdings: Holdings) -> None:
        hour, last = self._hour(), self._source
        # What did not change is the same object, so most turns end here.
        if last is not None and last[0] == hour and last[1] is reading and last[2] is holdings:
            return
        gpus = {gpu.uuid: gpu.uuid for gpu in reading.gpus if gpu.uuid}
        gpus |= {instance.uuid: gpu.uuid for gpu in reading.gpus for instance in gpu.instances}
        pods: dict[str, set[tuple[str, str]]] = {uuid: set() for uuid in gpus.values()}
        slices = dict.fromkeys(pods, 0)
        for each in holdings.by_pod:
            for device in each.devices:
                if (uuid := gpus.get(base(device))) is not None:
                    pods[uuid].add((each.namespace, each.pod))
                    slices[uuid] += 1
        before = self._most if last is not None and last[0] == hour else {}
        most = {}
        for uuid, holders in pods.items():
            old = before.get(uuid, (0, 0))
            most[uuid] = max(len(holders), old[0]), max(slices[uuid], old[1])
        self._most, self._source = most, (hour, reading, holdings)

    def _hour(self) -> int:
        return int(self._clock().timestamp()) // HOUR

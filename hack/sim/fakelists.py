"""Lists of FakeCluster in pages, which show the state when the first one was read while the tokens are valid."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gpusharing.kube.client import JSON
from gpusharing.kube.errors import Expired
from hack.sim.fakestore import copied

TOKEN_LIFE = 300.0
"""Seconds for which a token is valid: kube-apiserver lets etcd compact its history every 5 minutes."""


@dataclass(frozen=True)
class _Moment:
    objects: Sequence[JSON]
    version: int
    began: float
    """When the first page was read, by the clock of `Lists`."""


class Lists:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._moments: dict[int, _Moment] = {}
        self._count = 0
        self.gives_rest = True
        """Whether the error for an expired token contains a new token for the rest of the list."""

    def compact(self) -> None:
        """Make all tokens expire now, as a compaction of etcd does."""
        self._moments.clear()

    def page(self, objects: Iterable[JSON], version: int, limit: int, after: str) -> JSON:
        """Return a page of `limit` objects (0: all). Raises Expired for an old token, with one for the rest."""
        now = self._clock()
        self._moments = {number: moment for number, moment in self._moments.items() if now - moment.began < TOKEN_LIFE}
        number, name, start = json.loads(after) if after else (0, ["", ""], 0)
        if number and number not in self._moments:
            rest = json.dumps([0, name, 0]) if self.gives_rest else ""
            raise Expired("The provided continue parameter is too old to display a consistent list result.", rest)
        if not number:
            self._count += 1
            number = self._count
            left = [obj for obj in objects if _key(obj) > name]
            self._moments[number] = _Moment(left, version, now)
        moment = self._moments[number]
        end = start + (limit or sys.maxsize)
        items = [copied(obj) for obj in moment.objects[start:end]]
        more = json.dumps([number, _key(items[-1]), end]) if end < len(moment.objects) else ""
        return {"metadata": {"resourceVersion": str(moment.version), "continue": more}, "items": items}


def _key(obj: JSON) -> list[str]:
    return [obj["metadata"].get("namespace", ""), obj["metadata"]["name"]]

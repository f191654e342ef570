"""Lists of FakeCluster in pages: all pages of a list show one moment, for as long as their tokens live."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gpusharing.kube.client import JSON
from gpusharing.kube.errors import Expired
from hack.sim.fakestore import copied

TOKEN_LIFE = 300.0
"""Seconds; kube-apiserver lets etcd compact its history every 5 minutes."""


@dataclass(frozen=True)
class _Moment:
    """What a list held when it began, and when that was."""

    objects: Sequence[JSON]
    version: int
    began: float


class Lists:
    """The moments of lists that are being read."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` returns the present time in seconds; tokens expire by it."""
        self._clock = clock
        self._moments: dict[int, _Moment] = {}
        self._count = 0
        self.gives_rest = True
        """A token that has expired comes with one for the rest of the list."""

    def compact(self) -> None:
        """Let all tokens expire."""
        self._moments.clear()

    def page(self, found: Iterable[JSON], version: int, limit: int, after: str) -> JSON:
        """The answer with a page of at most `limit` objects (0: all), and the token for the next one.

        `found` and `version`: the list as it is now, for its first page. Raises Expired, with the token for the rest.
        """
        now = self._clock()
        self._moments = {number: one for number, one in self._moments.items() if now - one.began < TOKEN_LIFE}
        number, name, start = json.loads(after) if after else (0, ["", ""], 0)
        if number and number not in self._moments:
            rest = json.dumps([0, name, 0]) if self.gives_rest else ""
            raise Expired(
                "The provided continue parameter is too old to display a consistent list result.", rest
            )
        if not number:
            self._count += 1
            number = self._count
            left = [obj for obj in found if _key(obj) > name]
            self._moments[number] = _Moment(left, version, now)
        moment = self._moments[number]
        end = start + (limit or sys.maxsize)
        items = [copied(obj) for obj in moment.objects[start:end]]
        more = json.dumps([number, _key(items[-1]), end]) if end < len(moment.objects) else ""
        return {"metadata": {"resourceVersion": str(moment.version), "continue": more}, "items": items}


def _key(obj: JSON) -> list[str]:
    return [obj["metadata"].get("namespace", ""), obj["metadata"]["name"]]

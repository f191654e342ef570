"""Every write of the operator: which of its fields do others undo, and when may it be sent again?

A program that keeps reverting our fields would otherwise be answered at full speed
(docs/adr/0088-a-write-that-does-not-stick.md).
"""

import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from gpusharing.api import names
from gpusharing.kube.client import (
    EVENTS,
    JSON,
    LEASES,
    NODES,
    PODS,
    ApiRequest,
    KubeClient,
    PassingClient,
    Resource,
    WatchEvent,
)
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import Undone
from gpusharing.kube.labelwriters import setter
from gpusharing.kube.raw import entries, newer, part, text

FIRST_WAIT = 5.0
"""Seconds from the second time that a write is undone until it is sent again; doubled each further time."""
LONGEST_WAIT = 300.0
"""The longest wait between two writes of a field that others keep undoing, in seconds."""
REMEMBERED = 900.0
"""Seconds for which a write is remembered, and after which a field that nobody undid again counts as settled."""
UNTRACKED = frozenset({EVENTS.plural, LEASES.plural, PODS.plural})
"""Kinds that are not compared: nobody reads an Event back, the Lease is written by compare-and-swap alone, and the pods
that the operator creates to test the scheduler are its own."""
MOST_TRIED = 20
"""How many different values of a field others may undo before another new one waits, too."""
_TIMES = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)|(?<=:)\d{13}\b|(?<=\.)[0-9a-f]{11}\b")
"""A time as the operator writes it: RFC 3339, and the milliseconds in the ids of requests and of changes."""
_OTHERS = frozenset({*names.REQUESTS, names.LABEL_MIG_STATE})
"""Labels and annotations that the operator removes and others set again with good reason."""
_WHOLE: Final = ("",)
"""The path of an object as a whole, which others may delete."""
_FINALIZERS: Final = ("metadata", "finalizers")
"""The path of the finalizers, of which only ours counts."""
_CORDON: Final = ("spec", "unschedulable")
"""The path of the cordon, which is set again at once however often somebody lifts it: no pod may start behind it."""
Path = tuple[str, ...]
_Key = tuple[Resource, str, str]


@dataclass(slots=True)
class _Fight:
    """A field that others undo: how often, who did it last, and when it may be written again."""

    tried: set[object]
    """The values that others have undone since people last asked for something else, without their times."""
    wish: object
    times: int
    by: str
    last: float
    until: float

    def holds(self, value: object, wish: object, now: float) -> bool:
        if self.until <= now or wish != self.wish:
            return False
        return len(self.tried) >= MOST_TRIED or timeless(value) in self.tried


@dataclass(slots=True)
class _Written:
    """The fields of one object that the operator wrote lately, and those that others have undone since."""

    version: str = ""
    at: float = 0.0
    in_flight: int = 0
    """Writes that were sent and not answered. Their events may come first, and must not count as somebody else's."""
    wish: object = None
    """`ApiRequest.wish` of the last write."""
    fields: dict[Path, object] = field(default_factory=dict)
    fights: dict[Path, _Fight] = field(default_factory=dict)

    def has(self, path: Path, value: object) -> bool:
        """Whether the field has this value already, but for its times."""
        return path in self.fields and timeless(self.fields[path]) == timeless(value)


@dataclass(slots=True)
class Writes:
    """What the senders of one process have written lately, by object."""

    objects: dict[_Key, _Written] = field(default_factory=dict)
    _pruned: float = 0.0

    def check(self, request: ApiRequest) -> None:
        """Raise Undone if the request would write only what others keep undoing, and its time has not come."""
        if (known := self.objects.get(key_of(request))) is None or not known.fights:
            return
        if _lets_go(request):
            return
        now, sent = loop_time(), dict(_sent(request))
        if request.verb == "create":
            sent = {_WHOLE: None}
        fights = [(path, fight) for path, fight in known.fights.items() if path in sent]
        held = {path for path, fight in fights if fight.holds(sent[path], request.wish, now)}
        if held and all(path in held or known.has(path, value) for path, value in sent.items()):
            worst = max(held, key=lambda path: known.fights[path].times)
            raise Undone(_tell(request, worst, known.fights[worst]))

    def sends(self, request: ApiRequest) -> _Written:
        """Note that a write leaves; the caller takes it from `in_flight` when it has ended."""
        self._prune()
        known = self.objects.setdefault(key_of(request), _Written())
        known.in_flight += 1
        known.at = loop_time()
        return known

    def failed(self, request: ApiRequest) -> None:
        """Forget what a write that failed was about: it may have been carried out."""
        if (known := self.objects.get(key_of(request))) is not None:
            for path, _ in _sent(request):
                known.fields.pop(path, None)

    def wrote(self, request: ApiRequest, answer: JSON) -> None:
        """Remember what the server accepted, and note the fields that it stored in another way."""
        known = self.objects.setdefault(key_of(request, answer), _Written())
        known.version, known.at = text(answer, "metadata", "resourceVersion"), loop_time()
        known.wish = request.wish
        for path, value in _sent(request):
            if _holds(value, _value(answer, path)):
                known.fields[path] = value
            else:
                known.fields.pop(path, None)
                _undone(known, path, value, "")
        known.fields[_WHOLE] = None

    def saw(self, resource: Resource, raw: JSON, *, deleted: bool = False) -> None:
        """Compare an object that the server shows with what was written to it."""
        if not self.objects:
            return
        place = (resource, text(raw, "metadata", "namespace"), text(raw, "metadata", "name"))
        known = self.objects.get(place)
        if known is None or known.in_flight or not newer(text(raw, "metadata", "resourceVersion"), known.version):
            return
        if deleted:
            if known.fields.pop(_WHOLE, self) is not self:
                _undone(known, _WHOLE, None, "")
            known.fields.clear()
            return
        for path, value in list(known.fields.items()):
            if path != _WHOLE and not _holds(value, _value(raw, path)):
                del known.fields[path]
                _undone(known, path, value, _find_writer(raw, path))

    def _prune(self) -> None:
        old = loop_time() - REMEMBERED
        if self._pruned > old + REMEMBERED * 0.9:
            return
        self._pruned = loop_time()
        for key, known in list(self.objects.items()):
            for path in [path for path, fight in known.fights.items() if fight.last < old]:
                del known.fights[path]
            if known.at < old and not known.fights and not known.in_flight:
                del self.objects[key]


class Sender(PassingClient):
    """A client in front of another one whose writes are compared with what becomes of them.

    A write of fields that others keep undoing is repeated once at once, and then raises Undone until its wait is over.
    """

    def __init__(self, client: KubeClient, writes: Writes) -> None:
        super().__init__(client)
        self._writes = writes

    async def call(self, request: ApiRequest) -> JSON:
        tracked = request.resource.plural not in UNTRACKED
        writes = tracked and (
            request.verb == "patch" or (request.verb == "create" and request.subresource is None and request.body)
        )
        if not writes:
            answer = await self.client.call(request)
        else:
            self._writes.check(request)
            known = self._writes.sends(request)
            try:
                answer = await self.client.call(request)
            except BaseException:
                self._writes.failed(request)
                raise
            finally:
                known.in_flight -= 1
        if writes and text(answer, "metadata", "uid"):
            self._writes.wrote(request, answer)
        elif tracked and request.verb == "get" and request.subresource is None:
            self._writes.saw(request.resource, answer)
        elif tracked and request.verb == "list":
            for raw in entries(answer, "items"):
                self._writes.saw(request.resource, raw)
        elif tracked and request.verb == "delete":
            self._writes.objects.pop(key_of(request), None)  # it is gone because the operator asked for it
        return answer

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        async with aclosing(self.client.stream(request)) as events:
            async for event in events:
                if event.type != "BOOKMARK":
                    self._writes.saw(request.resource, event.object, deleted=event.type == "DELETED")
                yield event


def key_of(request: ApiRequest, answer: JSON | None = None) -> _Key:
    name = request.name or text(request.body, "metadata", "name") or text(answer, "metadata", "name")
    return request.resource, request.namespace or "", name


def _sent(request: ApiRequest) -> Iterator[tuple[Path, object]]:
    """Yield the fields that a write sets, annotations and labels each by its own; one that it removes with None.

    Only what is removed from a Node stays the operator's. Requests of people and mig-manager's state are set anew.
    """
    for part_name, whole in (request.body or {}).items():
        if part_name in ("apiVersion", "kind") or not isinstance(whole, Mapping):
            continue
        for name, value in whole.items():
            if part_name != "metadata":
                # A CRD of an older version drops this field, and then all GPUs are left alone, which is as good.
                kept = {k: v for k, v in value.items() if k != "quietGPUs"} if isinstance(value, Mapping) else value
                yield (part_name, name), kept
            elif name in ("labels", "annotations"):
                keeps = request.resource == NODES
                for key, mark in value.items():
                    if mark is not None or (keeps and key not in _OTHERS):
                        yield (part_name, name, key), mark
            elif name == "finalizers":
                yield _FINALIZERS, names.FINALIZER in value


def _lets_go(request: ApiRequest) -> bool:
    """Whether the write ends a change: it removes the fence or the cordon, and is never held back."""
    spec = part(request.body, "spec")
    uncordons = isinstance(spec, Mapping) and "unschedulable" in spec and not spec["unschedulable"]
    return uncordons or (("metadata", "annotations", names.ANNOTATION_FENCE), None) in _sent(request)


def _value(raw: JSON, path: Path) -> Any:
    found = part(raw, *path)
    return names.FINALIZER in (found or ()) if path == _FINALIZERS else found


def _holds(sent: object, stored: object) -> bool:
    """Whether the server has what was sent. It drops what is empty, and may add defaults."""
    if not sent and not stored:
        return True
    if isinstance(sent, Mapping):
        return isinstance(stored, Mapping) and all(_holds(value, stored.get(key)) for key, value in sent.items())
    if isinstance(sent, list | tuple):
        return isinstance(stored, list) and len(sent) == len(stored) and all(map(_holds, sent, stored))
    return sent == stored


def _undone(known: _Written, path: Path, value: object, by: str) -> None:
    if path == _CORDON:
        return
    now = loop_time()
    before = known.fights.get(path)
    times = before.times + 1 if before is not None and now - before.last < REMEMBERED else 1
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(times - 2, 10)) if times > 1 else 0.0
    tried = before.tried if before is not None and times > 1 and before.wish == known.wish else set()
    known.fights[path] = _Fight(tried | {timeless(value)}, known.wish, times, by, now, now + wait)


def timeless(value: object) -> object:
    """Return a value to compare, without the times in it: that they differ does not show that it says anything new."""
    if isinstance(value, Mapping):
        return tuple((key, timeless(value[key])) for key in sorted(value))
    if isinstance(value, list | tuple):
        return tuple(map(timeless, value))
    return _TIMES.sub("", value) if isinstance(value, str) else value


def _find_writer(raw: JSON, path: Path) -> str:
    """Return the field manager that set the field; if it is gone, the one that wrote the object last."""
    if writer := setter(raw, *path):
        return f"{writer} sets"
    managers = [one for one in entries(raw, "metadata", "managedFields") if not text(one, "subresource")]
    last = text(max(managers, key=lambda entry: text(entry, "time"), default={}), "manager")
    return f"{last}, the last writer of the object, may have removed" if last else ""


def _tell(request: ApiRequest, path: Path, fight: _Fight) -> str:
    name = f"{request.resource.plural} {request.full_name}"
    wait = f"the operator writes it again after waits that grow to {LONGEST_WAIT / 60:.0f} minutes"
    if path == _WHOLE:
        return f"somebody keeps deleting {name}; {wait}. Find out who does, and stop it"
    keyed = len(path) == 3 or path[0] == "data"
    shown = f"{'.'.join(path[:-1])}[{path[-1]}]" if keyed else ".".join(path)
    who = fight.by or "somebody, or an admission webhook or policy, changes"
    return f"the server does not keep what the operator writes: {who} {shown} of {name}; {wait}. Stop that program"

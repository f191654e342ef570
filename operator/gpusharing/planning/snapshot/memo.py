"""Which answers of the last pass still hold? A cache that makes a pass cost what has changed.

Python compares an object with itself at once, and gatherers keep objects that did not change, so comparing arguments
costs next to nothing. All decisions are cached here; functools.lru_cache is used only for pure functions of a few
values that hold no snapshot (tests/test_shape.py has the list).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar, TypeVarTuple

Inputs = TypeVarTuple("Inputs")
Answer = TypeVar("Answer")
Value = TypeVar("Value")
Column: TypeAlias = Mapping[str, Any] | AbstractSet[str]
"""One fact about many names: a mapping from name to fact, or the set of names for which it is true."""
_MAPPINGS = (dict, Mapping)
"""With `dict` first, because most columns are one, and asking the abstract class takes many times as long."""


class Memo:
    """The answers of the last pass.

    When a pass asks a question, the answers for names about which it no longer asks are dropped. A question that a pass
    does not ask at all keeps its answers.
    """

    def __init__(self) -> None:
        self._known: dict[object, _Known] = {}
        self._values: dict[str, Any] = {}
        self._latest: datetime | None = None
        self._inner: dict[object, Memo] = {}
        self._inner_before: dict[object, Memo] = {}

    def begin(self, now: datetime) -> None:
        """Begin a pass. If the clock was set back, all answers are dropped, because they may depend on the time."""
        if self._latest is not None and now < self._latest:
            self._known, self._values = {}, {}
        self._latest = now
        self._inner_before, self._inner = self._inner, {}

    def inner(self, key: object) -> "Memo":
        """Return the memo of a plan within this plan. It is dropped with the first pass that does not ask for it."""
        if key not in self._inner:
            self._inner[key] = self._inner_before.pop(key) if key in self._inner_before else Memo()
        return self._inner[key]

    def same(self, name: str, value: Value) -> Value:
        """Return the object that was stored under `name` if it equals `value`, else store and return `value`."""
        known: Value | None = self._values.get(name)
        if known is not None and known == value:
            return known
        self._values[name] = value
        return value

    def ask(
        self, question: Callable[[*Inputs], Answer], *inputs: *Inputs, lasts: Callable[[Answer], bool] | None = None
    ) -> Answer:
        return self.each(question, [("", inputs)], lasts=lasts)[""]

    def each(
        self,
        question: Callable[[*Inputs], Answer],
        rows: Iterable[tuple[str, tuple[*Inputs]]],
        *,
        lasts: Callable[[Answer], bool] | None = None,
        failed: dict[str, Exception] | None = None,
    ) -> dict[str, Answer]:
        """Return the answer of `question` for each name; `rows` are pairs of a name and its arguments.

        Call it only once in a pass, with all names. Arguments that a partial binds are not compared.
        """
        inputs = dict(rows)
        key = question.func if isinstance(question, partial) else question
        return self.table(
            lambda name: question(*inputs[name]), inputs, columns=[inputs], key=key, lasts=lasts, failed=failed
        )

    def table(
        self,
        question: Callable[[str], Answer],
        names: Iterable[str],
        *,
        columns: Sequence[Column],
        shared: Sequence[object] = (),
        key: object,
        lasts: Callable[[Answer], bool] | None = None,
        failed: dict[str, Exception] | None = None,
    ) -> dict[str, Answer]:
        """Return the answer of `question` for each of `names`, in their order.

        The question is called for a name only if its entry in one of `columns`, each compared in a single operation, or
        one of `shared` has changed since the last pass. Anything else that it reads, such as the time, is not compared.
        Answers for which `lasts` returns False are computed again in the next pass. With `failed`, an exception is
        stored there under the name, which then has no answer.
        """
        known = self._known.get(key)
        if known is None or known.shared != tuple(shared):
            old, stale = {}, frozenset[str]()
        else:
            old = known.answers
            stale = known.passing.union(*map(_find_changed, known.columns, columns))
        answers: dict[str, Answer] = {}
        passing: set[str] = set()
        for name in names:
            if name in old and name not in stale:
                answers[name] = old[name]
                continue
            try:
                answers[name] = answer = question(name)
            except Exception as error:
                if failed is None:
                    raise
                failed[name] = error
                continue
            if lasts is not None and not lasts(answer):
                passing.add(name)
        # Copies tell the next pass whether an original was changed in place.
        copies = tuple(dict(one) if isinstance(one, _MAPPINGS) else frozenset(one) for one in columns)
        self._known[key] = _Known(answers, frozenset(passing), copies, tuple(shared))
        return answers.copy()


class _Known(NamedTuple):
    """The answers of one pass to one question, and the facts from which they were computed."""

    answers: dict[str, Any]
    passing: frozenset[str]
    """The names whose answers are valid for that pass only."""
    columns: tuple[Column, ...]
    shared: tuple[object, ...]


def _find_changed(before: Column, now: Column) -> AbstractSet[str]:
    if not isinstance(before, _MAPPINGS) or not isinstance(now, _MAPPINGS):
        return set(before) ^ set(now)
    if before == now:
        return frozenset()
    known = before.get
    changed = {name for name, value in now.items() if (old := known(name, before)) is not value and old != value}
    return changed | (before.keys() - now.keys())

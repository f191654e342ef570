"""Answers to questions that were asked before: the cost of a pass depends on what changed, not on what exists.

A question is a pure function. Its answer stays valid while the arguments are the same objects as before, or equal
ones, so the arguments are the key. They come as rows, one for each name (`each`), or, where thousands of names have
many arguments, as columns (`table`): comparing a column with that of the last pass takes one operation on dicts.
Python compares an object with itself at once, and gatherers keep objects that did not change, so a comparison costs
next to nothing.

All decisions are remembered here: by `Memo` from pass to pass, by `AnswersByKind` for nodes of one kind.
functools.lru_cache stands only before pure functions of a few values, such as a layout or a version, that hold no
snapshot (tests/test_shape.py has the list).
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
"""One fact about many names: the fact by name, or the names for which it is true."""


class Memo:
    """The answers of the last pass. A planner has one, which is empty at first.

    A question that a pass does not ask is forgotten after it, so nodes and policies that are gone leave nothing
    behind.
    """

    def __init__(self) -> None:
        self._known: dict[object, _Known] = {}
        """By question: what the last pass answered."""
        self._values: dict[str, Any] = {}
        self._latest: datetime | None = None

    def begin(self, now: datetime) -> None:
        """Begin a pass. Answers stay valid while time goes forward. If the clock was set back, all are dropped."""
        if self._latest is not None and now < self._latest:
            self._known, self._values = {}, {}
        self._latest = now

    def same(self, name: str, value: Value) -> Value:
        """Return the value of this name in the last pass if it equals this one, so that a question gets the same
        object; else return `value`."""
        known: Value | None = self._values.get(name)
        if known is not None and known == value:
            return known
        self._values[name] = value
        return value

    def ask(
        self,
        question: Callable[[*Inputs], Answer],
        *inputs: *Inputs,
        lasts: Callable[[Answer], bool] | None = None,
    ) -> Answer:
        """Return the answer to a question that is asked once in a pass. `lasts` is that of `table`."""
        return self.each(question, [("", inputs)], lasts=lasts)[""]

    def each(
        self,
        question: Callable[[*Inputs], Answer],
        rows: Iterable[tuple[str, tuple[*Inputs]]],
        *,
        lasts: Callable[[Answer], bool] | None = None,
        failed: dict[str, Exception] | None = None,
    ) -> dict[str, Answer]:
        """Return the answers to one question about many names, in the order of `rows`, which have the arguments. Call
        it once in a pass, with all names. For what else the question reads, and for errors, see `table`."""
        inputs = dict(rows)
        key = question.func if isinstance(question, partial) else question
        return self.table(
            lambda name: question(*inputs[name]),
            inputs,
            columns=[inputs],
            key=key,
            lasts=lasts,
            failed=failed,
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
        """Return the answers to a question about these names, in their order. The question is called for a name if the
        last pass has no answer for it, if its entry in one of `columns` has changed since, or if one of `shared`
        has changed.

        Anything else that the question reads, above all the time, is not compared. `lasts` says which answers stay
        valid although that changes; the others are computed again in the next pass. If `failed` is given, an error of
        the question goes there and its name has no answer; otherwise the error is raised. `key` identifies the
        question from pass to pass.
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
        self._known[key] = _Known(answers, frozenset(passing), tuple(map(_copy, columns)), tuple(shared))
        return answers.copy()


class _Known(NamedTuple):
    """The answers of one pass to one question, and what they were computed from."""

    answers: dict[str, Any]
    """The answers, by name."""
    passing: frozenset[str]
    """The names whose answers are valid for that pass only."""
    columns: tuple[Column, ...]
    """The facts about each name from which the answers were computed."""
    shared: tuple[object, ...]
    """The facts for all names from which the answers were computed."""


def _find_changed(before: Column, now: Column) -> AbstractSet[str]:
    """Return the names whose entries differ between two passes, those that are in only one of them included."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return set(before) ^ set(now)
    if before == now:
        return frozenset()
    known = before.get
    changed = {
        name for name, value in now.items() if (old := known(name, before)) is not value and old != value
    }
    return changed | (before.keys() - now.keys())


def _copy(column: Column) -> Column:
    """Return a copy of the column, so that a later change of the original is noticed."""
    return dict(column) if isinstance(column, Mapping) else frozenset(column)


class AnswersByKind:
    """The answers to questions that thousands of nodes ask with few different arguments, such as nodes with the same
    cards.

    Everything else that a question reads must stay the same while this object exists: it is part of a value that is
    made of just that, and that the memo makes anew when any of it changes.
    """

    def __init__(self, most: int = 256) -> None:
        """Keep at most `most` answers; when there are more, all are dropped."""
        self._most = most
        self._known: dict[object, Any] = {}

    def ask(
        self,
        question: Callable[[*Inputs], Answer],
        *inputs: *Inputs,
        lasts: Callable[[Answer], bool] | None = None,
    ) -> Answer:
        """Return the answer to a question with these arguments, which must be hashable. `lasts` is that of
        `Memo.each`."""
        key = (question.func if isinstance(question, partial) else question), inputs
        if key in self._known:
            known: Answer = self._known[key]
            return known
        answer = question(*inputs)
        if lasts is None or lasts(answer):
            if len(self._known) >= self._most:
                self._known.clear()
            self._known[key] = answer
        return answer

"""Answers to questions that were asked before: the cost of a pass depends on what changed, not on what exists.

A question is a pure function of its arguments. Its answer is valid while it is asked with the same objects, or with
equal ones: they are values. So the list of arguments is the key, and adding an argument adds it to the key. Python
compares an object with itself at once, and gatherers keep what did not change: a comparison costs next to nothing.

Everything that is decided is remembered here: by `Memo` from pass to pass, by `Answers` for nodes of one kind.
functools.lru_cache stands only before pure functions of a few values, such as a layout or a version, that hold no
snapshot (tests/test_shape.py has the list).
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

Inputs = TypeVarTuple("Inputs")
Answer = TypeVar("Answer")
Value = TypeVar("Value")


class Memo:
    """The answers of the last pass. One per planner; start with an empty one.

    A question that a pass does not ask is forgotten after it: nodes and policies that are gone leave nothing behind.
    """

    def __init__(self) -> None:
        self._answers: dict[object, tuple[dict[str, tuple[object, ...]], dict[str, Any]]] = {}
        """By question: the arguments given with each name, for answers that are still valid; and all answers."""
        self._values: dict[str, Any] = {}
        self._latest: datetime | None = None

    def begin(self, now: datetime) -> None:
        """Begin a pass. Answers stay valid while time goes forward; after a clock is set back everything is asked
        again."""
        if self._latest is not None and now < self._latest:
            self._answers, self._values = {}, {}
        self._latest = now

    def same(self, name: str, value: Value) -> Value:
        """The value of this name in the last pass if it equals this one, so that a question gets the same object."""
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
        """The answer to a question that is asked once in a pass; see `each`."""
        return self.each(question, [("", inputs)], lasts=lasts)[""]

    def each(
        self,
        question: Callable[[*Inputs], Answer],
        rows: Iterable[tuple[str, tuple[*Inputs]]],
        *,
        lasts: Callable[[Answer], bool] | None = None,
        failed: dict[str, Exception] | None = None,
    ) -> dict[str, Answer]:
        """The answers to one question about many, by name. Asked once in a pass, about all.

        Whatever else a question reads, above all the time, is bound to it with functools.partial; `lasts` says which
        of its answers stay valid nevertheless. An error goes into `failed`, and its name has no answer; None: it is
        raised.
        """
        key = question.func if isinstance(question, partial) else question
        asked, told = self._answers.get(key, _NOTHING)
        given: dict[str, tuple[object, ...]] = {}
        answers: dict[str, Answer] = {}
        for name, inputs in rows:
            if asked.get(name) == inputs:
                answers[name] = told[name]
                given[name] = inputs
                continue
            try:
                answers[name] = answer = question(*inputs)
            except Exception as error:
                if failed is None:
                    raise
                failed[name] = error
                continue
            if lasts is None or lasts(answer):
                given[name] = inputs
        self._answers[key] = given, answers
        return answers.copy()


class Answers:
    """The answers to questions that thousands ask with few different arguments, such as nodes with the same cards.

    Whatever else a question reads is the same for as long as this exists: it is part of a value that is made of just
    that, and that the memo makes anew when any of it changes.
    """

    def __init__(self, most: int = 256) -> None:
        """`most`: how many are kept; then it starts again with none."""
        self._most = most
        self._known: dict[object, Any] = {}

    def ask(
        self,
        question: Callable[[*Inputs], Answer],
        *inputs: *Inputs,
        lasts: Callable[[Answer], bool] | None = None,
    ) -> Answer:
        """The answer to a question with these arguments, which can be hashed; see `Memo.each`."""
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


_NOTHING: tuple[dict[str, tuple[object, ...]], dict[str, Any]] = {}, {}

"""Read the answer to a list piece by piece, so that memory follows what is kept of its objects and not what is sent."""

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Generator
from typing import Any

from gpusharing.kube.client import JSON, ApiRequest, Kept
from gpusharing.kube.errors import PageTooLarge, Unavailable
from gpusharing.kube.wire import MOST_BYTES, too_large

MOST_OF_PAGE = 8 * 1024 * 1024
"""Bytes of a page after which it is asked for again with fewer objects, which the server answers sooner."""
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"[-+.0-9eE]*\Z")
_DECODER = json.JSONDecoder()


class ListReader:
    """Holds one object of a list at a time, whatever the server sends: pages that ignore `limit`, or objects of MiB."""

    def __init__(self, request: ApiRequest) -> None:
        self._request = request
        self._decode = getincrementaldecoder("utf-8")().decode
        self._text, self._at, self._tried = "", 0, 0
        """What was not read yet, where it begins, and how much of it did not suffice for the next value."""
        self._answer: JSON = {}
        self._kept = Kept()
        self._start, self._bytes = b"", 0
        self._is_whole = False
        self._reading = self._read()

    def feed(self, piece: bytes) -> None:
        self._start = self._start or piece[:80]
        try:
            self._text, self._at = self._text[self._at :] + self._decode(piece), 0
        except UnicodeDecodeError as error:
            raise self._not_json() from error
        # A value that was cut off is tried again when twice as much is there, so that a large one is not parsed for
        # each piece.
        if len(self._text) >= 2 * self._tried:
            self._go_on()
        if len(self._text) - self._at > MOST_BYTES:
            raise too_large(self._request, self._text[self._at : self._at + 4096])
        self._bytes += len(piece)
        limit = int(self._request.query.get("limit", "0"))
        # A server that ignores `limit` would ignore a smaller one, too.
        if self._bytes > MOST_OF_PAGE and len(self._kept) < limit and limit > 1:
            fits = len(self._kept) * (MOST_OF_PAGE // 2) // self._bytes
            raise PageTooLarge(
                f"cannot {self._request.what}, because {limit} objects are too large to be read", max(1, fits)
            )

    def end(self) -> JSON:
        """Return the answer, with Kept items. Raises Unavailable if what was fed is not a JSON object."""
        self._go_on()
        if not self._is_whole or self._text[self._at :].strip():
            raise self._not_json()
        return self._answer

    def _go_on(self) -> None:
        try:
            next(self._reading, None)
        except (ValueError, RecursionError) as error:
            raise self._not_json() from error

    def _not_json(self) -> Unavailable:
        return Unavailable(f"cannot {self._request.what}, because the response is not a JSON object: {self._start!r}")

    def _read(self) -> Generator[None, None, None]:
        """Read the answer, and yield where the text ends before it."""
        yield from self._take("{")
        more = (yield from self._peek()) != "}"
        while more:
            key = yield from self._value()
            yield from self._take(":")
            if key == "items" and (yield from self._peek()) == "[":
                yield from self._read_items()
                self._answer[key] = self._kept
            else:
                self._answer[key] = yield from self._value()
            if more := (yield from self._peek()) == ",":
                yield from self._take(",")
        yield from self._take("}")
        self._is_whole = True

    def _read_items(self) -> Generator[None, None, None]:
        yield from self._take("[")
        more = (yield from self._peek()) != "]"
        while more:
            self._kept.append(self._request.keep((yield from self._value())))
            if more := (yield from self._peek()) == ",":
                yield from self._take(",")
        yield from self._take("]")

    def _peek(self) -> Generator[None, None, str]:
        """Return the next character that is no space, without reading it."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space is not None else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            yield

    def _take(self, expected: str) -> Generator[None, None, None]:
        if (yield from self._peek()) != expected:
            raise ValueError(f"no {expected}")
        self._at += 1

    def _value(self) -> Generator[None, None, Any]:
        yield from self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except ValueError:
                end = len(self._text)
            if _NUMBER.match(self._text, end) is None:  # a number at the end of the text may go on
                self._at, self._tried = end, 0
                return value
            self._tried = len(self._text) - self._at
            yield

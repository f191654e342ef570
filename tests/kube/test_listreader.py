"""Lists that are read piece by piece: the same answer as a JSON parser's, and never more than one object at a time."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.wording import lacks

from gpusharing.kube.client import PODS, ApiRequest, Kept
from gpusharing.kube.errors import PageTooLarge, TooLarge, Unavailable
from gpusharing.kube.listreader import MOST_OF_PAGE, ListReader
from gpusharing.kube.wire import MOST_BYTES

LIST = ApiRequest("list", PODS)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def read(answer: bytes, sizes: list[int], request: ApiRequest = LIST) -> dict[str, Any]:
    """Read the answer in pieces of these sizes, over and over."""
    reader, at, turn = ListReader(request), 0, 0
    while at < len(answer):
        size = sizes[turn % len(sizes)]
        reader.feed(answer[at : at + size])
        at, turn = at + size, turn + 1
    return reader.end()


@given(
    answer=st.dictionaries(st.text(), VALUES) | st.builds(lambda items: {"items": items}, st.lists(VALUES)),
    sizes=st.lists(st.integers(1, 50), min_size=1),
    indent=st.none() | st.integers(0, 3),
    is_ascii=st.booleans(),
)
def test_what_is_read_in_pieces_is_what_was_sent(
    answer: dict[str, Any], sizes: list[int], indent: int | None, is_ascii: bool
) -> None:
    text = json.dumps(answer, indent=indent, ensure_ascii=is_ascii).encode(errors="surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:  # half of a character, which JSON can escape only
        text = json.dumps(answer, indent=indent).encode()
    assert read(text, sizes) == json.loads(text)


@given(sizes=st.lists(st.integers(1, 50), min_size=1), end=st.integers(0, 72))
def test_an_answer_that_breaks_off_is_none(sizes: list[int], end: int) -> None:
    text = b'{"metadata": {"resourceVersion": "7"}, "items": [{"a": 1}, {"b": [2.5]}]}'
    with pytest.raises(Unavailable, match="not a JSON object"):
        read(text[:end], sizes)


@pytest.mark.parametrize(
    "text", [b"<html>", b"[1]", b'{"items": [1 2]}', b'{"items": []} {}', b'{"a" 1}', b"[" * 100_000, b'{"a": "\xff"}']
)
def test_what_is_not_json_is_unavailable(text: bytes) -> None:
    with pytest.raises(Unavailable, match="not a JSON object"):
        read(text, [10])


def test_deep_nesting_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="not a JSON object"):
        read(b'{"items": [' + b"[" * 1_000_000, [1_000_000])


def test_of_each_object_what_is_kept_takes_its_place() -> None:
    request = ApiRequest("list", PODS, keep=lambda raw: raw["n"])
    assert read(b'{"items": [{"n": 1}, {"n": 2}]}', [3], request) == {"items": Kept([1, 2])}


def test_memory_follows_one_object_and_not_the_list() -> None:
    pods, kib = 300, 100
    pod = json.dumps(
        {"spec": {"containers": [{"env": [{"name": f"V{n}", "value": "v" * 80} for n in range(kib * 10)]}]}}
    )
    reader = ListReader(ApiRequest("list", PODS, keep=lambda raw: len(raw["spec"]["containers"])))
    tracemalloc.start()
    try:
        reader.feed(b'{"items": [')
        for number in range(pods):
            piece = (pod if number == 0 else f",{pod}").encode()
            for at in range(0, len(piece), 65536):
                reader.feed(piece[at : at + 65536])
        reader.feed(b"]}")
        assert reader.end() == {"items": [1] * pods}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(pod) < pods * len(pod) / 10, "an object takes some six times its text"


def test_an_object_that_is_too_large_is_named() -> None:
    reader = ListReader(LIST)
    with pytest.raises(TooLarge) as raised:
        reader.feed(b'{"items": [{"metadata": {"name": "big", "namespace": "team-a"}, "x": "' + b"x" * MOST_BYTES)
    assert not lacks(raised.value, "list pods", "namespace team-a", "name big", "too large", "delete it")


def fed(limit: int, objects: int, size: int) -> ListReader:
    """A reader of a page that was to have `limit` objects and has `objects`, of `size` bytes each."""
    reader = ListReader(ApiRequest("list", PODS, query={"limit": str(limit)}, keep=lambda raw: None))
    reader.feed(b'{"items": [')
    for number in range(objects):
        reader.feed(b'%s{"x": "%s"}' % (b"," if number else b"", b"x" * size))
    return reader


def test_a_page_of_large_objects_is_given_up_and_says_how_many_fit() -> None:
    with pytest.raises(PageTooLarge) as raised:
        fed(100, 100, 250_000)
    assert 1 < raised.value.fits * 250_000 <= MOST_OF_PAGE / 2
    with pytest.raises(PageTooLarge) as raised:
        fed(2, 1, MOST_OF_PAGE)
    assert raised.value.fits == 1


def test_a_page_of_one_object_and_that_of_a_server_that_ignores_limit_are_read_to_their_end() -> None:
    for limit, objects, size in ((1, 1, MOST_OF_PAGE), (10, 100, 250_000)):
        reader = fed(limit, objects, size)
        reader.feed(b"]}")
        assert len(reader.end()["items"]) == objects

"""Read lists in pages, and withhold objects in them that cannot be read.

Every list of the product is read here (`tests/test_shape.py`), so none is lost because one of its pages failed.
`pages_of` and `list_of` show the cluster as it was at one moment, or fail; `whole_list` also goes on if the server no
longer has the version that the first page showed.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from math import inf
from typing import Any, TypeVar, Unpack, overload

from gpusharing.kube.client import JSON, PODS, Filters, KubeClient, Page, Resource
from gpusharing.kube.clock import Backoff, loop_time
from gpusharing.kube.errors import (
    CallFailed,
    Expired,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
    PageTooLarge,
    Throttled,
    Unavailable,
    describe_bug,
)
from gpusharing.kube.raw import text

log = logging.getLogger(__name__)

View = TypeVar("View")

_LOGGED: deque[str] = deque(maxlen=256)
"""The messages that were logged last, because most objects are read again and again."""


class Unreadable(CallFailed):
    """The server returned an object that we cannot convert, so nothing is known about what it says."""


def check_identity(resource: Resource, raw: object, *keys: str) -> None:
    """Raise Unreadable if an object lacks one of these metadata keys, which every API server writes."""
    if missing := [key for key in keys if not text(raw, "metadata", key)]:
        fields = " and ".join(f"metadata.{key}" for key in missing)
        raise _logged(Unreadable(f"the API server returned {_name(resource, raw)} without {fields}"))


def converted(resource: Resource, raw: JSON, convert: Callable[[JSON], View]) -> View:
    """Return `convert(raw)`. Whatever that raises, by a mistake of ours or of the server, becomes Unreadable."""
    try:
        return convert(raw)
    except Exception as error:
        unreadable = Unreadable(f"{_name(resource, raw)} cannot be read: {describe_bug(error)}")
        raise _logged(unreadable, error) from error


def or_unknown(
    resource: Resource, convert: Callable[[JSON], View], unknown: Callable[[JSON, str], View]
) -> Callable[[JSON], View]:
    """Return `convert`, with `unknown` (from the raw object and the reason) where it raises."""

    def project(raw: JSON) -> View:
        try:
            return converted(resource, raw, convert)
        except Unreadable as error:
            return unknown(raw, str(error))

    return project


def _name(resource: Resource, raw: object) -> str:
    name, namespace = text(raw, "metadata", "name"), text(raw, "metadata", "namespace")
    if not name:
        return f"an object of {resource.full_name}"
    return f"{resource.full_name}/{name}" + (f" in namespace {namespace}" if namespace else "")


def _logged(unreadable: Unreadable, cause: Exception | None = None) -> Unreadable:
    if (message := str(unreadable)) not in _LOGGED:
        _LOGGED.append(message)
        log.error(message, exc_info=cause)
    return unreadable


BACKOFF_FIRST = 0.5
BACKOFF_MOST = 30.0
SLOW, SLOWEST = 1.0, 4.0
"""Seconds for a page after which the next is twice as large, and may take twice as long, of 10 s for a call."""
TOKEN_LIVES = 300.0
"""Seconds after which a token that still fails will never be accepted again. After the store was restored from a backup
such a token names a version that is yet to come, which kube-apiserver answers with 500."""
MOST_OBJECTS = 100
"""The most objects in one page, whose raw form is held besides the views: for Nodes of 18 KB, about 10 MiB."""
PAGE = 500
"""The most objects of one page where the caller waits for the whole list, so that it takes few calls."""
SMALL_PAGE = 10
"""The most objects of the page after one that failed slowly, which large objects may have caused."""
PATIENCE = 90.0
"""Seconds for which one page may fail before `pages_of` gives up its list. A hold lasts for 60 s at most."""
LASTING_ERRORS = (Forbidden, NotFound, Invalid)
"""Errors that do not go away by themselves."""


@overload
async def list_of(client: KubeClient, resource: Resource, **where: Unpack[Filters]) -> list[JSON]: ...
@overload
async def list_of(
    client: KubeClient, resource: Resource, *, keep: Callable[[JSON], View], **where: Unpack[Filters]
) -> list[View]: ...
async def list_of(
    client: KubeClient, resource: Resource, *, keep: Callable[[JSON], Any] = lambda raw: raw, **where: Unpack[Filters]
) -> list[Any]:
    """Return all objects of a list, or what is kept of each, as they were at its first page; see `pages_of`."""
    return [item async for page in pages_of(client, resource, keep=keep, **where) for item in page.items]


async def pages_of(
    client: KubeClient,
    resource: Resource,
    size: int = PAGE,
    *,
    keep: Callable[[JSON], Any] = lambda raw: raw,
    **where: Unpack[Filters],
) -> AsyncIterator[Page]:
    """Yield the pages of a list, which all show the cluster at the moment of the first; a `size` of 0 gives one.

    `keep` returns what a page has in place of each object. Others' objects may be large, so a list of a kind that tenants
    write should keep views.

    Pages have fewer objects after one that was too large or failed slowly.

    Raises a KubeError if the first page failed, or a later one for PATIENCE seconds, and Unreadable for an object
    without identity, or for which `keep` raised.
    """
    faults: list[Unreadable] = []
    # An eviction names the pod by its UID; a policy that `plan -f` reads from a file has none.
    keys = ("name", "uid") if resource == PODS else ("name",)

    def kept(raw: JSON) -> Any:
        try:
            if not faults:  # else the list has failed
                check_identity(resource, raw, *keys)
                return converted(resource, raw, keep)
        except Unreadable as error:
            error.__cause__ = None  # whose traceback holds the object
            faults.append(error.with_traceback(None))

    after, failing, most, pause = "", inf, size, Backoff(BACKOFF_FIRST, BACKOFF_MOST)
    while True:
        began = loop_time()
        try:
            page = await client.list_page(resource, limit=size, after=after, keep=kept, **where)
        except PageTooLarge as error:
            most = size = min(size // 2, error.fits)
            continue
        except (Unavailable, Throttled) as error:
            if size > SMALL_PAGE and loop_time() - began > SLOWEST:
                most, size = size // 2, SMALL_PAGE
                continue
            failing = min(failing, began)
            requested = error.retry_after if isinstance(error, Throttled) else None
            wait = max(pause.after_failure(), requested or 0.0)
            if not after or loop_time() + wait - failing > PATIENCE:
                raise
            await asyncio.sleep(wait)
            continue
        for fault in faults:
            raise fault
        yield page
        if not page.more:
            return
        pause.success()
        if loop_time() - began < SLOW:
            size = min(2 * size, most)
        after, failing = page.more, inf


async def whole_list(
    ask: Callable[[int, str], Awaitable[Page]],
    size: int,
    clock: Callable[[], float],
    on_error: Callable[[KubeError], None],
) -> AsyncGenerator[Page, None]:
    """Yield the pages of a list that goes on after passing errors and after a token expired.

    kube-apiserver lets etcd compact its history every 5 minutes (`--etcd-compaction-interval`), so a token for the next
    page is valid for 300 s. A list of 200 pages at 1.6 s each takes longer.

    `ask` requests one page, from the most objects in it (0 for all) and the token to continue from. After an error that
    may go away by itself, with which `on_error` is called, and after a token expired, the list no longer shows one
    moment, so the caller must have been watching since the moment of the first page.

    Raises:
        KubeError: the list has to start over, because the error is one of LASTING_ERRORS, a page has failed for
            TOKEN_LIVES seconds, the first page or two tokens in a row have expired, or the request for everything
            failed.
    """
    after, limit, expired, pause = "", size, False, Backoff(BACKOFF_FIRST, BACKOFF_MOST)
    most = MOST_OBJECTS
    failing = inf
    while True:
        began = clock()
        try:
            page = await ask(limit, after)
        except Expired as error:
            if expired or not after:
                raise
            # Without a token for the rest, everything is requested at once.
            after, limit, expired = error.rest, limit if error.rest else 0, True
            continue
        except PageTooLarge as error:
            most = limit = min(limit // 2, error.fits)
            continue
        except KubeError as error:
            failing = min(failing, began)
            if not limit or isinstance(error, LASTING_ERRORS) or clock() - failing > TOKEN_LIVES:
                raise
            on_error(error)
            limit = min(size, most)
            await asyncio.sleep(pause.after_failure())
            continue
        took = clock() - began
        yield page
        if not page.more:
            return
        pause.success()
        if SLOW < took < SLOWEST:
            limit = max(limit, min(2 * limit, most))
        after, expired, failing = page.more, False, inf

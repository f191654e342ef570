"""Lists in pages, in spite of pages that fail, are slow, or can no longer be had from one moment.

Every list of the product is read here (`tests/test_shape.py`), so none is lost because one of its pages failed.

kube-apiserver lets etcd compact its history every 5 minutes (`--etcd-compaction-interval`), so a token for the next
page lives for 300 s. A list of 200 pages at 1.6 s each takes longer.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from math import inf
from typing import Unpack

from gpusharing.kube.backoff import Backoff
from gpusharing.kube.client import JSON, Filters, KubeClient, Page, Resource
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import Expired, Forbidden, Invalid, KubeError, NotFound, Throttled, Unavailable

BACKOFF_FIRST = 0.5
BACKOFF_MOST = 30.0
SLOW, SLOWEST = 1.0, 4.0
"""Seconds. After a page that took between the two, the next one has twice as many objects: it may take twice as long,
and a call has a deadline of 10 s."""
TOKEN_LIVES = 300.0
"""Seconds. A token that fails for longer will never be accepted again: after the store was restored from a backup it
names a version that is yet to come, which kube-apiserver answers with 500."""
MOST_OBJECTS = 100
"""The most objects in one page. Its raw objects are held besides the views: with Nodes of 18 KB, some 10 MiB."""
PAGE = 500
"""Objects of one page where the whole list is waited for, which then takes few calls."""
PATIENCE = 90.0
"""Seconds for which one page may fail before `pages_of` gives up its list. A hold lasts for 60 s at most."""

LASTING_ERRORS = (Forbidden, NotFound, Invalid)
"""Errors that do not pass by themselves."""

Ask = Callable[[int, str], Awaitable[Page]]
"""Makes one call for a page: of at most so many objects, or all if 0, and from this token on, or from the beginning if
it is empty."""


async def list_of(client: KubeClient, resource: Resource, **where: Unpack[Filters]) -> list[JSON]:
    """Return all objects of a list. Retries and raises as `pages_of` does."""
    return [raw async for page in pages_of(client, resource, **where) for raw in page.items]


async def pages_of(
    client: KubeClient, resource: Resource, size: int = PAGE, **where: Unpack[Filters]
) -> AsyncIterator[Page]:
    """Yield the pages of a list, of `size` objects each. All of them show the moment of the first page.

    A later page that fails or is refused with 429 is requested again with its token, not before the time that the
    server asks to wait. The first page is requested once only, because nothing is lost with it.

    Raises:
        KubeError: the first page failed, another one did for PATIENCE seconds, or the error does not pass by
            itself.
    """
    after, failing, pause = "", inf, Backoff(BACKOFF_FIRST, BACKOFF_MOST)
    while True:
        began = loop_time()
        try:
            page = await client.list_page(resource, limit=size, after=after, **where)
        except (Unavailable, Throttled) as error:
            failing = min(failing, began)
            requested = error.retry_after if isinstance(error, Throttled) else None
            wait = max(pause.after_failure(), requested or 0.0)
            if not after or loop_time() + wait - failing > PATIENCE:
                raise
            await asyncio.sleep(wait)
            continue
        yield page
        if not page.more:
            return
        pause.success()
        after, failing = page.more, inf


async def whole_list(
    ask: Ask, size: int, clock: Callable[[], float], on_error: Callable[[KubeError], None]
) -> AsyncGenerator[Page, None]:
    """Yield the pages of a list, which begin with `size` objects.

    After an error that may pass by itself the same page is requested again, with its token and `size` objects;
    `on_error` gets the error. When a token has expired, the answer holds one for the rest of the list as it is now. If
    it does not, everything is requested in one page, once. Either way the list then shows several moments, so the
    caller must have watched since that of the first page.

    Raises:
        KubeError: the list has to begin anew.
    """
    after, limit, expired, pause = "", size, False, Backoff(BACKOFF_FIRST, BACKOFF_MOST)
    failing = inf
    while True:
        began = clock()
        try:
            page = await ask(limit, after)
        except Expired as error:
            if expired or not after:
                raise
            after, limit, expired = *_resumed(error, limit), True
            continue
        except KubeError as error:
            failing = min(failing, began)
            if not limit or isinstance(error, LASTING_ERRORS) or clock() - failing > TOKEN_LIVES:
                raise
            on_error(error)
            limit = size
            await asyncio.sleep(pause.after_failure())
            continue
        took = clock() - began
        yield page
        if not page.more:
            return
        pause.success()
        limit = _next_limit(limit, took)
        after, expired, failing = page.more, False, inf


def _next_limit(limit: int, took: float) -> int:
    """Return how many objects to request after a page of `limit` objects that took so many seconds; see SLOW."""
    return max(limit, min(2 * limit, MOST_OBJECTS)) if SLOW < took < SLOWEST else limit


def _resumed(error: Expired, limit: int) -> tuple[str, int]:
    """Return the token and the number of objects with which a list goes on after its token has expired; see
    `whole_list`."""
    return error.rest, limit if error.rest else 0

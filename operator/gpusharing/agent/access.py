"""Who may read the agent's metrics? The API server decides, and without its answer nobody may."""

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import TypeAlias

from gpusharing.kube.client import ACCESS_REVIEWS, JSON, TOKEN_REVIEWS, KubeClient, Resource
from gpusharing.kube.errors import KubeError
from gpusharing.kube.pageserver import Answer, Page
from gpusharing.kube.raw import part, section, text

log = logging.getLogger(__name__)

REMEMBERED_SECONDS = 60.0
"""How long an answer about a token is used. A revoked token is accepted for as long."""
MOST_REMEMBERED = 32
"""The most tokens whose answers are cached. The oldest refusal makes room for a new one, or else the oldest answer."""
PATIENCE = 3.0
"""Seconds for both reviews of a token together; the server ends a connection after ten."""
MOST_WAITING = 4
"""The most requests that wait for a review at a time, including the one whose token is being reviewed."""


Decision: TypeAlias = tuple[int, str]
"""Whether a request may read the metrics, as an HTTP status; and if not, why, and what to do."""
ALLOWED: Decision = 200, ""
UNAUTHENTICATED: Decision = 401, "send `Authorization: Bearer TOKEN` with a valid token that may get /metrics"
UNDECIDED: Decision = 503, "the API server could not be asked whether this token may read /metrics; try again"


def guarded(page: Page, decide: Callable[[str], Decision]) -> Page:
    """Return the page for those whom `decide` allows to read it."""

    def answer(authorization: str) -> Answer:
        status, why_not = decide(authorization)
        return page(authorization) if status == 200 else Answer(status, f"{why_not}\n".encode())

    return answer


class MetricsAccess:
    """Decides by the API server who may read the metrics. Safe to call from several threads.

    One token is reviewed at a time and few requests wait for that, so a flood of tokens costs the API server one call
    at a time. A reader whose answer is cached does not wait.
    """

    def __init__(self, api: KubeClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._clock = api, clock
        self._loop = asyncio.get_running_loop()
        self._alone, self._places = threading.Lock(), threading.Semaphore(MOST_WAITING)
        self._decisions: dict[bytes, tuple[float, Decision]] = {}
        """When each answer was received, and the answer, by the hash of the token, oldest first."""
        self._error = ""

    def decide(self, authorization: str) -> Decision:
        """Decide about a request with this Authorization header; blocks, so never call it from the event loop."""
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return UNAUTHENTICATED
        key = hashlib.sha256(token.encode()).digest()
        if (known := self._cached(key)) is not None:
            return known
        if not self._places.acquire(blocking=False):
            return UNDECIDED
        try:
            with self._alone:
                # Another request may have brought the answer about this token meanwhile.
                if (known := self._cached(key)) is not None:
                    return known
                decision = self._ask(token)
                if decision is not UNDECIDED:
                    self._decisions.pop(key, None)
                    self._decisions[key] = self._clock(), decision
                    if len(self._decisions) > MOST_REMEMBERED:  # made-up tokens displace no reader
                        refused = (old for old, (_, found) in self._decisions.items() if found is not ALLOWED)
                        del self._decisions[next(refused, next(iter(self._decisions)))]
                return decision
        finally:
            self._places.release()

    def _cached(self, key: bytes) -> Decision | None:
        received, decision = self._decisions.get(key, (0.0, None))
        return decision if self._clock() - received < REMEMBERED_SECONDS else None

    def _ask(self, token: str) -> Decision:
        review = self._review(token)
        try:
            future = asyncio.run_coroutine_threadsafe(review, self._loop)
        except RuntimeError:
            review.close()
            return UNDECIDED
        try:
            decision = future.result(PATIENCE)
        except (KubeError, TimeoutError, CancelledError) as error:
            future.cancel()
            why = str(error) or "the API server gave no answer in time"
            if why != self._error:
                log.warning("cannot check who reads the metrics, so nobody may", extra={"error": why})
            self._error = why
            return UNDECIDED
        self._error = ""
        return decision

    async def _review(self, token: str) -> Decision:
        answer = await self._create(TOKEN_REVIEWS, "TokenReview", {"token": token})
        user = section(answer, "user")
        name = text(user, "username")
        if part(answer, "authenticated") is not True or not name:
            return UNAUTHENTICATED
        spec: JSON = {key: user[key] for key in ("uid", "groups", "extra") if key in user}
        spec |= {"user": name, "nonResourceAttributes": {"path": "/metrics", "verb": "get"}}
        answer = await self._create(ACCESS_REVIEWS, "SubjectAccessReview", spec)
        if part(answer, "allowed") is True:
            return ALLOWED
        return 403, f"user {name} may not get /metrics: bind ClusterRole gpusharing-metrics-reader to that user"

    async def _create(self, kind: Resource, name: str, spec: JSON) -> JSON:
        answer = await self._api.create(kind, {"apiVersion": kind.api_version, "kind": name, "spec": spec})
        return section(answer, "status")

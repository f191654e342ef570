"""LeaderLease: one object that says who may act and which nodes the leader has claimed.

Leader and disruption budget are one thing (docs/design/transition.md#lease): claims are an annotation of the Lease,
written by compare-and-swap, so a claim that succeeds proves leadership, and a successor finds it. This is our own code
because kopf's peering and the official client's election compare wall clocks and have no deadline per request
(docs/design/faults.md#d7).
"""

import asyncio
import math
import re
import socket
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gpusharing.api.names import ANNOTATION_CLAIMS, STOP
from gpusharing.api.times import from_rfc3339, to_micro_time
from gpusharing.kube.client import CONFIG_MAPS, JSON, LEASES, KubeClient
from gpusharing.kube.clock import boot_time, wall_time
from gpusharing.kube.errors import AlreadyExists, Conflict, Forbidden, Invalid, KubeError, NotFound, Unavailable, Undone
from gpusharing.kube.fence import claims_text, parse_claims, parse_consents, parse_failed_nodes
from gpusharing.kube.raw import newer, part, section, text, texts, whole
from gpusharing.planning.snapshot.records import LEASE_ROOM, Claim, Consent, FailedNode

CLAIM_ATTEMPTS = 3
"""How many times to try to write claims while others change the Lease."""
_TOO_LONG = re.compile(r"[Tt]oo long|may not be more than")
"""In the API server's refusal of annotations that are too large."""
RELEASE_SECONDS = 2.0
"""Seconds that the release at the end of the process may take."""


def new_identity() -> str:
    """Return a unique identity for a process that contends for the Lease; it begins with the host or pod."""
    return f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


def host_of(identity: str) -> str:
    return identity.rpartition("-")[0] or identity


def leader_of(lease: JSON) -> str:
    """Return the pod or outside machine that holds a raw Lease; empty if nobody does, by this machine's clock."""
    spec = section(lease, "spec")
    renewed = from_rfc3339(spec.get("renewTime"))
    lasts = timedelta(seconds=whole(spec, "leaseDurationSeconds"))
    if renewed is None or wall_time() >= renewed + lasts:
        return ""
    return host_of(text(spec, "holderIdentity"))


async def read_stop(client: KubeClient, namespace: str) -> str:
    """Return what stops the operator (docs/adr/0095); empty if nothing does. Raises KubeError, such as Forbidden."""
    try:
        await client.get(CONFIG_MAPS, STOP, namespace=namespace)
    except NotFound:
        return ""
    return f"ConfigMap {namespace}/{STOP} exists, which stops the operator"


class LeaseLost(Exception):
    """We are no longer the leader: no pending action may be carried out."""


@dataclass(frozen=True)
class Timing:
    """Limits in seconds; the defaults are those of Kubernetes' own controllers."""

    duration: float = 15.0
    """How long other contenders wait after our last renewal before they take over."""
    deadline: float = 10.0
    """How long we act without a successful renewal. Must be shorter than `duration`, to leave time to stop."""
    retry: float = 2.0
    """The wait between two renewals, and between two attempts to acquire."""
    clock: Callable[[], float] = boot_time
    """Must advance even while the machine sleeps."""


class LeaderLease:
    """One contender for the Lease. Run `run()` as a task; `acquired` is set when this process leads.

    `on_lost` is called once, and must end the process at once (`os._exit`): an orderly stop takes longer than the time
    until another process acts (cilium#42920).

    Another holder's Lease counts as expired when *we* have seen neither its spec nor its claims change for its
    duration. What anybody else writes on it, such as a label, is no sign of life. Time is measured by `boot_time`,
    which advances while the machine sleeps, too; clocks of two machines are never compared.
    """

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        on_lost: Callable[[], None],
        timing: Timing | None = None,
        now: Callable[[], datetime] = wall_time,
    ) -> None:
        """`identity` must be unique to this process, also after a restart; `now` gives the times written for people."""
        self.identity = identity
        self.acquired = asyncio.Event()
        """Set once we lead. Never cleared: losing the Lease ends the process."""
        self.holder = ""
        """The process that held the Lease when we last tried to acquire it; empty if none is known."""
        self.error: Exception | None = None
        """Why the last attempt to acquire or renew failed; None after a success."""
        self.claims_error = ""
        """Why claims or failures on the Lease could not be read; empty if they could, or since our last write."""
        self.stop = ""
        """What stops the operator, as of the last renewal; empty if nothing does."""
        self.on_stop: Callable[[], None] = lambda: None
        """Called when `stop` changes."""
        self._client = client
        self._namespace = namespace
        self._name = name
        self._on_lost = on_lost
        self._timing = timing or Timing()
        self._clock = self._timing.clock
        self._patience = self._timing.deadline / 2
        """Seconds for one write: half the deadline, so that a hung request leaves time for another attempt."""
        self._now = now
        self._lock = asyncio.Lock()
        self._version = ""
        self.claims: Mapping[str, Claim] = {}
        """The claims on the Lease by node name, including those of a predecessor."""
        self.failed_nodes: Mapping[str, FailedNode] = {}
        """The failures on record by UID of the Node, including those that a predecessor wrote."""
        self.consents: Mapping[str, Consent] = {}
        self.restores = 0
        """How often the server gave one of our writes a lower resourceVersion than it had given before. Each write was
        conditional on the present version, so the store itself was restored from a backup."""
        self._reached = ""
        """The version that our last write got; before our first write, the highest version that we have read."""
        self._claims_before = ""
        self._others = 0
        """How many characters the other annotations of the Lease have."""
        self._too_long: float = float("inf")
        """The smallest size of all annotations together that the server has refused as too long."""
        self._renewed_at = self._expires_at = float("-inf")
        """When we last renewed the Lease, and when that of another holder expires unless it is renewed."""
        self._has_read_stop = False
        """Whether `stop` is known for this leadership."""
        self._reading: asyncio.Task[KubeError | None] | None = None
        self._unread_since: float | None = None
        """Since when nobody answers whether a stop is there, before the first answer for this leadership."""
        self._lost = False
        self._taking = False
        """Whether we have tried to take the Lease. Until the answer arrives, we may hold it without knowing."""
        self._observation: tuple[object, float] = (None, float("-inf"))
        """The spec and claims of another holder's Lease, and when this process first saw them."""

    @property
    def room(self) -> int:
        """How many characters the record on the Lease may have, beside the annotations that others put there."""
        return int(min(LEASE_ROOM - len(ANNOTATION_CLAIMS), self._too_long - 1) - self._others)

    @property
    def is_leader(self) -> bool:
        """Whether we renewed the Lease within the deadline; never True again once it is lost."""
        return self.acquired.is_set() and not self._lost and self._left() > 0

    def must_lead(self) -> None:
        """Raise LeaseLost, after calling `on_lost`, if we do not lead now, as after the process was frozen."""
        if not self.is_leader:
            self._lose()
            raise LeaseLost(f"{self.identity} no longer holds the Lease {self._name}")

    async def run(self) -> None:
        """Acquire the Lease, renew it until it is lost or this is canceled, then release it, also if unsure of it."""
        try:
            while True:
                if await self._attempt(self._acquire, lambda: self._timing.deadline):
                    break
                # An attempt at the end of the other holder's time, not up to `retry` seconds later.
                left = self._expires_at - self._clock()
                await asyncio.sleep(left if 0 < left < self._timing.retry else self._timing.retry)
            self.acquired.set()
            while self.is_leader:
                await asyncio.sleep(min(self._timing.retry, self._left()))
                await self._attempt(self._renew, lambda: min(self._left(), self._patience))
            self._lose()
        finally:
            if self.is_leader or (self._taking and not self.acquired.is_set()):
                await self._attempt(self._release, lambda: RELEASE_SECONDS)
            self._forget_stop()

    async def set_claims(
        self,
        claims: Mapping[str, Claim],
        failed_nodes: Mapping[str, FailedNode],
        consents: Mapping[str, Consent] | None = None,
    ) -> None:
        """Replace what the Lease records by compare-and-swap. On return, we led at the write; LeaseLost if we do not.

        Raises Undone if the server accepts the write and stores something else.
        """
        try:
            # A slow renewal may come first. It has its own limit, and leaves this write its whole time.
            async with self._lock, asyncio.timeout(self._patience):
                for _ in range(CLAIM_ATTEMPTS):
                    self.must_lead()
                    try:
                        written = claims_text(claims, self._claims_before, failed_nodes, consents)
                        await self._write({"renewTime": self._time()}, {ANNOTATION_CLAIMS: written})
                        self._must_have(written)
                        return
                    except Invalid as error:
                        if _TOO_LONG.search(str(error)):
                            await self._reread()
                            self._too_long = min(self._too_long, len(written) + self._others)
                        raise
                    except Conflict:
                        await self._reread()
        except TimeoutError as error:
            raise Unavailable(f"writing claims to the Lease {self._name} took too long") from error
        raise Conflict(
            f"could not write claims to the Lease {self._name}: someone else changed it during each of"
            f" {CLAIM_ATTEMPTS} attempts"
        )

    def _must_have(self, written: str) -> None:
        if self._claims_before != written:
            raise Undone(
                f"the server does not keep what the operator writes: an admission webhook or policy changes annotation"
                f" {ANNOTATION_CLAIMS} of leases {self._namespace}/{self._name}. Stop that program"
            )

    async def _attempt(self, step: Callable[[], Awaitable[bool]], limit: Callable[[], float]) -> bool:
        """Run `step` alone within `limit` seconds, and return its result, or False and the reason in `error`.

        `limit` is called again for the step, as claims written during the wait may have renewed the Lease.
        """
        try:
            async with asyncio.timeout(max(0.0, limit())):
                await self._lock.acquire()
            try:
                async with asyncio.timeout(max(0.0, limit())):
                    done = await step()
            finally:
                self._lock.release()
        except (LeaseLost, KubeError) as error:
            self.error = error
        except TimeoutError:
            self.error = Unavailable(f"the API server did not respond to a request for the Lease {self._name} in time")
        else:
            self.error = None
            return done
        return False

    async def _acquire(self) -> bool:
        started = self._clock()
        self._forget_stop()
        try:
            lease = await self._client.get(LEASES, self._name, namespace=self._namespace)
        except NotFound:
            self._taking = True
            return await self._create()
        read = text(lease, "metadata", "resourceVersion")
        self._reached = self._reached if newer(self._reached, read) else read
        self.holder = text(lease, "spec", "holderIdentity")
        if self.holder not in ("", self.identity) and not self._expired(lease):
            return False
        self._adopt(lease)
        self._taking = True
        with suppress(Conflict):
            spec = self._held_from_now(whole(lease, "spec", "leaseTransitions") + 1)
            await self._write(spec, started=started)
            return True
        return False

    async def _renew(self) -> bool:
        self.must_lead()
        try:
            await self._write({"renewTime": self._time()})
        except Conflict:  # the answer to a write of ours was lost, or somebody edited or took the Lease
            await self._reread()
            await self._write({"renewTime": self._time()})
        return True

    async def _written(self, write: Coroutine[Any, Any, JSON], begun: float) -> None:
        """Send a write of the Lease, and adopt the answer. `stop` is read meanwhile: a slow server leaves no time after."""
        goes_on = self._reading is not None and not self._reading.done()
        if self._reading is None or not goes_on:
            self._reading = asyncio.create_task(_error_of(self._read_stop()))
        await self._adopt_answer(write, begun)
        # Other calls may be refused or hang where those about Leases do not: then the last answer counts, and a slow
        # reading holds up no write.
        if not (goes_on and self._has_read_stop):
            await asyncio.wait({self._reading}, timeout=self._timing.retry / 2)
        if self._has_read_stop:
            self._unread_since = None
            return
        self._unread_since = self._unread_since if self._unread_since is not None else begun
        if self._clock() - self._unread_since < self._timing.deadline:
            error = self._reading.result() if self._reading.done() else None
            raise error or Unavailable(f"the server does not answer whether ConfigMap {self._namespace}/{STOP} exists")
        # Nodes past the point of no return need a leader, and a stop lets it finish them.
        self.stop = f"the operator cannot read whether ConfigMap {self._namespace}/{STOP} stops it"
        self._has_read_stop = True
        self.on_stop()

    def _forget_stop(self) -> None:
        """Let no answer from before count for the leadership that is about to begin."""
        self._has_read_stop = False
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    async def _read_stop(self) -> None:
        before = self.stop
        try:
            self.stop = await read_stop(self._client, self._namespace)
        except Forbidden as error:  # no reason to leave nodes in mid-change without a leader
            self.stop = f"the operator may not read whether ConfigMap {self._namespace}/{STOP} stops it ({error})"
        self._has_read_stop = True
        if self.stop != before:
            self.on_stop()

    async def _release(self) -> bool:
        """Give up the Lease but not the claims, and return whether it was ours. This process leads no more."""
        self._renewed_at = float("-inf")
        spec = {"holderIdentity": None, "leaseDurationSeconds": 1, "renewTime": self._time()}

        async def release(version: str) -> None:
            patch = {"metadata": {"resourceVersion": version}, "spec": spec}
            await self._client.patch(LEASES, self._name, patch, namespace=self._namespace)

        if self.acquired.is_set():
            with suppress(Conflict):  # the shutdown interrupted our last write, so its version is unknown
                await release(self._version)
                return True
        lease = await self._client.get(LEASES, self._name, namespace=self._namespace)
        if text(lease, "spec", "holderIdentity") != self.identity:
            return False
        await release(text(lease, "metadata", "resourceVersion"))
        return True

    def _expired(self, lease: JSON) -> bool:
        written = part(lease, "spec"), _claims_of(lease)
        if written != self._observation[0]:
            self._observation = (written, self._clock())
        duration = whole(lease, "spec", "leaseDurationSeconds") or self._timing.duration
        self._expires_at = self._observation[1] + duration
        return self._clock() >= self._expires_at

    async def _reread(self) -> None:
        lease = await self._client.get(LEASES, self._name, namespace=self._namespace)
        if text(lease, "spec", "holderIdentity") != self.identity:
            self._lose()
            self.must_lead()
        self._adopt(lease)

    async def _write(self, spec: JSON, annotations: JSON | None = None, *, started: float | None = None) -> None:
        """Write these fields if the Lease still has the version that we know, which renews it; else Conflict."""
        begun = self._clock() if started is None else started
        patch: JSON = {"metadata": {"resourceVersion": self._version}, "spec": spec}
        if annotations:
            patch["metadata"]["annotations"] = annotations
        try:
            await self._written(self._client.patch(LEASES, self._name, patch, namespace=self._namespace), begun)
        except NotFound:
            if not await self._create(annotations):
                raise Conflict(f"the Lease {self._name} was deleted, and another process created it again") from None

    async def _create(self, annotations: JSON | None = None) -> bool:
        begun = self._clock()
        body = {
            "apiVersion": LEASES.api_version,
            "kind": "Lease",
            "metadata": {
                "name": self._name,
                "annotations": annotations
                or {ANNOTATION_CLAIMS: claims_text(self.claims, self._claims_before, self.failed_nodes, self.consents)},
            },
            "spec": self._held_from_now(1),
        }
        try:
            await self._written(self._client.create(LEASES, body, namespace=self._namespace), begun)
        except AlreadyExists:
            return False
        return True

    def _held_from_now(self, transitions: int) -> JSON:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": math.ceil(self._timing.duration),
            "acquireTime": self._time(),
            "renewTime": self._time(),
            "leaseTransitions": transitions,
        }

    async def _adopt_answer(self, write: Coroutine[Any, Any, JSON], begun: float) -> None:
        """Adopt the Lease that the server returns for our write; count a restore if its version went back."""
        lease = await write
        self._renewed_at = begun
        self._adopt(lease)
        if newer(self._reached, self._version):
            self.restores += 1
        self._reached = self._version

    def _adopt(self, lease: JSON) -> None:
        self._version = text(lease, "metadata", "resourceVersion")
        written = _claims_of(lease)
        self.claims, self.failed_nodes, self.consents, self.claims_error = {}, {}, {}, ""
        if written is not None:
            self.claims, error = parse_claims(written)
            self.failed_nodes, failed_error = parse_failed_nodes(written)
            self.consents, consent_error = parse_consents(written)
            self.claims_error = error or failed_error or consent_error
        self._claims_before = written or ""
        annotations = texts(section(lease, "metadata").get("annotations"))
        self._others = sum(len(key) + len(value) for key, value in annotations.items() if key != ANNOTATION_CLAIMS)

    def _left(self) -> float:
        return self._renewed_at + self._timing.deadline - self._clock()

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            self._on_lost()

    def _time(self) -> str:
        return to_micro_time(self._now())


async def _error_of(call: Awaitable[None]) -> KubeError | None:
    try:
        await call
    except KubeError as error:
        return error
    return None


def _claims_of(lease: JSON) -> str | None:
    return texts(section(lease, "metadata").get("annotations")).get(ANNOTATION_CLAIMS)

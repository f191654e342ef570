"""LeaderLease: one object that says who may act and which nodes the leader has claimed.

Leader and disruption budget are one thing (docs/design/transition.md#lease): claims are an annotation of the Lease,
written by compare-and-swap, so a claim that succeeds proves leadership, and a successor finds it. This is our own code
because kopf's peering and the official client's election compare wall clocks and have no deadline per request
(docs/design/faults.md#d7).

Another holder's Lease counts as expired when *we* have seen neither its spec nor its claims change for its duration.
What anybody else writes on it, such as a label, is no sign of life. Time is measured by `boot_time`, which advances
while the machine sleeps, too; clocks of two machines are never compared. `on_lost` must end the process at once
(`os._exit`): an orderly stop takes longer than the time until another process acts (cilium#42920).

Terms: docs/design/glossary.md#claim.
"""

import asyncio
import math
import socket
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from gpusharing.api.names import ANNOTATION_CLAIMS
from gpusharing.api.times import from_rfc3339, to_micro_time
from gpusharing.kube.client import JSON, LEASES, KubeClient
from gpusharing.kube.clock import boot_time, wall_time
from gpusharing.kube.errors import AlreadyExists, Conflict, KubeError, NotFound, Unavailable
from gpusharing.kube.fence import claims_text, parse_claims, parse_failed_nodes
from gpusharing.kube.raw import newer, part, section, text, texts, whole
from gpusharing.planning.snapshot.records import Claim, FailedNode

CLAIM_ATTEMPTS = 3
"""How many times to try to write claims while others change the Lease."""
RELEASE_SECONDS = 2.0
"""Seconds that the release at the end of the process may take."""


def new_identity() -> str:
    """Return an identity for a process that will contend for the Lease: the name of its host, which in a pod is the
    pod's name, and a part that differs for each process."""
    return f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


def host_of(identity: str) -> str:
    """Return the pod, or the machine outside of the cluster, whose process has this identity (`new_identity`). An
    identity without a hyphen is returned as it is."""
    return identity.rpartition("-")[0] or identity


def leader_of(lease: JSON) -> str:
    """Return the pod, or the machine outside of the cluster, whose process holds a raw Lease. Empty if it has no
    holder, or was not renewed within its duration by this machine's clock."""
    spec = section(lease, "spec")
    renewed = from_rfc3339(spec.get("renewTime"))
    lasts = timedelta(seconds=whole(spec, "leaseDurationSeconds"))
    if renewed is None or wall_time() >= renewed + lasts:
        return ""
    return host_of(text(spec, "holderIdentity"))


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
    """Returns the seconds by which these limits are measured. It must advance even while the machine sleeps."""


class LeaderLease:
    """One contender for the Lease. Run `run()` as a task; `acquired` is set when this process leads. Without `timing`,
    the defaults of Timing apply."""

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
        """`identity` must be unique to this process; a restarted process needs another one. `on_lost` is called once,
        when the Lease is lost. `now` gives the times that are written for people to read."""
        self.identity = identity
        self.acquired = asyncio.Event()
        """Set once we lead. Never cleared: losing the Lease ends the process."""
        self.holder = ""
        """The process that held the Lease when we last tried to acquire it; empty before, or if nobody held it."""
        self.error: Exception | None = None
        """Why the last attempt to acquire or renew failed; None after a success."""
        self.claims_error = ""
        """Why claims or failures on the Lease could not be read; empty if all could be, and after our next write."""
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
        self.restores = 0
        """How often the server gave one of our writes a lower resourceVersion than it had given before. Each write was
        conditional on the present version, so the store itself was restored from a backup."""
        self._reached = ""
        """The version that our last write got; before our first write, the highest version that we have read."""
        self._claims_before = ""
        self._renewed_at = self._expires_at = float("-inf")
        """When we last renewed the Lease, and when that of another holder expires unless it is renewed."""
        self._lost = False
        self._taking = False
        """Whether we have tried to take the Lease. Until the answer arrives, we may hold it without knowing."""
        self._observation: tuple[object, float] = (None, float("-inf"))
        """The spec and claims of another holder's Lease, and when this process first saw them."""

    @property
    def is_leader(self) -> bool:
        """Whether we hold the Lease and have renewed it within the deadline. Once the Lease is lost, this never
        becomes True again."""
        return self.acquired.is_set() and not self._lost and self._left() > 0

    def must_lead(self) -> None:
        """If we do not lead now, record that the Lease is lost, call `on_lost` unless it was called before, and raise
        LeaseLost. Called before each write, because a process that was frozen continues in the middle of its work,
        before `run` notices."""
        if not self.is_leader:
            self._lose()
            raise LeaseLost(f"{self.identity} no longer holds the Lease {self._name}")

    async def run(self) -> None:
        """Acquire the Lease, and renew it until canceled, with a wait of `Timing.retry` seconds between two attempts,
        or less if the Lease expires earlier; then release it, even if it is uncertain whether we hold it. If the Lease
        is lost, call `on_lost` and return. Errors of the API server are recorded in `error`, and the attempt is
        repeated."""
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

    async def set_claims(self, claims: Mapping[str, Claim], failed_nodes: Mapping[str, FailedNode]) -> None:
        """Replace all claims and failures on the Lease by compare-and-swap, which also renews it. If this returns, we
        led at the moment of the write. After a Conflict the Lease is read again; at most CLAIM_ATTEMPTS writes are
        tried, one after another.

        Raises:
            LeaseLost: another process holds the Lease, or we missed the deadline; `on_lost` was called.
            Conflict: the Lease kept changing; try again in the next pass.
            KubeError: the server refused the write, could not be reached, or took longer than half the deadline.
        """
        try:
            # A slow renewal may come first. It has its own limit, and leaves this write its whole time.
            async with self._lock, asyncio.timeout(self._patience):
                for _ in range(CLAIM_ATTEMPTS):
                    self.must_lead()
                    try:
                        written = claims_text(claims, self._claims_before, failed_nodes)
                        annotations = {ANNOTATION_CLAIMS: written}
                        await self._write({"renewTime": self._time()}, annotations)
                        return
                    except Conflict:
                        await self._reread()
        except TimeoutError as error:
            raise Unavailable(f"writing claims to the Lease {self._name} took too long") from error
        raise Conflict(
            f"could not write claims to the Lease {self._name}: someone else changed it during each of"
            f" {CLAIM_ATTEMPTS} attempts"
        )

    async def _attempt(self, step: Callable[[], Awaitable[bool]], limit: Callable[[], float]) -> bool:
        """Wait until no other step is under way, run `step`, and return its result. `limit` returns the most seconds
        for the wait. It is called again for the step when the wait is over, because claims written in the meantime
        may have renewed the Lease.

        LeaseLost, KubeErrors and a time-out are recorded in `error`, and False is returned. Otherwise `error` becomes
        None.
        """
        try:
            async with asyncio.timeout(max(0.0, limit())):
                await self._lock.acquire()
            try:
                async with asyncio.timeout(max(0.0, limit())):
                    done = await step()
            finally:
                self._lock.release()
        except LeaseLost as error:
            self.error = error
        except TimeoutError:
            self.error = Unavailable(
                f"the API server did not respond to a request for the Lease {self._name} in time"
            )
        except KubeError as error:
            self.error = error
        else:
            self.error = None
            return done
        return False

    async def _acquire(self) -> bool:
        """Take the Lease if it does not exist, has no holder, is already ours, or has expired (`_expired`). Return
        whether we hold it now. If the Lease exists, the holder that it named before is recorded in `holder`. Before the
        write, the claims on the Lease are adopted and `_taking` is set. Return False if another process holds the Lease
        or was faster; in the latter case the write meets a Conflict, or a Lease that exists already. Other KubeErrors
        are raised."""
        started = self._clock()
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
            await self._write(
                {
                    "holderIdentity": self.identity,
                    "leaseDurationSeconds": math.ceil(self._timing.duration),
                    "acquireTime": self._time(),
                    "renewTime": self._time(),
                    "leaseTransitions": whole(lease, "spec", "leaseTransitions") + 1,
                },
                started=started,
            )
            return True
        return False

    async def _renew(self) -> bool:
        """Renew the Lease and return True. If it was deleted, it is created again. After a Conflict, which a lost
        answer or somebody's edit can cause, the Lease is read and written once more. Raises LeaseLost, after calling
        `on_lost`, if we no longer lead or the Lease does not name us as its holder, and KubeErrors, such as a second
        Conflict."""
        self.must_lead()
        try:
            await self._write({"renewTime": self._time()})
        except Conflict:  # the answer to a write of ours was lost, or somebody edited or took the Lease
            await self._reread()
            await self._write({"renewTime": self._time()})
        return True

    async def _release(self) -> bool:
        """Give up the Lease, so that a successor need not wait, and return whether it was ours. Its holder is removed
        and its duration becomes one second; the claims stay. The Lease is read first if it is uncertain whether we hold
        it, or after a Conflict. As soon as this is called, this process no longer leads, whatever the server answers.
        Raises KubeErrors."""
        self._renewed_at = float("-inf")
        spec = {"holderIdentity": None, "leaseDurationSeconds": 1, "renewTime": self._time()}

        async def release(version: str) -> None:
            """Write the release, provided that the Lease still has this version. Raises Conflict if it has another
            one."""
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
        """Whether the holder of this Lease has changed neither its spec nor its claims for the Lease's duration,
        measured by our own clock from when this process first saw them. A change is recorded in `_observation` and
        restarts that time, whose end is recorded in `_expires_at`. If the Lease names no duration, the one in our
        settings applies."""
        written = part(lease, "spec"), _claims_of(lease)
        if written != self._observation[0]:
            self._observation = (written, self._clock())
        duration = whole(lease, "spec", "leaseDurationSeconds") or self._timing.duration
        self._expires_at = self._observation[1] + duration
        return self._clock() >= self._expires_at

    async def _reread(self) -> None:
        """Read the Lease and adopt its version, claims and failures. Raises LeaseLost, after calling `on_lost`, if it
        names another holder or none, and KubeErrors, among them NotFound if the Lease is gone."""
        lease = await self._client.get(LEASES, self._name, namespace=self._namespace)
        if text(lease, "spec", "holderIdentity") != self.identity:
            self._lose()
            self.must_lead()
        self._adopt(lease)

    async def _write(
        self, spec: JSON, annotations: JSON | None = None, *, started: float | None = None
    ) -> None:
        """Write these fields of the Lease's spec, and these annotations, provided that the Lease still has the version
        that we know, and adopt the answer. The Lease then counts as renewed at `started`, or at the beginning of
        this call if that is None.

        If the Lease was deleted, `_create` creates it again with us as its holder; `annotations` are passed on, but
        `spec` and `started` are not used. Raises Conflict if the Lease has changed or another process created it
        first, and other KubeErrors.
        """
        begun = self._clock() if started is None else started
        patch: JSON = {"metadata": {"resourceVersion": self._version}, "spec": spec}
        if annotations:
            patch["metadata"]["annotations"] = annotations
        try:
            lease = await self._client.patch(LEASES, self._name, patch, namespace=self._namespace)
        except NotFound:
            if not await self._create(annotations):
                raise Conflict(
                    f"the Lease {self._name} was deleted, and another process created it again"
                ) from None
            return
        self._renewed_at = begun
        self._adopt_written(lease)

    async def _create(self, annotations: JSON | None = None) -> bool:
        """Create the Lease with us as its holder. It gets `annotations`; if that is None or empty, it gets the claims
        and failures that we know. On success, adopt the answer, count the Lease as renewed when this call began,
        and return True. Return False if the Lease already exists. Other KubeErrors are raised."""
        begun = self._clock()
        body = {
            "apiVersion": LEASES.api_version,
            "kind": "Lease",
            "metadata": {
                "name": self._name,
                "annotations": annotations
                or {ANNOTATION_CLAIMS: claims_text(self.claims, self._claims_before, self.failed_nodes)},
            },
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": math.ceil(self._timing.duration),
                "acquireTime": self._time(),
                "renewTime": self._time(),
                "leaseTransitions": 1,
            },
        }
        try:
            lease = await self._client.create(LEASES, body, namespace=self._namespace)
        except AlreadyExists:
            return False
        self._renewed_at = begun
        self._adopt_written(lease)
        return True

    def _adopt_written(self, lease: JSON) -> None:
        """Adopt the Lease that the server returned for our write. Count a restore if its version is lower than the
        version that our previous write got or, before our first write, than the highest that we have read."""
        self._adopt(lease)
        if newer(self._reached, self._version):
            self.restores += 1
        self._reached = self._version

    def _adopt(self, lease: JSON) -> None:
        """Adopt the version, claims and failures of the Lease as the server has it. If claims cannot be read, none is
        adopted; failures that cannot be read are left out. In both cases `claims_error` says why. A Lease without our
        annotation has neither, which is no error."""
        self._version = text(lease, "metadata", "resourceVersion")
        written = _claims_of(lease)
        self.claims, self.failed_nodes, self.claims_error = {}, {}, ""
        if written is not None:
            self.claims, error = parse_claims(written)
            self.failed_nodes, failed_error = parse_failed_nodes(written)
            self.claims_error = error or failed_error
        self._claims_before = written or ""

    def _left(self) -> float:
        """Return the seconds until we lose the Lease unless it is renewed; negative if that time is over, and minus
        infinity if we have never held it or have released it."""
        return self._renewed_at + self._timing.deadline - self._clock()

    def _lose(self) -> None:
        """Record that the Lease is lost, so that `is_leader` stays False; `acquired` stays set. The first time, also
        call `on_lost`."""
        if not self._lost:
            self._lost = True
            self._on_lost()

    def _time(self) -> str:
        """Return the present time as the API writes a MicroTime."""
        return to_micro_time(self._now())


def _claims_of(lease: JSON) -> str | None:
    """Return the value of the claims annotation on a Lease, or None if it has none."""
    return texts(section(lease, "metadata").get("annotations")).get(ANNOTATION_CLAIMS)

"""Every state that the API server commits, in the order of resourceVersions: watches as admin, past the fault proxy."""

import asyncio
import json
import ssl
import threading
from typing import Self

import aiohttp
from hack.cluster.controlplane import ControlPlane
from hack.cluster.process import wait_until
from hack.faultproxy.proxy import split
from tests.faults.writelog import State
from tests.integration.product import RESOURCE_SLICES, RESOURCES

from gpusharing.kube.client import JSON

PATHS = {
    "nodes": "/api/v1/nodes",
    "pods": "/api/v1/pods",
    "resourceclaims": f"{RESOURCES}/resourceclaims",
    "resourceslices": RESOURCE_SLICES,
    "gpusharingpolicies": "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies",
    "gpunodes": "/apis/gpusharing.dev/v1alpha1/gpunodes",
    "leases": "/apis/coordination.k8s.io/v1/namespaces/gpusharing/leases",
}
AGAIN = 0.3
"""Seconds until a watch that ended is opened again."""


class Recorder:
    """Records from `with` on, in a thread of its own."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._states: list[State] = []
        self._live: dict[tuple[str, str], State] = {}
        """Written by the recorder's thread: who reads more than one goes through a copy."""
        self._versions: dict[str, str] = {}
        self._gaps = 0
        """How often the server had forgotten our place, so that states are missing."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: len(self._versions) == len(PATHS), 60, "the recorder to have listed everything")
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def newest(self) -> int:
        return max((state.version for state in list(self._live.values())), default=0)

    @property
    def gaps(self) -> int:
        """How often states were missed: an invariant that holds at every state cannot be judged over a gap."""
        return self._gaps

    def forget(self) -> None:
        self._states = [state for state in list(self._live.values()) if state.after is not None]

    def states(self) -> tuple[State, ...]:
        """What was there at `forget`, and every state since, by version; whatever was written before this call."""
        self._catch_up()
        return tuple(sorted(self._states, key=lambda state: state.version))

    def _catch_up(self) -> None:
        for kind, path in PATHS.items():
            wanted = {_key(kind, raw): int(raw["metadata"]["resourceVersion"]) for raw in self._plane.api.list(path)}

            def seen(wanted: dict[tuple[str, str], int] = wanted) -> bool:
                return all(
                    (state := self._live.get(key)) is not None and state.version >= version
                    for key, version in wanted.items()
                )

            wait_until(seen, 30, f"the recorder to have seen all {kind}")

    # --- inside ----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        admin = self._plane.layout.pki
        context = ssl.create_default_context(cafile=str(admin.ca))
        context.load_cert_chain(admin.cert("admin"), admin.key("admin"))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(self._plane.url, connector=connector, timeout=timeout) as session:
            tasks = [asyncio.create_task(self._follow(session, kind)) for kind in PATHS]
            await self._stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _follow(self, session: aiohttp.ClientSession, kind: str) -> None:
        while True:
            try:
                if kind not in self._versions:
                    await self._list(session, kind)
                await self._watch(session, kind)
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass  # the API server is away: that is what some of the tests are about
            await asyncio.sleep(AGAIN)

    async def _list(self, session: aiohttp.ClientSession, kind: str) -> None:
        async with session.get(PATHS[kind]) as answer:
            answer.raise_for_status()
            listed = await answer.json()
        for raw in listed["items"]:
            self._note(kind, "ADDED", raw)
        self._versions[kind] = listed["metadata"]["resourceVersion"]

    async def _watch(self, session: aiohttp.ClientSession, kind: str) -> None:
        query = {"watch": "true", "resourceVersion": self._versions[kind], "allowWatchBookmarks": "true"}
        async with session.get(PATHS[kind], params=query) as answer:
            if answer.status == 410:
                self._lose_place(kind)
            if answer.status != 200:
                return
            try:
                await self._read(answer, kind)
            except asyncio.CancelledError:
                if answer.connection is not None and answer.connection.transport is not None:
                    answer.connection.transport.abort()  # the polite end of TLS takes longer than the loop lives
                raise

    async def _read(self, answer: aiohttp.ClientResponse, kind: str) -> None:
        async for line in split(answer.content.iter_any()):
            event = json.loads(line)
            if event["type"] == "ERROR":
                self._lose_place(kind)
                return
            self._versions[kind] = event["object"]["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK":
                self._note(kind, event["type"], event["object"])

    def _lose_place(self, kind: str) -> None:
        self._gaps += 1
        del self._versions[kind]

    def _note(self, kind: str, change: str, raw: JSON) -> None:
        key, version = _key(kind, raw), int(raw["metadata"]["resourceVersion"])
        raw["metadata"].pop("managedFields", None)
        known = self._live.get(key)
        if known is not None and known.version >= version:
            return
        state = State(version, kind, key[1], None if change == "DELETED" else raw)
        self._states.append(state)
        self._live[key] = state


def _key(kind: str, raw: JSON) -> tuple[str, str]:
    metadata = raw["metadata"]
    name = metadata["name"]
    return kind, f"{metadata['namespace']}/{name}" if metadata.get("namespace") else name

"""List and watch one kind without end, and deliver the raw objects to a handler. Only for simulators, whose view must
not depend on the Reflector that they test."""

import asyncio
from collections.abc import Callable

from gpusharing.kube.client import JSON, KubeClient, Resource
from gpusharing.kube.errors import Expired, KubeError, NotFound
from gpusharing.kube.lists import pages_of

Handler = Callable[[JSON, bool], None]
"""Called with an object and whether it is gone, in the order of the changes. It must not block."""

FIRST_RETRY, LAST_RETRY = 0.2, 5.0


async def follow(
    client: KubeClient,
    resource: Resource,
    handler: Handler,
    *,
    namespace: str | None = None,
    log: Callable[[str], None],
    synced: asyncio.Event | None = None,
) -> None:
    """Call the handler with every object of a kind, then with every change, until canceled. A KubeError is retried with
    a back-off, and a new list delivers only what has changed. `synced` is set after the first list, or if the server
    does not serve the kind."""
    known: dict[tuple[str, str], JSON] = {}
    synced = synced or asyncio.Event()
    wait, logged = FIRST_RETRY, ""
    while True:
        try:
            version = await _list(client, resource, namespace, handler, known)
            synced.set()
            wait, logged = FIRST_RETRY, ""
            while True:
                version = await _watch(client, resource, namespace, handler, known, version)
        except Expired:
            continue
        except KubeError as error:
            if isinstance(error, NotFound):
                synced.set()
            if str(error) != logged:
                log(f"cannot follow {resource.plural}: {error!r}")
            logged = str(error)
            await asyncio.sleep(wait)
            wait = min(wait * 2, LAST_RETRY)


async def _list(
    client: KubeClient, resource: Resource, namespace: str | None, handler: Handler, known: dict[tuple[str, str], JSON]
) -> str:
    present: set[tuple[str, str]] = set()
    version = ""
    async for page in pages_of(client, resource, namespace=namespace):
        version = page.resource_version
        for item in page.items:
            present.add(_key(item))
            _deliver(item, handler, known)
    for key in known.keys() - present:
        handler(known.pop(key), True)
    return version


async def _watch(
    client: KubeClient,
    resource: Resource,
    namespace: str | None,
    handler: Handler,
    known: dict[tuple[str, str], JSON],
    version: str,
) -> str:
    async for event in client.watch(resource, version, namespace=namespace):
        before, version = version, event.object["metadata"]["resourceVersion"]
        if int(version) < int(before):  # the store was restored from a backup, so no known object is certain
            for key in list(known):
                handler(known.pop(key), True)
            raise Expired("the store was restored from a backup")
        if event.type == "DELETED":
            known.pop(_key(event.object), None)
            handler(event.object, True)
        elif event.type != "BOOKMARK":
            _deliver(event.object, handler, known)
    return version


def _deliver(item: JSON, handler: Handler, known: dict[tuple[str, str], JSON]) -> None:
    before = known.get(_key(item))
    if before is not None and before["metadata"].get("uid") != item["metadata"].get("uid"):
        handler(before, True)
    elif before is not None and before["metadata"].get("resourceVersion") == item["metadata"].get("resourceVersion"):
        return
    known[_key(item)] = item
    handler(item, False)


def _key(item: JSON) -> tuple[str, str]:
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]

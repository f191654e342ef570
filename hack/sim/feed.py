"""List and watch one kind for ever, as plain events. For simulators only: it keeps the raw objects."""

import asyncio
from collections.abc import Callable

from gpusharing.kube.client import JSON, KubeClient, Resource
from gpusharing.kube.errors import Expired, KubeError, NotFound
from gpusharing.kube.paging import pages_of

Handler = Callable[[JSON, bool], None]
"""Called with an object and whether it is gone, in order; must not block."""

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
    """Tell the handler of every object there is, and of every change. Errors are reported once and retried;
    a kind that the server does not serve counts as empty. `synced` is set after the first list."""
    known: dict[tuple[str, str], JSON] = {}
    synced = synced or asyncio.Event()
    wait, told = FIRST_RETRY, ""
    while True:
        try:
            version = await _list(client, resource, namespace, handler, known)
            synced.set()
            wait, told = FIRST_RETRY, ""
            while True:
                version = await _watch(client, resource, namespace, handler, known, version)
        except Expired:
            continue
        except KubeError as error:
            if isinstance(error, NotFound):
                synced.set()
            if str(error) != told:
                log(f"cannot follow {resource.plural}: {error!r}")
            told = str(error)
            await asyncio.sleep(wait)
            wait = min(wait * 2, LAST_RETRY)


async def _list(
    client: KubeClient,
    resource: Resource,
    namespace: str | None,
    handler: Handler,
    known: dict[tuple[str, str], JSON],
) -> str:
    present: set[tuple[str, str]] = set()
    version = ""
    async for page in pages_of(client, resource, namespace=namespace):
        version = page.resource_version
        for item in page.items:
            present.add(_key(item))
            _tell(item, handler, known)
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
        if int(version) < int(before):  # the store was restored from a backup: what we know of it never was
            for key in list(known):
                handler(known.pop(key), True)
            raise Expired("the store was restored from a backup")
        if event.type == "DELETED":
            known.pop(_key(event.object), None)
            handler(event.object, True)
        elif event.type != "BOOKMARK":
            _tell(event.object, handler, known)
    return version


def _tell(item: JSON, handler: Handler, known: dict[tuple[str, str], JSON]) -> None:
    before = known.get(_key(item))
    if before is not None and before["metadata"].get("uid") != item["metadata"].get("uid"):
        handler(before, True)
    elif before is not None and before["metadata"].get("resourceVersion") == item["metadata"].get(
        "resourceVersion"
    ):
        return
    known[_key(item)] = item
    handler(item, False)


def _key(item: JSON) -> tuple[str, str]:
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]

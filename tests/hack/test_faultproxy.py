"""The fault proxy makes single objects fail for ever, and passes everything else on."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from hack.faultproxy import FaultProxy, PlayedRefusal
from hack.faultproxy.calls import is_renewal

from gpusharing.kube.client import NODES, PODS, ApiRequest
from gpusharing.kube.errors import EvictionBlocked
from gpusharing.kube.wire import error_of


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    async def yes(_: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", yes)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_one_object_fails_for_ever_and_its_neighbor_does_not(upstream: str) -> None:
    with FaultProxy(upstream, "") as proxy:
        sick = proxy.fail("PATCH", NODES.path(None, "gpu-1"), PlayedRefusal(503, retry_after=1))
        async with aiohttp.ClientSession(proxy.url) as session:

            async def patch(name: str) -> int:
                async with session.patch(NODES.path(None, name), params={"fieldManager": "x"}) as answer:
                    return answer.status

            assert [await patch("gpu-1") for _ in range(3)] == [503] * 3
            assert await patch("gpu-2") == 200
            sick.lift()
            assert await patch("gpu-1") == 200
        assert sick.hits == 3


async def test_the_list_of_one_node_gets_no_answer_at_all(upstream: str) -> None:
    with FaultProxy(upstream, "") as proxy:
        deaf = proxy.fail("GET", PODS.path(), None, query="spec.nodeName=gpu-1")
        async with aiohttp.ClientSession(proxy.url) as session:

            async def pods(node: str, **more: str) -> int:
                query = {"fieldSelector": f"spec.nodeName={node}", **more}
                async with session.get(PODS.path(), params=query) as answer:
                    return answer.status

            waiting = asyncio.create_task(pods("gpu-1"))
            async with asyncio.timeout(60):
                while not deaf.hits:  # noqa: ASYNC110 - the proxy tells nobody
                    await asyncio.sleep(0.01)
            assert await pods("gpu-2") == 200
            assert await pods("gpu-1", watch="true") == 200
            assert not waiting.done()
            waiting.cancel()
            await asyncio.wait([waiting])
        assert deaf.hits == 1


async def test_a_refusal_reads_as_an_api_servers_own(upstream: str) -> None:
    with FaultProxy(upstream, "") as proxy:
        refusal = PlayedRefusal(429, "no", "TooManyRequests", causes={"DisruptionBudget": "needs 2"})
        path = PODS.path("team", "job-1", "eviction")
        proxy.fail("POST", path, refusal)
        async with aiohttp.ClientSession(proxy.url) as session, session.post(path) as answer:
            error = error_of(ApiRequest("create", PODS, "eviction"), answer.status, await answer.json())
    assert isinstance(error, EvictionBlocked)


LEASE = "/apis/coordination.k8s.io/v1/namespaces/gpusharing/leases/gpusharing-operator"


@pytest.mark.parametrize(
    ("path", "body", "renewal"),
    [
        (LEASE, b"", True),
        (LEASE, b'{"spec": {"holderIdentity": "a"}}', True),
        (LEASE, b'{"metadata": null}', True),
        (LEASE, b'{"metadata": {"annotations": {"a": "b"}}}', False),
        (LEASE, b'[{"op": "replace", "path": "/spec/holderIdentity", "value": "a"}]', True),
        (LEASE, b'[{"op": "add", "path": "/metadata/annotations/a", "value": "b"}]', False),
        (NODES.path(None, "gpu-1"), b"", False),
    ],
)
def test_a_write_to_the_lease_without_annotations_only_renews_it(path: str, body: bytes, renewal: bool) -> None:
    assert is_renewal(path, body) is renewal

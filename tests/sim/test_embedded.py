"""The embedded cluster itself, when what runs on it fails."""

import asyncio

import pytest
from hack.cluster.nodes import node_manifest
from hack.embedded import embedded
from hack.sim.fakecluster import FakeClient

from gpusharing.kube.client import JSON, ApiRequest


class BrokenClient(FakeClient):
    async def call(self, request: ApiRequest) -> JSON:
        raise ZeroDivisionError


async def fail() -> None:
    async with embedded([node_manifest("gpu-1")]) as environment:
        environment.start_operator(BrokenClient(environment.cluster, "operator"))
        with pytest.raises(ExceptionGroup):
            await environment.until(lambda: False, "something that never comes")


async def test_after_an_error_of_the_operator_nothing_else_runs_on() -> None:
    before = asyncio.all_tasks()
    with pytest.raises(ExceptionGroup):
        await fail()
    assert asyncio.all_tasks() == before

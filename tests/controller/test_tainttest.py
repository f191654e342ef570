"""The test of the scheduler for DeviceTaintRules, against a FakeCluster and a SIMULATED scheduler."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hack.embedded import Embedded, embedded
from tests.fakes.virtualtime import virtually

from gpusharing.controller.tainttest import IGNORED, VALID, TaintTest
from gpusharing.kube.client import DEVICE_TAINT_RULES, PODS, REPLICA_SETS
from gpusharing.planning.snapshot.nvidia import TAINT_TEST


@asynccontextmanager
async def played(*, gate: bool = True) -> AsyncIterator[tuple[Embedded, TaintTest]]:
    """A cluster whose scheduler has the feature gate or not, and the test."""
    async with embedded([], factor=1.0, sim={"dra": True, "device_taints": gate}) as environment:
        yield environment, TaintTest(environment.cluster.client("operator"), "gpusharing")


def count_tests(environment: Embedded) -> int:
    scaled = (write.call.body for write in environment.cluster.writes if write.call.subresource == "scale")
    return sum(body == {"spec": {"replicas": 1}} for body in scaled)


@virtually
async def test_a_scheduler_that_obeys_is_tested_again_after_six_hours_or_under_another_version_only() -> None:
    async with played() as (environment, test):
        assert await test.repeat() == await test.repeat() == (True, "")
        assert count_tests(environment) == 1
        assert environment.cluster.objects(DEVICE_TAINT_RULES) == []
        await environment.until(lambda: environment.cluster.objects(PODS) == [], "the pod to go")
        environment.cluster.version = "v1.37.0"
        assert (await test.repeat())[0]
        assert count_tests(environment) == 2
        await asyncio.sleep(VALID)
        assert (await test.repeat())[0]
        assert count_tests(environment) == 3


@virtually
async def test_a_scheduler_without_the_gate_is_tried_three_times_and_each_time_anew() -> None:
    async with played(gate=False) as (environment, test):
        assert await test.repeat() == (False, IGNORED)
        assert count_tests(environment) == 3
        await test.repeat()
        assert count_tests(environment) == 6


@virtually
async def test_what_an_interrupted_test_left_behind_shows_nothing_and_is_removed() -> None:
    async with played() as (environment, test):
        cluster = environment.cluster
        cluster.patch(REPLICA_SETS, TAINT_TEST, {"spec": {"replicas": 1}}, "gpusharing")
        await environment.until(lambda: len(cluster.objects(PODS)) == 1, "a pod that saw no rule")
        assert await test.repeat() == (True, "")
        assert cluster.objects(DEVICE_TAINT_RULES) == []
        await environment.until(lambda: cluster.objects(PODS) == [], "the pod to go")


@virtually
async def test_a_test_that_cannot_be_made_is_an_error_and_leaves_no_rule() -> None:
    async with played() as (environment, test):
        environment.cluster.delete(REPLICA_SETS, TAINT_TEST, "gpusharing")
        assert "the scheduler could not be tested" in (await test.repeat())[1]
        assert environment.cluster.objects(DEVICE_TAINT_RULES) == []

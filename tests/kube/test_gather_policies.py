"""What a snapshot holds of the policies and of ClusterPolicy, and what it says when a call about them fails."""

import asyncio

import pytest
from hack.sim.fakecluster import FakeClient
from hack.sim.fakefaults import EVER, SILENCE
from tests.build import at
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering
from tests.kube.objects import pod

from gpusharing.kube.client import JSON, PODS, POLICIES, ApiRequest
from gpusharing.kube.errors import Invalid, Unavailable
from gpusharing.kube.policycache import PolicyCache
from gpusharing.planning.snapshot.memory import CLUSTER_POLICY, LASTING, CallFailure


@virtually
async def test_policies_that_cannot_be_read_are_part_of_the_answer() -> None:
    broken = {"metadata": {"name": "pool-b"}, "spec": {"mode": "Nonsense"}}
    async with gathering((POLICIES, broken)) as stage:
        policy = (await stage.snapshot()).policies[0]
        assert policy.spec is None
        assert policy.problems


@virtually
async def test_the_labels_of_namespaces_are_not_read_where_no_policy_asks_for_them() -> None:
    spec = {"nodeSelector": {"matchLabels": {"pool": "b"}}, "mode": "Full"}
    policy = {"metadata": {"name": "pool-b", "uid": "policy", "generation": 1}, "spec": spec}
    async with gathering((POLICIES, policy), (PODS, pod())) as stage:
        snapshot = await stage.snapshot()
        assert (snapshot.policies[0].problems, len(snapshot.work["gpu-07"].pods)) == ((), 1)
        assert stage.cluster.calls["operator", "get", "namespaces"] == 0


@virtually
async def test_a_failed_write_of_cluster_policy_is_part_of_the_answer_once_it_lasts() -> None:
    async with gathering() as stage:
        told = []
        for tries in (1, LASTING):
            stage.calls.failures = {CLUSTER_POLICY: CallFailure("no right", at(9), tries)}
            told.append((await stage.snapshot()).stack.pointer_error)
    assert told == ["", "no right"]


@virtually
async def test_without_a_first_list_of_the_policies_nothing_is_decided() -> None:
    async with gathering() as stage:
        stage.cluster.faults.fail("list", POLICIES, Invalid("bad continue token"), identity="sources")
        with pytest.raises(Unavailable, match="policies cannot be listed: bad continue token"):
            await stage.snapshot()


@virtually
async def test_policies_that_cannot_be_listed_again_are_known_to_be_old() -> None:
    async with gathering() as stage:
        assert (await stage.snapshot()).policies_error == ""
        sick = stage.cluster.faults.fail("list", POLICIES, SILENCE, identity="sources", times=EVER)
        stage.gatherer.sources.policies.touch()
        assert "has not responded yet" in (await stage.snapshot()).policies_error
        sick.lift()
        await asyncio.sleep(11)
        assert (await stage.snapshot()).policies_error == ""


class Edited(FakeClient):
    """Somebody writes to the policies while each LIST of them is on its way, and a watch tells of it."""

    cache: PolicyCache

    async def call(self, request: ApiRequest) -> JSON:
        page = await super().call(request)
        edited = self.cluster.patch(POLICIES, "pool-b", {"spec": {"priority": self.cluster.store.version}})
        assert self.cache.touch("pool-b", edited["metadata"]["resourceVersion"])
        return page


@virtually
async def test_an_edit_during_the_list_of_the_policies_is_for_the_next_pass() -> None:
    async with gathering((POLICIES, {"metadata": {"name": "pool-b"}, "spec": {}})) as stage:
        sources = stage.gatherer.sources
        client = Edited(stage.cluster, "operator")
        sources.policies = client.cache = PolicyCache(client)
        for count in (1, 2):
            assert (await stage.snapshot()).policies_error == "", "this pass listed them"
            assert sources.policies.dirty, "and the next one lists them again"
            assert stage.lists("gpusharingpolicies") == count

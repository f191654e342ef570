"""What our code relies on from an API server, as one suite for FakeCluster and for a real one.
A subclass gives the fixture `server`. Each test works in its own namespace and with its own object names, so that the real server can be shared."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

import pytest
from tests.wording import lacks

from gpusharing.kube import errors
from gpusharing.kube.client import (
    CONFIG_MAPS,
    CORE_EVENTS,
    EVENTS,
    GPUNODES,
    LEASES,
    NODES,
    PDBS,
    PODS,
    ApiRequest,
    KubeClient,
    Resource,
    WatchEvent,
)
from gpusharing.kube.lists import pages_of
from gpusharing.planning.vocabulary.reasons import Reason

JSON = dict[str, Any]


class Server(Protocol):
    """A server and what a test must be able to arrange on it."""

    client: KubeClient
    name: str
    """A name nobody else uses: namespace, and prefix of cluster-scoped objects."""
    missing: Resource

    async def forget_history(self) -> None:
        """Make resourceVersion 1 too old to watch GPUNodes from."""
        ...

    async def terminate_namespace(self) -> None:
        """Start the deletion of the namespace, which something in it holds up."""
        ...


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 15.0) -> None:
    """Wait for a controller of the server to have done its work."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - the condition is another process's, it sends no event
            await asyncio.sleep(0.05)


async def collected(client: KubeClient, resource: Resource, **where: Any) -> tuple[list[JSON], list[str]]:
    items, versions = [], []
    async for page in pages_of(client, resource, **where):
        items += page.items
        versions.append(page.resource_version)
    return items, versions


async def take(events: AsyncGenerator[WatchEvent, None], count: int) -> list[tuple[str, str]]:
    """(type, name) of the next events that are no bookmarks."""
    found: list[tuple[str, str]] = []
    async with asyncio.timeout(60):
        async for event in events:
            if event.type != "BOOKMARK":
                found.append((event.type, event.object["metadata"]["name"]))
            if len(found) == count:
                break
    return found


def config_map(name: str, **metadata: Any) -> JSON:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": {"a": "1"}}


class ObjectContract:
    """Objects of any kind: every verb but the eviction of a pod."""

    async def test_discovery_tells_an_installed_kind_from_one_that_is_not(self, server: Server) -> None:
        assert await server.client.served(NODES)
        assert await server.client.served(GPUNODES)
        assert not await server.client.served(server.missing)

    async def test_a_merge_patch_sets_and_removes_and_answers_the_new_object(self, server: Server) -> None:
        client, ns = server.client, server.name
        old = await client.create(CONFIG_MAPS, config_map("one", labels={"a": "1", "b": "1"}), namespace=ns)
        patch = {"metadata": {"labels": {"a": None, "c": "2"}}, "data": {"a": None}}
        new = await client.patch(CONFIG_MAPS, "one", patch, namespace=ns)
        assert new["metadata"]["labels"] == {"b": "1", "c": "2"}
        assert not new.get("data")
        assert int(new["metadata"]["resourceVersion"]) > int(old["metadata"]["resourceVersion"])

    async def test_a_patch_that_changes_nothing_makes_no_new_version(self, server: Server) -> None:
        client, ns = server.client, server.name
        await client.create(CONFIG_MAPS, config_map("one"), namespace=ns)
        # The first patch of a field manager changes managedFields on a real server.
        first = await client.patch(CONFIG_MAPS, "one", {"data": {"a": "2"}}, namespace=ns)
        again = await client.patch(CONFIG_MAPS, "one", {"data": {"a": "2"}}, namespace=ns)
        assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]

    async def test_a_conditional_patch_loses_against_a_change_and_wins_without_one(self, server: Server) -> None:
        client, ns = server.client, server.name
        old = await client.create(CONFIG_MAPS, config_map("one"), namespace=ns)
        new = await client.patch(CONFIG_MAPS, "one", {"data": {"b": "2"}}, namespace=ns)
        stale = {"metadata": {"resourceVersion": old["metadata"]["resourceVersion"]}, "data": {"b": "3"}}
        with pytest.raises(errors.Conflict):
            await client.patch(CONFIG_MAPS, "one", stale, namespace=ns)
        fresh = {"metadata": {"resourceVersion": new["metadata"]["resourceVersion"]}, "data": {"b": "3"}}
        assert (await client.patch(CONFIG_MAPS, "one", fresh, namespace=ns))["data"]["b"] == "3"

    async def test_a_patch_meant_for_another_uid_is_refused(self, server: Server) -> None:
        client, ns = server.client, server.name
        await client.create(CONFIG_MAPS, config_map("one"), namespace=ns)
        with pytest.raises(errors.Invalid):
            await client.patch(CONFIG_MAPS, "one", {"metadata": {"uid": "other"}}, namespace=ns)

    async def test_spec_and_status_are_written_apart_and_only_the_spec_counts_generations(self, server: Server) -> None:
        client, name = server.client, server.name
        body = {
            "apiVersion": GPUNODES.api_version,
            "kind": "GPUNode",
            "metadata": {"name": name},
            "spec": {"request": {"id": "a"}},
            "status": {"transition": {"phase": "Pending"}},
        }
        created = await client.create(GPUNODES, body)
        assert (created["metadata"]["generation"], "status" in created) == (1, False)
        both: JSON = {"spec": {"request": {"id": "b"}}, "status": {"transition": {"phase": "Draining"}}}
        spec_only = await client.patch(GPUNODES, name, both)
        assert (spec_only["spec"]["request"]["id"], spec_only["metadata"]["generation"]) == ("b", 2)
        assert "status" not in spec_only
        both["spec"]["request"]["id"] = "c"
        status_only = await client.patch(GPUNODES, name, both, subresource="status")
        assert status_only["status"]["transition"]["phase"] == "Draining"
        assert (status_only["spec"]["request"]["id"], status_only["metadata"]["generation"]) == ("b", 2)

    async def test_a_list_comes_in_pages_of_one_moment(self, server: Server) -> None:
        client, ns = server.client, server.name
        for number in range(5):
            await client.create(CONFIG_MAPS, config_map(f"cm-{number}"), namespace=ns)
        items, versions = await collected(client, CONFIG_MAPS, namespace=ns, size=2)
        names = [item["metadata"]["name"] for item in items]
        assert [name for name in names if name.startswith("cm-")] == [f"cm-{n}" for n in range(5)]
        assert len(versions) >= 3
        assert len(set(versions)) == 1

    async def test_an_empty_list_is_one_page_with_a_version(self, server: Server) -> None:
        items, versions = await collected(server.client, PDBS, namespace=server.name)
        assert items == []
        assert len(versions) == 1
        assert int(versions[0]) > 0

    async def test_a_list_is_narrowed_by_labels_and_fields(self, server: Server) -> None:
        client, ns = server.client, server.name
        for name, labels in (("x", {"tier": "a"}), ("y", {"tier": "b"}), ("z", {})):
            await client.create(CONFIG_MAPS, config_map(name, labels=labels), namespace=ns)

        async def names(**where: str) -> list[str]:
            items, _ = await collected(client, CONFIG_MAPS, namespace=ns, **where)
            return [item["metadata"]["name"] for item in items if len(item["metadata"]["name"]) == 1]

        assert await names(label_selector="tier=a") == ["x"]
        assert await names(label_selector="tier in (a,b),tier!=a") == ["y"]
        assert await names(label_selector="!tier") == ["z"]
        assert await names(label_selector="tier") == ["x", "y"]
        assert await names(field_selector="metadata.name=y") == ["y"]

    async def test_a_watch_tells_what_happened_after_the_list(self, server: Server) -> None:
        client, ns = server.client, server.name
        _, versions = await collected(client, CONFIG_MAPS, namespace=ns)
        created = await client.create(CONFIG_MAPS, config_map("w"), namespace=ns)
        await client.patch(CONFIG_MAPS, "w", {"data": {"a": "2"}}, namespace=ns)
        await client.delete(CONFIG_MAPS, "w", namespace=ns, uid=created["metadata"]["uid"])
        where = {"namespace": ns, "field_selector": "metadata.name=w"}
        async with aclosing(client.watch(CONFIG_MAPS, versions[0], **where)) as events:
            assert await take(events, 3) == [("ADDED", "w"), ("MODIFIED", "w"), ("DELETED", "w")]

    async def test_leaving_a_selection_is_a_deletion_and_entering_it_an_addition(self, server: Server) -> None:
        client, ns = server.client, server.name
        await client.create(CONFIG_MAPS, config_map("w", labels={"in": "no"}), namespace=ns)
        _, versions = await collected(client, CONFIG_MAPS, namespace=ns)
        for value in ("yes", "no"):
            await client.patch(CONFIG_MAPS, "w", {"metadata": {"labels": {"in": value}}}, namespace=ns)
        where = {"namespace": ns, "label_selector": "in=yes"}
        async with aclosing(client.watch(CONFIG_MAPS, versions[0], **where)) as events:
            assert await take(events, 2) == [("ADDED", "w"), ("DELETED", "w")]

    async def test_a_watch_from_too_long_ago_is_expired(self, server: Server) -> None:
        await server.forget_history()
        with pytest.raises(errors.Expired):
            await take(server.client.watch(GPUNODES, "1"), 1)

    async def test_what_is_not_there_is_not_found_by_any_verb(self, server: Server) -> None:
        client, ns = server.client, server.name
        for call in (
            client.get(CONFIG_MAPS, "x", namespace=ns),
            client.patch(CONFIG_MAPS, "x", {"data": {}}, namespace=ns),
            client.delete(CONFIG_MAPS, "x", namespace=ns, uid="u"),
            client.evict(ns, "x", "u"),
            client.log(ns, "x", 10),
        ):
            with pytest.raises(errors.NotFound):
                await call

    async def test_a_request_is_asked_before_it_writes_and_not_before_it_reads(self, server: Server) -> None:
        def refuse() -> None:
            raise RuntimeError("no longer wanted")

        client, ns, body = server.client, server.name, config_map("one")
        with pytest.raises(RuntimeError, match="no longer wanted"):
            await client.call(ApiRequest("create", CONFIG_MAPS, namespace=ns, body=body, before_send=refuse))
        await client.create(CONFIG_MAPS, body, namespace=ns)
        await client.call(ApiRequest("get", CONFIG_MAPS, namespace=ns, name="one", before_send=refuse))

    async def test_the_server_says_its_version(self, server: Server) -> None:
        assert re.match(r"v1\.\d+\.", await server.client.version())

    async def test_an_object_is_created_once(self, server: Server) -> None:
        created = await server.client.create(CONFIG_MAPS, config_map("one"), namespace=server.name)
        assert created["metadata"]["uid"]
        assert created["metadata"]["namespace"] == server.name
        with pytest.raises(errors.AlreadyExists):
            await server.client.create(CONFIG_MAPS, config_map("one"), namespace=server.name)
        assert await server.client.get(CONFIG_MAPS, "one", namespace=server.name) == created

    async def test_an_event_has_a_note_of_at_most_1024_bytes(self, server: Server) -> None:
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "eventTime": "2026-11-20T09:00:00.000000Z",
            "reportingController": "gpusharing.dev/operator",
            "reportingInstance": "contract",
            "action": "Test",
            "reason": "Test",
            "type": "Normal",
            "regarding": {"apiVersion": "v1", "kind": "ConfigMap", "name": "one", "namespace": server.name},
        }
        fits = {**event, "metadata": {"name": "fits"}, "note": "é" * 512}
        assert (await server.client.create(EVENTS, fits, namespace=server.name))["note"] == "é" * 512
        about = "involvedObject.kind=ConfigMap,involvedObject.name=one"
        (older,) = (await server.client.list_page(CORE_EVENTS, namespace=server.name, field_selector=about)).items
        assert (older["message"], older["reportingComponent"]) == ("é" * 512, "gpusharing.dev/operator")
        too_long = {**event, "metadata": {"name": "too-long"}, "note": "é" * 513}
        with pytest.raises(errors.Invalid):
            await server.client.create(EVENTS, too_long, namespace=server.name)

    async def test_an_object_without_a_name_is_invalid(self, server: Server) -> None:
        nameless = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}
        with pytest.raises(errors.Invalid):
            await server.client.create(CONFIG_MAPS, nameless, namespace=server.name)

    async def test_a_deletion_meant_for_another_uid_is_refused(self, server: Server) -> None:
        client, ns = server.client, server.name
        created = await client.create(CONFIG_MAPS, config_map("one"), namespace=ns)
        with pytest.raises(errors.Conflict):
            await client.delete(CONFIG_MAPS, "one", namespace=ns, uid="00000000-0000-4000-8000-00000000dead")
        await client.delete(CONFIG_MAPS, "one", namespace=ns, uid=created["metadata"]["uid"])
        with pytest.raises(errors.NotFound):
            await client.get(CONFIG_MAPS, "one", namespace=ns)

    async def test_a_finalizer_holds_an_object_until_it_is_taken_off(self, server: Server) -> None:
        client, ns = server.client, server.name
        created = await client.create(CONFIG_MAPS, config_map("one", finalizers=["a.b/c"]), namespace=ns)
        await client.delete(CONFIG_MAPS, "one", namespace=ns, uid=created["metadata"]["uid"])
        held = await client.get(CONFIG_MAPS, "one", namespace=ns)
        assert held["metadata"]["deletionTimestamp"]
        await client.patch(CONFIG_MAPS, "one", {"metadata": {"finalizers": None}}, namespace=ns)
        with pytest.raises(errors.NotFound):
            await client.get(CONFIG_MAPS, "one", namespace=ns)

    async def test_a_node_is_cordoned_and_uncordoned(self, server: Server) -> None:
        client, name = server.client, server.name
        await client.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        cordoned = await client.patch(NODES, name, {"spec": {"unschedulable": True}})
        assert cordoned["spec"]["unschedulable"] is True
        lifted = await client.patch(NODES, name, {"spec": {"unschedulable": None}})
        assert "unschedulable" not in lifted["spec"]

    async def test_a_lease_is_taken_by_a_conditional_patch(self, server: Server) -> None:
        client, ns = server.client, server.name
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "leader"},
            "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15},
        }
        free = await client.create(LEASES, body, namespace=ns)
        version = {"resourceVersion": free["metadata"]["resourceVersion"]}
        taken = {"metadata": version, "spec": {"holderIdentity": None}}
        assert "holderIdentity" not in (await client.patch(LEASES, "leader", taken, namespace=ns))["spec"]
        with pytest.raises(errors.Conflict):
            await client.patch(LEASES, "leader", taken, namespace=ns)

    async def test_nothing_new_is_accepted_in_a_terminating_namespace(self, server: Server) -> None:
        await server.terminate_namespace()
        with pytest.raises(errors.Forbidden) as refused:
            await server.client.create(CONFIG_MAPS, config_map("late"), namespace=server.name)
        assert refused.value.namespace_terminating


class PodContract:
    """Pods, evictions and budgets."""

    async def pod(self, server: Server, name: str, *, bound: bool = True, ready: bool = True) -> JSON:
        """A pod of the namespace: running on a node of the test's own, or pending."""
        client, ns = server.client, server.name
        spec: JSON = {"containers": [{"name": "c", "image": "none.invalid/none"}]}
        if bound:
            spec["nodeName"] = server.name
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "llm"}}, "spec": spec}
        created = await client.create(PODS, body, namespace=ns)
        if not bound:
            return created
        condition = {"type": "Ready", "status": "True" if ready else "False"}
        status = {"status": {"phase": "Running", "conditions": [condition]}}
        return await client.patch(PODS, name, status, namespace=ns, subresource="status")

    async def budget(self, server: Server, name: str, minimum: int, healthy: int) -> None:
        """A PodDisruptionBudget whose numbers the server has computed."""
        client, ns = server.client, server.name
        body = {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": name},
            "spec": {"minAvailable": minimum, "selector": {"matchLabels": {"app": "llm"}}},
        }
        await client.create(PDBS, body, namespace=ns)

        async def counted() -> bool:
            status = (await client.get(PDBS, name, namespace=ns)).get("status") or {}
            return bool(status.get("currentHealthy") == healthy and status.get("desiredHealthy") == minimum)

        await eventually(counted)

    async def test_pods_are_found_by_node_and_by_phase(self, server: Server) -> None:
        await self.pod(server, "on-node")
        await self.pod(server, "waiting", bound=False)

        async def names(selector: str) -> list[str]:
            items, _ = await collected(server.client, PODS, namespace=server.name, field_selector=selector)
            return [item["metadata"]["name"] for item in items]

        assert await names(f"spec.nodeName={server.name}") == ["on-node"]
        assert await names("spec.nodeName=,status.phase=Pending") == ["waiting"]

    async def test_an_evicted_pod_is_there_until_its_grace_period_ends(self, server: Server) -> None:
        pod = await self.pod(server, "llm-0")
        await server.client.evict(server.name, "llm-0", pod["metadata"]["uid"])
        going = await server.client.get(PODS, "llm-0", namespace=server.name)
        assert going["metadata"]["deletionTimestamp"]
        assert going["metadata"]["uid"] == pod["metadata"]["uid"]

    async def test_a_deleted_pod_is_there_until_its_grace_period_ends(self, server: Server) -> None:
        pod = await self.pod(server, "llm-0")
        await server.client.delete(PODS, "llm-0", namespace=server.name, uid=pod["metadata"]["uid"])
        assert (await server.client.get(PODS, "llm-0", namespace=server.name))["metadata"]["deletionTimestamp"]

    async def test_an_eviction_meant_for_another_uid_is_a_conflict(self, server: Server) -> None:
        await self.pod(server, "llm-0")
        with pytest.raises(errors.Conflict):
            await server.client.evict(server.name, "llm-0", "00000000-0000-4000-8000-00000000dead")
        assert "deletionTimestamp" not in (await server.client.get(PODS, "llm-0", namespace=server.name))["metadata"]

    async def test_a_budget_refuses_with_its_name_and_without_a_time(self, server: Server) -> None:
        pods = [await self.pod(server, f"llm-{n}") for n in range(2)]
        await self.budget(server, "keep-both", 2, healthy=2)
        with pytest.raises(errors.EvictionBlocked) as blocked:
            await server.client.evict(server.name, "llm-0", pods[0]["metadata"]["uid"])
        assert not lacks(blocked.value.message, "keep-both", "2 healthy pods", "2")
        assert blocked.value.retry_after is None

    async def test_a_budget_of_one_is_spent_by_one_eviction(self, server: Server) -> None:
        pods = [await self.pod(server, f"llm-{n}") for n in range(2)]
        await self.budget(server, "keep-one", 1, healthy=2)
        await server.client.evict(server.name, "llm-0", pods[0]["metadata"]["uid"])
        with pytest.raises(errors.EvictionBlocked):
            await server.client.evict(server.name, "llm-1", pods[1]["metadata"]["uid"])

    async def test_the_remedy_for_a_budget_that_never_allows_is_accepted(self, server: Server) -> None:
        """With minAvailable beside it, maxUnavailable would be refused."""
        await self.pod(server, "llm-0")
        await self.budget(server, "keep", 1, healthy=1)
        assert "maxUnavailable to at least 1 and remove its minAvailable" in Reason.PDB_NEVER_ALLOWS.remedy
        body = {"spec": {"maxUnavailable": 1, "minAvailable": None}}
        await server.client.patch(PDBS, "keep", body, namespace=server.name)
        spec = (await server.client.get(PDBS, "keep", namespace=server.name))["spec"]
        assert (spec.get("minAvailable"), spec["maxUnavailable"]) == (None, 1)

    async def test_two_budgets_on_one_pod_can_never_be_satisfied(self, server: Server) -> None:
        pod = await self.pod(server, "llm-0")
        await self.budget(server, "first", 0, healthy=1)
        await self.budget(server, "second", 0, healthy=1)
        with pytest.raises(errors.EvictionFailed, match="more than one PodDisruptionBudget"):
            await server.client.evict(server.name, "llm-0", pod["metadata"]["uid"])

    async def test_a_pending_pod_is_evicted_without_asking_the_budget(self, server: Server) -> None:
        pod = await self.pod(server, "llm-0", bound=False)
        await self.budget(server, "keep", 1, healthy=0)
        await server.client.evict(server.name, "llm-0", pod["metadata"]["uid"])
        with pytest.raises(errors.NotFound):
            await server.client.get(PODS, "llm-0", namespace=server.name)

    async def test_a_pod_that_is_not_ready_does_not_count_as_healthy(self, server: Server) -> None:
        ready, unready = await self.pod(server, "llm-0"), await self.pod(server, "llm-1", ready=False)
        await self.budget(server, "keep-one", 1, healthy=1)
        with pytest.raises(errors.EvictionBlocked):
            await server.client.evict(server.name, "llm-0", ready["metadata"]["uid"])
        # The budget is met without it, so the pod that serves nobody may go (docs/design/drain.md#e10).
        await server.client.evict(server.name, "llm-1", unready["metadata"]["uid"])

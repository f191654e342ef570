"""No object that the server returns ends the operator: it is named, and counts as unknown, never as absent or idle (kube/lists.py)."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.build import at
from tests.fakes.running import running
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering
from tests.kube.objects import pod
from tests.wording import lacks

from gpusharing.kube.client import (
    JSON,
    NODES,
    PDBS,
    PODS,
    POLICIES,
    ApiRequest,
    KubeClient,
    WatchEvent,
)
from gpusharing.kube.errors import KubeError
from gpusharing.kube.fanout import Workers
from gpusharing.kube.nodepods import Budgets
from gpusharing.kube.policycache import PolicyCache
from gpusharing.kube.reflector import Reflector
from gpusharing.kube.sources import Sources
from gpusharing.kube.sourcesettings import SourceSettings


class Bug(dict[str, Any]):
    def get(self, key: str, default: Any = None) -> Any:
        if key == "deletionPolicy":
            return default
        raise ZeroDivisionError("a bug")

    def items(self) -> Any:
        raise ZeroDivisionError("a bug")


class Server(KubeClient):
    def __init__(self) -> None:
        self.items: list[Any] = []
        self.events: asyncio.Queue[WatchEvent] = asyncio.Queue()
        self.lists = 0

    async def call(self, request: ApiRequest) -> JSON:
        self.lists += request.verb == "list"
        return {"metadata": {"resourceVersion": "5"}, "items": list(self.items), "resources": []}

    async def stream(self, request: ApiRequest) -> AsyncIterator[WatchEvent]:  # type: ignore[override]  # a generator, as the protocol wants it called
        while True:
            yield await self.events.get()


def named(name: str, version: str = "5", **parts: Any) -> JSON:
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-of-{name}", "resourceVersion": version}
    return {"metadata": metadata, **parts}


def without(key: str, name: str = "odd") -> JSON:
    raw = named(name, "9")
    del raw["metadata"][key]
    return raw


FULL = {"nodeSelector": {"matchLabels": {"a": "b"}}, "mode": "Full"}
KINDS = (
    "nodes", "gpunodes", "agents", "agent_warnings", "operands", "config_maps", "cluster_policies", "daemon_sets",
    "gpu_clusters", "resource_slices", "kubelet_plugins", "device_classes", "taint_rules", "medik8s", "nvidia",
)  # fmt: skip


@asynccontextmanager
async def following(kind: str, *items: Any) -> AsyncIterator[tuple[Server, Sources, Reflector[Any]]]:
    server = Server()
    server.items = list(items)
    sources = Sources(server, SourceSettings(), lambda: None)
    optional = {"medik8s": "medik8s nodemaintenances", "nvidia": "nvidia nodemaintenances"}
    reflector = sources.optional[optional[kind]] if kind in optional else getattr(sources, kind)
    async with running(reflector.run()) as task:
        await asyncio.sleep(1)
        yield server, sources, reflector
        assert not task.done()


def key(kind: str, name: str) -> str:
    return f"ns/{name}" if kind == "nvidia" else name


NOBODY: dict[str, Any] = {
    "no version": without("resourceVersion"),
    "no uid": without("uid"),
    "no name": without("name"),
    "no metadata": {"metadata": None},
    "a word": "odd",
    "nothing": None,
}


@pytest.mark.parametrize("odd", NOBODY)
@pytest.mark.parametrize("kind", KINDS)
@virtually
async def test_a_list_with_an_object_that_could_be_any_shows_the_others_and_is_not_complete(
    kind: str, odd: str
) -> None:
    async with following(kind, NOBODY[odd], named("fine")) as (server, _, reflector):
        assert set(reflector.items) == {key(kind, "fine")}
        assert not reflector.synced.is_set()
        assert "without metadata." in str(reflector.error)
        server.items = [named("fine")]
        await asyncio.sleep(60)
        assert reflector.synced.is_set()
        assert reflector.error is None


EVENTS: dict[str, WatchEvent] = {
    "added without a version": WatchEvent("ADDED", NOBODY["no version"]),
    "added without a uid": WatchEvent("ADDED", NOBODY["no uid"]),
    "changed without a name": WatchEvent("MODIFIED", NOBODY["no name"]),
    "deleted without a uid": WatchEvent("DELETED", NOBODY["no uid"]),
    "a bookmark without a version": WatchEvent("BOOKMARK", {"metadata": {}}),
    "a bookmark with a number": WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": 7}}),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("kind", KINDS)
@virtually
async def test_an_event_about_an_object_that_could_be_any_is_followed_by_a_list(kind: str, event: str) -> None:
    async with following(kind, named("fine")) as (server, _, reflector):
        assert (reflector.synced.is_set(), server.lists) == (True, 1)
        server.items = [NOBODY["no uid"], named("fine")]
        server.events.put_nowait(EVENTS[event])
        await asyncio.sleep(1)
        assert "without metadata." in str(reflector.error)
        server.events.put_nowait(WatchEvent("ADDED", named("new", "10")))
        await asyncio.sleep(100)
        assert set(reflector.items) == {key(kind, "fine"), key(kind, "new")}, "others are followed"
        assert reflector.age > 100, "what was missed makes the view old, so that nothing starts on it"
        server.items = [named("fine"), named("new", "10")]
        await asyncio.sleep(60)
        assert (reflector.error, server.lists > 1) == (None, True)


@virtually
async def test_an_object_that_could_be_any_is_told_once_however_often_it_is_listed() -> None:
    server, told = Server(), list[str]()
    server.items = [NOBODY["no uid"], named("fine")]
    reflector = Reflector(server, NODES, lambda raw: "", on_error=told.append)
    async with running(reflector.run()):
        await asyncio.sleep(100)
        assert server.lists > 3
        server.items = []
        await asyncio.sleep(60)
    missing, error = told
    assert error == ""
    assert not lacks(missing, "nodes/odd", "namespace ns", "metadata.uid")


SAYS: dict[str, Callable[[Any], str]] = {
    "nodes": lambda view: "" if view.ready else view.fence_error,
    "gpunodes": lambda view: view.observed.error,
    "agents": lambda view: "" if view.ready else view.message,
    "operands": lambda view: "" if view.ready else "cannot be read",
    "kubelet_plugins": lambda view: "" if view.ready else "cannot be read",
}
"""What the views of the kinds say whose objects concern one node each. Other kinds concern all nodes."""
READ: dict[str, str] = {
    "nodes": "status", "gpunodes": "status", "agents": "status", "operands": "status", "kubelet_plugins": "status",
    "cluster_policies": "spec", "daemon_sets": "spec", "resource_slices": "spec", "device_classes": "spec",
    "taint_rules": "spec", "medik8s": "status", "nvidia": "status", "config_maps": "data",
}  # fmt: skip
"""A part of each kind that its conversion reads."""


def broken(kind: str, version: str) -> JSON:
    name = SourceSettings().plugin_config_map if kind == "config_maps" else "odd"
    labels = {"app": "nvidia-device-plugin-daemonset"}
    raw = named(name, version, **{READ[kind]: 5 if kind == "config_maps" else Bug({"a": 1})})
    raw["metadata"]["labels"] = labels
    return raw


@pytest.mark.parametrize("how", ["list", "watch"])
@pytest.mark.parametrize("kind", READ)
@virtually
async def test_an_object_that_cannot_be_converted_is_unknown_and_the_others_are_followed(
    kind: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    odd = broken(kind, "9")
    name = key(kind, odd["metadata"]["name"])
    async with following(kind, named("fine"), *([odd] if how == "list" else [])) as (
        server,
        sources,
        reflector,
    ):
        sources._dra_seen.set()
        sources.device_classes.synced.set()
        if how == "watch":
            server.events.put_nowait(WatchEvent("ADDED", odd))
            await asyncio.sleep(1)
        server.events.put_nowait(WatchEvent("ADDED", named("new", "10")))
        await asyncio.sleep(1)
        assert {key(kind, "fine"), key(kind, "new")} <= set(reflector.items)
        assert reflector.error is None
        if kind in SAYS:
            assert "cannot be read" in SAYS[kind](reflector.items[name])
        else:
            told = [why for why in sources.missing().values() if "cannot be read: " in why]
            assert len(told) == 1, "no pass runs on it"
            assert odd["metadata"]["name"] in told[0]
        server.events.put_nowait(WatchEvent("MODIFIED", named(odd["metadata"]["name"], "11")))
        await asyncio.sleep(1)
        assert reflector.unreadable == {}
        assert not [why for why in sources.missing().values() if "cannot be read" in why]
    told_of = [record for record in caplog.records if "cannot be read: " in record.message]
    assert all(record.exc_info and record.levelno == logging.ERROR for record in told_of)
    assert len(told_of) <= 1


@virtually
async def test_an_object_that_was_read_before_keeps_its_view_until_it_goes() -> None:
    plan = SourceSettings()
    mine = named(plan.plugin_config_map, "5", data={"a": "b"})
    async with following("config_maps", mine) as (server, sources, reflector):
        server.events.put_nowait(WatchEvent("MODIFIED", broken("config_maps", "9")))
        await asyncio.sleep(1)
        assert dict(reflector.items[plan.plugin_config_map].data) == {"a": "b"}
        assert "cannot be read" in sources.missing()["configmaps"]
        server.events.put_nowait(WatchEvent("DELETED", broken("config_maps", "10")))
        await asyncio.sleep(1)
        assert (dict(reflector.items), reflector.unreadable) == ({}, {})


@virtually
async def test_a_report_that_can_be_read_again_is_read_again() -> None:
    report = {"requestID": "r1"}
    odd = named("gpu-1", "9", status={"observed": report})
    odd["metadata"]["annotations"] = Bug({"a": 1})
    async with following("gpunodes", odd) as (server, _, reflector):
        assert "cannot be read" in reflector.items["gpu-1"].observed.error
        server.events.put_nowait(WatchEvent("MODIFIED", named("gpu-1", "10", status={"observed": report})))
        await asyncio.sleep(1)
        assert "cannot be read: ZeroDivisionError" not in reflector.items["gpu-1"].observed.error


@virtually
async def test_a_policy_that_cannot_be_converted_has_an_invalid_spec_and_is_not_gone() -> None:
    server = Server()
    server.items = [
        named("fine", spec=FULL),
        named("odd", spec=Bug({"a": 1})),
    ]
    fine, odd = await PolicyCache(server).refresh()
    assert (fine.name, fine.problems) == ("fine", ())
    assert (odd.name, odd.uid, odd.spec) == ("odd", "uid-of-odd", None)
    assert not lacks(str(odd.problems[0]), "gpusharingpolicies.gpusharing.dev/odd", "namespace ns", "ZeroDivisionError")


@virtually
async def test_policies_without_identity_leave_the_last_ones_in_place() -> None:
    server = Server()
    server.items = [named("fine", spec=FULL)]
    cache = PolicyCache(server)
    await cache.refresh()
    server.items = [{"metadata": None}]
    cache.touch()
    with pytest.raises(KubeError, match=POLICIES.full_name):
        await cache.refresh()
    assert [view.name for view in cache.views] == ["fine"]


@virtually
async def test_a_node_with_a_pod_that_cannot_be_converted_is_not_taken_for_empty() -> None:
    class Odd(Server):
        async def call(self, request: ApiRequest) -> JSON:
            if request.resource == PODS and request.verb == "list":
                return {
                    "metadata": {"resourceVersion": "5"},
                    "items": [{**pod("odd"), "status": Bug({"a": 1})}],
                }
            return await super().call(request)

    async with gathering((PODS, pod()), client=lambda *_: Odd()) as gathered:
        work = await gathered.work()
    assert work.pods == ()
    assert not lacks(work.error, "pods/odd", "namespace team-a", "ZeroDivisionError")
    assert work.listed_at == at(0)


@virtually
async def test_budgets_that_cannot_be_converted_are_not_absent() -> None:
    server = Server()
    server.items = [named("odd", spec=Bug({"a": 1}))]
    found = await Budgets(server, Workers(2)).find()
    assert isinstance(found, str)
    assert f"{PDBS.full_name}/odd in namespace ns " in found

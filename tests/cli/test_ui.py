"""`ui` (kubectl_gpusharing/usage/ui.py, kubectl_gpusharing/shell/loopback.py), by the program, in virtual time, and in a real browser."""

import asyncio
import http.client
import json
import re
import signal
import socket
import termios
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import quote, urlsplit

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.cli.asking import ME
from tests.cli.desk import END, SECONDS, Desk, read_until, terminal, wrong
from tests.cli.desk import GPUNODES as GPUNODES_PATH
from tests.cli.desk import POLICIES as POLICIES_PATH
from tests.cli.objects import gpunode, policy
from tests.cli.served import serving
from tests.cli.test_free import MIG, container, node, pod
from tests.cli.test_free import NODES as NODES_PATH
from tests.cli.test_free import PODS as PODS_PATH
from tests.cli.test_page import HOSTILE, Read
from tests.cli.test_watch import AFTER, BEFORE, CHANGED, publish, with_fleet
from tests.cli.window import Window
from tests.fakes.virtualtime import virtual_now, virtually
from tests.wording import lacks

from gpusharing.kube.client import GPUNODES, NODES, PODS, POLICIES
from gpusharing.kube.errors import Forbidden, Unavailable
from kubectl_gpusharing.pools.status import Followed, followed
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.loopback import HEADERS, Pages, route
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import INTERRUPTED
from kubectl_gpusharing.usage.ui import MOST, REREAD, Board

OWN_PODS_PATH = "/api/v1/namespaces/default/pods"


@pytest.fixture
def owned(desk: Desk) -> Desk:
    desk.server.lists[NODES_PATH] = [node(f"pool-b-{number}", allocatable={MIG: "4"}) for number in range(3)]
    held = {"team-b/ranker-7c4": "pool-b-1", "team-b/late": "", "team-a/one": "pool-b-0"}
    desk.server.lists[PODS_PATH] = [pod(name, at, container(mig=1)) for name, at in held.items()]
    for raw in desk.server.lists[GPUNODES_PATH]:
        desk.server.objects[f"{GPUNODES_PATH}/{raw['metadata']['name']}"] = raw
    return desk


# --- without script ----------------------------------------------------------------------------------------------


def test_the_pages_are_whole_without_script_and_lead_from_pools_to_tenants_and_to_why(owned: Desk) -> None:
    with serving(owned.environment()) as served:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", served.url)
        pools = served.read()
        for words in ("1 pool needs attention: pool-b.", "1/3 nodes, 24 GPUs", "Cards as they are now", "Reload"):
            assert words in pools.text
        targets = [one["href"] for one in pools.all("a")]
        assert {"./?subject=no%2Fpool-b-1", "./?subject=team-b%2Franker-7c4", "./?by=namespace"} <= set(targets)
        assert "Why no/pool-b-1" in (of_node := served.read("?subject=no%2Fpool-b-1").text)
        assert "PDB team-b/ranker: Pods team-b/ranker-7c4" in of_node
        assert "team-a" in served.read("?by=namespace").text
        by_pod = served.read("?by=pod")
        assert "./?subject=pod%2Fteam-b%2Flate" in [one["href"] for one in by_pod.all("a")]
        only = served.read("?policy=pool-c").text
        assert ("pool-c" in only, "pool-b" in only) == (True, False)
        assert served.end() == (INTERRUPTED, "")


def test_what_does_not_exist_or_may_not_be_read_is_a_sentence_on_the_page(owned: Desk) -> None:
    refused = 'nodes is forbidden: User "me" cannot list resource "nodes"'
    owned.server.refusals = dict.fromkeys((NODES_PATH, PODS_PATH, OWN_PODS_PATH), (403, refused))
    with serving(owned.environment()) as served:
        assert "no gpusharingpolicies/pool-x in context desk" in served.read("?policy=pool-x").text
        assert not lacks(served.read("?subject=pool-b-7").text, "gpunodes/pool-b-7", "context desk", "did you mean")
        assert "a/b/c/d names nothing that can be explained" in served.read("?subject=a/b/c/d").text
        assert 'cannot list resource "nodes"' in served.read("?by=namespace").text
        assert "1 pool needs attention" in served.read().text, "which needs no more than the viewer's rights"
        assert served.end() == (INTERRUPTED, "")


def test_what_a_person_or_a_cluster_says_is_text_and_no_markup(owned: Desk) -> None:
    owned.server.lists[PODS_PATH].append(pod(f"team-b/{HOSTILE}", "pool-b-0", container(mig=1)))
    with serving(owned.environment()) as served:
        for query in (f"?subject={quote(HOSTILE)}", "?by=pod", f"?policy={quote(HOSTILE)}"):
            read = served.read(query)
            assert "<script>alert(1)</script>" in read.text
            assert [one for one in read.all("script") if one.get("src") != "js"] == []
            assert read.all("img") == []


def test_a_large_fleet_lists_the_most_urgent_nodes_of_each_pool_and_leads_to_all(owned: Desk) -> None:
    owned.server.lists[POLICIES_PATH] = [policy(f"pool-{number:02}") for number in range(100)]
    large = [gpunode(f"n-{number:04}", policy="pool-00") for number in range(4900)]
    large[4321]["status"]["transition"]["phase"] = "Failed"
    rest = [gpunode(f"m-{number:02}", policy=f"pool-{number:02}") for number in range(1, 100)]
    owned.server.lists[GPUNODES_PATH] = large + rest
    with serving(owned.environment()) as served:
        first = served.read()
        listed = [one["href"] for one in first.all("a") if "subject=" in str(one["href"])]
        assert len(listed) == MOST + 99
        assert listed[0] == "./?subject=no%2Fn-4321", "the worst first"
        assert f"and {4900 - MOST} more nodes: pool-00" in first.text
        assert len([one for one in served.read("?policy=pool-00").all("a") if "subject=" in str(one["href"])]) == 4900


# --- who may read it ---------------------------------------------------------------------------------------------

HOST = "Host: 127.0.0.1:8321"
ASKED = {
    "of the page": ("GET /secret/?by=pod HTTP/1.1", [HOST], HTTPStatus.OK),
    "by name": ("GET /secret/ HTTP/1.1", ["host: LocalHost:80"], HTTPStatus.OK),
    "in IPv6, without a port": ("GET /secret/ HTTP/1.1", ["Host: [::1]"], HTTPStatus.OK),
    "without the token": ("GET / HTTP/1.1", [HOST], HTTPStatus.FORBIDDEN),
    "with another token": ("GET /guess/ HTTP/1.1", [HOST], HTTPStatus.FORBIDDEN),
    "with a token that is not ASCII": ("GET /s\u00e9cret/ HTTP/1.1", [HOST], HTTPStatus.FORBIDDEN),
    "of a page that was made to lead here": (
        "GET /secret/ HTTP/1.1",
        ["Host: 127.0.0.1.evil.example"],
        HTTPStatus.FORBIDDEN,
    ),
    "of two hosts": ("GET /secret/ HTTP/1.1", [HOST, "Host: evil.example"], HTTPStatus.FORBIDDEN),
    "of no host": ("GET /secret/ HTTP/1.1", [], HTTPStatus.FORBIDDEN),
    "to write": ("POST /secret/ HTTP/1.1", [HOST], HTTPStatus.METHOD_NOT_ALLOWED),
    "of a page that is not there": ("GET /secret/etc/passwd HTTP/1.1", [HOST], HTTPStatus.NOT_FOUND),
    "as a proxy": ("GET http://127.0.0.1/secret/ HTTP/1.1", [HOST], HTTPStatus.BAD_REQUEST),
    "of garbage": ("\x16\x03\x01", [], HTTPStatus.BAD_REQUEST),
    "of an address that is none": ("GET //[ HTTP/1.1", [HOST], HTTPStatus.FORBIDDEN),
}


@pytest.mark.parametrize("name", ASKED)
async def test_only_a_request_with_the_token_to_loopback_is_answered(name: str) -> None:
    first, rows, expected = ASKED[name]

    async def here(query: object) -> AsyncIterator[str]:
        yield f"here: {query}"

    pages: Pages = {"": here}  # type: ignore[dict-item]  # a generator
    status, _, content = route(pages, "secret", "\r\n".join([first, *rows, "", ""]))
    pieces = [piece async for piece in content]
    assert status is expected
    assert ("here: " in pieces[0]) is (status is HTTPStatus.OK)


def test_every_answer_keeps_others_from_framing_storing_and_loading_it(owned: Desk) -> None:
    with serving(owned.environment()) as served:
        host, path = urlsplit(served.url).netloc, urlsplit(served.url).path
        for place, status in ((path, 200), (f"{path}js", 200), ("/", 403)):
            connection = http.client.HTTPConnection(host, timeout=SECONDS)
            connection.request("GET", place)
            answer = connection.getresponse()
            assert answer.status == status
            assert {f"{name}: {value}" for name, value in answer.getheaders()} >= set(HEADERS)
            rules = str(answer.getheader("Content-Security-Policy"))
            for rule in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"):
                assert rule in rules
            assert "unsafe" not in rules
            connection.close()
        with socket.create_connection(host.split(":"), timeout=SECONDS) as far:  # type: ignore[arg-type]  # a list
            far.sendall(b"GET / HTTP/1.1\r\n" + b"x" * 100_000)
            assert far.recv(10) == b"", "a head that is too long is not read"
        assert served.end() == (INTERRUPTED, "")


# --- what goes wrong before there is a page ----------------------------------------------------------------------


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none_is_named_with_one_that_is(desk: Desk, port: str) -> None:
    told = wrong(desk, "ui", f"--port={port}")
    assert not lacks(told, f"--port {port}", "0 to 65535", "--port 8321")


def test_a_port_that_is_taken_is_named(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 cannot be used: " in wrong(desk, "ui", "--port", str(port))


def test_a_cluster_that_cannot_be_read_ends_the_command_with_a_sentence(desk: Desk) -> None:
    desk.server.refusals = {GPUNODES_PATH: (403, 'User "me" cannot list resource "gpunodes"')}
    assert 'cannot list resource "gpunodes"' in wrong(desk, "ui")
    desk.server.refusals, desk.server.lists = {}, {}
    assert "helm install gpusharing" in wrong(desk, "ui")
    desk.write_kubeconfig("http://127.0.0.1:9")
    assert "does not respond" in wrong(desk, "ui")


def test_a_proxy_that_refuses_ends_the_command_with_a_sentence(desk: Desk) -> None:
    """SIMULATED: a proxy that answers every request with 403, as the server of the desk does here."""
    desk.server.refuses_all = (403, "the proxy refuses")
    config = json.loads(desk.kubeconfig.read_text())
    config["clusters"][0]["cluster"] = {"server": "http://api.example.com", "proxy-url": desk.url}
    desk.kubeconfig.write_text(json.dumps(config))
    assert "you lack a permission in context desk" in wrong(desk, "ui")


def test_several_contexts_are_refused(desk: Desk) -> None:
    assert not lacks(wrong(desk, "ui", "--contexts", "a,b"), "ui", "--context a")


def test_on_a_terminal_of_40_columns_only_the_address_is_longer_and_ctrl_c_ends_it(desk: Desk) -> None:
    with terminal(desk, "ui", "--no-color", COLUMNS="40") as (process, screen):
        termios.tcsetwinsize(screen, (24, 40))
        said = read_until(screen, "Ctrl-C ends it.").replace("\r", "")
        process.send_signal(signal.SIGINT)
        rest = read_until(screen, END)
        assert process.wait(SECONDS) == INTERRUPTED
    address, *lines = said.splitlines()
    assert address.startswith("http://127.0.0.1:")
    assert max(map(len, lines)) <= 40
    assert "Traceback" not in rest


# --- in virtual time ---------------------------------------------------------------------------------------------


@dataclass
class Page:
    events: AsyncIterator[str]
    main: str = ""
    as_of: str = ""
    sent: list[str] = field(default_factory=list)

    async def until(self, words: str) -> str:
        async with asyncio.timeout(36_000):
            while words not in self.main:
                await self.step()
        return self.main

    async def step(self) -> None:
        for event in (await anext(self.events)).strip().split("\n\n"):
            kind, _, data = event.partition("\ndata: ")
            if kind == "event: page":
                self.sent.append(data)
                self.main = Read(data).text
            elif kind == "event: current":
                self.as_of = data


@asynccontextmanager
async def board(cluster: FakeCluster) -> AsyncIterator[tuple[Board, Followed]]:
    session = Session(cluster.client(ME), "context test", now=virtual_now)
    async with followed(session, await session.lists(POLICIES, GPUNODES)) as follows:
        yield Board(session, Arguments(verb="ui"), follows), follows


@virtually
async def test_a_change_is_sent_to_all_open_pages_of_which_the_cluster_is_read_once() -> None:
    cluster = with_fleet()
    async with board(cluster) as (pages, _):
        streams = [pages.pages["events"]({}) for _ in range(3)]
        shown = [Page(stream) for stream in streams]
        for one in shown:
            await one.until(BEFORE)
        publish(cluster, nodes="2/3")
        for one in shown:
            assert AFTER in await one.until(AFTER)
            assert len(one.sent) == 2
        calls = {key: count for key, count in cluster.faults.calls.items() if key[0] == ME}
        assert {count for (_, verb, _), count in calls.items() if verb == "watch"} == {1}
        assert {count for (_, verb, _), count in calls.items() if verb == "list"} == {2}, "at first, and to follow"
        for stream in streams:
            await stream.aclose()


@virtually
async def test_while_nothing_happens_only_ages_are_sent() -> None:
    cluster = FakeCluster()
    cluster.add(POLICIES, policy("pool-c", status="Synced", message=""))
    async with board(cluster) as (pages, _), aclosing(pages.pages["events"]({})) as events:
        page = Page(events)
        await page.until("pool-c")
        first = page.as_of
        for _ in range(20):
            await page.step()
        assert len(page.sent) == 1
        assert page.as_of > first, "it still says until when that is known"


@virtually
async def test_a_page_says_that_the_cluster_is_lost_and_how_old_it_is_until_it_is_found_again() -> None:
    cluster = with_fleet()
    async with board(cluster) as (pages, _), aclosing(pages.pages["events"]({})) as events:
        page = Page(events)
        await page.until(BEFORE)
        refusal = Unavailable("503 Service Unavailable")
        faults = [
            cluster.faults.fail(verb, kind, refusal, times=EVER, identity=ME)
            for kind in (POLICIES, GPUNODES)
            for verb in ("list", "watch")
        ]
        lost = await page.until("This may be out of date: ")
        assert "503 Service Unavailable" in lost
        assert BEFORE in lost, "what is known is still there"
        await page.until("The last answer came 5m ago")
        for fault in faults:
            fault.lift()
        publish(cluster, nodes="2/3")
        await page.until(AFTER)
        while "This may be out of date" in page.main:
            await page.step()


@virtually
async def test_nodes_and_pods_are_read_again_only_while_a_page_shows_them() -> None:
    cluster = with_fleet()
    cluster.add(NODES, node("pool-b-0", allocatable={MIG: "4"}))
    async with board(cluster) as (pages, _), aclosing(pages.pages["events"]({"by": "namespace"})) as events:
        page = Page(events)
        assert "No pod requests a GPU resource." in await page.until("No pod")
        cluster.add(PODS, pod("team-a/llm-0", "pool-b-0", container(mig=1)))
        await page.until("team-a")
    calls = cluster.faults.calls[ME, "list", "pods"]
    await asyncio.sleep(10 * REREAD)
    assert cluster.faults.calls[ME, "list", "pods"] == calls > 1


@virtually
async def test_a_right_that_is_missing_is_named_on_an_open_page_until_it_is_there() -> None:
    cluster = with_fleet()
    refusal = Forbidden('User "me" cannot list resource "nodes"')
    faults = [cluster.faults.fail("list", kind, refusal, times=EVER, identity=ME) for kind in (NODES, PODS)]
    async with board(cluster) as (pages, _), aclosing(pages.pages["events"]({"by": "pod"})) as events:
        page = Page(events)
        await page.until('cannot list resource "nodes"')
        for fault in faults:
            fault.lift()
        await page.until("No pod requests a GPU resource.")


@virtually
async def test_a_fault_of_one_page_is_a_sentence_there() -> None:
    cluster = with_fleet()
    async with board(cluster) as (pages, _):
        cluster.add(PODS, pod("team-b/llm-0", "", container(mig=1)))
        broken = Board(pages.session, None, pages.cluster)  # type: ignore[arg-type]  # the fault
        async with aclosing(broken.pages[""]({"subject": "pod/llm-0"})) as content:
            assert "Unexpected error: " in Read(await anext(content)).text


# --- in a real browser -------------------------------------------------------------------------------------------


FOCUS = "document.activeElement.getAttribute('href')"


@pytest.mark.tools
async def test_a_browser_shows_changes_by_itself_and_keeps_the_focus_where_it_is(owned: Desk, browser: Window) -> None:
    with serving(owned.environment()) as served:
        await browser.open(served.url)
        await browser.until("document.querySelector('#state').textContent.includes('by themselves')")
        await browser.value("document.querySelector('a[href*=\"pool-b-1\"]').focus()")
        held = await browser.value(FOCUS)
        failed = gpunode("pool-b-0", "Failed", "ApplyFailed", message="mig-parted refused")
        owned.server.modify(GPUNODES_PATH, failed)
        owned.server.modify(POLICIES_PATH, CHANGED)
        news = "text.includes('2/3 nodes') && text.includes('ApplyFailed') && text"
        text = await browser.until(f"(text => {news})(document.body.innerText)")
        assert text.index("pool-b-0\tFailed") < text.index("pool-b-2\tBlocked"), "the worst first"
        assert await browser.value(FOCUS) == held, "though its row has moved"
        assert browser.troubles == []
        assert all(one.startswith(served.url) for one in browser.requested)
        assert served.end() == (INTERRUPTED, "")
        await browser.until("document.querySelector('#state').textContent.includes('is lost')")
        assert "2/3 nodes" in await browser.value("document.body.innerText")


@pytest.mark.tools
async def test_a_keyboard_suffices_and_400_pixels_and_no_color(owned: Desk, browser: Window) -> None:
    with serving(owned.environment()) as served:
        await browser.open(served.url)
        for width in (400, 1280):
            for query in ("", "?by=namespace", "?by=pod", "?subject=no%2Fpool-b-1"):
                await browser.open(served.url + query)
                await browser.resize(width)
                assert await browser.value("document.documentElement.scrollWidth") <= width
        await browser.open(served.url)
        forced = [{"name": "forced-colors", "value": "active"}, {"name": "prefers-color-scheme", "value": "dark"}]
        await browser.ask("Emulation.setEmulatedMedia", features=forced)
        text = await browser.value("document.body.innerText")
        for word in ("1 done", "1 under way", "1 blocked", "Draining", "Blocked"):
            assert word in text, "states are words"
        reached = set()
        for _ in range(40):
            await browser.press("Tab", 9)
            reached.add(await browser.value(FOCUS))
            assert await browser.value("getComputedStyle(document.activeElement).outlineStyle") != "none"
            if await browser.value(FOCUS) == "./?subject=no%2Fpool-b-1":
                break
        assert {"./", "./?by=namespace", "./?by=pod"} <= reached
        await browser.press("Enter", 13)
        await browser.until("document.body?.innerText.includes('Why no/pool-b-1')")
        assert browser.troubles == []


@pytest.mark.tools
async def test_without_script_a_browser_shows_the_whole_page(owned: Desk, browser: Window) -> None:
    with serving(owned.environment()) as served:
        await browser.ask("Emulation.setScriptExecutionDisabled", value=True)
        await browser.open(served.url)
        text = await browser.value("document.body.innerText")
        assert "Reload to see changes" in text
        assert "team-b/ranker-7c4 +1" in text
        assert [one.removeprefix(served.url) for one in browser.requested] == [""]

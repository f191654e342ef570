"""A window of a real browser, driven by its own protocol (https://chromedevtools.github.io/devtools-protocol/)."""

import asyncio
import base64
import itertools
import os
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from hack.browser import Browser

PATIENCE = 120.0
"""Seconds for one answer, on a machine that does other things too: a first start reads 200 MB."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-port=0",
)
TROUBLES = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}


@dataclass
class Window:
    socket: aiohttp.ClientWebSocketResponse
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    troubles: list[str] = field(default_factory=list)
    """What the page wrote into the console, and what went wrong in it."""
    requested: list[str] = field(default_factory=list)
    loaded: bool = False

    async def ask(self, method: str, **parameters: Any) -> Any:
        """Call the browser; what happens meanwhile is written down."""
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(PATIENCE):
            while True:
                told = await self.socket.receive_json()
                if told.get("id") == number:
                    assert "error" not in told, told
                    return told["result"]
                self._note(told)

    def _note(self, told: Any) -> None:
        if told["method"] in TROUBLES:
            self.troubles.append(str(told["params"]))
        elif told["method"] == "Network.requestWillBeSent":
            self.requested.append(told["params"]["request"]["url"])
        elif told["method"] == "Page.loadEventFired":
            self.loaded = True

    async def open(self, place: Path | str) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.ask(f"{domain}.enable")
        self.loaded = False
        await self.ask("Page.navigate", url=place if isinstance(place, str) else place.as_uri())
        async with asyncio.timeout(PATIENCE):
            while not self.loaded:
                self._note(await self.socket.receive_json())

    async def resize(self, width: int, *, dark: bool = False) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme])

    async def value(self, expression: str) -> Any:
        told = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, expression: str) -> Any:
        """What an expression of JavaScript is as soon as it is true."""
        async with asyncio.timeout(PATIENCE):
            while not (found := await self.value(expression)):  # noqa: ASYNC110 - the page sets no event of ours
                await asyncio.sleep(0.05)
        return found

    async def press(self, key: str, code: int) -> None:
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.ask("Input.dispatchKeyEvent", type="keyDown", text="\r" if key == "Enter" else "", **named)
        await self.ask("Input.dispatchKeyEvent", type="keyUp", **named)

    async def picture(self) -> bytes:
        told = await self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(told["data"])


@asynccontextmanager
async def window(browser: Browser) -> AsyncIterator[Window]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        process = await asyncio.create_subprocess_exec(
            str(browser.program),
            *FLAGS,
            f"--user-data-dir={home}",
            "about:blank",
            env={**os.environ, "HOME": home, "LD_LIBRARY_PATH": browser.libraries},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            port = await _port(process)
            async with aiohttp.ClientSession() as session:
                page = await _page(session, f"http://127.0.0.1:{port}/json/list")
                async with session.ws_connect(page, max_msg_size=0) as socket:
                    yield Window(socket)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def _page(session: aiohttp.ClientSession, pages: str) -> str:
    """The socket of its one page: a browser listens before that is there."""
    async with asyncio.timeout(PATIENCE):
        while True:
            async with session.get(pages) as answer:
                for one in await answer.json():
                    if one["type"] == "page":
                        return str(one["webSocketDebuggerUrl"])
            await asyncio.sleep(0.02)


async def _port(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(PATIENCE):
        while line := await process.stderr.readline():
            said += line
            if found := re.search(rb"DevTools listening on ws://[\d.]+:(\d+)/", line):
                return int(found[1])
    raise AssertionError(f"the browser ended: {said.decode()}")

"""`ui`: serve the page of `status -o html` with the slices of each tenant, and `why` at a click.

It is served on loopback. Open pages about pools and slices are kept up to date by server-sent events. However many are
open, they share what was read from the cluster. A page of `why` is read anew for each request, and not updated.
"""

import asyncio
import tempfile
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from time import process_time
from urllib.parse import urlencode

from gpusharing.api.times import to_rfc3339
from gpusharing.kube.client import GPUNODES, POLICIES
from gpusharing.kube.clock import loop_time
from kubectl_gpusharing.diagnosis import why
from kubectl_gpusharing.pools.page import overview
from kubectl_gpusharing.pools.status import TICK, Followed, followed
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import AddressData
from kubectl_gpusharing.shell.drawing import Ink, Line, length, line, prose
from kubectl_gpusharing.shell.loopback import Content, listening
from kubectl_gpusharing.shell.markup import HTML_OPTIONS, Markup, document, flow, frame, tag
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import Trouble, sentence
from kubectl_gpusharing.usage.free import describe, read_inventory
from kubectl_gpusharing.usage.holdings import Inventory

MOST = 20
"""How many nodes of a pool the first page lists; the page of the pool lists all."""
AGES = 10
"""Seconds after which an open page is drawn again without a change, because it shows ages."""
REREAD = 30.0
"""Seconds after which Nodes and Pods are read again for an open page."""
KINDS = {"NODE": "no/", "CLOSED NODE": "no/", "POD": "pod/", "WAITING POD": "pod/", "CULPRIT": ""}
"""What precedes the names in a column with this heading, so that `why` knows their kind."""
LINKS = {"Pools": "./", "Slices by tenant": "./?by=namespace", "Slices by pod": "./?by=pod"}
"""The pages that every page links, by their names."""
SCRIPT = """"use strict";
const main = document.querySelector("main"), state = document.querySelector("#state");
const source = new EventSource("events" + location.search);
function change(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || old.nodeType !== 1) return old.replaceWith(fresh);
  for (const one of old.getAttributeNames()) if (!fresh.hasAttribute(one)) old.removeAttribute(one);
  for (const one of fresh.attributes) old.setAttribute(one.name, one.value);
  const before = [...old.childNodes], after = [...fresh.childNodes];
  after.forEach((one, index) => index < before.length ? change(before[index], one) : old.append(one));
  before.slice(after.length).forEach((one) => one.remove());
}
source.addEventListener("page", (event) => {
  const link = document.activeElement.getAttribute("href");
  change(main, new DOMParser().parseFromString(event.data, "text/html").querySelector("main"));
  [...main.querySelectorAll("a")].find((one) => one.getAttribute("href") === link)?.focus();
});
source.addEventListener("current", (event) => state.textContent = `As of ${event.data}. Changes appear by themselves.`);
source.onerror = () => state.textContent = "The connection to kubectl gpusharing ui is lost: this may be out of date.";
"""
"""Changes the elements that differ, so that a reader's place stays. A link keeps the focus, even if its row moves."""


def link(title: str, text: str) -> str:
    """Return a cell below the heading `title`: a link to a policy's page or to what `why` says, or plain text."""
    word, kind = text.partition(" ")[0], KINDS.get(title)
    if title != "POLICY" and (kind is None or word in ("", "-") or (title == "CULPRIT" and "/" not in word)):
        return text
    query = {"policy": word} if kind is None else {"subject": kind + word}
    return tag("a", text, href=f"./?{urlencode(query)}")


class Board:
    """The pages of `ui`: `pages` has, by name, the functions that yield their content."""

    def __init__(self, session: Session, typed: Arguments, cluster: Followed) -> None:
        self.session, self.typed, self.cluster = session, typed, cluster
        self.pages = {"": self._page, "events": self._events, "js": self._script}
        self._reading, self._read_at = asyncio.Lock(), float("-inf")
        self._found: Inventory | Trouble = Inventory()

    async def _script(self, _: Mapping[str, str]) -> Content:
        yield SCRIPT

    async def _page(self, query: Mapping[str, str]) -> Content:
        main = await self._main(query)
        title, state = f"GPU pools of {self.session.name}", f"As of {self._as_of()}. Reload to see changes."
        word = tag("input", name="subject", required="", placeholder="gpu-07 or team-a/llm-0")
        label = tag("label", "Why is this node, pod or workload not ready? ", word)
        links = (tag("a", text, href=href) for text, href in LINKS.items())
        nav = tag("nav", *links, tag("form", label, tag("button", "Explain")))
        note = tag("p", state, id="state", role="status", class_="faint")
        script = [] if "subject" in query else [tag("script", src="js", defer="")]
        yield frame(title, script, tag("h1", title), nav, note, main)

    async def _events(self, query: Mapping[str, str]) -> Content:
        shown, origin = "", None
        while True:
            begin = process_time()
            if origin != (state := (self.cluster.known(), self.cluster.error, loop_time() // AGES)):
                main = await self._main(query)
                if main != shown:
                    yield f"event: page\ndata: {main}\n\n"
                yield f"event: current\ndata: {self._as_of()}\n\n"
                shown, origin = main, state
            await asyncio.sleep(max(TICK, 4 * (process_time() - begin)))

    def _as_of(self) -> str:
        return to_rfc3339(self.session.now() - self.cluster.silence)

    async def _main(self, query: Mapping[str, str]) -> Markup:
        try:
            return tag("main", *await self._draw(query))
        except Trouble as trouble:
            text = f"{trouble}."
        except Exception as error:  # noqa: BLE001 - a fault of one page must not end the others
            text = f"Unexpected error: {type(error).__name__}: {error}. Please report it."
        return tag("main", tag("p", text, class_="bad"))

    async def _draw(self, query: Mapping[str, str]) -> list[Markup]:
        if subject := query.get("subject", "").strip():
            typed = Arguments(verb="why", subjects=(subject,), namespace=self.typed.namespace)
            (_, _, lines), _ = await why.explain(self.session, typed)
            return [tag("h2", f"Why {subject}"), *flow(lines(HTML_OPTIONS), link)]
        if by := query.get("by"):
            title = f"Slices by {'pod' if by == 'pod' else 'tenant'}"
            return [tag("h2", title), *flow(await self._tenants(by), link)]
        policy, parts = query.get("policy", ""), list[Markup]()
        chosen = Arguments(verb="status", policies=(policy,) if policy else ())
        if (error := self.cluster.error) is not None:
            lag = f"The last answer came {length(self.cluster.silence)} ago; ui goes on trying"
            text = f"This may be out of date: {sentence(error, self.session.where)}. {lag}."
            parts = flow(prose(text, HTML_OPTIONS, ink=Ink.BAD))
        return parts + overview(self.session, self.cluster.known(), chosen, None if policy else MOST, link)

    async def _tenants(self, by: str) -> Sequence[Line]:
        async with self._reading:
            if loop_time() - self._read_at > REREAD:
                try:
                    self._found = await read_inventory(self.session, self.typed.namespace, "")
                except Trouble as trouble:
                    self._found = trouble
                self._read_at = loop_time()
        if isinstance(self._found, Trouble):
            raise self._found
        by, age = "pod" if by == "pod" else "namespace", timedelta(seconds=loop_time() - self._read_at)
        self._found.by = by
        lines = prose(f"Nodes and Pods were read {length(age)} ago.", HTML_OPTIONS, ink=Ink.FAINT)
        return lines + describe(self._found, self.session.now(), HTML_OPTIONS)


async def run(session: Session, typed: Arguments, terminal: Terminal) -> int:
    if not 0 <= typed.port < 65536:
        raise Trouble(f"--port {typed.port} is not a port: pass a number from 0 to 65535, such as --port 8321")
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(followed(session, await session.lists(POLICIES, GPUNODES)))
        pages = Board(session, typed, cluster).pages
        url = await stack.enter_async_context(listening(pages, typed.port))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        hint = f"This address shows {session.where} with your rights to whoever on this machine has it. Ctrl-C ends it."
        terminal.answer(
            AddressData,
            lambda: {"context": session.name, "url": url},
            lambda options: [line(url), *prose(hint, options)],
        )
        if typed.open:
            # A page leads to the address, which other users could see among the arguments of the browser.
            file = Path(folder) / "open.html"
            file.write_text(document(tag("html", tag("meta", http_equiv="refresh", content=f"0;url={url}"))))
            if not await asyncio.to_thread(webbrowser.open, file.as_uri()):
                terminal.warn("no browser could be started. Open the address yourself")
        endless: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        return await endless  # until Ctrl-C cancels it

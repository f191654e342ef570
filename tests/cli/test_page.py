"""The page of `status -o html` (kubectl_gpusharing/pools/page.py), and the picture of the plugin, which says what the plugin says."""

import os
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hack.generate_picture import COLORS, PATH, picture, svg
from hack.sim.fakecluster import FakeCluster
from tests.build import NOW
from tests.cli.desk import Desk, wrong
from tests.cli.objects import fleet, gpunode, history, policy
from tests.cli.window import Window

from kubectl_gpusharing.pools.fleet import State
from kubectl_gpusharing.pools.page import MARKS, card, divide, page, read_cards, read_sizes
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.drawing import Column, Ink, PrintOptions, Span, line, table
from kubectl_gpusharing.shell.markup import CSS, VOID, document, flow, tag
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import DONE

JSON = dict[str, Any]
HOSTILE = "</td></style><script>alert(1)</script><img src=//evil.example/x onerror=alert(2)> \" ' & \x1b[31m \u202e"


class Read(HTMLParser):
    """What a reader of HTML finds: elements with their attributes, and text; every element has its end."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, Mapping[str, str | None]]] = []
        self.text = ""
        self.depth: list[str] = []
        self.feed(text)
        self.close()
        assert self.depth == [], "elements without an end"

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((name, dict(attributes)))
        if name not in VOID:
            self.depth.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self.depth.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data if self.depth[-1:] != ["style"] else ""

    def all(self, name: str) -> list[Mapping[str, str | None]]:
        return [attributes for one, attributes in self.found if one == name]


PROFILES = "1g.10gb id=19 max=7 placements={0,1,2,3,4,5,6}:1; 3g.40gb id=9 max=2 placements={0,4}:4"


def divided(raw: JSON, layout: str) -> JSON:
    observed = raw["status"]["observed"]
    observed["models"] = [{"product": "NVIDIA H100 80GB HBM3", "gpus": "0-7", "profiles": PROFILES}]
    for gpu in observed["gpus"]:
        gpu["mig"] = f"{layout}@0123456789abcdef"
    return raw


def shown(policies: list[JSON], nodes: list[JSON]) -> str:
    session = Session(FakeCluster().client("a-person"), "context desk", now=lambda: NOW)
    return page(session, (policies, nodes), Arguments(verb="status"))


def fleet_in_pieces() -> tuple[list[JSON], list[JSON]]:
    policies, nodes = fleet()
    divided(nodes[0], "2x3g.40gb")
    divided(nodes[1], "7x1g.10gb")
    way = history(("Pending", 60), ("Cordoned", 6), ("WaitingForJobs", 5), ("Draining", 4))
    nodes[1]["status"]["transition"]["history"] = way
    return policies, nodes


def test_the_page_has_the_pools_their_nodes_the_rollout_and_the_cards() -> None:
    read = Read(shown(*fleet_in_pieces()))
    for told in (
        "pool-b",
        "1/3 nodes, 24 GPUs, 1920 GB, 27/32 devices used",
        "team-b/ranker-7c4 +1",
        "4m",
        "in 11m",
        "1 pool needs attention: pool-b.",
        "2 pools: 1 done, 1 blocked; 4 nodes: 2 done, 1 under way, 1 blocked; 32 GPUs with 2560 GB of memory",
    ):
        assert told in read.text
    labels = [told["aria-label"] for told in read.all("svg")]
    assert "3 nodes: 1 done, 1 under way, 1 blocked" in labels
    assert "2 3g.40gb" in labels
    assert any(label and label.endswith("Draining from 09:56:00Z") for label in labels)
    assert "d Draining" in read.text


def test_the_page_says_which_nodes_are_simulated() -> None:
    policies, nodes = fleet_in_pieces()
    assert "SIMULATED" not in shown(policies, nodes)
    nodes[1]["status"]["observed"]["simulated"] = True
    told = "SIMULATED: pool-b-1 has no real GPUs, and the numbers about it here come from a simulator."
    assert told in Read(shown(policies, nodes)).text


def test_the_page_is_one_that_needs_nothing_from_elsewhere() -> None:
    text = shown(*fleet_in_pieces())
    read = Read(text)
    names = {name for name, _ in read.found}
    assert names.isdisjoint({"script", "link", "img", "iframe", "image", "use", "a"})
    assert not any(key in told for _, told in read.found for key in ("src", "href", "srcset"))
    assert "url(" not in CSS
    assert "@import" not in CSS
    assert "default-src 'none'" in str(read.all("meta"))


def test_who_cannot_see_has_a_language_a_title_headers_of_tables_and_words_for_pictures() -> None:
    read = Read(shown(*fleet_in_pieces()))
    assert read.all("html")[0]["lang"] == "en"
    assert read.text.strip().startswith("GPU pools of desk")
    tables = len(read.all("table"))
    assert tables == len(read.all("caption")) == len(read.all("thead")) > 3
    assert {told["scope"] for told in read.all("th")} == {"row", "col"}
    assert all(told["role"] == "img" and told["aria-label"] for told in read.all("svg"))
    ids = [told["id"] for _, told in read.found if "id" in told]
    assert {told.get("aria-labelledby") for told in read.all("section")} == set(ids)


def test_whatever_a_cluster_says_is_text_and_no_markup() -> None:
    policies, nodes = fleet_in_pieces()
    honest = [name for name, _ in Read(shown(policies, nodes)).found]

    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(one) for key, one in value.items()}
        if isinstance(value, list):
            return [spoil(one) for one in value]
        return value + HOSTILE if isinstance(value, str) and not value.endswith("Z") else value

    kept = {"phase": None, "policy": None}
    spoiled = []
    for raw in nodes:
        told = raw["status"]["transition"]
        kept = {key: told[key] for key in ("phase", "policy")}
        made = spoil(raw)
        made["status"]["transition"].update(policy=spoil(kept["policy"]), phase=kept["phase"])
        spoiled.append(made)
    text = shown([spoil(raw) for raw in policies], spoiled)
    read = Read(text)
    # Messages that were empty have words now: there are more paragraphs, and nothing else is new.
    assert {name for name, _ in read.found} <= set(honest) | {"p"}
    assert "<script>alert(1)</script>" in read.text
    assert {key for _, told in read.found for key in told}.isdisjoint({"onerror", "src"})
    assert "\x1b" not in read.text
    assert "\u202e" not in read.text
    assert text.isascii()


def test_text_of_a_cluster_cannot_end_an_attribute_and_the_style_sheet_not_its_element() -> None:
    assert "<" not in CSS
    read = Read(document(tag("svg", aria_label='" onload="alert(1)')))
    assert read.found == [("svg", {"aria-label": '" onload="alert(1)'})]


def test_every_state_has_a_mark_and_a_colour_of_its_own() -> None:
    assert len(set(MARKS.values())) == len(State)
    for name in (state.name.lower() for state in State):
        assert CSS.count(f"--{name}:") == CSS.count(f"--{name}-ink:") == 2, "in light and in dark"


def luminance(color: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("ink", ["done", "moves", "waits", "blocked", "failed", "slice"])
def test_marks_can_be_read_on_their_colours_in_light_and_in_dark(ink: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    for scheme in (0, 1):
        colors = [CSS.split(f"--{name}:")[scheme + 1][:7] for name in (ink, f"{ink}-ink")]
        dark, light = sorted(map(luminance, colors))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colors


def test_a_card_shows_its_slices_by_their_size_and_what_is_left() -> None:
    drawn = card(*divide((("3g.40gb", 1), ("1g.10gb", 2)), read_sizes(PROFILES), ""))
    rects = [(told["x"], told["width"]) for told in Read(document(drawn)).all("rect")[1:]]
    assert rects == [("0.00%", "50.00%"), ("50.00%", "12.50%"), ("62.50%", "12.50%")]


def test_a_card_whose_slices_have_no_known_size_shows_them_as_equal() -> None:
    drawn = card(*divide((("3g.40gb", 1), ("1g.10gb", 1)), read_sizes("3g.40gb max=2"), ""))
    rects = [(told["x"], told["width"]) for told in Read(document(drawn)).all("rect")[1:]]
    assert rects == [("0.00%", "50.00%"), ("50.00%", "50.00%")]


def test_cards_that_look_the_same_are_drawn_once() -> None:
    nodes = [divided(gpunode(f"n-{number}"), "1x3g.40gb") for number in range(3)]
    (((_, label, pieces), names),) = read_cards(nodes)["pool-b"].items()
    assert (len(names), sorted({*names})) == (24, ["n-0", "n-1", "n-2"])
    assert (label, pieces) == ("1 3g.40gb", (("3g.40gb", 0.0, 50.0),))


def test_a_fleet_without_policies_has_a_page_too() -> None:
    read = Read(shown([], [gpunode("gpu-99", policy="")]))
    assert "There is no GPUSharingPolicy." in read.text
    assert "1 node with GPUs and no policy: gpu-99" in read.text


def test_one_gpu_is_not_called_gpus() -> None:
    read = Read(shown([policy(nodes="1/1", gpus=1, used="0/1")], []))
    assert "1/1 nodes, 1 GPU, 80 GB, 0/1 devices used" in read.text


def test_the_program_writes_the_page(desk: Desk) -> None:
    said = desk.type("status", "-o", "html")
    assert (said.status, said.err) == (DONE, "")
    assert said.out.startswith("<!doctype html>\n<html lang=")
    assert "pool-b" in Read(said.out).text


REFUSED = {
    "of another verb, before it": (("-o", "html", "plan"), "-o html cannot be used with plan; it supports table, wide"),
    "that is watched": (("status", "-w", "-o", "html"), "one page for one context"),
    "of two contexts": (("status", "-o", "html", "--contexts", "a,b"), "one page for one context"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_there_is_no_page(desk: Desk, which: str) -> None:
    arguments, told = REFUSED[which]
    assert told in wrong(desk, *arguments)


# --- in a real browser -------------------------------------------------------------------------------------------


def test_what_several_nodes_share_is_one_paragraph_of_the_page() -> None:
    nodes = [gpunode(f"gpu-{number}", "Blocked", "Waits", message="waits for pool-x") for number in range(4)]
    assert Read(shown([policy("pool-b", message="else")], nodes)).text.count("waits for pool-x") == 1


@pytest.mark.tools
async def test_a_browser_shows_the_page_without_an_error_a_request_or_a_line_that_is_too_long(
    browser: Window, tmp_path: Path
) -> None:
    policies, nodes = fleet_in_pieces()
    nodes[1]["status"]["transition"]["message"] = "x" * 300 + HOSTILE
    path = tmp_path / "page.html"
    path.write_text(shown([*policies, policy("p" * 63)], nodes))
    await browser.open(path)
    grounds = set()
    for width in (400, 600, 1200):
        for dark in (False, True):
            await browser.resize(width, dark=dark)
            assert await browser.value("document.documentElement.scrollWidth") <= width
            if width >= 600:
                beyond = "[...document.querySelectorAll('.scroll')].map(one => one.scrollWidth - one.clientWidth)"
                assert set(await browser.value(beyond)) == {0}, "nothing has to be scrolled sideways"
            grounds.add(await browser.value("getComputedStyle(document.body).backgroundColor"))
            if folder := os.environ.get("LOOK"):
                name = f"{width}-{'dark' if dark else 'light'}.png"
                (Path(folder) / name).write_bytes(await browser.picture())
    assert len(grounds) == 2, "light and dark"
    assert await browser.value("document.title") == "GPU pools of desk"
    assert "team-b/ranker-7c4 +1" in await browser.value("document.body.innerText")
    widths = "[...document.querySelectorAll('svg')].map(one => one.getBoundingClientRect().width)"
    assert min(await browser.value(widths)) > 20, "every picture can be seen"
    assert browser.requested == [path.as_uri()]
    assert browser.troubles == []


@pytest.mark.tools
async def test_a_browser_that_finds_a_script_says_so(browser: Window, tmp_path: Path) -> None:
    """The test above can fail: what it looks for is seen where it is."""
    path = tmp_path / "page.html"
    wide = "<p style='width:2000px'>x</p><script>console.error(1)</script><img src='missing.png'>"
    path.write_text(f"<!doctype html><title>x</title>{wide}")
    await browser.open(path)
    await browser.resize(400)
    assert await browser.value("document.documentElement.scrollWidth") == 2008
    assert len(browser.requested) == 2
    assert browser.troubles != []


def test_a_blank_line_between_two_tables_keeps_them_apart() -> None:
    first, second = (table([Column(name)], [[Span("x")]], PrintOptions()) for name in ("NODE", "POD"))
    page = "".join(map(str, flow([*first, (), *second])))
    assert (page.count("<table"), page.count("<caption")) == (2, 2)


# --- the picture ------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def test_every_word_of_the_status_is_in_the_picture_and_it_says_that_it_is_simulated() -> None:
    tree = ElementTree.fromstring(picture()[PATH])
    words = " ".join(found.text or "" for found in tree.iter(f"{SVG}text"))
    for told in ("SIMULATED", "kubectl gpusharing status", "pool-d", "Draining", "team-b/ranker-", "3g.40gb"):
        assert told in words


def test_a_recording_shows_its_frames_one_after_the_other_and_the_longest_where_nothing_moves() -> None:
    frames = [[line(Span(f"{row}{frame}", Ink.GOOD)) for row in range(frame)] for frame in (1, 3, 2)]
    text = svg(frames, "", "")
    assert re.findall(r'<g class="([a-z ]+)" style="animation-delay:(-?[\d.]+)s">', text) == [
        ("frame", "-6"),
        ("frame still", "-4"),
        ("frame", "-2"),
    ]
    assert "animation:show 6s step-end infinite" in text
    assert "<style>" not in svg(frames[:1], "", "")


def test_a_piece_of_text_stands_where_a_terminal_has_it() -> None:
    text = svg([[line(Span("ab", Ink.GOOD), "   ", Span("<c>", Ink.BAD))]], "", "")
    places = re.findall(r'x="([\d.]+)" y="60"[^>]*textLength="([\d.]+)"[^>]*fill="(#\w+)">([^<]*)<', text)
    assert places == [("20.0", "16.8", COLORS[Ink.GOOD], "ab"), ("62.0", "25.2", COLORS[Ink.BAD], "&lt;c&gt;")]

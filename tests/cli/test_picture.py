"""The picture of the plugin says what the plugin says."""

import re
from xml.etree import ElementTree

from hack.generate_picture import COLORS, PATH, picture, svg

from kubectl_gpusharing.shell.drawing import Ink, Span, line

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

"""HTML: elements with all text escaped, a style sheet, and drawn lines as paragraphs and tables."""

from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from html import escape
from itertools import groupby

from kubectl_gpusharing.shell.drawing import Line, PrintOptions, Row

_LIGHT = """
--ground:#ffffff;--raised:#f5f6f8;--text:#1c1e21;--faint:#5a6069;--line:#d5d9df;--accent:#0b57d0;
--done:#1a7f37;--done-ink:#ffffff;--moves:#0b57d0;--moves-ink:#ffffff;--waits:#e3e6ea;--waits-ink:#3d434b;
--blocked:#b35900;--blocked-ink:#ffffff;--failed:#b3261e;--failed-ink:#ffffff;--free:#f5f6f8;
--slice:#d8e5fd;--slice-ink:#0a2a66;
"""
_DARK = """
--ground:#14171a;--raised:#1d2126;--text:#e8eaed;--faint:#a5acb5;--line:#3a4048;--accent:#8ab4f8;
--done:#57c777;--done-ink:#06210e;--moves:#8ab4f8;--moves-ink:#06193a;--waits:#3a4048;--waits-ink:#e8eaed;
--blocked:#ffb04d;--blocked-ink:#2b1700;--failed:#ff8a80;--failed-ink:#3a0703;--free:#1d2126;
--slice:#2c4470;--slice-ink:#e4edff;
"""
CSS = (
    f":root{{color-scheme:light dark;{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    """
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;background:var(--ground);color:var(--text);
 font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.5rem 0 0}h2{font-size:1.2rem;margin:0}h3{font-size:1rem;margin:1.25rem 0 .25rem}
p{margin:.25rem 0;unicode-bidi:isolate}
.faint{color:var(--faint)}
section{border:1px solid var(--line);border-radius:10px;padding:1rem;margin:1rem 0}
.bad{border-left:4px solid var(--failed);padding-left:.6rem}.title,.good,.busy{font-weight:600}
svg{display:block;max-width:100%}
svg text{font:600 12px ui-monospace,monospace;text-anchor:middle}
.bar{height:auto;margin:.5rem 0}
.track,.card{width:100%;height:22px}
.card{max-width:32rem;border:1px solid var(--line)}
"""
    + "".join(
        f".{name} rect{{fill:var(--{name})}}.{name} text{{fill:var(--{name}-ink)}}\n"
        for name in ("done", "moves", "waits", "blocked", "failed", "slice")
    )
    + """.moves rect,.slice rect{stroke:var(--ground);stroke-width:2}
.free{fill:var(--free)}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1rem;list-style:none;margin:.25rem 0;padding:0}
.scroll{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;width:100%;font-size:.9rem}
caption{text-align:left;font-weight:600;padding:.25rem 0}
th,td{text-align:left;vertical-align:top;padding:.3rem .75rem .3rem 0;border-top:1px solid var(--line);
 unicode-bidi:isolate;overflow-wrap:normal}
thead th{color:var(--faint);font-weight:500;border-top:0;white-space:nowrap}
tbody th{font-weight:600;white-space:nowrap}
.drawn td:last-child:not(:empty){min-width:16rem;overflow-wrap:anywhere}
.pictures td:last-child{width:70%;min-width:12rem}
a{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent)}
nav a{margin-right:1rem}
input,button{font:inherit;max-width:100%}
@media (max-width:46rem){
.drawn thead{display:none}.drawn tr{display:block;border-top:1px solid var(--line);padding:.3rem 0}
.drawn tbody :is(th,td){display:inline-block;border:0;padding:0 1rem 0 0;min-width:0;white-space:normal;
 overflow-wrap:anywhere}
.drawn td:empty{display:none}.drawn td::before{content:attr(data-title) " ";color:var(--faint)}
}
@media print{section{break-inside:avoid}}
"""
)


VOID = frozenset({"meta", "rect", "input"})
"""Elements without content and end tag."""
_HARMLESS = dict.fromkeys((*range(32), 127, *range(8234, 8239), *range(8294, 8298)), "�") | {
    ord(blank): " " for blank in "\t\n\r"
}
"""Replaces characters that a page must not contain, or that change the direction of text."""


class Markup(str):
    """HTML, which is not escaped again."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | None) -> Markup:
    """Return an HTML element; attributes that are None are left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{written}>" if name != "rect" else f"<{name}{written}/>")
    inner = "".join(child if isinstance(child, Markup) else _escaped(child) for child in children)
    return Markup(f"<{name}{written}>{inner}</{name}>")


POLICY = f"default-src 'none'; style-src 'sha256-{b64encode(sha256(CSS.encode()).digest()).decode()}'"
"""The Content-Security-Policy of a page: the browser fetches and runs nothing. It uses only our own style sheet."""


def frame(title: str, head: Iterable[Markup], *body: Markup) -> str:
    metas = (tag("meta", charset="utf-8"), tag("meta", name="viewport", content="width=device-width, initial-scale=1"))
    top = tag("head", *metas, *head, tag("title", title), Markup(f"<style>{CSS}</style>"))
    return document(tag("html", top, tag("body", *body), lang="en"))


def document(root: Markup) -> str:
    """Return the whole page as ASCII with character references, so that its encoding does not matter."""
    return "<!doctype html>\n" + root.encode("ascii", "xmlcharrefreplace").decode() + "\n"


def _escaped(text: str) -> str:
    return escape(text.translate(_HARMLESS), quote=True)


def grid(caption: str, kind: str, titles: Iterable[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Return a table; in a narrow window, the cells of a drawn one stand below each other with their titles."""
    titles = [*titles]
    head = tag("thead", tag("tr", *(tag("th", one, scope="col") for one in titles)))
    cells = (
        [
            tag("th", row[0], scope="row"),
            *(tag("td", one, data_title=title) for one, title in zip(row[1:], titles[1:], strict=True)),
        ]
        for row in rows
    )
    inner = tag("table", tag("caption", caption), head, tag("tbody", *(tag("tr", *row) for row in cells)), class_=kind)
    return tag("div", inner, class_="scroll", role="region", tabindex="0", aria_label=caption)


HTML_OPTIONS = PrintOptions(wide=True, flowing=True)


Link = Callable[[str, str], str]
"""Makes the content of a cell from the heading of its column and its text."""


def plain_cell(_title: str, text: str) -> str:
    return text


def flow(lines: Iterable[Line], link: Link = plain_cell) -> list[Markup]:
    """Return lines as paragraphs, and each run of `Row` as a table whose first row has the headings."""
    parts: list[Markup] = []
    for is_table, run in groupby(lines, lambda one: isinstance(one, Row)):
        if is_table:
            titles, *rows = ([cell.text.strip() for cell in row[1::2]] for row in run)
            cells = (list(map(link, titles, row)) for row in rows)
            parts.append(grid(titles[0].capitalize(), "drawn", map(str.capitalize, titles), cells))
        else:
            for line in filter(None, run):
                parts.append(tag("p", *(tag("span", one.text, class_=one.ink or None) for one in line)))
    return parts

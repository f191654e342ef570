"""A hook of mkdocs: our pages indent what belongs to a list item as CommonMark and GitHub read it, by 2 or 3 spaces.

Python-Markdown wants 4 and would else end the list there, so that every step of an instruction were number 1.
"""

import re

_ITEM = re.compile(r"(?:\d+\.|[-*]) +(?=\S)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with what belongs to an item of a top-level list indented by 4. mkdocs calls it for each page."""
    lines, indent, fenced, blank = [], 0, False, True
    for line in markdown.splitlines():
        if line.startswith("```"):
            fenced, indent = not fenced, 0
        item = None if fenced else _ITEM.match(line)
        if item is not None:
            indent = item.end()
            shown = line
        elif indent and line.startswith(" " * indent):
            shown = " " * 4 + line[indent:]
        else:
            if line and blank:
                indent = 0  # a paragraph of its own: the list is over
            shown = line
        blank = not line
        lines.append(shown)
    return "\n".join(lines) + "\n"

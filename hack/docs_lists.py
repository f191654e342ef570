"""A hook of mkdocs for list items. Our pages indent their content by 2 or 3 spaces, as CommonMark and GitHub accept.

Python-Markdown needs 4 spaces and would end the list otherwise, so that every step of an instruction would be number
1.
"""

import re

_ITEM = re.compile(r"(?:\d+\.|[-*]) +(?=\S)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Indent what belongs to a list item by four spaces. mkdocs calls this for each page."""
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
                indent = 0  # a new paragraph that is not indented ends the list
            shown = line
        blank = not line
        lines.append(shown)
    return "\n".join(lines) + "\n"

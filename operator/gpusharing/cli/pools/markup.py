"""HTML of elements: whatever is text is escaped, because nothing but an element is markup. Pure."""

from dataclasses import dataclass
from html import escape

VOID = frozenset({"meta", "rect"})
"""Elements that end where they begin."""
_HARMLESS = dict.fromkeys((*range(32), 127, *range(8234, 8239), *range(8294, 8298)), "�") | {
    ord(blank): " " for blank in "\t\n\r"
}
"""Of characters that no page may have, or that turn the direction of what follows."""


@dataclass(frozen=True, slots=True)
class Markup:
    """What stands in the page as it is. Only `tag` and `style` make it."""

    text: str
    """HTML, with everything escaped that is not markup."""


Child = Markup | str


def tag(name: str, /, *children: Child, **attributes: str | None) -> Markup:
    """An element; text becomes text, whatever it holds.

    `attributes`: `class_` for class, `_` for a dash; None: the attribute is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{given}>" if name == "meta" else f"<{name}{given}/>")
    inner = "".join(child.text if isinstance(child, Markup) else _escaped(child) for child in children)
    return Markup(f"<{name}{given}>{inner}</{name}>")


def style(css: str) -> Markup:
    """A style sheet of ours: no text of a cluster may come in here."""
    if "<" in css:
        raise ValueError("a style sheet could end itself")
    return Markup(f"<style>{css}</style>")


def document(root: Markup) -> str:
    """The whole page, in ASCII: it is the same in every encoding."""
    return "<!doctype html>\n" + root.text.encode("ascii", "xmlcharrefreplace").decode() + "\n"


def _escaped(text: str) -> str:
    return escape(text.translate(_HARMLESS), quote=True)

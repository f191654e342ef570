"""The templates of `-o jsonpath=TEMPLATE`, in kubectl's dialect: text outside of braces, and in braces a path, a quoted
text, or `range PATH` up to `end` (https://kubernetes.io/docs/reference/kubectl/jsonpath/). Pure.

A path has fields, `*`, indexes, and filters by equality. Slices, unions, `..` and other comparisons are refused.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from kubectl_gpusharing.shell.troubles import Trouble

Parts = list["str | tuple[str, Parts | None]"]
"""The parts of a template: texts, and paths, each with the parts of the range that it begins or, without one, None."""
_TEXT = r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'"""
_FIELD = rf"""\.(?:\\.|[^\s\\.\[\](){{}}'"=!<>,*?|])+|\.?\[\s*(?:{_TEXT})\s*\]"""
_STEP = re.compile(
    rf"""(?P<field>{_FIELD})|\.?\[\s*(?P<index>-?\d+)\s*\]|(?P<all>\.\*|\.?\[\s*\*\s*\])
    |\.?\[\?\(\s*[$@](?P<path>(?:{_FIELD})*)\s*((?P<sign>[=!]=)\s*(?P<wanted>{_TEXT}|[^\s()'"]+)\s*)?\)\s*\]""",
    re.VERBOSE,
)
_STEPS = re.sub(r"\(\?P<\w+>", "(?:", _STEP.pattern)
_TOKEN = re.compile(
    rf"""(?P<text>[^{{]+)|\{{\s*(?:(?P<quoted>{_TEXT})|(?P<end>end)
    |(?P<range>range\s+)?(?P<path>(?=[.\[$@])[$@]?(?:{_STEPS})*))\s*\}}
    |(?P<mistake>\{{\s*(?:range\s+)?[$@]?(?:{_STEPS})*)""",
    re.VERBOSE,
)
"""Matches a text or an expression, or an expression up to the character that makes it none."""
_BACKSLASH = re.compile(r"""(\\["\\/bfnrtu])|\\(.)|(")""")
"""Matches an escape of JSON, another character after a backslash, or a double quote."""


def parse_template(template: str) -> Parts:
    """Return the parts of a template, in their order. Raises a Trouble that names the position of the first mistake,
    also if the template is empty."""
    if not template:
        raise _mistake(template, 0, "there is no template")
    return _read_parts(template, _TOKEN.finditer(template))


def _read_parts(template: str, tokens: Iterator[re.Match[str]], *, inside: bool = False) -> Parts:
    """Return the parts up to the end of the template or, `inside` a range, up to its `{end}`. The tokens of these parts
    are taken from `tokens`. Raises Trouble if a range has no end, if an end has no range, and at the first character
    that belongs to neither a text nor an expression."""
    parts: Parts = []
    for token in tokens:
        if token["end"] and inside:
            return parts
        if token["end"]:
            raise _mistake(template, token.start(), "there is no range that this could end")
        if token["mistake"]:
            raise _mistake(template, token.end(), "this is no field, index, filter or end of a path")
        if token["range"]:
            parts.append((token["path"], _read_parts(template, tokens, inside=True)))
        elif token["path"] is not None:
            parts.append((token["path"], None))
        else:
            parts.append(token["text"] or _literal(token["quoted"]))
    if inside:
        raise _mistake(template, len(template), "{end} is missing after a range")
    return parts


def _mistake(template: str, at: int, why: str) -> Trouble:
    """Return the error about the character at the index `at` of a template, with `why`, the number of the character
    from 1, the next 20 characters, and an example of a path. It is not raised here."""
    example = 'write paths as in {.pools[*].name} and {.pools[?(@.mode=="MIG")].name}'
    return Trouble(
        f"-o jsonpath: {why}: character {at + 1}, at {template[at : at + 20] or 'the end'}; {example}"
    )


def render(parts: Parts, value: object) -> str:
    """Return the text of a template for a JSON value. The values of a path are separated by spaces; strings are written
    without quotes, and everything else as JSON. The body of a range is written once for each value of its path, and
    paths in it begin at that value. A path that leads nowhere leaves nothing."""
    texts = list[str]()
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif part[1] is None:
            texts.append(" ".join(map(_written, _values(part[0], value))))
        else:
            texts += [render(part[1], each) for each in _values(part[0], value)]
    return "".join(texts)


def _written(value: object) -> str:
    """Return a string as it is, and any other value as JSON without spaces."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _values(path: str, value: object) -> Sequence[Any]:
    """Return the values to which a path leads from `value`; a leading `$` or `@` changes nothing. An empty path leads
    to `value` itself. Empty if the path leads nowhere: a field or an index does not exist, a filter accepts no item, or
    a value has another type."""
    values = [value]
    for step in _STEP.finditer(path):
        values = [following for each in values for following in _follow(step, each)]
    return values


def _follow(step: re.Match[str], value: Any) -> Iterable[Any]:
    """Return the values to which one step leads: an index or a filter selects from a list, a field from an object, and
    `*` from both. A negative index counts from the end. Empty if the value is of another type or has no such item."""
    if isinstance(value, dict) and step["all"]:
        return value.values()
    if isinstance(value, dict) and step["field"]:
        name = re.sub(r"\\(.)", r"\1", step["field"].lstrip("."))
        name = _literal(name.strip("[] ")) if name.startswith("[") else name
        return [value[name]] if name in value else ()
    if not isinstance(value, list) or step["field"]:
        return ()
    if step["index"]:
        at = int(step["index"])
        return value[at : at + 1 or None]
    return value if step["all"] else [item for item in value if _holds(step, item)]


def _holds(step: re.Match[str], item: object) -> bool:
    """Whether the filter of a step accepts an item: at least one value of its path is equal to the literal or, with
    `!=`, is not. Without a comparison, the path need only have a value. A path without a value is never accepted, not
    even with `!=`. A boolean and a number are never equal."""
    values, wanted = _values(step["path"], item), _literal(step["wanted"] or "")
    kind = isinstance(wanted, bool)  # in Python, True equals 1
    equal = (value == wanted and isinstance(value, bool) is kind for value in values)
    return any(not step["sign"] or same == (step["sign"] == "==") for same in equal)


def _literal(text: str) -> Any:
    """Return the string that a quoted text stands for; an escape such as `\\n` means the same in both kinds of quotes.
    Text without quotes is read as JSON, such as a number or true; if it is not JSON, it is returned as a string. In
    single quotes, a backslash that begins no escape only stands for the character after it."""
    if text[:1] == "'":
        text = '"' + _BACKSLASH.sub(lambda found: found[1] or found[2] or r"\"", text[1:-1]) + '"'
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return text.strip('"')

"""What does a template of `-o jsonpath=TEMPLATE` make of a document?

The dialect is kubectl's (https://kubernetes.io/docs/reference/kubectl/jsonpath/), without slices, unions, `..` and
comparisons other than equality.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from kubectl_gpusharing.shell.troubles import Trouble

Parts = list["str | tuple[str, Parts | None]"]
"""The texts and paths of a template; a path has the parts of the range that it begins, or else None."""
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
"""Matches a text, an expression, or the beginning of an expression up to a mistake."""
_BACKSLASH = re.compile(r"""(\\["\\/bfnrtu])|\\(.)|(")""")
"""Matches an escape of JSON, another character after a backslash, or a double quote."""


def parse_template(template: str) -> Parts:
    """Return the parts of a template: texts, and in braces a path, a quoted text, or `range PATH` up to `end`.

    A path has fields, `*`, indexes, and filters by equality. Raises Trouble if there is a mistake.
    """
    if not template:
        raise _mistake(template, 0, "there is no template")
    return _read_parts(template, _TOKEN.finditer(template))


def _read_parts(template: str, tokens: Iterator[re.Match[str]], *, inside: bool = False) -> Parts:
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
    example = 'write paths as in {.pools[*].name} and {.pools[?(@.mode=="MIG")].name}'
    return Trouble(f"-o jsonpath: {why}: character {at + 1}, at {template[at : at + 20] or 'the end'}; {example}")


def render(parts: Parts, value: object) -> str:
    texts = list[str]()
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif part[1] is None:
            written = (
                one if isinstance(one, str) else json.dumps(one, separators=(",", ":"), ensure_ascii=False)
                for one in _values(part[0], value)
            )
            texts.append(" ".join(written))
        else:
            texts += [render(part[1], each) for each in _values(part[0], value)]
    return "".join(texts)


def _values(path: str, value: object) -> Sequence[Any]:
    values = [value]
    for step in _STEP.finditer(path):
        values = [following for each in values for following in _follow(step, each)]
    return values


def _follow(step: re.Match[str], value: Any) -> Iterable[Any]:
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
    if step["all"]:
        return value
    sign, wanted = step["sign"], _literal(step["wanted"] or "")
    kind = isinstance(wanted, bool)  # in Python, True equals 1

    def holds(item: object) -> bool:
        found = _values(step["path"], item)
        equal = (one == wanted and isinstance(one, bool) is kind for one in found)
        return any(not sign or same == (sign == "==") for same in equal)

    return filter(holds, value)


def _literal(text: str) -> Any:
    if text[:1] == "'":
        text = '"' + _BACKSLASH.sub(lambda found: found[1] or found[2] or r"\"", text[1:-1]) + '"'
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return text.strip('"')

"""The only reader of YAML that somebody else may have written: ConfigMaps of admins, of NVIDIA's programs, and our own
after an edit. PyYAML raises far more than YAMLError (RecursionError for deep nesting, ValueError for 2024-13-45,
OverflowError, TypeError), and aliases make a small text a huge or an endless document.
"""

from typing import Any

import yaml

MAX_DEPTH = 20
"""Levels of maps and lists; the deepest file that NVIDIA's programs read has six."""
TOO_DEEP = f"it is nested more than {MAX_DEPTH} levels deep"
MAX_VALUES = 100_000
"""Maps, lists and scalars, each counted wherever an alias repeats it."""


class Unreadable(ValueError):
    """The text is not a document that we read; the message is a clause for people."""


class _TooDeep(Exception):
    """Not a ValueError, which PyYAML may raise for a text that is wrong in another way."""


class _Loader(yaml.SafeLoader):
    """Stops at the first bracket too many: PyYAML's scanner takes 0.9 s for 3,000 of them in a line."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        """As PyYAML's own, for at most MAX_DEPTH open brackets."""
        if self.flow_level >= MAX_DEPTH:
            raise _TooDeep
        super().fetch_flow_collection_start(TokenClass)


def parse_yaml(text: str) -> object:
    """The document, of at most MAX_DEPTH levels and MAX_VALUES values; None for an empty text.

    Raises:
        Unreadable: and nothing else, whatever the text is.
    """
    try:
        document: object = yaml.load(text, _Loader) if text else None
    except _TooDeep:
        raise Unreadable(TOO_DEEP) from None
    except yaml.YAMLError as error:
        raise Unreadable("it is not YAML") from error
    except (RecursionError, ValueError, OverflowError, TypeError, AttributeError, LookupError) as error:
        raise Unreadable(f"it is not YAML that can be read ({type(error).__name__})") from error
    _check_size(document)
    return document


def _check_size(document: object) -> None:
    """Raises Unreadable; walks without recursion, so that neither depth nor a loop of aliases can end us."""
    left, seen = [(document, 1)], 0
    while left:
        value, depth = left.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise Unreadable(TOO_DEEP)
        if seen > MAX_VALUES:
            raise Unreadable(f"it holds more than {MAX_VALUES} values")
        if isinstance(value, dict):
            left.extend((key, depth + 1) for key in value)
            left.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list | tuple | set):
            left.extend((item, depth + 1) for item in value)

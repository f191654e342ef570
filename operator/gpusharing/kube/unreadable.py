"""Objects that the API server returned and that we cannot convert: each is named, once in the log, and withheld.

The conversions take whatever a real API server admits. What is caught here comes from a server that is not one, such as a broken proxy, or is a mistake of ours, so the log has the traceback.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from gpusharing.kube.client import JSON, Resource
from gpusharing.kube.errors import KubeError, describe_bug
from gpusharing.kube.raw import text

log = logging.getLogger(__name__)

View = TypeVar("View")

_LOGGED: deque[str] = deque(maxlen=256)
"""The messages that were logged last, because most objects are read again and again."""


class Unreadable(KubeError):
    """The server returned an object that we cannot convert, so nothing is known about what it says."""


def check_identity(resource: Resource, raw: object, *keys: str) -> None:
    """Raise Unreadable if an object lacks one of these keys of its metadata, which every API server writes."""
    if missing := [key for key in keys if not text(raw, "metadata", key)]:
        fields = " and ".join(f"metadata.{key}" for key in missing)
        raise _logged(Unreadable(f"the API server returned {_name(resource, raw)} without {fields}"))


def converted(resource: Resource, raw: JSON, convert: Callable[[JSON], View]) -> View:
    """Return `convert(raw)`. Whatever that raises becomes Unreadable, whose message names the object."""
    try:
        return convert(raw)
    except Exception as error:
        unreadable = Unreadable(f"{_name(resource, raw)} cannot be read: {describe_bug(error)}")
        raise _logged(unreadable, error) from error


def or_unknown(
    resource: Resource, convert: Callable[[JSON], View], unknown: Callable[[JSON, str], View]
) -> Callable[[JSON], View]:
    """Return `convert`, with `unknown` (from the raw object and the reason) for the objects that it raises for."""

    def project(raw: JSON) -> View:
        try:
            return converted(resource, raw, convert)
        except Unreadable as error:
            return unknown(raw, str(error))

    return project


def _name(resource: Resource, raw: object) -> str:
    name, namespace = text(raw, "metadata", "name"), text(raw, "metadata", "namespace")
    if not name:
        return f"an object of {resource.full_name}"
    return f"{resource.full_name}/{name}" + (f" in namespace {namespace}" if namespace else "")


def _logged(unreadable: Unreadable, cause: Exception | None = None) -> Unreadable:
    if (message := str(unreadable)) not in _LOGGED:
        _LOGGED.append(message)
        log.error(message, exc_info=cause)
    return unreadable

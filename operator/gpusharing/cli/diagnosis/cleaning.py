"""What may leave a cluster in a support bundle: objects without what may be a secret. Pure.

Everything that people deliberately put secrets into is left out. From texts of programs (messages, logs), whatever is
named as a secret or has the form of one is removed too; a secret that nothing gives away stays.
"""

import re
from typing import Any

from gpusharing.kube.client import JSON

REMOVED = "REMOVED"
LEFT_OUT = frozenset({
    "env", "envFrom", "args", "command", "exec", "httpGet", "httpHeaders", "lifecycle", "managedFields",
    "imagePullSecrets", "volumes", "addresses", "binaryData",
})  # fmt: skip
"""Keys whose whole value goes: environments, command lines and probes of containers above all."""
KEPT_ANNOTATIONS = ("gpusharing.dev/", "nvidia.com/", "deployment.kubernetes.io/", "meta.helm.sh/")
_KEYS = "(?:api|access|private|client|licen[cs]e).?key"
_NAMES = f"passw|passphrase|pwd|(?<![a-z])pass(?![a-z])|token|secret|credential|{_KEYS}"
_TELLING = re.compile(f"{_NAMES}|private|(?<![a-z])auth(?:orization)?(?![a-z])", re.IGNORECASE)
_QUOTED = r"""\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|\\\"[^\"\n]*\""""
_PROSE = "(?:not|no|context|user|unauthorized|invalid|expired|error|failed)"
"""How a sentence about a secret continues after its colon."""
_IN_TEXTS = (
    # PEM (RFC 7468), also one that was cut at either end.
    re.compile(
        r"()-----BEGIN [A-Z ]*PRIVATE KEY-----"
        r"(?:[\sA-Za-z0-9+/=:,-]*?-----END [A-Z ]*PRIVATE KEY-----|(?:\s+[\w+/=]{16,})*(?:\s+[\w+/=]+(?=\s*\Z))?)"
    ),
    re.compile(r"()(?:^[\w+/=]+[ \t\r]*\n)*-----END [A-Z ]*PRIVATE KEY-----", re.MULTILINE),
    re.compile(r"(\bbearer[ \t]+)[^\s\"']+", re.IGNORECASE),
    # user:password@ or token@ of an address (RFC 3986), and a JSON Web Token (RFC 7519).
    re.compile(r"(://)[^/\s@\"']+(?=@)"),
    re.compile(r"()\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    # Under such a name a list or an object, to the end of its line, and a block or list of YAML.
    re.compile(rf"((?:{_NAMES}|\bauth\b)[\w.-]{{0,60}}\\?[\"']?[ \t]*[=:][ \t]*)[\[{{][^\n]*", re.IGNORECASE),
    re.compile(
        rf"(^([ \t]*)[\w\"'.-]{{0,60}}(?:{_NAMES})[\w\"'.-]{{0,60}}:[ \t]*(?:[|>][^\n]*)?\n)"
        r"(?:\2(?:[ \t]+|- )[^\n]*(?:\n|\Z))+",
        re.IGNORECASE | re.MULTILINE,
    ),
    # HTTP's Authorization, its scheme and one word, and a bearer token anywhere (RFC 9110, RFC 6750).
    re.compile(
        rf"(\bauth(?:orization)?[\"']?[ \t]*[=:][ \t]*)(?:{_QUOTED}|(?:\w+[ \t]+)?[^\s\"',;}}]+)",
        re.IGNORECASE,
    ),
    # password=x, "apiKey": "x", --token x
    re.compile(
        rf"((?:{_NAMES})[\w.-]{{0,60}}\\?[\"']?[ \t]*=[ \t]*)(?:{_QUOTED}|[\"'][^\n]*|[^\s\"'&}}\]]+)",
        re.IGNORECASE,
    ),
    re.compile(
        rf"((?:{_NAMES})[\w.-]{{0,60}}\\?[\"']?[ \t]*:[ \t]*)"
        rf"(?:{_QUOTED}|[\"'][^\n]*|(?!{_PROSE}[ \t]+[a-z])[^\s\"'}}\]]+)",
        re.IGNORECASE,
    ),
    re.compile(rf"((?<![\w-])--?[\w-]{{0,60}}(?:{_NAMES})[\w-]{{0,60}}[ \t]+)[^\s-]\S*", re.IGNORECASE),
)

_HINTS = ("-----", "bearer", "://", "eyj", "pass", "pwd", "token", "secret", "credent", "key", "auth")
"""Every text that one of the above matches contains one of these, case-folded; most texts contain none."""


def cleaned(value: object) -> Any:
    """The object without what LEFT_OUT names, with only our and NVIDIA's annotations, with REMOVED in place of every
    value whose key suggests a secret, and with all texts `scrubbed`."""
    if isinstance(value, list):
        return [cleaned(one) for one in value]
    if isinstance(value, str):
        return scrubbed(value)
    if not isinstance(value, dict):
        return value
    return {key: _cleaned(key, one) for key, one in value.items() if key not in LEFT_OUT}


def _cleaned(key: str, value: object) -> Any:
    if key == "annotations" and isinstance(value, dict):
        return {
            name: _cleaned(name, text) for name, text in value.items() if name.startswith(KEPT_ANNOTATIONS)
        }
    if isinstance(value, str | list | dict) and _TELLING.search(key):
        return REMOVED
    return cleaned(value)


def scrubbed(text: str) -> str:
    """A text of a program, with REMOVED in place of what is named as a secret or has the form of one."""
    folded = text.casefold()
    if not any(hint in folded for hint in _HINTS):
        return text
    for pattern in _IN_TEXTS:
        text = pattern.sub(rf"\g<1>{REMOVED}", text)
    return text


def node_facts(raw: JSON) -> JSON:
    """Of a Node: names, labels, marks of ours, taints, what it offers and how it is."""
    status, spec = raw.get("status") or {}, raw.get("spec") or {}
    return {
        "metadata": cleaned(raw.get("metadata") or {}),
        "spec": {key: spec[key] for key in ("taints", "unschedulable") if key in spec},
        "status": {
            key: cleaned(status[key]) for key in ("allocatable", "conditions", "nodeInfo") if key in status
        },
    }

"""The records that we leave on Nodes and on the leader Lease, and the Node patches that carry them.

Every record is a JSON object with a version `v` and one key per field of its dataclass. Reading never raises: a record
that is damaged or of a newer version gives an error message, and the caller leaves such a node as it is. A field with a
default may be missing; a change that an operator of this version would misread needs a higher version.

Unknown keys come from a newer operator that was rolled back. They are kept as long as the fence, the claim or the
failure on record exists; the other kinds of record are written from scratch each time.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, TypeVar, assert_never

from pydantic import TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from gpusharing.api import names
from gpusharing.kube.client import JSON
from gpusharing.planning.snapshot.actions import Actuate, FenceNode, LabelNode, Release, UpdateFence
from gpusharing.planning.snapshot.records import Claim, Consent, Deferred, FailedNode, Fence, Verified

RECORD_VERSION = 1
MOST_CLAIMS = 500
"""The most nodes that may be in flight. With names as long as clouds make them, their claims fit into LEASE_ROOM."""

NodePatch = FenceNode | Actuate | UpdateFence | Release | LabelNode
"""The actions that are carried out by one PATCH of a Node."""

Record = TypeVar("Record", Fence, Deferred, Verified, Claim, FailedNode, Consent)
NodeRecord = TypeVar("NodeRecord", Fence, Deferred, Verified)


def record_text(record: Fence | Deferred | Verified) -> str:
    """Return the value of the annotation that holds this record, as compact JSON. A fence keeps its unknown keys."""
    written = _dump(_encode(record))
    # The unknown keys are appended as JSON text, because they may be nested as deeply as JSON can be read.
    return f"{written[:-1]},{record.unknown[1:]}" if isinstance(record, Fence) and record.unknown else written


def read_fence(annotations: Mapping[str, str]) -> tuple[Fence | None, str]:
    """Return the fence, or None without one, and why it cannot be read, else an empty string."""
    recorded = annotations.get(names.ANNOTATION_FENCE)
    return (None, "") if recorded is None else parse_record(Fence, recorded)


ANNOTATIONS: Mapping[type, str] = {
    Fence: names.ANNOTATION_FENCE,
    Deferred: names.ANNOTATION_DEFERRED,
    Verified: names.ANNOTATION_VERIFIED,
}
"""The annotation of a Node that holds each kind of record: its fence, its last abort, its last proof."""


def claims_text(
    claims: Mapping[str, Claim],
    before: str = "",
    failed_nodes: Mapping[str, FailedNode] | None = None,
    consents: Mapping[str, Consent] | None = None,
) -> str:
    """Return the value of the annotation `gpusharing.dev/claims` on the leader Lease, in place of `before`.

    Unknown keys in `before` are kept as long as the same claim or failure is on record.
    """
    try:
        record = _load(before) if before else {}
    except ValueError:
        record = {}
    failed = _grown(record.pop("failedNodes", None), failed_nodes or {})
    record.pop("consents", None)
    agreed = {uid: _encode(consent) for uid, consent in sorted((consents or {}).items())}
    written = _grown(record.get("claims"), claims)
    more = {"failedNodes": failed, "consents": agreed}
    return _dump({**record, "claims": written, **{key: value for key, value in more.items() if value}})


def parse_claims(text: str) -> tuple[dict[str, Claim], str]:
    """Return the claims by node, and an error message or an empty string. One damaged claim makes all unreadable."""
    try:
        records = _load(text).get("claims")
        if not isinstance(records, dict):
            raise ValueError(f"claims is {records!r}, not an object")
        claims = {}
        for node, claim in records.items():
            if not isinstance(claim, dict):
                raise ValueError(f"the claim of {node} is {claim!r}, not an object")
            claims[node] = _decode(Claim, claim)
    except ValueError as error:
        return {}, f"annotation {names.ANNOTATION_CLAIMS}: {error}"
    return claims, ""


def parse_failed_nodes(text: str) -> tuple[dict[str, FailedNode], str]:
    """Return the failures that can be read, by UID of the Node, and a message about the others, if any."""
    return _parse_each(FailedNode, text, "failedNodes", "the failure of the Node")


def parse_consents(text: str) -> tuple[dict[str, Consent], str]:
    """Return the consents that can be read, by UID of the policy, and a message about the others, if any."""
    return _parse_each(Consent, text, "consents", "the consent to the policy")


def _parse_each(kind: type[Record], text: str, key: str, what: str) -> tuple[dict[str, Record], str]:
    where = f"annotation {names.ANNOTATION_CLAIMS}: "
    try:
        records = _load(text).get(key, {})
    except ValueError as error:
        return {}, f"{where}{error}"
    if not isinstance(records, dict):
        return {}, f"{where}{key} is {records!r}, not an object"
    found, errors = {}, []
    for uid, record in records.items():
        try:
            if not isinstance(record, dict):
                raise ValueError(f"it is {record!r}, not an object")
            found[uid] = _decode(kind, record)
        except ValueError as error:
            errors.append(f"{what} with UID {uid}: {error}")
    return found, where + "; ".join(errors) if errors else ""


def patch_for(action: NodePatch, resource_version: str) -> JSON:
    """Return the merge patch on the Node that carries out `action`; the value None removes an entry.

    Every patch names the UID, so the server refuses it for a new Node of that name. A new proof also removes the start-
    up taint (docs/design/transition.md#gate), unless a Release keeps its fence.
    """
    labels, conditional = dict(action.labels), True
    annotations: dict[str, str | None] = {}
    spec: JSON = {}
    match action:
        case FenceNode() | Actuate() | UpdateFence():
            annotations[names.ANNOTATION_FENCE] = record_text(action.fence)
            if not isinstance(action, Actuate):
                annotations |= action.annotations
                if action.cordon:
                    spec["unschedulable"] = True
        case Release():
            annotations |= action.annotations
            annotations[names.ANNOTATION_FENCE] = record_text(action.fence) if action.fence else None
            annotations[names.ANNOTATION_DEFERRED] = record_text(action.deferred) if action.deferred else None
            if action.uncordon:
                spec["unschedulable"] = None
                # If a driver upgrade became required in the meantime, it saw our cordon, and would otherwise leave the
                # node cordoned at its end.
                annotations[names.ANNOTATION_UPGRADE_CORDONED] = None
        case LabelNode():
            annotations |= action.requests or {}
            conditional = action.forget or action.requests is not None
            if action.forget:
                annotations |= dict.fromkeys((names.ANNOTATION_VERIFIED, names.ANNOTATION_DEFERRED))
        case _:
            assert_never(action)
    if isinstance(action, Release | LabelNode) and action.verified:
        annotations[names.ANNOTATION_VERIFIED] = record_text(action.verified)
        keeps_fence = isinstance(action, Release) and action.fence is not None
        if action.node.gate is not None and not keeps_fence:
            conditional = True
            spec["taints"] = json.loads(action.node.gate) or None  # null removes an empty list
    metadata: JSON = {"uid": action.node.uid, "labels": labels, "annotations": annotations}
    if conditional:
        metadata["resourceVersion"] = resource_version
    patch = {"metadata": {key: value for key, value in metadata.items() if value}}
    return {**patch, "spec": spec} if spec else patch


_CHANGING: Mapping[type, Collection[str]] = {Claim: {"wave", "version"}, FailedNode: {"gone"}}
"""The keys whose values may change although it is still the same claim or failure, by kind of record."""


def _grown(before: object, records: Mapping[str, Claim | FailedNode]) -> JSON:
    older, written = before if isinstance(before, dict) else {}, {}
    for name, record in sorted(records.items()):
        ours, kind, was = _encode(record), type(record), older.get(name)
        unknown: JSON = {}
        if isinstance(was, dict) and all(
            was.get(key) == value for key, value in ours.items() if key not in _CHANGING[kind]
        ):
            unknown = {key: value for key, value in was.items() if key not in _KEYS[kind]}
        written[name] = {**unknown, **ours}
    return written


# A Node is parsed again whenever one of its labels changes, usually with the same records, so the results are cached.
@lru_cache(maxsize=256)
def parse_record(kind: type[NodeRecord], text: str) -> tuple[NodeRecord | None, str]:
    """Return the record in `text` and an empty string, or None and why it cannot be read."""
    try:
        return _decode(kind, _load(text)), ""
    except ValueError as error:
        return None, f"annotation {ANNOTATIONS[kind]}: {error}"


def _dump(record: JSON) -> str:
    return json.dumps({"v": RECORD_VERSION, **record}, separators=(",", ":"), ensure_ascii=False)


def _load(text: str) -> JSON:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    version = data.get("v")
    if version != RECORD_VERSION or isinstance(version, bool):
        raise ValueError(f"it has version {version!r}, but this operator reads only version {RECORD_VERSION}")
    return data


_WRITERS: Mapping[type[Any], TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (Fence, Deferred, Verified, Claim, FailedNode, Consent)
}
_KEYS = {kind: {to_camel(field.name) for field in fields(kind)} - {"unknown"} for kind in _WRITERS}
"""The keys of each kind of record, as they are written. `Fence.unknown` is not one of them."""


def _encode(record: Fence | Deferred | Verified | Claim | FailedNode | Consent) -> JSON:
    written: JSON = _WRITERS[type(record)].dump_python(
        record,
        mode="json",
        by_alias=True,
        exclude={"unknown"},
        exclude_defaults=isinstance(record, Claim | FailedNode | Consent),
    )
    return written


def _decode(kind: type[Record], data: JSON) -> Record:
    ours = {key: value for key, value in data.items() if key in _KEYS[kind]}
    left = {key: value for key, value in data.items() if key not in ours and key != "v"}
    try:
        record: Record = _WRITERS[kind].validate_json(json.dumps(ours))
    except ValidationError as error:
        raise ValueError(_complaint(error, ours)) from None
    if kind is not Fence or not left:
        return record
    try:
        unknown: JSON = {"unknown": json.dumps(left, separators=(",", ":"), ensure_ascii=False)}
        return replace(record, **unknown)
    except RecursionError as error:
        raise ValueError(f"the keys {', '.join(sorted(left))[:80]} are nested too deeply") from error


def _complaint(error: ValidationError, ours: JSON) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return f"it cannot be read ({first['msg']})"
    if first["type"] == "missing":
        return f"{'.'.join(map(str, first['loc']))} is missing"
    key = str(first["loc"][0])
    return f"{key} cannot be {ours.get(key, first['input'])!r}"

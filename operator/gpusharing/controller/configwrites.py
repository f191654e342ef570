"""The bodies that write our two ConfigMaps: only what changes, with the time of writing of every entry."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from gpusharing.kube.client import JSON
from gpusharing.kube.written import ANNOTATION_WRITTEN, MIG_KEY
from gpusharing.planning import migfile
from gpusharing.planning.actions import WriteConfig
from gpusharing.planning.views import StackView

LABELS = {"app.kubernetes.io/managed-by": "gpusharing-operator"}


def plugin_patch(action: WriteConfig, stack: StackView, now: datetime) -> JSON | None:
    """Merge patch of the device-plugin ConfigMap; None when it is right. The ConfigMap is created even if empty."""
    present, wanted = stack.plugin_configs, action.plugin_configs
    data: dict[str, str | None] = {key: text for key, text in wanted.items() if present.get(key) != text}
    data |= dict.fromkeys(present.keys() - wanted.keys())
    if not data and stack.plugin_map_exists:
        return None
    return _body(data, wanted, present, stack.written, now)


def mig_patch(action: WriteConfig, stack: StackView, now: datetime) -> JSON | None:
    """Merge patch of the mig-parted ConfigMap; None when it is right."""
    if action.mig_file == stack.mig_file:
        return None
    wanted, present = migfile.parse(action.mig_file), migfile.parse(stack.mig_file)
    same = {name: "" for name, entry in present.items() if wanted.get(name) == entry}
    return _body({MIG_KEY: action.mig_file}, wanted, same, stack.written, now)


def _body(
    data: Mapping[str, str | None],
    wanted: Iterable[str],
    present: Mapping[str, str],
    written: Mapping[str, datetime],
    now: datetime,
) -> JSON:
    known = {key: stamp for key, stamp in written.items() if key in present}
    stamps = {key: known.get(key, now) for key in sorted(wanted) if key in known or key not in present}
    text = json.dumps({key: stamp.astimezone(UTC).isoformat() for key, stamp in stamps.items()})
    return {"metadata": {"labels": LABELS, "annotations": {ANNOTATION_WRITTEN: text}}, "data": dict(data)}

"""The patches that write our two ConfigMaps: only what changes, with the time at which each entry was written."""

import json
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime

from gpusharing.api import names
from gpusharing.kube.client import JSON
from gpusharing.kube.sources import MIG_KEY
from gpusharing.planning.snapshot.actions import WriteConfig
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.wanted import migfile

LABELS = {names.LABEL_MANAGED_BY: names.MANAGED_BY}


def plugin_patch(action: WriteConfig, stack: StackView, now: datetime) -> JSON | None:
    """Return the merge patch for the device-plugin ConfigMap, or None if nothing has to be written. The patch has our
    label, the times of writing, and only the entries that differ; entries that are no longer wanted are set to null. A
    patch is returned even without any entry if the ConfigMap does not exist, if one of our ConfigMaps lacks our label,
    or if the time of a wanted entry is not recorded."""
    present, wanted = stack.plugin_configs, action.plugin_configs
    data: dict[str, str | None] = {key: text for key, text in wanted.items() if present.get(key) != text}
    same = wanted.keys() - data.keys()
    data |= dict.fromkeys(present.keys() - wanted.keys())
    if not data and stack.plugin_map_exists and _is_marked(wanted, stack):
        return None
    return _body(data, wanted, same, stack.written, now)


def mig_patch(action: WriteConfig, stack: StackView, now: datetime) -> JSON | None:
    """Return the merge patch for the mig-parted ConfigMap, or None if nothing has to be written. If the file differs,
    the patch has the whole file; if only our label or the time of an entry is missing, `data` is empty. Entries
    that have not changed keep their time, unless somebody has edited the file: then all of them count as written
    now."""
    wanted, present = migfile.parse(action.mig_file), migfile.parse(stack.mig_file)
    data = {MIG_KEY: action.mig_file} if action.mig_file != stack.mig_file else {}
    if not data and _is_marked(wanted, stack):
        return None
    # mig-manager may have refused a file that someone edited as a whole, so all of its entries count as written now.
    whole = not stack.mig_file or migfile.is_rendered(stack.mig_file)
    same = [name for name, entry in wanted.items() if whole and present.get(name) == entry]
    return _body(data, wanted, same, stack.written, now)


def _is_marked(wanted: Iterable[str], stack: StackView) -> bool:
    """Whether our ConfigMaps, as far as they exist, have our label, and the time of writing is recorded for each of
    the `wanted` entries."""
    return stack.marked and stack.written.keys() >= set(wanted)


def _body(
    data: Mapping[str, str | None],
    wanted: Iterable[str],
    same: Collection[str],
    written: Mapping[str, datetime],
    now: datetime,
) -> JSON:
    """Return a merge patch with `data`, our label, and an annotation that says when each of the `wanted` entries was
    written. Entries in `same` keep the time recorded in `written`, if there is one; all others get `now`."""
    stamps = {key: written.get(key, now) if key in same else now for key in sorted(wanted)}
    text = json.dumps({key: stamp.astimezone(UTC).isoformat() for key, stamp in stamps.items()})
    return {
        "metadata": {"labels": LABELS, "annotations": {names.ANNOTATION_WRITTEN: text}},
        "data": dict(data),
    }

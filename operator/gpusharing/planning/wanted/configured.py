"""Since when our ConfigMaps hold exactly what a node needs: the content counts, not the name (ADR 16)."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.records import CLOCK_ERROR
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import CardView
from gpusharing.planning.wanted import migfile

CLOCKS_APART = 2 * CLOCK_ERROR
"""How far the clocks of two operators may be apart, one after the other."""


def known_times(times: Mapping[str, datetime], now: datetime) -> dict[str, datetime]:
    """When entries were written, by key. A time in the future, by more than CLOCKS_APART, does not count: the clock was
    set back since. Such an entry is written again, and its wait is no longer than any other."""
    return {key: moment for key, moment in times.items() if moment <= now + CLOCKS_APART}


def configured_since(
    plugin: tuple[str, str],
    mig_config: str,
    layouts: Sequence[Layout | None],
    gpus: Sequence[CardView],
    stack: StackView,
) -> datetime | None:
    """None while an entry is missing, is wrong, or has no time of writing. `plugin`: key and text."""
    key, text = plugin
    if stack.plugin_configs.get(key) != text:
        return None
    keys = [key]
    if mig_config and stack.serves_our_mig_file:
        entry = migfile.parse(stack.mig_file).get(mig_config)
        if entry is None or not migfile.is_rendered(stack.mig_file):
            return None  # mig-parted refuses a file as a whole
        if migfile.resolve(entry, gpus) != tuple(layouts):
            return None
        keys.append(mig_config)
    if not stack.written.keys() >= set(keys):
        return None
    return max(stack.written[name] for name in keys)

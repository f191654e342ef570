"""Compares the MIG profiles that a card reports with our table. The operator uses what the card reports, and a message
names the differences."""

from collections.abc import Mapping
from functools import lru_cache

from gpusharing.planning.gpus.cards import Profile, find_card
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

MOST = 3
"""The largest number of differences that a message names."""


@lru_cache(maxsize=64)
def find_doubt(product: str, reported: tuple[Profile, ...]) -> Finding | None:
    """Return a Finding with the first differences (at most MOST) between the `reported` profiles of a card and our
    table. If none are reported, the Finding says that the table is used. It is shown to people; no decision depends
    on it.

    None if both agree, if the table lacks the card or has no profiles for it, or if NVML is known to report wrong
    counts for the card. Profiles of the table that are not reported do not count as a difference.
    """
    card = find_card(product)
    if card is None or not card.profiles or card.nvml_counts_wrong:
        return None
    if not reported:
        return Finding(
            Reason.PROFILES_FROM_TABLE,
            f"the driver lists no MIG profiles for {product}, so the operator uses its own table; if the operator"
            " rejects a layout that should fit, update the driver",
        )
    known = {profile.name: profile for profile in card.profiles}
    differences = [text for profile in reported if (text := _difference(profile, known))]
    if not differences:
        return None
    return Finding(
        Reason.CARD_DIFFERS,
        f"{product} reports {'; '.join(differences[:MOST])}. The operator uses what the card reports; please open an"
        " issue, so that the operator's table can be corrected",
    )


def _difference(profile: Profile, known: Mapping[str, Profile]) -> str:
    """Return the first difference between the reported profile and the one of the same name in `known`, which maps
    names to our table's profiles. Empty if there is none. The table may lack the name, or have other placements or
    another maximum count. Placements that are unknown on either side are not compared."""
    same = known.get(profile.name)
    if same is None:
        return f"{profile.name}, which the operator's table does not have"
    if profile.starts and same.starts and (profile.starts, profile.size) != (same.starts, same.size):
        return f"{profile.name} at {_places(profile)}, but the operator's table has {_places(same)}"
    if profile.max_count != same.max_count:
        return f"at most {profile.max_count} of {profile.name}, but the operator's table has {same.max_count}"
    return ""


def _places(profile: Profile) -> str:
    """Return the placements of a profile for a message, such as `0, 4 (size 4)`."""
    return f"{', '.join(map(str, profile.starts))} (size {profile.size})"

"""What simulators and pages say of a card beside what the product knows of it."""

from gpusharing.planning.gpus.cards import Card


def mig_mode_needs_reset(card: Card) -> bool:
    """Whether switching MIG mode needs a GPU reset (guide: Ampere only). The agent reads NVML's field 184 instead."""
    return bool(card.profiles) and card.compute_capability[0] == 8

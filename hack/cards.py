"""Facts about cards that simulators and pages need and the product does not."""

from gpusharing.planning.gpus.cards import Card


def mig_mode_needs_reset(card: Card) -> bool:
    """Whether switching the MIG mode needs a GPU reset, which NVIDIA's guide says of Ampere only."""
    return bool(card.profiles) and card.compute_capability[0] == 8

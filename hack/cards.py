"""Facts about cards that simulators and pages need and the product does not."""

from gpusharing.planning.gpus.cards import Card


def mig_mode_needs_reset(card: Card) -> bool:
    """Whether switching the MIG mode of this card needs a GPU reset, which NVIDIA's guide says of Ampere only: True if
    the table has MIG profiles of the card and its compute capability is 8.x. The agent does not use this: it reads
    NVML's field 184."""
    return bool(card.profiles) and card.compute_capability[0] == 8

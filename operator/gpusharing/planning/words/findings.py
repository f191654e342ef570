"""Why something is not as it should be, or not yet: a reason and a message."""

from dataclasses import dataclass

from gpusharing.planning.words.reasons import Reason


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a policy is not accepted, with the command or the field that mends it."""

    reason: Reason
    message: str

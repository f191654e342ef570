"""How far a person lets a rollout go on after failures: the annotation gpusharing.dev/resume of the policy.

`<generation>` allows as many further failures as spec.rollout.maxFailures says, `<generation>.<k>` k times as many.
Any other value allows none. So each look at what failed is a value of its own, and nothing else has to be remembered.
"""

import re
from collections.abc import Sequence

from gpusharing.api import names
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.vocabulary.lengths import some

_WRITTEN = re.compile(r"([0-9]{1,18})(?:\.([1-9][0-9]{0,4}))?")
_SHOWN = 64
"""The most characters of a value that says nothing."""


def find_batches(policy: PolicyView) -> int:
    """How many times maxFailures a person allowed in this generation, beyond the first; 0: nobody did."""
    found = _WRITTEN.fullmatch(policy.resumed)
    if found is None or found[1] != str(policy.generation):
        return 0
    return int(found[2] or 1)


def explain_halt(policy: PolicyView, failed: Sequence[str], most: int) -> str:
    """Return why no further node starts, or an empty text if nodes may. `failed` lists the failed nodes of this
    generation as shown to people; `most` is maxFailures."""
    batches = find_batches(policy)
    if len(failed) < most * (1 + batches):
        return ""
    resumed, value = _resumed(policy, most * (1 + batches)), _next_value(policy, len(failed) // most)
    return (
        f"{some(failed)} failed in this generation, and spec.rollout.maxFailures is {most}{resumed}: no further"
        f" node starts. When the cause is gone: kubectl annotate gsp {policy.name} --overwrite"
        f" {names.ANNOTATION_RESUME}={value}"
    )


def read_value(message: str) -> str:
    """The value of the annotation that the command in such a message sets; empty: there is none."""
    return message.rpartition(f" {names.ANNOTATION_RESUME}=")[2]


def _next_value(policy: PolicyView, batches: int) -> str:
    return f"{policy.generation}.{batches}" if batches > 1 else str(policy.generation)


def _resumed(policy: PolicyView, limit: int) -> str:
    """What the present value of the annotation says, in parentheses; empty: there is none."""
    if not policy.resumed:
        return ""
    value = f'{names.ANNOTATION_RESUME} "{policy.resumed[:_SHOWN]}"'
    if find_batches(policy):
        return f" ({value} lets it go on until {limit} have failed)"
    return f" ({value} is not for generation {policy.generation})"

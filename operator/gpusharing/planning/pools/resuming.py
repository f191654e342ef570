"""How far a person lets a rollout go on after failures: the policy's annotation gpusharing.dev/resume.

The value `<generation>` allows as many further failures as spec.rollout.maxFailures says, `<generation>.<k>` k times
as many, and any other value none. So a person who has examined further failures writes a new value, and the operator
has nothing else to remember.
"""

import re
from collections.abc import Sequence

from gpusharing.api import names
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.vocabulary.lengths import counted, some

_WRITTEN = re.compile(r"([0-9]{1,18})(?:\.([1-9][0-9]{0,4}))?")
_SHOWN = 64
"""The maximum number of characters shown of a value that allows nothing."""


def find_batches(policy: PolicyView) -> int:
    """Return how many times maxFailures a person has allowed in this generation in addition to the first maxFailures: 1
    for the annotation value `<generation>`, and k for `<generation>.<k>`. 0 if the annotation is missing, cannot be
    read or is for another generation."""
    found = _WRITTEN.fullmatch(policy.resumed)
    if found is None or found[1] != str(policy.generation):
        return 0
    return int(found[2] or 1)


def explain_halt(policy: PolicyView, failed: Sequence[str], most: int) -> str:
    """Return the message that no further node starts, with the command that lets the rollout go on. Empty if nodes may
    start, because fewer nodes have failed in this generation than maxFailures and the policy's annotation
    gpusharing.dev/resume allow together. `failed` has the failed nodes, named as the message shows them, and `most` is
    maxFailures."""
    batches = find_batches(policy)
    if len(failed) < most * (1 + batches):
        return ""
    resumed, needed = _resumed(policy, most * (1 + batches)), len(failed) // most
    value = f"{policy.generation}.{needed}" if needed > 1 else str(policy.generation)
    return (
        f"{some(failed)} failed in this generation, and spec.rollout.maxFailures is {most}{resumed}: no further"
        f" node starts. When the cause is fixed, run kubectl annotate gsp {policy.name} --overwrite"
        f" {names.ANNOTATION_RESUME}={value}"
    )


def read_value(message: str) -> str:
    """Return the value of the annotation in the command at the end of a message from `explain_halt`. A message without
    such a command is returned unchanged."""
    return message.rpartition(f" {names.ANNOTATION_RESUME}=")[2]


def _resumed(policy: PolicyView, limit: int) -> str:
    """Return a clause in parentheses that shows the present value of the annotation and says how many failures it
    allows, or that it is not for this generation. Empty if the annotation is not set."""
    if not policy.resumed:
        return ""
    value = f'{names.ANNOTATION_RESUME} "{policy.resumed[:_SHOWN]}"'
    if find_batches(policy):
        return f" ({value} allows the rollout to continue until {counted(limit, 'node has', 'nodes have')} failed)"
    return f" ({value} is not for generation {policy.generation})"

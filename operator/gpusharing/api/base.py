"""What all wire types share: camelCase on the wire, frozen in memory, unknown fields ignored when reading."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from gpusharing.api import rules
from gpusharing.api.records import Sentence, Time

Duration = Annotated[
    str,
    Field(
        pattern=rules.DURATION,
        min_length=2,
        max_length=16,
        json_schema_extra=rules.cel(rules.POSITIVE_DURATION),
    ),
]
"""Hours, minutes and seconds, for example 1h30m."""
Wait = Annotated[
    str,
    Field(pattern=rules.WAIT, min_length=2, max_length=16, json_schema_extra=rules.cel(rules.POSITIVE_WAIT)),
]
"""A Duration, or Never."""


class WireModel(BaseModel):
    """Base of every type that is read from or written to the API server.

    Unknown fields are ignored: an older operator must be able to read a newer object. A policy's spec is the exception
    (`validation.py`): the operator must not act on a spec that it does not fully understand.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )


class Condition(WireModel):
    """One aspect of an object's state, as in Kubernetes' metav1.Condition."""

    type: Annotated[str, Field(max_length=64)]
    """Type of the condition: Accepted, Ready, Reconciling or Stalled."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition is met."""
    reason: Annotated[str, Field(max_length=128)]
    """One CamelCase word that tools may match on; docs/reference/reasons.md explains each."""
    message: Sentence
    """A sentence for people: what is the case, and what happens next or what to do."""
    observed_generation: int
    """The metadata.generation that this condition describes."""
    last_transition_time: Time
    """When the status last changed, RFC 3339 in UTC, to the second."""

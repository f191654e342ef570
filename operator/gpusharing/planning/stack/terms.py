"""What a policy offers its nodes: targets by hardware, or why it is not carried out."""

from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import PlanSettings, PolicyView
from gpusharing.planning.stack.acceptance import find_objection, find_spec
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.target import Targets, Wish, find_wish


@value(eq=False)
class Terms:
    """What one policy offers."""

    policy: PolicyView
    """The policy."""
    targets: Targets | Finding
    """Or why the policy is not accepted."""


def wish_of(policy: PolicyView) -> Wish | Finding:
    """What a policy asks for, or why it cannot be read."""
    spec = find_spec(policy)
    return spec if isinstance(spec, Finding) else find_wish(policy.name, spec)


def find_terms(policy: PolicyView, wish: Wish | Finding, stack: StackView, settings: PlanSettings) -> Terms:
    """What a policy with this wish offers in this cluster."""
    if isinstance(wish, Finding):
        return Terms(policy, wish)
    return Terms(policy, find_objection(policy, stack, settings) or Targets(policy, wish, stack))

"""What is remembered of the tries on one node: deferrals, corrected drift, and the records that carry them."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import NOW, ask_anew, at
from tests.planning.cases import FULL, MIXED, make_case
from tests.planning.changes import FENCE, changing, only

from gpusharing.api import names
from gpusharing.planning.snapshot.actions import LabelNode, Release
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.attempts import was_corrected
from gpusharing.planning.transition.judge import judge

PROVEN = Verified("pool-b", "all-disabled", "x", MIXED.version.revision, layout="1x full", gpus=1)
ANEW = replace(MIXED, uid="uid-anew")
"""The policy was deleted and made again with the same words."""


def test_drift_put_right_is_recorded_with_its_revision() -> None:
    released = only(after_pnr(changing(fence=replace(FENCE, drift=True, version=MIXED.version))))
    assert isinstance(released, Release)
    assert released.verified is not None
    assert released.verified.corrected_revision == MIXED.version.revision


@pytest.mark.parametrize("policy", [ask_anew(MIXED), ANEW], ids=["edited", "made anew"])
def test_a_policy_that_changed_during_a_correction_has_its_own_first_drift(policy: Any) -> None:
    fence = replace(FENCE, drift=True, version=MIXED.version)
    released = only(after_pnr(changing(policy, fence=fence)))
    assert released.verified.corrected_revision == ""
    after = make_case(policy, node={"verified": released.verified})
    assert not was_corrected(after, policy)


CORRECTED: dict[str, tuple[Any, Verified, bool]] = {
    "in this revision": (MIXED, PROVEN, True),
    "before an edit that asks for nothing new": (replace(MIXED, generation=2), PROVEN, True),
    "in an earlier revision": (ask_anew(MIXED), PROVEN, False),
    "for a policy of this name that was deleted": (ANEW, PROVEN, False),
    "never": (MIXED, replace(PROVEN, corrected_revision=""), False),
}


@pytest.mark.parametrize(("policy", "record", "corrected"), CORRECTED.values(), ids=CORRECTED.keys())
def test_drift_was_put_right(policy: Any, record: Verified, corrected: bool) -> None:
    assert was_corrected(make_case(policy, node={"verified": record}), policy) is corrected


@pytest.mark.parametrize("lost", [names.LABEL_POLICY, names.LABEL_MODE])
def test_adoption_remembers_that_drift_was_put_right(lost: str) -> None:
    """A tool that strips our labels would else get a drain per drift, for ever."""
    case = make_case(FULL, was=FULL, labels={lost: None}, now=at(0))
    assert case.node.verified is not None
    known = replace(case.node.verified, corrected_revision="r1")
    verdict = judge(replace(case, node=replace(case.node, verified=known)))
    assert verdict is not None
    action = only(verdict)
    assert isinstance(action, LabelNode)
    assert action.verified is not None
    assert (action.verified.corrected_revision, NOW) == ("r1", case.now)

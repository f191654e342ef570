"""What could not be looked at is never called ok (stack/installationviews.py)."""

from dataclasses import replace

import pytest
from tests.planning.test_installation import GOOD
from tests.wording import lacks

from gpusharing.planning.stack.installation import render
from gpusharing.planning.stack.installationviews import (
    ASKED_BY_PEOPLE,
    LOOKED_AT,
    Topic,
    find_unread_topics,
    join_unseen,
)

EVERY_KIND = sorted({kind for kinds in LOOKED_AT.values() for kind in kinds})


def test_where_everything_could_be_read_nothing_is_unknown() -> None:
    assert find_unread_topics(GOOD.installation) == {}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_no_topic_is_ok_that_is_judged_by(kind: str) -> None:
    blind = replace(GOOD, unread={kind: "forbidden"})
    unseen = find_unread_topics(blind.installation)
    assert {topic for topic, kinds in LOOKED_AT.items() if kind in kinds} == unseen.keys()
    lines = render(blind.symptoms, unseen)
    told = {topic for topic in unseen if topic not in ASKED_BY_PEOPLE}
    assert [topic for topic in told if f"ok       {topic}" in lines] == []
    assert [topic for topic in told if f"UNKNOWN  {topic}: {kind} cannot be read" not in lines] == []
    assert not lacks(lines[-1], "As far as could be checked", "errors 0", "warnings 1")


def test_every_topic_has_its_kinds_but_rights_of_which_symptoms_speak() -> None:
    assert set(Topic) - LOOKED_AT.keys() == {Topic.RIGHTS}


def test_what_several_say_of_a_topic_is_told_in_one_sentence() -> None:
    one, other = {Topic.NODES: "a"}, {Topic.NODES: "b", Topic.API: "c"}
    assert join_unseen(one, {}, other) == {Topic.API: "c", Topic.NODES: "a; b"}

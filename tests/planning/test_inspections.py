"""An installation is inspected by topic: what `helm test` prints first, and under which heading."""

import pytest
from tests.planning.test_installation import BROKEN

from gpusharing.planning.stack.installation import INSPECTIONS, Inspection
from gpusharing.planning.stack.installationviews import ASKED_BY_PEOPLE, Topic


def test_every_topic_is_inspected_but_those_that_people_ask_about() -> None:
    assert {row.topic for row in INSPECTIONS} == set(Topic) - set(ASKED_BY_PEOPLE)


@pytest.mark.parametrize("row", INSPECTIONS, ids=[row.find.__name__ for row in INSPECTIONS])
def test_an_inspection_speaks_of_its_topic_only(row: Inspection) -> None:
    said = {symptom.topic for view, *_ in BROKEN.values() for symptom in row.find(view)}
    assert said == {row.topic}

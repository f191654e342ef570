"""An installation is inspected by topic: what `helm test` prints first, and under which heading."""

from tests.planning.test_installation import BROKEN

from gpusharing.planning.stack.installationviews import ASKED_BY_PEOPLE, Topic


def test_every_topic_is_inspected_but_those_that_people_ask_about() -> None:
    topics = {symptom.topic for view, *_ in BROKEN.values() for symptom in view.symptoms}
    assert topics == set(Topic) - set(ASKED_BY_PEOPLE)

"""An installation is inspected by topic: what `helm test` prints first, and under which heading."""

import pytest
from tests.planning.test_installation import BROKEN

from gpusharing.planning.stack.installation import INSPECTIONS, Inspection
from gpusharing.planning.stack.installationviews import ASKED_BY_PEOPLE, Topic


def test_the_order_of_the_inspections_is_part_of_the_product() -> None:
    assert [(row.find.__name__, row.topic) for row in INSPECTIONS] == [
        ("_served", Topic.API),
        ("_unread", Topic.RIGHTS),
        ("_rights", Topic.RIGHTS),
        ("_operator", Topic.OPERATOR),
        ("find_dra_symptoms", Topic.CLUSTER_POLICY),
        ("_stack", Topic.CLUSTER_POLICY),
        ("_plain", Topic.CLUSTER_POLICY),
        ("find_mig_obstacles", Topic.CLUSTER_POLICY),
        ("_operands", Topic.CLUSTER_POLICY),
        ("_pointers", Topic.CLUSTER_POLICY),
        ("find_gate_symptoms", Topic.CLUSTER_POLICY),
        ("find_deaf_mps", Topic.CLUSTER_POLICY),
        ("_config_maps", Topic.CONFIG_MAPS),
        ("find_agent_symptoms", Topic.AGENTS),
    ]
    topics = list(dict.fromkeys(row.topic for row in INSPECTIONS))
    assert topics == [topic for topic in Topic if topic not in ASKED_BY_PEOPLE]


@pytest.mark.parametrize("row", INSPECTIONS, ids=[row.find.__name__ for row in INSPECTIONS])
def test_an_inspection_speaks_of_its_topic_only(row: Inspection) -> None:
    said = {symptom.topic for view, *_ in BROKEN.values() for symptom in row.find(view)}
    assert said == {row.topic}

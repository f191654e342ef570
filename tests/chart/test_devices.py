"""`devices` is a word or a list, which the CRD's own CEL cannot see: the chart's admission policy checks it."""

import pytest
from hack.cluster.api import ApiError
from hack.cluster.process import wait_until
from tests.api.policies import GOOD, OPERATOR_ONLY, Row
from tests.chart.cluster import POLICIES, SECONDS, TWICE, Installed, refusal

from gpusharing.api import rules

pytestmark = pytest.mark.cluster
BINDING = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/gpusharing-policy-devices"


def ids(cases: tuple[Row, ...]) -> list[str]:
    return [case.sentence for case in cases]


@pytest.mark.parametrize("case", OPERATOR_ONLY, ids=ids(OPERATOR_ONLY))
def test_with_the_chart_the_api_server_refuses_it_too_and_names_the_field(installed: Installed, case: Row) -> None:
    message = refusal(installed.admin, case.manifest)
    assert "spec.mig.layouts[].devices: " in message
    assert rules.DEVICES in message


def test_a_gpu_that_is_named_in_two_lists_is_told(installed: Installed) -> None:
    case = next(case for case in OPERATOR_ONLY if case.sentence == "a GPU named in two lists")
    assert "GPU 1 is listed twice" in refusal(installed.admin, case.manifest)


@pytest.mark.parametrize("case", GOOD, ids=ids(GOOD))
def test_what_is_good_stays_good(installed: Installed, case: Row) -> None:
    assert refusal(installed.admin, case.manifest) == ""


def test_what_was_stored_before_can_still_lose_its_finalizer_and_go(installed: Installed) -> None:
    admin = installed.admin
    binding = admin.get(BINDING)
    admin.delete(BINDING)
    wait_until(lambda: refusal(admin, TWICE) == "", SECONDS, "the admission policy to be out of force")
    stored = {**TWICE, "metadata": {"name": "stored", "finalizers": ["gpusharing.dev/in-flight"]}}
    admin.create(POLICIES, stored)
    metadata = {"name": binding["metadata"]["name"], "labels": binding["metadata"]["labels"]}
    admin.create(BINDING.rpartition("/")[0], {"metadata": metadata, "spec": binding["spec"]})
    wait_until(lambda: refusal(admin, TWICE) != "", SECONDS, "the admission policy to be in force")
    with pytest.raises(ApiError, match="devices: GPU 0 is listed twice"):
        admin.merge_patch(f"{POLICIES}/stored", {"spec": {"mig": {**TWICE["spec"]["mig"], "strategy": "single"}}})
    admin.merge_patch(f"{POLICIES}/stored", {"metadata": {"finalizers": []}})
    admin.delete(f"{POLICIES}/stored")

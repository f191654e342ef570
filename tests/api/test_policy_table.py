"""Every policy of the table gets the same verdict from the pydantic types and from a real API server (api/rules.py)."""

import json
from typing import Any

import pytest
from hack.cluster.api import Api, ApiError
from tests.api.policies import BAD, GOOD, Row

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.validation import Problem, validate_policy

CASES = GOOD + BAD

POLICIES = "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies"


def ids(cases: tuple[Row, ...]) -> list[str]:
    return [case.sentence for case in cases]


def test_the_table_is_long_enough_and_says_everything_once() -> None:
    sentences = ids(CASES)
    assert len(CASES) >= 60
    assert len(sentences) == len(set(sentences))


@pytest.mark.parametrize("case", GOOD, ids=ids(GOOD))
def test_the_types_accept(case: Row) -> None:
    verdict = validate_policy(case.manifest)
    assert isinstance(verdict, GPUSharingPolicySpec), verdict


@pytest.mark.parametrize("case", BAD, ids=ids(BAD))
def test_the_types_refuse_and_name_the_field(case: Row) -> None:
    verdict = validate_policy(case.manifest)
    assert not isinstance(verdict, GPUSharingPolicySpec)
    assert case.refused in [problem.field for problem in verdict], verdict
    wordless = [f"{problem.field}: {problem.message}" for problem in verdict if not says_how(problem)]
    assert wordless == [], "each needs an example in _HINTS of api/validation.py, by the name of the field"


def says_how(problem: Problem) -> bool:
    """Required and enumerated fields speak for themselves; all else shows an example."""
    words = ("for example", "change the mode", "Field required", "Input should be '", "valid boolean")
    return any(word in problem.message for word in words) or problem.field == "spec.priority"


def create(server: Api, manifest: dict[str, Any]) -> dict[str, Any]:
    """Create on the server without keeping it; unknown fields are refused, as kubectl asks for."""
    answer: dict[str, Any] = server.request("POST", POLICIES, manifest, dryRun="All", fieldValidation="Strict")
    return answer


@pytest.mark.cluster
@pytest.mark.parametrize("case", GOOD, ids=ids(GOOD))
def test_the_api_server_accepts(case: Row, server: Api) -> None:
    assert create(server, case.manifest)["spec"]["mode"] == case.spec["mode"]


@pytest.mark.cluster
@pytest.mark.parametrize("case", BAD, ids=ids(BAD))
def test_the_api_server_refuses_and_names_the_field(case: Row, server: Api) -> None:
    with pytest.raises(ApiError) as caught:
        create(server, case.manifest)
    assert caught.value.status == 422
    causes = json.loads(caught.value.body)["details"]["causes"]
    named = {cause["field"] for cause in causes}
    field = case.server or case.refused
    assert field in named or any(f'"{field}"' in cause["message"] for cause in causes), causes


@pytest.mark.cluster
def test_the_api_server_fills_in_the_defaults_of_the_types(server: Api) -> None:
    case = next(case for case in GOOD if case.sentence == "one profile on all GPUs")
    verdict = validate_policy(case.manifest)
    assert isinstance(verdict, GPUSharingPolicySpec)
    stored = create(server, case.manifest)["spec"]
    assert GPUSharingPolicySpec.model_validate(stored) == verdict
    filled_in = verdict.model_dump(mode="json", by_alias=True)
    assert stored["mig"]["strategy"] == filled_in["mig"]["strategy"]
    assert {"rules": [], **stored["drain"]} == filled_in["drain"]
    assert stored["rollout"]["timeouts"] == filled_in["rollout"]["timeouts"]


@pytest.mark.cluster
def test_the_api_server_shows_the_same_sentence_as_the_types(server: Api) -> None:
    case = next(case for case in BAD if case.sentence == "mode MIG without its block")
    verdict = validate_policy(case.manifest)
    assert not isinstance(verdict, GPUSharingPolicySpec)
    with pytest.raises(ApiError) as caught:
        create(server, case.manifest)
    assert verdict[0].message in caught.value.message

"""A policy that says Reset is not deleted before the operator holds it: the chart's admission policy sees to it."""

from collections.abc import Iterator
from typing import Any

import pytest
from hack.cluster.api import ApiError
from tests.chart.cluster import POLICIES, POLICY, Installed

from gpusharing.api.names import ANNOTATION_FORCE_RELEASE, FINALIZER

pytestmark = pytest.mark.cluster
PATH = f"{POLICIES}/goes"


@pytest.fixture
def goes(installed: Installed) -> Iterator[None]:
    yield
    try:
        installed.admin.merge_patch(PATH, {"spec": {"deletionPolicy": "Retain"}, "metadata": {"finalizers": None}})
        installed.admin.delete(PATH)
    except ApiError as error:
        if error.status != 404:
            raise


def stored(installed: Installed, deletion: str, **metadata: Any) -> None:
    spec = {**POLICY["spec"], "deletionPolicy": deletion}
    installed.admin.create(POLICIES, {**POLICY, "metadata": {"name": "goes", **metadata}, "spec": spec})


@pytest.mark.usefixtures("goes")
def test_before_the_operator_holds_it_a_deletion_is_refused_and_says_what_to_do(installed: Installed) -> None:
    stored(installed, "Reset", finalizers=["example.com/theirs"])
    with pytest.raises(ApiError, match="is not on the policy yet: wait until the operator") as refused:
        installed.admin.delete(PATH)
    assert "or set deletionPolicy to Retain" in str(refused.value)
    assert "deletionTimestamp" not in installed.admin.get(PATH)["metadata"]


GOES: dict[str, tuple[str, dict[str, Any]]] = {
    "it says Retain": ("Retain", {}),
    "the operator holds it": ("Reset", {"finalizers": ["example.com/theirs", FINALIZER]}),
    "a person gave it up": ("Reset", {"annotations": {ANNOTATION_FORCE_RELEASE: "true"}}),
}


@pytest.mark.usefixtures("goes")
@pytest.mark.parametrize("why", GOES)
def test_a_policy_is_deleted_where(installed: Installed, why: str) -> None:
    deletion, metadata = GOES[why]
    stored(installed, deletion, **metadata)
    installed.admin.delete(PATH)
    left = [one for one in installed.admin.list(POLICIES) if one["metadata"]["name"] == "goes"]
    assert [bool(one["metadata"]["deletionTimestamp"]) for one in left] == [True] * bool(metadata.get("finalizers"))


@pytest.mark.usefixtures("goes")
def test_a_second_deletion_of_what_is_going_is_none_of_its_business(installed: Installed) -> None:
    stored(installed, "Reset", finalizers=["example.com/theirs", FINALIZER])
    installed.admin.delete(PATH)
    installed.admin.merge_patch(PATH, {"metadata": {"finalizers": ["example.com/theirs"]}})
    installed.admin.delete(PATH)

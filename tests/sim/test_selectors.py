"""FakeCluster refuses the selectors that an API server refuses."""

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.selectors import matcher

from gpusharing.kube.client import CONFIG_MAPS, CORE_EVENTS, EVENTS, GPUNODES, NODES, PODS, POLICIES, Resource
from gpusharing.kube.errors import Invalid


@pytest.mark.parametrize(
    ("resource", "selector", "field"),
    [
        (NODES, "spec.nodeName=gpu-1", "spec.nodeName"),
        (NODES, "spec.unschedulable=true,spec.providerID!=x", "spec.providerID"),
        (PODS, "spec.priority=1", "spec.priority"),
        (PODS, "!spec.nodeName=gpu-1", "!spec.nodeName"),
        (EVENTS, "involvedObject.name=gpu-1", "involvedObject.name"),
        (CONFIG_MAPS, "data.x=1", "data.x"),
        (POLICIES, "status.transition.phase=Held", "status.transition.phase"),
    ],
)
async def test_a_field_by_which_the_server_does_not_select_is_refused_with_its_name(
    resource: Resource, selector: str, field: str
) -> None:
    client = FakeCluster().client("someone")
    with pytest.raises(Invalid, match=f"^field label not supported: {field}$"):
        await client.list_page(resource, field_selector=selector)
    with pytest.raises(Invalid, match=f"^field label not supported: {field}$"):
        await anext(client.watch(resource, "0", field_selector=selector))


@pytest.mark.parametrize(
    ("resource", "selector"),
    [
        (NODES, "metadata.name==gpu-1,spec.unschedulable!=true"),
        (PODS, "spec.nodeName=,status.phase!=Failed"),
        (EVENTS, "type=Warning,regarding.name=gpu-1"),
        (CORE_EVENTS, "involvedObject.kind=Pod,involvedObject.name=gpu-1"),
        (GPUNODES, "status.transition.phase=Held"),
        (POLICIES, "spec.mode=MIG"),
    ],
)
async def test_a_field_by_which_the_server_selects_is_accepted(resource: Resource, selector: str) -> None:
    assert (await FakeCluster().client("someone").list_page(resource, field_selector=selector)).items == []


@pytest.mark.parametrize("selector", ["!a=b", "!a in (b)", "c,!a!=b"])
def test_a_negated_label_with_an_operator_is_refused(selector: str) -> None:
    with pytest.raises(ValueError, match="bad label selector"):
        matcher(selector)

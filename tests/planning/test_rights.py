"""The rights that are asked about are those that the chart grants."""

import pytest
from tests.chart.rbac import golden

from gpusharing.planning.stack import installationviews

NAMED = {
    "{lease}": "gpusharing-operator",
    "{plugin_config_map}": "gpusharing-device-plugin",
    "{mig_config_map}": "gpusharing-mig-parted",
}


@pytest.mark.parametrize(
    ("subject", "table", "values"),
    [
        ("operator", installationviews.OPERATOR_RIGHTS, ()),
        ("operator", installationviews.OPERATOR_RIGHTS + installationviews.CONFIGURE, ("gpuOperator.configure",)),
        ("operator", installationviews.OPERATOR_RIGHTS + installationviews.REPAIR_MPS, ("gpuOperator.repairMps",)),
        ("operator", installationviews.OPERATOR_RIGHTS + installationviews.FORCE_DELETE, ("forceDelete",)),
        ("operator", installationviews.OPERATOR_RIGHTS + installationviews.DEVICE_TAINTS, ("dra.deviceTaints",)),
        ("agent", installationviews.AGENT_RIGHTS + installationviews.SECURE_METRICS, ()),
    ],
)
def test_the_table_is_the_golden_one(
    subject: str, table: tuple[installationviews.Right, ...], values: tuple[str, ...]
) -> None:
    known = {
        (one.verb, one.group, one.resource, one.subresource, one.scope, NAMED.get(one.name, one.name)) for one in table
    }
    wanted = {
        (grant.verb, grant.group, grant.resource, grant.subresource, grant.scope, name)
        for grant in golden(*values)
        if grant.subject == subject
        for name in grant.names or ("",)
    }
    assert known == wanted


def test_a_right_reads_as_kubectl_takes_it() -> None:
    texts = {right.text for right in installationviews.OPERATOR_RIGHTS}
    assert {"patch nodes", "create pods/eviction", "patch gpunodes.gpusharing.dev/status"} <= texts
